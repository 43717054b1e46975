"""What blocks of samples take from the trace of the root of a scatter, from its eigenvalues.

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

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ellipk, ellipkm1

from bench.metrics import algebra

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
MOST_NODES = 120
TERMS = 24
"""Terms of the series in the nome, which is below 0.05."""


class Rule(NamedTuple):
    """1/sqrt(x) as the sum of c / (x + s) over nodes s and weights c, [N] each.

    Its relative error is at most `error` from x = `low` on.
    """

    nodes: np.ndarray
    weights: np.ndarray
    error: float
    low: float


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
    return Rule(nodes, weights, found, low)


def root_trace_drops(values: np.ndarray, rows: Rows, least: float, lost: Sequence[int]) -> np.ndarray:
    """Return tr C^(1/2) - tr (C - w^T w)^(1/2) for each block, float64 [K].

    Args:
        values: eigenvalues of C, [r], positive.
        rows: returns z of a block, float64 [b + 1, r], good to the precision asked for.
        least: smallest eigenvalue of I - z z^T over all blocks, but for those that are zero.
        lost: how many are zero for each block, int [K]: directions that the block takes with it.

    Raises:
        numpy.linalg.LinAlgError: `least` is not positive: a block takes other directions with it.
    """
    if not least > 0.0:
        raise np.linalg.LinAlgError("a scatter without a block is not positive definite")
    low, high, whole = least * float(values.min()), float(values.max()), float(np.sqrt(values).sum())
    kind = SINGLE if least >= SINGLE_SERVES and not any(lost) and algebra.device() is None else DOUBLE
    parts = [rows(block, kind) for block in range(len(lost))]
    own, error = np.minimum(np.stack([(part * part).sum(axis=0) for part in parts]), 1.0), COARSEST
    chosen = rule(low, high, error)
    while np.abs(_missed(values, own, chosen)).max() > FIRST_ORDER * whole and error > FINEST:
        error *= STEP
        chosen = rule(low, high, error)
    drops = _drops(values, parts, chosen, kind, lost)
    finer = rule(low, high, error * STEP**4)
    (first,) = _drops(values, [rows(0, DOUBLE)], finer, DOUBLE, lost[:1])
    if abs(drops[0] - first) > TOLERANCE * whole:
        drops = _drops(values, [rows(block, DOUBLE) for block in range(len(lost))], finer, DOUBLE, lost)
    return drops


def _drops(
    values: np.ndarray, parts: Sequence[np.ndarray], rule: Rule, kind: np.dtype, lost: Sequence[int]
) -> np.ndarray:
    """Return what each block takes from the trace of the root by a rule.

    1/sqrt(x) is integrated from zero, where the rule errs: the roots of all eigenvalues are off by the same amount, but
    for those that become zero.
    """
    off = 0.5 * float((rule.weights * np.log1p(rule.low / rule.nodes)).sum()) - np.sqrt(rule.low)
    if algebra.device() is None:
        logs = [_logarithms(values, part, rule, kind, bool(gone)) for part, gone in zip(parts, lost, strict=True)]
    else:
        logs = list(_logarithms_at_once(values, parts, rule))
    own = np.minimum(np.stack([(part * part).sum(axis=0) for part in parts]), 1.0)
    return _missed(values, own, rule) - 0.5 * np.array(logs) @ rule.weights - off * np.array(lost)


def _missed(values: np.ndarray, own: np.ndarray, rule: Rule) -> np.ndarray:
    """Return what a rule misses of the first order of blocks, [K], whose rows z have squares that add up to `own`."""
    exact: np.ndarray = (np.sqrt(values) * (1.0 - np.sqrt(1.0 - own))).sum(axis=-1)
    for node, weight in zip(rule.nodes, rule.weights, strict=True):
        exact += 0.5 * weight * np.log1p(-own * (values / (values + node))).sum(axis=-1)
    return exact


def _logarithms(values: np.ndarray, rows: np.ndarray, rule: Rule, kind: np.dtype, singular: bool) -> np.ndarray:
    """Return log det (I - G) of one block at each node, [N]; products are of `kind` off their diagonal.

    Where I - z z^T is `singular`, as (I - z z^T) + z diag(s / (v + s)) z^T, which loses nothing at small s.
    """
    shares, squares, found = values / (values + rule.nodes[:, None]), rows * rows, np.empty(len(rule.nodes))
    if singular:
        shares = rule.nodes[:, None] / (values + rule.nodes[:, None])
    rest = np.eye(len(rows)) - rows @ rows.T if singular else None
    diagonal = 1.0 - squares @ shares.T
    single, roots = rows.astype(kind), np.sqrt(shares).astype(kind)
    inner, matrix = np.empty_like(single), np.empty((len(rows),) * 2)
    for node in range(len(found)):
        np.multiply(single, roots[node], out=inner)
        if rest is None:
            np.negative(inner @ inner.T, out=matrix)
            np.fill_diagonal(matrix, diagonal[:, node])
        else:
            np.add(rest, inner @ inner.T, out=matrix)
        found[node] = 2.0 * np.log(np.linalg.cholesky(matrix).diagonal()).sum()
    return found


def _logarithms_at_once(values: np.ndarray, parts: Sequence[np.ndarray], rule: Rule) -> np.ndarray:
    """Return what `_logarithms` does for all blocks, [K, N], where the algebra runs: always as if singular."""
    import torch

    size = max(map(len, parts))
    z = algebra.array(np.stack([np.pad(part, ((0, size - len(part)), (0, 0))) for part in parts]))
    v, found = algebra.array(values), []
    rest = torch.eye(size, dtype=z.dtype, device=z.device) - z @ z.mT
    try:
        for node in rule.nodes.tolist():
            inner = z * (node / (v + node)).sqrt()
            factor = torch.linalg.cholesky(rest + inner @ inner.mT)
            found.append(2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1))
    except torch.linalg.LinAlgError as error:
        raise np.linalg.LinAlgError(str(error)) from error
    return algebra.host(torch.stack(found, dim=1))
