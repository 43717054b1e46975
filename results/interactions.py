"""What blocks of samples do to a value together, which a jackknife counts once for each of them.

Of a value that is a sum of what each block does (A_k), what two blocks of the samples do together (H_kl), two of the
reference (G_rs), and one of each (E_kr),

    T = mean_k A_k + mean_kl H_kl + mean_rs G_rs + mean_kr E_kr

leaving out block k takes every pair away that k is in, so the jackknife's variance holds that of the pairs twice (Efron
and Stein, Annals of Statistics 9, 1981). Where pairs matter, as for a model that is nearly perfect (the A_k vanish) or
a small reference in many dimensions, its standard error is up to the root of 2 too wide. Here the second is taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FEWEST = 4
"""Blocks of one side below which a table of their pairs is all row and column means."""


class Interactions(NamedTuple):
    """What pairs of blocks add to a value, in its unit.

    Parts that belong to a single block may be in the tables (row and column means): they are taken out. Any of a side's
    blocks will do: their pairs stand for all.

    Attributes:
        own: of two blocks of the samples, symmetric [B, B]; the diagonal is not read.
        reference: of two blocks of the reference, symmetric [C, C] likewise; None where it is not sampled.
        cross: of a block of the samples and one of the reference, [B, C]; None likewise.
    """

    own: np.ndarray
    reference: np.ndarray | None = None
    cross: np.ndarray | None = None

    def counted_twice(self, blocks: int, reference_blocks: int | None) -> float:
        """Return what the jackknife's variance holds too much of, with so many blocks left out of each side.

        The reference's parts count where `reference_blocks` is not None. 0.0 of fewer than `FEWEST` blocks.
        """
        excess = _excess(self.own, blocks)
        if reference_blocks is not None and self.reference is not None and self.cross is not None:
            excess += _excess(self.reference, reference_blocks)
            rows, columns = self.cross.shape
            apart = self.cross - self.cross.mean(axis=0) - self.cross.mean(axis=1, keepdims=True) + self.cross.mean()
            freedom = max((rows - 1) * (columns - 1), 1)
            excess += float((apart**2).sum()) / freedom / (blocks * reference_blocks)
        return excess

    @classmethod
    def total(cls, parts: Sequence[Interactions | None], scales: Sequence[float]) -> Interactions | None:
        """Return those of sum_i scales[i] T_i, whose blocks are the same; None where any is not known."""
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None

        def of(tables: Sequence[np.ndarray | None]) -> np.ndarray | None:
            there = [scale * table for scale, table in zip(scales, tables, strict=True) if table is not None]
            return np.sum(there, axis=0) if len(there) == len(tables) else None

        own = of([part.own for part in known])
        assert own is not None
        return cls(own, of([part.reference for part in known]), of([part.cross for part in known]))


def _excess(table: np.ndarray, blocks: int) -> float:
    """Return what the jackknife over `blocks` blocks holds too much of for the pairs of one side.

    With tau^2 the variance of H_kl, and 2 tau^2 that of the pairs within a block, the value's is 2 tau^2/K^2 and the
    jackknife's expectation (4 K - 6) tau^2/(K (K - 1)^2).
    """
    k = len(table)
    if k < FEWEST:
        return 0.0
    pairs = np.array(table, dtype=np.float64)
    np.fill_diagonal(pairs, 0.0)
    row = pairs.sum(axis=1)
    apart = pairs - (row[:, None] + row) / (k - 2) + row.sum() / ((k - 1) * (k - 2))
    square = float((apart[np.triu_indices(k, 1)] ** 2).sum()) / (k * (k - 3) / 2)
    return ((4 * blocks - 6) / (blocks * (blocks - 1) ** 2) - 2 / blocks**2) * square
