import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from bench.metrics.frechet import (
    FrechetReference,
    Moments,
    frechet_distance,
    frechet_distance_from_features,
    frechet_infinity,
    frechet_influence,
    frechet_per_class,
)
from results.statistics import jackknife


def samples(seed, n, d, scale=1.0, shift=0.0):
    random = np.random.default_rng(seed)
    mix = random.normal(size=(d, d)) / np.sqrt(d) + np.eye(d)
    return (shift + scale * random.normal(size=(n, d)) @ mix).astype(np.float32)


def torch_fidelity_distance(a, b):
    statistics = [fid_features_to_statistics(torch.from_numpy(x).double()) for x in (a, b)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def test_agrees_with_torch_fidelity_to_a_millionth():
    a, b = samples(0, 500, 48), samples(1, 400, 48, 1.2, 0.3)
    expected = torch_fidelity_distance(a, b)
    assert frechet_distance_from_features(a, b) == pytest.approx(expected, rel=1e-6)
    moments = [Moments.of(x) for x in (a, b)]
    by_moments = frechet_distance(moments[0].mean, moments[0].covariance, moments[1].mean, moments[1].covariance)
    assert by_moments == pytest.approx(expected, rel=1e-6)


def test_diagonal_gaussians_have_the_closed_form():
    mu1, mu2 = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    sd1, sd2 = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 3.0])
    expected = ((mu1 - mu2) ** 2).sum() + ((sd1 - sd2) ** 2).sum()
    assert frechet_distance(mu1, np.diag(sd1**2), mu2, np.diag(sd2**2)) == pytest.approx(expected, rel=1e-12)


def test_low_rank_form_equals_the_moments_form():
    # The moments form of a singular covariance is exact in exact arithmetic; here its rounding is about 1e-7.
    few, many = samples(2, 20, 32, shift=0.2), samples(3, 300, 32)
    exact = frechet_distance_from_features(few, many)
    first, second = Moments.of(many), Moments.of(few)
    assert exact == pytest.approx(FrechetReference(first.mean, first.covariance).distance(second), rel=1e-6)
    root = sqrtm(first.covariance @ second.covariance).real
    difference = first.mean - second.mean
    reference = difference @ difference + np.trace(first.covariance + second.covariance - 2 * root)
    assert exact == pytest.approx(reference, rel=1e-6)


def test_both_sets_smaller_than_the_dimension():
    a, b = samples(4, 10, 64), samples(5, 14, 64)
    a0, b0 = (x - x.mean(axis=0, dtype=np.float64) for x in (a, b))
    nuclear = np.linalg.svd(a0 @ b0.T, compute_uv=False).sum() / np.sqrt(9 * 13)
    difference = a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)
    expected = difference @ difference + (a0**2).sum() / 9 + (b0**2).sum() / 13 - 2 * nuclear
    assert frechet_distance_from_features(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance_from_features(b, a) == pytest.approx(expected, rel=1e-10)


def test_a_set_is_at_distance_zero_from_itself():
    for n in (10, 200):
        a = samples(6, n, 32)
        assert frechet_distance_from_features(a, a) == pytest.approx(0.0, abs=1e-9)


def test_singular_reference_covariance_needs_no_ridge():
    a, b = samples(7, 100, 8), samples(8, 100, 8)
    a[:, 3] = b[:, 3] = 0.0
    kept = [0, 1, 2, 4, 5, 6, 7]
    assert frechet_distance_from_features(a, b) == pytest.approx(
        frechet_distance_from_features(a[:, kept], b[:, kept]), rel=1e-6
    )


def test_moments_add_and_subtract_like_their_samples():
    x = samples(9, 90, 6, shift=50.0)
    whole, part = Moments.of(x, shift=x[0]), Moments.of(x[:30], shift=x[1])
    rest = whole - part
    assert rest.n == 60
    np.testing.assert_allclose(rest.mean, x[30:].mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(rest.covariance, np.cov(x[30:].astype(np.float64), rowvar=False), rtol=1e-9)
    np.testing.assert_allclose((rest + part).covariance, whole.covariance, rtol=1e-12)


@pytest.mark.parametrize("n", [200, 24], ids=["more samples than dimensions", "fewer"])
def test_leave_one_out_equals_measuring_without_the_block(n):
    reference = FrechetReference.of(samples(10, 150, 32))
    features = samples(11, n, 32, 1.1)
    blocks = np.arange(n) % 4
    full, left = reference.leave_one_out(features, blocks)
    assert full == pytest.approx(reference.distance_from_features(features), rel=1e-10)
    expected = [reference.distance_from_features(features[blocks != k]) for k in range(4)]
    np.testing.assert_allclose(left, expected, rtol=1e-9)


def test_per_class_is_the_distance_within_the_class():
    a, b = samples(12, 40, 16), samples(13, 31, 16)
    labels_a, labels_b = np.arange(40) % 3, np.r_[np.arange(30) % 2, 2]
    classes = frechet_per_class(a, labels_a, b, labels_b)
    assert classes[1] == pytest.approx(frechet_distance_from_features(a[labels_a == 1], b[labels_b == 1]), rel=1e-9)
    assert classes[2] is None and sorted(classes) == [0, 1, 2]


def test_influence_is_the_derivative_of_the_distance():
    reference = FrechetReference.of(samples(14, 300, 6))
    x = samples(15, 250, 6, 1.3, 0.2).astype(np.float64)
    psi = frechet_influence(reference, x)
    assert psi.mean() == pytest.approx(0.0, abs=1e-12)

    def weighted(row, step):
        weight = np.full(len(x), (1 - step) / len(x))
        weight[row] += step
        mean = weight @ x
        covariance = ((x - mean) * weight[:, None]).T @ (x - mean) * len(x) / (len(x) - 1)
        return frechet_distance(reference.mu, reference.sigma, mean, covariance)

    for row in (0, 17, 101):
        slope = (weighted(row, 1e-5) - weighted(row, -1e-5)) / 2e-5
        assert psi[row] == pytest.approx(slope, rel=0.02, abs=0.02)


def test_infinity_undoes_the_bias_of_few_samples():
    random = np.random.default_rng(16)
    reference = FrechetReference(np.zeros(12), np.eye(12))
    x = 1.1 * random.normal(size=(4000, 12))
    truth = 12 * 0.1**2
    result = frechet_infinity(reference, x, draws=2)
    assert result.sizes[0] == 2000 and result.sizes[-1] == 4000
    full, left = reference.leave_one_out(x, np.arange(4000) % 20)
    assert result.value == pytest.approx(jackknife(full, left).corrected, abs=0.25 * (full - result.value))
    assert abs(result.value - truth) < abs(frechet_infinity(reference, x[:1000]).distances[0] - truth)
    assert result.value == frechet_infinity(reference, x, draws=2).value and result.slope > 0
    with pytest.raises(ValueError, match="5 images per dimension"):
        frechet_infinity(reference, x[:20])


def test_a_single_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_distance_from_features(np.ones((1, 4)), np.ones((5, 4)))
