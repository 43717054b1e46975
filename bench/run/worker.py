"""What a worker does: sample a shard, or measure a finished cell. Loaded networks stay in its process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from bench.contracts.adapter import Adapter
from bench.contracts.precision import full_precision
from bench.judges.base import Judge, judge_specs, load_judge
from bench.judges.threads import fix_threads
from bench.models.loading import build_adapter
from bench.run.containment import no_exit, time_limit
from bench.run.costs import sample_operations
from bench.run.devices import LOST, losses
from bench.run.halves import halves, prove, settled, warn_of_float32, with_strict
from bench.run.plan import Cell
from bench.run.record import Context, cell_record, cost_facts, finish_rows, measure_arrays, model_row, pixel_facts
from bench.run.shard import CellFailure, sample_shard
from bench.weights.cache import cache_directory
from protocols import Protocol
from results.cells import CellDirectory
from results.digests import digest_of
from results.errors import BenchError, one_line, trace
from results.store import now

BATCHES_OF_COSTS = 10
"""What is allowed for the costs of a sample, as so many batches."""
_PASSED_ON: tuple[type[BaseException], ...] = (BenchError, CellFailure, KeyboardInterrupt, *LOST)
_judges: dict[str, Mapping[str, Judge]] = {}
_adapters: dict[tuple[str, ...], Adapter] = {}


def load_judges(protocol: Protocol, device: str) -> Mapping[str, Judge]:
    """Return the protocol's judges on `device`, prompts encoded; loaded once in this process."""
    specs = judge_specs(protocol)
    key = f"{protocol.measurement_digest} {device} {specs}"  # the digest knows paths as stated, not where they lead
    if key not in _judges:
        judges = {}
        for spec in specs:
            judges[spec.name] = load_judge(spec, device=device, root=protocol.path.parent)
            judges[spec.name].prepare(protocol.prompts)
        _judges[key] = judges
    return _judges[key]


def load_cell_adapter(cell: Cell, protocol: Protocol, device: str) -> Adapter:
    """Return the adapter of a cell on `device`, given the protocol's prompts; the last one stays loaded."""
    facts = (cell.weights, cell.weights_sha256, cell.random_weights, cell.compile)
    key = (cell.card.name, *map(str, facts), cell.dtype, device)
    if key not in _adapters:
        _adapters.clear()
        _adapters[key] = build_adapter(
            cell.card, device=device, dtype=cell.dtype, weights=cell.weights, random_weights=cell.random_weights,
            compile=cell.compile,
        )  # fmt: skip
    adapter = _adapters[key]
    if adapter.takes_prompts:
        digest = digest_of([cell.card.name, cell.weights_sha256, cell.dtype, cell.host])
        store = None if cell.random_weights else cache_directory() / "embeddings" / digest[:16]
        adapter.prepare(protocol.single_prompts, store)
    return adapter


def _reporting_losses(task: Callable[..., CellFailure | None]) -> Callable[..., CellFailure | None]:
    """Make a task of (context, cell, ...) end in one line where the device fails."""

    @wraps(task)
    def reporting(context: Context, cell: Cell, *rest: Any) -> CellFailure | None:
        with losses(context.device, cell.label):
            return task(context, cell, *rest)

    return reporting


@_reporting_losses
def sample_task(
    context: Context, cell: Cell, labels: np.ndarray, start: int, stop: int, runs: Path
) -> CellFailure | None:
    """Sample and judge samples [start, stop) and write the shard. Return None, or why the cell failed."""
    fix_threads(context.device)
    judges = load_judges(context.protocol, context.device)
    directory = CellDirectory(runs, cell.cell_id)
    doubted = halves(judges)
    if doubted and start > 0:
        judges, doubted = settled(judges, _proof(directory)), []
    elif doubted:
        judges = with_strict(judges)
    try:
        with adapter_faults(cell):
            adapter = load_cell_adapter(cell, context.protocol, context.device)
        with full_precision():
            arrays, facts = sample_shard(cell, context.protocol, adapter, judges, labels, start, stop, context.timeout)
    except CellFailure as failure:
        return failure
    if doubted:
        part = labels[start:stop]
        arrays, facts["precision"] = prove(
            arrays, lambda said: measure_arrays(context, said, part, judges=doubted), cell.num_samples
        )
        warn_of_float32(cell.label, facts["precision"])
    directory.write_shard(start, stop, arrays, facts)
    return None


def _proof(directory: CellDirectory) -> Mapping[str, Any]:
    """Return what the cell's first shard showed of half-precision judges; the runner has it sampled before others."""
    facts = directory.first_facts() or {}
    found: Mapping[str, Any] = facts.get("precision", {})
    return found


@_reporting_losses
def measure_task(
    context: Context, cell: Cell, labels: np.ndarray, ranges: list[tuple[int, int]], runs: Path, row: Mapping[str, Any]
) -> CellFailure | None:
    """Measure a cell whose shards are all there, write its record and remove the shards. Return None, or why not."""
    fix_threads(context.device)
    directory = CellDirectory(runs, cell.cell_id)
    facts = [directory.shard_facts(start, stop) or {} for start, stop in ranges]
    rows = finish_rows(context, directory, ranges, labels, facts[0].get("precision"))
    cost = cost_facts(facts, cell.num_samples)
    try:
        with adapter_faults(cell), time_limit(BATCHES_OF_COSTS * (context.timeout or 0.0)), full_precision():
            adapter = load_cell_adapter(cell, context.protocol, context.device)
            operations = sample_operations(cell, adapter, labels)
    except CellFailure as failure:
        return failure
    cell_row = {
        **row,
        "status": "done",
        "reason": None,
        **cost,
        "parameters": sum(parameter.numel() for parameter in adapter.network.parameters()),
        "substeps": adapter.substeps(cell.steps, adapter.resolve_settings(cell.steps, cell.sampler, cell.options)),
        "flops": operations and operations.per_sample(cost["nfe"], cost["guide_nfe"]),
        "pixels": pixel_facts(facts, adapter.card.resolution, context.protocol.resolution),
        "finished": now().isoformat(),
    }
    directory.write_result(cell_record(context, cell_row, rows) | {"model": model_row(cell.card)})
    directory.remove_shards()
    return None


@contextmanager
def adapter_faults(cell: Cell) -> Iterator[None]:
    """Turn what an adapter raises outside of a batch into CellFailure; a BenchError says itself what to do."""
    try:
        with no_exit():
            yield
    except _PASSED_ON:
        raise
    except BaseException as error:
        trace(error)
        raise CellFailure(f"{cell.card.family}: {one_line(f'{type(error).__name__}: {error}')}") from error


def idle_task() -> float:
    """Import what the work needs while the parent prepares; returns when ready."""
    import bench.metrics.measure  # noqa: F401

    return time.monotonic()
