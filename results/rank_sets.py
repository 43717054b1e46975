"""What the data say of an order: rank sets, the set that holds the best row, and differences that hold at once.

Rows are measured on the same K blocks, so the difference of two rows has a standard error of its own:

    T_ij = (x_i - x_j)/se_ij      se_ij^2 = sum_k (I_ik - I_jk)^2      I_ik = sqrt((K - 1)/K) (mean_k x_(k) - x_(k))

Statements about many pairs at once need a larger critical value than 1.96: the 95% quantile of the largest T* of the
family, drawn from the normal distribution with the rows' covariance, and carried to Student's t with K - 1 degrees of
freedom. So no statement of the family is wrong in 95 of 100 repetitions. (The multiplier bootstrap, which weights the
blocks at random, would draw from a covariance of rank K - 1: of 44 tied rows on 10 blocks it covers 71%.)

Of more than MANY rows nothing is drawn: the pairs are millions, and Student's t at Bonferroni's level, by Holm's
step-down, is then nearly as small a critical value. `method_of` says it beside the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtr, stdtrit

from results.statistics import COVERAGE, FEWEST_BLOCKS, PairedDifference, influences

DRAWS = 1000
"""Multiplier draws: the level of a statement is 95% within 0.7."""
OWN_WAYS = 10
"""Degrees of freedom up to which pairs count as independent (Bonferroni); the share falls as their inverse above."""
MANY = 1000
"""Rows above which critical values are Holm's and Bonferroni's, pairs go by in chunks and no two rows' errors are held
to be alike: memory goes by the number of rows then, not of pairs."""
_CHUNK = 4096
_AT_ONCE = 1 << 20
_LEVELS = 0.9
"""Of many pairs, how finely those that are left are counted: their number is rounded up by at most a ninth."""

Better = Literal["lower", "higher"]


class RankSets(NamedTuple):
    """Where each row may stand among R rows; rank 1 is best.

    Attributes:
        low: first rank of each row's set, int [R]: 1 + the number of rows surely better.
        high: last rank, int [R]: R - the number of rows surely worse. All sets hold the true ranks at once with 95%.
        best: bool [R], the rows that may be the best one: this set holds the truly best row with 95%.
    """

    low: np.ndarray
    high: np.ndarray
    best: np.ndarray


class Errors(NamedTuple):
    """What is known of the errors of scores, more is better.

    Attributes:
        parts: each block's part in the error of each row, [R, K]; products of two rows sum to their covariance.
        degrees: degrees of freedom of a standard error.
    """

    parts: np.ndarray
    degrees: int


def rank_sets(
    values: np.ndarray,
    leave_one_out: np.ndarray,
    better: Better,
    *,
    leave_reference_out: np.ndarray | None = None,
    seed: int = 0,
) -> RankSets:
    """Return the 95% rank sets of rows by one metric, and the set of rows that may be the best.

    Rank sets are those of Mogstad, Romano, Shaikh and Wilhelm (Review of Economic Studies 91, 2024) in their stepwise
    form: pairs that are told apart leave the family, and the rest is tested again. The set of possible bests is Hsu's
    comparison with the best (Annals of Statistics 9, 1981): a row leaves it when it is surely worse than some other.

    Args:
        values: value of each row, [R], finite.
        leave_one_out: the same without each block, [R, K].
        better: direction of the metric.
        leave_reference_out: the same without each block of the reference, [R, L], where its sampling is to count.
        seed: of the local generator.

    Raises:
        ValueError: shapes disagree, a value is not finite, or there are fewer than `FEWEST_BLOCKS` blocks.
    """
    scores, errors = oriented(values, leave_one_out, better, leave_reference_out)
    if len(scores) > MANY:
        return _sets_of_many(scores, errors)
    ahead = _order(scores, errors, seed)
    best = np.logical_not(_beaten(scores, errors, seed).any(axis=0))
    return RankSets(1 + ahead.sum(axis=0), len(scores) - ahead.sum(axis=1), best)


def possible_bests(
    values: np.ndarray,
    leave_one_out: np.ndarray,
    better: Better,
    *,
    leave_reference_out: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return `RankSets.best` alone, bool [R]. Raises ValueError as `rank_sets` does."""
    scores, errors = oriented(values, leave_one_out, better, leave_reference_out)
    if len(scores) > MANY:
        return _sets_of_many(scores, errors).best
    return np.logical_not(_beaten(scores, errors, seed).any(axis=0))


def method_of(rows: int) -> str:
    """Return how the rank sets of so many rows are found, to be put behind their number; empty where max-t is."""
    return "" if rows <= MANY else ", by Holm's step-down"


def simultaneous_differences(
    values: np.ndarray,
    leave_one_out: np.ndarray,
    pairs: Sequence[tuple[int, int]] | np.ndarray,
    *,
    leave_reference_out: np.ndarray | None = None,
    seed: int = 0,
) -> PairedDifference:
    """Return the differences of `pairs` [P, 2] of rows, arrays [P]; their 95% intervals hold all at once.

    For one pair this is `statistics.paired_difference`. Raises ValueError as `rank_sets` does.
    """
    scores, errors = oriented(values, leave_one_out, "higher", leave_reference_out)
    one, other = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
    gap, error = _gaps(scores, errors.parts, one, other)
    half = _critical(errors, one, other, error, _draws(errors, seed), two_sided=True) * error
    low, high = gap - half, gap + half
    return PairedDifference(gap, low, high, error, (low > 0.0).astype(int) - (high < 0.0).astype(int))


def oriented(
    values: np.ndarray, leave_one_out: np.ndarray, better: Better, leave_reference_out: np.ndarray | None = None
) -> tuple[np.ndarray, Errors]:
    """Return scores [R], more is better, and their errors. Raises ValueError as `rank_sets` does."""
    x, left = np.asarray(values, dtype=np.float64), np.asarray(leave_one_out, dtype=np.float64)
    if left.ndim != 2 or x.shape != left.shape[:1]:
        raise ValueError(f"values {x.shape} and leave-one-out values {left.shape} are not [R] and [R, K]")
    k = left.shape[1]
    if k < FEWEST_BLOCKS:
        raise ValueError(f"an order needs at least {FEWEST_BLOCKS} blocks of samples, got {k}")
    if not (np.isfinite(x).all() and np.isfinite(left).all()):
        raise ValueError("an order needs finite values: leave out rows without one")
    sign = 1.0 if better == "higher" else -1.0
    parts, degrees = influences(left), k - 1
    if leave_reference_out is not None:
        reference = np.asarray(leave_reference_out, dtype=np.float64)
        if reference.ndim != 2 or len(reference) != len(x) or not np.isfinite(reference).all():
            raise ValueError(f"values without blocks of the reference {reference.shape} are not finite [{len(x)}, L]")
        parts, degrees = np.hstack([parts, influences(reference)]), min(degrees, reference.shape[1] - 1)
    return sign * x, Errors(sign * parts, degrees)


def _gaps(scores: np.ndarray, parts: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the differences of pairs of rows and their standard errors; what is rounding alone is no difference."""
    gap = scores[one] - scores[other]
    square = np.concatenate(
        [
            ((parts[one[at : at + _CHUNK]] - parts[other[at : at + _CHUNK]]) ** 2).sum(axis=1)
            for at in range(0, max(len(one), 1), _CHUNK)
        ]
    )
    size = np.maximum(np.abs(scores[one]), np.abs(scores[other]))
    return np.where(np.abs(gap) <= 1e-13 * size, 0.0, gap), np.sqrt(square)


def variance_of(errors: Errors) -> np.ndarray:
    """Return the variances of the rows' errors less what they share, [R]: the diagonal of `noise_of`."""
    rows = len(errors.parts)
    variance: np.ndarray = ((errors.parts - errors.parts.mean(axis=0)) ** 2).sum(axis=1) * rows / (rows - 1)
    return np.maximum(variance, (1e-6 * np.median(np.sqrt(variance))) ** 2)


def noise_of(errors: Errors) -> np.ndarray:
    """Return the covariance of the rows' errors less what they share, [R, R], without correlations that may be chance.

    K blocks cannot hold the covariance of more than K rows: those that are not surely positive count as none.
    """
    (parts, degrees), rows = errors, len(errors.parts)
    own = (parts - parts.mean(axis=0)) * np.sqrt(rows / (rows - 1))
    covariance = own @ own.T
    deviation = np.sqrt(np.diag(covariance))
    floor = 1e-6 * np.median(deviation)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.nan_to_num(covariance / np.outer(deviation, deviation))
    critical = float(stdtrit(degrees - 1, 1 - (1 - COVERAGE) / (rows * (rows - 1))))
    kept = np.where(correlation > critical / np.sqrt(degrees - 1 + critical**2), covariance, 0.0)
    kept[np.diag_indices(rows)] = np.maximum(np.diag(covariance), floor**2)
    values, vectors = np.linalg.eigh(kept)
    return (vectors * np.maximum(values, 0.0)) @ vectors.T


def _draws(errors: Errors, seed: int) -> np.ndarray:
    """Return draws of the rows' errors in a unit of their own, float32 [R, DRAWS]."""
    values, vectors = np.linalg.eigh(noise_of(errors))
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    root = np.ldexp(root, -int(np.frexp(np.abs(root).max())[1]))  # in float32 whatever the unit; a power of 2 is exact
    drawn: np.ndarray = root @ np.random.default_rng(seed).standard_normal((len(root), DRAWS))
    return drawn.astype(np.float32)


def _critical(
    errors: Errors, one: np.ndarray, other: np.ndarray, error: np.ndarray, draws: np.ndarray, *, two_sided: bool
) -> float:
    """Return the critical value for the pairs together; pairs without an error of their own count for nothing."""
    level = (1 + COVERAGE) / 2 if two_sided else COVERAGE
    alone = float(stdtrit(errors.degrees, level))
    known = np.flatnonzero(error > 0)
    if len(known) < 2:
        return alone
    largest = np.zeros(DRAWS, dtype=np.float32)
    for at in range(0, len(known), _CHUNK):
        pick = known[at : at + _CHUNK]
        drawn = draws[one[pick]] - draws[other[pick]]
        drawn /= np.maximum(drawn.std(axis=1, keepdims=True), np.float32(1e-30))
        np.maximum(largest, (np.abs(drawn) if two_sided else drawn).max(axis=0), out=largest)
    normal = float(np.quantile(largest, COVERAGE))
    together = -float(stdtrit(errors.degrees, ndtr(-normal)))
    # Standard errors vary from pair to pair, the more the fewer blocks there are, and then pairs go their own ways.
    apart = -float(stdtrit(errors.degrees, (1 - level) / len(known)))
    share = min(1.0, OWN_WAYS / errors.degrees)
    return max((1 - share) * together + share * apart, alone)


def _order(scores: np.ndarray, errors: Errors, seed: int) -> np.ndarray:
    """Return bool [R, R], true at [i, j] where i is significantly better than j, by step-down over all pairs."""
    rows = len(scores)
    if rows == 1:
        return np.zeros((1, 1), dtype=bool)
    one, other = np.triu_indices(rows, 1)
    gap, error = _gaps(scores, errors.parts, one, other)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(gap == 0.0, 0.0, gap / error)
    draws = _draws(errors, seed)
    left = np.arange(len(t))
    while len(left):
        critical = _critical(errors, one[left], other[left], error[left], draws, two_sided=True)
        undecided = left[np.abs(t[left]) <= critical]
        if len(undecided) == len(left):
            break
        left = undecided
    decided = np.ones(len(t), dtype=bool)
    decided[left] = False
    ahead = np.zeros((rows, rows), dtype=bool)
    ahead[one, other] = decided & (gap > 0)
    ahead[other, one] = decided & (gap < 0)
    return ahead


def surely_beaten(
    values: np.ndarray,
    leave_one_out: np.ndarray,
    better: Better,
    *,
    leave_reference_out: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return bool [R, R], true at [i, j] where i is surely better than j in j's comparison with all others (Hsu).

    The rows that no other beats are `RankSets.best`; within any subset, those that none of it beats hold its best row
    with 95% at least, as the critical values allow for all rows. Raises ValueError as `rank_sets` does.
    """
    return _beaten(*oriented(values, leave_one_out, better, leave_reference_out), seed)


def _beaten(scores: np.ndarray, errors: Errors, seed: int) -> np.ndarray:
    rows = len(scores)
    beaten = np.zeros((rows, rows), dtype=bool)
    if rows == 1:
        return beaten
    if rows > MANY:
        critical = float(stdtrit(errors.degrees, 1 - (1 - COVERAGE) / (rows - 1)))
        for part, t in _chunks_of_many(scores, errors.parts):
            beaten[part] = t > critical
        return beaten
    draws = _draws(errors, seed)
    # The critical value lies between that of one comparison and Bonferroni's: most rows need no draws.
    alone, bonferroni = (stdtrit(errors.degrees, 1 - (1 - COVERAGE) / count) for count in (1, rows - 1))
    for row in range(rows):
        others = np.delete(np.arange(rows), row)
        here = np.full(rows - 1, row)
        gap, error = _gaps(scores, errors.parts, others, here)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(gap == 0.0, 0.0, gap / error)
        critical = bonferroni
        if ((t > alone) & (t <= bonferroni)).any():
            critical = _critical(errors, others, here, error, draws, two_sided=False)
        beaten[others, row] = (t > alone) & ((t > bonferroni) | (t > critical))
    return beaten


def _chunks_of_many(scores: np.ndarray, parts: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows and their T_ij with all rows, [chunk, R], so many at a time that a chunk holds a few million."""
    own = parts - parts.mean(axis=0)
    square = (own**2).sum(axis=1)
    step = max(1, _AT_ONCE // len(scores))
    for start in range(0, len(scores), step):
        part = slice(start, min(start + step, len(scores)))
        both = square[part, None] + square
        variance = both - 2 * own[part] @ own.T
        row, column = np.nonzero(variance < 1e-6 * both)  # cancelled: by difference
        variance[row, column] = ((own[row + start] - own[column]) ** 2).sum(axis=1)
        gap = scores[part, None] - scores
        gap[np.abs(gap) <= 1e-13 * np.maximum(np.abs(scores[part, None]), np.abs(scores))] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            yield part, np.where(gap == 0.0, 0.0, gap / np.sqrt(variance))


def _sets_of_many(scores: np.ndarray, errors: Errors) -> RankSets:
    """Return rank sets by Holm's step-down over all pairs, and the possible bests by Bonferroni's comparisons."""
    rows = len(scores)
    pairs = rows * (rows - 1) // 2
    families = np.unique(np.ceil(pairs * _LEVELS ** np.arange(np.ceil(-np.log(pairs) / np.log(_LEVELS)) + 1)))
    critical = stdtrit(errors.degrees, 1 - (1 - COVERAGE) / (2 * families))  # ascending, as families are
    bins = len(critical) + 1
    ahead, behind = (np.zeros((rows, bins), dtype=np.int64) for _ in range(2))
    beaten = np.zeros(rows, dtype=bool)
    with_best = float(stdtrit(errors.degrees, 1 - (1 - COVERAGE) / (rows - 1)))
    for part, t in _chunks_of_many(scores, errors.parts):
        place = np.searchsorted(critical, np.abs(t))
        place += np.arange(len(t))[:, None] * bins
        for counts, side in ((behind, t > 0), (ahead, t < 0)):
            counts[part] = np.bincount(place[side], minlength=len(t) * bins).reshape(len(t), bins)
        beaten[part] = (t < -with_best).any(axis=1)
    over = np.cumsum(behind.sum(axis=0)[::-1])[::-1]  # over[i + 1]: pairs beyond critical[i]
    level = len(families) - 1
    while True:
        left = pairs - int(over[level + 1])
        lower = int(np.searchsorted(families, max(left, 1)))
        if lower >= level:
            break
        level = lower
    surely_better, surely_worse = (counts[:, level + 1 :].sum(axis=1) for counts in (ahead, behind))
    return RankSets(1 + surely_better, rows - surely_worse, ~beaten)
