"""Keeps the workers of an executor busy with shards and measurements, and finds who is to blame where one dies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from typing import Protocol as Interface

from bench.run.containment import too_long
from bench.run.executors import TIMED_OUT, Executor, InProcess
from bench.run.reading_ahead import read_ahead
from bench.run.record import Context, reduce_reference
from bench.run.schedule import Schedule, Span
from bench.run.shard import CellFailure
from bench.run.work import Work
from bench.run.worker import (
    Sampled,
    beside,
    draw_task,
    idle_task,
    keep_shard,
    measure_task,
    proof_of,
    sample_task,
)
from results.errors import BenchError

MEASURED_BESIDE = 2
"""Finished cells that may wait for their metrics while the next ones are sampled."""


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
    checkpoint's weights once. Beside an accelerator a cell is measured in a thread, while the next model's weights are
    loaded and its samples drawn.
    """

    pool: Executor
    context: Context
    runs: Path
    outcomes: Outcomes
    failed: set[str] = field(default_factory=set)
    running: dict[Future[Any], _Task] = field(default_factory=dict)
    thread: ThreadPoolExecutor | None = None

    def run(self, work: Sequence[Work]) -> None:
        """Sample what is missing of `work` and measure what is whole, until nothing is left that can be done."""
        if self.pool.beside and work and self.outcomes.measures:
            self.thread = ThreadPoolExecutor(1, thread_name_prefix="measuring")
            self._beside(reduce_reference)  # what fails here fails, and is said, later
        try:
            self._run(work)
        finally:
            if self.thread is not None:
                self.thread.shutdown(cancel_futures=True)

    def _run(self, work: Sequence[Work]) -> None:
        schedule = Schedule(work, self.pool.workers, proving=self.context.halves, measures=self.outcomes.measures)
        died: list[_Task] = []
        suspects: list[_Task] = []
        while True:
            if died and not self.running:
                cause = reopen(self.pool)
                overdue = cause == TIMED_OUT and len(died) == 1
                for task in died:
                    if task.alone or overdue:
                        self._fail(task.item, _death(task, cause, self.context.timeout), schedule)
                    else:
                        suspects.append(task._replace(alone=True))
                died.clear()
            suspects = [task for task in suspects if task.item.cell.cell_id not in self.failed]
            if suspects and not self.running:
                self._start(suspects.pop(0), schedule)
            elif not suspects and not died and not any(task.alone for task in self.running.values()):
                while (begun := schedule.next(self._busy())) is not None:
                    self._start(_Task(*begun), schedule)
            if not self.running:
                break
            done, _ = wait(self.running, return_when=FIRST_COMPLETED)
            for future in done:
                task = self.running.pop(future)
                item = task.item
                try:
                    found = future.result()
                except self.pool.deaths:
                    died.append(task)
                    continue
                if isinstance(found, CellFailure):
                    self._fail(item, found, schedule)
                    continue
                if task.span is None:
                    self.outcomes.measured(item)
                    continue
                if isinstance(found, Sampled):
                    about = (self.context, item.cell, item.labels, *task.span)
                    proof = keep_shard(*about, self.runs, found)
                    if proof:
                        self.running[submit(self.pool, draw_task, *about, proof)] = task
                        continue
                left = schedule.sampled(item, task.span)
                self.outcomes.sampled(item, item.total - left, task.span)

    def _busy(self) -> int:
        """Return how many tasks keep the workers: none of those in the thread, as long as they are few."""
        measuring = sum(task.span is None for task in self.running.values())
        few = self.thread is not None and measuring < MEASURED_BESIDE
        return len(self.running) - (measuring if few else 0)

    def _beside(self, task: Callable[..., Any], *about: Any) -> Future[Any]:
        """Have the measuring thread do a task of the run."""
        assert self.thread is not None
        return self.thread.submit(lambda: beside(self.context.device, task, self.context, *about))

    def _start(self, task: _Task, schedule: Schedule[Work]) -> None:
        item, span = task.item, task.span
        if span is not None and span == item.missing[-1]:
            left = (entry for entry in schedule.left() if entry.cell.card.name != item.cell.card.name)
            following = next(left, None)
            if following is not None:
                read_ahead(following.cell)
        about = (self.context, item.cell, item.labels)
        if span is None and self.thread is not None:
            future = self._beside(measure_task, item.cell, item.labels, item.ranges, self.runs, item.row)
        elif span is None:
            future = submit(self.pool.near, measure_task, *about, item.ranges, self.runs, item.row)
        elif self.pool.near is self.pool:
            future = submit(self.pool, sample_task, *about, *span, self.runs)
        else:
            proof = proof_of(self.context, item.cell, self.runs) if span[0] > 0 else {}
            future = submit(self.pool, draw_task, *about, *span, proof)
        self.running[future] = task

    def _fail(self, item: Work, failure: CellFailure, schedule: Schedule[Work]) -> None:
        schedule.drop(item)
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
