"""The one error that people see, and its kinds."""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable


class BenchError(Exception):
    """A fault the user can fix: one line that names the thing, why it failed and what to do next."""


class BenchWarning(UserWarning):
    """What the user should know and need not fix: one line, shown as `Warning: ...`."""


class DeviceLostError(BenchError):
    """The accelerator failed or went away; everything of this process on it is gone, what is on disk stays."""


class MissingError(BenchError):
    """Files or references that a plan needs and this machine lacks: one line each, between heading and remedy."""

    @property
    def lines(self) -> list[str]:
        """The heading, what is missing, and what gets it."""
        return str(self).split("\n")


class StoreError(BenchError):
    """A fault of the database, its cells or a query."""


class NotFinishedError(StoreError):
    """A cell without a record."""


class DatabaseInUseError(StoreError):
    """Another process holds the database; what was measured lies in the cells' directories."""


class DamagedDatabaseError(StoreError):
    """A file that is not a readable database."""


class ProtocolError(BenchError):
    """A protocol that cannot be used: the line names the file, the key and the reason."""


class DatasetError(BenchError):
    """A data set or file of labels that cannot be read as what it was said to be."""


class ReportError(BenchError):
    """A report that cannot be drawn."""


DEBUG = "BENCH_DEBUG"
"""Environment variable that `--debug` sets, for worker processes too."""


def trace(error: BaseException) -> None:
    """Print the traceback of an error that becomes one line, where `--debug` asked for it."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)


LINE_LENGTH = 300


def one_line(text: str, length: int = LINE_LENGTH) -> str:
    """Return `text` on one line of printable characters, cut after `length`."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= length else f"{line[:length]} ..."


def unknown(kind: str, name: str, known: Iterable[str], otherwise: str = "") -> BenchError:
    """Return the error for an unknown `name`, with the nearest of the `known` names; see `did_you_mean`."""
    return BenchError(f"unknown {kind} '{one_line(name)}': {did_you_mean(name, known, otherwise)}")


def unknown_key(where: str, key: str, known: Iterable[str]) -> str:
    """Return the line for a `key` of the table or file `where` that is not one of the `known` keys."""
    return f"{where}: key '{key}' is not known; {did_you_mean(key, known)}"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the names of `known` nearest to `name` as a question, or else `otherwise`, by default what is known."""
    names = sorted(known)
    near = nearest(name, names)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if otherwise:
        return otherwise
    return f"known: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}" if names else "none are installed"


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of the `known` names that `name` may be a misspelling of, nearest first."""
    return difflib.get_close_matches(name, sorted(known), n=count, cutoff=0.5)
