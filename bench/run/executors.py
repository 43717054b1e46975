"""Where tasks run: in this process, in worker processes, or on other machines. The numbers do not depend on it."""

from __future__ import annotations

import faulthandler
import inspect
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from bench.contracts.plugins import Group
from results.errors import BenchError, one_line, unknown
from results.printable import printable

if TYPE_CHECKING:
    from bench.run.interface import How, Progress, Summary
    from bench.run.plan import Request
    from bench.run.record import Context

TIMED_OUT = "timed out"
_last_words: IO[str] | None = None


class Executor(ABC):
    """Runs tasks, each a module-level function with picklable arguments, on `workers` workers."""

    workers: int
    deaths: tuple[type[BaseException], ...] = ()
    """What a future raises whose worker ended before its task did."""
    own_accelerators: bool = False
    """Whether each worker has an accelerator to itself, so that what is timed on several at once is timed alone."""
    beside: bool = False
    """Whether a finished cell is measured in a thread of this process, while the next one is sampled."""

    @property
    def near(self) -> Executor:
        """Where tasks run that read and write the runs directory: here, unless the workers cannot see it."""
        return self

    def check(self, context: Context, runs: Path) -> None:  # noqa: B027 - most have one machine, this one
        """Meet what is wrong with the workers' machines before the first sample; raise BenchError that names it."""

    def reopen(self) -> str:
        """Replace workers that died, when nothing runs, and return what is known of the cause."""
        return "killed, out of memory, or ended by the adapter"

    @abstractmethod
    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Start `function(*arguments)` and return its future."""

    @abstractmethod
    def shutdown(self, *, now: bool) -> None:
        """Stop; `now` gives up what is running."""


class InProcess(Executor):
    """Runs each task when it is submitted; beside an accelerator, cells are measured in a thread."""

    workers = 1

    def __init__(self, device: str = "cpu") -> None:
        self.beside = device.startswith("cuda")

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run the task and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            future.set_exception(error)
        return future

    def shutdown(self, *, now: bool) -> None:
        """Nothing runs in the background here."""


class Processes(Executor):
    """Runs tasks in `workers` fresh processes of one thread each, which end when this process ends."""

    deaths = (BrokenProcessPool,)

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.notes = tempfile.TemporaryDirectory(prefix="bench-workers-", ignore_cleanup_errors=True)
        self.pool = self._open()

    def _open(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(
            self.workers, mp_context=context, initializer=_start_worker, initargs=(self.notes.name,)
        )

    def reopen(self) -> str:
        """Start fresh processes; what the dead ones noted in their last moment tells the cause."""
        self._end(now=True)
        cause = super().reopen()
        for note in Path(self.notes.name).iterdir():
            text = note.read_text(encoding="utf-8", errors="replace")
            if text.startswith("Timeout"):
                cause = TIMED_OUT
            elif found := re.match(r"Fatal Python error: (.+)", text):
                cause = found.group(1).lower()
            note.unlink()
        self.pool = self._open()
        return cause

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue the task; a process that is started for it leaves Ctrl-C to this one from its first moment."""
        if sys.platform != "win32":  # there is none
            resource_tracker.ensure_running()  # starting it would let the signal through again
        with _interrupts_deferred():
            return self.pool.submit(function, *arguments)

    def shutdown(self, *, now: bool) -> None:
        """Wait for the workers, or end them at once."""
        self._end(now=now)
        self.notes.cleanup()

    def _end(self, *, now: bool) -> None:
        if now:
            for process in list((getattr(self.pool, "_processes", None) or {}).values()):
                process.kill()
        self.pool.shutdown(wait=not now, cancel_futures=True)


class Batch(ABC):
    """Runs a whole request on other machines, in shares; the class itself stands for the executor's name."""

    @abstractmethod
    def run(self, request: Request, runs: Path, how: How, progress: Progress) -> Summary:
        """Measure every cell of a request; see `bench.run.runner.run`."""


def reason_of(error: BaseException) -> str:
    """Return the last line of what a scheduler's library says, which is the error; before it comes a traceback."""
    lines = [line for line in str(error).splitlines() if line.strip(" -")]
    return one_line(lines[-1] if lines else type(error).__name__)


class Opened(AbstractContextManager["Opened"]):
    """An executor that is shut down when the block ends, at once if it ends with an error."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        self.executor.shutdown(now=kind is not None)


def local(workers: int, device: str) -> Executor:
    """Return `workers` processes on this machine (0: as many as fit the device), or this process alone for one."""
    workers = workers or default_workers(device)
    return Processes(workers) if workers > 1 else InProcess(device)


EXECUTORS: Group[Callable[..., Any]] = Group(
    "bench.executors", "executor", "a function of workers and device", callable
)


def settings_of(name: str) -> list[str]:
    """Return the names of an executor's own settings: the keyword-only arguments of what stands for it."""
    try:
        parameters = inspect.signature(EXECUTORS.load(name)).parameters.values()
    except (TypeError, ValueError):
        return []
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def batch_of(name: str) -> Callable[..., Batch] | None:
    """Return what makes the executor `name` where it runs whole requests; None for one that runs tasks."""
    found = EXECUTORS.load(name)
    return found if isinstance(found, type) and issubclass(found, Batch) else None


def split_options(name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that are the executor's own, and the others, which are the sampler's."""
    own = settings_of(name) if options else []
    return (
        {key: value for key, value in options.items() if key in own},
        {key: value for key, value in options.items() if key not in own},
    )


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise BenchError for an option that the executor does not take."""
    known = settings_of(name) if options else []
    for key in options:
        if key not in known:
            raise unknown(f"setting of executor '{name}'", key, known)


def open_executor(
    name: str, workers: int, device: str, *, apart: bool = False, options: Mapping[str, Any] | None = None
) -> Opened:
    """Return the executor `name` (entry point group `bench.executors`) with `workers` workers and its own `options`.

    0 workers: as many as fit. `apart`: never in this process, so that a worker can be ended. Raises BenchError for an
    unknown or broken one.
    """
    check_options(name, options or {})
    executor = EXECUTORS.load(name)(workers, device, **(options or {}))
    if isinstance(executor, Batch):
        raise BenchError(f"executor '{name}' cuts a run into shares itself; leave out --shards")
    if not isinstance(executor, Executor):
        raise BenchError(f"executor '{name}': returned {type(executor).__name__}, not a bench.run.executors.Executor")
    if apart and isinstance(executor, InProcess):
        executor = Processes(executor.workers)
    return Opened(executor)


def check_not_starting() -> None:
    """End a worker process that is still being started: it reads the script that started it, and came to its call.

    Without this it would wait for ever for the run that waits for it.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(
            "Error: this script measures again in each worker process, because every worker reads it first; put what "
            "it does under 'if __name__ == \"__main__\":', or ask for workers=1"
        )


def default_workers(device: str) -> int:
    """Return one worker for an accelerator, else one per available processor, eight at most."""
    if device.startswith("cuda"):
        return 1
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Hold Ctrl-C back inside the block: for the processes started in it, and for this one until the block ends.

    A process inherits the blocked signal. That alone does not hold this one back, for any thread of a library may take
    the signal and Python then interrupts the main thread, perhaps between the start of a process and the writing of
    what it is to do: it would find nothing to read and say so in a traceback, and nobody would know of it to end it.
    """
    came: list[tuple[int, FrameType | None]] = []
    handler = signal.getsignal(signal.SIGINT)
    deferred = callable(handler) and threading.current_thread() is threading.main_thread()
    if deferred:
        signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    masks = hasattr(signal, "pthread_sigmask")  # Windows has no masks: there the workers ignore the signal once started
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else None
    try:
        yield
    finally:
        if kept is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept)
        if deferred:
            signal.signal(signal.SIGINT, handler)
            if came and callable(handler):
                handler(*came[0])


def last_words() -> IO[str] | None:
    """Return the file in which this process notes why it ends; None in a process that nobody replaces."""
    return _last_words


def _start_worker(notes: str) -> None:
    """Leave Ctrl-C to the parent, and end when the parent does, even when it is killed."""
    global _last_words
    _last_words = (Path(notes) / str(os.getpid())).open("w", encoding="utf-8")
    faulthandler.enable(_last_words)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR2"):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a scheduler's warning, which is for the parent
    warnings.formatwarning = _in_one_line
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _in_one_line(message: Warning | str, *where: Any, **facts: Any) -> str:
    return f"Warning: {printable(str(message))}\n"


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
