"""An audit: a few samples of somebody's row drawn again and held against the evidence, and the metrics against it too.

Which samples are drawn is decided by whoever audits, after the row is published. A true row gives the same samples up
to the rounding of another machine, which now and then flips a pixel; other weights, guidance, steps or noise move every
sample. So the count of samples that moved tells the two apart (docs/verification.md has the measured power).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.stats import binom

from bench.contracts.adapter import Adapter
from bench.contracts.precision import full_precision
from bench.judges.judge import Judge
from bench.judges.threads import fixed_threads
from bench.references.stored import Reference, conditions, prepare_reference
from bench.run.evidence import project, sample_parts
from bench.run.follows import Finding, follow
from bench.run.halves import settled
from bench.run.needs import needs_of_judging, needs_of_run, require
from bench.run.plan import Cell, Request, make_plan
from bench.run.provenance import device_name
from bench.run.record import reference_features
from bench.run.redrawn import Redrawn
from bench.run.shard import CellFailure, checked_sample, judge_batch, judged_pixels
from bench.run.worker import adapter_faults, load_cell_adapter, load_judges
from protocols import Protocol, find_protocol
from protocols.labels import plan_labels
from results.errors import BenchError, one_line
from results.evidence import DEVIATIONS, LEVELS, Evidence, Grid
from results.names import title
from results.records import columns_of

Outcome = Literal["consistent", "cannot tell", "contradicted"]


class Tolerance(NamedTuple):
    """What rounding may do to a true row.

    Attributes:
        size: how far a number may lie off, in standard deviations over the row's samples, beyond its own rounding.
        share: share of samples in which some number lies further off (a pixel flipped on the way to 8 bits).
    """

    size: float
    share: float


TOLERANCES: Mapping[tuple[str, bool], Tolerance] = {
    ("float32", True): Tolerance(0.005, 0.02),
    ("float32", False): Tolerance(0.02, 0.1),
    ("bfloat16", True): Tolerance(0.05, 0.2),
    ("bfloat16", False): Tolerance(0.2, 0.3),
    ("float16", True): Tolerance(0.02, 0.1),
    ("float16", False): Tolerance(0.1, 0.2),
}
"""By dtype, and whether a device of the same name measured the row."""
FALSE_ALARMS = 1e-4
"""Largest probability of contradicting a true row whose samples move with the tolerance's share."""


@dataclass(frozen=True)
class Audit:
    """What an audit found of one row.

    Attributes:
        cell_id: the row.
        title: its setting, for people.
        outcome: consistent, cannot tell, or contradicted.
        reasons: why, one line each.
        compared: how many samples were drawn again.
        moved: in how many of them a number lies outside of the tolerance.
        allowed: how many may be.
        findings: what the evidence says of each metric.
        seed: gives the same choice of samples again.
        signed_by: who signed the bundle that the row came in, if anybody.
    """

    cell_id: str
    title: str
    outcome: Outcome
    reasons: tuple[str, ...]
    compared: int = 0
    moved: int = 0
    allowed: int = 0
    findings: tuple[Finding, ...] = ()
    seed: int | None = None
    signed_by: str | None = None


@dataclass(frozen=True)
class Settings:
    """How to audit; none of it is the row's.

    Attributes:
        samples: how many samples to draw again.
        seed: chooses them; None: at random, so that nobody can know them beforehand.
        device: where to draw them.
        protocol: what the row was measured under, where it is not a shipped one.
        weights: a local file instead of the card's.
        batch_size: images at once (default: the row's).
    """

    samples: int = 64
    seed: int | None = None
    device: str = "cpu"
    protocol: Protocol | None = None
    weights: Path | None = None
    batch_size: int | None = None


class _Untold(Exception):
    """Why a row cannot be told true from false here."""


def audit(record: Mapping[str, Any], evidence: Evidence | None, runs: Path, settings: Settings = Settings()) -> Audit:
    """Audit one row: `record` as `result.json` holds it, with its `evidence`.

    `runs` is where a reference that the protocol builds itself is kept. Raises BenchError for settings that fit no row.
    """
    if settings.samples < 1:
        raise BenchError("audit: at least one sample has to be drawn")
    record = _filled(record)
    row = record["cell"]
    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    made = Audit(row["cell_id"], title(row), "cannot tell", (), seed=seed, signed_by=row.get("signed_by"))
    try:
        with fixed_threads(settings.device):
            return _audit(made, seed, record, evidence, runs, settings)
    except _Untold as untold:
        return replace(made, reasons=(str(untold),))


def _filled(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose rows have every column of the schema, those that may be empty and were left out too.

    A metric without a value states nothing, and is no part of it; half an interval is none.
    """
    cell, metric = (dict.fromkeys(column.name for column in columns_of(table)) for table in ("cells", "metrics"))
    metrics = [metric | dict(row) for row in record.get("metrics") or () if row.get("value") is not None]
    for row in metrics:
        if row["low"] is None or row["high"] is None:
            row["low"] = row["high"] = None
    return {**record, "cell": cell | dict(record["cell"]), "metrics": metrics}


def _audit(
    made: Audit, seed: int, record: Mapping[str, Any], evidence: Evidence | None, runs: Path, settings: Settings
) -> Audit:
    row = record["cell"]
    if row["status"] != "done":
        raise _Untold(f"the row is {row['status']}: there is nothing to hold against anything")
    if evidence is None:
        raise _Untold("the row has no evidence (an older version measured it, or it came as a database alone)")
    if evidence.samples != row["num_samples"]:
        reason = f"evidence of {evidence.samples:,} samples, but the row has {row['num_samples']:,}"
        return replace(made, outcome="contradicted", reasons=(reason,))
    protocol = _protocol(row, settings)
    try:
        require(needs_of_judging(protocol))
        judges = load_judges(protocol, settings.device)
        reference = prepare_reference(protocol, judges, runs)
    except BenchError as error:
        raise _Untold(one_line(str(error))) from error
    labels = _labels(row, protocol, reference)
    references = reference_features(reference)
    findings = follow(record.get("metrics") or [], evidence, protocol, references, labels)
    made = replace(made, findings=tuple(findings))
    denied = _denials(findings)
    changed = _changed(record, judges, reference)
    half = _judged_in_half(record)
    found = conditions(judges, reference)
    judges = settled(judges, {name: {"kept": "half"} for name in half})
    try:
        if changed is not None:
            raise _Untold(changed)
        tolerance = _tolerance(row, settings, "float16" if half and row["dtype"] == "float32" else row["dtype"])
        cell = _cell(row, protocol, found, settings)
        if labels is None:
            raise _Untold("nobody says which classes the samples were asked for")
        indices = choose(settings.samples, cell.num_samples, seed)
        outputs = _draw(cell, protocol, judges, labels, evidence, indices, settings)
    except _Untold as untold:
        if denied:
            return replace(made, outcome="contradicted", reasons=denied)
        return replace(made, reasons=(str(untold),))
    redrawn = Redrawn(evidence, protocol, references, outputs, indices, tolerance.size)
    others = moved_samples(evidence, outputs, indices, tolerance) | redrawn.moved()
    compared, moved, allowed = len(indices), int(others.sum()), allowed_moves(len(indices), tolerance)
    findings = merged(findings, redrawn.denied(others))
    denied = _denials(findings)
    made = replace(made, compared=compared, moved=moved, allowed=allowed, findings=tuple(findings))
    said = f"{moved} of {compared} samples drawn again are other ones, a true row has at most {allowed}"
    if moved > allowed or denied:
        reasons = (*((said,) if moved > allowed else ()), *denied)
        return replace(made, outcome="contradicted", reasons=reasons)
    if allowed >= compared:
        return replace(made, reasons=(f"{compared} samples are too few to tell anything; draw more with --samples",))
    followed = [finding.metric for finding in findings if finding.verdict == "follows"]
    return replace(
        made,
        outcome="consistent",
        reasons=(
            f"{compared - moved} of {compared} samples drawn again are the row's",
            f"{', '.join(followed)} follow from the evidence"
            if followed
            else "no metric can be told from the evidence",
        ),
    )


def _denials(findings: Sequence[Finding]) -> tuple[str, ...]:
    return tuple(
        f"{finding.metric}: {finding.reason}".removeprefix(": ")
        for finding in findings
        if finding.verdict == "contradicted"
    )


def merged(findings: Sequence[Finding], denied: Sequence[Finding]) -> list[Finding]:
    """Return the findings with those of the samples drawn again in place of the same metrics' that found nothing."""
    found = {finding.metric: finding for finding in denied}
    kept = [f if f.verdict == "contradicted" else found.pop(f.metric, f) for f in findings]
    seen = {finding.metric for finding in kept}
    return [*kept, *(finding for name, finding in found.items() if name not in seen)]


def allowed_moves(compared: int, tolerance: Tolerance) -> int:
    """Return how many of the compared samples a true row may have outside of a tolerance, but for FALSE_ALARMS."""
    return int(binom.isf(FALSE_ALARMS, compared, tolerance.share))


def moved_samples(
    evidence: Evidence, outputs: Mapping[str, np.ndarray], indices: np.ndarray, tolerance: Tolerance
) -> np.ndarray:
    """Return which samples lie outside of the tolerance in any number, bool [n].

    Args:
        evidence: the row's.
        outputs: what the judges say of the samples drawn again, [n, ...] by name.
        indices: which samples of the row they are, int64 [n].
        tolerance: what rounding may do.
    """
    moved = np.zeros(len(indices), dtype=bool)
    for name, values in outputs.items():
        parts = evidence.parts(name)
        if "sketch" in parts:
            grid = Grid(*parts["grid"].astype(np.float64))
            off = np.abs(grid.positions(project(name, values)) - parts["sketch"][indices])
            moved |= (off > 0.5 + tolerance.size * LEVELS / DEVIATIONS).any(axis=1)
        for part, anew in sample_parts(name, values).items():
            if part in ("score", "certainty") and part in parts:
                stored = parts[part].astype(np.float64)
                rounding = 2 * np.spacing(np.abs(parts[part][indices])).astype(np.float64)
                off = np.abs(anew.astype(np.float64) - stored[indices])
                moved |= off > rounding + tolerance.size * stored.std()
    return moved


def _protocol(row: Mapping[str, Any], settings: Settings) -> Protocol:
    if settings.protocol is not None:
        protocol = settings.protocol
    else:
        try:
            protocol = find_protocol(row["protocol"])
        except BenchError as error:
            raise _Untold(
                f"protocol '{one_line(row['protocol'], 60)}' is not here; give its file: --protocol"
            ) from error
    if row.get("measurement") not in (None, protocol.measurement_digest):
        raise _Untold(f"protocol '{protocol.name}' measures otherwise here; give the row's own file: --protocol")
    return protocol


def _labels(row: Mapping[str, Any], protocol: Protocol, reference: Reference) -> np.ndarray | None:
    """Return the class that each sample was asked for, int64 [N]; None for images, whose labels nobody keeps."""
    if row["steps"] is None:
        return None
    classes = len(protocol.class_names)
    return plan_labels(protocol.label_plan, row["num_samples"], classes, seed=row["seed"], reference=reference.labels)


def _changed(record: Mapping[str, Any], judges: Mapping[str, Judge], reference: Reference) -> str | None:
    """Return why the samples cannot be judged here as they were; None where they can."""
    if record["cell"]["steps"] is None:
        return "images made elsewhere cannot be drawn again; only the metrics were checked against the evidence"
    for metric in record.get("metrics") or []:
        judge = metric["judge"]
        if judge in judges and metric["judge_digest"] != judges[judge].digest:
            return f"judge '{judge}' is another one here, so what it says of the samples cannot be compared"
        if metric["reference_digest"] not in (None, reference.digest):
            return f"reference '{reference.name}' is another one here"
    return None


def _cell(row: Mapping[str, Any], protocol: Protocol, found: str, settings: Settings) -> Cell:
    """Return the row's cell as this machine would measure it. Raises _Untold where that is another one."""
    options = dict(row["options"] or {})
    compiled = bool(options.pop("compile", False))
    request = Request(
        protocol,
        models=(row["model"],),
        steps=(row["steps"],),
        cfg=(row["cfg"],),
        num_samples=row["num_samples"],
        seed=row["seed"],
        batch_size=settings.batch_size or row["batch_size"],
        sampler=row["sampler"],
        device=settings.device,
        dtype=row["dtype"],
        compile=compiled,
        options=options,
        weights=settings.weights,
        random_weights=row["random_weights"],
    )
    try:
        require(needs_of_run([request]))
        cells = make_plan(request, found)
    except BenchError as error:
        raise _Untold(one_line(str(error))) from error
    cell = cells[0]
    if cell.cell_id == row["cell_id"]:
        return cell
    if cell.weights_sha256 != row["weights_sha256"]:
        raise _Untold(
            f"{cell.card.name} has other weights here (sha256 {str(cell.weights_sha256)[:12]}, the row's "
            f"{str(row['weights_sha256'])[:12]}); give the row's with --weights"
        )
    raise _Untold(f"{cell.card.name} is another model here: its card, settings or judges differ from the row's")


def _judged_in_half(record: Mapping[str, Any]) -> set[str]:
    """Return the judges that computed in half precision for the row."""
    return {row["judge"] for row in record.get("metrics") or [] if "judged in half" in row["method"]}


def _tolerance(row: Mapping[str, Any], settings: Settings, dtype: str) -> Tolerance:
    same = row["device"] == device_name(settings.device)
    if (dtype, same) not in TOLERANCES:
        raise _Untold(f"no tolerance is recorded for {one_line(dtype, 20)}")
    return TOLERANCES[dtype, same]


def choose(samples: int, of: int, seed: int) -> np.ndarray:
    """Return which samples to draw again, int64, ascending: `samples` of them, or all there are."""
    chosen = np.random.Generator(np.random.PCG64(seed)).choice(of, size=min(samples, of), replace=False)
    return np.sort(chosen)


def _draw(
    cell: Cell,
    protocol: Protocol,
    judges: Mapping[str, Judge],
    labels: np.ndarray,
    evidence: Evidence,
    indices: np.ndarray,
    settings: Settings,
) -> dict[str, np.ndarray]:
    """Return what the judges say of the samples `indices`, drawn again. Raises _Untold where they cannot be."""
    try:
        with adapter_faults(cell):
            adapter = load_cell_adapter(cell, protocol, settings.device)
        with full_precision():
            outputs = judged_samples(cell, protocol, adapter, judges, labels, indices)
    except BenchError as error:
        raise _Untold(one_line(str(error))) from error
    except torch.OutOfMemoryError as error:
        raise _Untold("too little memory for the row's batch size; choose a smaller --batch-size") from error
    except CellFailure as failure:
        raise _Untold(f"the samples could not be drawn: {failure.reason}") from failure
    if not any(set(evidence.parts(name)) & {"sketch", "score", "certainty"} for name in outputs):
        raise _Untold("the evidence has nothing of what the judges say of a sample")
    return outputs


def judged_samples(
    cell: Cell,
    protocol: Protocol,
    adapter: Adapter,
    judges: Mapping[str, Judge],
    labels: np.ndarray,
    indices: np.ndarray | Sequence[int],
) -> dict[str, np.ndarray]:
    """Return what the judges say of the samples `indices` of a cell, drawn now: `<judge>.<array>` [n, ...].

    `labels` int64 [N] are those of the whole cell. Raises CellFailure as `bench.run.shard.sample_shard` does.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(indices), cell.batch_size):
        chosen = [int(index) for index in indices[start : start + cell.batch_size]]
        asked = torch.from_numpy(labels[chosen])
        images = checked_sample(cell, adapter, asked, chosen)
        native, pixels = judged_pixels(images, protocol)
        for name, values in judge_batch(judges, pixels, asked, native).items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}
