"""What several metrics read and one of them computes, whichever thread comes first."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any


class Once:
    """Values by key, each computed once: a thread that asks for what another one is computing waits for it.

    A computation may ask another `Once`, or this one for another key, but none that waits for its own.
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}
        self._locks: dict[Hashable, Lock] = {}

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Return the value of `key`, by `compute()` if it is not known; what that raises is raised to each who asks."""
        if key not in self._values:
            with self._locks.setdefault(key, Lock()):
                if key not in self._values:
                    self._values[key] = compute()
        return self._values[key]
