"""The regression gate: a small subset measured again and held against a baseline file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.run.plan import Request
from bench.run.runner import Progress, run
from protocols import find_protocol
from results import baseline as baselines
from results.baseline import Baseline, Outcome, Values
from results.errors import BenchError
from results.leaderboard import rows
from results.store import connect


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
    asked = Baseline(protocol, chosen, steps, num_samples, {})
    measured = _measure(asked, device, workers, progress)
    if not measured:
        raise BenchError("check: nothing could be measured; see the messages above")
    baselines.write_baseline(path, asked._replace(cells=measured))
    return sum(len(metrics) for metrics in measured.values())


def check_baseline(path: Path, device: str, workers: int, progress: Progress) -> Outcome:
    """Measure the baseline's subset again and return what moved beyond its 95 % interval."""
    baseline = baselines.read_baseline(path)
    return baselines.compare(baseline, _measure(baseline, device, workers, progress))


def _measure(asked: Baseline, device: str, workers: int, progress: Progress) -> Values:
    request = Request(
        find_protocol(asked.protocol),
        models=asked.models,
        steps=asked.steps,
        num_samples=asked.num_samples,
        device=device,
    )
    with tempfile.TemporaryDirectory(prefix="bench-check-") as folder:
        summary = run(request, Path(folder), progress=progress, workers=workers)
        with connect(summary.database, retry=True) as connection:
            return baselines.values_of(rows(connection))
