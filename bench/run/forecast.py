"""What a run costs before it is started: accelerator time by cell, bytes to fetch and to keep, and how long it takes.

Time comes from rates that rows in the database measured on the same device, else from operations counted on networks
without memory and a stated peak. Whatever is assumed is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.judges.base import judge_cost, judge_specs
from bench.judges.costs import JudgeCost
from bench.metrics.registry import fact_of
from bench.models.files import model_files
from bench.models.timing import PATIENCE
from bench.run.needs import Needs
from bench.run.plan import Cell, Request
from bench.run.preview import Planned, Preview
from bench.run.provenance import device_name
from bench.run.rates import Rates, read_rates
from bench.run.shard import THUMBNAIL_SIDE, shard_ranges
from bench.run.simulate import Job, Simulated, simulate
from bench.run.timing import LEAST_SECONDS, SHARE
from bench.weights.cache import FileCache, cache_directory
from bench.weights.file import NeededFile
from results.cells import CellDirectory
from results.evidence import NAME as EVIDENCE
from results.evidence import PARTS, RANK, SKETCH
from results.files import free_bytes
from results.timing import FEWEST

PEAKS: Mapping[str, Mapping[str, float]] = {
    "cuda": {"float32": 67e12, "bfloat16": 989e12, "float16": 989e12},
    "cpu": {"float32": 90e9, "bfloat16": 90e9, "float16": 90e9},
}
"""Floating-point operations a second where none is stated: the data sheet of an H100 SXM, and products by one core of a
server, as docs/speed.md has them."""
UTILISATION = {"cuda": 0.25, "cpu": 0.8}
"""Share of the peak that sampling and judging reach where nothing was measured; docs/speed.md has measured shares."""
READ_BYTES = 1e9
"""Bytes of weights that are read and moved to the device in a second."""
START_SECONDS = {"cuda": 60.0, "cpu": 10.0}
"""Until a worker has imported everything and loaded the judges."""
MEASURE_SECONDS, MEASURE_SECONDS_A_SAMPLE = 2.0, 1.5e-3
"""What the metrics of a cell take once all its samples are judged."""
BYTES_OF_RESULT, BYTES_OF_CLASS, BYTES_OF_PIXEL = 20_000, 250, 2
"""What a record takes, with the values of each class, and each pixel of a thumbnail in it."""


@dataclass(frozen=True)
class Hardware:
    """What a plan is for.

    Attributes:
        name: part of the name of a device in the database, whose measured rates are taken; None: this machine's.
        peak: floating-point operations a second of one accelerator; None: by dtype, from PEAKS.
        utilisation: the share of it that is reached; None: by kind of device, from UTILISATION.
        read_bytes: bytes of weights read a second.
    """

    name: str | None = None
    peak: float | None = None
    utilisation: float | None = None
    read_bytes: float = READ_BYTES

    def share(self, kind: str) -> float:
        """Return the share of the peak that a `cuda` or `cpu` device reaches."""
        return self.utilisation or UTILISATION[kind]


class CellCost(NamedTuple):
    """What one cell costs.

    Attributes:
        planned: the cell.
        flops: operations of sampling one image; None where nobody can count them beforehand.
        image: seconds of sampling one image; None where neither a rate nor operations are known.
        judging: seconds of judging one image.
        how: where `image` comes from: `measured`, `scaled` from another setting, `operations`, or `unknown`.
        job: the cell as it is simulated; None where `image` is.
    """

    planned: Planned
    flops: float | None
    image: float | None
    judging: float
    how: str
    job: Job | None

    @property
    def seconds(self) -> float | None:
        """Accelerator-seconds of what is missing of the cell, loads left out; None where they are not known."""
        if self.job is None:
            return None
        samples = sum(stop - start for start, stop in self.job.missing)
        return samples * self.job.image + self.job.measure + self.job.timing


class Bytes(NamedTuple):
    """Bytes that a plan downloads or keeps.

    Attributes:
        download: of files that a client can fetch and whose size is known.
        unsized: files to fetch of unknown size.
        by_hand: files that only a person can get.
        arrays: the judges' outputs of every sample, kept beside each cell.
        evidence: what an audit needs.
        results: records with their thumbnails; images themselves are not kept.
        free: what is free where the runs directory lies.
    """

    download: int
    unsized: int
    by_hand: int
    arrays: int
    evidence: int
    results: int
    free: int

    @property
    def kept(self) -> int:
        """All that stays on the disk of the runs directory."""
        return self.arrays + self.evidence + self.results


@dataclass(frozen=True)
class Forecast:
    """The costs of a plan.

    Attributes:
        cells: those to measure, in the order of the plan; finished and unsupported ones cost nothing.
        bytes: of the disk and the network.
        device: what the times are for.
        assumed: what was assumed, one line each.
        uncounted: judges of which neither time nor size is known.
        start: seconds until a worker has loaded the judges.
        proving: whether half-precision judges prove themselves on the first shard of each cell.
    """

    cells: tuple[CellCost, ...]
    bytes: Bytes
    device: str
    assumed: tuple[str, ...]
    uncounted: tuple[str, ...] = ()
    start: float = 0.0
    proving: bool = False
    own: bool = False
    """Whether each worker has an accelerator of its own."""

    @property
    def seconds(self) -> float:
        """Accelerator-seconds of all cells whose time is known."""
        return sum(cost.seconds or 0.0 for cost in self.cells)

    @property
    def unknown(self) -> int:
        """Cells whose time is not known."""
        return sum(cost.job is None for cost in self.cells)

    @property
    def samples(self) -> int:
        """Images to sample."""
        return sum(cost.planned.cell.num_samples for cost in self.cells)

    def on(self, workers: int, seed: int = 0) -> Simulated:
        """Return the simulated run on so many workers, each with an accelerator of its own."""
        jobs = [cost.job for cost in self.cells if cost.job is not None]
        return simulate(jobs, workers, seed=seed, start=self.start, proving=self.proving, abreast=self.own)


def forecast(
    requests: Sequence[Request], seen: Preview, runs: Path, hardware: Hardware = Hardware(), *, fresh: bool = False
) -> Forecast:
    """Return what `requests` cost, given their preview and the rows measured under `runs`; `fresh` measures all."""
    device = requests[0].device
    kind = "cuda" if device.startswith("cuda") else "cpu"
    name = hardware.name or _device_name(device)
    rates = read_rates(runs / "bench.duckdb", name)
    ahead = [entry for entry in seen.cells if entry.ahead or (fresh and entry.cell.unsupported is None)]
    judged = {
        id(request.protocol): _Judging(request, kind, hardware, rates, _kept(seen, request, runs))
        for request in requests
    }
    weights = {entry.cell.card.name: _weights_bytes(entry.cell) for entry in ahead}
    costs = []
    for entry in ahead:
        judging = judged[id(entry.request.protocol)]
        costs.append(_cost(entry, judging, weights[entry.cell.card.name], kind, hardware, rates))
    uncounted = tuple(dict.fromkeys(found for judging in judged.values() for found in judging.uncounted))
    kinds = Counter(cost.how for cost in costs)
    estimated = any(judging.seconds is None and judging.costs for judging in judged.values())
    return Forecast(
        cells=tuple(costs),
        bytes=_bytes(ahead, judged, seen.lacking, runs),
        device=name,
        assumed=tuple(_assumed(kinds, rates, requests, kind, hardware, estimated)),
        uncounted=uncounted,
        start=START_SECONDS[kind],
        proving=any(judging.half for judging in judged.values()) and kind == "cuda",
        own=kind == "cuda",
    )


def _device_name(device: str) -> str:
    import torch

    return device_name(device) if not device.startswith("cuda") or torch.cuda.is_available() else "accelerator"


class _Judging:
    """What the judges of a request cost an image."""

    def __init__(
        self, request: Request, kind: str, hardware: Hardware, rates: Rates, kept: tuple[float, float] | None
    ) -> None:
        self.kept = kept
        """Bytes of arrays and of evidence that a sample of a finished row takes; None where there is none here."""
        specs = judge_specs(request.protocol)
        self.costs: list[tuple[JudgeCost, bool]] = []
        self.uncounted: list[str] = []
        for spec in specs:
            cost = judge_cost(spec)
            if cost is None:
                self.uncounted.append(spec.name)
            else:
                self.costs.append((cost, spec.options.get("precision") == "half"))
        self.half = any(spec.options.get("precision") == "half" for spec in specs)
        self.seconds = rates.judging.get(request.protocol.measurement_digest)
        if self.seconds is not None:
            self.uncounted = []
        self.estimate = judging_seconds(self.costs, kind, hardware)

    @property
    def image(self) -> float:
        return self.estimate if self.seconds is None else self.seconds


def _kept(seen: Preview, request: Request, runs: Path) -> tuple[float, float] | None:
    for entry in seen.cells:
        if entry.request is request and entry.state == "done" and entry.cell_id is not None:
            folder, n = CellDirectory(runs, entry.cell_id).path, entry.cell.num_samples
            arrays = [path.stat().st_size for path in folder.glob("*.npy")]
            evidence = folder / EVIDENCE
            if arrays and evidence.is_file():
                return sum(arrays) / n, evidence.stat().st_size / n
    return None


def judging_seconds(costs: Iterable[tuple[JudgeCost, bool]], kind: str, hardware: Hardware) -> float:
    """Return the seconds that judges take for an image on a `cuda` or `cpu` device; each with whether it is in half."""
    return sum(
        cost.operations / (_peak(kind, "float16" if half else "float32", hardware) * hardware.share(kind))
        for cost, half in costs
    )


def _peak(kind: str, dtype: str, hardware: Hardware) -> float:
    return hardware.peak or PEAKS[kind].get(dtype, PEAKS[kind]["float32"])


def _cost(entry: Planned, judging: _Judging, weights: int, kind: str, hardware: Hardware, rates: Rates) -> CellCost:
    cell = entry.cell
    flops = None
    if entry.operations is not None and entry.evaluations is not None:
        flops = entry.operations.per_sample(entry.evaluations.nfe, entry.evaluations.guide_nfe)
    image, how = rates.image(cell, flops)
    if image is None and flops:
        image, how = flops / (_peak(kind, cell.dtype, hardware) * hardware.share(kind)), "operations"
    if image is None:
        return CellCost(entry, flops, None, judging.image, "unknown", None)
    n = cell.num_samples
    ranges = shard_ranges(n, cell.batch_size)
    job = Job(
        checkpoint=cell.card.name,
        ranges=ranges,
        missing=ranges,
        image=image + judging.image,
        load=weights / hardware.read_bytes,
        measure=MEASURE_SECONDS + MEASURE_SECONDS_A_SAMPLE * n if judging.costs else 0.0,
        timing=timing_seconds(image, n, cell.batch_size),
    )
    return CellCost(entry, flops, image, judging.image, how, job)


def _repeats(allowed: float) -> float:
    """Return how often something is repeated that takes 1 / `allowed` of the time allowed, see `timing.repeated`."""
    return min(2.0 * FEWEST, max(1.0, allowed, min(float(FEWEST), PATIENCE * allowed)))


def timing_seconds(image: float, samples: int, batch_size: int) -> float:
    """Return what timing a cell alone takes: batches and single images until the interval is narrow, or the limit.

    A single image is taken to need an eighth of a batch, or its own time if that is more.
    """
    batch = image * min(batch_size, samples)
    limit = max(LEAST_SECONDS, SHARE * image * samples)
    one = max(image, batch / 8)
    repeats, ones = (_repeats(bound / each if each > 0 else 1.0) for bound, each in ((limit, batch), (limit / 2, one)))
    return (1 + repeats) * batch + (1 + ones) * one


def _weights_bytes(cell: Cell) -> int:
    """Return the bytes of all files that loading the cell's model reads."""
    cache = FileCache(cache_directory())
    total = 0
    for file in model_files(cell.card):
        path = file.find(cache)
        total += path.stat().st_size if path is not None and path.is_file() else file.size or 0
    return total or 4 * (cell.card.parameters or 0)


def _bytes(ahead: Sequence[Planned], judged: Mapping[int, _Judging], lacking: Needs, runs: Path) -> Bytes:
    arrays = evidence = results = 0
    for entry in ahead:
        protocol, n = entry.request.protocol, entry.cell.num_samples
        judging = judged[id(protocol)]
        if judging.kept is not None:
            arrays += round(judging.kept[0] * n)
            evidence += round(judging.kept[1] * n)
        else:
            for cost, _ in judging.costs:
                arrays += 4 * cost.numbers * n
                evidence += 2 * n if cost.numbers == 1 else SKETCH * n + 4 * RANK * min(cost.numbers, 2048)
            # As if a reference had as many images as the row has samples.
            parts = (part for metric in protocol.metrics for part in fact_of(metric).counted_from)
            evidence += sum(np.dtype(PARTS[part][0]).itemsize for part in parts) * n
        side = min(THUMBNAIL_SIDE, protocol.resolution)
        pictures = min(protocol.thumbnails, n) * side**2 * BYTES_OF_PIXEL
        results += BYTES_OF_RESULT + BYTES_OF_CLASS * len(protocol.class_names) + pictures
    fetchable: Sequence[NeededFile] = lacking.fetchable()
    return Bytes(
        download=sum(file.size or 0 for file in fetchable),
        unsized=sum(file.size is None for file in fetchable),
        by_hand=len(lacking.files) - len(fetchable),
        arrays=arrays,
        evidence=evidence,
        results=results,
        free=free_bytes(runs),
    )


def _assumed(
    kinds: Mapping[str, int], rates: Rates, requests: Sequence[Request], kind: str, hardware: Hardware, judges: bool
) -> list[str]:
    lines = []
    if kinds.get("measured") or kinds.get("scaled"):
        lines.append(f"rates of {rates.rows} rows measured on {rates.device}")
    if kinds.get("operations") or judges:
        lines.append(assumed_peaks(kind, [request.dtype for request in requests], hardware))
    lines.append(
        f"weights read at {hardware.read_bytes / 1e9:g} GB/s; {START_SECONDS[kind]:g} s until a worker is ready"
    )
    return lines


def assumed_peaks(kind: str, dtypes: Sequence[str], hardware: Hardware) -> str:
    """Say by which peak operations become seconds."""
    peaks = ", ".join(f"{_peak(kind, dtype, hardware) / 1e12:g} TFLOP/s in {dtype}" for dtype in dict.fromkeys(dtypes))
    stated = "" if hardware.peak else " (H100 SXM data sheet)" if kind == "cuda" else " (one core)"
    return f"a peak of {peaks}{stated}, of which {hardware.share(kind):.0%} is reached"


def as_json_table(found: Forecast, runs_on: Sequence[Simulated]) -> dict[str, Any]:
    """Return the forecast as JSON has it: seconds, bytes and operations as plain numbers."""
    return {
        "device": found.device,
        "cells": [
            {
                "model": cost.planned.cell.model,
                "checkpoint": cost.planned.cell.card.name,
                "protocol": cost.planned.request.protocol.name,
                "steps": cost.planned.cell.steps,
                "cfg": cost.planned.cell.cfg,
                "seed": cost.planned.cell.seed,
                "num_samples": cost.planned.cell.num_samples,
                "nfe": cost.planned.evaluations and cost.planned.evaluations.nfe,
                "flops": cost.flops,
                "seconds_an_image": cost.image,
                "judging_seconds_an_image": cost.judging,
                "accelerator_seconds": cost.seconds,
                "how": cost.how,
            }
            for cost in found.cells
        ],
        "accelerator_seconds": found.seconds,
        "samples": found.samples,
        "cells_of_unknown_time": found.unknown,
        "judges_not_counted": list(found.uncounted),
        "bytes": {**found.bytes._asdict(), "kept": found.bytes.kept},
        "schedules": [{**one._asdict(), "ratio": one.ratio} for one in runs_on],
        "assumed": list(found.assumed),
    }
