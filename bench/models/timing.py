"""Repeated timing of one call, alone: warm-up, repetitions until the median is known, and what else the machine did."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from bench.models.meter import clock
from results.timing import FEWEST, Timing, timing_of

MOST_REPEATS = 200
PATIENCE = 4
"""How many times the seconds allowed the repetitions that an interval needs may take."""


def repeated(call: Callable[[], Any], device: torch.device, seconds: float) -> Timing:
    """Time `call` on `device` after it has been warmed up.

    It is repeated until the interval of its median is narrow (see `Timing.narrow`), or `seconds` have passed, and at
    least once; as often as an interval needs, where that takes at most PATIENCE times as long.
    """
    times: list[float] = []
    start = time.perf_counter()
    while True:
        began = clock(device)
        call()
        times.append(clock(device) - began)
        enough = len(times) >= 2 * FEWEST and len(times) % 4 == 0 and timing_of(times).narrow
        allowed = seconds if len(times) >= FEWEST else PATIENCE * seconds
        if enough or len(times) >= MOST_REPEATS or time.perf_counter() - start >= allowed:
            return timing_of(times)


def surroundings(device: torch.device) -> dict[str, Any]:
    """Return what decides how fast the machine is at this moment: threads, cores, load of the last minute, clock.

    `load` and `clock_mhz` (of the accelerator, or of the processor's fastest core) are None where the system does not
    say.
    """
    load = clock_mhz = None
    with suppress(OSError, AttributeError):  # Windows keeps no load average
        load = round(os.getloadavg()[0], 2)
    if device.type == "cuda":
        with suppress(Exception):  # needs NVIDIA's management library
            clock_mhz = float(torch.cuda.clock_rate(device))
    else:
        with suppress(OSError, ValueError):
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            clock_mhz = max(float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz"))
    return {"threads": torch.get_num_threads(), "cores": os.cpu_count() or 1, "load": load, "clock_mhz": clock_mhz}


class TensorMemory(TorchDispatchMode):
    """The most bytes of tensors alive at once inside a `with` block, weights included: a model's memory on a processor.

    Counted are the storages that operators return, so buffers that one operator makes and drops inside are not.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._alive: set[int] = set()
        for tensor in weights:
            self._seen(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._seen, output)
        return output

    def _seen(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        if key in self._alive:
            self._alive.remove(key)
            self._now -= size


def matrix_peak(device: torch.device, dtype: str) -> float:
    """Return the most operations a second that a square matrix product reaches on `device`: what a share is of."""
    best = 0.0
    for size in (4096, 8192) if device.type == "cuda" else (512, 1024):
        a, b = (torch.zeros(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
        torch.mm(a, b)
        best = max(best, 2 * size**3 / repeated(partial(torch.mm, a, b), device, 0.5).median)
    return best
