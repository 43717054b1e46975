import numpy as np
import pytest

from bench.metrics.frechet import FrechetReference, frechet_distance
from bench.metrics.kernel import kernel_distance
from results.statistics import (
    block_count,
    blocks_by_label,
    jackknife,
    mean_interval,
    paired_difference,
    wilson,
    win_rate,
)

CLASSES, DIMENSION, N, TRIALS = 5, 8, 1500, 100
LABELS = np.arange(N) % CLASSES
BLOCKS = blocks_by_label(LABELS, 20)


@pytest.fixture(scope="module")
def coverage():
    """How often of 100 times the 95% intervals hold the known answers, for label-balanced Gaussian mixtures."""
    random = np.random.default_rng(7)
    centres = random.normal(size=(CLASSES, DIMENSION))
    centres -= centres.mean(axis=0)
    spread = 1.2
    sigma = centres.T @ centres / CLASSES + spread**2 * np.eye(DIMENSION)
    reference = FrechetReference(np.full(DIMENSION, 0.2), 0.8 * sigma + 0.3 * np.eye(DIMENSION))
    fid = frechet_distance(reference.mu, reference.sigma, np.zeros(DIMENSION), sigma)

    real = 0.3 + random.normal(size=(100, DIMENSION))
    true_kid = expected_cubic_distance(real, centres, spread)
    held = dict.fromkeys(("fid", "kid", "mean"), 0)
    for _ in range(TRIALS):
        x = centres[LABELS] + spread * random.normal(size=(N, DIMENSION))
        interval = jackknife(*reference.leave_one_out(x, BLOCKS), centre="corrected")
        held["fid"] += interval.low <= fid <= interval.high
        distance = kernel_distance(real, x, blocks=BLOCKS)
        interval = jackknife(distance.value, distance.leave_one_out)
        held["kid"] += interval.low <= true_kid <= interval.high
        interval = mean_interval(LABELS + random.standard_t(5, size=N), LABELS)
        held["mean"] += interval.low <= (CLASSES - 1) / 2 <= interval.high
    return held


def expected_cubic_distance(real, centres, spread):
    """The squared discrepancy of a fixed set from the mixture under (x.y/d + 1)^3, by Gaussian moments."""
    d = real.shape[1]

    def cube(x):  # E (x.y/d + 1)^3 over the mixture: s^3 + 3 s v for each component
        s = x @ centres.T / d + 1
        v = spread**2 * (x**2).sum(axis=1)[:, None] / d**2
        return (s**3 + 3 * s * v).mean(axis=1)

    # Over both arguments: x = c + e of class i, y of class j; sum of the moments in e of s^3 + 3 s v.
    dot, square = centres @ centres.T, (centres**2).sum(axis=1)
    s = dot / d + 1
    linear = spread**2 * square[None, :] / d**2  # variance of s in e
    e2 = spread**2 * d + square[:, None]  # E |x|^2
    cross = 2 * spread**2 * dot / d  # covariance of s with |x|^2
    both = (s**3 + 3 * s * linear + 3 * spread**2 / d**2 * (s * e2 + cross)).mean()
    gram = (real @ real.T / d + 1) ** 3
    own = (gram.sum() - np.trace(gram)) / (len(real) * (len(real) - 1))
    return own + both - 2 * cube(real).mean()


@pytest.mark.parametrize("metric", ["fid", "kid", "mean"])
def test_intervals_cover_the_known_answer_about_95_times_of_100(coverage, metric):
    assert 90 <= coverage[metric] <= 99


def test_paired_differences_are_far_tighter_for_correlated_samples():
    random = np.random.default_rng(8)
    reference = FrechetReference(np.zeros(DIMENSION), np.eye(DIMENSION))
    x = 1.2 * random.normal(size=(N, DIMENSION))
    rows = [reference.leave_one_out(x + s * random.normal(size=x.shape), BLOCKS) for s in (0.05, 0.1)]
    paired = paired_difference(*rows[0], *rows[1])
    apart = np.hypot(*(jackknife(*row).standard_error for row in rows))
    assert paired.value == pytest.approx(rows[0][0] - rows[1][0])
    assert paired.standard_error < apart / 3
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(*rows[0], 1.0, np.ones(3))


def test_blocks_hold_the_label_histogram_and_stride_the_index():
    labels = np.arange(400) % 10
    blocks = blocks_by_label(labels, 20)
    assert np.array_equal(blocks, np.arange(400) // 10 % 20)
    shuffled = np.random.default_rng(0).permutation(labels)
    counts = np.zeros((20, 10), dtype=int)
    np.add.at(counts, (blocks_by_label(shuffled, 20), shuffled), 1)
    assert (counts == 2).all()


def test_blocks_are_equal_in_size_whatever_the_class_sizes():
    for labels in (np.arange(50_000) % 1000, np.repeat([0, 1, 2], [25, 47, 31]), np.arange(400) % 10):
        sizes = np.bincount(blocks_by_label(labels, 20))
        assert len(sizes) == 20 and sizes.max() - sizes.min() <= 1
        counts = np.zeros((20, labels.max() + 1), dtype=int)
        np.add.at(counts, (blocks_by_label(labels, 20), labels), 1)
        assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1


def test_small_classes_bring_the_number_of_blocks_down_to_theirs_but_not_below_ten():
    assert block_count(np.arange(1000) % 100, 50) == block_count(np.arange(1000) % 100, 20) == 10
    assert block_count(np.arange(900) % 100, 20) == 20 and block_count(np.arange(2000) % 10, 20) == 20
    assert block_count(np.arange(30), 20) == 15 and block_count(np.arange(3), 20) == 0


@pytest.mark.parametrize(("classes", "each", "wanted"), [(20, 30, 20), (40, 10, 20), (40, 10, 50)])
def test_standard_errors_are_right_where_classes_do_not_divide_into_blocks(classes, each, wanted):
    random, dimension = np.random.default_rng(9), 24
    reference = FrechetReference(np.zeros(dimension), np.eye(dimension))
    labels = np.arange(classes * each) % classes
    blocks = blocks_by_label(labels, block_count(labels, wanted))
    centres = random.normal(size=(classes, dimension))
    found = []
    for _ in range(80):
        images = centres[labels] + random.normal(size=(len(labels), dimension))
        found.append(jackknife(*reference.leave_one_out(images, blocks)))
    ratio = np.mean([each.standard_error for each in found]) / np.std([each.value for each in found])
    assert 0.8 <= ratio <= 1.25


def test_blocks_stay_equal_where_classes_are_too_small_to_balance():
    labels = np.repeat(np.arange(50), 3)
    assert (np.bincount(blocks_by_label(labels, 15)) == 10).all()
    with pytest.raises(ValueError, match="blocks need"):
        blocks_by_label(labels[:5], 6)


def test_jackknife_of_a_mean_is_the_textbook_error_and_of_a_bias_its_removal():
    x = np.random.default_rng(1).normal(size=40)
    left = (x.sum() - x) / 39
    interval = jackknife(x.mean(), left)
    assert interval.standard_error == pytest.approx(x.std(ddof=1) / np.sqrt(40))
    assert interval.corrected == pytest.approx(x.mean())
    biased = jackknife(1 + 5 / 40, 1 + 5 / np.full(40, 39.0))
    assert biased.corrected == pytest.approx(1.0) and biased.value == 1.125


def test_class_strata_take_the_spread_between_classes_out():
    labels = np.arange(300) % 3
    values = 10.0 * labels + np.random.default_rng(2).normal(size=300)
    within = mean_interval(values, labels)
    assert within.standard_error == pytest.approx(1 / np.sqrt(300), rel=0.1)
    assert mean_interval(values).standard_error > 5 * within.standard_error


def test_classes_of_one_sample_still_give_an_interval():
    for labels in (np.arange(6), np.array([0, 0, 0, 1, 1, 2])):
        assert mean_interval(np.arange(6.0), labels).standard_error > 0


def test_wilson_matches_the_textbook_and_never_leaves_the_unit_interval():
    low, high = wilson(8, 10)[1:3]
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10).low == 0.0 and wilson(10, 10).high == 1.0 and wilson(10, 10).low < 0.8
    assert win_rate(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 4.0])).value == 0.5
