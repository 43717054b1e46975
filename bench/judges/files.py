"""The files of judges: how they are called and kept, and the facts that are read off them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.weights.cache import FileCache, cache_directory
from bench.weights.file import NeededFile

PUBLISHED_BYTES = {
    "facebook/dinov2-large": 1_217_481_000,
    "google/vit-base-patch16-224": 346_271_000,
    "timm/vit_base_patch16_clip_224.openai": 598_482_000,
    "timm/vit_large_patch14_clip_224.openai": 1_710_466_000,
    "timm/vit_large_patch14_clip_336.openai": 1_711_777_000,
    "yuvalkirstain/PickScore_v1": 3_944_437_000,
}
"""Weights of published judges, about: their parameters in float32. For a machine that cannot ask the hub."""


def of_judge(file: NeededFile, judge: str, protocol: str = "") -> NeededFile:
    """Return the file as one of `judge` (of `protocol`, where it is known): how it is called, kept and fetched."""
    torch_home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
    put = "put it there, or correct the path in the protocol (relative paths start at the protocol's folder)"
    return replace(
        file,
        owner=f"judge '{judge}'",
        command=f"bench weights fetch judges --protocol {protocol}" if protocol else "bench weights fetch judges",
        folder=("judges", "downloads"),
        elsewhere=(torch_home / "hub" / "checkpoints",) if file.url is not None else (),
        addition=put if file.path is not None else "",
        size=file.size or (PUBLISHED_BYTES.get(file.repo or "") if file.role == "weights" else None),
    )


PATH_OPTIONS = ("path", "weights", "config", "merges", "processor_path")
"""Options of judges that are local paths."""


def option_path(options: Mapping[str, Any], key: str, root: Path) -> Path | None:
    """Return the local path an option names, relative to the protocol's directory; None where it is not set."""
    value = options.get(key)
    return None if value is None else root / Path(value).expanduser()


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file; a large one is read once while its size and time stand."""
    return FileCache(cache_directory()).digest(path)


def library_version(distribution: str) -> str:
    """Return `distribution version` of an installed distribution, for a judge's facts."""
    return f"{distribution} {version(distribution)}"


def facts_digest(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of facts as canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
