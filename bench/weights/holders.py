"""Pickled networks as data: what stands in a file for objects whose classes are not here, and the tensors in them.

NVIDIA's persistence classes (EDM, EDM2 and what is built on them) pickle a network as a call that carries the source of
its class. The source is never looked at: the object's state is an ordinary dictionary, whose `_parameters`, `_buffers`
and `_modules` are the state dict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, islice
from typing import Any, ClassVar

import numpy as np

from bench.weights.opcodes import Bomb, CodeRefused

PERSISTENCE = "persistence._reconstruct_persistent_obj"
"""The end of the name by which a persistence class is rebuilt, whatever package holds the copy of it."""
RUNS_CODE = {
    "_io", "_pickle", "_posixsubprocess", "_winapi", "asyncio", "code", "codecs", "codeop", "ctypes", "importlib",
    "io", "marshal", "multiprocessing", "nt", "os", "pdb", "pickle", "pip", "posix", "pty", "runpy", "shutil",
    "signal", "socket", "subprocess", "sys", "tempfile", "timeit", "webbrowser",
}  # fmt: skip
BUILTINS_RUN_CODE = {"__import__", "breakpoint", "compile", "delattr", "eval", "exec", "input", "open", "setattr"}
"""No network needs these. A file that names one was made to do harm, and is refused although none of it would run."""
CLASS_BYTES = 2048
"""What one more class costs, about."""
MOST_ENTRIES, DEEPEST = 200_000, 64
"""Entries and levels of the largest tree that is read; a file whose containers repeat each other has more."""
MOST_FACTS = 200
INNER = ("model", "unet", "net", "network", "module", "_orig_mod")
"""Names under which a wrapper holds the network that it wraps."""


class Tree(dict[Any, Any]):
    """What a file holds; `notes` say what of it is not weights and was left aside, one line each."""

    notes: tuple[str, ...] = ()


class NetworkState(Tree):
    """The state dict of one pickled network, under the names that `state_dict` gives.

    `class_name` is its class, `facts` what it was built with: numbers, flags, words and lists of them.
    """

    class_name: str = ""
    facts: Mapping[str, Any] = {}

    def of(self, tensors: Mapping[str, Any]) -> NetworkState:
        """Return the same network with `tensors`."""
        state = NetworkState(tensors)
        state.class_name, state.facts, state.notes = self.class_name, self.facts, self.notes
        return state


class Held:
    """Stands for an object of a class that is not here: takes any arguments, keeps its state and items as data."""

    __slots__ = ("items", "state")
    name: ClassVar[str] = ""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Held:  # noqa: D102
        held = super().__new__(cls)
        held.state, held.items = {}, None
        return held

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.state: Mapping[Any, Any]
        self.items: dict[Any, Any] | None

    def __call__(self, *arguments: Any, **keywords: Any) -> Held:
        """Refuse to be called: what a call returned is data."""
        raise CodeRefused("the result of a call, to call it")

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], Mapping):
            state = state[0]  # beside it: values of slots
        if isinstance(state, Mapping):
            self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.items is None:
            self.items = {}
        self.items[key] = value

    def append(self, item: Any) -> None:
        """Leave `item` out: no network is a list."""

    def extend(self, items: Any) -> None:
        """Leave `items` out."""

    @property
    def is_network(self) -> bool:
        """Whether the object's state is that of a torch module."""
        return all(isinstance(self.state.get(part), Mapping) for part in ("_parameters", "_modules"))


class Persistent(Held):
    """Stands for an object of a persistence class."""

    __slots__ = ("class_name",)
    class_name: str


class Holders:
    """The classes of one file that are not here.

    They stand as inert objects where the file holds a pickled network; in any other file the first ends the reading.
    """

    def __init__(self, spend: Callable[[int], None]) -> None:
        self.spend = spend
        self.classes: dict[str, type[Held]] = {}
        self.sources: set[str] = set()
        self.persistent = False

    def of(self, name: str) -> type[Held]:
        """Return what stands for the class or function `name`. Raises CodeRefused for what could only do harm."""
        package, _, rest = name.partition(".")
        if package in RUNS_CODE or (package == "builtins" and rest in BUILTINS_RUN_CODE):
            raise CodeRefused(name)
        if name not in self.classes:
            self.spend(CLASS_BYTES)
            self.classes[name] = type("Held", (Held,), {"__slots__": (), "name": name})
        return self.classes[name]

    def rebuilt(self, meta: Any) -> Persistent:
        """Return what stands for the persistent object that `meta` describes; its source is not looked at."""
        if not isinstance(meta, Mapping):
            raise CodeRefused("a persistent object without a description")
        self.persistent = True
        held = Persistent()
        held.class_name = str(meta.get("class_name", ""))[:100]
        held.__setstate__(meta.get("state"))
        if meta.get("module_src"):
            self.sources.add(held.class_name)
        return held

    def resolved(self, tree: Any) -> Any:
        """Return `tree` with its networks as NetworkState.

        Raises CodeRefused when something in it is not data and there is no network that it could belong to.
        """
        if not self.classes and not self.persistent:
            return tree
        resolution = _Resolution()
        found = resolution.value(tree)
        if self.classes and not self.persistent and not resolution.networks:
            raise CodeRefused(next(iter(self.classes)))
        if isinstance(found, Tree):
            found.notes = tuple(self._notes(found, resolution))
        return found

    def refuse(self) -> None:
        """Raise CodeRefused if a file that cannot be read names what is not data."""
        if self.classes and not self.persistent:
            raise CodeRefused(next(iter(self.classes))) from None

    def _notes(self, found: Tree, resolution: _Resolution) -> Iterable[str]:
        if self.sources:
            names = sorted(self.sources)
            yield f"source code of {len(names)} class{'es' if len(names) > 1 else ''} ({_some(names)}): never run"
        others = Counter(held.class_name for held in resolution.others if isinstance(held, Persistent))
        if others:
            yield f"objects that are not networks: {_some(sorted(others))}"
        if self.classes:
            yield f"unknown names, kept as inert data: {_some(sorted(self.classes))}"


class _Resolution:
    """Turns what stands for networks into their state dicts, each object once."""

    def __init__(self) -> None:
        self.networks = 0
        self.others: list[Held] = []
        self.entries = 0
        self.known: dict[int, Any] = {}

    def value(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, Held) and not value.is_network and not value.items:
            self.others.append(value)
            return value
        if not isinstance(value, (Held, Mapping)) or depth > 4:
            return value
        if id(value) not in self.known:
            self.known[id(value)] = value  # until it is known: a container may hold itself
            if isinstance(value, Held) and value.is_network:
                self.networks += 1
                self.known[id(value)] = self.state(value)
            else:
                items = value.items if isinstance(value, Held) else value
                assert items is not None
                self.known[id(value)] = Tree({key: self.value(item, depth + 1) for key, item in items.items()})
        return self.known[id(value)]

    def state(self, network: Held) -> NetworkState:
        """Return the tensors of a module and of those in it."""
        state = NetworkState()
        waiting: list[tuple[str, Held, int]] = [("", network, 0)]
        while waiting:
            path, module, depth = waiting.pop()
            transient = module.state.get("_non_persistent_buffers_set")
            left_out = transient if isinstance(transient, (set, frozenset)) else ()
            own, buffers = module.state["_parameters"], module.state.get("_buffers")
            named = [*own.items(), *(buffers.items() if isinstance(buffers, Mapping) else ())]
            weights = [(key, value) for key, value in named if isinstance(key, str) and value is not None]
            state |= {f"{path}{key}": value for key, value in weights if key not in left_out}
            children = module.state["_modules"].items()
            self.entries += 1 + len(named) + len(children)
            if self.entries > MOST_ENTRIES or depth > DEEPEST:
                raise Bomb("its modules repeat each other without end, as in a decompression bomb; do not use it")
            inner = [(key, child) for key, child in children if isinstance(child, Held) and child.is_network]
            # A compiled module names itself in between.
            waiting += [(path if key == "_orig_mod" else f"{path}{key}.", child, depth + 1) for key, child in inner]
        state.class_name = network.class_name if isinstance(network, Persistent) else network.name.rpartition(".")[2]
        state.facts = facts_of(network)
        return state


def facts_of(network: Held) -> dict[str, Any]:
    """Return what a network and those that it wraps were built with: constructor's words, and a wrapper's numbers."""
    facts: dict[str, Any] = {}
    for _ in range(len(INNER)):
        given = network.state.get("_init_kwargs")
        given = given.items if isinstance(given, Held) else given
        own = {key: value for key, value in network.state.items() if str(key)[:1] != "_" and key != "training"}
        words = (given.items() if isinstance(given, Mapping) else (), own.items())
        for key, value in islice(chain(*words), MOST_FACTS):
            simple = _simple(value)
            if simple is not None and isinstance(key, str):
                facts.setdefault(key, simple)
        children = network.state["_modules"]
        wrapped = [children[name] for name in INNER if isinstance(children.get(name), Held)]
        if not wrapped or not wrapped[0].is_network:
            break
        network = wrapped[0]
    return facts


def _simple(value: Any) -> Any:
    """Return a number, flag, word or flat list of them; None for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and len(value) <= 64 and all(isinstance(item, (int, float)) for item in value):
        return list(value)
    return None


def _some(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join(name[:80] for name in names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")
