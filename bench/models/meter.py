"""What sampling costs: network evaluations, seconds and memory, counted through hooks on the adapter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bench.contracts.adapter import Adapter
from bench.contracts.evaluations import Evaluations
from bench.contracts.out_of_process import WorkerAdapter


class Meter:
    """Counts network evaluations by batch rows and times the decoder, through hooks on the adapter."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.evaluations = Evaluations(adapter.network)
        self.guide_evaluations = Evaluations(adapter.guide)
        self._decodes: list[tuple[Stamp, Stamp]] = []

    @property
    def rows(self) -> int:
        """Evaluations of the network, counted by batch rows."""
        return self.evaluations.rows

    @property
    def guide_rows(self) -> int:
        """Evaluations of the guide, counted by batch rows."""
        return self.guide_evaluations.rows

    @property
    def decode_seconds(self) -> float:
        """Seconds of the decoder; waits for the calls that an accelerator has not finished."""
        return sum(seconds(began, ended) for began, ended in self._decodes)

    def state(self) -> tuple[int, int, int]:
        """Return what `restore` takes."""
        return self.rows, self.guide_rows, len(self._decodes)

    def restore(self, state: tuple[int, int, int]) -> None:
        """Forget what was counted since `state`: an attempt that came to nothing."""
        self.evaluations.rows, self.guide_evaluations.rows, decodes = state
        del self._decodes[decodes:]

    @contextmanager
    def installed(self) -> Iterator[Meter]:
        """Install the hooks for the duration of the block."""
        # An attribute of the instance hides the method for as long as the block lasts.
        vars(self.adapter)["decode"] = self._timed(self.adapter.decode)
        try:
            with self.evaluations, self.guide_evaluations:
                yield self
        finally:
            del vars(self.adapter)["decode"]

    def _timed(self, decode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def timed(latents: Tensor) -> Tensor:
            began = stamp(self.adapter.device)
            images = decode(latents)
            self._decodes.append((began, stamp(self.adapter.device)))
            return images

        return timed


Stamp = float | torch.cuda.Event
"""A moment: on a processor in seconds, on an accelerator one that it comes to in the order of its work."""


def stamp(device: torch.device) -> Stamp:
    """Return this moment in the work of `device`, without waiting for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds(began: Stamp, ended: Stamp) -> float:
    """Return the seconds between two stamps of one device, once it has come to the second."""
    if isinstance(began, float) or isinstance(ended, float):
        return float(ended) - float(began)  # type: ignore[arg-type]
    ended.synchronize()
    return began.elapsed_time(ended) / 1000.0


def clock(device: torch.device) -> float:
    """Return the time in seconds once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class PeakMemory:
    """The most of an accelerator's memory that the model used from its making to `read`, in bytes.

    That is its weights and what sampling allocates besides; 0 on a processor, where a process's memory says nothing of
    one model.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.device = adapter.device
        self.others = 0
        if self.device.type == "cuda":
            tensors = [t for module in adapter.modules() for t in (*module.parameters(), *module.buffers())]
            own = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.others = max(0, torch.cuda.memory_allocated(self.device) - own)

    def read(self) -> int:
        """Return the peak so far."""
        if self.device.type != "cuda":
            return 0
        if isinstance(self.adapter, WorkerAdapter):
            return self.adapter.peak_memory
        return int(torch.cuda.max_memory_allocated(self.device)) - self.others
