"""Means and covariances that others computed, in the `.npz` forms they are published in.

`mu` and `sigma` (ADM, pytorch-fid, torch-fidelity) or `ref_mu` and `ref_sigma`; ADM's reference batches add `mu_s` and
`sigma_s` of the spatial features, and images under `arr_0`. Nothing pickled is ever loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.judges.pixels.npz import npz_array, npz_header, npz_keys
from results.errors import BenchError, DatasetError

PAIRS = (("mu", "sigma"), ("ref_mu", "ref_sigma"))
SPATIAL_PAIR = ("mu_s", "sigma_s")
SYMMETRY = 1e-6
DEFINITE = 1e-5
"""Share of the largest eigenvalue by which rounding (of float32, in whatever order) may leave one negative."""
WIDEST = 16384


class Moments(NamedTuple):
    """A mean, float64 [d], and a covariance, float64 [d, d]."""

    mu: np.ndarray
    sigma: np.ndarray


class Statistics(NamedTuple):
    """Statistics of pooled features and, where the file has them, of spatial features (sFID)."""

    pooled: Moments
    spatial: Moments | None


def read_statistics(path: Path) -> Statistics | None:
    """Return the statistics of an archive, None where it has none.

    Raises DatasetError for half a pair, other shapes or dtypes, pickled objects, values that are not finite and a
    covariance that is not symmetric and positive semi-definite.
    """
    try:
        keys = npz_keys(path)
    except BenchError as error:
        raise DatasetError(f"{path}: is not an .npz file, or a damaged one; get the file again") from error
    pairs = [pair for pair in PAIRS if set(pair) & set(keys)]
    if not pairs:
        return None
    spatial = _moments(path, *SPATIAL_PAIR) if set(SPATIAL_PAIR) & set(keys) else None
    return Statistics(_moments(path, *pairs[0]), spatial)


def _moments(path: Path, mean: str, covariance: str) -> Moments:
    keys = npz_keys(path)
    missing = next((key for key in (mean, covariance) if key not in keys), None)
    if missing is not None:
        raise DatasetError(
            f"{path}: has no '{missing}', only {', '.join(keys)}; store both '{mean}' and '{covariance}'"
        )
    headers = [npz_header(path, key) for key in (mean, covariance)]
    for key, header in zip((mean, covariance), headers, strict=True):
        if header.dtype.hasobject:
            raise DatasetError(
                f"{path}: '{key}' cannot be read (it is a pickle, which is never loaded); get the file again"
            )
        if not np.issubdtype(header.dtype, np.floating):
            raise DatasetError(f"{path}: '{key}' is {header.dtype}; store floating-point numbers")
    shape = headers[0].shape
    if len(shape) != 1 or shape[0] == 0 or headers[1].shape != shape * 2:
        raise DatasetError(
            f"{path}: {mean} is {list(shape)} and {covariance} {list(headers[1].shape)}; they must be [d] and [d, d]"
        )
    if shape[0] > WIDEST:
        raise DatasetError(
            f"{path}: describes {shape[0]:,} features, but no judge gives more than {WIDEST:,}; get the file again"
        )
    mu, sigma = _array(path, mean), _array(path, covariance)
    if np.abs(sigma - sigma.T).max() > SYMMETRY * max(np.abs(sigma).max(), 1e-300):
        raise DatasetError(f"{path}: {covariance} is not symmetric, so it is not a covariance; get the file again")
    spread = np.linalg.eigvalsh(sigma)
    if spread[0] < -DEFINITE * max(spread[-1], 0.0):
        raise DatasetError(
            f"{path}: {covariance} has a negative eigenvalue ({spread[0]:.4g}; the largest is {spread[-1]:.4g}) so it "
            "is not a covariance; get the file again"
        )
    return Moments(mu, sigma)


def _array(path: Path, key: str) -> np.ndarray:
    try:
        array = npz_array(path, key)
    except BenchError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DatasetError(f"{path}: '{key}' {reason}") from error
    if not np.isfinite(array).all():
        raise DatasetError(f"{path}: '{key}' contains values that are not finite; get the file again")
    return array.astype(np.float64)
