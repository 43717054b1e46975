"""How fast an architecture samples, on random weights: no judge, no reference and no checkpoint is needed.

Rows are cells of protocol SPEED, one for each setting and batch size: never ranked, kept and merged like all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard
from bench.contracts.precision import full_precision
from bench.judges.threads import fixed_threads
from bench.models.cards import find_card, sampled_card
from bench.models.loading import build_adapter
from bench.models.meter import Meter, PeakMemory
from bench.models.timing import matrix_peak
from bench.run.costs import sample_operations
from bench.run.plan import Cell
from bench.run.provenance import run_record
from bench.run.record import model_row
from bench.run.timing import sampling, timed_facts
from results.cells import CellDirectory, run_lock
from results.database import now
from results.errors import BenchError, one_line
from results.index import index_cells
from results.leaderboard import SPEED
from results.store import connect, finish_runs


@dataclass(frozen=True)
class SpeedRequest:
    """What to time.

    Attributes:
        models: names of cards.
        steps: step counts; empty for each model's natural one.
        cfg: guidance scales; empty for each model's natural one.
        batches: images per batch; each is a row.
        device: where.
        dtype: of the network.
        compile: whether torch.compile prepares it.
        options: sampler settings.
        seconds: how long the repetitions of one row may take.
    """

    models: Sequence[str]
    steps: Sequence[int] = ()
    cfg: Sequence[float] = ()
    batches: Sequence[int] = (1, 8)
    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 5.0


def measure_speed(request: SpeedRequest, runs: Path, arguments: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Time each setting of a request, and yield its row of `cells` once it is stored under `runs`.

    A setting that the model does not take, or that does not fit into memory, is a row that says so. Raises BenchError
    for unknown models before anything is timed.
    """
    cards = [find_card(name) for name in request.models]
    with fixed_threads(request.device):
        run = run_record(arguments, request.device, torch.get_num_threads())
        peak = matrix_peak(torch.device(request.device), request.dtype)
        for asked in cards:
            loaded: dict[str, Adapter] = {}
            for steps in request.steps or (asked.natural_steps,):
                card = sampled_card(asked, steps)
                if card.name not in loaded:
                    loaded = {card.name: _adapter(card, request)}
                for cfg in request.cfg or (card.guidance.natural,):
                    for batch in request.batches:
                        cell = _cell(asked.name, card, loaded[card.name], steps, cfg, batch, request, run["device"])
                        row = _row(cell, run, peak) | _measured(cell, loaded[card.name], request.seconds, peak)
                        _store(runs, cell, row, run)
                        yield row


def _adapter(card: ModelCard, request: SpeedRequest) -> Adapter:
    try:
        return build_adapter(
            card, device=request.device, dtype=request.dtype, random_weights=True, compile=request.compile
        )
    except torch.OutOfMemoryError as error:
        raise BenchError(f"{card.name}: its weights do not fit on {request.device}; try --dtype bfloat16") from error


def _cell(
    name: str, card: ModelCard, adapter: Adapter, steps: int, cfg: float, batch: int, request: SpeedRequest, where: str
) -> Cell:
    settings = adapter.resolve_settings(steps, "native", request.options)
    return Cell(
        model=name, card=card, steps=steps, cfg=cfg, sampler="native", settings=dict(settings),
        options=dict(request.options), dtype=request.dtype, seed=0, num_samples=batch, batch_size=batch,
        random_weights=True, weights=None, weights_sha256=None, judged_under=f"{SPEED} {where}",
        unsupported=adapter.unsupported(steps, cfg, settings), compile=request.compile,
    )  # fmt: skip


def _measured(cell: Cell, adapter: Adapter, seconds: float, peak: float) -> dict[str, Any]:
    if cell.unsupported is not None:
        return {"status": "unsupported", "reason": cell.unsupported}
    labels = np.arange(cell.batch_size, dtype=np.int64) % max(adapter.num_classes, 1)
    batch = sampling(cell, adapter, labels)
    meter = Meter(adapter)
    try:
        with full_precision():
            operations = sample_operations(cell, adapter, labels)
            memory = PeakMemory(adapter)
            with meter.installed():
                batch()
            on_card = memory.read()
            facts = timed_facts(cell, adapter, labels, seconds)
    except torch.OutOfMemoryError:
        if adapter.device.type == "cuda":
            torch.cuda.empty_cache()
        return {"status": "failed", "reason": f"a batch of {cell.batch_size} does not fit into memory"}
    except BenchError:
        raise
    except Exception as error:
        return {"status": "failed", "reason": one_line(f"{type(error).__name__}: {error}")}
    nfe, guide = meter.rows / cell.batch_size, meter.guide_rows / cell.batch_size or None
    facts["timing"]["matrix_peak"] = peak
    return {
        "nfe": nfe,
        "guide_nfe": guide,
        "flops": operations and operations.per_sample(nfe, guide),
        "parameters": sum(parameter.numel() for parameter in adapter.network.parameters()),
        **({"peak_memory": on_card} if on_card else {}),
        **facts,
    }


def _row(cell: Cell, run: Mapping[str, Any], peak: float) -> dict[str, Any]:
    moment = now().isoformat()
    words = f"bench speed {cell.model} --steps {cell.steps} --cfg {cell.cfg:g} --batch-size {cell.batch_size}"
    return {
        "cell_id": cell.cell_id, "run_id": run["run_id"], "model": cell.model, "checkpoint": cell.card.name,
        "family": cell.card.family, "protocol": SPEED, "protocol_digest": SPEED, "ranking": SPEED,
        "measurement": SPEED, "status": "done", "reason": None, "steps": cell.steps, "cfg": cell.cfg,
        "sampler": cell.sampler, "settings": dict(cell.settings),
        "options": {**cell.options, **({"compile": True} if cell.compile else {})}, "dtype": cell.dtype, "seed": 0,
        "num_samples": cell.num_samples, "batch_size": cell.batch_size,
        "off_regime": cell.card.off_regime(cell.steps), "random_weights": True, "weights_sha256": None, "failures": 0,
        "device": run["device"], "latent_shape": "x".join(map(str, cell.card.latent_shape)),
        "command": f"{words} --dtype {cell.dtype}" + " --compile" * cell.compile, "started": moment,
        "finished": moment,
    }  # fmt: skip


def _store(runs: Path, cell: Cell, row: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Keep a row as a cell of its own; while a run is at work there, it stays a file that the next index takes in."""
    directory = CellDirectory(runs, cell.cell_id)
    with run_lock(runs):
        directory.write_result({"cell": dict(row), "run": dict(run), "model": model_row(cell.card)})
        index_cells(runs / "bench.duckdb", [directory])
        with connect(runs / "bench.duckdb", write=True, retry=True) as connection:
            finish_runs(connection, now().isoformat(), run["run_id"])
