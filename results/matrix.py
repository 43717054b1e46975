"""Several rows at once: every pair's difference, with intervals that hold together, and who cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from results.comparing import (
    TIED,
    find_cells,
    one_ranking,
    shared_blocks,
    title_of,
    trained_among,
    unmoved_shares,
    verdict_of,
)
from results.errors import BenchError
from results.leaderboard import measured_facts, rows, sorted_rows
from results.rank_sets import simultaneous_differences
from results.rows import Row
from results.statistics import FEWEST_BLOCKS, PairedDifference
from results.store import connect


class Pair(NamedTuple):
    """The difference a - b of two rows in one metric; the 95% intervals of all pairs of a metric hold at once."""

    metric: str
    a: str
    """The cell of a."""
    b: str
    difference: float
    low: float
    high: float
    verdict: str
    """`a is better`, `b is better` or `tied`."""
    trained_on: str
    """The cells of the two that were trained on the features that the metric reads."""

    @property
    def winner(self) -> str | None:
        """The cell that is better; None where the two are tied."""
        return None if self.verdict == TIED else self.a if self.verdict == "a is better" else self.b


class Matrix(NamedTuple):
    """Every pair of several rows."""

    titles: list[str]
    rows: list[Row]
    pairs: list[Pair]

    def verdict(self, metric: str, a: Row, b: Row) -> str:
        """Return `better`, `worse` or `tied`: what a is beside b."""
        one, other = a.cell["cell_id"], b.cell["cell_id"]
        for pair in self.pairs:
            if pair.metric == metric and {pair.a, pair.b} == {one, other}:
                return TIED if pair.winner is None else "better" if pair.winner == one else "worse"
        raise KeyError(f"{metric}: {one} and {other} cannot be compared")

    def leading(self, metric: str) -> tuple[list[Row], list[Row]]:
        """Return the rows that none is better than, best first, and the others."""
        pairs = [pair for pair in self.pairs if pair.metric == metric]
        compared = {cell for pair in pairs for cell in (pair.a, pair.b)}
        beaten = {pair.b if pair.winner == pair.a else pair.a for pair in pairs if pair.winner is not None}
        order = sorted_rows([row for row in self.rows if row.cell["cell_id"] in compared], metric)
        return (
            [row for row in order if row.cell["cell_id"] not in beaten],
            [row for row in order if row.cell["cell_id"] in beaten],
        )


def compare_several(database: Path, names: Sequence[str], seed: int | None = None) -> Matrix:
    """Return all pairs of three rows or more, each a cell id, MODEL or MODEL@STEPS[@CFG].

    Raises BenchError when a row is not found, not unique or given twice, or the rows were not measured alike.
    """
    with connect(database, retry=True) as connection:
        found = one_ranking(names, [find_cells(connection, name, seed) for name in names])
        ids = [cell["cell_id"] for cell in found]
        twice = next((cell for cell in ids if ids.count(cell) > 1), None)
        if twice is not None:
            same = " and ".join(f"'{name}'" for name, cell in zip(names, ids, strict=True) if cell == twice)
            raise BenchError(f"{same} are the same row, {twice}: name it once")
        read = {row.cell["cell_id"]: row for row in rows(connection, cells=ids, blocks=True)}
    members = [read[cell] for cell in ids]
    pairs = [pair for fact in measured_facts(members) for pair in pairs_of(members, fact.name)]
    return Matrix([title_of(cell) for cell in found], members, pairs)


def pairs_of(measured: Sequence[Row], metric: str) -> list[Pair]:
    """Return the pairs of the rows that have the metric, all on the same blocks; none where there are too few."""
    members = [(row, value) for row in measured if (value := row.measured(metric)) is not None and value.jackknife]
    if len(members) < 2 or len({shared_blocks(row, metric) for row, _ in members}) > 1:
        return []
    left = np.array([value.jackknife for _, value in members])
    if left.shape[1] < FEWEST_BLOCKS:
        return []
    reference = [value.jackknife_reference for _, value in members]
    index = list(combinations(range(len(members)), 2))
    differences = simultaneous_differences(
        np.array([value.value for _, value in members]),
        left,
        index,
        leave_reference_out=np.array(reference) if all(reference) else None,
    )
    pairs = []
    for (one, other), *parts in zip(index, *differences, strict=True):
        (a, value_a), (b, value_b) = members[one], members[other]
        found = unmoved_shares(PairedDifference(*parts), value_a, value_b, a.fact(metric))
        ids = a.cell["cell_id"], b.cell["cell_id"]
        trained = trained_among(dict(zip(ids, (a, b), strict=True)), metric)
        ends = float(found.value), float(found.low), float(found.high)
        pairs.append(Pair(metric, *ids, *ends, verdict_of(found, a.fact(metric)), trained))
    return pairs
