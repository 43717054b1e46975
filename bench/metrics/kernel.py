"""Kernel distances: KID (Binkowski et al., arXiv 1801.01401), CMMD (arXiv 2401.09603), and sliced Wasserstein.

    MMD^2 = mean k(a_i, a_j) + mean k(b_i, b_j) - 2 mean k(a_i, b_j)

The unbiased estimator leaves the diagonal out of the two self terms. A constant added to the kernel cancels in either
estimator. Matrices are made block by block: memory does not grow with n^2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bench.metrics import algebra
from bench.metrics.frechet import release, row_blocks, rows_of
from results.interactions import Interactions

TILE = 1024  # a tile of the kernel matrix is TILE x TILE float64, 8 MiB

Kernel = Callable[[Any, Any], Any]
"""Of float64 rows [n, d] and [m, d] to [n, m]: numpy's arrays, or torch's where `algebra.on` says so."""


@dataclass(frozen=True)
class PolynomialKernel:
    """k(x, y) = (gamma x.y + coef0)^degree; `gamma` None means 1/d. KID's kernel is the default."""

    degree: int = 3
    gamma: float | None = None
    coef0: float = 1.0

    def __call__(self, x: Any, y: Any) -> Any:
        """Return the kernel matrix of `x` [n, d] and `y` [m, d], [n, m]."""
        base = x @ y.T
        base *= 1.0 / x.shape[1] if self.gamma is None else self.gamma
        base += self.coef0
        power = base
        for _ in range(self.degree - 1):
            power = power * base
        return power


@dataclass(frozen=True)
class GaussianKernel:
    """k(x, y) = exp(-|x - y|^2 / (2 sigma^2)) - 1; without the -1 a wide kernel, all near 1, loses its digits."""

    sigma: float = 10.0

    def __call__(self, x: Any, y: Any) -> Any:
        """Return the kernel matrix of `x` [n, d] and `y` [m, d], [n, m]."""
        squared = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2.0 * (x @ y.T)
        exponent = squared.clip(0.0, None) / (-2.0 * self.sigma**2)
        return np.expm1(exponent) if isinstance(exponent, np.ndarray) else exponent.expm1()


@dataclass(frozen=True)
class UnitGaussianKernel(GaussianKernel):
    """The Gaussian kernel of rows brought to unit length: CMMD's, whatever the length of the embeddings."""

    def __call__(self, x: Any, y: Any) -> Any:
        """Return the kernel matrix of `x` [n, d] and `y` [m, d], [n, m]."""
        return super().__call__(_unit(x), _unit(y))


class SubsetDistance(NamedTuple):
    """Mean and standard deviation over random subsets; the deviation is not a standard error, for subsets overlap."""

    mean: float
    std: float


def kernel_distance_subsets(
    features_1: np.ndarray,
    features_2: np.ndarray,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    kernel: Kernel | None = None,
    rng_seed: int = 2020,
) -> SubsetDistance:
    """Return KID as torch-fidelity estimates it: the unbiased distance of random subsets drawn without replacement.

    One numpy RandomState(rng_seed) draws, for each subset, first rows of set 1 [n1, d], then of set 2 [n2, d].

    Raises:
        ValueError: a set is smaller than `subset_size`.
    """
    n1, n2 = len(features_1), len(features_2)
    if min(n1, n2) < subset_size:
        raise ValueError(f"subsets of {subset_size} need as many samples per side, got {n1} and {n2}")
    random = np.random.RandomState(rng_seed)
    values = []
    for _ in range(subsets):
        a = rows_of(features_1, random.choice(n1, subset_size, replace=False))
        b = rows_of(features_2, random.choice(n2, subset_size, replace=False))
        values.append(kernel_distance(a, b, kernel=kernel).value)
    return SubsetDistance(float(np.mean(values)), float(np.std(values)))


class KernelDistance(NamedTuple):
    """A squared maximum mean discrepancy.

    Attributes:
        value: the estimate; the unbiased one may be negative.
        standard_error: by the delta method, for resampling of set 2 with set 1 fixed (first projection of the
            U-statistic; too small when the two distributions are equal, where the first projection vanishes).
        influence: influence of each sample of set 2, centred, float64 [n2].
        leave_one_out: the estimate without each block of set 2, float64 [K]; empty if no blocks were given.
        leave_reference_out: the estimate without each block of set 1, float64 [R]; empty likewise.
        interactions: what pairs of blocks add to the estimate; None if no blocks of set 2 were given.
        own: mean kernel of each sample of set 2 with the others of the set, float64 [n2].
        cross: mean kernel of each sample of set 2 with set 1, float64 [n2].
    """

    value: float
    standard_error: float
    influence: np.ndarray
    leave_one_out: np.ndarray
    leave_reference_out: np.ndarray
    interactions: Interactions | None
    own: np.ndarray
    cross: np.ndarray


class SelfMean(NamedTuple):
    """Mean kernel value within a set, the same without each of its blocks [R], and of two blocks [R, R], float64.

    The last two are empty without blocks.
    """

    whole: float
    without: np.ndarray
    between: np.ndarray


def kernel_self_mean(
    features: np.ndarray, kernel: Kernel | None = None, *, biased: bool = False, blocks: np.ndarray | None = None
) -> SelfMean:
    """Return mean k(x_i, x_j) over all pairs, or over i != j unless `biased`: a reference's share, worth keeping.

    `blocks`: block of each sample, int [n], numbers 0..R-1, for the means without each.
    """
    kernel, n = kernel or PolynomialKernel(), len(features)
    one_block = np.zeros(n, dtype=np.int64)
    # The whole is summed in one block: summed by blocks it would change in its last digits with their number.
    whole, *parts = _self_sums(features, kernel, one_block, *([] if blocks is None else [blocks]))
    mean = float(_self_mean(whole.rows.sum(), whole.diagonal.sum(), n, biased))
    if blocks is None:
        return SelfMean(mean, np.empty(0), np.empty((0, 0)))
    return SelfMean(mean, _means_without(parts[0], blocks, biased), _between(parts[0].pairs, blocks, blocks))


def _between(pairs: np.ndarray, blocks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return mean kernel values from their sums over two blocks [K, R]."""
    mean: np.ndarray = pairs / np.outer(np.bincount(blocks), np.bincount(others))
    return mean


def _means_without(sums: _SelfSums, blocks: np.ndarray, biased: bool) -> np.ndarray:
    """Return the mean kernel value within a set without each of its blocks, float64 [K]."""
    by_row, diagonal = np.bincount(blocks, weights=sums.rows), np.bincount(blocks, weights=sums.diagonal)
    # Removing block g takes its rows and its columns out of the matrix; their intersection must be put back once.
    pairs = sums.rows.sum() - 2.0 * by_row + np.bincount(blocks, weights=sums.own)
    return _self_mean(pairs, sums.diagonal.sum() - diagonal, len(blocks) - np.bincount(blocks), biased)


def kernel_distance(
    features_1: np.ndarray,
    features_2: np.ndarray,
    *,
    kernel: Kernel | None = None,
    biased: bool = False,
    blocks: np.ndarray | None = None,
    self_mean_1: SelfMean | None = None,
    blocks_1: np.ndarray | None = None,
) -> KernelDistance:
    """Return the distance of all of `features_1` [n1, d] (the reference) to all of `features_2` [n2, d], in float64.

    Args:
        features_1: the fixed set.
        features_2: the set whose sampling error is estimated.
        kernel: KID's cubic kernel by default.
        biased: keep the diagonals of the self terms.
        blocks: block of each sample of set 2, int [n2], numbers 0..K-1, for exact leave-one-block-out values.
        self_mean_1: `kernel_self_mean(features_1, kernel, biased=biased, blocks=blocks_1)` if it is known already.
        blocks_1: block of each sample of set 1, int [n1], numbers 0..R-1, for the values without each.

    Raises:
        ValueError: fewer than two samples a side.
    """
    n1, n2 = len(features_1), len(features_2)
    if min(n1, n2) < 2:
        raise ValueError(f"a kernel distance needs at least 2 samples per side, got {n1} and {n2}")
    kernel = kernel or PolynomialKernel()
    if self_mean_1 is None:
        self_mean_1 = kernel_self_mean(features_1, kernel, biased=biased, blocks=blocks_1)
    member = np.zeros(n2, dtype=np.int64) if blocks is None else blocks
    (sums,) = _self_sums(features_2, kernel, member)
    row_sum, diagonal = sums.rows, sums.diagonal
    cross_1 = np.zeros(n1)
    mixed = None if blocks is None or blocks_1 is None else np.zeros((int(blocks_1.max()) + 1, int(blocks.max()) + 1))
    cross, start = np.empty(n2), 0
    for rows in row_blocks(features_2, TILE):
        columns = slice(start, start + len(rows))
        cross[columns], by_block = _column_sums(features_1, rows, kernel, cross_1, blocks_1)
        if mixed is not None and blocks is not None:
            np.add.at(mixed.T, blocks[columns], by_block.T)
        start = columns.stop
    self_mean_2 = _self_mean(row_sum.sum(), diagonal.sum(), n2, biased)
    value = self_mean_1.whole + self_mean_2 - 2.0 * cross.sum() / (n1 * n2)

    own = (row_sum - diagonal) / (n2 - 1)
    influence = 2.0 * (own - cross / n1)
    influence -= influence.mean()
    standard_error = influence.std(ddof=1) / np.sqrt(n2)

    left = left_1 = np.empty(0)
    if blocks is not None:
        rest = n2 - np.bincount(blocks)
        kept = cross.sum() - np.bincount(blocks, weights=cross)
        left = self_mean_1.whole + _means_without(sums, blocks, biased) - 2.0 * kept / (n1 * rest)
    if blocks_1 is not None:
        rest = n1 - np.bincount(blocks_1)
        kept = cross_1.sum() - np.bincount(blocks_1, weights=cross_1)
        left_1 = self_mean_1.without + self_mean_2 - 2.0 * kept / (rest * n2)
    interactions = None
    if blocks is not None:
        interactions = Interactions(_between(sums.pairs, blocks, blocks))
        if mixed is not None and blocks_1 is not None:
            across = -2.0 * _between(mixed, blocks_1, blocks).T
            interactions = interactions._replace(reference=self_mean_1.between, cross=across)
    return KernelDistance(float(value), float(standard_error), influence, left, left_1, interactions, own, cross / n1)


def clip_maximum_mean_discrepancy(
    features_1: np.ndarray,
    features_2: np.ndarray,
    *,
    sigma: float = 10.0,
    scale: float = 1000.0,
    biased: bool = True,
    blocks: np.ndarray | None = None,
    self_mean_1: SelfMean | None = None,
    blocks_1: np.ndarray | None = None,
) -> KernelDistance:
    """Return CMMD, `scale` times the squared discrepancy of CLIP embeddings [n, d], Gaussian kernel on unit rows.

    Rows may be of any length but zero; published values keep the diagonals, sigma 10, scale 1000. Other arguments as
    for `kernel_distance`; `self_mean_1` is that of `UnitGaussianKernel`. The means `own` and `cross` are not scaled.
    """
    distance = kernel_distance(
        features_1,
        features_2,
        kernel=UnitGaussianKernel(sigma),
        biased=biased,
        blocks=blocks,
        self_mean_1=self_mean_1,
        blocks_1=blocks_1,
    )
    return KernelDistance(
        scale * distance.value,
        scale * distance.standard_error,
        scale * distance.influence,
        scale * distance.leave_one_out,
        scale * distance.leave_reference_out,
        Interactions.total([distance.interactions], [scale]),
        distance.own,
        distance.cross,
    )


def _unit(x: Any) -> Any:
    """Return float64 rows [n, d] at unit length, numpy's or torch's."""
    return x / (np.linalg.norm(x, axis=1, keepdims=True) if isinstance(x, np.ndarray) else x.norm(dim=1, keepdim=True))


def sliced_wasserstein(features_1: np.ndarray, features_2: np.ndarray, directions: np.ndarray) -> float:
    """Return the mean over directions of the squared 2-Wasserstein distance of the projections.

    Args:
        features_1: samples, [n, d].
        features_2: as many samples, [n, d].
        directions: unit directions as columns, [d, p].

    Raises:
        ValueError: the sets differ in size.
    """
    if len(features_1) != len(features_2):
        raise ValueError(f"sliced Wasserstein needs sets of equal size, got {len(features_1)} and {len(features_2)}")
    u = np.sort(np.asarray(features_1, dtype=np.float64) @ directions, axis=0)
    v = np.sort(np.asarray(features_2, dtype=np.float64) @ directions, axis=0)
    return float(((u - v) ** 2).mean())


def _self_mean(pairs: np.ndarray, diagonal: np.ndarray, n: np.ndarray | int, biased: bool) -> np.ndarray:
    """Mean kernel value within a set of n, from the sum over all pairs and over the diagonal; elementwise."""
    return pairs / (n * n) if biased else (pairs - diagonal) / (n * (n - 1))


def _tiles(n: int) -> Iterator[slice]:
    for start in range(0, n, TILE):
        yield slice(start, min(start + TILE, n))


class _SelfSums(NamedTuple):
    """Sums of each row of the symmetric kernel matrix, [n]: all columns, the diagonal, the columns of its own block.

    `pairs` [K, K]: the sums over the rows of one block and the columns of another.
    """

    rows: np.ndarray
    diagonal: np.ndarray
    own: np.ndarray
    pairs: np.ndarray


def _self_sums(features: np.ndarray, kernel: Kernel, *assignments: np.ndarray) -> list[_SelfSums]:
    """Return the sums for each assignment of the samples to blocks, int [n]; the matrix is made once."""
    n = len(features)
    counts = [int(blocks.max()) + 1 for blocks in assignments]
    by_block = [np.zeros((n, count)) for count in counts]
    one_hot = [algebra.array(np.eye(count)) for count in counts]
    diagonal = np.zeros(n)
    for i in _tiles(n):
        x = algebra.array(features[i])
        for j in _tiles(n):
            if j.start < i.start:
                continue
            tile = kernel(x, x if i == j else algebra.array(features[j]))
            release(features)
            for sums, eye, blocks in zip(by_block, one_hot, assignments, strict=True):
                sums[i] += algebra.host(tile @ eye[blocks[j]])
                if i != j:
                    sums[j] += algebra.host(tile.T @ eye[blocks[i]])
            if i == j:
                diagonal[i] = algebra.host(tile.diagonal())
    return [
        _SelfSums(sums.sum(axis=1), diagonal, sums[np.arange(n), blocks], _sums_of_blocks(sums, blocks))
        for sums, blocks in zip(by_block, assignments, strict=True)
    ]


def _sums_of_blocks(rows: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Return `rows` [n, K] summed over each block (int [n]), [R, K]."""
    found = np.zeros((int(blocks.max()) + 1, rows.shape[1]))
    np.add.at(found, blocks, rows)
    return found


def _column_sums(
    features: np.ndarray, columns: np.ndarray, kernel: Kernel, row_sums: np.ndarray, blocks: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums over `features` [n, d] of the kernel with each column [m], and over each of its `blocks` [R, m].

    Adds those over columns to `row_sums` [n]; R is 0 without blocks (int [n]).
    """
    total = np.zeros(len(columns))
    by_block = np.zeros((0 if blocks is None else int(blocks.max()) + 1, len(columns)))
    eye = algebra.array(np.eye(len(by_block)))
    start = 0
    across = algebra.array(columns)
    for rows in row_blocks(features, TILE):
        tile = kernel(algebra.array(rows), across)
        stop = start + len(rows)
        total += algebra.host(tile.sum(axis=0))
        row_sums[start:stop] += algebra.host(tile.sum(axis=1))
        if blocks is not None:
            by_block += algebra.host(eye[blocks[start:stop]].T @ tile)
        start = stop
    return total, by_block
