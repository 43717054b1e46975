"""What sampling costs: network evaluations, seconds and memory, counted through hooks on the adapter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.contracts.adapter import Adapter


class Meter:
    """Counts network evaluations by batch rows and times the decoder, through hooks on the adapter."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.rows = 0
        self.guide_rows = 0
        self.decode_seconds = 0.0

    @contextmanager
    def installed(self) -> Iterator[Meter]:
        """Install the hooks for the duration of the block."""
        handles = [self.adapter.network.register_forward_hook(self._count)]
        if self.adapter.guide is not None:
            handles.append(self.adapter.guide.register_forward_hook(self._count_guide))
        # An attribute of the instance hides the method for as long as the block lasts.
        vars(self.adapter)["decode"] = self._timed(self.adapter.decode)
        try:
            yield self
        finally:
            del vars(self.adapter)["decode"]
            for handle in handles:
                handle.remove()

    def _count(self, module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.rows += batch_rows(output)

    def _count_guide(self, module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.guide_rows += batch_rows(output)

    def _timed(self, decode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def timed(latents: Tensor) -> Tensor:
            start = clock(self.adapter.device)
            images = decode(latents)
            self.decode_seconds += clock(self.adapter.device) - start
            return images

        return timed


def batch_rows(output: Any) -> int:
    """Return the batch size of a network's output: of the tensor, or of the first of several."""
    first = output[0] if isinstance(output, (tuple, list)) else output
    return int(first.shape[0])


def clock(device: torch.device) -> float:
    """Return the time in seconds once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class PeakMemory:
    """The most memory in use from its making to `read`, in bytes.

    On an accelerator the model's own: its weights and what sampling allocates besides. On a processor all that is
    resident in this process, libraries and judges included.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.device = adapter.device
        self.others = 0
        if self.device.type == "cuda":
            tensors = [t for module in adapter.modules() for t in (*module.parameters(), *module.buffers())]
            own = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.others = max(0, torch.cuda.memory_allocated(self.device) - own)
        else:
            # Linux forgets the process's peak on this; elsewhere the peak of its whole life stands in.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def read(self) -> int:
        """Return the peak so far."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device)) - self.others
        with suppress(OSError, StopIteration):
            status = Path("/proc/self/status").read_text(encoding="ascii")
            return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
