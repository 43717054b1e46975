import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from bench.metrics import kernel
from bench.metrics.kernel import (
    GaussianKernel,
    PolynomialKernel,
    clip_maximum_mean_discrepancy,
    kernel_distance,
    kernel_distance_subsets,
    sliced_wasserstein,
)


def pair(n1=90, n2=70, d=12):
    random = np.random.default_rng(1)
    return random.normal(size=(n1, d)).astype(np.float32), (0.2 + 1.1 * random.normal(size=(n2, d))).astype(np.float32)


def unit_rows(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_subsets_agree_with_torch_fidelity():
    a, b = pair()
    options = {"kid_subsets": 8, "kid_subset_size": 40, "rng_seed": 11, "verbose": False}
    expected = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), **options)
    mean, std = kernel_distance_subsets(a, b, subsets=8, subset_size=40, rng_seed=11)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    assert std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-4)
    with pytest.raises(ValueError, match="subsets of 80"):
        kernel_distance_subsets(a, b, subset_size=80)


@pytest.mark.parametrize("biased", [False, True])
def test_tiles_do_not_change_the_value(monkeypatch, biased):
    a, b = pair()
    blocks = np.arange(len(b)) % 5
    whole = kernel_distance(a, b, biased=biased, blocks=blocks)
    matrix = PolynomialKernel()(b.astype(float), b.astype(float))
    assert whole.own == pytest.approx((matrix.sum(axis=1) - matrix.diagonal()) / (len(b) - 1), rel=1e-12)
    assert whole.cross == pytest.approx(PolynomialKernel()(b.astype(float), a.astype(float)).mean(axis=1), rel=1e-12)
    monkeypatch.setattr(kernel, "TILE", 16)
    tiled = kernel_distance(a, b, biased=biased, blocks=blocks)
    assert tiled.value == pytest.approx(whole.value, rel=1e-10)
    np.testing.assert_allclose(tiled.influence, whole.influence, atol=1e-12)
    np.testing.assert_allclose(tiled.leave_one_out, whole.leave_one_out, rtol=1e-10)


@pytest.mark.parametrize("biased", [False, True])
def test_leave_one_out_equals_measuring_without_the_block(biased):
    a, b = pair()
    blocks = np.arange(len(b)) % 4
    left = kernel_distance(a, b, biased=biased, blocks=blocks).leave_one_out
    expected = [kernel_distance(a, b[blocks != k], biased=biased).value for k in range(4)]
    np.testing.assert_allclose(left, expected, rtol=1e-10)


def test_delta_method_and_block_jackknife_agree_on_the_standard_error():
    a, b = pair(200, 600)
    blocks = np.arange(600) % 30
    result = kernel_distance(a, b, blocks=blocks)
    left = result.leave_one_out
    by_jackknife = np.sqrt(29 / 30 * ((left - left.mean()) ** 2).sum())
    assert by_jackknife == pytest.approx(result.standard_error, rel=0.3)


def test_a_wide_gaussian_kernel_keeps_its_digits():
    a, b = (unit_rows(x) for x in pair())
    value = clip_maximum_mean_discrepancy(a, b, sigma=1e4, scale=1.0).value
    # For a wide kernel k is 1 - |x - y|^2 / (2 sigma^2), and the discrepancy |mean a - mean b|^2 / sigma^2.
    assert value == pytest.approx(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() / 1e8, rel=1e-4)


def test_gaussian_kernel_of_equal_rows_is_the_constant_that_cancels():
    x = np.ones((3, 4))
    assert np.array_equal(GaussianKernel(2.0)(x, x), np.zeros((3, 3)))


def test_sliced_wasserstein_of_a_shift_is_its_square_along_the_direction():
    a = pair()[0].astype(np.float64)
    directions = np.eye(12)[:, :2]
    assert sliced_wasserstein(a, a + np.r_[3.0, 1.0, np.zeros(10)], directions) == pytest.approx((9 + 1) / 2)
    with pytest.raises(ValueError, match="equal size"):
        sliced_wasserstein(a, a[1:], directions)


def test_cmmd_takes_embeddings_at_unit_length_whatever_their_own():
    a, b = pair()
    lengths = np.random.default_rng(3).uniform(0.1, 9.0, size=(len(a), 1))
    whole = clip_maximum_mean_discrepancy(a, b)
    assert clip_maximum_mean_discrepancy(lengths * a, 40 * b).value == pytest.approx(whole.value)
    assert whole.value == pytest.approx(clip_maximum_mean_discrepancy(unit_rows(a), unit_rows(b)).value)
