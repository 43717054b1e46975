"""Tasks on a Ray cluster: Ray places them, retries them where a machine dies, and carries what they return.

The runs directory is the driver's. Where every machine of the cluster sees it, workers read and write it as processes
of this machine do. Where one does not, shards come back through Ray's object store, and cells are measured here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.run.executors import Executor, Processes, default_workers, reason_of
from bench.run.provenance import differences, made_by
from bench.run.record import Context
from results.errors import BenchError, one_line
from results.files import mark

SECONDS_TO_CONNECT = 5.0
SECONDS_TO_LOOK = 120.0
"""How long a machine may take to import what the work needs and say what it has."""
LARGE = 100_000
"""Bytes from which an array goes through the object store, once for all tasks."""
RETRIES = 3
"""How often Ray starts a task again whose worker or machine died: its own default."""


class Ray(Executor):
    """Runs tasks on a Ray cluster.

    Args:
        workers: how many tasks run at once; 0: as many as fit the cluster now.
        device: what they sample on; on the cluster every worker sees its own accelerators alone.
        address: of the cluster, HOST:PORT, ray://HOST:PORT or `auto`; None: RAY_ADDRESS, else a cluster of this machine
            that ends with the run.
        cpus_per_worker, gpus_per_worker: what Ray reserves for each; parts of a GPU let several workers share it. None:
            one GPU where the device is one.
        retries: how often a task whose worker or machine died starts again; machines that Ray itself drains, as it does
            with spot machines that are taken back, do not count.
        shared: whether every machine sees the runs directory; None: looked up.
    """

    def __init__(
        self,
        workers: int,
        device: str,
        *,
        address: str | None = None,
        cpus_per_worker: float = 1.0,
        gpus_per_worker: float | None = None,
        retries: int = RETRIES,
        shared: bool | None = None,
    ) -> None:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", f"{SECONDS_TO_CONNECT:.0f}")  # one a second
        try:
            import ray
        except ImportError as error:
            raise BenchError("executor 'ray' needs the extra: pip install 'fewstep-bench[ray]'") from error
        gpus = (1.0 if device.startswith("cuda") else 0.0) if gpus_per_worker is None else gpus_per_worker
        for name, value in (("cpus_per_worker", cpus_per_worker), ("gpus_per_worker", gpus)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or (value > 1 and value % 1):
                raise BenchError(f"--option {name}: must be a part of one or a whole number, found {value}")
        if type(retries) is not int or retries < -1:
            raise BenchError(f"--option retries: must be an integer from 0, or -1 for no end, found {retries}")
        if shared not in (None, True, False):
            raise BenchError(f"--option shared: must be true or false, found {shared}")
        self.ray = ray
        self.deaths = (
            ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError,
            ray.exceptions.ObjectLostError, BrokenProcessPool,
        )  # fmt: skip
        self.shared, self.device = shared, device
        self._near: Processes | None = None
        self._put: dict[int, tuple[Any, Any]] = {}
        self.own = _connect(ray, None if address is None else str(address))
        # A worker that uses a GPU would end after each task, and load the weights again, but for max_calls.
        self.remote = ray.remote(
            num_cpus=cpus_per_worker, num_gpus=gpus, max_retries=retries, max_calls=0, scheduling_strategy="SPREAD"
        )(_call)
        try:
            self.workers = workers or self._fitting(cpus_per_worker, gpus)
            self.own_accelerators = gpus >= 1
        except BaseException:
            self.shutdown(now=True)
            raise

    @property
    def near(self) -> Executor:
        """The workers themselves where they see the runs directory, else processes of this machine."""
        return self if self._near is None else self._near

    def check(self, context: Context, runs: Path) -> None:
        """Ask every machine what it would sample with, and whether it sees the runs directory.

        Raises BenchError, naming the machine, for one without fewstep-bench, or with other versions unless that is
        allowed, or that does not see the directory where `shared` says so.
        """
        probe = runs.resolve() / f".write-{mark()}"
        stems = [str(stem) for stem in context.reference.arrays.values()]
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        try:
            looks = self._looks(str(probe), stems)
        finally:
            probe.unlink(missing_ok=True)
        for machine, look in looks.items():
            other = "" if context.allow_mixed else differences(look.made_by, context.made_by)
            if other:
                raise BenchError(f"machine {machine}: {other}; install the same there, or allow it with --allow-mixed")
            if self.shared and not look.sees:
                raise BenchError(f"machine {machine}: does not see {runs.resolve()}; leave out --option shared=true")
        if self.shared is None:
            self.shared = all(look.sees for look in looks.values())
        if not self.shared:
            self._near = Processes(default_workers(self.device))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue the task on the cluster; large arrays are sent once."""
        future: Future[Any] = Future()
        sent = self.remote.remote(_directory(), function, *map(self._sent, arguments)).future()
        sent.add_done_callback(lambda done: _pass_on(done, future))
        return future

    def reopen(self) -> str:
        """Ray has replaced what died, and tried again; what is left is the task's own doing."""
        if self._near is not None:
            self._near.reopen()
        return super().reopen()

    def shutdown(self, *, now: bool) -> None:
        """Leave the cluster, which ends what this run has queued there."""
        if self._near is not None:
            self._near.shutdown(now=now)
        if self.own:
            self.ray.shutdown()

    def _sent(self, argument: Any) -> Any:
        if isinstance(argument, Path):
            return argument.resolve()
        if not isinstance(argument, np.ndarray) or argument.nbytes < LARGE:
            return argument
        if id(argument) not in self._put:
            self._put[id(argument)] = (argument, self.ray.put(argument))  # held, so that its id stays its own
        return self._put[id(argument)][1]

    def _looks(self, probe: str, stems: list[str]) -> dict[str, Look]:
        """Return what each machine with room for a worker says, by its name."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = {}
        for node in self._nodes():
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": strategy}
            asked[node["NodeManagerHostname"], node["NodeID"]] = self.ray.remote(**options)(look).remote(probe, stems)
        found = {}
        for (host, identity), answer in asked.items():
            machine = host if host not in found else f"{host} ({identity[:8]})"
            try:
                found[machine] = self.ray.get(answer, timeout=SECONDS_TO_LOOK)
            except self.ray.exceptions.GetTimeoutError as error:
                raise BenchError(
                    f"machine {machine}: no answer for {SECONDS_TO_LOOK:g} s; look at it with 'ray status'"
                ) from error
            except self.ray.exceptions.RayTaskError as error:
                raise BenchError(f"machine {machine}: {reason_of(error)}; install fewstep-bench there") from error
            except self.ray.exceptions.RayError:
                continue  # it went away meanwhile
        return found

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]

    def _fitting(self, cpus: float, gpus: float) -> int:
        """Return how many workers the machines that are there now have room for."""
        wanted = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}
        if not wanted:
            return default_workers(self.device)
        rooms = [node["Resources"] for node in self._nodes()]
        fitting = sum(int(min(room.get(name, 0) / amount for name, amount in wanted.items())) for room in rooms)
        if not fitting:
            listed = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items())
            raise BenchError(f"executor 'ray': no machine of the cluster has {listed}; ask for less with --option")
        return fitting


class Look(NamedTuple):
    """What a machine says of itself."""

    made_by: Mapping[str, str]
    sees: bool
    """Whether it has the runs directory and the reference."""


def look(probe: str, stems: list[str]) -> Look:
    """Return what this machine would sample with, and whether it sees the file `probe` and the arrays at `stems`."""
    arrays = all(any(Path(f"{stem}{part}.npy").exists() for part in ("", ".mu")) for stem in stems)
    return Look(dict(made_by()), Path(probe).exists() and arrays)


def _connect(ray: Any, address: str | None) -> bool:
    """Connect to the cluster, and return whether that was still to be done."""
    if ray.is_initialized():
        return False
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(where)
    own: dict[str, Any] = {"include_dashboard": False} if where == "local" else {}
    try:
        with _unheard():
            ray.init(where, log_to_driver=False, logging_level="ERROR", **own)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise BenchError(
            f"--address: no Ray cluster at {one_line(where, 80)} ({reason_of(error)}); see 'ray status'"
        ) from error
    return True


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep from the terminal what Ray's own library writes there while it tries to reach what is no cluster."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_reachable(where: str) -> None:
    """Raise BenchError, soon, where nothing listens at HOST:PORT; Ray itself would go on trying."""
    if where in ("auto", "local"):
        return
    host, sign, port = where.removeprefix("ray://").rpartition(":")
    if not sign or not host or not port.isdigit() or int(port) > 65535:
        raise BenchError(
            f"--address: '{one_line(where, 80)}' is no HOST:PORT; write for example 10.0.0.1:6379, or auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT).close()
    except OSError as error:
        found = f"no Ray cluster at {one_line(where, 80)} ({error.strerror or error})"
        raise BenchError(f"--address: {found}; start one there with 'ray start --head', or correct it") from error


def _call(directory: str | None, function: Callable[..., Any], *arguments: Any) -> Any:
    if directory is not None:
        with suppress(OSError):  # another machine may not have it
            os.chdir(directory)
    # What comes from the object store cannot be written to.
    return function(*(value.copy() if isinstance(value, np.ndarray) else value for value in arguments))


def _directory() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:
        return None


def _pass_on(done: Future[Any], future: Future[Any]) -> None:
    """Give `future` what Ray found, and an error as it was raised, without the traceback that Ray puts into words."""
    error = done.exception()
    if error is None:
        future.set_result(done.result())
        return
    cause = getattr(error, "cause", None)
    future.set_exception(cause if isinstance(cause, BaseException) else error)
