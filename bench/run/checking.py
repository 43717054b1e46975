"""The adapter contract, checked where an adapter can neither end the process nor hold it for ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bench.contracts.card import ModelCard
from bench.models.conformance import Finding, check_adapter
from bench.run.containment import no_exit, time_limit, too_long
from bench.run.executors import TIMED_OUT, Opened, Processes


def check_contained(card: ModelCard, *, timeout: float | None = None, **options: Any) -> list[Finding]:
    """Return what `check_adapter` finds with `options`; each clause has `timeout` seconds, in a process of its own.

    Without a timeout the check runs in this process, which compiled code can then hold or end.
    """
    if timeout is None:
        return _check(card, None, options)
    with Opened(Processes(1)) as opened:
        try:
            found: list[Finding] = opened.executor.submit(_check, card, timeout, options).result()
        except opened.executor.deaths:
            cause = opened.executor.reopen()
            reason = too_long(timeout, "a clause") if cause == TIMED_OUT else f"the process died: {cause}"
            return [Finding("can be checked", False, reason)]
        return found


def _check(card: ModelCard, timeout: float | None, options: Mapping[str, Any]) -> list[Finding]:
    @contextmanager
    def guard() -> Iterator[None]:
        with no_exit(), time_limit(timeout, "a clause"):
            yield

    return check_adapter(card, guard=guard, **options)
