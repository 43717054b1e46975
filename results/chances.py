"""Each row's chance of being truly the best: hierarchical Bayes over the whole table."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln, logsumexp

from results.rank_sets import MANY, Better, noise_of, oriented, variance_of

TIED = 0.3
"""Prior probability that all rows are exactly tied."""
PACK = 0.5
"""Prior probability that a leading group, ahead of others, is exactly tied within: without it the luckiest of several
equal leaders passes for the best."""
SMALLEST_SPREAD = 0.7
"""In standard errors of a row: a spread below it is as good as a tie."""
CLEAR_GAP = 2.0
"""In standard errors of the difference: a gap behind which a group may end without cost (see `_hypotheses`)."""
_SPREADS = 25
_MODELS = 256
_SIZES = 200
"""Of very many rows, how many numbers of leading rows are tried: the smallest ones, and geometrically more."""
_AT_ONCE = 64


def chances_of_first(
    values: np.ndarray,
    leave_one_out: np.ndarray,
    better: Better,
    *,
    leave_reference_out: np.ndarray | None = None,
    seed: int = 0,
    draws: int = 4000,
) -> np.ndarray:
    """Return the probability that each row is truly the best, [R]; it sums to 1, rows tied for the place share it.

    Drawing from the observed values counts their noise twice and believes whichever row luck put first. Here the true
    values have a prior of their own, learnt from all rows (hierarchical Bayes; Efron and Morris, JASA 70, 1975): the
    leading rows, 1 up to all of R, come from N(mu_1, tau_1^2) and the rest from N(mu_2, tau_2^2); the number of leading
    rows and both tau, 0 among them (an exact tie), are averaged over by how well they explain the table. Errors are
    normal, less what all rows share, with the correlations that are surely above zero.

    No method can be right for every single field: exactly tied leaders are believed too readily, evenly spread ones too
    little. docs/statistics.md shows by how much. Arguments and errors are those of `rank_sets`; `draws` are taken from
    the posterior.
    """
    scores, errors = oriented(values, leave_one_out, better, leave_reference_out)
    rows = len(scores)
    if rows == 1:
        return np.ones(1)
    inflation = errors.degrees / (errors.degrees - 2)  # variance of Student's t
    noise = noise_of(errors) * inflation if rows <= MANY else None
    variance = variance_of(errors) * inflation if noise is None else np.diag(noise)
    width = float(np.ptp(scores))
    scale = float(np.median(np.sqrt(variance)))
    if width == 0.0 or not scale > 1e-12 * width:  # nothing is drawn: the order is as it stands
        best = scores == scores.max()
        return best / best.sum()
    order = np.argsort(-scores, kind="stable")
    random = np.random.default_rng(seed)
    chosen, counts = np.unique(
        _hypotheses(scores[order] / scale, variance[order] / scale**2, draws, random), axis=0, return_counts=True
    )
    if len(chosen) > _MODELS:
        keep = np.argsort(-counts, kind="stable")[:_MODELS]
        chosen, counts = chosen[keep], counts[keep]
    counts = np.maximum(1, np.round(counts * draws / counts.sum())).astype(int)
    y, variance = scores[order] / scale, variance[order] / scale**2
    if noise is not None:
        noise = noise[np.ix_(order, order)] / scale**2
        root = np.linalg.cholesky(noise + 1e-9 * np.eye(rows))
    first = np.zeros(rows)
    for (size, one, other), count in zip(chosen, counts, strict=True):
        leading = np.arange(rows) < size
        if one == 0.0:
            first[leading] += count / size
            continue
        tau = np.where(leading, one, other)
        if noise is not None:
            drawn = _posterior(y, noise, root, tau, leading, int(count), random)
            first += np.bincount(drawn.argmax(axis=1), minlength=rows)
            continue
        for start in range(0, int(count), _AT_ONCE):
            drawn = _posterior_of_many(y, variance, tau, leading, min(_AT_ONCE, int(count) - start), random)
            first += np.bincount(drawn.argmax(axis=1), minlength=rows)
    chances = np.empty(rows)
    chances[order] = first / first.sum()
    for value in np.unique(scores):  # rows of equal value and equal parts are one row measured twice
        same = np.flatnonzero(scores == value)
        if len(same) > 1:
            for twins in _equal(errors.parts[same]):
                chances[same[twins]] = chances[same[twins]].mean()
    return chances


def _equal(parts: np.ndarray) -> list[np.ndarray]:
    _, group = np.unique(parts, axis=0, return_inverse=True)
    return [np.flatnonzero(group.ravel() == index) for index in range(group.max() + 1)]


def _hypotheses(y: np.ndarray, variance: np.ndarray, draws: int, random: np.random.Generator) -> np.ndarray:
    """Return `draws` of (number of leading rows, tau_1, tau_2) from their posterior; y [R] is sorted, best first."""
    rows = len(y)
    width = float(np.ptp(y)) + 1.0
    tried = np.arange(rows)
    if rows > MANY:
        tried = np.unique(np.concatenate([tried[: _SIZES // 2], np.geomspace(_SIZES // 2, rows, _SIZES // 2) - 1]))
        tried = tried.astype(int)
    taus = np.concatenate([[0.0], np.geomspace(SMALLEST_SPREAD, 2 * width, _SPREADS)])
    sizes = np.arange(1, rows + 1)

    def prior(tied: np.ndarray) -> np.ndarray:
        tied = np.atleast_1d(tied)
        return np.log(np.concatenate([tied[None], np.repeat((1 - tied[None]) / _SPREADS, _SPREADS, axis=0)]))

    precision = 1 / (taus[:, None] ** 2 + variance)
    terms = np.stack([np.log(precision), precision, precision * y, precision * y**2])
    top = np.cumsum(terms, axis=-1)
    rest = top[..., -1:] - top

    def evidence(sums: np.ndarray, size: np.ndarray, tied: np.ndarray) -> np.ndarray:
        logs, weight, linear, square = sums
        safe = np.where(size > 0, weight, 1.0)
        inside = logs - square + linear**2 / safe - np.log(safe) - (size - 1) * np.log(2 * np.pi)
        return np.where(size > 0, inside / 2 - np.log(width) + prior(tied), -np.inf)

    leading = evidence(top, sizes, np.where(sizes < rows, PACK, TIED))
    behind = evidence(rest, rows - sizes, np.full(rows, TIED))
    behind[:, -1] = -np.inf
    behind[0, -1] = 0.0
    size_prior = np.full(rows, -np.inf)
    if rows > 2:
        size_prior[:-1] = np.log(0.5 / (rows - 1))
    size_prior[-1] = np.log(0.5 if rows > 2 else 1.0)
    size_prior[np.setdiff1d(sizes - 1, tried)] = -np.inf
    # Which rows lead was read off the data: that one choice of many costs its number, but not behind a clear gap.
    clear = np.append(y[:-1] - y[1:] > CLEAR_GAP * np.sqrt(variance[:-1] + variance[1:]), False)
    choices = gammaln(rows + 1) - gammaln(sizes + 1) - gammaln(rows - sizes + 1)
    size_prior -= np.where(clear, 0.0, choices)
    one_group = logsumexp(behind, axis=0)
    # Leaders may lead rows of any spread. Were the rest of them one group, and not two, a group that ends where the
    # spread of the table changes would explain it better, and believe the luckiest of equal leaders. That holds for
    # leaders of any spread: for tied ones alone it would take luck for the reason of every lead.
    two_groups = np.full(rows, -np.inf)
    for tied in tried[(tried >= 1) & (tried < rows - 2)] + 1:
        middle = evidence(top[..., tied:-1] - top[..., tied - 1 : tied], sizes[: rows - tied - 1], np.array(TIED))
        ends = size_prior[tied:-1] + logsumexp(middle, axis=0) + one_group[tied:-1]
        two_groups[tied - 1] = logsumexp(ends)
    leading += np.maximum(two_groups - one_group, 0.0)
    total = logsumexp(leading, axis=0) + one_group
    size = random.choice(rows, draws, p=_shares(total + size_prior))
    found = np.empty((draws, 3))
    for index in np.unique(size):
        here = size == index
        found[here, 0] = index + 1
        found[here, 1] = random.choice(taus, here.sum(), p=_shares(leading[:, index]))
        found[here, 2] = random.choice(taus, here.sum(), p=_shares(behind[:, index]))
    return found


def _shares(logs: np.ndarray) -> np.ndarray:
    shares: np.ndarray = np.exp(logs - logsumexp(logs))
    return shares / shares.sum()


def _posterior(
    y: np.ndarray,
    noise: np.ndarray,
    root: np.ndarray,
    tau: np.ndarray,
    leading: np.ndarray,
    count: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Return `count` draws of the true values [count, R], whose groups have flat means and spreads `tau`."""
    rows = len(y)
    groups = np.stack([leading, ~leading] if not leading.all() else [leading], axis=1).astype(float)
    inverse = np.linalg.inv(noise + np.diag(tau**2 + 1e-9))
    information = np.linalg.inv(groups.T @ inverse @ groups)
    middle = information @ groups.T @ inverse @ y
    means = random.multivariate_normal(middle, information, size=count, method="cholesky") @ groups.T
    own = tau * random.standard_normal((count, rows))
    error = random.standard_normal((count, rows)) @ root.T
    return means + own + (y - means - own - error) @ inverse * tau**2


def _posterior_of_many(
    y: np.ndarray, variance: np.ndarray, tau: np.ndarray, leading: np.ndarray, count: int, random: np.random.Generator
) -> np.ndarray:
    """Return `count` draws of the true values [count, R] as `_posterior`, of rows whose errors are independent."""
    weight, means = 1 / (variance + tau**2 + 1e-9), np.empty((count, len(y)))
    for group in (leading, ~leading):
        if group.any():
            total = weight[group].sum()
            middle = (weight[group] * y[group]).sum() / total
            means[:, group] = middle + random.standard_normal((count, 1)) / np.sqrt(total)
    shrunk = means + (y - means) * weight * tau**2
    drawn: np.ndarray = shrunk + random.standard_normal((count, len(y))) * np.sqrt(tau**2 * variance * weight)
    return drawn
