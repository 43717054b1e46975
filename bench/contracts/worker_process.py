"""A worker process seen from the harness: started, spoken to within limits, ended, and quoted when it fails."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.contracts import bench_worker
from results.errors import BenchError, one_line

FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__")
"""Variables that would bring this environment's packages into the worker's."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
HEAD = len(bench_worker.MAGIC) + 8
POLL = 0.2
"""Seconds between two looks at a silent worker's memory."""
QUOTED = 300
"""Most characters of a worker's last line in a message."""
LOG_BYTES = 16 * 2**20
"""What is kept of a worker's output; the rest is read and forgotten."""


class Limits(NamedTuple):
    """What a worker may take."""

    start_seconds: float
    batch_seconds: float
    memory_bytes: int


class Worker:
    """One process of `python script`, with a pipe each way; what it prints goes to `log`.

    Whatever goes wrong is a BenchError of one line, and ends the process. It ends too when this object is collected.
    """

    def __init__(self, name: str, python: Path, script: Path, limits: Limits, device: str) -> None:
        self.name, self.limits = name, limits
        descriptor, path = tempfile.mkstemp(prefix=f"bench-worker-{name}-", suffix=".log")
        self.log = Path(path)
        theirs_in, self._writing = os.pipe()
        self._reading, theirs_out = os.pipe()
        printed, printing = os.pipe()
        environment = {key: value for key, value in os.environ.items() if key not in FOREIGN}
        environment[bench_worker.PIPES] = f"{theirs_in},{theirs_out}"
        environment["PYTHONUNBUFFERED"] = "1"
        if device == "cpu":  # as many threads as the harness has, whose number can move the last bits
            environment |= dict.fromkeys(THREADS, "1")
        try:
            self.process = subprocess.Popen(
                [str(python), str(script)],
                stdin=subprocess.DEVNULL, stdout=printing, stderr=printing, env=environment,
                pass_fds=(theirs_in, theirs_out), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            for number in (self._writing, self._reading, printed, descriptor):
                os.close(number)
            self.log.unlink()
            raise BenchError(f"worker {name}: {python} cannot be started ({error.strerror})") from error
        finally:
            for number in (theirs_in, theirs_out, printing):
                os.close(number)
        for number in (self._writing, self._reading, printed):
            os.set_blocking(number, False)
        self._printed: int | None = printed
        self._log, self._logged, self._looked = descriptor, 0, time.monotonic()
        self._descriptors = (self._writing, self._reading, printed, descriptor)
        self.end = weakref.finalize(self, _end, self.process, self._descriptors, self.log)

    def ask(
        self,
        kind: str,
        arrays: Mapping[str, np.ndarray] | None = None,
        *,
        seconds: float,
        size: int,
        began: float | None = None,
        **words: Any,
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Send a message and return the answer, of at most `size` bytes of arrays.

        It comes within `seconds` from `began` (by `time.monotonic`) or, without that, from now.

        Raises BenchError for a worker that ends, is late, takes too much memory, or writes anything else.
        """
        until = (time.monotonic() if began is None else began) + seconds
        try:
            self._write(bench_worker.encode({**words, "kind": kind}, arrays), until, seconds)
            head = self._read(HEAD, until, seconds)
            if not head.startswith(bench_worker.MAGIC):
                raise self._fault(f"wrote what is no message: {bytes(head)!r}")
            length = struct.unpack("<Q", head[len(bench_worker.MAGIC) :])[0]
            if length > size + bench_worker.WORDS:
                raise self._fault(f"announced a message of {length:,} bytes where {size:,} are the most")
            message, found = bench_worker.decode(self._read(length, until, seconds))
        except bench_worker.ProtocolError as error:
            raise self._fault(f"wrote what is no message: {error}") from error
        except BaseException:
            self.stop()
            raise
        return message, found

    def refuse(self, what: str) -> BenchError:
        """Return the error of an answer that does not fit, and end the worker."""
        return self._fault(what)

    def stop(self) -> None:
        """End the process."""
        self.end()

    @property
    def running(self) -> bool:
        """Whether it can be asked."""
        return self.end.alive and self.process.poll() is None

    def _write(self, data: bytes, until: float, seconds: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(None, self._writing, until, seconds)
            with contextlib.suppress(BlockingIOError):
                try:
                    view = view[os.write(self._writing, view) :]
                except BrokenPipeError:
                    raise self._died() from None

    def _read(self, count: int, until: float, seconds: float) -> bytearray:
        data = bytearray()
        while len(data) < count:
            self._wait(self._reading, None, until, seconds)
            with contextlib.suppress(BlockingIOError):
                part = os.read(self._reading, min(count - len(data), 2**20))
                if not part:
                    raise self._died()
                data += part
        return data

    def _wait(self, reading: int | None, writing: int | None, until: float, seconds: float) -> None:
        """Return when the pipe is ready; what the worker prints in the meantime is kept."""
        while True:
            wanted = [number for number in (reading, self._printed) if number is not None]
            ready, writable, _ = select.select(wanted, [] if writing is None else [writing], [], POLL)
            if self._printed in ready:
                self._keep()
            if writable or reading in ready:
                return
            now = time.monotonic()
            if now > until:
                raise self._fault(f"did not answer within {seconds:g} s")
            if now - self._looked > 1.0:
                self._looked = now
                used, most = memory_of(self.process.pid), self.limits.memory_bytes
                if used > most:
                    raise self._fault(f"took {used / 2**30:.2f} GiB where {most / 2**30:.2f} are allowed")

    def _keep(self) -> None:
        assert self._printed is not None
        try:
            text = os.read(self._printed, 2**16)
        except BlockingIOError:
            return
        if not text:  # the worker closed its outputs
            self._printed = None
            return
        kept = text[: max(0, LOG_BYTES - self._logged)]
        self._logged += len(kept)
        os.write(self._log, kept)

    def _died(self) -> BenchError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2.0)
        code = self.process.poll()
        if code is None:
            return self._fault("closed its pipe")
        names = {number.value: number.name for number in signal.Signals}
        return self._fault(f"ended ({names.get(-code, f'signal {-code}') if code < 0 else f'exit code {code}'})")

    def _fault(self, what: str) -> BenchError:
        """Return what is said of a worker that failed, with its last line and where the rest lies; it is ended."""
        for _ in range(64):
            if self._printed is None or not select.select([self._printed], [], [], 0.0)[0]:
                break
            self._keep()
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
        last = next((line.strip()[:QUOTED] for line in reversed(lines) if line.strip()), "")
        if self._logged:
            self.end.detach()
            _end(self.process, self._descriptors, None)
        else:
            self.end()
        kept = f"; its output: {self.log}" if self._logged else ""
        return BenchError(one_line(f"worker {self.name} {what}{f': {last}' if last else ''}{kept}"))


def _end(process: subprocess.Popen[bytes], descriptors: Sequence[int], log: Path | None) -> None:
    """End a worker and what it started, and remove its log."""
    for number in descriptors:
        with contextlib.suppress(OSError):
            os.close(number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.0 if log is None else 1.0)  # one that is well ends when its pipe closes
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5.0)
    if log is not None:
        log.unlink(missing_ok=True)


def memory_of(group: int) -> int:
    """Return the bytes that the processes of a group hold in memory; 0 where the system does not tell."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = entry.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == group:
                total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return total
