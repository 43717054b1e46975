"""How surely an audit of 64 samples contradicts a false row and leaves a true one alone, on the digits.

`python benchmarks/audit_power.py` writes the tables of docs/verification.md (about five minutes of one core).

A false row is measured from samples of something else than it claims; what the auditor draws are the claimed ones.
Which 64 indices the auditor takes is uniform, so the probability that more than the allowed number of them moved is
hypergeometric and computed exactly, not simulated.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import hypergeom

from adapters.digits.recipes import RECIPES
from adapters.digits.train import training_data
from bench.contracts.adapter import Adapter
from bench.contracts.precision import full_precision
from bench.judges.threads import fixed_threads
from bench.metrics.registry import fact_of
from bench.references.stored import conditions, prepare_reference
from bench.run.audit import TOLERANCES, allowed_moves, judged_samples, moved_samples
from bench.run.evidence import evidence_of
from bench.run.follows import follow
from bench.run.plan import Cell, Request, make_plan
from bench.run.record import Context, measure_arrays, metric_rows
from bench.run.worker import load_cell_adapter, load_judges
from protocols import find_protocol
from protocols.labels import plan_labels

SAMPLES = 64
REDRAWN = 256
"""Samples of each row that the auditor's 64 are taken from."""
ROWS = (
    ("digits-flow", 4, 1.0), ("digits-flow-small", 4, 1.5), ("digits-ucgm-few", 1, 1.0), ("digits-ucgm-few", 4, 1.0),
    ("digits-consistency", 2, 1.0), ("digits-meanflow", 1, 1.0), ("digits-shortcut", 4, 1.0), ("digits-dmd", 1, 1.0),
)  # fmt: skip
Outputs = Mapping[str, np.ndarray]


class Bench(NamedTuple):
    """What every row shares."""

    context: Context
    judges: Mapping[str, Any]
    found: str

    def cell(self, model: str, steps: int, cfg: float, **more: Any) -> Cell:
        """Return the cell of a setting."""
        request = Request(self.context.protocol, models=(model,), steps=(steps,), cfg=(cfg,), **more)
        return make_plan(request, self.found)[0]

    def draw(self, cell: Cell, adapter: Adapter | None = None, first: int = 0, count: int = REDRAWN) -> Outputs:
        """Return what the judges say of `count` samples from index `first` on, by `adapter` (the cell's)."""
        protocol, total = self.context.protocol, count
        labels = plan_labels(protocol.label_plan, first + total, len(protocol.class_names), seed=cell.seed)
        adapter = adapter or load_cell_adapter(cell, self.context.protocol, "cpu")
        with full_precision():
            return judged_samples(cell, protocol, adapter, self.judges, labels, np.arange(first, first + total))


def main() -> None:
    """Print the tables."""
    protocol = find_protocol("digits")
    with tempfile.TemporaryDirectory() as folder, fixed_threads("cpu"):
        judges = load_judges(protocol, "cpu")
        reference = prepare_reference(protocol, judges, Path(folder))
        context = Context(protocol, reference, {name: judge.digest for name, judge in judges.items()}, {}, "cpu")
        bench = Bench(context, judges, conditions(judges, reference))
        false: dict[str, list[tuple[float, float]]] = {}
        true: dict[str, list[tuple[float, float, float]]] = {}
        edited: dict[str, list[bool]] = {}
        for model, steps, cfg in ROWS:
            cell = bench.cell(model, steps, cfg)
            whole = bench.draw(cell, count=cell.num_samples)
            claimed = {name: values[:REDRAWN] for name, values in whole.items()}
            for words, outputs in _false_rows(bench, cell, claimed):
                false.setdefault(words, []).append(_caught(bench, outputs, claimed))
            for words, outputs in _other_machines(bench, cell):
                true.setdefault(words, []).append((*_caught(bench, claimed, outputs), _moved(bench, claimed, outputs)))
            for words, caught in _edited(bench, cell, whole):
                edited.setdefault(words, []).append(caught)
            moved = {words: max(found[-1]) for words, found in true.items()}
            print(f"{cell.label}: {moved}", file=sys.stderr)
    print(f"Rows: {', '.join(f'{model} {steps} steps cfg {cfg:g}' for model, steps, cfg in ROWS)}.\n")
    print("| false row | contradicted, same device | other device |\n|---|---|---|")
    for words, found in false.items():
        print(f"| {words} | {_least([one for one, _ in found])} | {_least([other for _, other in found])} |")
    print("\n| true row, drawn anew | contradicted, same device | other device | samples outside the tolerance |")
    print("|---|---|---|---|")
    for words, rows in true.items():
        same, other = max(row[0] for row in rows), max(row[1] for row in rows)
        print(f"| {words} | {same:.2g} | {other:.2g} | at most {max(row[2] for row in rows):.2%} |")
    print("\n| edited metric | contradicted |\n|---|---|")
    for words, caught in edited.items():
        print(f"| {words} | {sum(caught)} of {len(caught)} rows |")


def _least(chances: list[float]) -> str:
    return f"{min(chances):.4%}" + ("" if len(chances) == len(ROWS) else f" ({len(chances)} rows)")


def _caught(bench: Bench, stored: Outputs, drawn: Outputs) -> tuple[float, float]:
    """Return the probability of contradicting a row of `stored` samples where `drawn` are its claimed ones.

    By the tolerances of the same device, and of another.
    """
    evidence = evidence_of(bench.context.protocol, stored)
    n = len(drawn["pick.score"])
    chances = []
    for same in (True, False):
        tolerance = TOLERANCES["float32", same]
        moved = int(moved_samples(evidence, drawn, np.arange(n), tolerance).sum())
        chances.append(float(hypergeom.sf(allowed_moves(SAMPLES, tolerance), n, moved, SAMPLES)))
    return chances[0], chances[1]


def _moved(bench: Bench, stored: Outputs, drawn: Outputs) -> float:
    evidence = evidence_of(bench.context.protocol, stored)
    indices = np.arange(len(drawn["pick.score"]))
    return float(moved_samples(evidence, drawn, indices, TOLERANCES["float32", True]).mean())


def _false_rows(bench: Bench, cell: Cell, claimed: Outputs) -> Iterator[tuple[str, Outputs]]:
    adapter = load_cell_adapter(cell, bench.context.protocol, "cpu")
    for share in (0.01, 0.001):
        yield f"weights perturbed by {share:.1%}", bench.draw(cell, _perturbed(adapter, share))
    earlier = _earlier(cell, adapter)
    if earlier is not None:
        yield "another checkpoint of the same training, 2% of its iterations on", bench.draw(cell, earlier)
    if cell.card.guidance.kind != "none":
        for factor in (1.1, 1.01):
            cfg = cell.cfg * factor
            yield f"guidance {factor - 1:.0%} stronger", bench.draw(bench.cell(cell.model, cell.steps, cfg))
    other = bench.cell(cell.model, cell.steps + 1, cell.cfg)
    if other.unsupported is None:
        yield "one step more", bench.draw(other)
    yield "another seed", bench.draw(bench.cell(cell.model, cell.steps, cell.cfg, seed=cell.seed + 1))
    for k in (2, 4):
        yield f"best of {k} samples by PickScore", _best_of(bench, cell, claimed, k)
    picked = {name: values.copy() for name, values in claimed.items()}
    better = _best_of(bench, cell, claimed, 2)
    for name, values in picked.items():
        values[::2] = better[name][::2]
    yield "best of 2 in every other sample", picked


def _perturbed(adapter: Adapter, share: float) -> Adapter:
    """Return the adapter with normal noise on every tensor, of `share` of the tensor's root mean square."""
    other = copy.deepcopy(adapter)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.network.parameters():
            noise = torch.randn(parameter.shape, generator=draws)
            parameter.add_(noise * share * parameter.square().mean().sqrt())
    return other


def _earlier(cell: Cell, adapter: Adapter) -> Adapter | None:
    """Return the adapter with the network trained on by 2% of its recipe; None where it has no recipe."""
    recipe = RECIPES.get(cell.card.name)
    if recipe is None:
        return None
    other = copy.deepcopy(adapter)
    network = recipe.network(7)
    network.load_state_dict(adapter.network.state_dict())
    draws = torch.Generator().manual_seed(1)
    with torch.enable_grad():
        trained = recipe.train(training_data(), network, draws, lambda loss: None, iterations=recipe.iterations // 50)
    other.network.load_state_dict(trained.state_dict())
    return other


def _best_of(bench: Bench, cell: Cell, claimed: Outputs, k: int) -> Outputs:
    """Return, for each index, the one of k samples of its class with the highest PickScore."""
    best = {name: values.copy() for name, values in claimed.items()}
    for turn in range(1, k):
        drawn = bench.draw(cell, first=turn * cell.num_samples)
        better = drawn["pick.score"] > best["pick.score"]
        for name, values in best.items():
            values[better] = drawn[name][better]
    return best


def _other_machines(bench: Bench, cell: Cell) -> Iterator[tuple[str, Outputs]]:
    for size in (1, 7, 256):
        yield (
            f"batch size {size}",
            bench.draw(bench.cell(cell.model, cell.steps, cell.cfg, batch_size=size)),
        )
    for words, changed in (
        ("two threads", _two_threads()),
        ("without oneDNN", _without_onednn()),
        ("rounding of 1e-6 in every module", nullcontext()),
        ("rounding of 1e-5 in every module", nullcontext()),
    ):
        adapter = load_cell_adapter(cell, bench.context.protocol, "cpu")
        with changed, _rounding(adapter, float(words.split()[2]) if "rounding" in words else 0.0):
            yield words, bench.draw(cell, adapter)


@contextmanager
def _two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(1)


@contextmanager
def _without_onednn() -> Iterator[None]:
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True  # type: ignore[assignment]


@contextmanager
def _rounding(adapter: Adapter, size: float) -> Iterator[None]:
    """Multiply what every module of the network returns by 1 + `size` x normal noise: another machine's rounding."""
    draws = torch.Generator().manual_seed(0)

    def rounded(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            return output * (1 + size * torch.randn(output.shape, generator=draws))
        return output

    hooks = [module.register_forward_hook(rounded) for module in adapter.network.modules()] if size else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _edited(bench: Bench, cell: Cell, claimed: Outputs) -> Iterator[tuple[str, bool]]:
    """Yield which metrics, made better by half of their interval or by 2%, whichever is more, the evidence denies."""
    context = bench.context
    labels = plan_labels(
        context.protocol.label_plan, cell.num_samples, len(context.protocol.class_names), seed=cell.seed
    )
    rows = metric_rows(context, measure_arrays(context, claimed, labels))
    evidence = evidence_of(context.protocol, claimed)
    references = context.reference_features()

    def denied(changed: list[dict[str, Any]]) -> bool:
        found = follow(changed, evidence, context.protocol, references, labels)
        return any(finding.verdict == "contradicted" for finding in found)

    yield "none (a true row)", denied(rows)
    for index, row in enumerate(rows):
        half = 0.0 if row["high"] is None else (row["high"] - row["low"]) / 2
        by = max(half, 0.02 * abs(row["value"])) * (1 if fact_of(row["metric"]).better == "higher" else -1)
        alone = row | {"value": row["value"] + by}
        yield f"{row['metric']}, the value alone", denied([*rows[:index], alone, *rows[index + 1 :]])
        whole = dict(alone)
        for key in ("low", "high", "corrected"):
            whole[key] = None if row[key] is None else row[key] + by
        for key in ("jackknife", "jackknife_reference"):
            whole[key] = None if row[key] is None else [value + by for value in row[key]]
        yield f"{row['metric']}, with its interval and block values", denied([*rows[:index], whole, *rows[index + 1 :]])


if __name__ == "__main__":
    main()
