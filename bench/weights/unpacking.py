"""The checkpoint inside what people hand over: a directory, a zip, the shards of an index."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.weights.opcodes import Bomb
from bench.weights.orbax import is_orbax
from bench.weights.sniff import kind_of
from results.documents import read_object
from results.errors import BenchError
from results.files import real_path

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".msgpack", ".pkl", ".pickle")
INDEX_SUFFIX = ".index.json"
INFLATION = 50
"""How much larger than its zip a checkpoint may be; weights hardly shrink at all."""


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield the checkpoint inside `path`: out of its archive, and of directories that hold just one.

    Raises BenchError when there are several, Bomb for an archive that is far larger than its file.
    """
    if path.is_file() and kind_of(path).name == "zip":
        with tempfile.TemporaryDirectory(prefix="bench-weights-") as directory:
            _extract(path, Path(directory))
            yield _only_entry(Path(directory))
        return
    yield _only_entry(path)


def _extract(path: Path, directory: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        total, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
        if total > INFLATION * size + 2**20:
            raise Bomb(f"it unpacks to {total:,} bytes from {size:,}, as a decompression bomb does; do not use it")
        if total > shutil.disk_usage(directory).free:
            raise BenchError(f"it unpacks to {total:,} bytes and {directory.parent} has less free; unpack it elsewhere")
        archive.extractall(directory)


def _only_entry(path: Path) -> Path:
    while path.is_dir() and not is_orbax(path):
        entries = [entry for entry in path.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
        weights = _weights_among(entries) if len(entries) > 1 else entries
        if len(weights) > 1:
            names = ", ".join(sorted(entry.name for entry in weights)[:6])
            raise BenchError(f"{path} holds {len(weights)} weights files ({names}); name one of them")
        if not weights:
            raise BenchError(f"{path} holds {len(entries)} entries; use the checkpoint itself")
        path = weights[0]
    return path


def _weights_among(entries: list[Path]) -> list[Path]:
    """Return the checkpoints of a directory; an index stands for its shards."""
    indices = [entry for entry in entries if entry.name.endswith(INDEX_SUFFIX)]
    if indices:
        return [entry for entry in indices if ".safetensors" in entry.name] or indices
    return [entry for entry in entries if entry.suffix.lower() in WEIGHTS_SUFFIXES]


def shards_of(index: Path) -> list[Path]:
    """Return the files that an index names, beside it. Raises BenchError for a missing one, or a path elsewhere."""
    try:
        names = sorted(set(read_object(index, "index")["weight_map"].values()))
    except (BenchError, KeyError, TypeError, AttributeError) as error:
        raise BenchError("it is a damaged index of a sharded checkpoint; fetch it again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise BenchError(f"it names a shard outside its folder ({str(name)[:60]!r}); do not use it")
        if not (index.parent / name).is_file():
            raise BenchError(f"its shard {name} is not next to it ({len(names)} shards); fetch it too")
        if real_path(index.parent / name) == real_path(index) or kind_of(index.parent / name).name == "index":
            raise BenchError(f"it names another index as a shard ({name}); correct it")
    if not names:
        raise BenchError("it is an index that names no shard; fetch it again")
    return [index.parent / name for name in names]
