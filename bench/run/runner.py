"""The run: plan, shards, measurements, store. It can be stopped at any moment and continues where it stopped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from typing import Protocol as Interface

import numpy as np
from filelock import Timeout

from bench.judges.threads import fixed_threads
from bench.references.stored import conditions, prepare_reference
from bench.run.containment import too_long
from bench.run.executors import TIMED_OUT, Executor, InProcess, check_not_starting, open_executor
from bench.run.halves import halves
from bench.run.plan import Cell, Request, make_plan
from bench.run.provenance import run_record
from bench.run.readiness import preflight
from bench.run.reading_ahead import read_ahead
from bench.run.record import Context, cell_record, model_row, ranking_of
from bench.run.shard import SHARD_FACTS, CellFailure, Layout, judged_layout, shard_ranges
from bench.run.timing import time_task
from bench.run.worker import idle_task, load_judges, measure_task, sample_task
from protocols import Protocol
from protocols.labels import plan_labels
from results.cells import CellDirectory, run_lock, sweep_runs
from results.errors import BenchError, BenchWarning, DatabaseInUseError
from results.index import Indexer, index_cells
from results.ranking import rank_all
from results.store import connect, finish_runs, now


class Progress(Interface):
    """Told about every step; the command line draws it."""

    def wait(self, runs: Path) -> None:
        """Another run is at work in the directory; this one begins when that one ends."""

    def plan(self, cells: int, reused: int, samples: int, cost: float) -> None:
        """Tell what is ahead; `cost` is samples x steps."""

    def shard(self, cell: Cell, done: int, total: int, samples: int) -> None:
        """A shard of `samples` samples was finished (`done` of the cell's `total`)."""

    def cell(self, cell: Cell, status: str, reason: str | None) -> None:
        """A cell was finished."""

    def timing(self, done: int, total: int) -> None:
        """Of `total` cells that are timed after all sampling, `done` were."""


@dataclass
class Summary:
    """What a run did."""

    database: Path
    indexer: Indexer
    measured: list[Cell] = field(default_factory=list)
    reused: list[Cell] = field(default_factory=list)
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    unsupported: list[tuple[Cell, str]] = field(default_factory=list)
    behind: DatabaseInUseError | None = None
    """Why the database lacks what was measured."""


@dataclass(eq=False)
class _Work:
    """A cell in progress."""

    cell: Cell
    labels: np.ndarray
    ranges: list[tuple[int, int]]
    missing: list[tuple[int, int]]
    row: dict[str, Any]

    @property
    def total(self) -> int:
        return len(self.ranges)


class _Task(NamedTuple):
    """A shard to sample, or (no span) a cell to measure."""

    item: _Work
    span: tuple[int, int] | None
    alone: bool = False
    """A worker died while this and others ran, so that it runs by itself now."""


def run(
    request: Request,
    runs: Path,
    *,
    progress: Progress,
    executor: str = "local",
    workers: int = 0,
    fresh: bool = False,
    arguments: Sequence[str] = (),
    timeout: float | None = None,
) -> Summary:
    """Measure every cell of a request that is not measured yet.

    Raises BenchError before the first sample for what can be met before: unknown names, missing weights, an unusable
    database or directory. A cell whose adapter breaks, or whose worker dies twice, is recorded as failed and the others
    go on. `timeout` limits each batch, in seconds, and needs a worker process that can be ended.
    """
    check_not_starting()
    database = runs / "bench.duckdb"
    preflight(request, runs, database)
    with (
        _alone(runs, progress),
        fixed_threads(request.device),
        open_executor(executor, workers, request.device, apart=timeout is not None) as opened,
    ):
        pool = opened.executor
        if not isinstance(pool, InProcess):
            for _ in range(pool.workers):
                _submit(pool, idle_task)
        judges = load_judges(request.protocol, request.device)
        reference = prepare_reference(request.protocol, judges, runs)
        threads = pool.workers if request.device == "cpu" else os.cpu_count() or 1
        context = Context(
            protocol=request.protocol,
            reference=reference,
            judge_digests={name: judge.digest for name, judge in judges.items()},
            run=run_record(arguments, request.device, threads),
            device=request.device,
            timeout=timeout,
            halves=bool(halves(judges)),
        )
        cells = make_plan(request, conditions(judges, reference))
        summary = Summary(database, Indexer(database))
        work = _sort(cells, context, runs, fresh, summary, partial(judged_layout, judges, request.protocol))
        ahead = [(item.cell.steps, stop - start) for item in work for start, stop in item.missing]
        samples = sum(count for _, count in ahead)
        cost = float(sum(steps * count for steps, count in ahead))
        progress.plan(len(cells), len(summary.reused), samples, cost)
        for cell, reason in summary.unsupported:
            progress.cell(cell, "unsupported", reason)
        _execute(pool, work, context, runs, progress, summary)
        _time(pool, context, runs, progress, summary)
        try:
            _finish(summary, context.run["run_id"], runs)
        except DatabaseInUseError as error:  # the measured cells are safe, and the next run adds them
            summary.behind = error
    return summary


def _time(pool: Executor, context: Context, runs: Path, progress: Progress, summary: Summary) -> None:
    """Time the cells that are measured but not timed, one at a time: an interrupted run's among them."""
    untimed = [
        cell for cell in [*summary.measured, *summary.reused] if not _is_timed(CellDirectory(runs, cell.cell_id))
    ]
    for done, cell in enumerate(untimed):
        progress.timing(done, len(untimed))
        labels = _labels(cell, context)
        try:
            reason = _submit(pool, time_task, context, cell, labels, runs).result()
        except pool.deaths:
            reason = f"its worker process died: {_reopen(pool)}"
        if reason is None:
            summary.indexer.add(CellDirectory(runs, cell.cell_id))
        else:
            warnings.warn(f"{cell.label} could not be timed: {reason}", BenchWarning, stacklevel=2)
    if untimed:
        progress.timing(len(untimed), len(untimed))


def _is_timed(directory: CellDirectory) -> bool:
    record = directory.read_result()
    return record is not None and record["cell"].get("latency_seconds") is not None


def _labels(cell: Cell, context: Context) -> np.ndarray:
    return plan_labels(
        context.protocol.label_plan,
        cell.num_samples,
        len(context.protocol.class_names),
        seed=cell.seed,
        reference=context.reference.labels,
    )


def _finish(summary: Summary, run_id: str, runs: Path) -> None:
    """Bring the database up to the cells' directories, and rank."""
    summary.indexer.catch_up()
    index_cells(summary.database, [CellDirectory(runs, cell.cell_id) for cell in summary.reused], only_new=True)
    rank_all(summary.database)
    with connect(summary.database, write=True, retry=True) as connection:
        finish_runs(connection, now().isoformat(), run_id)


@contextmanager
def _alone(runs: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other run is at work in the directory: two at once would take the shards from each other."""
    lock = run_lock(runs)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.wait(runs)
        lock.acquire()
    try:
        sweep_runs(runs)
        yield
    finally:
        lock.release()


def _sort(
    cells: list[Cell],
    context: Context,
    runs: Path,
    fresh: bool,
    summary: Summary,
    judged: Callable[[], Layout],
) -> list[_Work]:
    """Split the plan into finished cells, unsupported ones and work, and clear what cannot be continued.

    `judged` tells what the judges say of one image; it is asked once, where there are shards of an earlier run.
    """
    work = []
    layout: Layout | None = None
    for cell in cells:
        directory = CellDirectory(runs, cell.cell_id)
        if fresh:
            directory.clear()
        record = directory.read_result()
        if record is not None and record["cell"]["status"] == "done" and _has_metrics(record, context.protocol):
            summary.reused.append(cell)
            continue
        if cell.unsupported is not None:
            row = _row(cell, context) | {
                "status": "unsupported",
                "reason": cell.unsupported,
                "finished": now().isoformat(),
            }
            directory.write_result(cell_record(context, row, {}) | {"model": model_row(cell.card)})
            summary.indexer.add(directory)
            summary.unsupported.append((cell, cell.unsupported))
            continue
        ranges = shard_ranges(cell.num_samples, cell.batch_size)
        if layout is None and next(directory.path.glob("shard-*"), None) is not None:
            layout = judged()
        missing = [span for span in ranges if not _continues(directory, span, cell.batch_size, layout or {})]
        work.append(_Work(cell, _labels(cell, context), ranges, missing, _row(cell, context)))
    return work


def _has_metrics(record: Mapping[str, Any], protocol: Protocol) -> bool:
    """Tell whether a finished cell has all that the protocol asks for by now, or the reason why it has not."""
    found = {row["metric"] for table in ("metrics", "skipped_metrics") for row in record.get(table, [])}
    return found >= set(protocol.metrics)


def _continues(directory: CellDirectory, span: tuple[int, int], batch_size: int, judged: Layout) -> bool:
    """Tell whether a shard from an earlier run can stay: whole, of the same batch size, with all that judges say."""
    facts = directory.shard_facts(*span)
    if facts is None or facts.get("batch_size") != batch_size:
        return False
    numbers = [facts.get(name) for name in SHARD_FACTS]
    if not all(isinstance(number, (int, float)) and number >= 0 for number in numbers):
        return False
    found = directory.shard_layout(*span) or {}
    pictures, _ = found.pop("thumbnails", ("U8", ()))
    expected = {name: (dtype, (span[1] - span[0], *rest)) for name, (dtype, (_, *rest)) in judged.items()}
    return pictures == "U8" and found == expected


def _execute(
    pool: Executor, work: list[_Work], context: Context, runs: Path, progress: Progress, summary: Summary
) -> None:
    """Keep the workers busy: shards in order, and each cell's measurement as soon as its shards are there.

    Where a worker dies, what ran goes again in fresh ones, one task at a time: the one that dies again is the culprit.
    """
    remaining = {item.cell.cell_id: len(item.missing) for item in work}
    failed: set[str] = set()
    # Half-precision judges prove themselves on the first shard, and the others are judged as it says.
    waiting = {item.cell.cell_id for item in work if context.halves and item.ranges[0] in item.missing}
    running: dict[Future[Any], _Task] = {}
    ready = [item for item in work if not item.missing]
    queue = [(item, span) for item in work for span in item.missing]
    window = 2 * pool.workers if pool.workers > 1 else 1
    died: list[_Task] = []
    suspects: list[_Task] = []

    def start(task: _Task) -> None:
        item, span = task.item, task.span
        if span is not None and span == item.missing[-1]:
            following = next((entry for entry, _ in queue if entry.cell.card.name != item.cell.card.name), None)
            if following is not None:
                read_ahead(following.cell)
        if span is None:
            future = _submit(pool, measure_task, context, item.cell, item.labels, item.ranges, runs, item.row)
        else:
            future = _submit(pool, sample_task, context, item.cell, item.labels, *span, runs)
        running[future] = task

    def fail(item: _Work, failure: CellFailure) -> None:
        if item.cell.cell_id not in failed:
            failed.add(item.cell.cell_id)
            _record_failure(item, context, runs, failure, summary, progress)

    while True:
        if died and not running:
            cause = _reopen(pool)
            overdue = cause == TIMED_OUT and len(died) == 1
            for task in died:
                if task.alone or overdue:
                    fail(task.item, _death(task, cause, context.timeout))
                else:
                    suspects.append(task._replace(alone=True))
            died.clear()
        suspects = [task for task in suspects if task.item.cell.cell_id not in failed]
        if suspects and not running:
            start(suspects.pop(0))
        elif not suspects and not died and not any(task.alone for task in running.values()):
            while ready and len(running) < window + 2:
                start(_Task(ready.pop(), None))
            while len(running) < window and (entry := _next(queue, failed, waiting)) is not None:
                start(_Task(*entry))
        if not running:
            break
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            task = running.pop(future)
            item, cell_id = task.item, task.item.cell.cell_id
            try:
                failure = future.result()
            except pool.deaths:
                died.append(task)
                continue
            if failure is not None:
                fail(item, failure)
                continue
            if task.span is None:
                summary.indexer.add(CellDirectory(runs, cell_id))
                summary.measured.append(item.cell)
                progress.cell(item.cell, "done", None)
                continue
            remaining[cell_id] -= 1
            if task.span[0] == 0:
                waiting.discard(cell_id)
            samples = task.span[1] - task.span[0]
            progress.shard(item.cell, item.total - remaining[cell_id], item.total, samples)
            if remaining[cell_id] == 0 and cell_id not in failed:
                ready.append(item)


def _submit(pool: Executor, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    try:
        return pool.submit(function, *arguments)
    except pool.deaths as error:  # a worker died before this task came to it
        future: Future[Any] = Future()
        future.set_exception(error)
        return future


def _reopen(pool: Executor) -> str:
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


def _next(
    queue: list[tuple[_Work, tuple[int, int]]], failed: set[str], waiting: set[str]
) -> tuple[_Work, tuple[int, int]] | None:
    """Take the next shard that can be sampled: those of a cell in `waiting` need what its first one shows."""
    queue[:] = [entry for entry in queue if entry[0].cell.cell_id not in failed]
    for index, (item, span) in enumerate(queue):
        if span[0] == 0 or item.cell.cell_id not in waiting:
            return queue.pop(index)
    return None


def _record_failure(
    item: _Work, context: Context, runs: Path, failure: CellFailure, summary: Summary, progress: Progress
) -> None:
    reason = failure.reason
    row = item.row | {
        "status": "failed",
        "reason": reason,
        "failures": failure.failures,
        "finished": now().isoformat(),
    }
    directory = CellDirectory(runs, item.cell.cell_id)
    directory.write_result(cell_record(context, row, {}) | {"model": model_row(item.cell.card)})
    summary.indexer.add(directory)
    summary.failed.append((item.cell, reason))
    progress.cell(item.cell, "failed", reason)


def _row(cell: Cell, context: Context) -> dict[str, Any]:
    """Return the row of table `cells` as far as it is known before sampling."""
    protocol = context.protocol
    return {
        "cell_id": cell.cell_id,
        "run_id": context.run["run_id"],
        "model": cell.model,
        "checkpoint": cell.card.name,
        "family": cell.card.family,
        "protocol": protocol.name,
        "protocol_digest": protocol.digest,
        "ranking": ranking_of(context, cell.judged_under, cell.num_samples, cell.seed),
        "measurement": protocol.measurement_digest,
        "status": "running",
        "reason": None,
        "steps": cell.steps,
        "cfg": cell.cfg,
        "sampler": cell.sampler,
        "settings": dict(cell.settings),
        "options": {**cell.options, **({"compile": True} if cell.compile else {})},
        "dtype": cell.dtype,
        "seed": cell.seed,
        "num_samples": cell.num_samples,
        "batch_size": cell.batch_size,
        "off_regime": cell.card.off_regime(cell.steps),
        "random_weights": cell.random_weights,
        "weights_sha256": cell.weights_sha256,
        "failures": 0,
        "device": context.run["device"],
        "latent_shape": "x".join(map(str, cell.card.latent_shape)),
        "command": cell.command(protocol.argument),
        "started": now().isoformat(),
        "finished": now().isoformat(),
    }
