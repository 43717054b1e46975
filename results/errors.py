"""The one error that people see."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """A fault the user can mend: one line that names the thing, why it failed and what to do next."""


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
