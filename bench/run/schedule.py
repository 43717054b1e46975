"""In what order the tasks of a run are started: one rule, which the run follows and `bench plan` simulates."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

Span = tuple[int, int]
"""Samples [start, stop) of a cell: what one shard holds."""


class Pending(Protocol):
    """A cell with shards to sample."""

    @property
    def missing(self) -> Sequence[Span]:
        """The shards that are not there yet, in order."""

    @property
    def ranges(self) -> Sequence[Span]:
        """All shards of the cell, in order."""


Item = TypeVar("Item", bound=Pending)


class Start(NamedTuple, Generic[Item]):
    """A shard to sample, or (no span) a cell to measure."""

    item: Item
    span: Span | None


class Schedule(Generic[Item]):
    """What is started next, given how many tasks are in the executor's hands.

    Shards go in the order of the plan, which names a checkpoint's settings one after the other, and each is small (see
    `bench.run.shard.SHARD_SAMPLES`): a long setting is spread over all workers. A setting whose shards are all there is
    measured before any further shard is sampled. Twice as many shards as workers are handed over, so that no worker
    waits for this process.
    """

    def __init__(self, items: Iterable[Item], workers: int, *, proving: bool = False, measures: bool = True) -> None:
        """Take the cells in the order of the plan.

        Args:
            items: cells with what they lack; one that lacks nothing is ready to be measured.
            workers: of the executor.
            proving: the first shard of a cell has to be there before its others are sampled, because it decides in
                which precision they are judged.
            measures: whether cells are measured too.
        """
        self.measures = measures
        self.window = 2 * workers if workers > 1 else 1
        self._left: dict[int, deque[Span]] = {}
        self._open: dict[int, int] = {}
        self._waiting: set[int] = set()
        self._order: list[Item] = []
        self._ready: list[Item] = []
        for item in items:
            if not item.missing:
                if measures:
                    self._ready.append(item)
                continue
            self._order.append(item)
            self._left[id(item)] = deque(item.missing)
            self._open[id(item)] = len(item.missing)
            if proving and item.ranges[0] in item.missing:
                self._waiting.add(id(item))

    def next(self, running: int) -> Start[Item] | None:
        """Take what is started next while `running` tasks are under way; None for nothing now."""
        if self._ready and running < self.window + 2:
            return Start(self._ready.pop(), None)
        if running >= self.window:
            return None
        while self._order and not self._left.get(id(self._order[0])):
            self._order.pop(0)
        for item in self._order:
            spans = self._left.get(id(item))
            if spans and (spans[0][0] == 0 or id(item) not in self._waiting):
                return Start(item, spans.popleft())
        return None

    def sampled(self, item: Item, span: Span) -> int:
        """Take note that a shard is there, and return how many of the cell's are not."""
        self._open[id(item)] -= 1
        if span[0] == 0:
            self._waiting.discard(id(item))
        left = self._open[id(item)]
        if left == 0 and self.measures and id(item) in self._left:
            self._ready.append(item)
        return left

    def drop(self, item: Item) -> None:
        """Start nothing more of a cell."""
        self._left.pop(id(item), None)
        self._ready = [entry for entry in self._ready if entry is not item]

    def left(self) -> Iterator[Item]:
        """Return the cells that have shards to start, in order."""
        return (item for item in self._order if self._left.get(id(item)))
