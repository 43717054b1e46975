"""The regression gate: a small subset measured again and held against a baseline file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import bench
from bench.references.stored import conditions, prepare_reference
from bench.run.interface import Progress
from bench.run.plan import Request, make_plan
from bench.run.readiness import preflight
from bench.run.runner import run
from bench.run.worker import load_judges
from protocols import find_protocol
from results import baseline as baselines
from results.baseline import Baseline, Check, Measured
from results.errors import BenchError
from results.leaderboard import rows
from results.store import connect


@dataclass(frozen=True)
class Machine:
    """Where and how a subset is measured; none of it changes a number."""

    device: str
    workers: int
    progress: Progress
    weights: Path | None = None
    """A local weights file instead of the card's."""


@dataclass(frozen=True)
class Narrowing:
    """The part of a baseline to check; None: all."""

    models: tuple[str, ...] | None = None
    steps: tuple[int, ...] | None = None
    cfg: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Leniency:
    """What a check lets through.

    Attributes:
        tolerances: metric or cost -> the difference up to which it counts as the same.
        accept: the kinds of digests (`baseline.KINDS`) that may differ.
        allow_better: improvements of metrics.
    """

    tolerances: Mapping[str, float] = field(default_factory=dict)
    accept: Collection[str] = ()
    allow_better: bool = False


class Outcome(NamedTuple):
    """What became of every metric and cost, and what a reader must know of the comparison, a line each."""

    checks: list[Check]
    remarks: list[str]

    @property
    def failed(self) -> list[Check]:
        """Those that the gate does not let through."""
        return [check for check in self.checks if not check.passed]

    def counted(self, kind: str) -> list[Check]:
        """Return the metrics or costs that were compared, the missing ones among them."""
        return [check for check in self.checks if check.kind == kind and check.verdict != "not compared"]


def write_baseline(path: Path, asked: Baseline, machine: Machine) -> Baseline:
    """Measure the subset `asked` for, write the baseline and return it.

    Raises BenchError when a cell failed or nothing could be measured: nothing is written then.
    """
    found, digests, failed = _measure(asked, machine, None)
    if failed:
        raise BenchError(f"check: {'; '.join(failed)}: no baseline was written, because it would be incomplete")
    if not any(found.cells.values()):
        raise BenchError("check: nothing could be measured; see the messages above")
    written = asked._replace(cells=found.cells, costs=found.costs, digests=digests)
    baselines.write_baseline(path, written)
    return written


def check_baseline(
    path: Path, machine: Machine, narrowing: Narrowing = Narrowing(), leniency: Leniency = Leniency()
) -> Outcome:
    """Measure the baseline's subset again and return what became of its metrics and costs.

    Raises BenchError for a baseline that cannot be read or is no longer comparable, for a part of it that it lacks, and
    where nothing is left to compare.
    """
    whole = baselines.read_baseline(path)
    baseline = _narrowed(whole, path, narrowing)
    baselines.compare(baseline, Measured({}, {}), tolerances=leniency.tolerances)  # refuses wrong ones before work
    accepted = {*leniency.accept, *(["weights"] if machine.weights is not None else [])}

    def comparable(digests: Mapping[str, str]) -> None:
        changed = baselines.changed_digests(baseline, digests, accepted)
        if changed:
            kinds = ",".join(dict.fromkeys(words.split()[0] for words in changed))
            raise BenchError(
                f"baseline {path}: no longer comparable, because its inputs have changed: {'; '.join(changed)}; "
                f"compare anyway with --accept {kinds}, or create it again with --write"
            )

    found, _, _ = _measure(baseline, machine, comparable)
    checks = baselines.compare(baseline, found, tolerances=leniency.tolerances, allow_better=leniency.allow_better)
    outcome = Outcome(checks, _remarks(baseline, checks))
    if not outcome.counted("metric"):
        raise BenchError(f"baseline {path}: none of its metrics can be compared; --tolerance METRIC=SIZE compares one")
    return outcome


def _narrowed(baseline: Baseline, path: Path, narrowing: Narrowing) -> Baseline:
    """Return the part of a baseline. Raises BenchError for what it lacks."""
    for option, known, wanted in (
        ("--model", baseline.models, narrowing.models),
        ("--steps", baseline.steps, narrowing.steps),
    ):
        for item in wanted or ():
            if item not in known:
                raise BenchError(f"{option}: baseline {path} has no {item}, but {', '.join(map(str, known))}")
    models, steps = narrowing.models or baseline.models, narrowing.steps or baseline.steps

    def within(cell: str) -> bool:
        words = cell.rsplit("@", 2)  # MODEL@STEPS@CFG
        if len(words) != 3:
            return False
        return (
            words[0] in models
            and words[1] in {str(count) for count in steps}
            and (narrowing.cfg is None or words[2] in {f"{scale:g}" for scale in narrowing.cfg})
        )

    if narrowing == Narrowing():
        return baseline
    part = {cell: entries for cell, entries in baseline.cells.items() if within(cell)}
    if not any(part.values()):
        raise BenchError(
            f"baseline {path}: contains nothing of this subset, so there is nothing to compare; name a smaller subset"
        )
    costs = {cell: entries for cell, entries in baseline.costs.items() if cell in part}
    return baseline._replace(models=models, steps=steps, cfg=narrowing.cfg or baseline.cfg, cells=part, costs=costs)


def _remarks(baseline: Baseline, checks: list[Check]) -> list[str]:
    remarks = []
    unpaired = sum(check.rule == "unpaired" for check in checks)
    if baseline.format == 1:
        remarks.append(
            "the baseline was written by an older version, without blocks, costs and digests: compared unpaired, "
            "which misses changes smaller than the metrics' own intervals; create it again with --write"
        )
    elif unpaired:
        remarks.append(f"{unpaired} metrics share no blocks with the baseline and are compared unpaired")
    remarks += [str(check) for check in checks if check.verdict == "not compared"]
    return remarks


def _measure(
    asked: Baseline, machine: Machine, look: Callable[[Mapping[str, str]], None] | None
) -> tuple[Measured, dict[str, str], list[str]]:
    """Return what is measured, the digests it rests on (shown to `look` before sampling), and what failed."""
    request = Request(
        find_protocol(asked.protocol),
        models=asked.models,
        steps=asked.steps,
        cfg=asked.cfg,
        num_samples=asked.num_samples,
        seed=asked.seed,
        device=machine.device,
        options=asked.options,
        weights=machine.weights,
    )
    with tempfile.TemporaryDirectory(prefix="bench-check-") as folder:
        runs = Path(folder)
        preflight(request, runs, runs / "bench.duckdb")
        digests = _digests(request, runs)
        if look is not None:
            look(digests)
        summary = run(request, runs, progress=machine.progress, workers=machine.workers)
        with connect(summary.database, retry=True) as connection:
            found = baselines.measured_of(rows(connection, blocks=True))
        failed = [f"{cell.label} failed ({reason})" for cell, reason in summary.failed]
        return found, digests, failed


def _digests(request: Request, runs: Path) -> dict[str, str]:
    """Return the digests of all that a measurement rests on but the code of the models, by name."""
    judges = load_judges(request.protocol, request.device)
    reference = prepare_reference(request.protocol, judges, runs)
    cells = make_plan(request, conditions(judges, reference))
    return {
        "protocol": request.protocol.measurement_digest,
        "reference": reference.digest,
        "harness": bench.__version__,
        **{f"judge {name}": judge.digest for name, judge in judges.items()},
        **{f"weights of {cell.card.name}": cell.weights_sha256 or "none" for cell in cells},
    }
