"""The reference is a sample too: its blocks are left out exactly, and its share is in intervals and verdicts."""

import numpy as np
import pytest

from bench.metrics.frechet import FrechetReference, distances_to_sides, frechet_distance_from_features
from bench.metrics.frechet import sides_without_blocks as sides
from bench.metrics.kernel import UnitGaussianKernel, kernel_distance
from bench.metrics.measure import ReferenceFeatures, measure
from results.statistics import blocks_by_label, jackknife, paired_difference


def parts(m, count):
    return blocks_by_label(np.zeros(m, dtype=int), count)


@pytest.mark.parametrize(("n", "m"), [(60, 80), (9, 80), (60, 10), (60, 14), (9, 10), (300, 81)])
def test_a_frechet_distance_without_a_block_of_the_reference_is_that_of_the_rest(n, m):
    random = np.random.default_rng(0)
    generated, real = random.normal(size=(n, 12)) + 50, random.normal(size=(m, 12)) + 50.2
    blocks = parts(m, 5)
    found = distances_to_sides(generated, sides(real, blocks))
    expected = [frechet_distance_from_features(real[blocks != k], generated) for k in range(5)]
    assert found == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("kernel", "biased"), [(None, False), (UnitGaussianKernel(1.0), True)])
def test_a_kernel_distance_without_a_block_of_the_reference_is_that_of_the_rest(kernel, biased):
    random = np.random.default_rng(1)
    generated, real = random.normal(size=(40, 6)) + 1, random.normal(size=(1100, 6)) + 1
    blocks = parts(1100, 7)
    found = kernel_distance(real, generated, kernel=kernel, biased=biased, blocks_1=blocks)
    alone = kernel_distance(real, generated, kernel=kernel, biased=biased)
    assert found.value == alone.value and alone.leave_reference_out.size == 0
    expected = [kernel_distance(real[blocks != k], generated, kernel=kernel, biased=biased).value for k in range(7)]
    assert found.leave_reference_out == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.fixture(scope="module")
def drawn():
    """Two models equally far from the population, measured with shared noise against references drawn anew."""
    dimension, n, m, trials = 10, 300, 130, 150
    random = np.random.default_rng(3)
    shift = np.zeros((2, dimension))
    shift[0, 0] = shift[1, 1] = 0.35
    true = 0.35**2
    own, blocks = parts(n, 20), parts(m, 20)
    seen = {"covered": 0, "better": 0, "covered, fixed reference": 0, "better, fixed reference": 0}
    errors, estimates = [], []
    for _ in range(trials):
        real, noise = random.normal(size=(m, dimension)), random.normal(size=(n, dimension))
        reference, without = FrechetReference.of(real), sides(real, blocks)
        rows = [(*reference.leave_one_out(noise + s, own), distances_to_sides(noise + s, without)) for s in shift]
        value, left, left_reference = rows[0]
        interval = jackknife(value, left, "corrected", left_reference)
        seen["covered"] += interval.low <= true <= interval.high
        errors.append(interval.standard_error)
        estimates.append(interval.corrected)
        interval = jackknife(value, left, "corrected")
        seen["covered, fixed reference"] += interval.low <= true <= interval.high
        (a, left_a, reference_a), (b, left_b, reference_b) = rows
        seen["better"] += paired_difference(a, left_a, b, left_b, reference_a, reference_b).sign != 0
        seen["better, fixed reference"] += paired_difference(a, left_a, b, left_b).sign != 0
    rates = {name: count / trials for name, count in seen.items()}
    return rates | {"ratio": np.mean(errors) / np.std(estimates), "bias": np.mean(estimates) - true}


def test_the_corrected_value_covers_the_distance_of_the_populations(drawn):
    assert 0.92 <= drawn["covered"] <= 0.995 and 0.85 <= drawn["ratio"] <= 1.25 and abs(drawn["bias"]) < 0.02
    assert drawn["covered, fixed reference"] < 0.5


def test_equal_models_are_rarely_told_apart_by_the_luck_of_the_reference(drawn):
    assert drawn["better"] <= 0.08 < 0.2 < drawn["better, fixed reference"]


def test_a_small_reference_is_named_and_its_bias_not_removed_where_it_cannot_be():
    random = np.random.default_rng(4)
    generated = {"inception.features": random.normal(size=(400, 20))}

    def frechet(m, n=400):
        reference = ReferenceFeatures.of(random.normal(size=(m, 20)))
        images = {name: array[:n] for name, array in generated.items()}
        result = measure(images, reference, ["fid", "fid_corrected"])
        return result.values[0], {skip.name: skip.reason for skip in result.skipped}

    few, skipped = frechet(99)
    assert few.corrected is None and few.low < few.value < few.high
    too_few = "99 reference images in 20 dimensions are too few to remove the bias; it takes 100"
    assert skipped["fid_corrected"] == too_few
    rough, skipped = frechet(150)
    assert rough.corrected is not None and "rough: 150 reference images in 20 dimensions" in rough.method
    assert not skipped
    fine, _ = frechet(250)
    assert "rough" not in fine.method
    short, skipped = frechet(250, n=99)
    assert short.corrected is None and skipped["fid_corrected"].startswith("99 images in 20 dimensions are too few")


def test_a_share_of_one_or_none_is_not_certain():
    random = np.random.default_rng(6)
    real = random.normal(size=(60, 2))
    near = real[random.integers(60, size=300)] + 1e-6 * random.normal(size=(300, 2))
    for generated, expected in ((near, 1.0), (near + 1e3, 0.0)):
        result = measure({"inception.features": generated}, ReferenceFeatures.of(real), ["precision"])
        (value,) = result.values
        assert value.value == expected and 0 < value.high - value.low < 0.06 and "Wilson" in value.method
    (coverage,) = measure({"inception.features": real}, ReferenceFeatures.of(real), ["coverage"]).values
    assert coverage.value == coverage.high == 1.0 and 0.9 < coverage.low < 1.0


def test_heavy_tails_are_named_where_they_are_seen():
    random = np.random.default_rng(7)
    images, real = random.normal(size=(500, 16)), ReferenceFeatures.of(random.normal(size=(500, 16)))
    for value in measure({"inception.features": images}, real, ["fid", "kid"]).values:
        assert "heavy tails" not in value.method
    images[:5] *= 6
    for value in measure({"inception.features": images}, real, ["fid", "kid"]).values:
        assert "heavy tails: 1% of the images carry" in value.method
