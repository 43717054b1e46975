"""What a comparison of two rows would resolve with more samples, from a pilot of a few hundred."""

from __future__ import annotations

import math
from typing import NamedTuple

from results.comparing import paired
from results.errors import BenchError
from results.leaderboard import measured_facts
from results.rows import Row
from results.statistics import COVERAGE, FEWEST_BLOCKS

POWER = 0.8
FEWEST_SAMPLES = 2 * FEWEST_BLOCKS
"""Samples below which there is no verdict, however large the difference."""


class Power(NamedTuple):
    """What `samples` a row would tell of the difference of one metric, at 5% and 80% power.

    Attributes:
        metric: name of the metric.
        pilot: number of samples that the rows have.
        difference: a - b in the pilot.
        samples: number of samples asked about.
        resolves: the true difference that `samples` would find four times of five.
        sought: the difference that `needed` is for: the one asked for, or the pilot's.
        needed: samples that would find `sought` four times of five; None where none would.
        gain: how many times as many samples rows without shared noise would need.
        reason: why `needed` is None.
    """

    metric: str
    pilot: int
    difference: float
    samples: int
    resolves: float
    sought: float
    needed: int | None
    gain: float
    reason: str | None


def power_of(
    a: Row, b: Row, *, samples: int | None = None, difference: float | None = None, metric: str | None = None
) -> list[Power]:
    """Return the power of comparing two rows of one ranking, read with their blocks, for each metric of both.

        (t_0.975 + t_0.8) sqrt(se^2 n/N + se_reference^2) = difference

    with se of the paired difference over the pilot's n samples and Student's t of its K - 1 degrees of freedom. The
    reference's share does not fall with N. Bias that differs between the rows is not in it.

    Args:
        a: a row.
        b: another.
        samples: N; the pilot's own by default.
        difference: what to find, above 0 in the metric's unit; the pilot's by default.
        metric: only this one.

    Raises:
        BenchError: a number out of range, a metric that rows lack, or rows that share no blocks.
    """
    if samples is not None and samples < 1:
        raise BenchError(f"--n: {samples} is not a number of samples")
    if difference is not None and not (math.isfinite(difference) and difference > 0):
        raise BenchError(f"--difference: {difference:g} is not the size of a difference; use a number above 0")
    if difference is not None and metric is None:
        raise BenchError("--difference is in the unit of a metric: name the metric with --metric")
    names = [fact.name for fact in measured_facts([a]) if fact.kind == "metric" and paired(a, b, fact.name) is not None]
    if metric is not None and metric not in names:
        raise BenchError(f"--metric: no paired values of '{metric}'; the rows share {', '.join(names) or 'none'}")
    if not names:
        raise BenchError(
            "the rows share no blocks of samples, so nothing is known about their difference; measure them again"
        )
    return [_power(a, b, name, samples, difference) for name in names if metric in (None, name)]


def _power(a: Row, b: Row, metric: str, samples: int | None, difference: float | None) -> Power:
    import numpy as np
    from scipy.special import stdtrit

    from results.statistics import influences

    one, other = a.metrics[metric], b.metrics[metric]
    own = [influences(np.asarray(row.jackknife)) for row in (one, other)]
    variance = float(((own[0] - own[1]) ** 2).sum())
    apart = float((own[0] ** 2).sum() + (own[1] ** 2).sum())
    shared = 0.0
    if one.jackknife_reference and other.jackknife_reference:
        shared = float((influences(np.subtract(one.jackknife_reference, other.jackknife_reference)) ** 2).sum())
    degrees = len(own[0]) - 1
    factor = float(stdtrit(degrees, (1 + COVERAGE) / 2) + stdtrit(degrees, POWER))
    assert one.value is not None and other.value is not None
    found = one.value - other.value
    n = one.n
    asked = samples or n
    sought = abs(found) if difference is None else difference
    room = (sought / factor) ** 2 - shared
    needed, reason = None, None
    if variance == 0.0:
        reason = "no block changes the difference"
    elif sought == 0.0:
        reason = "the pilot's difference is zero"
    elif room <= 0.0:
        reason = "sampling noise of the reference alone hides it: use a larger reference"
    else:
        needed = max(math.ceil(n * variance / room), FEWEST_SAMPLES)
    return Power(
        metric, n, found, asked, factor * math.sqrt(variance * n / asked + shared), sought, needed,
        apart / variance if variance > 0 else math.inf, reason,
    )  # fmt: skip
