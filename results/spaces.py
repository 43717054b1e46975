"""Feature spaces beside each other: do they order the rows of a ranking alike, and do they agree on the first?

A space is what judges of one kind of network see (`clip`, `clip_l14`). It speaks through the first distance to the
reference that is measured in it, FID without its bias before FID.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from results.facts import MetricFact
from results.leaderboard import best_of_each, comparable, measured_facts
from results.rows import Row

FEWEST = 3
"""Rows between which a rank correlation is given."""


class Agreement(NamedTuple):
    """Two feature spaces over the rows that both were measured for."""

    one: MetricFact
    other: MetricFact
    tau: float | None
    """Kendall's tau-b of the two orders, 1 for the same one; None below `FEWEST` rows, or where all are equal."""
    n: int
    """Rows."""
    first: Row
    """The best by `one`."""
    second: Row
    """The best by `other`."""

    @property
    def disagree(self) -> bool:
        """Whether the two are of different models."""
        return self.first.cell["model"] != self.second.cell["model"]

    @property
    def sure(self) -> bool:
        """Whether the best by one is surely not the best by the other."""
        return not (self.first.may_be_best(self.other.name) or self.second.may_be_best(self.one.name))

    def row(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "metrics": [self.one.name, self.other.name],
            "tau_b": self.tau,
            "n": self.n,
            "leaders": [self.first.cell["cell_id"], self.second.cell["cell_id"]],
            "disagree": self.disagree,
            "sure": self.disagree and self.sure,
        }


def space_of(judge: str) -> str:
    """Return the feature space of a judge: its name without sizes, `clip` of `clip_l14_336`."""
    return re.sub(r"(_[a-z]*\d\w*)+$", "", judge)


def measures(found: Sequence[Row]) -> list[MetricFact]:
    """Return one distance for each feature space that was measured, in the order of tables."""
    chosen: dict[str, MetricFact] = {}
    facts = {fact.name: fact for fact in measured_facts(found)}
    for name, fact in facts.items():
        if fact.kind == "metric" and fact.reference != "none" and not fact.higher_is_better and "," not in fact.judge:
            chosen.setdefault(space_of(fact.judge), facts.get(f"{name}_corrected", fact))
    return list(chosen.values())


def agreements(found: Sequence[Row]) -> list[Agreement]:
    """Return every two feature spaces of the rows of one ranking, as far as rows were measured in both."""
    from scipy.stats import kendalltau

    pairs = []
    for one, other in combinations(measures(found), 2):
        rows = comparable(comparable(found, one.name), other.name)
        if not rows:
            continue
        values = [[row.value(fact.name) for row in rows] for fact in (one, other)]
        tau = float(kendalltau(*values, variant="b").statistic) if len(rows) >= FEWEST else float("nan")
        firsts = [best_of_each(rows, fact.name, by=())[0] for fact in (one, other)]
        pairs.append(Agreement(one, other, tau if tau == tau else None, len(rows), *firsts))
    return pairs


def disputed(found: Sequence[Agreement]) -> Agreement | None:
    """Return the first two spaces that have different models first, sure ones before others; None where all agree."""
    apart = [pair for pair in found if pair.disagree]
    return min(apart, key=lambda pair: not pair.sure, default=None)


def at_odds(found: Sequence[Row], leading: Callable[[str], set[str]]) -> list[tuple[MetricFact, MetricFact]]:
    """Return the pairs of distances of two spaces whose leaders among `found` have no row in common.

    `leading` gives the cells that nothing is significantly better than by a metric; none where it is not known.
    """
    first = {fact.name: leading(fact.name) for fact in measures(found)}
    return [
        (one, other)
        for one, other in combinations(measures(found), 2)
        if first[one.name] and first[other.name] and not first[one.name] & first[other.name]
    ]


def leaders(pair: Agreement) -> str:
    """Say which model each of two feature spaces has first."""
    sure = "" if pair.sure else ", which may be luck"
    names = [row.cell["model"] for row in (pair.first, pair.second)]
    return f"{names[0]} is first by {pair.one.short}, {names[1]} by {pair.other.short}{sure}"
