"""A leaderboard as it is asked for: which rows of each ranking, sorted by what, and how their settings were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import duckdb

from results.catalog import FACTS
from results.errors import BenchError
from results.leaderboard import (
    SPEED,
    Choice,
    best_of_each,
    by_ranking,
    check_metric,
    chosen_on,
    headline,
    missing_metrics,
    rankings,
    rows,
    setting_of,
    sortable,
    sorted_rows,
    within_budget,
)
from results.rows import Row
from results.seeds import Repeated, repeated_settings
from results.spaces import Agreement, agreements
from results.training import leave_out_trained, left_out_line


@dataclass(frozen=True)
class View:
    """What to show; None leaves it open. Raises BenchError where `every` and `select_on` are both asked for.

    Attributes:
        protocol: only this protocol's rows.
        sort: the metric, composite or cost to sort by; by default the `headline` of each ranking.
        every: every setting instead of each model's best.
        nfe: at most so many network evaluations per image.
        seconds: at most so many seconds per image.
        steps: exactly so many steps.
        select_on: choose each model's setting on this seed, and show it on the others.
        without_trained_on: leave out models that were trained on these judges' features, and rank without them.
    """

    protocol: str | None = None
    sort: str | None = None
    every: bool = False
    nfe: float | None = None
    seconds: float | None = None
    steps: int | None = None
    select_on: int | None = None
    without_trained_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.every and self.select_on is not None:
            raise BenchError("--all shows every setting, --select-on one per model: use one of the two")


@dataclass(frozen=True)
class Standing:
    """The rows of one ranking that a view shows, best first.

    Attributes:
        ranking: its digest.
        facts: its row of table `rankings`: bounds, eps, correlation, sensitivity, `note`; empty where there is none.
        metric: what the rows are sorted by.
        rows: the rows shown; never empty.
        members: every measured row of the ranking.
        choices: by cell id, how the settings shown were chosen on another seed.
        missing: a line for each reason why rows shown lack metrics.
    """

    ranking: str
    facts: Mapping[str, Any]
    metric: str
    rows: Sequence[Row]
    members: Sequence[Row]
    choices: Mapping[str, Choice]
    missing: Sequence[str] = ()

    @property
    def ranked(self) -> list[Row]:
        """The members that have an MMHM."""
        return [row for row in self.members if row.rank]

    @cached_property
    def spaces(self) -> list[Agreement]:
        """Every two feature spaces that the members were measured in."""
        return agreements(self.members)

    @property
    def measured(self) -> bool:
        """Whether any metric was measured of any member."""
        return any(row.metrics for row in self.members)

    def disagreements(self, composite: str) -> tuple[int, int]:
        """Return how many pairs of ranked rows `composite` orders otherwise than MMHM, and the number of pairs."""
        sign, pairs = FACTS[composite].sign, list(combinations(self.ranked, 2))
        apart = sum(
            sign * (one.rank[composite] - two.rank[composite]) * (one.rank["mmhm"] - two.rank["mmhm"]) < 0
            for one, two in pairs
        )
        return apart, len(pairs)


@dataclass(frozen=True)
class Leaderboard:
    """What a view shows of a database.

    Attributes:
        view: what was asked for.
        standings: one for each ranking; those without any value of what is sorted by come last.
        choices: what was chosen on the selection seed.
        failed: rows that failed.
        found: whether the protocol has any finished row, within the view's budget or not.
        repeated: the settings shown that were measured on several seeds, but for the selection seed.
        left_out: which models were left out because of what they were trained on; empty for no such wish.
        timed: how many rows were timed alone, which are never ranked; counted where there are no others.
    """

    view: View
    standings: Sequence[Standing]
    choices: Sequence[Choice]
    failed: Sequence[Row]
    found: bool
    repeated: Sequence[Repeated] = ()
    left_out: str = ""
    timed: int = 0

    @property
    def unreported(self) -> list[Row]:
        """The rows whose setting was chosen but is measured on no other seed."""
        return [choice.chosen for choice in self.choices if not choice.reported]


def leaderboard(connection: duckdb.DuckDBPyConnection, view: View) -> Leaderboard:
    """Return what `view` shows of an open database.

    Raises StoreError for a metric that no row has, or when nothing was measured on the selection seed.
    """
    everything, left_out = rows(connection), ""
    if view.without_trained_on:
        out = leave_out_trained(connection, everything, view.without_trained_on)
        gone = {row.cell["cell_id"] for row in out}
        everything = [row for row in rows(connection) if row.cell["cell_id"] not in gone]
        left_out = left_out_line(out, view.without_trained_on)
    check_metric(everything, view.sort)
    known = sortable(everything)
    found = [row for row in everything if view.protocol in (None, row.cell["protocol"])]
    candidates = within_budget(found, nfe=view.nfe, seconds=view.seconds, steps=view.steps)
    choices: list[Choice] = []
    if view.select_on is not None:
        choices = chosen_on(found, view.select_on, view.sort, candidates, known)
        shown = best_of_each([row for choice in choices for row in choice.reported], view.sort, known=known)
    elif view.every:
        shown = sorted_rows(candidates, view.sort, known)
    else:
        shown = best_of_each(candidates, view.sort, known=known)
    facts, members = rankings(connection), by_ranking(found)
    selected = {row.cell["cell_id"]: choice for choice in choices for row in choice.reported}
    standings = []
    for ranking, group in by_ranking(shown).items():
        metric = view.sort or headline(members[ranking])
        ordered = sorted_rows(group, metric, {metric})
        lacking = missing_metrics(connection, ordered)
        standings.append(
            Standing(ranking, facts.get(ranking, {}), metric, ordered, members[ranking], selected, lacking)
        )
    standings.sort(key=lambda standing: all(row.value(standing.metric) is None for row in standing.rows))
    failed = rows(connection, protocol=view.protocol, status="failed")
    settings = {setting_of(row) for row in shown}
    cells = [row.cell["cell_id"] for row in found if setting_of(row) in settings]
    again = repeated_settings(connection, cells, without=view.select_on)
    timed = 0 if everything else len(rows(connection, protocol=SPEED))
    return Leaderboard(view, standings, choices, failed, bool(found), again, left_out, timed)
