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
        self.decode_seconds = 0.0

    @property
    def rows(self) -> int:
        """Evaluations of the network, counted by batch rows."""
        return self.evaluations.rows

    @property
    def guide_rows(self) -> int:
        """Evaluations of the guide, counted by batch rows."""
        return self.guide_evaluations.rows

    def state(self) -> tuple[int, int, float]:
        """Return what `restore` takes."""
        return self.rows, self.guide_rows, self.decode_seconds

    def restore(self, state: tuple[int, int, float]) -> None:
        """Forget what was counted since `state`: an attempt that came to nothing."""
        self.evaluations.rows, self.guide_evaluations.rows, self.decode_seconds = state

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
            start = clock(self.adapter.device)
            images = decode(latents)
            self.decode_seconds += clock(self.adapter.device) - start
            return images

        return timed


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
