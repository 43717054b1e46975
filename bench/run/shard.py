"""One shard: an adapter's samples, quantised, judged once, counted and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.contracts.adapter import Adapter
from bench.contracts.noise import PhiloxNoise
from bench.judges.base import Judge
from bench.run.plan import Cell
from bench.run.quantise import quantise
from protocols import Protocol
from results.errors import BenchError

THUMBNAIL_SIDE = 96


class CellFailure(Exception):
    """The adapter broke its contract on this cell; the other cells go on."""

    def __init__(self, reason: str, failures: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.failures = failures

    def __reduce__(self) -> tuple[Any, ...]:
        return CellFailure, (self.reason, self.failures)


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


def sample_shard(
    cell: Cell,
    protocol: Protocol,
    adapter: Adapter,
    judges: Mapping[str, Judge],
    labels: np.ndarray,
    start: int,
    stop: int,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (arrays, facts) of samples [start, stop), in batches aligned to the sample index.

    `labels` int64 [N] are those of the whole cell. Arrays are `<judge>.<name>` [stop - start, ...] and `thumbnails`
    uint8 [n, 3, h, w]. Raises CellFailure when the adapter raises or returns a wrong shape, dtype or value.
    """
    parts: dict[str, list[np.ndarray]] = {}
    thumbnails: list[np.ndarray] = []
    facts = {"start": start, "stop": stop, "batch_size": cell.batch_size, "judge_seconds": 0.0}
    sample_seconds = timed_seconds = 0.0
    timed_samples = peak = 0
    meter = Meter(adapter)
    warm = getattr(adapter, "warmed_up", None)
    with meter.installed():
        for first in range(start, stop, cell.batch_size):
            last = min(first + cell.batch_size, stop)
            batch_labels = torch.from_numpy(labels[first:last])
            memory = PeakMemory(adapter)
            began = clock(adapter.device)
            images = _checked_sample(cell, adapter, batch_labels, first, last, protocol.resolution)
            seconds = clock(adapter.device) - began
            sample_seconds += seconds
            peak = max(peak, memory.read())
            if warm == (cell.cell_id, last - first):
                timed_seconds, timed_samples = timed_seconds + seconds, timed_samples + last - first
            warm = (cell.cell_id, last - first)
            began = clock(adapter.device)
            pixels = quantise(images, protocol.quantise, protocol.levels)
            for name, values in judge_batch(judges, pixels, batch_labels.to(pixels.device)).items():
                parts.setdefault(name, []).append(values)
            facts["judge_seconds"] += clock(adapter.device) - began
            if first < protocol.thumbnails:
                kept = pixels[: protocol.thumbnails - first].cpu()
                thumbnails.append(shrink(kept).numpy())
    adapter.warmed_up = warm  # type: ignore[attr-defined]
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    if thumbnails:
        arrays["thumbnails"] = np.concatenate(thumbnails)
    facts |= {
        "network_rows": meter.rows,
        "guide_rows": meter.guide_rows,
        "decode_seconds": meter.decode_seconds,
        "network_seconds": sample_seconds - meter.decode_seconds,
        "timed_seconds": timed_seconds,
        "timed_samples": timed_samples,
        "peak_memory": peak,
    }
    return arrays, facts


def _checked_sample(cell: Cell, adapter: Adapter, labels: Tensor, first: int, last: int, resolution: int) -> Tensor:
    noise = PhiloxNoise(cell.seed, range(first, last), adapter.device)
    try:
        images = adapter.sample(labels, cell.steps, cell.cfg, noise=noise, **cell.settings)
    except BenchError as error:
        raise CellFailure(str(error)) from error
    except Exception as error:
        raise CellFailure(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    expected = (last - first, 3, resolution, resolution)
    if not isinstance(images, Tensor) or tuple(images.shape) != expected:
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise CellFailure(f"the adapter returned {found}, expected a tensor of shape {expected}")
    if images.dtype != torch.float32:
        raise CellFailure(f"the adapter returned {images.dtype}, expected torch.float32")
    broken = int((~images.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise CellFailure(f"{broken} of samples {first}..{last - 1} hold NaN or infinite values", broken)
    return images


def judge_batch(judges: Mapping[str, Judge], pixels: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """Return what each judge says of uint8 `pixels` [B, 3, H, W], as `<judge>.<name>` [B, ...]: one pass a judge."""
    judged = {name: judge(pixels, labels) for name, judge in judges.items()}
    return {f"{name}.{key}": values.cpu().numpy() for name, said in judged.items() for key, values in said.items()}


def shrink(pixels: Tensor) -> Tensor:
    """Return the images no larger than a thumbnail, by averaging whole squares of pixels."""
    factor = -(-pixels.shape[-1] // THUMBNAIL_SIDE)
    if factor == 1:
        return pixels
    return torch.nn.functional.avg_pool2d(pixels.float(), factor).round().byte()


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
