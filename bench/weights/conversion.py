"""Checkpoints of any format to safetensors: one tree of the file, and what was left out of it."""

from __future__ import annotations

import json
import mmap
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bench.contracts.card import WeightsSource
from bench.weights.cache import FileCache
from bench.weights.formats import OWN_FILES, READERS, contents_of, count_arrays, state_in
from bench.weights.holders import PERSISTENCE, NetworkState
from bench.weights.sniff import kind_of
from results.errors import BenchError, one_line
from results.files import writing

DEPTH = 3
"""Levels at which trees of weights are looked for."""
TREE_NAMES = {"d", "encoder", "g", "model", "net", "network", "params", "state_dict", "velmodel"}
"""What training scripts call the trees of a file, beside names with `ema`."""
SUFFIXES = {".msgpack": "flax-msgpack", ".pkl": "pickle", ".pickle": "pickle"}
"""Formats whose first bytes tell nothing, or not enough."""


class Conversion(NamedTuple):
    """What was converted, out of what."""

    tree: str
    """Path of the tree; empty where the file is one tree."""
    tensors: int
    bytes: int
    trees: Mapping[str, int]
    """The trees of weights that the file holds, by path, with their numbers of arrays."""
    class_name: str
    """Class of a pickled network, else empty."""
    left_out: tuple[str, ...]
    """One line each."""

    def __str__(self) -> str:
        tree = f"tree {self.tree}" if self.tree else "the whole file"
        network = f" ({self.class_name})" if self.class_name else ""
        rest = f"; left out: {'; '.join(self.left_out)}" if self.left_out else ""
        return f"{tree}{network}, {self.tensors} tensors{rest}"


def format_of(path: Path) -> str:
    """Return the format of a checkpoint whose card nobody has, by its first bytes, else by its name."""
    if path.is_dir():
        return "orbax"
    known = kind_of(path).name
    return known if known in READERS else SUFFIXES.get(path.suffix.lower(), "torch")


def convert(path: Path, target: Path | None, source: WeightsSource) -> Conversion:
    """Write the tree that `source` names in the checkpoint at `path` to the safetensors file `target`; None: look only.

    Without a tree in `source` it is the averaged one, else the only one. The file keeps dtypes, names and, for a
    pickled network, its class and constructor's words. Raises BenchError when there are several trees to choose from,
    and as `read_file`; an existing `target` is replaced whole or not at all.
    """
    with contents_of(path, source.format) as (contents, flat):
        trees = trees_in(contents)
        if not trees:
            raise BenchError("it contains no arrays; use the checkpoint itself")
        asked = source.tree or _usual(trees)
        state = state_in(contents, flat, replace(source, tree=asked or None))
        if not state:
            raise BenchError(f"its tree '{asked}' contains no arrays; its trees of weights: {_listed(trees)}")
        named = asked.replace("?", "")
        tree = named if named in trees or len(trees) > 1 else next(iter(trees))
        size = sum(value.numel() * value.element_size() for value in state.values())
        network = state.class_name if isinstance(state, NetworkState) else ""
        if target is not None:
            save(state, target)
        return Conversion(tree, len(state), size, trees, network, tuple(_left_out(contents, trees, tree)))


def _usual(trees: Mapping[str, int]) -> str:
    """Return which of several trees is sampled. Raises BenchError when nothing tells."""
    averaged = [tree for tree in trees if tree == "ema"] or [tree for tree in trees if "ema" in tree.lower()]
    for found in (averaged, list(trees)):
        if len(found) == 1:
            return found[0]
    raise BenchError(f"it holds the trees {_listed(trees)}; choose one with --tree")


def trees_in(contents: Any, path: str = "") -> dict[str, int]:
    """Return the trees of weights in a file's contents by path, with their numbers of arrays.

    Where none is called as trees are, the contents are one tree, however nested.
    """
    if not isinstance(contents, Mapping) or path.count("/") > DEPTH:
        return {}
    children = {
        f"{path}/{key}" if path else str(key): value
        for key, value in contents.items()
        if isinstance(value, Mapping) and value and str(key).lower() not in OWN_FILES
    }
    named = any(_is_tree(name, value) for name, value in children.items())
    if named and not isinstance(contents, NetworkState):
        counts = {name: count_arrays(value) for name, value in children.items()}
        return {name: count for name, count in counts.items() if count}
    count = count_arrays(contents)
    if len(children) == 1 and sum(map(count_arrays, children.values())) == count:
        name, inner = next(iter(children.items()))
        return trees_in(inner, name)
    return {path: count} if count else {}


def _is_tree(name: str, value: Any) -> bool:
    name = name.rpartition("/")[2].lower()
    return isinstance(value, NetworkState) or name in TREE_NAMES or "ema" in name.split("_")


def _left_out(contents: Any, trees: Mapping[str, int], chosen: str) -> list[str]:
    others = {tree: count for tree, count in trees.items() if tree != chosen}
    lines = [f"other trees: {_listed(others)}"] if others else []
    if isinstance(contents, Mapping) and chosen:
        roots = {tree.partition("/")[0] for tree in trees}
        rest = [str(key) for key in contents if str(key) not in roots]
        lines += [f"entries that are not weights: {_listed(rest)}"] if rest else []
    return [*lines, *getattr(contents, "notes", ())]


def _listed(names: Mapping[str, int] | list[str], most: int = 8) -> str:
    shown = [f"{one_line(name, 60)} ({names[name]} arrays)" if isinstance(names, Mapping) else one_line(name, 60)
             for name in list(names)[:most]]  # fmt: skip
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def save(state: Mapping[str, Tensor], target: Path) -> None:
    """Write `state` to `target` as safetensors, whole or not at all. Raises BenchError when it cannot be written."""
    from safetensors.torch import save_file

    taken: set[int] = set()
    tensors = {}
    for name, value in state.items():
        own = value.contiguous()
        if own.untyped_storage().nbytes() != own.numel() * own.element_size() or own.data_ptr() in taken:
            own = own.clone()
        taken.add(own.data_ptr())
        tensors[name] = own
    metadata = {"format": "pt"}
    if isinstance(state, NetworkState):
        metadata["network"] = json.dumps({"class_name": state.class_name, "facts": dict(state.facts)})
    try:
        with writing(target) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(tensors, temporary, metadata)
            temporary.chmod(mode)  # safetensors makes files that nobody else may read
    except OSError as error:
        raise BenchError(f"{target}: cannot be written ({error.strerror or error}); choose another place") from error


def converted(source: WeightsSource, cache: FileCache, digest: str) -> Path:
    """Return where the safetensors form of a pickled network, of sha256 `digest`, lies in the cache."""
    tree = "".join(letter if letter.isalnum() else "-" for letter in source.tree or "whole")
    return cache.place("converted", f"{digest}-{tree}.safetensors")


def is_pickled_network(path: Path) -> bool:
    """Tell whether the file at `path` is a pickle, or torch's zip of one, that rebuilds persistence classes."""
    mark = PERSISTENCE.rpartition(".")[2].encode()
    if not path.is_file() or path.stat().st_size == 0:
        return False
    kind = kind_of(path).name
    if kind == "pickle":
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(mark) >= 0
    if kind != "torch" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        records = [entry for entry in archive.infolist() if entry.filename.rpartition("/")[2] == "data.pkl"]
        small = [entry for entry in records if entry.compress_type == zipfile.ZIP_STORED]
        return any(mark in archive.read(entry) for entry in small)
