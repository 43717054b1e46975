"""One shard: an adapter's samples, quantised, judged once, counted and timed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from bench.contracts.adapter import Adapter
from bench.contracts.noise import PhiloxNoise
from bench.judges.base import Judge
from bench.judges.pixels.resize import NATIVE_RESIZE, resize
from bench.judges.pixels.sanity import Pixels
from bench.models.meter import Meter, PeakMemory, clock
from bench.run.containment import TimedOut, contained, time_limit
from bench.run.devices import LOST
from bench.run.plan import Cell
from bench.run.quantise import quantise
from protocols import Protocol
from results.errors import BenchError, BenchWarning, trace

THUMBNAIL_SIDE = 96
SHARD_SAMPLES = 500
"""Samples of a shard, rounded to whole batches: what a kill at any moment can lose."""
SHARD_FACTS = (
    "network_rows", "guide_rows", "decode_seconds", "network_seconds", "judge_seconds", "timed_seconds",
    "timed_samples", "peak_memory",
)  # fmt: skip
"""Numbers that every shard states beside its arrays."""
_WARM: WeakKeyDictionary[Adapter, tuple[str, int]] = WeakKeyDictionary()
"""The cell and batch size that each adapter sampled last: only a repetition is timed, the first one compiles and
allocates."""

_FITTING: WeakKeyDictionary[Adapter, int] = WeakKeyDictionary()
"""The largest batch that memory takes, of adapters for which a whole one was too large."""
_PASSED_ON: tuple[type[BaseException], ...] = (KeyboardInterrupt, torch.OutOfMemoryError, *LOST)
"""What an adapter may raise that is no fault of its own."""


Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Arrays by name: dtype as safetensors writes it, and shape."""


class CellFailure(Exception):
    """The adapter broke its contract on this cell; the other cells go on."""

    def __init__(self, reason: str, failures: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.failures = failures

    def __reduce__(self) -> tuple[Any, ...]:
        return CellFailure, (self.reason, self.failures)


def shard_ranges(num_samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Return the (start, stop) of every shard: whole batches, about SHARD_SAMPLES samples each."""
    size = max(1, SHARD_SAMPLES // batch_size) * batch_size
    return [(start, min(start + size, num_samples)) for start in range(0, num_samples, size)]


def sample_shard(
    cell: Cell,
    protocol: Protocol,
    adapter: Adapter,
    judges: Mapping[str, Judge],
    labels: np.ndarray,
    start: int,
    stop: int,
    timeout: float | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (arrays, facts) of samples [start, stop), in batches aligned to the sample index.

    `labels` int64 [N] are those of the whole cell. Arrays are `<judge>.<name>` [stop - start, ...] and `thumbnails`
    uint8 [n, 3, h, w]; `timeout` limits each batch, in seconds. Raises CellFailure when the adapter raises, ends, takes
    longer, replaces functions of others, or returns a wrong shape, dtype or value.
    """
    parts: dict[str, list[np.ndarray]] = {}
    thumbnails: list[np.ndarray] = []
    facts: dict[str, Any] = {"start": start, "stop": stop, "batch_size": cell.batch_size, "judge_seconds": 0.0}
    sample_seconds = timed_seconds = 0.0
    timed_samples = peak = 0
    seen = Pixels()
    meter = Meter(adapter)
    warm = _WARM.get(adapter)
    with meter.installed():
        for first in range(start, stop, cell.batch_size):
            last = min(first + cell.batch_size, stop)
            batch_labels = torch.from_numpy(labels[first:last])
            memory = PeakMemory(adapter)
            began = clock(adapter.device)
            images = _sampled(cell, adapter, meter, batch_labels, first, last, timeout)
            seconds = clock(adapter.device) - began
            sample_seconds += seconds
            peak = max(peak, memory.read())
            if warm == (cell.cell_id, last - first):
                timed_seconds, timed_samples = timed_seconds + seconds, timed_samples + last - first
            warm = _WARM[adapter] = (cell.cell_id, last - first)
            began = clock(adapter.device)
            native, pixels = judged_pixels(images, protocol)
            for name, values in judge_batch(judges, pixels, batch_labels, native).items():
                parts.setdefault(name, []).append(values)
            facts["judge_seconds"] += clock(adapter.device) - began
            seen.add(pixels.cpu().numpy())
            if first < protocol.thumbnails:
                kept = pixels[: protocol.thumbnails - first].cpu()
                thumbnails.append(shrink(kept).numpy())
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
        "pixels": seen.state(),
        "cut_prompts": {prompt: dict(lost) for prompt, lost in adapter.cut_prompts().items()},
    }
    return arrays, facts


def fitting(adapter: Adapter, batch_size: int) -> int:
    """Return how many images at once memory takes of `batch_size`, as far as sampling in this process has shown."""
    return min(_FITTING.get(adapter, batch_size), batch_size)


def _sampled(
    cell: Cell,
    adapter: Adapter,
    meter: Meter,
    labels: Tensor,
    first: int,
    last: int,
    timeout: float | None,
) -> Tensor:
    """Sample [first, last) in parts that memory takes: halved until one fits, which is kept for the adapter."""
    parts: list[Tensor] = []
    start, short = first, False
    while start < last:
        stop = min(start + fitting(adapter, last - first), last)
        before = meter.state()
        try:
            part = labels[start - first : stop - first]
            parts.append(checked_sample(cell, adapter, part, range(start, stop), timeout))
        except torch.OutOfMemoryError as error:
            if stop - start == 1:
                reason = f"{adapter.device} has too little memory for one image; try --dtype bfloat16"
                raise CellFailure(reason) from error
            meter.restore(before)
            short, _FITTING[adapter] = True, (stop - start + 1) // 2
        else:
            start = stop
            continue
        if adapter.device.type == "cuda":
            torch.cuda.empty_cache()  # only now: the error held on to what was allocated
    if short:
        line = (
            f"{cell.label}: too little memory for batches of {last - first}; sampled {_FITTING[adapter]} at once, "
            "the same samples"
        )
        warnings.warn(line, BenchWarning, stacklevel=2)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def judged_pixels(images: Tensor, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Return sampled images [B, 3, H, W] in 8 bits, as they are and at the protocol's resolution: what judges read."""
    native = quantise(images, protocol.quantise, protocol.levels)
    same = native.shape[-1] == protocol.resolution
    return native, native if same else resize(native, protocol.resolution, NATIVE_RESIZE)


def checked_sample(
    cell: Cell, adapter: Adapter, labels: Tensor, indices: Sequence[int], timeout: float | None = None
) -> Tensor:
    """Return the samples `indices` of a cell, asked for with `labels` int64 [B]: float32 [B, 3, H, W], the card's size.

    Raises CellFailure as `sample_shard` does.
    """
    first, last = indices[0], indices[-1] + 1
    noise = PhiloxNoise(cell.seed, indices, adapter.device)
    try:
        with contained() as changes, time_limit(timeout):
            images = adapter.sample(adapter.own_labels(labels), cell.steps, cell.cfg, noise=noise, **cell.settings)
    except BenchError as error:
        raise CellFailure(str(error)) from error
    except _PASSED_ON:
        raise
    except TimedOut as error:
        raise CellFailure(f"samples {first}..{last - 1}: {error}") from error
    except BaseException as error:  # sys.exit() and the like: an adapter may break, never end the run
        trace(error)
        raise CellFailure(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    if changes.patched:
        raise CellFailure(f"the adapter replaced {', '.join(changes.patched)}; an adapter must not change global state")
    if changes.settings:
        line = f"{cell.label}: the adapter changed {', '.join(changes.settings)}; restored, but fix the adapter"
        warnings.warn(line, BenchWarning, stacklevel=2)
    expected = (len(indices), 3, cell.card.resolution, cell.card.resolution)
    if not isinstance(images, Tensor) or tuple(images.shape) != expected:
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise CellFailure(f"the adapter returned {found}, expected a tensor of shape {expected}")
    if images.dtype != torch.float32:
        raise CellFailure(f"the adapter returned {images.dtype}, expected torch.float32")
    broken = int((~images.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise CellFailure(f"{broken} of samples {first}..{last - 1} contain NaN or infinite values", broken)
    return images


def judge_batch(
    judges: Mapping[str, Judge], pixels: Tensor, labels: Tensor, native: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Return what each judge says of uint8 `pixels` [B, 3, H, W], as `<judge>.<name>` [B, ...]: one pass a judge.

    `native` are the same images at the size at which they were sampled, for judges that read that.
    """
    drawn = pixels if native is None else native
    judged = {name: judge(drawn if judge.reads_native else pixels, labels) for name, judge in judges.items()}
    return hosted({f"{name}.{key}": values for name, said in judged.items() for key, values in said.items()})


def hosted(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return tensors as arrays on the host: those of an accelerator all queued at once, which is waited for once."""
    host = {
        name: torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
        if values.is_cuda
        else values
        for name, values in tensors.items()
    }
    for device in {values.device for values in tensors.values() if values.is_cuda}:
        torch.cuda.synchronize(device)
    # Pinned memory is scarce, and a shard is kept longer than a batch.
    return {
        name: host[name].numpy().copy() if values.is_cuda else host[name].numpy() for name, values in tensors.items()
    }


def judged_layout(judges: Mapping[str, Judge], protocol: Protocol) -> Layout:
    """Return what the judges say of one image, a black one of class 0: what a shard must hold, row by row."""
    device = next(iter(judges.values())).device if judges else torch.device("cpu")
    pixels = torch.zeros(1, 3, protocol.resolution, protocol.resolution, dtype=torch.uint8, device=device)
    said = judge_batch(judges, pixels, torch.zeros(1, dtype=torch.int64, device=device))
    types = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64", np.dtype(np.int64): "I64"}
    return {name: (types.get(values.dtype, str(values.dtype)), values.shape) for name, values in said.items()}


def shrink(pixels: Tensor) -> Tensor:
    """Return the images no larger than a thumbnail, by averaging whole squares of pixels."""
    factor = -(-pixels.shape[-1] // THUMBNAIL_SIDE)
    if factor == 1:
        return pixels
    return torch.nn.functional.avg_pool2d(pixels.float(), factor).round().byte()
