"""A metric against the number of images: what was measured at each N, and what its bias says of every other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from results.leaderboard import setting_of
from results.rows import Row, Value

FEWEST, MOST = 0.25, 4.0
"""Range of the prediction, in multiples of the N measured."""


class Convergence(NamedTuple):
    """One setting's values at each number of images, and the line that its bias of order 1/N predicts.

    Attributes:
        row: the row of the ranking shown.
        points: N and value at each N that the setting was measured with (same protocol, judges and reference), N up.
        limit: the value less its bias, at infinitely many images; None where no bias is known.
        slope: what `slope / N` adds to the limit at N images.
    """

    row: Row
    points: list[tuple[int, Value]]
    limit: float | None
    slope: float | None

    def predicted(self, n: float) -> float | None:
        """Return the value expected at `n` images, to first order."""
        return None if self.limit is None or self.slope is None else self.limit + self.slope / n


def convergence(shown: Sequence[Row], everything: Sequence[Row], metric: str) -> list[Convergence]:
    """Return how `metric` goes with N for each of the rows `shown`; rows without it are left out.

    `everything`: finished rows of any N of the same protocol; the first seed measured of an N stands for it.
    """
    found = []
    alike: dict[tuple[object, ...], list[Row]] = {}
    if len({row.cell["num_samples"] for row in everything}) > 1:
        for other in everything:
            if not other.cell["random_weights"]:
                alike.setdefault(_but_for_n(other), []).append(other)
    for row in shown:
        value = row.measured(metric)
        if value is None or value.value is None:
            continue
        points = {row.cell["num_samples"]: value}
        for other in alike.get(_but_for_n(row), []):
            measured = other.measured(metric)
            n = other.cell["num_samples"]
            if measured is not None and measured.value is not None and measured.n == n:
                points.setdefault(n, measured)
        limit = value.corrected
        slope = None if limit is None else (value.value - limit) * value.n
        found.append(Convergence(row, sorted(points.items()), limit, slope))
    return found


def _but_for_n(row: Row) -> tuple[object, ...]:
    protocol, measurement, _, *rest = setting_of(row)
    return protocol, measurement, *rest
