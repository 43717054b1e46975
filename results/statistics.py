"""Intervals and paired differences by leaving out blocks of samples; `rank_sets` and `chances` speak of whole orders.

A block holds the whole label histogram, and the same samples (same noise, same label) for every model, so the K values
of a metric with one block left out carry its sampling error, its bias and its pairing with every other row.
A percentile bootstrap of FID never covers: a resample repeats rows, which adds the bias once more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

COVERAGE = 0.95
FEWEST_PER_CLASS = 10
"""The least number of blocks that a small class may bring their number down to."""
FEWEST_BLOCKS = 5
"""Blocks below which nothing is said of a spread: Student's t of so few is wider than most tables, and two or three
blocks that happen to agree would pass for certainty."""
LEAST_SHARE = 0.5
"""Of the jackknife's variance, the share that is left where all of it is what pairs of blocks do."""
JACKKNIFE, HALF_SAMPLES = "delete-block jackknife", "balanced half samples"
"""What the `method` of a value says whose interval is that of `jackknife`: its values without each block are such, or
stand for them."""
COUNTED_ONCE = "what pairs of blocks do counted once"
"""What the `method` of a value says whose standard error is less than that of its values without each block."""
TAIL, TAIL_SHARE = 0.01, 0.5
HEAVY_TAILS = "heavy tails"
"""What the `method` of a value says where few images carry so much of its variance that its interval may be narrow."""
ROUGH = "rough"
"""What it says where there are so few images per dimension that the bias is removed only roughly."""


class Interval(NamedTuple):
    """A value and its 95% interval.

    Attributes:
        value: the estimate at its own number of samples.
        low: lower end.
        high: upper end.
        standard_error: standard error of `value`.
        corrected: `value` less its estimated bias of order 1/n; None where there is none to correct.
    """

    value: float
    low: float
    high: float
    standard_error: float
    corrected: float | None


def blocks_by_label(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the block of each sample, int64 [n]: samples sorted by class, in index order within it, dealt in turn.

    Blocks are equal in size to one sample, for their unequal bias would pass for noise, and hold the label histogram to
    one sample a class; with balanced labels cycling 0..C-1 and `count` dividing a class, block = (i // C) % count.

    Args:
        labels: class of each sample, int [n].
        count: number of blocks, at least 2.

    Raises:
        ValueError: fewer samples than blocks, or fewer than two blocks.
    """
    labels = np.asarray(labels)
    if not 2 <= count <= len(labels):
        raise ValueError(f"{count} blocks need at least 2 blocks and {count} samples, got {len(labels)} samples")
    order = np.argsort(labels, kind="stable")
    block = np.empty(len(labels), dtype=np.int64)
    block[order] = np.arange(len(labels)) % count
    return block


def block_count(labels: np.ndarray, wanted: int) -> int:
    """Return how many blocks to cut samples of these `labels` (int [n]) into: `wanted`, or fewer.

    Classes smaller than the number of blocks would leave blocks of different classes, whose differences pass for
    noise; so as many as the smallest class has samples, where that leaves at least 10 (FEWEST_PER_CLASS); and never
    fewer than two samples a block. 0 where that leaves fewer than two blocks.
    """
    labels = np.asarray(labels)
    count = min(wanted, len(labels) // 2)
    if count < 2:
        return 0
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    return min(count, smallest) if smallest >= FEWEST_PER_CLASS else count


def jackknife(
    full: float,
    leave_one_out: np.ndarray,
    centre: Literal["value", "corrected"] = "value",
    reference: np.ndarray | None = None,
    twice: float = 0.0,
) -> Interval:
    """Return the delete-block jackknife interval of `full`, given the values with each of K blocks left out, [K].

        se^2 = (K - 1)/K sum (x_(k) - mean)^2        corrected = K full - (K - 1) mean

    The interval is Student's with K - 1 degrees of freedom, around `full`, or around the corrected value (for FID: the
    one that covers the distance of the distributions rather than its expectation at this n).

    `reference` holds the values with each block of the reference left out, [R]. Its share of the variance and of the
    bias then counts too (Arvesen, Annals of Mathematical Statistics 40, 1969), with Welch and Satterthwaite's degrees
    of freedom.

    `twice` is the part of the variance that is counted twice (`Interactions.counted_twice`): it counts once, and at
    least half of the jackknife's variance stays. The difference of two estimates of a variance has fewer degrees of
    freedom (Satterthwaite again).

    Raises:
        ValueError: fewer than two blocks of either.
    """
    left = np.asarray(leave_one_out, dtype=np.float64)
    standard_error, half, corrected = _jackknife(full, left, reference, twice)
    middle = full if centre == "value" else float(corrected)
    return Interval(float(full), middle - float(half), middle + float(half), float(standard_error), float(corrected))


def influences(leave_one_out: Any) -> np.ndarray:
    """Return what each block adds to the error, from values without a block [..., K]: its squares sum to se^2.

    Influences of samples' blocks and of the reference's blocks are independent and may be joined along the last axis.
    """
    left = np.asarray(leave_one_out, dtype=np.float64)
    k = left.shape[-1] if left.ndim else 0
    if k < 2:
        raise ValueError(f"a jackknife needs at least 2 blocks, got {k}")
    return np.sqrt((k - 1) / k) * (left.mean(axis=-1, keepdims=True) - left)


def _jackknife(full: Any, left: np.ndarray, reference: Any = None, twice: float = 0.0) -> tuple[Any, Any, Any]:
    """Return standard error, half width and corrected value of `full` [...] from values without a block [..., K].

    `twice` is the part of the variance that is counted twice.
    """
    own, k = (influences(left) ** 2).sum(axis=-1), left.shape[-1]
    corrected = k * full - (k - 1) * left.mean(axis=-1)
    variance, degrees = own, np.asarray(k - 1.0)
    if reference is not None:
        other = np.asarray(reference, dtype=np.float64)
        r = other.shape[-1] if other.ndim else 0
        shared = (influences(other) ** 2).sum(axis=-1)
        corrected = corrected - (r - 1) * (other.mean(axis=-1) - full)
        variance = own + shared
        with np.errstate(invalid="ignore"):
            welch = variance**2 / (own**2 / (k - 1) + shared**2 / (r - 1))
        degrees = np.where(variance > 0, welch, k - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        once = np.where(variance > 0, np.maximum(1 - twice / variance, LEAST_SHARE), 1.0)
    level, wide, standard_error = (1 + COVERAGE) / 2, np.sqrt(variance), np.sqrt(once * variance)
    half = np.minimum(stdtrit(degrees * once**2, level) * standard_error, stdtrit(degrees, level) * wide)
    return standard_error, half, corrected


def paired_half_width(leave_one_out: np.ndarray, level: float = 1 - COVERAGE) -> float:
    """Return the half width of Student's interval of a difference, from its values without each block [K].

    `level` is the probability that it misses, both sides together. Raises ValueError for fewer than two blocks.
    """
    parts = influences(leave_one_out)
    return float(stdtrit(len(parts) - 1, 1 - level / 2) * np.sqrt((parts**2).sum()))


class PairedDifference(NamedTuple):
    """The difference a - b of one metric of two rows measured on the same blocks, or arrays of such.

    Attributes:
        value: a - b.
        low: lower end of its 95% interval.
        high: upper end.
        standard_error: standard error of `value`.
        sign: 1 where the interval lies above zero, -1 where it lies below, 0 where it holds zero: the rows are tied.
    """

    value: Any
    low: Any
    high: Any
    standard_error: Any
    sign: Any


def paired_difference(
    full_a: Any,
    leave_one_out_a: Any,
    full_b: Any,
    leave_one_out_b: Any,
    reference_a: Any = None,
    reference_b: Any = None,
) -> PairedDifference:
    """Return a - b for rows measured on the same blocks (same noise and labels), and whether it is surely not zero.

    The one rule by which two rows are told apart, everywhere: the delete-block jackknife of the difference, Student's
    t with K - 1 degrees of freedom (with the reference's share Welch and Satterthwaite's). Noise that both rows share
    cancels. Sampling of the reference and bias of order 1/n do not: they depend on the row. The first is in the
    interval where `reference_a` and `reference_b` are given, the second cancels between corrected values only.

    Args:
        full_a: value of a, or values [...].
        leave_one_out_a: the same without each block, [..., K].
        full_b: value or values of b, of a shape that broadcasts with a's.
        leave_one_out_b: the same without each block, [..., K].
        reference_a: values of a without each block of the reference, [..., R]; None where they are not known.
        reference_b: the same of b, whose reference is the same.

    Raises:
        ValueError: the rows have different numbers of blocks, or fewer than two.
    """
    a, b = np.asarray(leave_one_out_a, dtype=np.float64), np.asarray(leave_one_out_b, dtype=np.float64)
    if a.shape[-1:] != b.shape[-1:]:
        raise ValueError(f"rows with {a.shape[-1]} and {b.shape[-1]} blocks cannot be paired")
    reference = None
    if reference_a is not None and reference_b is not None:
        c, d = np.asarray(reference_a, dtype=np.float64), np.asarray(reference_b, dtype=np.float64)
        if c.shape[-1:] != d.shape[-1:]:
            raise ValueError(f"references in {c.shape[-1]} and {d.shape[-1]} blocks cannot be paired")
        reference = c - d
    value = np.asarray(full_a, dtype=np.float64) - np.asarray(full_b, dtype=np.float64)
    standard_error, half, _ = _jackknife(value, a - b, reference)
    low, high = value - half, value + half
    sign = (low > 0.0).astype(int) - (high < 0.0).astype(int)
    if np.ndim(value) == 0:
        return PairedDifference(float(value), float(low), float(high), float(standard_error), int(sign))
    return PairedDifference(value, low, high, standard_error, sign)


def mean_interval(values: np.ndarray, labels: np.ndarray | None = None) -> Interval:
    """Return the mean of `values` [n] with its interval, free of differences between classes if `labels` are given.

        se^2 = sum_c (n_c/n)^2 s_c^2 / n_c

    for the label histogram is fixed by the plan, not sampled. Classes with a single sample form one stratum together (a
    lone one joins the largest class).

    Raises:
        ValueError: fewer than two samples.
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 2:
        raise ValueError(f"an interval needs at least 2 samples, got {n}")
    stratum = label_strata(labels, n)
    _, stratum, size = np.unique(stratum, return_inverse=True, return_counts=True)
    alone = size[stratum] < 2
    if alone.sum() == 1:
        alone |= stratum == np.argmax(size)
    _, stratum, size = np.unique(np.where(alone, -1, stratum), return_inverse=True, return_counts=True)
    class_mean = np.bincount(stratum, weights=x) / size
    variance = np.bincount(stratum, weights=(x - class_mean[stratum]) ** 2) / (size - 1)
    standard_error = float(np.sqrt((size * variance).sum()) / n)
    half = float(stdtrit(n - len(size), (1 + COVERAGE) / 2)) * standard_error
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half, standard_error, None)


def tail_share(influence: np.ndarray) -> float:
    """Return the share of the variance that the most influential 1% of samples carry, in [0, 1].

    About 0.08 for normal influences, 0.25 for squares of normal ones; above 0.5 (TAIL_SHARE) the next draw's tail will
    differ, and any interval is likely too narrow.

    Args:
        influence: of each sample on the value, [n].
    """
    squares = np.sort((influence - influence.mean()) ** 2)
    total = float(squares.sum())
    return float(squares[-max(1, math.ceil(TAIL * len(squares))) :].sum()) / total if total > 0 else 0.0


def wilson(successes: float, n: int) -> Interval:
    """Return the share successes/n with Wilson's interval, which stays inside [0, 1] and is never empty.

    Conservative where the shares differ between classes of a fixed histogram. Ties may count as half a success; half a
    success widens the interval to both whole numbers beside it.
    """
    if n < 1:
        raise ValueError("a share needs at least 1 sample")
    from scipy.stats import binomtest

    low, _ = binomtest(math.floor(successes), n).proportion_ci(COVERAGE, "wilson")
    _, high = binomtest(math.ceil(successes), n).proportion_ci(COVERAGE, "wilson")
    p = successes / n
    return Interval(float(p), float(low), float(high), float(np.sqrt(p * (1 - p) / n)), None)


def share_difference(one: Any, n: Any, other: Any, m: Any) -> np.ndarray:
    """Return the half width of the 95% interval of the difference of two shares of `n` and `m` trials, elementwise."""
    return np.hypot(share_half_width(one, n), share_half_width(other, m))


def share_half_width(share: Any, n: Any) -> np.ndarray:
    """Return what shares of `n` trials bring to the 95% interval of a difference of two, elementwise.

    The half width of that interval is the root of the sum of the squares of both shares'. One success and one failure
    are added to each (Agresti and Caffo, The American Statistician 54, 2000), so that 50 of 50 is not certainty.
    """
    count = np.asarray(n, dtype=np.float64)
    moved = (np.asarray(share, dtype=np.float64) * count + 1) / (count + 2)
    return float(ndtri((1 + COVERAGE) / 2)) * np.sqrt(moved * (1 - moved) / (count + 2))


def difference_of_shares(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of the difference of two shares, each (share, low, high) with its own 95% interval.

    By squares of the two distances that count at each end (Newcombe, Statistics in Medicine 17, 1998): 50 of 50 beside
    50 of 50 is not a certainty. For shares that no block moves; it makes nothing of pairing.
    """
    (a, low_a, high_a), (b, low_b, high_b) = one, other
    return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)


def win_rate(scores_a: np.ndarray, scores_b: np.ndarray) -> Interval:
    """Return how often a's image of a prompt scores above b's, sample by sample ([n] each); ties count half."""
    if len(scores_a) != len(scores_b):
        raise ValueError(f"rows with {len(scores_a)} and {len(scores_b)} samples cannot be paired")
    wins = (np.asarray(scores_a) > np.asarray(scores_b)).sum() + 0.5 * (
        np.asarray(scores_a) == np.asarray(scores_b)
    ).sum()
    return wilson(float(wins), len(scores_a))


def label_strata(labels: Sequence[int] | np.ndarray | None, n: int) -> np.ndarray:
    """Return labels as int64 [n]; all zero (one stratum) where there are none."""
    return np.zeros(n, dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
