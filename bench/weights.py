"""Weights: found, verified by digest and read without executing anything."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.card import ModelCard, WeightsSource
from bench.errors import BenchError


def cache_directory() -> Path:
    """Return where downloads and reference statistics lie: BENCH_CACHE_DIR, else the platform's cache directory."""
    return Path(os.environ.get("BENCH_CACHE_DIR") or platformdirs.user_cache_dir("fewstep-bench"))


def locate(source: WeightsSource, model: str) -> Path:
    """Return the local file of `source`. Raises BenchError with the command or address that fetches it."""
    if source.path is not None:
        if source.path.exists():
            return source.path
        raise BenchError(f"weights of {model}: {source.path} is missing; reinstall the package or give --weights PATH")
    path = cache_directory() / "weights" / model / (source.file or "weights")
    if path.exists():
        return path
    if source.repo:
        raise BenchError(f"weights of {model} are not here: fetch them with 'bench weights fetch {model}'")
    raise BenchError(f"weights of {model} are not here: get them from {source.url} and give --weights PATH")


def read_state(path: Path, source: WeightsSource, model: str) -> dict[str, Tensor]:
    """Return the state dict that `source` names inside the file at `path`: its tree, with its prefix stripped."""
    if source.sha256 is not None and source.path is not None:
        found = sha256_of(path)
        if found != source.sha256:
            raise BenchError(
                f"weights of {model}: {path} has sha256 {found[:12]}..., the card says {source.sha256[:12]}...; "
                "fetch the file again"
            )
    try:
        state = load_file(path) if source.format == "safetensors" else torch.load(path, weights_only=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise BenchError(f"weights of {model}: {path} cannot be read ({error}); fetch the file again") from error
    if source.tree:
        state = state[source.tree]
    return {key.removeprefix(source.prefix): value for key, value in state.items()}


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(card: ModelCard, override: Path | None = None) -> str | None:
    """Return the sha256 of the weights that `card` (or the file `override`) would load, None without weights."""
    if override is not None:
        return sha256_of(override)
    if card.weights is None:
        return None
    if card.weights.sha256 is not None:
        return card.weights.sha256
    return sha256_of(locate(card.weights, card.name))
