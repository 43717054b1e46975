"""Orbax checkpoints read with tensorstore alone: no jax, and only the arrays that are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.errors import BenchError
from results.files import real_path

METADATA_FILES = {".zarray": "zarr", "zarr.json": "zarr3"}
"""The file that marks an array in each of tensorstore's two array formats."""
INFLATION = 1000
"""How much larger than its compressed files an array may be."""


@dataclass(frozen=True)
class StoredArray:
    """One array of a checkpoint, not read yet."""

    specification: dict[str, Any]
    stored: int
    """Bytes of the whole checkpoint."""

    def read(self) -> Any:
        """Return the array (numpy). Raises BenchError for one that is far larger than the checkpoint."""
        store = _tensorstore().open(self.specification, read=True, open=True).result()
        needed = math.prod(store.shape) * store.dtype.numpy_dtype.itemsize
        if needed > INFLATION * self.stored + 2**20:
            raise BenchError(f"an array of {needed:,} bytes in a checkpoint of {self.stored:,}; do not use it")
        return store.read().result()


def is_orbax(path: Path) -> bool:
    """Tell whether `path` is the directory of an Orbax checkpoint."""
    marks = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
    return path.is_dir() and (any((path / name).exists() for name in marks) or any(path.glob("*/.zarray")))


def load_orbax(path: Path) -> dict[str, Any]:
    """Return the nested dictionary of the checkpoint directory `path`; its leaves are `StoredArray`.

    Arrays are named by their paths joined with `.`, in OCDBT databases and in plain directories alike. Raises
    BenchError when tensorstore is not installed, or the directory holds no array.
    """
    tensorstore = _tensorstore()
    base: dict[str, Any] = {"driver": "file", "path": f"{real_path(path)}/"}
    if (path / "manifest.ocdbt").exists():
        base = {"driver": "ocdbt", "base": f"file://{real_path(path)}/"}
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    tree: dict[str, Any] = {}
    for key in sorted(tensorstore.KvStore.open(base).result().list().result()):
        name, _, file = key.decode().rpartition("/")
        if name and file in METADATA_FILES:
            *parents, leaf = name.split(".")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            store = dict(base)
            store["path"] = f"{base.get('path', '')}{name}/"
            branch[leaf] = StoredArray({"driver": METADATA_FILES[file], "kvstore": store}, stored)
    if not tree:
        raise BenchError(f"{path} contains no Orbax arrays; use the checkpoint's own directory (with manifest.ocdbt)")
    return tree


def _tensorstore() -> Any:
    try:
        import tensorstore
    except ImportError as error:
        raise BenchError(
            "Orbax checkpoints need tensorstore, which is not installed; run pip install 'fewstep-bench[orbax]'"
        ) from error
    return tensorstore
