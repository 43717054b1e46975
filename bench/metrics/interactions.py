"""What two blocks do to a Frechet distance together: its second derivative in closed form.

With S1 = L L^T and C = L^T S2 L = V diag(v) V^T, a block that moves the mean by m and the covariance by D is, in the
coordinates in which both sides are equal, z = V^T L^T m and A = V^T L^T D L V on the samples' side, and on the
reference's z = v^(1/2) V^T L^-1 m and A = v^(1/2) V^T L^-1 D L^-T V v^(1/2). For two blocks of either side

    (a, b) = sum_i z_i z'_i / v_i^(1/2)  +  1/2 sum_ij A_ij A'_ij / (v_i^(1/2) v_j^(1/2) (v_i^(1/2) + v_j^(1/2)))

is what they add to the distance together; one of each side adds -2 (a, b).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bench.metrics import algebra
from bench.metrics.downdates import BlocksOut, Decomposed
from bench.metrics.frechet import FrechetReference, Moments, rows_of
from results.interactions import Interactions

BLOCKS = 10
"""Blocks of a side whose pairs are taken: 45 pairs tell the variance of all within a fifth."""
FEWEST_PER_DIMENSION = 2
"""Samples a dimension, of each side, below which more than pairs counts and nothing is said."""
SMALLEST_VALUE = 1e-10
"""Eigenvalue, as a share of the largest, below which a direction is rounding."""


def frechet_interactions(
    reference: FrechetReference,
    features: np.ndarray,
    blocks: np.ndarray,
    real: np.ndarray | None = None,
    real_blocks: np.ndarray | None = None,
    decomposed: Decomposed | None = None,
    out: BlocksOut | None = None,
) -> Interactions | None:
    """Return what pairs of blocks do to the distance of `features` [n, d] from `reference`; None of too few samples.

    Args:
        reference: the reference's side, that of `real` where it is given.
        features: samples, [n, d].
        blocks: block of each, int [n], numbers 0..K-1.
        real: samples of the reference, [m, d], where their sampling is to count.
        real_blocks: block of each, int [m], numbers 0..R-1.
        decomposed: the samples without these blocks, where that is known: it spares the decomposition.
        out: the reference without these blocks, likewise.

    A decomposition [d, d] and 2 n d^2 products; BLOCKS d^2 numbers are held for each side.
    """
    dimension = reference.mu.size
    sizes = [len(features)] + ([] if real is None else [len(real)])
    root = reference.root
    if min(sizes) < FEWEST_PER_DIMENSION * dimension or root.shape != (dimension, dimension):
        return None
    white = None if decomposed is None else decomposed.blocks.leaving
    other = None if out is None else out.leaving
    if white is None or decomposed is None:
        moments = Moments.of(features, shift=reference.mu)
        values, vectors = algebra.eigh(algebra.sandwich(root, moments.covariance))
    else:
        values, vectors = decomposed.values / (len(features) - 1), decomposed.vectors
    kept = values > SMALLEST_VALUE * values.max()
    if not kept.any():
        return None
    metric = _Metric.of(np.sqrt(values[kept]))
    basis = algebra.array(vectors[:, kept])
    if white is None:
        own = _deviations(_parts(features, moments.mean, algebra.array(root) @ basis, blocks), metric)
    else:
        length = metric.root * np.sqrt(len(features) - 1)
        own = _deviations((algebra.array(part[:-1, kept]) * length for part in white.rows[:BLOCKS]), metric)
    if real is None or real_blocks is None:
        return Interactions(algebra.host(own @ own.T))
    if other is None:
        inverse = algebra.inverse(root) if reference.triangular else np.linalg.pinv(root, SMALLEST_VALUE)
        stretched = (algebra.array(inverse.T) @ basis) * metric.root
        theirs = _deviations(_parts(real, reference.mu, stretched, real_blocks), metric)
    else:
        stretched = basis * (metric.root * np.sqrt(len(real) - 1))
        theirs = _deviations((algebra.array(part[:-1]) @ stretched for part in other.rows[:BLOCKS]), metric)
    return Interactions(*map(algebra.host, (own @ own.T, theirs @ theirs.T, -2.0 * own @ theirs.T)))


class _Metric(NamedTuple):
    """The scalar product of blocks: `root` v^(1/2) [r], and of the upper triangle of A `weights` [r (r + 1) / 2].

    Where the algebra runs.
    """

    root: Any
    upper: tuple[Any, Any]
    weights: Any

    @classmethod
    def of(cls, root: np.ndarray) -> _Metric:
        row, column = np.triu_indices(len(root))
        one, other = root[row], root[column]
        weights = np.sqrt(np.where(row == column, 0.5, 1.0) / (one * other * (one + other)))
        return cls(algebra.array(root), algebra.triangle(len(root)), algebra.array(weights))


def _parts(features: np.ndarray, mean: np.ndarray, basis: Any, blocks: np.ndarray) -> Iterator[Any]:
    """Yield the first BLOCKS blocks of features in a basis [d, r], each an `array` [b, r]."""
    centre = algebra.array(mean)
    for block in range(min(int(blocks.max()) + 1, BLOCKS)):
        yield (algebra.array(rows_of(features, np.flatnonzero(blocks == block))) - centre) @ basis


def _deviations(parts: Iterable[Any], metric: _Metric) -> Any:
    """Return blocks [b, r] as vectors of plain scalar product, an `array` [B, r + r (r + 1) / 2]."""
    rows = []
    for z in parts:
        square = z.T @ z
        square /= len(z)
        rows.append(algebra.joined([z.mean(axis=0) / metric.root**0.5, square[metric.upper] * metric.weights])[None])
    found = algebra.joined(rows)
    found -= found.mean(axis=0)
    return found
