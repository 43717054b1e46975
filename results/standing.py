"""Who is better than whom, and how surely: ranks from paired differences, budgets, the Pareto front."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Standing:
    """The rows of one ranking under one metric; every field is indexed by cell_id."""

    metric: str
    score: pd.Series
    """The value, turned so that more is better."""
    rank_low: pd.Series
    rank_high: pd.Series
    separated: pd.DataFrame | None = None
    """[row, column] is True where the paired difference of two rows does not span zero."""

    def tied(self, one: str, other: str) -> bool:
        """Tell whether the data cannot order two rows: paired difference if known, else overlapping rank intervals."""
        if self.separated is not None:
            return not bool(self.separated.at[one, other])
        return bool(self.rank_low[one] <= self.rank_high[other] and self.rank_low[other] <= self.rank_high[one])

    def best(self, rows: pd.Index) -> str | None:
        """Return the row with the best score among `rows`, None where none of them has a score."""
        scores = self.score.reindex(rows).dropna()
        return None if scores.empty else str(scores.idxmax())


class Budget(NamedTuple):
    """The best row that costs at most `level`, and the best rows of the models tied with it."""

    level: float
    winner: str
    tied: list[str]


def standing_from_differences(values: pd.DataFrame, metric: str, higher_is_better: bool) -> Standing:
    """Rank rows by their paired differences.

    `values` has the columns value, standard_error and jackknife (the value without block k, for k = 1..K, or None).
    With equal K the rows share their blocks, and the delete-block jackknife of the difference d is

        se(d)^2 = (K - 1)/K * sum_k (d_k - mean d)^2;

    else the two standard errors add in squares (0 where unknown). A row's rank lies between 1 + the number of rows
    surely better than it and n - the number of rows surely worse, "surely" being |d| > 1.96 se(d).
    """
    values = values[np.isfinite(values["value"].astype(float))]
    score = values["value"].astype(float) * (1.0 if higher_is_better else -1.0)
    n = len(score)
    error = values["standard_error"].astype(float).fillna(0.0).to_numpy()
    variance = error[:, None] ** 2 + error[None, :] ** 2
    blocks = [
        np.asarray(row, dtype=float) if isinstance(row, list | np.ndarray) else np.empty(0)
        for row in values["jackknife"]
    ]
    for i in range(n):
        for j in range(i):
            count = len(blocks[i])
            if count > 1 and len(blocks[j]) == count:
                difference = blocks[i] - blocks[j]
                variance[i, j] = variance[j, i] = (count - 1) * difference.var()
    difference = score.to_numpy()[:, None] - score.to_numpy()[None, :]
    surely = np.abs(difference) > Z95 * np.sqrt(variance)
    better, worse = surely & (difference > 0), surely & (difference < 0)
    return Standing(
        metric,
        score,
        rank_low=pd.Series(1 + worse.sum(axis=1), index=score.index),
        rank_high=pd.Series(n - better.sum(axis=1), index=score.index),
        separated=pd.DataFrame(surely, index=score.index, columns=score.index),
    )


def best_of_each(standing: Standing, cells: pd.DataFrame, by: list[str]) -> list[str]:
    """Return the best row of each group (say `["model"]`), best group first; groups without a score are left out."""
    groups = cells.groupby(by, dropna=False, sort=False)
    best = [row for row in (standing.best(group.index) for _, group in groups) if row is not None]
    return sorted(best, key=lambda row: -standing.score[row])


def budgets(standing: Standing, cells: pd.DataFrame, cost: str = "nfe", most: int = 8) -> list[Budget]:
    """Return the winner at each budget of `cost` per image (`nfe` or `seconds`), cheapest budget first.

    Budgets are the measured evaluation counts themselves, or powers of two where there are more than `most`; budgets of
    seconds are 1, 2 and 5 times powers of ten, or powers of ten alone.
    """
    costs = cells.loc[cells.index.intersection(standing.score.index), cost].dropna().astype(float)
    levels = sorted({float(round(count, 2)) for count in costs if count > 0})
    if not len(costs):
        return []
    if cost != "nfe":
        levels = _round_levels(costs.min(), costs.max(), (1, 2, 5))
        if len(levels) > most:
            levels = _round_levels(costs.min(), costs.max(), (1,))
    elif len(levels) > most:
        first, last = np.floor(np.log2(levels[0])), np.ceil(np.log2(levels[-1]))
        levels = [float(2**power) for power in np.arange(first, last + 1)]
    found = []
    for level in levels:
        affordable = cells.loc[costs.index[costs <= level * 1.001]]
        best = best_of_each(standing, affordable, ["model"])
        if best:
            found.append(Budget(level, best[0], [row for row in best[1:] if standing.tied(best[0], row)]))
    return found


def _round_levels(low: float, high: float, digits: tuple[int, ...]) -> list[float]:
    """Return the round numbers from the first that is at least `low` to the first that is at least `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    numbers = [float(f"{digit}e{power}") for power in powers for digit in digits]
    last = next((number for number in numbers if number >= high), numbers[-1])
    return [number for number in numbers if low <= number <= last]


def pareto_front(cost: pd.Series, score: pd.Series) -> list[str]:
    """Return the rows that no other row beats at lower or equal cost, cheapest first; more score is better."""
    front: list[str] = []
    best = -np.inf
    rows = pd.DataFrame({"cost": cost, "score": score}).dropna().sort_values(["cost", "score"], ascending=[True, False])
    for row, value in rows["score"].items():
        if value > best:
            front.append(str(row))
            best = value
    return front
