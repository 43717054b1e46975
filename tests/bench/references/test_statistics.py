import numpy as np
import pytest

from bench.references.label_file import DatasetError
from bench.references.statistics import read_statistics

MU, SIGMA = np.arange(3.0), np.eye(3)


@pytest.mark.parametrize("keys", [("mu", "sigma"), ("ref_mu", "ref_sigma")])
def test_both_published_spellings_are_read(tmp_path, keys):
    np.savez(tmp_path / "s.npz", **{keys[0]: MU.astype(np.float32), keys[1]: SIGMA})
    found = read_statistics(tmp_path / "s.npz")
    assert found.spatial is None and found.pooled.mu.dtype == np.float64
    assert (found.pooled.mu == MU).all() and (found.pooled.sigma == SIGMA).all()


def test_a_reference_batch_adds_spatial_statistics_to_its_images(tmp_path):
    images = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "s.npz", arr_0=images, mu=MU, sigma=SIGMA, mu_s=MU[:2], sigma_s=SIGMA[:2, :2])
    assert read_statistics(tmp_path / "s.npz").spatial.mu.shape == (2,)
    np.savez(tmp_path / "images.npz", arr_0=images)
    assert read_statistics(tmp_path / "images.npz") is None


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"mu": MU}, "has no 'sigma', only mu; store both 'mu' and 'sigma'"),
        ({"mu": MU, "sigma": np.eye(4)}, r"mu is \[3\] and sigma \[4, 4\]"),
        ({"mu": MU.astype(int), "sigma": SIGMA}, "'mu' is int64; store floating-point numbers"),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "not finite"),
        ({"mu": MU, "sigma": np.triu(np.ones((3, 3)))}, "not symmetric"),
        ({"mu": np.array([{}], dtype=object), "sigma": SIGMA}, "'mu' cannot be read .*pickle"),
    ],
)
def test_unusable_statistics_are_named_with_the_reason(tmp_path, arrays, reason):
    path = tmp_path / "s.npz"
    np.savez(path, **arrays)
    with pytest.raises(DatasetError, match=reason) as error:
        read_statistics(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_archive_is_one_clear_line(tmp_path):
    (tmp_path / "s.npz").write_bytes(b"PK nothing")
    with pytest.raises(DatasetError, match=r"is not an \.npz file, or a damaged one; get the file again"):
        read_statistics(tmp_path / "s.npz")


def test_a_covariance_that_is_none_is_refused_before_it_becomes_a_reference(tmp_path):
    wide = np.random.default_rng(0).standard_normal((3, 40))
    np.savez(tmp_path / "few.npz", mu=np.zeros(40, np.float32), sigma=np.cov(wide, rowvar=False).astype(np.float32))
    assert read_statistics(tmp_path / "few.npz").pooled.sigma.shape == (40, 40)
    for sigma in (-SIGMA, np.diag([1.0, 1.0, -0.01])):
        np.savez(tmp_path / "s.npz", mu=MU, sigma=sigma)
        with pytest.raises(DatasetError, match="sigma has a negative eigenvalue"):
            read_statistics(tmp_path / "s.npz")
