"""Checkpoints of every published kind to flat state dicts, without executing anything that they hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.contracts.adapter import stripped
from bench.contracts.card import WeightsSource
from bench.weights.holders import DEEPEST, MOST_ENTRIES, NetworkState
from bench.weights.opcodes import Bomb
from bench.weights.orbax import StoredArray, load_orbax
from bench.weights.safe_pickle import ArrayInFile
from bench.weights.sniff import kind_of, safetensors_size
from bench.weights.torch_file import read_pickle, read_torch
from bench.weights.unpacking import shards_of, unpacked
from results.errors import BenchError, unknown

SAME_TREE = {
    "ema": ("ema_state_dict", "model_ema", "ema_model", "ema_params", "params_ema", "ema_net", "G_ema"),
    "state_dict": ("model_state_dict",),
}
"""Names under which people save what a card calls by the first."""


class NotACheckpoint(BenchError):
    """A file that is not a checkpoint at all, by its first bytes; the line says what it is."""


def read_file(path: Path, source: WeightsSource) -> dict[str, Tensor]:
    """Return the state dict that `source` names inside `path`, on the CPU in the file's own dtypes.

    `path` is a checkpoint of any known format (its first bytes decide, where they tell), a directory that holds just
    one, an Orbax directory, the index of a sharded checkpoint, or a zip of any of these. Nested trees become paths
    joined with `/`; what is not an array is left out. Raises NotACheckpoint for what is none, BenchError when the tree
    or a shard is not there, CodeRefused for a pickle with code, and whatever the libraries raise for a damaged file.
    """
    with contents_of(path, source.format) as (tree, flat):
        return state_in(tree, flat, source)


@contextmanager
def contents_of(path: Path, format: str) -> Iterator[tuple[Any, bool]]:
    """Yield what the checkpoint at `path` holds, and whether it is flat by its format (safetensors)."""
    if format not in READERS:
        raise unknown("format of weights", format, READERS)
    with unpacked(path) as file:
        yield _read(file, format)


def state_in(tree: Any, flat: bool, source: WeightsSource) -> dict[str, Tensor]:
    """Return the state dict that `source` names in a file's contents; a NetworkState where it was a pickled network."""
    # Somebody's conversion to safetensors holds one flat tree, the sampled one.
    chosen = tree if flat and source.format != "safetensors" else _subtree(tree, source.tree)
    state = {key.removeprefix(source.prefix): value for key, value in _unwrapped(_flat(chosen)).items()}
    return chosen.of(state) if isinstance(chosen, NetworkState) else state


def _read(file: Path, format: str) -> tuple[Any, bool]:
    """Return what `file` holds, and whether it is flat by its format (safetensors)."""
    if file.is_dir():
        return load_orbax(file), False
    kind = kind_of(file)
    if kind.fault is not None:
        raise NotACheckpoint(kind.fault)
    if kind.name == "index":
        merged: dict[str, Any] = {}
        for shard in shards_of(file):
            part, flat = _read(shard, format)
            if not isinstance(part, Mapping):
                raise BenchError(f"its shard {shard.name} has no state dict; fetch it again")
            merged |= part
        return merged, flat
    name = kind.name if kind.name in READERS else format
    if name != kind.name and name in ("safetensors", "torch", "orbax"):
        raise NotACheckpoint(f"is not a {name} file (it starts with {_begin(file)}); fetch the file again")
    return READERS[name](file), name == "safetensors"


def _begin(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(8).hex(" ")


def _subtree(tree: Any, path: str | None) -> Any:
    """Follow `path` (`a/b`; `a?` is skipped where it is absent) down from `tree`."""
    for part in (path or "").split("/"):
        name = part.removesuffix("?")
        found = _tree_name(tree, name)
        if found is not None:
            tree = tree[found]
        elif name and (only := _only_network(tree)) is not None:
            tree = only
        elif name and name == part:
            raise BenchError(f"no tree '{path}' in it ({_held(tree)}); is it the checkpoint of another variant?")
    # A file of one tree is that tree: Lightning and most training scripts save one beside their own bookkeeping.
    while isinstance(tree, Mapping) and not _arrays(tree):
        if not path and len(trees := _trees(tree)) == 1 and len(_trees(tree, every=True)) == 1:
            tree = tree[trees[0]]
        elif "state_dict" in tree and isinstance(tree["state_dict"], Mapping):
            tree = tree["state_dict"]
        else:
            break
    return tree


def _only_network(tree: Any) -> NetworkState | None:
    """Return the network of a file that holds just one, whatever it is called there; None where there are others."""
    if isinstance(tree, NetworkState):
        return tree
    found = [value for value in tree.values() if isinstance(value, NetworkState)] if isinstance(tree, Mapping) else []
    return found[0] if len(found) == 1 else None


def _tree_name(tree: Any, name: str) -> str | None:
    """Return the key of `tree` that is called `name` by whoever saved it."""
    if not isinstance(tree, Mapping) or not name:
        return None
    known = [other for other in (name, *SAME_TREE.get(name, ())) if other in tree]
    return next((other for other in known if other == name or isinstance(tree[other], Mapping)), None)


def _held(tree: Any) -> str:
    """Say what a level of a file holds, and how a card chooses among its trees."""
    if not isinstance(tree, Mapping):
        return f"it holds: {type(tree).__name__}"
    names = ", ".join(str(key)[:60] for key in list(tree)[:8])
    trees = [str(key)[:60] for key in _trees(tree)][:8]
    choice = f"; its trees of weights: {', '.join(trees)}; choose one with weights.tree in the card" if trees else ""
    return f"it holds: {names}{choice}"


OWN_FILES = {
    "opt",
    "optim",
    "optimizer",
    "optimizers",
    "optimizer_state",
    "optimizer_states",
    "optimizer_state_dict",
    "opt_state",
    "lr_schedulers",
    "scheduler",
    "scaler",
    "callbacks",
    "loops",
    "args",
    "config",
    "hyper_parameters",
    "rng",
    "rng_state",
}
"""Trees of training scripts that hold no weights."""


def _trees(tree: Mapping[Any, Any], every: bool = False) -> list[Any]:
    """Return the keys under which `tree` holds mappings; without `every`, those that may be weights."""
    return [
        key for key, value in tree.items()
        if isinstance(value, Mapping) and len(value) and (every or str(key).lower() not in OWN_FILES)
    ]  # fmt: skip


def _arrays(tree: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, (Tensor, np.ndarray, ArrayInFile, StoredArray)) for value in tree.values())


def count_arrays(tree: Any) -> int:
    """Return how many arrays nested containers hold."""
    waiting, count, seen = [tree], 0, {id(tree)}
    while waiting:
        value = waiting.pop()
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
        for item in items:
            if isinstance(item, (list, tuple, Mapping)):
                if id(item) not in seen:
                    seen.add(id(item))
                    waiting.append(item)
            else:
                count += isinstance(item, (Tensor, np.ndarray, ArrayInFile, StoredArray))
    return count


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state without what averaging and wrapping put around it."""
    if any("/" in key for key in state):
        return state
    return stripped(state)


def _flat(tree: Any) -> dict[str, Tensor]:
    """Return the arrays of nested containers by their paths."""
    flat: dict[str, Tensor] = {}
    waiting: list[tuple[str, Any, int]] = [("", tree, 0)]
    entries = 0
    while waiting:
        path, value, depth = waiting.pop()
        entries += 1
        if entries > MOST_ENTRIES or depth > DEEPEST:
            raise Bomb("its containers repeat each other without end, as in a decompression bomb; do not use it")
        if isinstance(value, (list, tuple, Mapping)):
            items: Iterable[Any] = value.items() if isinstance(value, Mapping) else enumerate(value)
            inner = [(f"{path}/{key}" if path else str(key), item, depth + 1) for key, item in items]
            entries += 0 if len(inner) < MOST_ENTRIES else len(inner)
            waiting.extend(reversed(inner))
            continue
        array = _tensor(value)
        if array is not None:
            flat[path] = array
    return flat


def _tensor(value: Any) -> Tensor | None:
    """Return a leaf as a tensor, None for what is neither array nor number."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, StoredArray):
        value = value.read()
    if isinstance(value, ArrayInFile):
        value = value.array
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
    from safetensors import safe_open
    from safetensors.torch import load_file

    whole, size = safetensors_size(path), path.stat().st_size
    if whole is not None and whole > size:
        raise NotACheckpoint(f"is truncated ({size:,} of {whole:,} bytes); fetch the file again")
    with safe_open(path, "pt") as file:
        network = _network_facts((file.metadata() or {}).get("network"))
    return load_file(path) if network is None else network.of(load_file(path))


def _network_facts(text: str | None) -> NetworkState | None:
    """Return the network that a conversion was made of, without its tensors; None for any other file."""
    try:
        told = json.loads(text or "null")
        name, facts = told["class_name"], dict(told["facts"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    network = NetworkState()
    network.class_name, network.facts = str(name), facts
    return network


def _read_msgpack(path: Path) -> Any:
    """Read flax's msgpack: arrays are extension types, long ones are split into chunks."""
    import msgpack

    return _joined(msgpack.unpackb(path.read_bytes(), ext_hook=_flax_extension, strict_map_key=False))


def _flax_extension(code: int, data: bytes) -> Any:
    import msgpack

    kinds = {1: "array", 2: "complex number", 3: "numpy scalar"}
    if kinds.get(code) not in ("array", "numpy scalar"):
        raise ValueError(f"msgpack extension {code} ({kinds.get(code, 'unknown')}) is not a weight")
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
    "torch": read_torch,
    "flax-msgpack": _read_msgpack,
    "orbax": load_orbax,
    "pickle": read_pickle,
}
