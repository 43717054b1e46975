"""Balanced half samples: standard errors of values that a jackknife's blocks cannot tell the error of.

A ball that ends at the k-th neighbour makes images act in pairs, triples and more. What j images do together a
jackknife counts j times, so its variance is 2 to 3 times too large. Two halves of a sample are independent, and half of
the difference of their values has the variance of the whole sample's value, to whatever order images act together, as
long as that variance goes by 1/n:

    D_s = (T(A_s) - T(B_s))/2      se^2 = mean_s D_s^2

over balanced splits of the blocks in halves (McCarthy, Review of the International Statistical Institute 37, 1969).
With two sides, each is halved, and D_s is the main effect of a side in the table of T(A, A'), T(A, B'), T(B, A') and
T(B, B'): what both sides do together then counts once, half on either side.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import helmert

CANDIDATES = 400
"""Random splits that the next one is chosen from, where there is no table of orthogonal ones."""


def splits(count: int, wanted: int) -> np.ndarray:
    """Return `wanted` splits of `count` blocks into halves, int8 [wanted, count]: 1, -1, and 0 for a block left out.

    Halves have equally many blocks, so of an odd number one is left out each time. Splits are orthogonal where a
    quadratic-residue table of Paley's has their size (4, 8, 12, 20, 24 ...), else as nearly as a search finds.

    Raises:
        ValueError: `wanted` is not in 1..count - 1.
    """
    if not 1 <= wanted < count:
        raise ValueError(f"{count} blocks have 1 to {count - 1} splits, not {wanted}")
    prime = count - 1
    if count % 4 == 0 and all(prime % divisor for divisor in range(2, int(prime**0.5) + 1)):
        squares = {value * value % prime for value in range(1, prime)}
        table = np.array([[1 if (j - i) % prime in squares else -1 for j in range(prime)] for i in range(prime)])
        return np.hstack([np.ones((prime, 1)), table]).astype(np.int8)[:wanted]
    random, half = np.random.default_rng(count), count // 2
    found = np.empty((0, count), dtype=np.int8)
    for row in range(wanted):
        candidates = np.repeat(np.repeat([1, -1], half)[None], CANDIDATES, axis=0)
        candidates = random.permuted(candidates, axis=1)
        if count % 2:
            candidates = np.insert(candidates, row % count, 0, axis=1)
        alike = ((found.astype(int) @ candidates.T) ** 2).sum(axis=0)
        found = np.vstack([found, candidates[int(np.argmin(alike))].astype(np.int8)])
    return found


def stand_ins(value: float, differences: np.ndarray) -> np.ndarray:
    """Return K values without a block of which a jackknife makes se^2 = mean_s D_s^2, from the K - 1 `differences`.

    They are linear in the differences: those of two rows with the same splits stand for the difference of the rows.
    """
    count = len(differences) + 1
    influence = np.asarray(differences) @ helmert(count) / np.sqrt(count - 1)
    stands: np.ndarray = value - np.sqrt(count / (count - 1)) * influence
    return stands
