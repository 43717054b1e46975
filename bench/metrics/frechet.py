"""The Frechet distance between two Gaussians, FID = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2).

Heusel et al., arXiv 1706.08500. The trace of the root never needs the root itself. With any factor S1 = L L^T,

    tr (S1 S2)^(1/2) = sum sqrt eig(L^T S2 L)                      n > d: one symmetric d x d eigenvalue problem
                     = |B L|_nuclear / sqrt(n - 1)                 n <= d: B [n, d] the centred samples of S2

The second form is exact for any number of samples, needs no ridge and no d x d matrix beyond L. L is the Cholesky
factor of a reference's covariance, or its centred samples themselves where those are few.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from bench.metrics import algebra

ROWS = 4096  # rows converted to float64 at once; features may be a memory map far larger than memory


def row_blocks(features: np.ndarray, rows: int = ROWS) -> Iterator[np.ndarray]:
    """Yield consecutive blocks of at most `rows` rows of `features` [n, d] as float64."""
    for start in range(0, len(features), rows):
        yield np.asarray(features[start : start + rows], dtype=np.float64)
        release(features)


def release(features: np.ndarray) -> None:
    """Take what was read of a memory map out of this process (it stays in the system's cache); else do nothing."""
    if isinstance(features, np.memmap) and features.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        mapped: mmap.mmap = features._mmap  # type: ignore[attr-defined]
        mapped.madvise(mmap.MADV_DONTNEED)


def rows_of(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return a copy of the chosen `rows` (int [m]) of `features`, [m, d] in its own dtype."""
    chosen = np.array(features[rows], subok=False)
    release(features)
    return chosen


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of n vectors about `shift`, float64; sets add and subtract exactly like their samples.

    Attributes:
        n: number of samples.
        sum: sum of (x - shift), [d].
        outer: sum of (x - shift)(x - shift)^T, [d, d].
        shift: any fixed vector near the mean, [d]; it keeps the subtraction in `covariance` from losing digits.
    """

    n: int
    sum: Any
    outer: Any
    shift: Any

    @classmethod
    def of(cls, features: np.ndarray, shift: np.ndarray | None = None) -> Moments:
        """Accumulate `features` [n, d] (any float dtype, memory maps welcome) in blocks; `shift` is zero by default."""
        there = cls.where_computed(features, np.zeros(features.shape[1]) if shift is None else shift)
        return cls(there.n, algebra.host(there.sum), algebra.host(there.outer), algebra.host(there.shift))

    @classmethod
    def where_computed(cls, features: np.ndarray, shift: Any) -> Moments:
        """Do what `of` does, and leave the arrays where the algebra runs."""
        origin = algebra.array(shift)
        total, outer = algebra.array(np.zeros(len(origin))), algebra.array(np.zeros((len(origin),) * 2))
        for block in row_blocks(features):
            x = algebra.array(block) - origin
            total += x.sum(axis=0)
            outer += x.T @ x
        return cls(len(features), total, outer, origin)

    def about(self, shift: np.ndarray) -> Moments:
        """Return the same moments about another `shift`."""
        delta = self.shift - shift
        cross = np.outer(self.sum, delta)
        outer = self.outer + cross + cross.T + self.n * np.outer(delta, delta)
        return Moments(self.n, self.sum + self.n * delta, outer, shift)

    def __add__(self, other: Moments) -> Moments:
        if other.shift is not self.shift:
            other = other.about(self.shift)
        return Moments(self.n + other.n, self.sum + other.sum, self.outer + other.outer, self.shift)

    def __sub__(self, other: Moments) -> Moments:
        if other.shift is not self.shift:
            other = other.about(self.shift)
        return Moments(self.n - other.n, self.sum - other.sum, self.outer - other.outer, self.shift)

    @property
    def mean(self) -> Any:
        """Mean, [d] float64."""
        return self.shift + self.sum / self.n

    @property
    def covariance(self) -> Any:
        """Covariance with divisor n - 1, [d, d] float64, symmetric.

        Raises:
            ValueError: fewer than two samples.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.n}")
        covariance = (self.outer - self.sum[:, None] * self.sum / self.n) / (self.n - 1)
        return (covariance + covariance.T) / 2


class _ProjectedSums(NamedTuple):
    """What the distance from a set to a reference takes, of x = sample - mu; leaving a block out costs no d^3 product.

    Attributes:
        n: number of samples.
        sum: sum of x, [d], an `algebra.array`.
        squares: sum of |x|^2.
        outer: sum of (L^T x)(L^T x)^T, [r, r], likewise.
    """

    n: int
    sum: Any
    squares: float
    outer: Any

    def without(self, part: _ProjectedSums) -> _ProjectedSums:
        return _ProjectedSums(
            self.n - part.n, self.sum - part.sum, self.squares - part.squares, self.outer - part.outer
        )

    @property
    def trace(self) -> float:
        """Trace of the covariance of x."""
        mean = self.sum / self.n
        return (self.squares - self.n * float(mean @ mean)) / (self.n - 1)

    def covariance(self, root: Any) -> Any:
        """Return the covariance of L^T x, [r, r] an `algebra.array`, of the same L [d, r]."""
        mean = (self.sum / self.n) @ root
        return (self.outer - self.n * (mean[:, None] * mean)) / (self.n - 1)


class FrechetSide(NamedTuple):
    """One side of the distance without a block of its samples: mean [d], trace of the covariance and a root [d, r]."""

    mu: np.ndarray
    trace: float
    root: np.ndarray


def sides_without_blocks(features: np.ndarray, blocks: np.ndarray) -> list[FrechetSide]:
    """Return the reference `features` [n, d] without each block (int [n], numbers 0..K-1): worth keeping.

    Two passes over the features and K factorisations, K d^2 numbers where n > d.
    """
    members = [np.flatnonzero(blocks == k) for k in range(int(blocks.max()) + 1)]
    sides = []
    whole = None
    for rows in members:
        n = len(features) - len(rows)
        if n <= features.shape[1]:
            x = np.asarray(rows_of(features, np.delete(np.arange(len(features)), rows)), dtype=np.float64)
            mean = x[0] + (x - x[0]).sum(axis=0) / n
            x -= mean
            sides.append(FrechetSide(mean, float(np.vdot(x, x)) / (n - 1), x.T / np.sqrt(n - 1)))
        else:
            whole = whole or Moments.where_computed(features, np.asarray(features[0], dtype=np.float64))
            rest = whole - Moments.where_computed(rows_of(features, rows), whole.shift)
            covariance = rest.covariance
            sides.append(FrechetSide(algebra.host(rest.mean), float(covariance.trace()), _root(covariance)))
    return sides


def _root(covariance: Any) -> np.ndarray:
    """Return a factor L [d, r] of a covariance, L L^T: Cholesky, or by eigenvalues if it is singular."""
    sigma = (covariance + covariance.T) / 2
    try:
        return algebra.cholesky(sigma)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(algebra.host(sigma))
        return vectors * np.sqrt(np.clip(values, 0.0, None))


def distances_to_sides(features: np.ndarray, sides: Sequence[FrechetSide]) -> np.ndarray:
    """Return the distances of the samples `features` [n, d] to each side, float64 [K]: K eigenvalue problems."""
    n, d = features.shape
    if n > d:
        moments = Moments.where_computed(features, np.asarray(features[0], dtype=np.float64))
        mean, covariance = algebra.host(moments.mean), moments.covariance
        trace = float(covariance.trace())
        products = (algebra.sandwich(side.root, covariance) for side in sides)
        root_traces = (_root_sum(values) for values in algebra.eigenvalues(products))
    else:
        b = np.asarray(features, dtype=np.float64)
        mean = b.mean(axis=0)
        b = b - mean
        trace = float((b * b).sum()) / (n - 1)
        centred = algebra.array(b)
        products = (centred @ algebra.array(side.root) for side in sides)
        root_traces = (norm / float(np.sqrt(n - 1)) for norm in algebra.nuclear_norms(products))
    found = []
    for side, root_trace in zip(sides, root_traces, strict=True):
        difference = mean - side.mu
        found.append(float(difference @ difference) + side.trace + trace - 2.0 * root_trace)
    return np.array(found)


def _root_sum(values: np.ndarray) -> float:
    """Return the sum of the roots of eigenvalues [d], rounding below zero left out."""
    return float(np.sqrt(np.clip(values, 0.0, None)).sum())


class FrechetReference:
    """One side of the distance, with the factor of its covariance computed once and shared by every distance to it."""

    def __init__(self, mu: np.ndarray, sigma: np.ndarray, root: np.ndarray | None = None) -> None:
        """Take the mean `mu` [d], covariance `sigma` [d, d] and, of r <= d samples, them as `root` [d, r]: see `of`."""
        self.mu = np.asarray(mu, dtype=np.float64)
        self.sigma = np.asarray(sigma, dtype=np.float64)
        if self.mu.ndim != 1 or self.sigma.shape != (self.mu.size, self.mu.size):
            raise ValueError(f"mu {self.mu.shape} and sigma {self.sigma.shape} are not [d] and [d, d]")
        self.of_samples = root is not None
        """Whether the factor is made of few samples, one column each."""
        if root is not None:
            self.root = root

    @classmethod
    def of(cls, features: np.ndarray) -> FrechetReference:
        """Take a set of samples [n, d]; with n <= d the centred samples serve as an exact factor of rank n - 1."""
        moments = Moments.of(features, shift=np.asarray(features[0], dtype=np.float64))
        n, d = features.shape
        root = None
        if n <= d:
            root = (np.asarray(features, dtype=np.float64) - moments.mean).T / np.sqrt(n - 1)
        return cls(moments.mean, moments.covariance, root)

    @cached_property
    def root(self) -> np.ndarray:
        """A factor L [d, r] of the covariance, L L^T = sigma: Cholesky, or by eigenvalues if sigma is singular."""
        return _root(self.sigma)

    @cached_property
    def triangular(self) -> bool:
        """Whether the factor is lower triangular: of full rank."""
        return self.root.shape[0] == self.root.shape[1] and not np.triu(self.root, 1).any()

    def distance(self, moments: Moments) -> float:
        """Return the squared Frechet distance to `moments` (n > d is assumed for accuracy; at n <= d it is close)."""
        covariance = moments.covariance
        values = algebra.eigvalsh(algebra.sandwich(self.root, covariance))
        return self._assemble(moments.mean, np.trace(covariance), _root_sum(values))

    def distance_from_features(self, features: np.ndarray) -> float:
        """Return the squared Frechet distance to the samples `features` [n, d], exact for any n >= 2."""
        n, d = features.shape
        if n > d:
            return self.distance(Moments.of(features, shift=self.mu))
        if n < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {n}")
        b = np.asarray(features, dtype=np.float64)
        mean = b.mean(axis=0)
        b = b - mean
        nuclear = next(algebra.nuclear_norms([algebra.array(b) @ algebra.array(self.root)]))
        return self._assemble(mean, (b * b).sum() / (n - 1), nuclear / np.sqrt(n - 1))

    def leave_one_out(self, features: np.ndarray, blocks: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the distance to all of `features` [n, d] and the distances without each block.

        Args:
            features: samples, [n, d].
            blocks: block number of each sample, int [n], every number of 0..K-1 present.

        Returns:
            The distance, and float64 [K]. Two passes over the features whatever K, and K + 1 eigenvalue problems.
        """
        count = int(blocks.max()) + 1
        members = [np.flatnonzero(blocks == k) for k in range(count)]
        mu, root = algebra.array(self.mu), algebra.array(self.root)
        if len(features) - max(map(len, members)) > features.shape[1]:
            facts: list[tuple[np.ndarray, float]] = []

            def covariances() -> Iterator[Any]:  # one after the other, for all of them are too much to hold
                whole = self._sums(features, mu, root)
                rest = (whole.without(self._sums(rows_of(features, rows), mu, root)) for rows in members)
                for sums in chain([whole], rest):
                    facts.append((self.mu + algebra.host(sums.sum / sums.n), sums.trace))
                    yield sums.covariance(root)

            roots = [_root_sum(values) for values in algebra.eigenvalues(covariances())]
            found = [self._assemble(*fact, root_trace) for fact, root_trace in zip(facts, roots, strict=True)]
            return found[0], np.array(found[1:])

        # Few samples: eigenvalues of the centred Gram matrix of B L. Centring makes the smallest one exactly zero, and
        # the root of its rounding error is the only thing that would spoil the value, so it is dropped.
        x = algebra.array(features) - mu
        projected = x @ root
        gram = projected @ projected.T
        total, squares = algebra.host(x.sum(axis=0)), algebra.host((x * x).sum(axis=1))
        kept = [np.delete(np.arange(len(x)), rows) for rows in members]

        def centred(rest: np.ndarray) -> Any:
            g = gram[np.ix_(rest, rest)]
            return g - g.mean(axis=0) - g.mean(axis=1)[:, None] + g.mean()

        left = []
        for rows, rest, values in zip(members, kept, algebra.eigenvalues(map(centred, kept)), strict=True):
            n, mean = len(rest), (total - algebra.host(x[rows].sum(axis=0))) / len(rest)
            trace = (squares[rest].sum() - n * (mean @ mean)) / (n - 1)
            left.append(self._assemble(self.mu + mean, float(trace), _root_sum(values[1:]) / np.sqrt(n - 1)))
        return self.distance_from_features(features), np.array(left)

    def _sums(self, features: np.ndarray, mu: Any, root: Any) -> _ProjectedSums:
        """Return the sums of `features` [n, d]; `mu` and `root` are this side's as an `algebra.array`."""
        total, squares, outer = algebra.array(np.zeros(len(mu))), 0.0, algebra.array(np.zeros((root.shape[1],) * 2))
        for block in row_blocks(features):
            x = algebra.array(block) - mu
            y = x @ root
            total += x.sum(axis=0)
            squares += algebra.squares(x)
            outer += y.T @ y
        return _ProjectedSums(len(features), total, squares, outer)

    def _assemble(self, mean: np.ndarray, trace: float, root_trace: float) -> float:
        difference = mean - self.mu
        return float(difference @ difference + np.trace(self.sigma) + trace - 2.0 * root_trace)


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Return the squared Frechet distance between N(mu1, sigma1) and N(mu2, sigma2); means [d], covariances [d, d]."""
    first = FrechetReference(mu1, sigma1)
    second = FrechetReference(mu2, sigma2)
    values = algebra.eigvalsh(algebra.sandwich(first.root, second.sigma))
    return first._assemble(second.mu, np.trace(second.sigma), _root_sum(values))


def frechet_distance_from_features(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared Frechet distance between samples `a` [n1, d] and `b` [n2, d], exact also where n < d.

    With both sets small no d x d matrix is made: tr (S1 S2)^(1/2) = |A B^T|_nuclear / sqrt((n1 - 1)(n2 - 1)).
    """
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"a covariance needs at least 2 samples per side, got {len(a)} and {len(b)}")
    if max(len(a), len(b)) <= a.shape[1]:
        x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        difference = x.mean(axis=0) - y.mean(axis=0)
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        nuclear = np.linalg.svd(x @ y.T, compute_uv=False).sum() / np.sqrt((len(x) - 1) * (len(y) - 1))
        traces = (x * x).sum() / (len(x) - 1) + (y * y).sum() / (len(y) - 1)
        return float(difference @ difference + traces - 2.0 * nuclear)
    if len(a) < len(b):
        a, b = b, a  # the smaller set gives the smaller problem, and the low-rank form if either set allows it
    return FrechetReference.of(a).distance_from_features(b)


def frechet_per_class(
    features_1: np.ndarray, labels_1: np.ndarray, features_2: np.ndarray, labels_2: np.ndarray
) -> dict[int, float | None]:
    """Return the distance within each class of either set; None where a side has fewer than two samples.

    Biased upwards for few samples, so classes compare only at equal n. Exact low-rank form, milliseconds a class.
    """
    classes = np.union1d(labels_1, labels_2)
    rows_1 = {int(c): np.flatnonzero(labels_1 == c) for c in classes}
    rows_2 = {int(c): np.flatnonzero(labels_2 == c) for c in classes}
    return {
        c: frechet_distance_from_features(rows_of(features_1, rows_1[c]), rows_of(features_2, rows_2[c]))
        if min(len(rows_1[c]), len(rows_2[c])) >= 2
        else None
        for c in rows_1
    }


def frechet_influence(reference: FrechetReference, features: np.ndarray) -> np.ndarray:
    """Return the influence psi(x) of each sample on the distance, centred, float64 [n]: the delta method.

        psi(x) = 2 (m2 - m1).(x - m2) + (x - m2)^T (I - T) (x - m2),    T = L (L^T S2 L)^(-1/2) L^T

    T is the optimal transport map from the samples' Gaussian to the reference's. The standard error of the distance
    is sd(psi) / sqrt(n), with within-class deviations where labels are balanced. Directions whose eigenvalue is below
    1e-10 of the largest are dropped; n > d is needed for the result to mean anything.
    """
    moments = Moments.of(features, shift=reference.mu)
    mean = moments.mean
    values, vectors = algebra.eigh(algebra.sandwich(reference.root, moments.covariance))
    kept = values > 1e-10 * values[-1]
    half = algebra.array(reference.root) @ algebra.array(vectors[:, kept] * values[kept] ** -0.25)
    centre, shift = algebra.array(mean), algebra.array(mean - reference.mu)
    psi = []
    for block in row_blocks(features):
        x = algebra.array(block) - centre
        psi.append(algebra.host(2.0 * x @ shift + (x * x).sum(axis=1) - ((x @ half) ** 2).sum(axis=1)))
    influence = np.concatenate(psi)
    return influence - influence.mean()


class FrechetInfinity(NamedTuple):
    """The distance extrapolated to infinitely many generated samples.

    Attributes:
        value: intercept of the least-squares line of the distance against 1/n.
        slope: its slope, about the bias times n.
        sizes: subset sizes, int [S].
        distances: mean distance at each size, float64 [S].
    """

    value: float
    slope: float
    sizes: np.ndarray
    distances: np.ndarray


def frechet_infinity(
    reference: FrechetReference, features: np.ndarray, *, sizes: int = 15, draws: int = 3, rng_seed: int = 2020
) -> FrechetInfinity:
    """Extrapolate the distance in 1/n (Chong and Forsyth, arXiv 1911.07023).

    `sizes` subset sizes are spread evenly from n/2 to n: smaller ones bend the line.
    Each of the `draws` permutations (seeded, numpy RandomState) gives nested subsets, its prefixes. From each distance
    the subset's mean influence is taken, whose expectation is zero: that removes most of the noise of drawing. The
    reference stays fixed, so its own bias stays too. The block jackknife's corrected value carries an interval.

    Raises:
        ValueError: n is below 5 d, where the bias is far from c/n even at the largest sizes.
    """
    n, d = features.shape
    smallest = n // 2
    if n < 5 * d:
        raise ValueError(f"extrapolation needs 5 images per dimension, {5 * d:,} for d = {d:,}; got {n:,}")
    grid = np.unique(np.linspace(smallest, n, sizes).astype(int))
    random = np.random.RandomState(rng_seed)
    influence = frechet_influence(reference, features)
    distances = np.zeros((draws, len(grid)))
    for draw in range(draws):
        order = random.permutation(n)
        moments = Moments.of(features[:0], shift=reference.mu)
        start = 0
        for position, size in enumerate(grid[:-1]):
            moments = moments + Moments.of(rows_of(features, np.sort(order[start:size])), shift=reference.mu)
            distances[draw, position] = reference.distance(moments) - influence[order[:size]].mean()
            start = size
    distances[:, -1] = reference.distance(Moments.of(features, shift=reference.mu))
    mean = distances.mean(axis=0)
    slope, intercept = np.polyfit(1.0 / grid, mean, 1)
    return FrechetInfinity(float(intercept), float(slope), grid, mean)
