"""The baseline of the regression gate: what was measured of which cells, with its blocks, and what differs since.

A metric is compared pair by pair of blocks: the samples of a baseline and of the cells measured now share noise and
labels, so what they share cancels and changes far smaller than the metric's own interval are seen.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from results.catalog import FACTS, MetricFact
from results.documents import read_json
from results.errors import BenchError, did_you_mean
from results.files import write_atomically
from results.rows import Row
from results.statistics import FEWEST_BLOCKS, influences, paired_half_width

FORMAT = 3
READABLE = (1, 2, FORMAT)
FORMER_NAME = re.compile(r"(.+) (\d+) steps cfg (\S+)")
"""What a setting was called before format 3."""
"""Format 1 has neither blocks nor costs nor digests: its metrics are compared with their intervals, unpaired."""
FALSE_ALARMS = 0.01
"""Probability that any metric of a check is said to have moved where none has."""
TRIFLE = 0.01
"""In standard errors of the baseline's value: smaller differences are rounding of another machine, whatever they are
compared with."""
COSTS = ("nfe", "guide_nfe", "flops", "parameters")
"""Columns of `cells` that must be equal."""
KINDS = ("protocol", "reference", "judge", "weights", "harness")
"""First words of the keys of `digests`: what a comparison rests on."""


class Kept(NamedTuple):
    """A metric of one cell.

    Attributes:
        value: over all samples.
        low: lower end of its 95% interval, None where there is none.
        high: upper end.
        blocks: the value without each block, [K]; None where that is not known.
    """

    value: float
    low: float | None
    high: float | None
    blocks: np.ndarray | None


Values = dict[str, dict[str, Kept]]
"""Cell -> metric -> what is kept of it."""
Costs = dict[str, dict[str, float | None]]
"""Cell -> one of COSTS -> its value, None where it does not apply."""


class Measured(NamedTuple):
    """Metrics and costs of cells, and what tells the directions of the metrics."""

    cells: Values
    costs: Costs
    facts: Mapping[str, MetricFact] = FACTS


class Baseline(NamedTuple):
    """A subset of a protocol and what was measured of it.

    Attributes:
        protocol: its name or file.
        models: names of models.
        steps: step counts.
        num_samples: samples per cell.
        cells: metrics by cell.
        costs: costs by cell; empty in format 1.
        cfg: guidance scales; None for the protocol's.
        seed: of the noise; None for the protocol's.
        options: sampler settings.
        digests: what a comparison rests on, by name ("judge inception", "weights of digits-flow"); empty in format 1.
        format: that of the file.
    """

    protocol: str
    models: tuple[str, ...]
    steps: tuple[int, ...]
    num_samples: int
    cells: Values
    costs: Costs = {}  # noqa: RUF012 - never written to
    cfg: tuple[float, ...] | None = None
    seed: int | None = None
    options: Mapping[str, Any] = {}
    digests: Mapping[str, str] = {}
    format: int = FORMAT


class Check(NamedTuple):
    """One metric or cost of one cell, now and in the baseline.

    Attributes:
        cell: the setting, `MODEL@STEPS@CFG`.
        name: of the metric or cost.
        kind: `metric` or `cost`.
        baseline: the value in the baseline.
        value: the value now; None where it is missing.
        difference: value - baseline.
        low: lower end of the interval of the difference, by `rule`.
        high: upper end.
        rule: `paired`, `unpaired`, `tolerance`, `exact`, or `none` where nothing is known of the metric's spread.
        verdict: `same`, `better`, `worse`, `changed` (no direction), `missing` or `not compared`.
        passed: whether the gate lets it through.
    """

    cell: str
    name: str
    kind: str
    baseline: float | None
    value: float | None
    difference: float | None
    low: float | None
    high: float | None
    rule: str
    verdict: str
    passed: bool

    def __str__(self) -> str:
        was, now = (("none" if value is None else f"{value:.5g}") for value in (self.baseline, self.value))
        if self.verdict == "missing":
            return f"{self.cell}: {self.name} is missing; the baseline has {was}"
        if self.verdict == "not compared":
            return f"{self.cell}: {self.name} is not compared, because it has no interval; --tolerance {self.name}=SIZE"
        if self.difference is None:
            return f"{self.cell}: {self.name} is {now}; the baseline has {was}"
        moved = f"{self.cell}: {self.name} moved by {self.difference:+.4g}"
        half = "" if self.low is None or self.rule != "paired" else f" ± {self.difference - self.low:.2g}"
        return f"{moved}{half} to {now}, {self.verdict}; the baseline is {was}{self._room()}"

    def _room(self) -> str:
        if self.low is None or self.high is None or self.value is None:
            return ""
        if self.rule == "tolerance":
            return f", the tolerance {(self.high - self.low) / 2:.4g}"
        return f" [{self.value - self.high:.5g}, {self.value - self.low:.5g}]" if self.rule == "unpaired" else ""


def measured_of(found: Sequence[Row]) -> Measured:
    """Return what a baseline keeps of rows, read with their blocks."""
    cells: Values = {}
    costs: Costs = {}
    for row in found:
        name = f"{row.cell['model']}@{row.cell['steps']}@{row.cell['cfg']:g}"
        costs[name] = {cost: row.cell[cost] for cost in COSTS}
        cells[name] = {
            metric: Kept(
                value.value, value.low, value.high, None if value.jackknife is None else np.array(value.jackknife)
            )
            for metric, value in sorted(row.metrics.items())
            if value.value is not None
        }
    return Measured(cells, costs, found[0].facts if found else FACTS)


def compare(
    baseline: Baseline,
    measured: Measured,
    *,
    tolerances: Mapping[str, float] | None = None,
    allow_better: bool = False,
) -> list[Check]:
    """Return what became of each metric and cost of a baseline.

    Where both sides have the same number of blocks, at least 5, the difference gets Student's interval with K - 1
    degrees of freedom, at Bonferroni's level for all such metrics together: none of them is said to have moved by
    mistake with 99%. Sampling of the reference is no part of it: both sides share the reference. Without blocks a
    metric has moved that left the baseline's 95% interval.

    Args:
        baseline: what was.
        measured: what is.
        tolerances: metric or cost -> the difference up to which it counts as the same, in its unit; it takes the place
            of the statistics.
        allow_better: let improvements of metrics through.

    Raises:
        BenchError: a tolerance for what the baseline lacks, or one that is not a finite number from 0.
    """
    tolerances = tolerances or {}
    known = {name for table in (baseline.cells, baseline.costs) for entries in table.values() for name in entries}
    for name, tolerance in tolerances.items():
        if name not in known:
            raise BenchError(f"--tolerance: the baseline has no '{name}'; {did_you_mean(name, known)}")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise BenchError(
                f"--tolerance: {name}={tolerance:g} is not the size of a difference; use a number of at least 0"
            )
    pairs = [
        (cell, name, kept, measured.cells.get(cell, {}).get(name))
        for cell, entries in baseline.cells.items()
        for name, kept in entries.items()
    ]
    together = sum(name not in tolerances and _paired(kept, now) for _, name, kept, now in pairs)
    checks = []
    for cell, name, kept, now in pairs:
        if now is None:
            checks.append(Check(cell, name, "metric", kept.value, None, None, None, None, "none", "missing", False))
            continue
        rule, low, high, same = _rule(kept, now, tolerances.get(name), together)
        verdict = "not compared" if rule == "none" else "same"
        if rule != "none" and not same:
            fact = measured.facts.get(name)
            verdict = "changed" if fact is None else "better" if fact.sign * (now.value - kept.value) > 0 else "worse"
        passed = verdict in ("same", "not compared") or (allow_better and verdict == "better")
        checks.append(
            Check(cell, name, "metric", kept.value, now.value, now.value - kept.value, low, high, rule, verdict, passed)
        )
    for cell, entries in baseline.costs.items():
        if cell not in measured.costs:
            continue  # its metrics are missing, which says it
        for name, was in entries.items():
            checks.append(_cost(cell, name, was, measured.costs[cell].get(name), tolerances.get(name)))
    return checks


def _paired(kept: Kept, now: Kept | None) -> bool:
    if now is None or kept.blocks is None or now.blocks is None:
        return False
    return len(kept.blocks) == len(now.blocks) >= FEWEST_BLOCKS


def _rule(
    kept: Kept, now: Kept, tolerance: float | None, together: int
) -> tuple[str, float | None, float | None, bool]:
    """Return the rule by which a metric is compared, the interval of its difference, and whether it is the same."""
    difference = now.value - kept.value
    if tolerance is not None:
        return "tolerance", difference - tolerance, difference + tolerance, abs(difference) <= tolerance
    if _paired(kept, now):
        assert kept.blocks is not None and now.blocks is not None
        half = paired_half_width(now.blocks - kept.blocks, FALSE_ALARMS / together)
        trifle = TRIFLE * float(np.sqrt((influences(kept.blocks) ** 2).sum()))
        return "paired", difference - half, difference + half, abs(difference) <= max(half, trifle)
    if kept.low is None or kept.high is None:
        return "none", None, None, False
    return "unpaired", now.value - kept.high, now.value - kept.low, kept.low <= now.value <= kept.high


def _cost(cell: str, name: str, was: float | None, now: float | None, tolerance: float | None) -> Check:
    difference = None if was is None or now is None else now - was
    same = was == now or (difference is not None and tolerance is not None and abs(difference) <= tolerance)
    low, high = None, None
    if difference is not None and tolerance is not None:
        low, high = difference - tolerance, difference + tolerance
    directed = difference is not None and name != "parameters"
    verdict = "same" if same else "changed" if not directed else "better" if difference < 0 else "worse"  # type: ignore[operator]
    rule = "exact" if tolerance is None else "tolerance"
    return Check(cell, name, "cost", was, now, difference, low, high, rule, verdict, same)


def changed_digests(baseline: Baseline, found: Mapping[str, str], accepted: Collection[str] = ()) -> list[str]:
    """Return a few words on each of `found` that the baseline has otherwise, but for the `accepted` ones of KINDS."""
    words = []
    for name, digest in found.items():
        was = baseline.digests.get(name)
        if baseline.digests and was != digest and name.split()[0] not in accepted:
            words.append(f"{name} ({'none' if was is None else was[:12]} -> {digest[:12]})")
    return words


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline file. Raises BenchError when it cannot be written."""
    cells = {cell: {name: _packed(kept) for name, kept in entries.items()} for cell, entries in baseline.cells.items()}
    content = {**baseline._asdict(), "cells": cells}
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode(), "--write")


def _packed(kept: Kept) -> dict[str, Any]:
    entry: dict[str, Any] = {key: getattr(kept, key) for key in ("value", "low", "high")}
    if kept.blocks is not None:
        # Float32 of what a block moves leaves seven digits of the move.
        entry["blocks"] = base64.b64encode((kept.blocks - kept.value).astype("<f4").tobytes()).decode()
    return entry


def _unpacked(entry: Mapping[str, Any]) -> Kept:
    blocks = None
    if entry.get("blocks") is not None:
        moved = np.frombuffer(base64.b64decode(entry["blocks"], validate=True), dtype="<f4")
        blocks = entry["value"] + moved.astype(np.float64)
    return Kept(float(entry["value"]), entry.get("low"), entry.get("high"), blocks)


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file. Raises BenchError when it cannot be read, is not one of ours, or holds nothing."""
    content = read_json(path, "baseline")
    needed = {"format", "protocol", "models", "steps", "num_samples", "cells"}
    if not isinstance(content, dict) or not needed <= set(content) or content["format"] not in READABLE:
        raise BenchError(f"baseline {path}: not a baseline of format {FORMAT}; create it again with --write")
    fault = _fault(content)
    if fault is not None:
        raise BenchError(f"baseline {path}: {fault}; create it again with --write")
    cfg = content.get("cfg")
    return Baseline(
        content["protocol"],
        tuple(content["models"]),
        tuple(content["steps"]),
        content["num_samples"],
        {
            _renamed(cell): {name: _unpacked(entry) for name, entry in table.items()}
            for cell, table in content["cells"].items()
        },
        {_renamed(cell): entries for cell, entries in (content.get("costs") or {}).items()},
        None if cfg is None else tuple(float(scale) for scale in cfg),
        content.get("seed"),
        content.get("options") or {},
        content.get("digests") or {},
        content["format"],
    )


def _renamed(cell: str) -> str:
    """Return `MODEL@STEPS@CFG`, as commands take it, for what a setting was called before format 3."""
    return FORMER_NAME.sub(r"\1@\2@\3", cell)


def _fault(content: dict[str, Any]) -> str | None:
    """Return what is wrong with a baseline's values, None for one that there is something to compare with."""
    models, steps, cells = content["models"], content["steps"], content["cells"]
    if not isinstance(content["protocol"], str):
        return "'protocol' is not a name"
    if not isinstance(models, list) or not models or not all(isinstance(name, str) for name in models):
        return "'models' is not a list of names"
    if not isinstance(steps, list) or not steps or not all(type(step) is int and step >= 1 for step in steps):
        return "'steps' is not a list of numbers of at least 1"
    if type(content["num_samples"]) is not int or content["num_samples"] < 2:
        return "'num_samples' is not a number of at least 2"
    cfg, seed = content.get("cfg"), content.get("seed")
    if cfg is not None and not (isinstance(cfg, list) and cfg and all(map(_is_number, cfg))):
        return "'cfg' is not a list of numbers"
    if seed is not None and not (type(seed) is int and seed >= 0):
        return "'seed' is not a number of at least 0"
    if not isinstance(content.get("options") or {}, dict):
        return "'options' is not a table of settings"
    digests = content.get("digests") or {}
    if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
        return "'digests' is not a table of digests"
    costs = content.get("costs") or {}
    if not isinstance(costs, dict) or not all(
        isinstance(entries, dict) and all(value is None or _is_number(value) for value in entries.values())
        for entries in costs.values()
    ):
        return "'costs' is not a table of numbers by cell"
    if not isinstance(cells, dict) or not all(isinstance(metrics, dict) for metrics in cells.values()):
        return "'cells' is not a table of metrics by cell"
    if not any(cells.values()):
        return "it contains no metric, so there is nothing to compare"
    for cell, metrics in cells.items():
        for metric, entry in metrics.items():
            fault = _entry_fault(entry, content["format"])
            if fault is not None:
                return f"'{metric}' of '{cell}' {fault}"
    return None


def _entry_fault(entry: Any, version: int) -> str | None:
    if not isinstance(entry, dict) or not _is_number(entry.get("value")):
        return "needs numbers for value, low and high"
    ends = (entry.get("low"), entry.get("high"))
    without = version > 1 and {"low", "high"} <= set(entry) and ends == (None, None)
    if not all(map(_is_number, ends)) and not without:
        return "needs numbers for value, low and high"
    if entry.get("blocks") is None:
        return None
    try:
        moved = np.frombuffer(base64.b64decode(entry["blocks"], validate=True), dtype="<f4")
    except (binascii.Error, TypeError, ValueError):
        return "has 'blocks' that are not float32 in base64"
    if len(moved) < 2 or not np.isfinite(moved).all():
        return "has 'blocks' that are not two finite numbers or more"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
