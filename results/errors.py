"""The one error that people see, and its kinds."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """A fault the user can fix: one line that names the thing, why it failed and what to do next."""


class StoreError(BenchError):
    """A fault of the database, its cells or a query."""


class ProtocolError(BenchError):
    """A protocol that cannot be used: the line names the file, the key and the reason."""


class DatasetError(BenchError):
    """A data set or file of labels that cannot be read as what it was said to be."""


class ReportError(BenchError):
    """A report that cannot be drawn."""


def unknown(kind: str, name: str, known: Iterable[str]) -> BenchError:
    """Return the error for an unknown `name`, with the nearest of the `known` names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif names:
        hint = f"known: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}"
    else:
        hint = "none are installed"
    return BenchError(f"unknown {kind} '{name}': {hint}")
