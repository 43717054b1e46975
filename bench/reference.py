"""The reference set of a protocol: its images judged once, kept under a digest of all that they depend on."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.cells import disk_error
from bench.errors import BenchError
from bench.judges.base import Judge
from bench.metrics.cell import ReferenceFeatures
from protocols import Protocol
from protocols.schema import digest_of

BATCH = 250


@dataclass(frozen=True)
class Reference:
    """A judged reference set on disk."""

    name: str
    digest: str
    directory: Path
    facts: Mapping[str, Any]

    @property
    def n(self) -> int:
        """Number of reference images."""
        return int(self.facts["n"])

    @property
    def labels(self) -> np.ndarray | None:
        """Class of each reference image, int64 [n], where known."""
        path = self.directory / "labels.npy"
        return np.load(path, allow_pickle=False) if path.exists() else None

    def features(self) -> dict[str, ReferenceFeatures]:
        """Return what the judges said of the reference, memory-mapped, by array name."""
        labels = self.labels
        return {
            path.stem: ReferenceFeatures.of(np.load(path, mmap_mode="r", allow_pickle=False), labels)
            for path in sorted(self.directory.glob("*.npy"))
            if path.stem != "labels"
        }

    def row(self) -> dict[str, Any]:
        """Return the row of table `references`."""
        return {
            "name": self.name,
            "digest": self.digest,
            "n": self.n,
            "resize": str(self.facts.get("resize", "none")),
            "judge_digest": self.facts["judges_digest"],
            "facts": dict(self.facts),
        }


def judges_digest(judges: Mapping[str, Judge]) -> str:
    """Return one digest over all judges of a protocol."""
    return digest_of({name: judge.digest for name, judge in judges.items()})


def prepare_reference(protocol: Protocol, judges: Mapping[str, Judge], runs: Path) -> Reference:
    """Return the protocol's reference, judged now unless that was done before.

    `[reference] source = "module:function"` names a function of `part` that returns images uint8 [n, 3, H, W] and
    labels int64 [n]. Raises BenchError when the source is unknown or its images do not fit the protocol.
    """
    facts = dict(protocol.reference)
    name = str(facts.get("name", protocol.name))
    feature_judges = {key: judge for key, judge in judges.items() if not judge.reads_prompts}
    digest = digest_of([facts, judges_digest(feature_judges), protocol.resolution])
    directory = runs / "references" / digest[:20]
    if not (directory / "facts.json").exists():
        _build(protocol, feature_judges, facts, directory)
    stored = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
    return Reference(name, digest, directory, stored)


def _build(protocol: Protocol, judges: Mapping[str, Judge], facts: Mapping[str, Any], directory: Path) -> None:
    images, labels = _load(protocol, facts)
    expected = (3, protocol.resolution, protocol.resolution)
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
        raise BenchError(
            f"reference '{facts.get('name')}' holds {images.dtype} images of shape {tuple(images.shape[1:])}, protocol "
            f"'{protocol.name}' needs uint8 {expected}"
        )
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(images), BATCH):
        batch, batch_labels = images[start : start + BATCH], labels[start : start + BATCH]
        for name, judge in judges.items():
            for key, values in judge(batch, batch_labels).items():
                if key in ("features", "spatial"):
                    parts.setdefault(f"{name}.{key}", []).append(values.cpu().numpy())
    temporary = directory.with_name(f"{directory.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        for key, arrays in parts.items():
            np.save(temporary / f"{key}.npy", np.concatenate(arrays))
        np.save(temporary / "labels.npy", labels.numpy())
        stored = {**facts, "n": len(images), "judges_digest": judges_digest(judges)}
        (temporary / "facts.json").write_text(json.dumps(stored, indent=1), encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        temporary.replace(directory)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise disk_error(directory, error) from error


def _load(protocol: Protocol, facts: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    source = str(facts.get("source", ""))
    module, _, function = source.partition(":")
    if not function:
        raise BenchError(f"protocol '{protocol.name}': reference.source must be 'module:function', found '{source}'")
    try:
        loaded = getattr(import_module(module), function)(facts.get("part", "test"))
    except (ImportError, AttributeError) as error:
        raise BenchError(
            f"protocol '{protocol.name}': reference source '{source}' cannot be loaded ({error})"
        ) from error
    return loaded.images, loaded.labels
