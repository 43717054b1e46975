"""The best row of any choice of rows and those tied with it: who beats whom is found once, for all choices."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from results.comparing import shared_blocks
from results.leaderboard import sorted_rows
from results.rank_sets import Better, possible_bests, surely_beaten
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
    beaten = {str(row.cell["cell_id"]): frozenset[str]() for row in found}
    for members, field in _fields(found, metric):
        names = np.array([str(row.cell["cell_id"]) for row in members])
        ahead = surely_beaten(*field[:3], leave_reference_out=field.reference)
        beaten |= {str(name): frozenset(map(str, names[column])) for name, column in zip(names, ahead.T, strict=True)}
    return beaten


class _Field(NamedTuple):
    """What `rank_sets` takes of rows on the same blocks."""

    values: np.ndarray
    without: np.ndarray
    better: Better
    reference: np.ndarray | None


def _fields(found: Sequence[Row], metric: str) -> Iterator[tuple[list[Row], _Field]]:
    """Yield the rows that have the metric on the same blocks, and enough of them."""
    groups: dict[tuple[int, int, str], list[Row]] = {}
    for row in found:
        if row.value(metric) is not None:
            groups.setdefault(shared_blocks(row, metric), []).append(row)
    for (blocks, reference, _), members in groups.items():
        if blocks >= FEWEST_BLOCKS:
            values = [value for row in members if (value := row.measured(metric)) is not None]
            yield (
                members,
                _Field(
                    np.array([value.value for value in values]),
                    np.array([value.jackknife for value in values]),
                    members[0].fact(metric).better,
                    np.array([value.jackknife_reference for value in values]) if reference else None,
                ),
            )


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
    beaten: set[str] = set()
    for members, field in _fields(found, metric):
        best = possible_bests(*field[:3], leave_reference_out=field.reference)
        beaten |= {str(row.cell["cell_id"]) for row, may in zip(members, best, strict=True) if not may}
    return [row for row in found[1:] if str(row.cell["cell_id"]) not in beaten]
