"""Frechet distances without each of many small blocks, from one eigendecomposition instead of one problem a block.

A block of b samples takes a matrix w^T w of rank b + 1 out of the scatter C, and the trace of the root falls by

    tr C^(1/2) - tr (C - w^T w)^(1/2) = -(1 / 2 pi) int_0^inf s^(-1/2) log det (I - w (C + s)^(-1) w^T) ds,

because int_0^inf s^(-1/2) log(1 + a / s) ds = 2 pi sqrt(a). In the eigenbasis of C a node of the integral costs b^2 d,
and the determinant is of the size of the block. With s = e^t the integrand is analytic in a strip of half width pi
about the real line, so that the trapezoid rule at a spacing of h errs by e^(-2 pi^2 / h), about 1e-9 of what a block
moves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bench.metrics import algebra
from bench.metrics.frechet import FrechetReference

SMALLEST_DIMENSION = 512
"""Below this the eigenvalues of every block are quick enough."""
LARGEST_SHARE = 0.25
"""Largest block, as a share of the dimension, at which the integral is cheaper than the block's own eigenvalues."""
SPACING = 1.0
FIRST_NODE = 2e2
"""In units of the largest eigenvalue; beyond it three terms of the series in 1/s are summed in closed form."""
LAST_NODE = 1e-17
TOLERANCE = 1e-10
"""Change of the integral by another node, in units of tr C^(1/2), at which the rest is extrapolated."""


def pays(samples: int, dimension: int, blocks: np.ndarray) -> bool:
    """Tell whether `blocks`, int [samples], are small enough beside `dimension`, and leave a covariance of full rank.

    What is held is then bounded: samples x dimension float64, at most a quarter of K d^2.
    """
    largest = int(np.bincount(blocks).max())
    small = largest + 1 <= LARGEST_SHARE * dimension
    return dimension >= SMALLEST_DIMENSION and small and samples - largest > dimension + 1


def root_trace_drop(values: np.ndarray, w: np.ndarray) -> float:
    """Return tr C^(1/2) - tr (C - w^T w)^(1/2).

    Args:
        values: eigenvalues of C, [d], not negative.
        w: rows in C's eigenbasis, [m, d]; C - w^T w is positive definite.

    Raises:
        numpy.linalg.LinAlgError: C - w^T w is not positive definite.
    """
    top = FIRST_NODE * float(values.max())
    growth = float(np.exp(SPACING))
    p, q = w @ w.T, (w * values) @ w.T
    third = -float(((w * values) ** 2).sum()) + float((p * q).sum()) - float(((p @ p) * p).sum()) / 3
    series = (-float(np.trace(p)), float(np.trace(q)) - float((p * p).sum()) / 2, third)
    total = 0.0
    for power, coefficient in enumerate(series, start=1):
        ratio = growth ** (0.5 - power)
        total += coefficient * top ** (0.5 - power) * ratio / (1 - ratio)
    scale = TOLERANCE * float(np.sqrt(values).sum()) * 2 * np.pi / SPACING
    inner, node, found, before = np.empty_like(w), top, None, None
    while node > LAST_NODE * top:
        np.multiply(w, np.sqrt(1.0 / (values + node)), out=inner)
        matrix = -(inner @ inner.T)
        matrix.flat[:: len(matrix) + 1] += 1.0
        log = 2.0 * float(np.log(np.linalg.cholesky(matrix).diagonal()).sum())
        total += np.sqrt(node) * log
        # Below the smallest eigenvalue the logarithm is a + b s, which sums in closed form down to s = 0.
        slope = 0.0 if before is None else (before - log) / (node * growth - node)
        rest = np.sqrt(node) * ((log - slope * node) / (growth**0.5 - 1) + slope * node / (growth**1.5 - 1))
        whole = total + rest
        if found is not None and abs(whole - found) <= scale:
            break
        found, before = whole, log
        node /= growth
    return -SPACING * float(whole) / (2 * np.pi)


class BlocksOut(NamedTuple):
    """A set without each of its K blocks; a block leaves by the rank-one terms of its rows.

    Attributes:
        size: samples of the whole set.
        rest: samples without each block, int [K].
        mean: mean without each block, [K, d].
        trace: trace of the covariance without each block, [K].
        rows: rows w of each block: scatter without it = scatter of all - w^T w; [b + 1, d] each.
    """

    size: int
    rest: np.ndarray
    mean: np.ndarray
    trace: np.ndarray
    rows: list[np.ndarray]


def _blocks_out(x: np.ndarray, y: np.ndarray, blocks: np.ndarray) -> BlocksOut:
    """Return `x` [n, d] without each block, with the rows of the same samples in other coordinates, `y` [n, r]."""
    n, total, squares = len(x), x.sum(axis=0), (x * x).sum(axis=1)
    members = [np.flatnonzero(blocks == k) for k in range(int(blocks.max()) + 1)]
    rest = np.array([n - len(rows) for rows in members])
    mean = np.stack([(total - x[rows].sum(axis=0)) / (n - len(rows)) for rows in members])
    left = np.array([squares.sum() - squares[rows].sum() for rows in members])
    trace = (left - rest * (mean * mean).sum(axis=1)) / (rest - 1)
    centred = y - y.mean(axis=0)
    rows = [_leaving(centred[chosen], n) for chosen in members]
    return BlocksOut(n, rest, mean, trace, rows)


def _leaving(part: np.ndarray, n: int) -> np.ndarray:
    """Return the rows by which a block leaves the scatter of n samples: its own, and the shift of the mean."""
    count = len(part)
    return np.concatenate([part, (count / np.sqrt(n - count)) * part.mean(axis=0, keepdims=True)])


def reference_blocks_out(reference: FrechetReference, features: np.ndarray, blocks: np.ndarray) -> BlocksOut | None:
    """Return the reference `features` [n, d] without each block, rows in coordinates L^-1 x: worth keeping.

    None where the blocks are too large for it to pay, or the factor L is not triangular (a singular covariance).
    """
    from scipy.linalg import solve_triangular

    root = reference.root
    if not pays(len(features), features.shape[1], blocks) or root.shape[0] != root.shape[1] or np.triu(root, 1).any():
        return None
    x = np.asarray(features, dtype=np.float64) - reference.mu
    return _blocks_out(x, solve_triangular(root, x.T, lower=True).T, blocks)


class Decomposed:
    """Samples `features` [n, d] against a reference: the scatter of L^T x decomposed once for every block of both.

    Raises numpy.linalg.LinAlgError, here or later, where a matrix is not of full rank.
    """

    def __init__(self, reference: FrechetReference, features: np.ndarray, blocks: np.ndarray) -> None:
        """Take the samples and the block of each, int [n], numbers 0..K-1."""
        self.reference, self.n = reference, len(features)
        x = np.asarray(features, dtype=np.float64) - reference.mu
        self.mean = x.mean(axis=0)
        self.trace = (float(np.vdot(x, x)) - self.n * float(self.mean @ self.mean)) / (self.n - 1)
        y = x @ reference.root
        self.blocks = _blocks_out(x, y, blocks)
        del x
        y -= y.mean(axis=0)
        values, self.vectors = np.linalg.eigh(y.T @ y)
        self.values = np.clip(values, 0.0, None)

    @property
    def root_trace(self) -> float:
        """Trace of the root of the scatter."""
        return float(np.sqrt(self.values).sum())

    @property
    def distance(self) -> float:
        """The squared distance of all samples."""
        mean = self.reference.mu + self.mean
        return self.reference._assemble(mean, self.trace, self.root_trace / np.sqrt(self.n - 1))

    def without_blocks(self) -> np.ndarray:
        """Return the distances without each block of the samples, float64 [K]."""
        found = []
        for rest, mean, trace, rows in zip(*self.blocks[1:], strict=True):
            root_trace = self.root_trace - root_trace_drop(self.values, rows @ self.vectors)
            found.append(self.reference._assemble(self.reference.mu + mean, trace, root_trace / np.sqrt(rest - 1)))
        return np.array(found)

    def without_reference_blocks(self, sides: BlocksOut | None) -> np.ndarray | None:
        """Return the distances without each block of the reference, float64 [R]; None where this way does not serve."""
        if sides is None:
            return None
        # S1 = L L^T loses L w^T w L^T, so the root of L^T S2 L loses rows that its own root has stretched.
        values, stretch = (sides.size - 1) * self.values, np.sqrt(self.values)
        whole, found = float(np.sqrt(values).sum()), []
        for rest, mean, trace, rows in zip(*sides[1:], strict=True):
            try:
                root_trace = whole - root_trace_drop(values, (rows @ self.vectors) * stretch)
            except np.linalg.LinAlgError:
                return None
            root_trace /= np.sqrt((rest - 1) * (self.n - 1))
            difference = self.mean - mean
            found.append(float(difference @ difference) + trace + self.trace - 2.0 * root_trace)
        return np.array(found)


def leave_one_out(
    reference: FrechetReference, features: np.ndarray, blocks: np.ndarray
) -> tuple[float, np.ndarray, Decomposed | None]:
    """Return what `FrechetReference.leave_one_out` does and, where a decomposition served, that.

    An accelerator finds the eigenvalues of a block sooner than the host the integral.
    """
    if (
        algebra.device() is None
        and pays(len(features), features.shape[1], blocks)
        and reference.root.shape[0] == reference.root.shape[1]
    ):
        try:
            decomposed = Decomposed(reference, features, blocks)
            return decomposed.distance, decomposed.without_blocks(), decomposed
        except np.linalg.LinAlgError:
            pass  # a dead feature: every block by its own eigenvalues
    return *reference.leave_one_out(features, blocks), None
