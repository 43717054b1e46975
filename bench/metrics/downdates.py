"""Frechet distances without each of many small blocks, from one eigendecomposition instead of one problem a block.

With the scatter C = V diag(v) V^T, a block of b samples takes a matrix w^T w of rank b + 1 out of it, and the trace of
the root falls by

    tr C^(1/2) - tr (C - w^T w)^(1/2) = -1/2 sum_j c_j log det (I - G(s_j)),     G(s) = z diag(v / (v + s)) z^T,

where z = w V v^(-1/2) and 1/sqrt(x) = sum_j c_j / (x + s_j) is Zolotarev's rational approximation, the best for its
number of nodes (`rule`). Integrating along C - t w^T w, t in 0..1, shows that the fall errs by no more, relatively,
than the approximation does between the smallest eigenvalue without a block and the largest of all.

It errs far less here, since what is evaluated at the nodes is only the difference from

    sum_i log (1 - a_i v_i / (v_i + s)),   a = diag (z^T z),   whose fall is  sum_i v_i^(1/2) (1 - (1 - a_i)^(1/2)):

the block's effect on each eigenvalue to first order, most of the whole, for which the same bound holds. Columns of z
have length 1 over all samples, and weights lie in 0..1, so that G takes single precision off its diagonal however
small an eigenvalue is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import blas, eigh, lapack, solve_triangular
from scipy.special import ellipk, ellipkm1

from bench.metrics import algebra
from bench.metrics.frechet import FrechetReference

SMALLEST_DIMENSION = 512
"""Below this the eigenvalues of every block are quick enough."""
LARGEST_SHARE = 0.25
"""Largest block, as a share of the dimension, at which this is cheaper than the block's own eigenvalues."""
ACCURATE = 1e-13
"""Eigenvalue, as a share of the largest, below which a decomposition no longer tells it from rounding."""
SMALLEST = 1e-22
"""Eigenvalue, likewise, below which a direction is left out."""
SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
Rows = Callable[[int, np.dtype], np.ndarray]
"""Rows of a block, and the precision that they must be good to."""
COARSEST, FINEST = 1e-6, 1e-12
"""Relative errors of rules for 1/sqrt(x): of the first one tried, and of the last."""
STEP = 0.3
"""Error of the next rule, as a share of this one's: about one node."""
FIRST_ORDER = 5e-10
"""What a rule may miss of any block's first order, known exactly, in units of tr C^(1/2): about ten times the rest."""
TOLERANCE = 1e-9
"""What a finer rule in double precision may change for the first block, likewise, before all blocks take it."""
SINGLE_SERVES = 0.02
"""Least eigenvalue of I - z z^T at which single precision serves: its inverse enlarges what the products round."""
IN_DOUBLE = 0.125
"""Share of the directions, those of the largest eigenvalues, that the reference is always projected to in double."""
MOST_NODES = 120
TERMS = 24
"""Terms of the series in the nome, which is below 0.05."""


def pays(samples: int, dimension: int, blocks: np.ndarray) -> bool:
    """Tell whether `blocks`, int [samples], are small enough beside `dimension`, and leave a covariance of full rank.

    What is held is then bounded: samples x dimension float64, at most a quarter of K d^2.
    """
    largest = int(np.bincount(blocks).max())
    small = largest + 1 <= LARGEST_SHARE * dimension
    return dimension >= SMALLEST_DIMENSION and small and samples - largest > dimension + 1


class Rule(NamedTuple):
    """1/sqrt(x) as the sum of c / (x + s) over nodes s and weights c, [N] each, within `error` relatively."""

    nodes: np.ndarray
    weights: np.ndarray
    error: float


def rule(low: float, high: float, error: float) -> Rule:
    """Return the rule of fewest nodes whose relative error is at most `error` for every x in low..high.

    Zolotarev's, in the form of Hale, Higham and Trefethen (SIAM J. Numer. Anal. 46, 2008, method 3): the trapezoid rule
    after s = low sc^2(u | 1 - low / high), which is summed by its nome. The error is the largest found on a fine grid.
    """
    low = min(low, high / 2)
    ratio, x = low / high, np.geomspace(low, high, 1000)
    quarter, period = float(ellipk(ratio)), float(ellipkm1(ratio))
    order = np.arange(TERMS) + 0.5
    scale = 2.0 * np.pi / (np.sqrt(ratio) * quarter) / -np.expm1(-2.0 * order * np.pi * period / quarter)
    for count in range(2, MOST_NODES + 1):
        # Nodes mirror each other about sqrt(low high); in the lower half the series falls off at once.
        half = (np.arange((count + 1) // 2) + 0.5)[:, None] * period / count
        up, down = (np.exp(order * np.pi / quarter * (sign * half - period)) for sign in (1.0, -1.0))
        sc = (scale * (up - down) / 2.0).sum(axis=1)
        slope = (scale * (up + down) / 2.0 * order).sum(axis=1) * np.pi / quarter
        mirrored = slice(count // 2 - 1, None, -1)
        nodes = np.concatenate([low * sc**2, (high / sc**2)[mirrored]])
        weights = np.concatenate([slope, (slope / (np.sqrt(ratio) * sc**2))[mirrored]])
        weights *= 2.0 * period * np.sqrt(low) / (np.pi * count)
        found = float(np.abs(np.sqrt(x) * (weights / (x[:, None] + nodes)).sum(axis=1) - 1.0).max())
        if found <= error:
            break
    return Rule(nodes, weights, found)


def root_trace_drops(values: np.ndarray, rows: Rows, count: int, least: float) -> np.ndarray:
    """Return tr C^(1/2) - tr (C - w^T w)^(1/2) for each of `count` blocks, float64 [count].

    Args:
        values: eigenvalues of C, [r], positive.
        rows: returns z of a block, float64 [b + 1, r], good to the precision asked for.
        count: number of blocks.
        least: smallest eigenvalue of I - z z^T over all blocks.

    Raises:
        numpy.linalg.LinAlgError: `least` is not positive: without a block the scatter is not positive definite.
    """
    if not least > 0.0:
        raise np.linalg.LinAlgError("a scatter without a block is not positive definite")
    low, high, whole = least * float(values.min()), float(values.max()), float(np.sqrt(values).sum())
    kind = SINGLE if least >= SINGLE_SERVES else DOUBLE
    parts = [rows(block, kind) for block in range(count)]
    own, error = np.stack([(part * part).sum(axis=0) for part in parts]), COARSEST
    chosen = rule(low, high, error)
    while np.abs(_missed(values, own, chosen)).max() > FIRST_ORDER * whole and error > FINEST:
        error *= STEP
        chosen = rule(low, high, error)
    drops = np.array([_drop(values, part, chosen, kind) for part in parts])
    finer = rule(low, high, error * STEP**4)
    if abs(drops[0] - _drop(values, rows(0, DOUBLE), finer, DOUBLE)) > TOLERANCE * whole:
        drops = np.array([_drop(values, rows(block, DOUBLE), finer, DOUBLE) for block in range(count)])
    return drops


def _missed(values: np.ndarray, own: np.ndarray, rule: Rule) -> np.ndarray:
    """Return what a rule misses of the first order of blocks, [K], whose rows z have squares that add up to `own`."""
    exact: np.ndarray = (np.sqrt(values) * (1.0 - np.sqrt(1.0 - own))).sum(axis=-1)
    for node, weight in zip(rule.nodes, rule.weights, strict=True):
        exact += 0.5 * weight * np.log1p(-own * (values / (values + node))).sum(axis=-1)
    return exact


def _drop(values: np.ndarray, rows: np.ndarray, rule: Rule, kind: np.dtype) -> float:
    """Return what one block takes from the trace of the root; its products are of `kind` off their diagonal."""
    shares, squares = values / (values + rule.nodes[:, None]), rows * rows
    diagonal = 1.0 - squares @ shares.T
    single, roots = rows.astype(kind), np.sqrt(shares).astype(kind)
    inner, matrix, total = np.empty_like(single), np.empty((len(rows),) * 2), 0.0
    for node, weight in enumerate(rule.weights):
        np.multiply(single, roots[node], out=inner)
        np.negative(inner @ inner.T, out=matrix)
        np.fill_diagonal(matrix, diagonal[:, node])
        total -= float(weight * np.log(np.linalg.cholesky(matrix).diagonal()).sum())
    return total + float(_missed(values, squares.sum(axis=0), rule))


class BlocksOut(NamedTuple):
    """A set without each of its K blocks; a block leaves by the rank-one terms of its rows.

    Attributes:
        size: samples of the whole set.
        rest: samples without each block, int [K].
        mean: mean without each block, [K, d].
        trace: trace of the covariance without each block, [K].
        rows: rows w of each block in coordinates in which the scatter of all is the identity, [b + 1, r] each.
        least: smallest eigenvalue of I - w w^T over all blocks.
    """

    size: int
    rest: np.ndarray
    mean: np.ndarray
    trace: np.ndarray
    rows: list[np.ndarray]
    least: float


def _blocks_out(x: np.ndarray, mean: np.ndarray, white: np.ndarray, blocks: np.ndarray) -> BlocksOut:
    """Return a set without each block.

    Args:
        x: samples less their mean, [n, d].
        mean: their mean, [d].
        white: the same samples in coordinates in which their scatter is the identity, [n, r].
        blocks: block of each, int [n].
    """
    n, squares = len(x), np.einsum("ij,ij->i", x, x)
    members = [np.flatnonzero(blocks == k) for k in range(int(blocks.max()) + 1)]
    rest = np.array([n - len(chosen) for chosen in members])
    shift = np.stack([x[chosen].sum(axis=0) for chosen in members]) / -rest[:, None]
    left = squares.sum() - np.array([squares[chosen].sum() for chosen in members])
    trace = (left - rest * (shift * shift).sum(axis=1)) / (rest - 1)
    rows = [_leaving(white[chosen], n) for chosen in members]
    least = min(float(np.linalg.eigvalsh(np.eye(len(part)) - part @ part.T)[0]) for part in rows)
    return BlocksOut(n, rest, mean + shift, trace, rows, least)


def _leaving(part: np.ndarray, n: int) -> np.ndarray:
    """Return the rows by which a block leaves the scatter of n samples: its own, and the shift of the mean."""
    count = len(part)
    return np.concatenate([part, (count / np.sqrt(n - count)) * part.mean(axis=0, keepdims=True)])


def reference_blocks_out(reference: FrechetReference, features: np.ndarray, blocks: np.ndarray) -> BlocksOut | None:
    """Return the reference `features` [n, d] without each block, rows in coordinates L^-1 x: worth keeping.

    None where the blocks are too large for it to pay, or the factor L is not square.
    """
    root = reference.root
    if not pays(len(features), features.shape[1], blocks) or root.shape[0] != root.shape[1]:
        return None
    x = np.asarray(features, dtype=np.float64)
    mean = x.mean(axis=0)
    x = x - mean
    if reference.triangular:
        white = solve_triangular(root, x.T, lower=True, check_finite=False).T
    else:  # columns at right angles, their lengths the roots of eigenvalues
        squares = (root * root).sum(axis=0)
        kept = squares > ACCURATE * squares.max()
        white = x @ np.where(kept, root / np.where(kept, squares, 1.0), 0.0)
    return _blocks_out(x, mean, white / np.sqrt(len(x) - 1), blocks)


class Decomposed:
    """Samples `features` [n, d] against a reference: the scatter of L^T x decomposed once for every block of both.

    Raises numpy.linalg.LinAlgError, here or later, where a matrix is not of full rank.
    """

    def __init__(self, reference: FrechetReference, features: np.ndarray, blocks: np.ndarray) -> None:
        """Take the samples and the block of each, int [n], numbers 0..K-1."""
        self.reference, self.n = reference, len(features)
        x = np.asarray(features, dtype=np.float64) - reference.mu
        mean = x.mean(axis=0)
        x -= mean
        self.mean, self.trace = reference.mu + mean, float(np.vdot(x, x)) / (self.n - 1)
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
        kept = values > SMALLEST * values[-1]
        if not kept.any():
            raise np.linalg.LinAlgError("the samples do not differ")
        self.values, self.vectors, stretch = values[kept], vectors[:, kept], stretch[:, kept]
        self.root_trace = float(np.sqrt(self.values).sum())
        stretch /= np.sqrt(self.values)
        self.blocks = _blocks_out(x, self.mean, x @ stretch, blocks)

    @property
    def distance(self) -> float:
        """The squared distance of all samples."""
        return self.reference._assemble(self.mean, self.trace, self.root_trace / np.sqrt(self.n - 1))

    def without_blocks(self) -> np.ndarray:
        """Return the distances without each block of the samples, float64 [K]."""
        out = self.blocks
        drops = root_trace_drops(self.values, lambda block, _: out.rows[block], len(out.rows), out.least)
        facts = zip(out.mean, out.trace, (self.root_trace - drops) / np.sqrt(out.rest - 1), strict=True)
        return np.array([self.reference._assemble(*fact) for fact in facts])

    def without_reference_blocks(self, out: BlocksOut | None) -> np.ndarray | None:
        """Return the distances without each block of the reference, float64 [R]; None where this way does not serve."""
        if out is None:
            return None
        # The root of S2 is factored here, so that what leaves S1 = L L^T is stretched by it: the same eigenvalues.
        split = int((1.0 - IN_DOUBLE) * len(self.values))
        single, double = self.vectors[:, :split].astype(SINGLE), self.vectors[:, split:]

        def rows(block: int, kind: np.dtype) -> np.ndarray:
            part = out.rows[block]
            if kind == DOUBLE:
                return part @ self.vectors
            found = np.empty((len(part), len(self.values)))
            found[:, :split], found[:, split:] = part.astype(SINGLE) @ single, part @ double
            return found

        try:
            drops = root_trace_drops(self.values, rows, len(out.rows), out.least)
        except np.linalg.LinAlgError:
            return None
        root_trace = (self.root_trace - drops) * np.sqrt((out.size - 1) / (out.rest - 1) / (self.n - 1))
        distances: np.ndarray = ((self.mean - out.mean) ** 2).sum(axis=1) + out.trace + self.trace - 2.0 * root_trace
        return distances


def leave_one_out(
    reference: FrechetReference, features: np.ndarray, blocks: np.ndarray
) -> tuple[float, np.ndarray, Decomposed | None]:
    """Return what `FrechetReference.leave_one_out` does and, where a decomposition served, that.

    An accelerator finds the eigenvalues of a block sooner than the host the determinants.
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
            pass  # nothing is left without a block: every one by its own eigenvalues
    return *reference.leave_one_out(features, blocks), None
