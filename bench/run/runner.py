"""The run: plan, shards, measurements, store. It can be stopped at any moment and continues where it stopped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from typing import Protocol as Interface

from filelock import Timeout

from bench.judges.threads import fixed_threads
from bench.references.stored import conditions, prepare_reference
from bench.run.dispatch import Dispatch, reopen, submit, warm_up
from bench.run.executors import Executor, check_not_starting, open_executor
from bench.run.halves import halves
from bench.run.interface import How, Progress, Summary
from bench.run.plan import Cell, Request, make_plan
from bench.run.provenance import made_by, run_record
from bench.run.readiness import preflight
from bench.run.record import Context, cell_record, model_row
from bench.run.schedule import Span
from bench.run.shard import CellFailure, Layout, judged_layout
from bench.run.timing import time_task
from bench.run.work import Ahead, Earlier, Work, cell_labels, has_metrics
from bench.run.worker import load_judges
from results.cells import CellDirectory, run_lock, sweep_runs
from results.database import now
from results.errors import BenchWarning, DatabaseInUseError
from results.index import Indexer, index_cells, rank_all
from results.store import connect, finish_runs


class Prepared(NamedTuple):
    """A run whose first sample can be drawn."""

    pool: Executor
    context: Context
    cells: list[Cell]
    """The plan."""
    judged: Callable[[], Layout]
    """Tells what the judges say of one image."""


class Gather(Interface):
    """Brings shards that were sampled elsewhere."""

    def into(self, runs: Path, ready: Prepared) -> Mapping[str, CellFailure]:
        """Put them beside the cells of `runs`, all or none; return why cells failed there, by cell."""


@contextmanager
def prepared(request: Request, runs: Path, how: How) -> Iterator[Prepared]:
    """Open the workers, load the judges and the reference, and make the plan."""
    workers = (how.executor, how.workers, request.device)
    with (
        fixed_threads(request.device),
        open_executor(*workers, apart=how.timeout is not None, options=how.options) as opened,
    ):
        pool = opened.executor
        warm_up(pool)
        judges = load_judges(request.protocol, request.device)
        reference = prepare_reference(request.protocol, judges, runs.resolve())
        threads = pool.workers if request.device == "cpu" else os.cpu_count() or 1
        context = Context(
            protocol=request.protocol,
            reference=reference,
            judge_digests={name: judge.digest for name, judge in judges.items()},
            run=run_record(how.arguments, request.device, threads),
            device=request.device,
            timeout=how.timeout,
            halves=bool(halves(judges)),
            made_by=made_by(),
            allow_mixed=how.allow_mixed,
        )
        pool.check(context, runs)
        cells = make_plan(request, conditions(judges, reference))
        yield Prepared(pool, context, cells, partial(judged_layout, judges, request.protocol))


def run(request: Request, runs: Path, *, progress: Progress, gather: Gather | None = None, **way: Any) -> Summary:
    """Measure every cell of a request that is not measured yet; `way` is what `How` names.

    Raises BenchError before the first sample for what can be met before: unknown names, missing weights, an unusable
    database or directory. A cell whose adapter breaks, or whose worker dies twice, is recorded as failed and the others
    go on. With `gather` nothing is sampled: all shards come from there.
    """
    check_not_starting()
    how = How(**way)
    database = runs / "bench.duckdb"
    preflight(request, runs, database)
    with alone(runs, progress), prepared(request, runs, how) as ready:
        context = ready.context
        failures = gather.into(runs, ready) if gather is not None else {}
        summary = Summary(database, Indexer(database))
        outcomes = _Recorded(context, runs, progress, summary)
        work = [item for item in _sort(ready, runs, how.fresh, summary) if not outcomes.fails(item, failures)]
        progress.plan(len(ready.cells), len(summary.reused), *Ahead.of(work))
        for cell, reason in summary.unsupported:
            progress.cell(cell, "unsupported", reason)
        Dispatch(ready.pool, context, runs, outcomes).run(work)
        _time(ready.pool, context, runs, progress, summary)
        try:
            _finish(summary, context.run["run_id"], runs)
        except DatabaseInUseError as error:  # the measured cells are safe, and the next run adds them
            summary.behind = error
    return summary


@dataclass
class _Recorded:
    """Cells become rows."""

    context: Context
    runs: Path
    progress: Progress
    summary: Summary
    measures: bool = True

    def sampled(self, item: Work, done: int, span: Span) -> None:
        self.progress.shard(item.cell, done, item.total, span[1] - span[0])

    def measured(self, item: Work) -> None:
        self.summary.indexer.add(CellDirectory(self.runs, item.cell.cell_id))
        self.summary.measured.append(item.cell)
        self.progress.cell(item.cell, "done", None)

    def failed(self, item: Work, failure: CellFailure) -> None:
        facts = {"status": "failed", "reason": failure.reason, "failures": failure.failures}
        _write_row(item.cell, self.context, self.runs, item.row | facts, self.summary)
        self.summary.failed.append((item.cell, failure.reason))
        self.progress.cell(item.cell, "failed", failure.reason)

    def fails(self, item: Work, failures: Mapping[str, CellFailure]) -> bool:
        """Record that a cell failed elsewhere, if it did."""
        failure = failures.get(item.cell.cell_id)
        if failure is not None:
            self.failed(item, failure)
        return failure is not None


def _write_row(cell: Cell, context: Context, runs: Path, row: Mapping[str, Any], summary: Summary) -> None:
    """Write the record of a cell that has no numbers."""
    directory = CellDirectory(runs, cell.cell_id)
    ended = {**row, "finished": now().isoformat()}
    directory.write_result(cell_record(context, ended, {}) | {"model": model_row(cell.card)})
    summary.indexer.add(directory)


def _sort(ready: Prepared, runs: Path, fresh: bool, summary: Summary) -> list[Work]:
    """Split the plan into finished cells, unsupported ones and work, and clear what cannot be continued."""
    context = ready.context
    work = []
    earlier = Earlier(context, ready.judged)
    for cell in ready.cells:
        directory = CellDirectory(runs, cell.cell_id)
        if fresh:
            directory.clear()
        if has_metrics(directory.read_result(), context.protocol):
            summary.reused.append(cell)
            continue
        item = Work.of(cell, context)
        if cell.unsupported is not None:
            _write_row(cell, context, runs, item.row | {"status": "unsupported", "reason": cell.unsupported}, summary)
            summary.unsupported.append((cell, cell.unsupported))
            continue
        item.missing = earlier.lacking(directory, item.ranges, cell.batch_size)
        work.append(item)
    earlier.tell()
    return work


def _time(pool: Executor, context: Context, runs: Path, progress: Progress, summary: Summary) -> None:
    """Time the cells that are measured but not timed: an interrupted run's among them.

    One at a time, or one on each worker where every worker has an accelerator to itself.
    """
    untimed = [
        (cell, directory, record)
        for cell in [*summary.measured, *summary.reused]
        if (record := (directory := CellDirectory(runs, cell.cell_id)).read_result()) is not None
        and record["cell"].get("latency_seconds") is None
    ]
    abreast = pool.workers if pool.own_accelerators else 1
    futures: list[Future[Any]] = []
    for done, (cell, directory, record) in enumerate(untimed):
        progress.timing(done, len(untimed))
        for other, _, begun in untimed[len(futures) : done + abreast]:
            sampled = (begun["cell"].get("network_seconds") or 0.0) + (begun["cell"].get("decode_seconds") or 0.0)
            futures.append(submit(pool, time_task, context, other, cell_labels(other, context), sampled))
        try:
            found = futures[done].result()
        except pool.deaths:
            found = f"its worker process died: {reopen(pool)}"
        if isinstance(found, str):
            warnings.warn(f"{cell.label} could not be timed: {found}", BenchWarning, stacklevel=2)
            continue
        record["cell"] |= found
        directory.write_result(record)
        summary.indexer.add(directory)
    if untimed:
        progress.timing(len(untimed), len(untimed))


def _finish(summary: Summary, run_id: str, runs: Path) -> None:
    """Bring the database up to the cells' directories, and rank."""
    summary.indexer.catch_up()
    index_cells(summary.database, [CellDirectory(runs, cell.cell_id) for cell in summary.reused], only_new=True)
    rank_all(summary.database)
    with connect(summary.database, write=True, retry=True) as connection:
        finish_runs(connection, now().isoformat(), run_id)


@contextmanager
def alone(runs: Path, progress: Progress) -> Iterator[None]:
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
