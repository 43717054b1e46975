"""What pairs of blocks do is a value's second derivative; counted once, it leaves standard errors that are right."""

import itertools

import numpy as np
import pytest

from bench.metrics.frechet import FrechetReference, frechet_distance
from bench.metrics.interactions import frechet_interactions
from bench.metrics.kernel import UnitGaussianKernel, clip_maximum_mean_discrepancy, kernel_distance
from bench.metrics.measure import ReferenceFeatures, measure
from results.interactions import Interactions
from results.statistics import COUNTED_ONCE, blocks_by_label, influences, jackknife


def parts(n, count):
    return blocks_by_label(np.zeros(n, dtype=int), count)


def moved(features, blocks, shares):
    """Mean and covariance (divisor n) of the samples with the weight of some blocks raised."""
    weights = np.full(len(features), 1 / len(features)) * (1 - sum(shares.values()))
    for block, share in shares.items():
        weights[blocks == block] += share / (blocks == block).sum()
    mean = weights @ features
    return mean, (features - mean).T @ ((features - mean) * weights[:, None])


def mixed_derivative(of, step=1e-3):
    signs = itertools.product((1, -1), repeat=2)
    return sum(a * b * of(a * step, b * step) for a, b in signs) / (4 * step**2)


def test_a_frechet_distances_pairs_are_its_mixed_derivatives():
    # Within what a covariance of divisor n - 1 instead of n moves.
    random, d = np.random.default_rng(0), 3
    generated, real = random.normal(size=(90, d)) * [1.0, 1.4, 0.6] + 0.3, random.normal(size=(60, d)) + 5.0
    real[:, 2] += 0.7 * real[:, 0]
    blocks, real_blocks = parts(90, 10), parts(60, 5)
    side = FrechetReference(*moved(real, real_blocks, {}))
    found = frechet_interactions(side, generated, blocks, real, real_blocks)

    def distance(own=None, theirs=None):
        return frechet_distance(*moved(real, real_blocks, theirs or {}), *moved(generated, blocks, own or {}))

    for k, j in ((0, 1), (3, 7)):
        second = mixed_derivative(lambda s, t, k=k, j=j: distance({k: s, j: t}))
        assert found.own[k, j] == pytest.approx(second / 2, rel=0.02, abs=2e-3)
    second = mixed_derivative(lambda s, t: distance(theirs={1: s, 4: t}))
    assert found.reference[1, 4] == pytest.approx(second / 2, rel=0.02, abs=2e-3)
    second = mixed_derivative(lambda s, t: distance({2: s}, {3: t}))
    assert found.cross[2, 3] == pytest.approx(second, rel=0.02, abs=2e-3)


def test_dead_features_and_few_samples():
    random = np.random.default_rng(1)
    generated, real = random.normal(size=(200, 6)), random.normal(size=(200, 6))
    alive = frechet_interactions(FrechetReference.of(real), generated, parts(200, 10), real, parts(200, 10))
    generated, real = (np.hstack([side, np.zeros((200, 2))]) for side in (generated, real))
    dead = frechet_interactions(FrechetReference.of(real), generated, parts(200, 10), real, parts(200, 10))
    for one, other in zip(alive, dead, strict=True):
        assert other == pytest.approx(one, rel=1e-6, abs=1e-9)
    assert frechet_interactions(FrechetReference.of(real), generated[:12], parts(12, 6)) is None


@pytest.mark.parametrize(("kernel", "biased"), [(None, False), (UnitGaussianKernel(1.0), True)])
def test_a_kernel_distances_pairs_are_means_of_the_kernel_between_blocks(kernel, biased):
    random = np.random.default_rng(2)
    generated, real = random.normal(size=(33, 4)) + 1, random.normal(size=(1100, 4)) + 1
    blocks, real_blocks = parts(33, 5), parts(1100, 6)
    found = kernel_distance(real, generated, kernel=kernel, biased=biased, blocks=blocks, blocks_1=real_blocks)
    between = kernel or (lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3)
    mine, theirs = ([x[b == k] for k in range(b.max() + 1)] for x, b in ((generated, blocks), (real, real_blocks)))
    table = found.interactions
    assert table.own[1, 4] == pytest.approx(between(mine[1], mine[4]).mean())
    assert table.reference[5, 2] == pytest.approx(between(theirs[5], theirs[2]).mean())
    assert table.cross == pytest.approx(-2 * np.array([[between(x, y).mean() for y in theirs] for x in mine]))
    if kernel is not None:
        scaled = clip_maximum_mean_discrepancy(real, generated, sigma=1.0, blocks=blocks, blocks_1=real_blocks)
        assert scaled.interactions.cross == pytest.approx(1000 * table.cross)
    assert kernel_distance(real, generated, kernel=kernel, biased=biased).interactions is None


@pytest.mark.parametrize("shift", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("count", [5, 20])
def test_standard_errors_are_right_whether_blocks_act_alone_or_in_pairs(shift, count):
    """T = |mean of the samples - mean of the reference|^2, whose first derivative vanishes without a shift."""
    random, d, each, trials = np.random.default_rng(3), 12, 8, 400
    errors, values, raw, held = [], [], [], 0
    for _ in range(trials):
        own, theirs = random.normal(size=(2, count, d)) / np.sqrt(each)
        own[:, 0] += shift
        without = [(side.sum(axis=0) - side) / (count - 1) for side in (own, theirs)]
        value = ((own.mean(axis=0) - theirs.mean(axis=0)) ** 2).sum()
        left = ((without[0] - theirs.mean(axis=0)) ** 2).sum(axis=1)
        left_reference = ((own.mean(axis=0) - without[1]) ** 2).sum(axis=1)
        pairs = Interactions(own @ own.T, theirs @ theirs.T, -2 * own @ theirs.T)
        found = jackknife(value, left, "corrected", left_reference, pairs.counted_twice(count, count))
        values.append(found.corrected)
        errors.append(found.standard_error)
        raw.append(jackknife(value, left, reference=left_reference).standard_error)
        held += found.low <= shift**2 <= found.high
    assert 0.9 <= np.mean(errors) / np.std(values) <= 1.15
    assert held >= 0.92 * trials
    assert shift == 1.0 or np.mean(raw) / np.std(values) > 1.2


def test_interactions_of_a_sum_are_the_sum_and_an_unknown_part_leaves_none():
    table = np.arange(16.0).reshape(4, 4)
    one, other = Interactions(table + table.T, table @ table.T, table), Interactions(table @ table.T)
    total = Interactions.total([one, one], [2.0, 0.5])
    assert np.array_equal(total.own, 2.5 * one.own) and np.array_equal(total.cross, 2.5 * table)
    assert Interactions.total([one, other], [1.0, 1.0]).reference is None
    assert Interactions.total([one, None], [1.0, 1.0]) is None
    additive = Interactions(np.add.outer(np.arange(6.0), np.arange(6.0)))
    assert additive.counted_twice(20, None) == pytest.approx(0.0, abs=1e-20)
    assert Interactions(np.ones((3, 3))).counted_twice(3, None) == 0.0


def test_at_least_half_of_the_variance_stays_and_no_interval_grows():
    left = np.random.default_rng(4).normal(size=5)
    whole = jackknife(1.0, left)
    for share in (0.0, 0.2, 0.5, 0.9):
        once = jackknife(1.0, left, twice=share * whole.standard_error**2)
        assert once.standard_error == pytest.approx(whole.standard_error * np.sqrt(max(1 - share, 0.5)))
        assert once.high - once.low <= whole.high - whole.low


def test_values_say_where_pairs_count_once_and_keep_the_vectors_they_are_paired_by():
    random = np.random.default_rng(5)
    images, real = random.normal(size=(300, 8)), ReferenceFeatures.of(random.normal(size=(300, 8)))
    found = measure({"inception.features": images}, real, ["fid", "fid_corrected", "kid", "precision"]).values
    for value in found:
        joined = [influences(part) for part in (value.jackknife, value.jackknife_reference)]
        plain = np.sqrt(sum((part**2).sum() for part in joined))
        if value.name == "precision":
            assert COUNTED_ONCE not in value.method and value.standard_error == pytest.approx(plain)
        else:
            assert COUNTED_ONCE in value.method and 0.7 * plain <= value.standard_error < 0.9 * plain
