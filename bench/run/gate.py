"""The regression gate: a small subset measured again and held against a baseline file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from bench.run.plan import Request
from bench.run.runner import Progress, run
from protocols import find_protocol
from results.errors import BenchError
from results.files import write_atomically
from results.leaderboard import rows
from results.store import connect

FORMAT = 1


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


def write_baseline(
    path: Path,
    protocol: str,
    models: tuple[str, ...] | None,
    steps: tuple[int, ...],
    num_samples: int,
    device: str,
    workers: int,
    progress: Progress,
) -> int:
    """Measure the subset and write the baseline; return its number of metrics."""
    chosen = models or tuple(dict.fromkeys(name for sweep in find_protocol(protocol).sweeps for name in sweep.models))
    measured = _measure(protocol, chosen, steps, num_samples, device, workers, progress)
    if not measured:
        raise BenchError("check: nothing could be measured; see the messages above")
    baseline = {
        "format": FORMAT,
        "protocol": protocol,
        "models": list(chosen),
        "steps": list(steps),
        "num_samples": num_samples,
        "cells": measured,
    }
    write_atomically(path, (json.dumps(baseline, indent=1, sort_keys=True) + "\n").encode(), "--write")
    return sum(len(metrics) for metrics in measured.values())


def check_baseline(path: Path, device: str, workers: int, progress: Progress) -> Outcome:
    """Measure the baseline's subset again and return what moved beyond its 95 % interval."""
    baseline = _read(path)
    measured = _measure(
        baseline["protocol"],
        tuple(baseline["models"]),
        tuple(baseline["steps"]),
        baseline["num_samples"],
        device,
        workers,
        progress,
    )
    moved, compared = [], 0
    for cell, metrics in baseline["cells"].items():
        for metric, expected in metrics.items():
            compared += 1
            value = measured.get(cell, {}).get(metric, {}).get("value")
            if value is None or not expected["low"] <= value <= expected["high"]:
                moved.append(Move(cell, metric, expected["value"], expected["low"], expected["high"], value))
    return Outcome(compared, moved)


def _read(path: Path) -> dict[str, Any]:
    try:
        baseline = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BenchError(f"baseline {path}: cannot be read ({error.strerror}); make one with --write") from error
    except ValueError as error:
        raise BenchError(f"baseline {path}: not JSON ({error}); make it again with --write") from error
    needed = {"format", "protocol", "models", "steps", "num_samples", "cells"}
    if not isinstance(baseline, dict) or not needed <= set(baseline) or baseline["format"] != FORMAT:
        raise BenchError(f"baseline {path}: not a baseline of format {FORMAT}; make it again with --write")
    return baseline


def _measure(
    protocol: str,
    models: tuple[str, ...],
    steps: tuple[int, ...],
    num_samples: int,
    device: str,
    workers: int,
    progress: Progress,
) -> dict[str, dict[str, dict[str, float]]]:
    request = Request(find_protocol(protocol), models=models, steps=steps, num_samples=num_samples, device=device)
    with tempfile.TemporaryDirectory(prefix="bench-check-") as folder:
        summary = run(request, Path(folder), progress=progress, workers=workers)
        with connect(summary.database, retry=True) as connection:
            found = rows(connection)
    return {
        f"{row.cell['model']} {row.cell['steps']} steps cfg {row.cell['cfg']:g}": {
            metric: {"value": value.value, "low": value.low, "high": value.high}
            for metric, value in sorted(row.metrics.items())
            if value.value is not None and value.low is not None and value.high is not None
        }
        for row in found
    }
