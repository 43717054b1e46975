"""Checkpoints of every published kind to flat state dicts, without executing anything that they hold."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.contracts.card import WeightsSource
from bench.weights.orbax import StoredArray, is_orbax, load_orbax
from bench.weights.safe_pickle import ARRAY_NAMES, CodeRefused, inert_class, is_inert, load_arrays
from results.errors import BenchError, unknown

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that torch's own wrappers (DataParallel, compile) put before every key."""


def read_file(path: Path, source: WeightsSource) -> dict[str, Tensor]:
    """Return the state dict that `source` names inside `path`, on the CPU in the file's own dtypes.

    `path` is a file of `source.format`, a `.safetensors` file whatever the card's format, a directory that holds just
    one file, an Orbax directory, or a zip of any of these. Nested trees become paths joined with `/`; what is not an
    array is left out. Raises BenchError when the tree is not there, CodeRefused for a pickle with code, and whatever
    the libraries raise for a damaged file.
    """
    with _unpacked(path) as file:
        if file.suffix == ".safetensors" and source.format != "safetensors":
            # Somebody's conversion of the file: it holds one flat tree, the sampled one.
            state = _flat(_read_safetensors(file))
        else:
            if source.format not in READERS:
                raise unknown("format of weights", source.format, READERS)
            state = _flat(_subtree(READERS[source.format](file), source.tree))
    for wrapper in WRAPPERS:
        if state and all(key.startswith(wrapper) for key in state):
            state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return {key.removeprefix(source.prefix): value for key, value in state.items()}


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """Yield the checkpoint inside `path`: out of its archive and of directories that hold just one entry."""
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("data.pkl") for name in archive.namelist()):  # else torch's own container
                with tempfile.TemporaryDirectory(prefix="bench-weights-") as directory:
                    archive.extractall(directory)
                    yield _only_entry(Path(directory))
                return
    yield _only_entry(path)


def _only_entry(path: Path) -> Path:
    while path.is_dir() and not is_orbax(path):
        entries = [entry for entry in path.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
        if len(entries) != 1:
            raise BenchError(f"{path} holds {len(entries)} entries; give the checkpoint itself")
        path = entries[0]
    return path


def _subtree(tree: Any, path: str | None) -> Any:
    """Follow `path` (`a/b`; `a?` is skipped where it is absent) down from `tree`."""
    for part in (path or "").split("/"):
        name = part.removesuffix("?")
        if isinstance(tree, Mapping) and name in tree:
            tree = tree[name]
        elif name and name == part:
            held = ", ".join(map(str, list(tree)[:8])) if isinstance(tree, Mapping) else type(tree).__name__
            raise BenchError(f"no tree '{path}' in it (it holds: {held}); is it the checkpoint of another variant?")
    return tree


def _flat(tree: Any, path: str = "") -> dict[str, Tensor]:
    if isinstance(tree, (list, tuple)):
        tree = {str(index): item for index, item in enumerate(tree)}
    if not isinstance(tree, Mapping):
        array = _tensor(tree)
        return {} if array is None else {path: array}
    flat = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{path}/{key}" if path else str(key)))
    return flat


def _tensor(value: Any) -> Tensor | None:
    """Return a leaf as a tensor, None for what is neither array nor number."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, StoredArray):
        value = value.read()
    if isinstance(value, (bool, int, float)):
        return torch.tensor(value)
    if not isinstance(value, (np.ndarray, np.generic)):
        return None
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    if array.dtype.kind not in "biuf":
        return None
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: Path) -> Any:
    """Read a torch file with `weights_only`: numpy scalars and arrays are let in, settings become inert objects."""
    inert = inert_class()
    allowed: dict[str, Any] = {f"{module}.{name}": value for (module, name), value in ARRAY_NAMES.items()}
    dtypes = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")]
    while True:
        names = [(value, name) for name, value in allowed.items()]
        try:
            with torch.serialization.safe_globals([*names, *dtypes]):
                # Memory-mapped: of a file with optimiser states only the sampled tree is read.
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            if named is None:
                raise
            name = named.group(1)
            if name in allowed or not is_inert(name):
                raise CodeRefused(name) from error
            allowed[name] = inert


def _read_msgpack(path: Path) -> Any:
    """Read flax's msgpack: arrays are extension types, long ones are split into chunks."""
    import msgpack

    return _joined(msgpack.unpackb(path.read_bytes(), ext_hook=_flax_extension, strict_map_key=False))


def _flax_extension(code: int, data: bytes) -> Any:
    import msgpack

    kinds = {1: "array", 2: "complex number", 3: "numpy scalar"}
    if kinds.get(code) not in ("array", "numpy scalar"):
        raise ValueError(f"msgpack extension {code} ({kinds.get(code, 'unknown')}) is no weight")
    shape, name, buffer = msgpack.unpackb(data, raw=True)
    if name == b"bfloat16":
        return torch.from_numpy(np.frombuffer(buffer, np.uint16).copy()).view(torch.bfloat16).reshape(shape)
    return np.frombuffer(buffer, np.dtype(name.decode())).reshape(shape)


def _joined(tree: Any) -> Any:
    """Return the tree with chunked arrays put together."""
    if not isinstance(tree, dict):
        return tree
    if "__msgpack_chunked_array__" not in tree:
        return {key: _joined(value) for key, value in tree.items()}
    chunks, shape = ([tree[name][str(i)] for i in range(len(tree[name]))] for name in ("chunks", "shape"))
    parts = [part for part in map(_tensor, chunks) if part is not None]
    return torch.cat(parts).reshape(shape)


READERS: dict[str, Callable[[Path], Any]] = {
    "safetensors": _read_safetensors,
    "torch": _read_torch,
    "flax-msgpack": _read_msgpack,
    "orbax": load_orbax,
    "pickle": load_arrays,
}
