"""Frechet distances without each of many blocks, from one decomposition instead of one problem a block.

A block leaves a scatter by its samples and by the shift of the mean, in coordinates in which the scatter of all is the
identity; `root_traces` says what the trace of the root loses with it.

Where both sides have more samples than dimensions, the scatter of L^T x is decomposed (S1 = L L^T the reference's
covariance). Else, and on an accelerator, it is P = x L [n, r] less the mean, for tr (S1 S2)^(1/2) is the sum of P's
singular values over sqrt(n - 1). A reference of few samples is L's columns, so that both sides are then rows of one
matrix. Its rows add up to zero, as do its columns then, and each such direction is taken out by a reflection, exactly:
rounding would mix it with the smallest singular vectors. With P = U diag(v^(1/2)) V^T, a block of the samples leaves by
its rows of U, one of the reference by its rows of V, or by those of L^-1 x V.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import blas, eigh, lapack, solve_triangular

from bench.metrics import algebra
from bench.metrics.frechet import FrechetReference
from bench.metrics.root_traces import DOUBLE, SINGLE, root_trace_drops

SMALLEST_DIMENSION = 512
"""Below this the eigenvalues of every block are quick enough."""
LARGEST_SHARE = 0.25
"""Largest block, as a share of the dimension, at which this is cheaper than the block's own eigenvalues."""
ACCURATE = 1e-13
"""Eigenvalue, as a share of the largest, below which a decomposition no longer tells it from rounding."""
SMALLEST = 1e-22
"""Eigenvalue, likewise, below which a direction is left out."""
NOTHING, APART = 1e-15, 1e3
"""Rounding of what is zero, and how many times as much what is not zero must be."""
IN_DOUBLE = 0.125
"""Share of the directions, those of the largest eigenvalues, that the reference is always projected to in double."""


def pays(rank: int, blocks: np.ndarray) -> bool:
    """Tell whether `blocks`, int [n], are small enough beside the rank of what is decomposed.

    What is held is then bounded: n x d float64, at most a quarter of K d^2.
    """
    return rank >= SMALLEST_DIMENSION and int(np.bincount(blocks).max()) + 1 <= LARGEST_SHARE * rank


class BlocksOut(NamedTuple):
    """A set without each of its K blocks; a block leaves by the rank-one terms of its rows.

    Attributes:
        members: samples of each block, int [b] each.
        rest: samples without each block, int [K].
        mean: mean without each block, [K, d].
        trace: trace of the covariance without each block, [K].
        leaving: what leaves the scatter with each block; None where the coordinates come later.
    """

    members: list[np.ndarray]
    rest: np.ndarray
    mean: np.ndarray
    trace: np.ndarray
    leaving: Leaving | None

    @property
    def size(self) -> int:
        """Samples of the whole set."""
        return int(self.rest[0]) + len(self.members[0])


class Leaving(NamedTuple):
    """What leaves the scatter of a set with each of its K blocks.

    Attributes:
        rows: rows w in coordinates in which the scatter of all is the identity, [b + 1, r] each.
        least: smallest eigenvalue of I - w w^T over all blocks, but for those that are zero.
        lost: how many are zero for each block, int [K]: where no more samples are left than directions.

    `of` raises numpy.linalg.LinAlgError where others are zero, or nearly.
    """

    rows: list[np.ndarray]
    least: float
    lost: list[int]

    @classmethod
    def of(cls, white: np.ndarray, members: Sequence[np.ndarray]) -> Leaving:
        """Take all samples in coordinates in which their scatter is the identity, [n, r], and those of each block."""
        n, rank = white.shape
        rows = [_leaving(white[chosen], n) for chosen in members]
        lost = [max(0, rank + 1 - (n - len(chosen))) for chosen in members]
        least = 1.0
        for part, gone in zip(rows, lost, strict=True):
            values = np.linalg.eigvalsh(np.eye(len(part)) - part @ part.T)
            if values[gone] <= APART * np.abs(values[:gone]).max(initial=NOTHING):
                raise np.linalg.LinAlgError("a block takes other directions with it")
            least = min(least, float(values[gone]))
        return cls(rows, least, lost)

    def drops(self, values: np.ndarray) -> np.ndarray:
        """Return what each block takes from the trace of the root of a scatter of eigenvalues `values`, [K].

        Raises numpy.linalg.LinAlgError as `root_trace_drops` does.
        """
        return root_trace_drops(values, lambda block, _: self.rows[block], self.least, self.lost)


def blocks_out(x: np.ndarray, mean: np.ndarray, blocks: np.ndarray, white: np.ndarray | None) -> BlocksOut:
    """Return a set without each block.

    Args:
        x: samples less their mean, [n, d].
        mean: their mean, [d].
        blocks: block of each, int [n].
        white: the same samples in coordinates in which their scatter is the identity, [n, r]; None for none.
    """
    n, squares = len(x), np.einsum("ij,ij->i", x, x)
    members = [np.flatnonzero(blocks == k) for k in range(int(blocks.max()) + 1)]
    rest = np.array([n - len(chosen) for chosen in members])
    shift = np.stack([x[chosen].sum(axis=0) for chosen in members]) / -rest[:, None]
    left = squares.sum() - np.array([squares[chosen].sum() for chosen in members])
    trace = (left - rest * (shift * shift).sum(axis=1)) / (rest - 1)
    return BlocksOut(members, rest, mean + shift, trace, None if white is None else Leaving.of(white, members))


def _leaving(part: np.ndarray, n: int) -> np.ndarray:
    """Return the rows by which a block leaves the scatter of n samples: its own, and the shift of the mean."""
    count = len(part)
    return np.concatenate([part, (count / np.sqrt(n - count)) * part.mean(axis=0, keepdims=True)])


def reference_blocks_out(reference: FrechetReference, features: np.ndarray, blocks: np.ndarray) -> BlocksOut | None:
    """Return the reference `features` [n, d] without each block, rows in coordinates L^-1 x: worth keeping.

    Without rows where the reference is of few samples. None where the blocks are too large for it to pay, or what is
    left without one has fewer dimensions.
    """
    n, root = len(features), reference.root
    least = n - int(np.bincount(blocks).max())
    if not pays(min(n - 1, root.shape[1]), blocks) or (not reference.of_samples and least <= root.shape[1] + 1):
        return None
    x = np.asarray(features, dtype=np.float64)
    mean = x.mean(axis=0)
    x = x - mean
    if reference.of_samples:
        return blocks_out(x, mean, blocks, None)
    if reference.triangular:
        white = solve_triangular(root, x.T, lower=True, check_finite=False).T
    else:  # columns at right angles, their lengths the roots of eigenvalues
        squares = (root * root).sum(axis=0)
        kept = squares > ACCURATE * squares.max()
        white = x @ np.where(kept, root / np.where(kept, squares, 1.0), 0.0)
    try:
        return blocks_out(x, mean, blocks, white / np.sqrt(n - 1))
    except np.linalg.LinAlgError:
        return None


class Decomposed(NamedTuple):
    """Samples against a reference: what every block of either side needs.

    Attributes:
        reference: the reference's side.
        mean: of the samples, [d].
        trace: of their covariance.
        values: eigenvalues of the scatter of L^T x, [r], positive.
        vectors: its eigenvectors, [d, r]; of a reference of few samples those samples, white, [m, r].
        blocks: the samples without each block.
    """

    reference: FrechetReference
    mean: np.ndarray
    trace: float
    values: np.ndarray
    vectors: np.ndarray
    blocks: BlocksOut

    @property
    def root_trace(self) -> float:
        """Trace of the root of the scatter."""
        return float(np.sqrt(self.values).sum())

    @property
    def distance(self) -> float:
        """The squared distance of all samples."""
        return self.reference._assemble(self.mean, self.trace, self.root_trace / np.sqrt(self.blocks.size - 1))

    def without_blocks(self) -> np.ndarray:
        """Return the distances without each block of the samples, float64 [K]. Raises numpy.linalg.LinAlgError."""
        out = self.blocks
        assert out.leaving is not None
        drops = out.leaving.drops(self.values)
        facts = zip(out.mean, out.trace, (self.root_trace - drops) / np.sqrt(out.rest - 1), strict=True)
        return np.array([self.reference._assemble(*fact) for fact in facts])

    def without_reference_blocks(self, out: BlocksOut | None) -> np.ndarray | None:
        """Return the distances without each block of the reference, float64 [R]; None where this way does not serve."""
        if out is None:
            return None
        try:
            drops = self._of_reference(out)
        except np.linalg.LinAlgError:
            return None
        rest = np.sqrt((out.size - 1) / (out.rest - 1) / (self.blocks.size - 1))
        distances: np.ndarray = ((self.mean - out.mean) ** 2).sum(axis=1) + out.trace + self.trace
        return distances - 2.0 * (self.root_trace - drops) * rest

    def _of_reference(self, out: BlocksOut) -> np.ndarray:
        if out.leaving is None:
            return Leaving.of(self.vectors, out.members).drops(self.values)
        # The root of S2 is factored here, so that what leaves S1 = L L^T is stretched by it: the same eigenvalues.
        white, least, lost = out.leaving
        split, whole = int((1.0 - IN_DOUBLE) * len(self.values)), algebra.array(self.vectors)
        single, double = self.vectors[:, :split].astype(SINGLE), self.vectors[:, split:]

        def rows_of(block: int, kind: np.dtype) -> np.ndarray:
            part = white[block]
            if kind == DOUBLE:
                return algebra.host(algebra.array(part) @ whole)
            found = np.empty((len(part), len(self.values)))
            found[:, :split], found[:, split:] = part.astype(SINGLE) @ single, part @ double
            return found

        return root_trace_drops(self.values, rows_of, least, lost)


def by_scatter(reference: FrechetReference, features: np.ndarray, blocks: np.ndarray) -> Decomposed:
    """Decompose the scatter of L^T x of `features` [n, d] in blocks, int [n], numbers 0..K-1: n well above d.

    Raises numpy.linalg.LinAlgError where the samples do not differ.
    """
    x, mean, trace = _centred(features, reference.mu)
    root, scatter = reference.root, x.T @ x
    if reference.triangular:  # half the operations, and only half of the product, which is symmetric
        product = lapack.dsygst(scatter.T, root.T, itype=2, lower=0, overwrite_a=1)[0]
    else:
        product = root.T @ scatter @ root
    values, vectors = eigh(product, lower=False, driver="evd", overwrite_a=True, check_finite=False)
    stretch = blas.dtrmm(1.0, root.T, vectors, lower=0, trans_a=1) if reference.triangular else root @ vectors
    few = int(np.searchsorted(values, ACCURATE * values[-1]))
    if few:  # these directions once more, from the samples in them
        part = x @ stretch[:, :few]
        values[:few], turned = np.linalg.eigh(part.T @ part)
        stretch[:, :few], vectors[:, :few] = stretch[:, :few] @ turned, vectors[:, :few] @ turned
    kept = _kept(values)
    values, vectors, stretch = values[kept], vectors[:, kept], stretch[:, kept]
    stretch /= np.sqrt(values)
    return Decomposed(reference, mean, trace, values, vectors, blocks_out(x, mean, blocks, x @ stretch))


def by_projection(reference: FrechetReference, features: np.ndarray, blocks: np.ndarray) -> Decomposed:
    """Decompose P = x L of `features` [n, d] in blocks, int [n], numbers 0..K-1, where the algebra runs.

    Raises numpy.linalg.LinAlgError where the samples do not differ.
    """
    x, mean, trace = _centred(features, reference.mu)
    p = _less_a_row(algebra.array(x) @ algebra.array(reference.root))
    if reference.of_samples:
        p = _less_a_row(p.T).T
    tall = p.shape[0] > p.shape[1]
    side = p.T if tall else p
    values, vectors = algebra.eigh(side @ side.T)
    few = int(np.searchsorted(values, ACCURATE * values[-1]))
    if few:  # these directions once more, from what lies in them
        part = algebra.host(algebra.array(vectors[:, :few]).T @ side)
        values[:few], turned = np.linalg.eigh(part @ part.T)
        vectors[:, :few] = vectors[:, :few] @ turned
    kept = _kept(values)
    values, small = values[kept], algebra.array(vectors[:, kept])
    large = side.T @ small / algebra.array(np.sqrt(values))
    own, theirs = (large, small) if tall else (small, large)
    white = algebra.host(_with_a_row(own))
    vectors = algebra.host(_with_a_row(theirs) if reference.of_samples else theirs)
    return Decomposed(reference, mean, trace, values, vectors, blocks_out(x, mean, blocks, white))


def _centred(features: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return samples less their mean, the mean, which lies `near`, and the trace of their covariance."""
    x = np.asarray(features, dtype=np.float64) - near
    mean = x.mean(axis=0)
    x -= mean
    return x, near + mean, float(np.vdot(x, x)) / (len(x) - 1)


def _kept(values: np.ndarray) -> np.ndarray:
    kept: np.ndarray = values > SMALLEST * values[-1]
    if not kept.any():
        raise np.linalg.LinAlgError("the samples do not differ")
    return kept


def _reflection(n: int) -> Any:
    """Return the unit vector h [n, 1] by which I - 2 h h^T turns the mean of n rows into the first."""
    h = np.full((n, 1), n**-0.5)
    h[0] -= 1.0
    return algebra.array(h / np.linalg.norm(h))


def _less_a_row(p: Any) -> Any:
    """Return an `array` [n, r] whose rows add up to zero in coordinates [n - 1, r] of the same inner products."""
    h = _reflection(len(p))
    return (p - 2.0 * h * (h.T @ p))[1:]


def _with_a_row(p: Any) -> Any:
    """Return the rows [n, r] of which `_less_a_row` makes an `array` [n - 1, r]."""
    h = _reflection(len(p) + 1)
    whole = algebra.joined([0.0 * p[:1], p])
    return whole - 2.0 * h * (h.T @ whole)


def decompose(reference: FrechetReference, features: np.ndarray, blocks: np.ndarray) -> Decomposed | None:
    """Decompose samples `features` [n, d] in blocks, int [n], numbers 0..K-1; None where that does not serve or pay."""
    n, rank = len(features), reference.root.shape[1] - reference.of_samples
    many = n - int(np.bincount(blocks).max()) > features.shape[1] + 1 and not reference.of_samples
    if not (many or reference.triangular or reference.of_samples) or not pays(min(n - 1, rank), blocks):
        return None
    by = by_scatter if many and algebra.device() is None else by_projection
    try:
        return by(reference, features, blocks)
    except np.linalg.LinAlgError:
        return None


def leave_one_out(
    reference: FrechetReference, features: np.ndarray, blocks: np.ndarray
) -> tuple[float, np.ndarray, Decomposed | None]:
    """Return what `FrechetReference.leave_one_out` does and, where a decomposition served, that."""
    decomposed = decompose(reference, features, blocks)
    if decomposed is not None:
        try:
            return decomposed.distance, decomposed.without_blocks(), decomposed
        except np.linalg.LinAlgError:
            pass  # a block takes more with it than its samples: every one by its own eigenvalues
    return *reference.leave_one_out(features, blocks), None
