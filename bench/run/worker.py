"""What a worker does: sample a shard, or measure a finished cell. Loaded networks stay in its process."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from bench.contracts.adapter import Adapter
from bench.contracts.precision import full_precision
from bench.judges.base import judge_specs, load_judge
from bench.judges.judge import Judge
from bench.judges.threads import accelerator, fix_threads
from bench.metrics import algebra
from bench.metrics.measure import CellMetrics
from bench.models.loading import build_adapter
from bench.run.containment import no_exit, time_limit
from bench.run.costs import Operations, sample_operations
from bench.run.devices import LOST, losses
from bench.run.halves import halves, prove, settled, strict_beside, strict_judges, warn_of_float32
from bench.run.plan import Cell
from bench.run.provenance import differences, made_by
from bench.run.record import (
    Context,
    cell_record,
    cost_facts,
    finish_rows,
    measure_arrays,
    model_row,
    pixel_facts,
    reduce_reference,
)
from bench.run.shard import CellFailure, sample_shard
from bench.weights.cache import cache_directory
from protocols import Protocol
from results.cells import CellDirectory
from results.database import now
from results.digests import digest_of
from results.errors import BenchError, one_line, trace

T = TypeVar("T")
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


def _reporting_losses(task: Callable[..., T]) -> Callable[..., T]:
    """Make a task of (context, cell, ...) end in one line where the device fails."""

    @wraps(task)
    def reporting(context: Context, cell: Cell, *rest: Any) -> T:
        with losses(context.device, cell.label):
            return task(context, cell, *rest)

    return reporting


class Sampled(NamedTuple):
    """A sampled and judged shard on its way to its file.

    Attributes:
        arrays: as `bench.run.shard.sample_shard` returns them; where half-precision judges are to prove themselves
            also their float32 outputs of the first samples, under `strict:NAME`.
        facts: what is told of the shard.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


@_reporting_losses
def draw_task(
    context: Context, cell: Cell, labels: np.ndarray, start: int, stop: int, proof: Mapping[str, Any]
) -> CellFailure | Sampled:
    """Sample and judge samples [start, stop) and return the shard, or why the cell failed; no file of a run is read.

    `proof` is what the cell's first samples showed of half-precision judges, empty while they have not. Raises
    BenchError where this process has other code or libraries than the one that leads the run, unless it allows that.
    """
    made = made_by()
    if not context.allow_mixed and (other := differences(made, context.made_by)):
        raise BenchError(f"{platform.node()}: {other}; install the same there, or allow it with --allow-mixed")
    fix_threads(context.device)
    judges = load_judges(context.protocol, context.device)
    beside: Mapping[str, Judge] = {}
    if halves(judges):
        proving = start == 0 and not proof
        judges, beside = (judges, strict_beside(judges)) if proving else (settled(judges, proof), {})
    try:
        with adapter_faults(cell):
            adapter = load_cell_adapter(cell, context.protocol, context.device)
        with full_precision():
            arrays, facts = sample_shard(
                cell, context.protocol, adapter, judges, labels, start, stop, context.timeout, beside
            )
        facts["made_by"] = dict(made)
        if start == 0:
            facts["costs"] = _costs(context, cell, adapter, labels)
            facts |= {"precision": dict(proof)} if proof else {}
    except CellFailure as failure:
        return failure
    return Sampled(arrays, facts)


def _costs(context: Context, cell: Cell, adapter: Adapter, labels: np.ndarray) -> dict[str, Any]:
    with adapter_faults(cell), time_limit(BATCHES_OF_COSTS * (context.timeout or 0.0)), full_precision():
        operations = sample_operations(cell, adapter, labels)
        return {
            "parameters": sum(parameter.numel() for parameter in adapter.network.parameters()),
            "substeps": adapter.substeps(cell.steps, adapter.resolve_settings(cell.steps, cell.sampler, cell.options)),
            "operations": operations and list(operations),
        }


def keep_shard(
    context: Context, cell: Cell, labels: np.ndarray, start: int, stop: int, runs: Path, sampled: Sampled
) -> Mapping[str, Any]:
    """Write a shard, after what half-precision judges have to prove on it.

    Return nothing, or the proof with which it is to be drawn again because a judge falls back to float32.
    """
    arrays, facts = sampled
    doubted = strict_judges(arrays)
    if doubted:

        def measured(said: Mapping[str, np.ndarray]) -> CellMetrics:
            count = len(next(iter(said.values())))
            return measure_arrays(context, said, labels[start : start + count], judges=doubted)

        kept, proof = prove(arrays, measured, cell.num_samples)
        warn_of_float32(cell.label, proof)
        if kept is None:
            return proof
        arrays, facts["precision"] = kept, proof
    CellDirectory(runs, cell.cell_id).write_shard(start, stop, arrays, facts)
    return {}


@_reporting_losses
def sample_task(
    context: Context, cell: Cell, labels: np.ndarray, start: int, stop: int, runs: Path
) -> CellFailure | None:
    """Sample and judge samples [start, stop) and write the shard. Return None, or why the cell failed."""
    proof = proof_of(context, cell, runs) if start > 0 else {}
    while True:
        found = draw_task(context, cell, labels, start, stop, proof)
        if isinstance(found, CellFailure):
            return found
        proof = keep_shard(context, cell, labels, start, stop, runs, found)
        if not proof:
            return None


def proof_of(context: Context, cell: Cell, runs: Path) -> Mapping[str, Any]:
    """Return what the cell's first samples showed of half-precision judges, where there are some; the first shard is
    sampled before the others."""
    facts = (CellDirectory(runs, cell.cell_id).first_facts() or {}) if context.halves else {}
    found: Mapping[str, Any] = facts.get("precision", {})
    return found


def measure_task(
    context: Context, cell: Cell, labels: np.ndarray, ranges: list[tuple[int, int]], runs: Path, row: Mapping[str, Any]
) -> None:
    """Measure a cell whose shards are all there, write its record and remove the shards. No weights are needed."""
    fix_threads(context.device)
    directory = CellDirectory(runs, cell.cell_id)
    with losses(context.device, cell.label):
        facts = [directory.shard_facts(start, stop) or {} for start, stop in ranges]
        rows = finish_rows(context, directory, ranges, labels, facts[0].get("precision"))
    cost = cost_facts(facts, cell.num_samples)
    model = facts[0]["costs"]
    counted = model["operations"]
    cell_row = {
        **row,
        "status": "done",
        "reason": None,
        **cost,
        "parameters": model["parameters"],
        "substeps": model["substeps"],
        "flops": counted and Operations(*counted).per_sample(cost["nfe"], cost["guide_nfe"]),
        "pixels": pixel_facts(facts, cell.card.resolution, context.protocol.resolution),
        "finished": now().isoformat(),
    }
    directory.write_result(cell_record(context, cell_row, rows) | {"model": model_row(cell.card)})
    directory.remove_shards()


def beside(device: str, task: Callable[..., T], *about: Any) -> T:
    """Do a task in a thread: its work on an accelerator does not queue behind the sampler's."""
    with algebra.own_stream(torch.device(device)):
        return task(*about)


@contextmanager
def reducing_ahead(context: Context) -> Iterator[None]:
    """Beside an accelerator, have `reduce_reference` done by a thread while the block judges."""
    if accelerator(context.device) is None:
        yield
        return
    with ThreadPoolExecutor(1, thread_name_prefix="reference") as thread:
        thread.submit(beside, context.device, reduce_reference, context)  # what fails here fails, and is said, later
        yield


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
