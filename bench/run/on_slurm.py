"""Shares of a run as an array of Slurm jobs, by submitit. One that is preempted or out of time is queued again, and
continues at its next shard.

    RUNS/jobs-<mark>/    what submitit hands the jobs and reads from them, and their logs; removed when all went well
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from bench.run.executors import Batch, reason_of
from bench.run.gathering import find_shares, finish, gathered
from bench.run.interface import How, Progress, Summary
from bench.run.plan import Cell, Request
from bench.run.shard import shard_ranges
from bench.run.shares import RequestTable, Share, read_share, request_of, run_share, table_of
from results.errors import BenchError, one_line
from results.files import disk_error, mark, remove
from results.numbers import counted

if TYPE_CHECKING:
    import submitit

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_OF_SKEW = 60.0
"""By how much the clocks of machines may differ."""
MOST_TIMEOUTS = 1000
"""How often a job may run out of time: each time it has sampled some shards more."""


class Slurm(Batch):
    """Submits `workers` jobs, each a share of the run, and one more that puts the shares together.

    Args:
        workers: how many jobs.
        device: what they sample on; `auto` is decided where they run.
        cluster: `slurm`, or submitit's `local`, whose jobs are processes of this machine.
        partition, account, qos, constraint: as sbatch takes them.
        time: limit of a job in minutes, or as H:MM:SS.
        gpus, cpus: of a job.
        mem: of a job, in GiB.
        parallel: how many jobs may run at once; None: all.
    """

    def __init__(
        self,
        workers: int,
        device: str,
        *,
        cluster: str = "slurm",
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        time: int | str = 60,
        gpus: int = 0,
        cpus: int = 1,
        mem: float | None = None,
        parallel: int | None = None,
    ) -> None:
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise BenchError("executor 'slurm' needs the extra: pip install 'fewstep-bench[slurm]'") from error
        if workers < 1:
            raise BenchError("executor 'slurm': say how many jobs share the work, with --workers N")
        counts = {"gpus": (gpus, 0), "cpus": (cpus, 1)} | ({} if parallel is None else {"parallel": (parallel, 1)})
        for name, (value, least) in counts.items():
            if type(value) is not int or value < least:
                raise BenchError(f"--option {name}: must be an integer from {least}, found {one_line(repr(value), 40)}")
        if cluster not in ("slurm", "local"):
            raise BenchError(f"--option cluster: '{one_line(str(cluster), 40)}' is unknown; choose slurm or local")
        self.workers, self.device, self.cluster = workers, device, cluster
        named = {"partition": partition, "account": account, "qos": qos, "constraint": constraint}
        on_slurm = {f"slurm_{name}": str(value) for name, value in named.items() if value is not None}
        if parallel is not None:
            on_slurm["slurm_array_parallelism"] = parallel  # type: ignore[assignment]
        memory = {} if mem is None else {"mem_gb": _positive("mem", mem)}
        self.parameters = {
            "name": "bench", "timeout_min": _minutes(time), "gpus_per_node": gpus, "cpus_per_task": cpus, **memory,
            **on_slurm,
        }  # fmt: skip

    def run(self, request: Request, runs: Path, how: How, progress: Progress) -> Summary:
        """Sample the request in jobs, wait for them, and have the last one measure it.

        Raises BenchError where there is no Slurm, where it refuses the jobs, or what the first job says that failed.
        """
        folder = runs.resolve() / f"jobs-{mark()}"
        executor = self._executor(folder)
        way = asdict(how) | {"executor": "local", "options": {}, "workers": 1, "arguments": list(how.arguments)}
        first = ShareJob(table_of(request), str(runs.resolve()), 1, self.workers, way, mark())
        shares = [replace(first, number=number) for number in range(1, self.workers + 1)]
        submitted: list[submitit.Job[Any]] = []
        try:
            try:
                with executor.batch():
                    submitted += [executor.submit(share) for share in shares]
                sampled = self._results(submitted, runs, progress)
                last = MergeJob(str(runs.resolve()), [str(path) for path in sampled], way)
                if self.cluster == "slurm":
                    submitted.append(executor.submit(last))
                    (summary,) = self._results(submitted[-1:], runs, None)
                    _retell(summary, progress)
                else:
                    summary = last(progress)
            except RuntimeError as error:
                raise BenchError(f"executor 'slurm': {reason_of(error)}; logs: {folder}") from error
        except BaseException:
            for job in submitted:
                job.cancel(check=False)
            raise
        if isinstance(summary, str):
            raise BenchError(summary)
        remove(folder)
        return summary

    def _executor(self, folder: Path) -> submitit.AutoExecutor:
        import submitit

        most = {f"{self.cluster}_max_num_timeout": MOST_TIMEOUTS}
        try:
            executor = submitit.AutoExecutor(folder, cluster=self.cluster, **most)
            executor.update_parameters(**self.parameters)
        except RuntimeError as error:
            raise BenchError(
                f"executor 'slurm': {reason_of(error)} Run this on a login node of the cluster, or try "
                "--option cluster=local"
            ) from error
        except OSError as error:
            raise disk_error(folder, error) from error
        return executor

    def _results(self, jobs: Sequence[submitit.Job[Any]], runs: Path, progress: Progress | None) -> list[Any]:
        """Wait for jobs and return what they found, telling how far all of them are."""
        began = time.time()
        told = -1
        while True:
            ended = sum(job.done() for job in jobs)
            if progress is not None and (done := _shards(runs, self.workers, began)) is not None:
                progress.shares(ended, len(jobs), *done)
            if ended != told:
                told = ended
                for job in jobs:
                    if job.done() and isinstance(found := job.result(), str):
                        raise BenchError(found)
            if ended == len(jobs):
                return [job.result() for job in jobs]
            time.sleep(SECONDS_BETWEEN_LOOKS)


class Preempted(KeyboardInterrupt):
    """The scheduler wants the machine back: passed through by all that holds an adapter's own faults."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__()
        self.cause = cause


class _Queued:
    """A job that is queued again when it is preempted or out of time."""

    __call__: Callable[..., Any]

    def checkpoint(self, *rest: Any) -> Any:
        """Tell submitit what to queue again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass
class ShareJob(_Queued):
    """Samples one share; called anew after a preemption it continues at the next shard."""

    request: Mapping[str, Any]
    runs: str
    number: int
    count: int
    way: Mapping[str, Any]
    started: str
    """Tells this run from others: a share of it that was interrupted goes on, also with `fresh`."""

    def __call__(self) -> Path | str:
        """Return the share's directory, or in one line why there is none."""
        try:
            with _signals_passed_on():
                request = request_of(RequestTable.model_validate(self.request))
                share = Share(self.number, self.count)
                way = {"progress": Logged(), "started": self.started, **self.way}
                done = run_share(request, Path(self.runs), share, **way)
        except Preempted as preempted:
            raise preempted.cause from None
        except BenchError as error:
            return f"share {self.number}/{self.count}: {error}"
        return done.directory


@dataclass
class MergeJob(_Queued):
    """Puts the shares together, measures and times."""

    runs: str
    shares: Sequence[str]
    way: Mapping[str, Any]

    def __call__(self, progress: Progress | None = None) -> Summary | str:
        """Return what became of the run, or in one line why nothing did."""
        runs, mixed = Path(self.runs), bool(self.way["allow_mixed"])
        try:
            with _signals_passed_on():
                (plan,) = gathered(find_shares([Path(share) for share in self.shares]), [runs], allow_mixed=mixed)
                way = {"workers": 1, "allow_mixed": mixed, "arguments": self.way["arguments"]}
                return finish(plan, runs, progress=progress or Logged(), **way)
        except Preempted as preempted:
            raise preempted.cause from None
        except BenchError as error:
            return str(error)


class Logged:
    """Progress in a job's log, one line a shard."""

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def wait(self, runs: Path) -> None:
        """Tell that another process has to end first."""
        self._say(f"another 'bench run' is working in {runs}; waiting for it to finish")

    def plan(self, cells: int, reused: int, samples: int, cost: float) -> None:
        """Tell what is ahead."""
        self._say(f"{counted(cells, 'row')}, {samples:,} samples to draw")

    def shard(self, cell: Cell, done: int, total: int, samples: int) -> None:
        """Tell of a shard."""
        self._say(f"{cell.label}: shard {done} of {total}")

    def shares(self, ended: int, jobs: int, done: int, total: int) -> None:
        """Jobs have none of their own."""

    def timing(self, done: int, total: int) -> None:
        """Tell of the timing."""
        self._say(f"{done} of {total} rows timed")

    def cell(self, cell: Cell, status: str, reason: str | None) -> None:
        """Tell what became of a cell."""
        self._say(f"{cell.label}: {status}" + (f": {reason}" if reason else ""))


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Have what submitit's handler of preemption raises pass through adapters, whose own faults are held elsewhere."""
    number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}", None)
    handler = None if number is None else signal.getsignal(number)
    if number is None or not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(came: int, frame: FrameType | None) -> None:
        try:
            handler(came, frame)
        except BaseException as cause:
            raise Preempted(cause) from cause

    signal.signal(number, pass_on)
    try:
        yield
    finally:
        signal.signal(number, handler)


def _retell(summary: Summary | str, progress: Progress) -> None:
    """Tell of what a job did elsewhere."""
    if isinstance(summary, str):
        return
    ended: list[tuple[Cell, str, str | None]] = [(cell, "done", None) for cell in summary.measured]
    ended += [(cell, "failed", reason) for cell, reason in summary.failed]
    ended += [(cell, "unsupported", reason) for cell, reason in summary.unsupported]
    progress.plan(len(ended) + len(summary.reused), len(summary.reused), 0, 0.0)
    for cell, status, reason in ended:
        progress.cell(cell, status, reason)


def _shards(runs: Path, jobs: int, began: float) -> tuple[int, int] | None:
    """Return how many shards of the running shares are there, and of how many; None before the first has begun."""
    total, done = 0, 0
    for path in runs.glob(f"shares/*/*-of-{jobs}/share.json"):
        try:
            if path.stat().st_mtime < began - SECONDS_OF_SKEW:
                continue  # of an earlier run
            manifest = read_share(path.parent)
        except (OSError, BenchError):
            continue
        total = sum(len(shard_ranges(cell.samples, manifest.batch_size)) for cell in manifest.cells)
        done += sum(1 for _ in path.parent.glob("cells/*/shard-*.safetensors"))
    return (done, total) if total else None


def _minutes(text: int | str) -> int:
    found = re.fullmatch(r"(?:([0-9]{1,3})-)?([0-9]{1,3}):([0-5]?[0-9])(?::[0-5]?[0-9])?", str(text))
    if found:
        days, hours, minutes = (int(part or 0) for part in found.groups())
        return max(1, (24 * days + hours) * 60 + minutes)
    if type(text) is not int or text < 1:
        raise BenchError(f"--option time: '{one_line(str(text), 40)}' is no limit; write minutes, or 2:30:00 for hours")
    return text


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise BenchError(f"--option {name}: must be a number above 0, found {one_line(repr(value), 40)}")
    return float(value)
