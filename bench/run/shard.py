"""One shard: an adapter's samples, quantised, judged once, counted and timed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from bench.contracts.adapter import Adapter
from bench.contracts.noise import PhiloxNoise
from bench.judges.judge import Judge
from bench.judges.pixels.resize import NATIVE_RESIZE, resize
from bench.judges.pixels.sanity import Pixels
from bench.models.meter import Meter, PeakMemory, Stamp, clock, seconds, stamp
from bench.run.containment import TimedOut, contained, time_limit
from bench.run.devices import LOST
from bench.run.halves import PROOF
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
COST_FACTS = ("parameters", "substeps", "operations")
"""What the first shard of a cell states of its model, so that measuring the cell needs no weights."""
_WARM: WeakKeyDictionary[Adapter, tuple[str, int]] = WeakKeyDictionary()
"""The cell and batch size that each adapter sampled last: only a repetition is timed, the first one compiles and
allocates."""

_FITTING: WeakKeyDictionary[Adapter, int] = WeakKeyDictionary()
"""The largest batch that memory takes, of adapters for which a whole one was too large."""
_PASSED_ON: tuple[type[BaseException], ...] = (KeyboardInterrupt, torch.OutOfMemoryError, *LOST)
"""What an adapter may raise that is no fault of its own."""


BROKEN, PIXELS = "not finite", "pixels"
"""Beside what the judges say of a batch: which samples are not finite, and what the judges read."""
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
    beside: Mapping[str, Judge] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (arrays, facts) of samples [start, stop), in batches aligned to the sample index.

    `labels` int64 [N] are those of the whole cell. Arrays are `<judge>.<name>` [stop - start, ...] and `thumbnails`
    uint8 [n, 3, h, w]; `timeout` limits each batch, in seconds. Judges `beside` the others see the first PROOF samples
    and no more. Raises CellFailure when the adapter raises, ends, takes
    longer, replaces functions of others, or returns a wrong shape, dtype or value.
    """
    facts: dict[str, Any] = {"start": start, "stop": stop, "batch_size": cell.batch_size}
    device = adapter.device
    meter, shard = Meter(adapter), _Shard(protocol)
    warm = _WARM.get(adapter)
    with meter.installed(), _collecting(shard, device) as collect:
        for first in range(start, stop, cell.batch_size):
            last = min(first + cell.batch_size, stop)
            batch_labels = torch.from_numpy(labels[first:last])
            memory = PeakMemory(adapter)
            began = stamp(device)
            images = _sampled(cell, adapter, meter, batch_labels, first, last, timeout)
            sampled, peak = stamp(device), memory.read()
            broken = ~images.isfinite().flatten(1).all(dim=1)
            native, pixels = judged_pixels(images, protocol)
            said = judged_tensors(judges, pixels, batch_labels, native)
            doubted = max(0, PROOF - (first - start))
            if beside and doubted:
                said |= judged_tensors(beside, pixels[:doubted], batch_labels[:doubted], native[:doubted])
            host = Host({**said, BROKEN: broken, PIXELS: pixels})
            del images, native, pixels, said, broken  # the next batch takes their memory
            again = warm == (cell.cell_id, last - first)
            collect(_Batch(first, last, host, (began, sampled, stamp(device)), peak, again))
            warm = _WARM[adapter] = (cell.cell_id, last - first)
    decode_seconds = meter.decode_seconds
    facts |= {
        "judge_seconds": shard.judge_seconds,
        "network_rows": meter.rows,
        "guide_rows": meter.guide_rows,
        "decode_seconds": decode_seconds,
        "network_seconds": shard.sample_seconds - decode_seconds,
        "timed_seconds": shard.timed_seconds,
        "timed_samples": shard.timed_samples,
        "peak_memory": shard.peak,
        "pixels": shard.seen.state(),
        "cut_prompts": {prompt: dict(lost) for prompt, lost in adapter.cut_prompts().items()},
    }
    return shard.arrays(), facts


class Host:
    """Tensors on their way to the host: those of an accelerator are queued at once and waited for once, when read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {
            name: torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            if values.is_cuda
            else values
            for name, values in tensors.items()
        }
        self.there = {values.device: stamp(values.device) for values in tensors.values() if values.is_cuda}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the tensors as arrays; pinned memory is scarce, so that they are in memory of another kind."""
        for event in self.there.values():
            assert isinstance(event, torch.cuda.Event)
            event.synchronize()
        return {name: values.numpy().copy() if self.there else values.numpy() for name, values in self.tensors.items()}


class _Batch(NamedTuple):
    """A batch that was sampled and judged, perhaps not finished yet."""

    first: int
    last: int
    host: Host
    stamps: tuple[Stamp, Stamp, Stamp]
    """Before sampling, after it, after judging."""
    peak: int
    again: bool
    """Whether the batch before was like it, so that its time counts."""


class _Shard:
    """What the batches of a shard come to."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.parts: dict[str, list[np.ndarray]] = {}
        self.thumbnails: list[np.ndarray] = []
        self.seen = Pixels()
        self.sample_seconds = self.judge_seconds = self.timed_seconds = 0.0
        self.timed_samples = self.peak = 0

    def add(self, batch: _Batch) -> None:
        """Wait for a batch and take it in. Raises CellFailure where samples are not finite."""
        arrays = batch.host.arrays()
        broken, pixels = int(arrays.pop(BROKEN).sum()), arrays.pop(PIXELS)
        if broken:
            raise _not_finite(broken, batch.first, batch.last)
        began, sampled, judged = batch.stamps
        passed = seconds(began, sampled)
        self.sample_seconds += passed
        self.judge_seconds += seconds(sampled, judged)
        self.peak = max(self.peak, batch.peak)
        if batch.again:
            self.timed_seconds, self.timed_samples = self.timed_seconds + passed, self.timed_samples + len(pixels)
        for name, values in arrays.items():
            self.parts.setdefault(name, []).append(values)
        self.seen.add(pixels)
        if batch.first < self.protocol.thumbnails:
            kept = torch.from_numpy(pixels[: self.protocol.thumbnails - batch.first])
            self.thumbnails.append(shrink(kept).numpy())

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what the judges say, and thumbnails."""
        arrays = {name: np.concatenate(values) for name, values in self.parts.items()}
        return arrays | ({"thumbnails": np.concatenate(self.thumbnails)} if self.thumbnails else {})


@contextmanager
def _collecting(shard: _Shard, device: torch.device) -> Iterator[Callable[[_Batch], None]]:
    """Give a function that adds a batch to `shard`: beside an accelerator in a thread, while the next one is sampled.

    At most one batch is under way beside the one that is sampled, whose memory is what that one leaves.
    """
    if device.type != "cuda":
        yield shard.add
        return
    with ThreadPoolExecutor(1, thread_name_prefix="shard") as thread:
        under_way: list[Future[None]] = []

        def collect(batch: _Batch) -> None:
            while under_way:
                under_way.pop().result()
            under_way.append(thread.submit(shard.add, batch))

        yield collect
        for future in under_way:
            future.result()


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
            parts.append(_asked(cell, adapter, part, range(start, stop), timeout))
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
    images = _asked(cell, adapter, labels, indices, timeout)
    broken = int((~images.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise _not_finite(broken, indices[0], indices[-1] + 1)
    return images


def _not_finite(broken: int, first: int, last: int) -> CellFailure:
    return CellFailure(f"{broken} of samples {first}..{last - 1} contain NaN or infinite values", broken)


def _asked(cell: Cell, adapter: Adapter, labels: Tensor, indices: Sequence[int], timeout: float | None) -> Tensor:
    """Return the samples as `checked_sample` does, but whether they are finite: that would wait for the device."""
    first, last = indices[0], indices[-1] + 1
    noise = PhiloxNoise(cell.seed, indices, adapter.device)
    try:
        with contained() as changes, time_limit(timeout):
            images = adapter.sample(adapter.own_labels(labels), cell.steps, cell.cfg, noise=noise, **cell.settings)
            if timeout is not None:
                clock(adapter.device)  # what an accelerator still does counts
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
    return images


def judge_batch(
    judges: Mapping[str, Judge], pixels: Tensor, labels: Tensor, native: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Return what each judge says of uint8 `pixels` [B, 3, H, W], as `<judge>.<name>` [B, ...]: one pass a judge.

    `native` are the same images at the size at which they were sampled, for judges that read that.
    """
    return Host(judged_tensors(judges, pixels, labels, native)).arrays()


def judged_tensors(
    judges: Mapping[str, Judge], pixels: Tensor, labels: Tensor, native: Tensor | None = None
) -> dict[str, Tensor]:
    """Return what `judge_batch` does, where the judges leave it."""
    drawn = pixels if native is None else native
    judged = {name: judge(drawn if judge.reads_native else pixels, labels) for name, judge in judges.items()}
    return {f"{name}.{key}": values for name, said in judged.items() for key, values in said.items()}


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
