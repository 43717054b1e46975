"""Keeps the workers of an executor busy with shards and measurements, and finds who is to blame where one dies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from typing import Protocol as Interface

from bench.run.containment import too_long
from bench.run.executors import TIMED_OUT, Executor, InProcess
from bench.run.reading_ahead import read_ahead
from bench.run.record import Context
from bench.run.shard import CellFailure
from bench.run.work import Span, Work
from bench.run.worker import Sampled, draw_task, idle_task, keep_shard, measure_task, proof_of, sample_task
from results.errors import BenchError


class Outcomes(Interface):
    """Told what became of each shard and cell."""

    measures: bool
    """Whether cells whose shards are all there are measured too."""

    def sampled(self, item: Work, done: int, span: Span) -> None:
        """A shard is there, `done` of the cell's."""

    def measured(self, item: Work) -> None:
        """A cell has its record."""

    def failed(self, item: Work, failure: CellFailure) -> None:
        """A cell's adapter broke, or its worker died twice."""


class _Task(NamedTuple):
    """A shard to sample, or (no span) a cell to measure."""

    item: Work
    span: Span | None
    alone: bool = False
    """A worker died while this and others ran, so that it runs by itself now."""


@dataclass
class Dispatch:
    """The workers' work: shards in order, and each cell's measurement as soon as its shards are there.

    Where a worker dies, what ran goes again in fresh ones, one task at a time: the one that dies again is the culprit.
    Shards go in the order of the plan, which names a checkpoint's cells one after the other: a worker loads each
    checkpoint's weights once.
    """

    pool: Executor
    context: Context
    runs: Path
    outcomes: Outcomes
    failed: set[str] = field(default_factory=set)
    running: dict[Future[Any], _Task] = field(default_factory=dict)

    def run(self, work: Sequence[Work]) -> None:
        """Sample what is missing of `work` and measure what is whole, until nothing is left that can be done."""
        remaining = {item.cell.cell_id: len(item.missing) for item in work}
        # Half-precision judges prove themselves on the first shard, and the others are judged as it says.
        waiting = {item.cell.cell_id for item in work if self.context.halves and item.ranges[0] in item.missing}
        ready = [item for item in work if not item.missing] if self.outcomes.measures else []
        queue = [(item, span) for item in work for span in item.missing]
        window = 2 * self.pool.workers if self.pool.workers > 1 else 1
        died: list[_Task] = []
        suspects: list[_Task] = []
        while True:
            if died and not self.running:
                cause = reopen(self.pool)
                overdue = cause == TIMED_OUT and len(died) == 1
                for task in died:
                    if task.alone or overdue:
                        self._fail(task.item, _death(task, cause, self.context.timeout))
                    else:
                        suspects.append(task._replace(alone=True))
                died.clear()
            suspects = [task for task in suspects if task.item.cell.cell_id not in self.failed]
            if suspects and not self.running:
                self._start(suspects.pop(0), queue)
            elif not suspects and not died and not any(task.alone for task in self.running.values()):
                while ready and len(self.running) < window + 2:
                    self._start(_Task(ready.pop(), None), queue)
                while len(self.running) < window and (entry := _next(queue, self.failed, waiting)) is not None:
                    self._start(_Task(*entry), queue)
            if not self.running:
                break
            done, _ = wait(self.running, return_when=FIRST_COMPLETED)
            for future in done:
                task = self.running.pop(future)
                item, cell_id = task.item, task.item.cell.cell_id
                try:
                    found = future.result()
                except self.pool.deaths:
                    died.append(task)
                    continue
                if isinstance(found, CellFailure):
                    self._fail(item, found)
                    continue
                if task.span is None:
                    self.outcomes.measured(item)
                    continue
                if isinstance(found, Sampled):
                    keep_shard(self.context, item.cell, item.labels, *task.span, self.runs, found)
                remaining[cell_id] -= 1
                if task.span[0] == 0:
                    waiting.discard(cell_id)
                self.outcomes.sampled(item, item.total - remaining[cell_id], task.span)
                if remaining[cell_id] == 0 and cell_id not in self.failed and self.outcomes.measures:
                    ready.append(item)

    def _start(self, task: _Task, queue: Sequence[tuple[Work, Span]]) -> None:
        item, span = task.item, task.span
        if span is not None and span == item.missing[-1]:
            following = next((entry for entry, _ in queue if entry.cell.card.name != item.cell.card.name), None)
            if following is not None:
                read_ahead(following.cell)
        about = (self.context, item.cell, item.labels)
        if span is None:
            future = submit(self.pool.near, measure_task, *about, item.ranges, self.runs, item.row)
        elif self.pool.near is self.pool:
            future = submit(self.pool, sample_task, *about, *span, self.runs)
        else:
            proof = proof_of(self.context, item.cell, self.runs) if span[0] > 0 else {}
            future = submit(self.pool, draw_task, *about, *span, proof)
        self.running[future] = task

    def _fail(self, item: Work, failure: CellFailure) -> None:
        if item.cell.cell_id not in self.failed:
            self.failed.add(item.cell.cell_id)
            self.outcomes.failed(item, failure)


def warm_up(pool: Executor) -> None:
    """Have every worker import what the work needs while this process prepares."""
    if not isinstance(pool, InProcess):
        for _ in range(pool.workers):
            submit(pool, idle_task)


def submit(pool: Executor, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Start a task; where a worker died before it came to it, the future says so."""
    try:
        return pool.submit(function, *arguments)
    except pool.deaths as error:
        future: Future[Any] = Future()
        future.set_exception(error)
        return future


def reopen(pool: Executor) -> str:
    """Return why a worker died, once fresh ones are there. Raises BenchError where none can be started."""
    cause = pool.reopen()
    try:
        pool.submit(idle_task).result()
    except pool.deaths as error:
        raise BenchError(f"no worker process can be started ({pool.reopen()}); try --workers 1") from error
    return cause


def _death(task: _Task, cause: str, timeout: float | None) -> CellFailure:
    during = "its metrics were computed" if task.span is None else f"it sampled {task.span[0]}..{task.span[1] - 1}"
    if cause == TIMED_OUT and timeout:
        return CellFailure(f"the worker process was ended while {during}: {too_long(timeout)}")
    return CellFailure(f"the worker process died while {during}, and again in a new one: {cause}")


def _next(queue: list[tuple[Work, Span]], failed: set[str], waiting: set[str]) -> tuple[Work, Span] | None:
    """Take the next shard that can be sampled: those of a cell in `waiting` need what its first one shows."""
    queue[:] = [entry for entry in queue if entry[0].cell.cell_id not in failed]
    for index, (item, span) in enumerate(queue):
        if span[0] == 0 or item.cell.cell_id not in waiting:
            return queue.pop(index)
    return None
