"""One setting measured on several seeds: mean, best, and whether the seeds differ as the jackknife says they should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import duckdb
import numpy as np

from results.leaderboard import measured_facts, rankings, rows, setting_of
from results.rows import COMPOSITE, Row
from results.statistics import COVERAGE, FEWEST_BLOCKS, influences

ALARM = 0.01
"""Probability that any metric of a row is said to disagree where none does."""


class OverSeeds(NamedTuple):
    """A metric of one setting over its seeds.

    Attributes:
        metric: its name.
        seeds: the seeds, ascending.
        values: one for each seed.
        mean: of the values.
        low: lower end of the 95% interval of the mean; None where a seed has too few blocks.
        high: upper end.
        best: the best of the values: what papers print that report the best of several runs.
        spread: standard deviation between seeds.
        expected: standard deviation between seeds that the jackknife expects: the root mean square of the seeds'
            standard errors, without the sampling of the reference, which all seeds share. None without blocks.
        p: probability of a ratio of `spread` to `expected` at least so far from 1, by the F distribution.
        disagree: `more` or `less` where the seeds surely differ by more or less than expected; else None.
    """

    metric: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    best: float
    spread: float
    expected: float | None
    p: float | None
    disagree: str | None


class Repeated(NamedTuple):
    """One setting and its metrics over the seeds on which all of them were measured."""

    rows: tuple[Row, ...]
    metrics: dict[str, OverSeeds]


def repeated(found: Sequence[Row], *, composite: bool = False) -> list[Repeated]:
    """Return the settings of `found` that were measured on two seeds or more, in the order of their first rows.

    Rows are read with their blocks; those of random weights do not count. `composite` takes MMHM too: only under frozen
    bounds is it the same quantity for every seed.
    """
    groups: dict[tuple[object, ...], dict[int, Row]] = {}
    for row in found:
        if not row.cell["random_weights"] and row.cell["steps"] is not None:
            groups.setdefault(setting_of(row), {})[row.cell["seed"]] = row
    return [
        Repeated(members, over_seeds(members, composite=composite))
        for group in groups.values()
        if len(members := tuple(group[seed] for seed in sorted(group))) > 1
    ]


def repeated_settings(
    connection: duckdb.DuckDBPyConnection, cells: Sequence[str], without: int | None = None
) -> list[Repeated]:
    """Return the settings among `cells` of a database that were measured on several seeds but for `without`.

    MMHM is among their metrics where its bounds are frozen.
    """
    found = [row for row in rows(connection, cells=cells) if row.cell["seed"] != without]
    if len({(setting_of(row), row.cell["seed"]) for row in found}) == len({setting_of(row) for row in found}):
        return []
    found = [row for row in rows(connection, cells=cells, blocks=True) if row.cell["seed"] != without]
    facts = rankings(connection)
    frozen = {name for name, fact in facts.items() if str(fact["bounds_source"]).startswith("frozen")}
    kept = [row for row in found if row.cell["ranking"] in frozen]
    rest = [row for row in found if row.cell["ranking"] not in frozen]
    return repeated(kept, composite=True) + repeated(rest)


def over_seeds(members: Sequence[Row], *, composite: bool = False) -> dict[str, OverSeeds]:
    """Return the metrics that all `members` have, rows of one setting on different seeds.

        F = s^2 / mean_i se_i^2      with S - 1 and S (K - 1) degrees of freedom

    s is the standard deviation between the S seeds and se_i the jackknife's standard error of seed i over its K blocks.
    Two-sided at 1% for all metrics of the row together (Bonferroni).
    """
    shared = [
        fact
        for fact in measured_facts(members)
        if (composite or fact.name != COMPOSITE) and all(row.value(fact.name) is not None for row in members)
    ]
    return {fact.name: _over_seeds(members, fact.name, fact.sign, ALARM / len(shared)) for fact in shared}


def _over_seeds(members: Sequence[Row], metric: str, sign: float, level: float) -> OverSeeds:
    from scipy.special import fdtr, stdtrit

    values = np.array([row.value(metric) for row in members], dtype=np.float64)
    count, mean, spread = len(members), float(values.mean()), float(values.std(ddof=1))
    seeds = tuple(int(row.cell["seed"]) for row in members)
    best = float((sign * values).max() * sign)
    measured = [row.measured(metric) for row in members]
    left = [value.jackknife for value in measured if value is not None and value.jackknife]
    known = (tuple(values.tolist()), mean)
    if len(left) < count or min(map(len, left)) < FEWEST_BLOCKS:
        return OverSeeds(metric, seeds, *known, None, None, best, spread, None, None, None)
    own = [float((influences(np.array(blocks)) ** 2).sum()) for blocks in left]
    degrees = sum(len(blocks) - 1 for blocks in left)
    reference = [value.jackknife_reference for value in measured if value is not None and value.jackknife_reference]
    alike = len(reference) == count and len({len(blocks) for blocks in reference}) == 1
    common = float((influences(np.mean(reference, axis=0)) ** 2).sum()) if alike else 0.0
    error = math.sqrt(sum(own) / count**2 + common)
    half = float(stdtrit(degrees, (1 + COVERAGE) / 2)) * error
    expected = math.sqrt(sum(own) / count)
    if expected == 0.0:
        return OverSeeds(metric, seeds, *known, None, None, best, spread, 0.0, None, None)
    below = float(fdtr(count - 1, degrees, (spread / expected) ** 2))
    p = min(1.0, 2 * min(below, 1 - below))
    disagree = None if p >= level else "more" if below > 0.5 else "less"
    return OverSeeds(metric, seeds, *known, mean - half, mean + half, best, spread, expected, p, disagree)
