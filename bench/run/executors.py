"""Where tasks run: in this process, in worker processes, or on a Ray cluster. The numbers do not depend on it."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import IO, Any

from bench.contracts.plugins import Group
from results.errors import BenchError
from results.printable import printable

TIMED_OUT = "timed out"
_last_words: IO[str] | None = None


class Executor(ABC):
    """Runs tasks, each a module-level function with picklable arguments, on `workers` workers."""

    workers: int
    deaths: tuple[type[BaseException], ...] = ()
    """What a future raises whose worker ended before its task did."""

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
    """Runs each task when it is submitted."""

    workers = 1

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


class Ray(Executor):
    """Runs tasks on a Ray cluster; the runs directory must be shared by its nodes."""

    def __init__(self, workers: int, gpus_per_worker: float) -> None:
        try:
            import ray
        except ImportError as error:
            raise BenchError("executor 'ray' needs the extra: pip install 'fewstep-bench[ray]'") from error
        self.workers = workers
        self.ray = ray
        self.deaths = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
        ray.init(ignore_reinit_error=True, log_to_driver=False)
        self.remote = ray.remote(num_cpus=1, num_gpus=gpus_per_worker)(_call)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue the task on the cluster."""
        future: Future[Any] = self.remote.remote(function, *arguments).future()
        return future

    def shutdown(self, *, now: bool) -> None:
        """Leave the cluster."""
        self.ray.shutdown()


class Opened(AbstractContextManager["Opened"]):
    """An executor that is shut down when the block ends, at once if it ends with an error."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        self.executor.shutdown(now=kind is not None)


def local(workers: int, device: str) -> Executor:
    """Return `workers` processes on this machine, or this process alone for one."""
    return Processes(workers) if workers > 1 else InProcess()


def ray(workers: int, device: str) -> Executor:
    """Return `workers` workers on a Ray cluster, each with a GPU of its own where `device` is one."""
    return Ray(workers, 1.0 if device.startswith("cuda") else 0.0)


EXECUTORS: Group[Callable[[int, str], Executor]] = Group(
    "bench.executors", "executor", "a function of workers and device", callable
)


def open_executor(name: str, workers: int, device: str, *, apart: bool = False) -> Opened:
    """Return the executor `name` (entry point group `bench.executors`) with `workers` workers.

    0 workers: as many as fit the device. `apart`: never in this process, so that a worker can be ended. Raises
    BenchError for an unknown or broken one.
    """
    executor = EXECUTORS.load(name)(workers or default_workers(device), device)
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


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


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
    warnings.formatwarning = _in_one_line
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _in_one_line(message: Warning | str, *where: Any, **facts: Any) -> str:
    return f"Warning: {printable(str(message))}\n"


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
