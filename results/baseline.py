"""The baseline of the regression gate: which cells were measured, their values with intervals, and what moved since."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from results.documents import read_json
from results.errors import BenchError
from results.files import write_atomically
from results.leaderboard import Row

FORMAT = 1

Values = dict[str, dict[str, dict[str, Any]]]
"""Cell -> metric -> value, low, high."""


class Baseline(NamedTuple):
    """A subset of a protocol and what was measured of it."""

    protocol: str
    models: tuple[str, ...]
    steps: tuple[int, ...]
    num_samples: int
    cells: Values


class Move(NamedTuple):
    """A metric that left its interval."""

    cell: str
    metric: str
    baseline: float
    low: float
    high: float
    value: float | None

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.cell}: {self.metric} is missing; the baseline has {self.baseline:.5g}"
        moved = self.value - self.baseline
        return (
            f"{self.cell}: {self.metric} moved by {moved:+.4g} to {self.value:.5g}; "
            f"the baseline is {self.baseline:.5g} [{self.low:.5g}, {self.high:.5g}]"
        )


class Outcome(NamedTuple):
    """How many metrics were compared and which moved."""

    compared: int
    moved: list[Move]


def values_of(found: Sequence[Row]) -> Values:
    """Return what a baseline keeps of rows: every metric that has an interval."""
    return {
        f"{row.cell['model']} {row.cell['steps']} steps cfg {row.cell['cfg']:g}": {
            metric: {"value": value.value, "low": value.low, "high": value.high}
            for metric, value in sorted(row.metrics.items())
            if value.value is not None and value.low is not None and value.high is not None
        }
        for row in found
    }


def compare(baseline: Baseline, measured: Values) -> Outcome:
    """Return what moved beyond the 95 % interval that the baseline gives it, or is missing."""
    moved, compared = [], 0
    for cell, metrics in baseline.cells.items():
        for metric, expected in metrics.items():
            compared += 1
            value = measured.get(cell, {}).get(metric, {}).get("value")
            if value is None or not expected["low"] <= value <= expected["high"]:
                moved.append(Move(cell, metric, expected["value"], expected["low"], expected["high"], value))
    return Outcome(compared, moved)


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline file. Raises BenchError when it cannot be written."""
    content = {"format": FORMAT, **baseline._asdict()}
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode(), "--write")


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file. Raises BenchError when it cannot be read, is not one of this format, or holds nothing."""
    content = read_json(path, "baseline")
    if (
        not isinstance(content, dict)
        or not {"format", *Baseline._fields} <= set(content)
        or content["format"] != FORMAT
    ):
        raise BenchError(f"baseline {path}: not a baseline of format {FORMAT}; make it again with --write")
    fault = _fault(content)
    if fault is not None:
        raise BenchError(f"baseline {path}: {fault}; make it again with --write")
    return Baseline(
        content["protocol"],
        tuple(content["models"]),
        tuple(content["steps"]),
        content["num_samples"],
        content["cells"],
    )


def _fault(content: dict[str, Any]) -> str | None:
    """Return what is wrong with a baseline's values, None for one that there is something to compare with."""
    models, steps, cells = content["models"], content["steps"], content["cells"]
    if not isinstance(content["protocol"], str):
        return "'protocol' is no name"
    if not isinstance(models, list) or not models or not all(isinstance(name, str) for name in models):
        return "'models' is no list of names"
    if not isinstance(steps, list) or not steps or not all(type(step) is int and step >= 1 for step in steps):
        return "'steps' is no list of numbers from 1"
    if type(content["num_samples"]) is not int or content["num_samples"] < 2:
        return "'num_samples' is no number from 2"
    if not isinstance(cells, dict) or not all(isinstance(metrics, dict) for metrics in cells.values()):
        return "'cells' is no table of metrics by cell"
    if not any(cells.values()):
        return "it holds no metric, so there is nothing to compare"
    for cell, metrics in cells.items():
        for metric, entry in metrics.items():
            numbers = [entry.get(key) for key in ("value", "low", "high")] if isinstance(entry, dict) else [None]
            if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
                return f"'{metric}' of '{cell}' lacks numbers value, low and high"
    return None
