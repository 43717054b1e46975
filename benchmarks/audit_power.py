"""How surely an audit of 64 samples contradicts a false row and leaves a true one alone, on the digits.

`python benchmarks/audit_power.py` writes the tables of docs/verification.md (about ten minutes of one core).

A false row is measured from samples of something else than it claims; what the auditor draws are the claimed ones.
Which 64 indices the auditor takes is uniform, so the probability that more than the allowed number of them moved is
hypergeometric and computed exactly. What else contradicts a row depends on which samples they are and is counted over
random choices; an upper bound of a share of which none was seen is Clopper and Pearson's of 95%.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from forgeries import Forgery, Rows, forge, half_width, moved
from scipy.stats import beta, hypergeom

from adapters.digits.recipes import RECIPES
from adapters.digits.train import training_data
from bench.contracts.adapter import Adapter
from bench.contracts.precision import full_precision
from bench.judges.threads import fixed_threads
from bench.metrics.records import ReferenceFeatures
from bench.metrics.registry import fact_of
from bench.models.loading import build_adapter
from bench.references.stored import conditions, prepare_reference
from bench.run.audit import TOLERANCES, allowed_moves, judged_samples, moved_samples
from bench.run.evidence import evidence_of
from bench.run.follows import follow
from bench.run.plan import Cell, Request, make_plan
from bench.run.record import Context, measure_arrays, metric_rows
from bench.run.redrawn import Redrawn
from bench.run.worker import load_cell_adapter, load_judges
from protocols import Protocol, find_protocol
from protocols.labels import plan_labels
from results.evidence import Evidence

SAMPLES = 64
REDRAWN = 256
"""Samples of each row that the auditor's 64 are taken from, but where the whole row is."""
TRIES, HALF_TRIES, FORGED_TRIES = 100, 50, 40
"""Choices of 64 for each true row and way of drawing, the same in half precision, and for each forged row."""
SIZES = (1, 3, 10)
"""By how many half widths of its interval a metric is forged."""
ROWS = (
    ("digits-flow", 4, 1.0), ("digits-flow-small", 4, 1.5), ("digits-ucgm-few", 1, 1.0), ("digits-ucgm-few", 4, 1.0),
    ("digits-consistency", 2, 1.0), ("digits-meanflow", 1, 1.0), ("digits-shortcut", 4, 1.0), ("digits-dmd", 1, 1.0),
)  # fmt: skip
Outputs = Mapping[str, np.ndarray]


def power_protocol() -> Protocol:
    """Return the digits protocol with all metrics that its judges allow."""
    protocol = find_protocol("digits")
    return replace(
        protocol,
        metrics=(*protocol.metrics, "density", "coverage", "kid_subsets", "fid_infinity"),
        metric_options={**protocol.metric_options, "kid_subset_size": 500},
    )


class Row(NamedTuple):
    """A measured row."""

    metrics: Rows
    evidence: Evidence
    labels: np.ndarray


class Bench(NamedTuple):
    """What every row shares."""

    context: Context
    judges: Mapping[str, Any]
    found: str
    dtype: str = "float32"

    @property
    def references(self) -> Mapping[str, ReferenceFeatures]:
        """The reference's features."""
        return self.context.reference_features()

    def cell(self, model: str, steps: int, cfg: float, **more: Any) -> Cell:
        """Return the cell of a setting."""
        request = Request(self.context.protocol, models=(model,), steps=(steps,), cfg=(cfg,), dtype=self.dtype, **more)
        return make_plan(request, self.found)[0]

    def draw(self, cell: Cell, adapter: Adapter | None = None, first: int = 0, count: int = REDRAWN) -> Outputs:
        """Return what the judges say of `count` samples from index `first` on, by `adapter` (the cell's)."""
        protocol, total = self.context.protocol, count
        labels = plan_labels(protocol.label_plan, first + total, len(protocol.class_names), seed=cell.seed)
        adapter = adapter or load_cell_adapter(cell, self.context.protocol, "cpu")
        with full_precision():
            return judged_samples(cell, protocol, adapter, self.judges, labels, np.arange(first, first + total))

    def row(self, cell: Cell, outputs: Outputs) -> Row:
        """Return the row that a cell's outputs make."""
        protocol, count = self.context.protocol, len(outputs["pick.score"])
        labels = plan_labels(protocol.label_plan, count, len(protocol.class_names), seed=cell.seed)
        measured = measure_arrays(self.context, outputs, labels)
        return Row(metric_rows(self.context, measured), evidence_of(protocol, outputs, measured.kept), labels)

    def follows(self, row: Row) -> bool:
        """Tell whether a row's metrics follow from its evidence."""
        found = follow(row.metrics, row.evidence, self.context.protocol, self.references, row.labels)
        return all(finding.verdict != "contradicted" for finding in found)

    def redrawn(self, evidence: Evidence, outputs: Outputs, indices: np.ndarray, same: bool) -> tuple[np.ndarray, bool]:
        """Return which samples moved, bool [n], and whether the others deny the evidence."""
        tolerance = TOLERANCES[self.dtype, same]
        redrawn = Redrawn(evidence, self.context.protocol, self.references, outputs, indices, tolerance.size)
        found = moved_samples(evidence, outputs, indices, tolerance) | redrawn.moved()
        return found, bool(redrawn.denied(found))

    def contradicted(self, evidence: Evidence, outputs: Outputs, same: bool, tries: int) -> int:
        """Return how many of so many choices of 64 of the `outputs` (of samples 0, 1, ...) contradict a row."""
        draws = np.random.Generator(np.random.PCG64(0))
        allowed, count = allowed_moves(SAMPLES, TOLERANCES[self.dtype, same]), 0
        for _ in range(tries):
            indices = np.sort(draws.choice(len(outputs["pick.score"]), SAMPLES, replace=False))
            chosen = {name: values[indices] for name, values in outputs.items()}
            other, denied = self.redrawn(evidence, chosen, indices, same)
            count += bool(other.sum() > allowed or denied)
        return count


def main() -> None:
    """Print the tables."""
    protocol = power_protocol()
    false: dict[str, list[tuple[float, float]]] = {}
    true: dict[str, list[tuple[int, int, float]]] = {}
    edited: dict[tuple[str, str], list[bool]] = {}
    forged: dict[tuple[str, str], dict[int, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder, fixed_threads("cpu"):
        judges = load_judges(protocol, "cpu")
        reference = prepare_reference(protocol, judges, Path(folder))
        context = Context(protocol, reference, {name: judge.digest for name, judge in judges.items()}, {}, "cpu")
        bench = Bench(context, judges, conditions(judges, reference))
        for model, steps, cfg in ROWS:
            cell = bench.cell(model, steps, cfg)
            claimed = bench.draw(cell, count=cell.num_samples)
            row = bench.row(cell, claimed)
            some = {name: values[:REDRAWN] for name, values in claimed.items()}
            for words, outputs in _false_rows(bench, cell, some):
                false.setdefault(words, []).append(_caught(bench, bench.row(cell, outputs).evidence, some))
            for words, outputs in _other_machines(bench, cell):
                caught = partial(bench.contradicted, row.evidence, outputs, tries=TRIES)
                other = bench.redrawn(row.evidence, outputs, np.arange(REDRAWN), True)[0]
                true.setdefault(words, []).append((caught(same=True), caught(same=False), float(other.mean())))
            edited.setdefault(("none (a true row)", ""), []).append(not bench.follows(row))
            for found in row.metrics:
                metric = found["metric"]
                sign = 1 if fact_of(metric).better == "higher" else -1
                for words, alone in (("the value alone", True), ("with its interval and block values", False)):
                    changed = moved(row.metrics, metric, sign * half_width(found), alone=alone)
                    edited.setdefault((metric, words), []).append(not bench.follows(row._replace(metrics=changed)))
                for size in SIZES:
                    for how, forgery in forge(*row[:2], metric, size * half_width(found), bench.references, row.labels):
                        share = _forged(bench, row, forgery, claimed)
                        forged.setdefault((metric, how), {}).setdefault(size, []).append(share)
            print(cell.label, {words: found[-1] for words, found in true.items()}, file=sys.stderr)
        halves = [_half_precision(bench._replace(dtype=dtype)) for dtype in ("bfloat16", "float16")]
    print(f"Rows: {', '.join(f'{model} {steps} steps cfg {cfg:g}' for model, steps, cfg in ROWS)}.\n")
    print("| false row | contradicted, same device | other device |\n|---|---|---|")
    for words, chances in false.items():
        print(f"| {words} | {_least([one for one, _ in chances])} | {_least([other for _, other in chances])} |")
    print("\n| true row, drawn again | contradicted, same device | other device | samples outside the tolerance |")
    print("|---|---|---|---|")
    for words, rows in true.items():
        same, other = (_counted(sum(row[i] for row in rows), TRIES * len(rows)) for i in (0, 1))
        print(f"| {words} | {same} | {other} | at most {max(row[2] for row in rows):.2%} |")
    tries = TRIES * sum(map(len, true.values()))
    same, other = (_counted(sum(row[i] for rows in true.values() for row in rows), tries) for i in (0, 1))
    print(f"| all | {same} | {other} | |")
    print("\n| edited metric | the value alone | with its interval and block values |\n|---|---|---|")
    for metric in dict.fromkeys(metric for metric, _ in edited):
        told = [f"{sum(denied)} of {len(denied)} rows" for (name, _), denied in edited.items() if name == metric]
        print(f"| {' | '.join([metric, *told, *([''] if len(told) == 1 else [])])} |")
    _print_forged(forged)
    _print_halves(halves)


def _half_precision(bench: Bench) -> tuple[dict[str, int], dict[str, list[float]], int]:
    """Return contradictions of true rows in half precision, the chances of false ones, and tries of each true row."""
    true: dict[str, int] = {}
    false: dict[str, list[float]] = {}
    for model, steps, cfg in ROWS:
        cell = bench.cell(model, steps, cfg)
        claimed = bench.draw(cell)
        evidence = bench.row(cell, claimed).evidence
        for words, outputs in _other_machines(bench, cell):
            if "rounding" not in words:
                true[words] = true.get(words, 0) + bench.contradicted(evidence, outputs, True, HALF_TRIES)
        for words, outputs in _false_rows(bench, cell, claimed):
            false.setdefault(words, []).append(_caught(bench, bench.row(cell, outputs).evidence, claimed)[0])
    return true, false, HALF_TRIES * len(ROWS)


def _print_halves(found: list[tuple[dict[str, int], dict[str, list[float]], int]]) -> None:
    print("\n| in half precision, same device | bfloat16 | float16 |\n|---|---|---|")
    for words in found[0][0]:
        told = [_counted(true[words], tries) for true, _, tries in found]
        print(f"| true row: {words} | {' | '.join(told)} |")
    for words in found[0][1]:
        print(f"| false row: {words} | {' | '.join(_least(false[words]) for _, false, _ in found)} |")


def _print_forged(forged: Mapping[tuple[str, str], Mapping[int, list[float]]]) -> None:
    sizes = " | ".join(f"{size} half width{'s' * (size > 1)}" for size in SIZES)
    print(f"\n| metric | forged in the evidence | {sizes} |\n|---|---|{'---|' * len(SIZES)}")
    for (metric, how), by_size in forged.items():
        print(f"| {metric} | {how} | {' | '.join(_forged_cell(by_size[size]) for size in SIZES)} |")


def _forged(bench: Bench, row: Row, forgery: Forgery, claimed: Outputs) -> float:
    """Return the share of choices of 64 that contradict a forged row: all where its own evidence does."""
    if not bench.follows(row._replace(metrics=forgery.rows, evidence=forgery.evidence)):
        return 1.0
    return bench.contradicted(forgery.evidence, claimed, True, FORGED_TRIES) / FORGED_TRIES


def _forged_cell(found: list[float]) -> str:
    """Return the median of the rows' shares, and the least."""
    return f"{np.median(found):.0%} ({min(found):.0%})"


def _counted(count: int, tries: int) -> str:
    return f"{count} of {tries:,} (below {beta.ppf(0.95, count + 1, tries - count):.2%})"


def _least(chances: list[float]) -> str:
    return f"{min(chances):.4%}" + ("" if len(chances) == len(ROWS) else f" ({len(chances)} rows)")


def _caught(bench: Bench, evidence: Evidence, drawn: Outputs) -> tuple[float, float]:
    """Return the probability that too many of 64 samples moved, where `drawn` are a false row's claimed ones.

    By the tolerances of the same device, and of another.
    """
    n = len(drawn["pick.score"])
    chances = []
    for same in (True, False):
        other = int(bench.redrawn(evidence, drawn, np.arange(n), same)[0].sum())
        allowed = allowed_moves(SAMPLES, TOLERANCES[bench.dtype, same])
        chances.append(float(hypergeom.sf(allowed, n, other, SAMPLES)))
    return chances[0], chances[1]


def _false_rows(bench: Bench, cell: Cell, claimed: Outputs) -> Iterator[tuple[str, Outputs]]:
    for share in (0.01, 0.001):
        yield f"weights perturbed by {share:.1%}", bench.draw(cell, _perturbed(cell, share))
    earlier = _earlier(cell)
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


def _own(cell: Cell) -> Adapter:
    """Return the cell's adapter, not the one that other draws share."""
    return build_adapter(cell.card, device="cpu", dtype=cell.dtype)


def _perturbed(cell: Cell, share: float) -> Adapter:
    """Return the adapter with normal noise on every tensor, of `share` of the tensor's root mean square."""
    other = _own(cell)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.network.parameters():
            noise = torch.randn(parameter.shape, generator=draws)
            parameter.add_(noise * share * parameter.square().mean().sqrt())
    return other


def _earlier(cell: Cell) -> Adapter | None:
    """Return the adapter with the network trained on by 2% of its recipe; None where it has no recipe."""
    recipe = RECIPES.get(cell.card.name)
    if recipe is None:
        return None
    other = _own(cell)
    network = recipe.network(7)
    network.load_state_dict(other.network.state_dict())
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
            return (output * (1 + size * torch.randn(output.shape, generator=draws))).to(output.dtype)
        return output

    hooks = [module.register_forward_hook(rounded) for module in adapter.network.modules()] if size else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


if __name__ == "__main__":
    main()
