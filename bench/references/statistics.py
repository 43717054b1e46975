"""Means and covariances that others computed, in the `.npz` forms they are published in.

`mu` and `sigma` (ADM, pytorch-fid, torch-fidelity) or `ref_mu` and `ref_sigma`; ADM's reference batches add `mu_s` and
`sigma_s` of the spatial features, and images under `arr_0`. Nothing pickled is ever loaded.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from results.errors import DatasetError

PAIRS = (("mu", "sigma"), ("ref_mu", "ref_sigma"))
SPATIAL_PAIR = ("mu_s", "sigma_s")
SYMMETRY = 1e-6


class Moments(NamedTuple):
    """A mean, float64 [d], and a covariance, float64 [d, d]."""

    mu: np.ndarray
    sigma: np.ndarray


class Statistics(NamedTuple):
    """Statistics of pooled features and, where the file has them, of spatial features (sFID)."""

    pooled: Moments
    spatial: Moments | None


def archive_keys(path: Path) -> tuple[str, ...]:
    """Return the names of an archive's arrays. Raises DatasetError when it is no `.npz`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(sorted(name.removesuffix(".npy") for name in archive.namelist()))
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: is no .npz file ({error}); give the published archive") from error


def read_statistics(path: Path) -> Statistics | None:
    """Return the statistics of an archive, None where it has none.

    Raises DatasetError for half a pair, other shapes or dtypes, pickled objects, values that are not finite and a
    covariance that is not symmetric.
    """
    keys = archive_keys(path)
    pairs = [pair for pair in PAIRS if set(pair) & set(keys)]
    if not pairs:
        return None
    spatial = _moments(path, *SPATIAL_PAIR) if set(SPATIAL_PAIR) & set(keys) else None
    return Statistics(_moments(path, *pairs[0]), spatial)


def _moments(path: Path, mean: str, covariance: str) -> Moments:
    mu, sigma = _array(path, mean), _array(path, covariance)
    if mu.ndim != 1 or sigma.shape != (mu.size, mu.size) or mu.size == 0:
        raise DatasetError(
            f"{path}: {mean} is {list(mu.shape)} and {covariance} {list(sigma.shape)}; they must be [d] and [d, d]"
        )
    if np.abs(sigma - sigma.T).max() > SYMMETRY * max(np.abs(sigma).max(), 1e-300):
        raise DatasetError(f"{path}: {covariance} is not symmetric and so no covariance; get the file again")
    return Moments(mu, sigma)


def _array(path: Path, key: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            array = archive[key]
    except KeyError as error:
        raise DatasetError(
            f"{path}: has no '{key}' but {', '.join(archive_keys(path))}; both of a pair are needed"
        ) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DatasetError(f"{path}: '{key}' cannot be read ({reason}); get the file again") from error
    if not np.issubdtype(array.dtype, np.floating):
        raise DatasetError(f"{path}: '{key}' holds {array.dtype}; floating point numbers are needed")
    if not np.isfinite(array).all():
        raise DatasetError(f"{path}: '{key}' holds values that are not finite; get the file again")
    return array.astype(np.float64)
