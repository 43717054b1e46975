"""Plug-ins: adapters, cards, judges, metrics, data sets and executors are found by entry point, the built-in ones too.

What is data (a protocol, a card, a recording) gives a name; which code the name stands for was decided when a
distribution was installed. Nothing is imported before the name is found among the installed ones.

Two distributions that give one name: fewstep-bench's own wins, then the first by distribution name; the other is a
fault. A distribution with a fault is named in one warning, `bench doctor` lists every fault, and nothing else stops.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions, version
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from results.errors import BenchError, BenchWarning, one_line, unknown

BUILT_IN = "fewstep-bench"
T = TypeVar("T")


class Plugin(NamedTuple):
    """One entry point of a distribution in one of the groups `bench.*`."""

    distribution: str
    group: str
    name: str
    value: str


class Fault(NamedTuple):
    """What is wrong with one entry point (or with the whole distribution, where `name` is empty)."""

    distribution: str
    group: str
    name: str
    reason: str

    def __str__(self) -> str:
        return one_line(f"plug-in '{self.distribution}' ({self.group}{self.name and f': {self.name}'}): {self.reason}")


class _Scan(NamedTuple):
    plugins: tuple[Plugin, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Group(Generic[T]):
    """One kind of plug-in.

    Attributes:
        group: its entry point group.
        noun: what messages call it, as in "unknown NOUN 'x'".
        wanted: what an entry point must stand for, in words.
        accepts: whether an object is that.
        unique: whether a name stands for one thing (names of card packages mean nothing).
    """

    group: str
    noun: str
    wanted: str
    accepts: Callable[[Any], bool]
    unique: bool = True

    def plugins(self) -> list[Plugin]:
        """Return the installed plug-ins in the order in which they take names; nothing is imported."""
        found: list[Plugin] = []
        taken: dict[str, Plugin] = {}
        for plugin in (plugin for plugin in _scan().plugins if plugin.group == self.group):
            first = taken.setdefault(plugin.name, plugin)
            if first is plugin or not self.unique:
                found.append(plugin)
            else:
                report(
                    plugin, f"the {self.noun} '{plugin.name}' is already provided by '{first.distribution}'; rename it"
                )
        return found

    def names(self) -> list[str]:
        """Return the installed names; nothing is imported."""
        return [plugin.name for plugin in self.plugins()]

    def check(self, name: str, of: str = "") -> None:
        """Raise BenchError, before any import, for a name that is not installed; `of` says what asks for it."""
        names = self.names()
        if name not in names:
            if not any(plugin.distribution == BUILT_IN for plugin in self.plugins()):
                raise BenchError(
                    f"{BUILT_IN}'s own entry points '{self.group}' are not installed; run pip install -e . again"
                )
            raise unknown(f"{self.noun}{of}", name, names)

    def load(self, name: str, of: str = "") -> T:
        """Return what `name` stands for. Raises BenchError, one line, when it is unknown or broken."""
        self.check(name, of)
        plugin = next(plugin for plugin in self.plugins() if plugin.name == name)
        found = self._open(plugin)
        if isinstance(found, Fault):
            raise BenchError(f"{self.noun} '{name}'{of}: {found}; fix or uninstall '{plugin.distribution}'")
        return found

    def load_all(self) -> list[tuple[Plugin, T]]:
        """Return every plug-in of the group that loads; the others are reported."""
        found = []
        for plugin in self.plugins():
            loaded = self._open(plugin)
            if isinstance(loaded, Fault):
                report(plugin, loaded.reason)
            else:
                found.append((plugin, loaded))
        return found

    def _open(self, plugin: Plugin) -> T | Fault:
        loaded, reason = _load(plugin)
        if not reason and not self.accepts(loaded):
            reason = f"{plugin.value} is not {self.wanted}"
        return Fault(*plugin[:3], reason) if reason else loaded


_faults: list[Fault] = []


def report(plugin: Plugin, reason: str) -> None:
    """Note a fault of `plugin`; the first one of a distribution is told in one line on stderr."""
    _report(Fault(*plugin[:3], one_line(reason)))


def faults() -> list[Fault]:
    """Return every fault met so far."""
    _scan()
    return list(_faults)


def distributions_with_plugins() -> dict[str, str]:
    """Return the version of every distribution of others that adds plug-ins, by name."""
    names = {plugin.distribution for plugin in _scan().plugins} - {BUILT_IN}
    return {name: version(name) for name in sorted(names)}


def _report(fault: Fault) -> None:
    if fault in _faults:
        return
    told = any(fault.distribution == other.distribution for other in _faults)
    _faults.append(fault)
    if not told and multiprocessing.parent_process() is None:  # workers would say it again
        warnings.warn(f"{fault}; left out ('bench doctor' lists all)", BenchWarning, stacklevel=2)


@cache
def _scan() -> _Scan:
    """Return the entry points `bench.*` of every distribution, in the order in which they take names."""
    found: list[Plugin] = []
    broken: list[Fault] = []
    seen: set[str] = set()
    for distribution in distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
            if not re.search(r"^\s*\[\s*bench\.", text, re.MULTILINE):
                continue
            name = _name(distribution)
            if _normalised(name) in seen:  # the first on the path is the one that is imported
                continue
            seen.add(_normalised(name))
            points = [point for point in distribution.entry_points if point.group.startswith("bench.")]
            found += [Plugin(name, point.group, point.name, point.value) for point in points]
        except Exception as error:
            broken.append(Fault(_name(distribution), "entry_points.txt", "", f"cannot be read ({_reason(error)})"))
    for fault in broken:
        _report(fault)
    order = sorted(
        found, key=lambda plugin: (plugin.distribution != BUILT_IN, _normalised(plugin.distribution), plugin)
    )
    return _Scan(tuple(order), tuple(broken))


def _name(distribution: Distribution) -> str:
    try:
        name = distribution.metadata["Name"]
    except Exception:
        name = None
    path = Path(str(getattr(distribution, "_path", "?")))
    return one_line(str(name or path.stem))


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def _load(plugin: Plugin) -> tuple[Any, str]:
    """Import what `plugin` names; return it, or the reason why that failed. Whatever it prints goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return EntryPoint(plugin.name, plugin.value, plugin.group).load(), ""
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plug-in may raise anything, SystemExit included
        return None, _reason(error)


def _reason(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
