"""The best row of any choice of rows and those tied with it: who beats whom is found once, for all choices."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from results.comparing import shared_blocks
from results.leaderboard import sorted_rows
from results.rank_sets import surely_beaten
from results.rows import Row
from results.statistics import FEWEST_BLOCKS

Beaten = Mapping[str, frozenset[str]]
"""By cell id, the cells that are significantly better in the cell's comparison with all others."""


class Pick(NamedTuple):
    """The best row of a choice, and the others of it that may be its best one, best first."""

    row: Row
    tied: list[Row]


def beaten_by(found: Sequence[Row], metric: str) -> dict[str, frozenset[str]]:
    """Return who is significantly better than each row by `metric`, critical values allowing for all of `found`.

    Rows are read with their blocks. Those on the same blocks are compared; of others, or of fewer than
    `statistics.FEWEST_BLOCKS`, nothing is known: they beat none and none beats them.
    """
    groups: dict[tuple[int, int, str], list[Row]] = {}
    for row in found:
        if row.value(metric) is not None:
            groups.setdefault(shared_blocks(row, metric), []).append(row)
    beaten = {str(row.cell["cell_id"]): frozenset[str]() for row in found}
    for (blocks, reference, _), members in groups.items():
        if blocks < FEWEST_BLOCKS:
            continue
        values = [value for row in members if (value := row.measured(metric)) is not None]
        ahead = surely_beaten(
            np.array([value.value for value in values]),
            np.array([value.jackknife for value in values]),
            members[0].fact(metric).better,
            leave_reference_out=np.array([value.jackknife_reference for value in values]) if reference else None,
        )
        names = np.array([str(row.cell["cell_id"]) for row in members])
        beaten |= {str(name): frozenset(map(str, names[column])) for name, column in zip(names, ahead.T, strict=True)}
    return beaten


def pick(among: Sequence[Row], metric: str, beaten: Beaten) -> Pick | None:
    """Return the best row of `among` by `metric`, and those that no row of `among` beats; None of rows without values.

    The set holds the truly best row of `among` with at least 95%, however it was narrowed down.
    """
    order = [row for row in sorted_rows(among, metric, {metric}) if row.value(metric) is not None]
    if not order:
        return None
    here: Collection[str] = {str(row.cell["cell_id"]) for row in order}
    return Pick(order[0], [row for row in order[1:] if beaten[str(row.cell["cell_id"])].isdisjoint(here)])


def tied_with_best(found: Sequence[Row], metric: str) -> list[Row]:
    """Return the rows that cannot be told from the best, the first of `found` (best first by `metric`, with blocks).

    They are those that may be the best one, which allows for the number of rows and for the best having been chosen as
    such. A row without the blocks of the others is tied: nothing is known of it.
    """
    beaten = beaten_by(found, metric)
    return [row for row in found[1:] if not beaten[str(row.cell["cell_id"])]]
