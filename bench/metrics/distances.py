"""Metrics of whole sets of images: FID and its relatives, IS, KID, CMMD, precision and recall."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from bench.metrics import inception, kernel
from bench.metrics.cell import Cell, Unavailable
from bench.metrics.frechet import frechet_infinity, frechet_per_class
from bench.metrics.records import MetricValue, PerClass
from bench.metrics.registry import Metric, Option, Options
from results.catalog import CATALOG, MetricFact
from results.statistics import jackknife


def _frechet(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    array = fact.array
    value, left = cell.frechet(array)
    n, d = cell.outputs[array].shape
    form = "Cholesky form from moments" if n > d else f"exact low-rank form, {n} images in {d} dimensions"
    return cell.value(fact, value, left, form)


def _frechet_corrected(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    value, left = cell.frechet(fact.array)
    if len(left) < 2:
        raise Unavailable(f"needs at least 4 images for a jackknife, got {cell.outputs.n}")
    corrected = jackknife(value, left).corrected
    assert corrected is not None
    # Shifted to the corrected value's level: the same standard error, and no second correction.
    return cell.value(fact, corrected, left - left.mean() + corrected, "bias removed by the jackknife")


def _frechet_infinity(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    array = fact.array
    features = cell.array(array)
    reference = cell.reference(array).frechet
    cell.check_width(array, reference.mu.size)
    sizes, draws = options["fid_infinity_sizes"], options["fid_infinity_draws"]
    result = frechet_infinity(reference, features, sizes=sizes, draws=draws, rng_seed=options["fid_infinity_rng_seed"])
    how = f"line in 1/N through {len(result.sizes)} sizes from {result.sizes[0]}, {draws} draws each, no interval"
    return cell.value(fact, result.value, np.empty(0), how)


def _inception_score(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    logits, splits = cell.array("inception.logits"), options["is_splits"]
    settings = (splits, options["is_shuffle"], options["is_rng_seed"])
    score = inception.inception_score(logits, *settings)
    left = np.empty(0)
    if cell.blocks is not None:
        # Tiny splits may lie in one block as a whole: then there is a value but no interval.
        with suppress(ValueError):
            score, left = inception.inception_leave_one_out(logits, cell.blocks, *settings)
    return cell.value(fact, score.mean, left, f"{splits} splits, spread over splits {score.std:.4g}")


def _kid_kernel(options: Options) -> kernel.PolynomialKernel:
    return kernel.PolynomialKernel(options["kid_degree"], options["kid_gamma"], options["kid_coef0"])


def _kid(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    array = fact.array
    generated, real = cell.array(array), cell.reference_features(array)
    form = _kid_kernel(options)
    own = cell.reference(array).keep(form, lambda: kernel.kernel_self_mean(real, form))
    result = kernel.kernel_distance(real, generated, kernel=form, blocks=cell.blocks, self_mean_1=own)
    return cell.value(fact, result.value, result.leave_one_out, "unbiased, all images")


def _kid_subsets(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    array = fact.array
    generated, real = cell.array(array), cell.reference_features(array)
    subsets, size = options["kid_subsets"], options["kid_subset_size"]
    result = kernel.kernel_distance_subsets(
        generated, real, subsets=subsets, subset_size=size, kernel=_kid_kernel(options),
        rng_seed=options["kid_rng_seed"],
    )  # fmt: skip
    return cell.value(
        fact,
        result.mean,
        np.empty(0),
        f"{subsets} subsets of {size}, spread over subsets {result.std:.4g}, no interval",
    )


def _manifold(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    comparison = options["comparison"]
    k = options["neighborhood" if "neighborhood" in options else "density_neighborhood"]
    whole, left = cell.manifold(k, comparison)
    values = np.array([getattr(figures, fact.name) for figures in left])
    result = cell.value(fact, getattr(whole, fact.name), values, f"k = {k}, '{comparison}'")
    if fact.highest is None or result.low is None or result.high is None or result.corrected is None:
        return result
    # Shares. For recall and coverage the jackknife errs on the wide side (balls overlap, the share is not smooth).
    return result._replace(
        low=max(0.0, result.low), high=min(1.0, result.high), corrected=min(1.0, max(0.0, result.corrected))
    )


def _cmmd(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    array = fact.array
    sigma, scale = options["cmmd_sigma"], options["cmmd_scale"]
    generated, real = cell.array(array), cell.reference_features(array)
    form = kernel.UnitGaussianKernel(sigma)
    own = cell.reference(array).keep(form, lambda: kernel.kernel_self_mean(real, form, biased=True))
    result = kernel.clip_maximum_mean_discrepancy(
        real, generated, sigma=sigma, scale=scale, blocks=cell.blocks, self_mean_1=own
    )
    how = f"biased estimator on unit rows, Gaussian kernel of width {sigma:g}"
    return cell.value(fact, result.value, result.leave_one_out, how)


def _frechet_by_class(cell: Cell, fact: MetricFact, options: Options) -> Iterator[PerClass]:
    reference = cell.reference(fact.array)
    if cell.labels is None or reference.features is None or reference.labels is None:
        return
    distances = frechet_per_class(reference.features, reference.labels, cell.array(fact.array), cell.labels)
    counts = dict(zip(*np.unique(cell.labels, return_counts=True), strict=True))
    for label, distance in distances.items():
        if distance is not None:
            yield PerClass(label, fact.name, distance, int(counts[label]))


_KID = (
    Option("kid_degree", int, 3, "degree of the polynomial kernel", low=1),
    Option("kid_gamma", float, None, "factor of the inner product; 1/d by default", above=0),
    Option("kid_coef0", float, 1.0, "constant of the kernel", low=0),
)
_COMPARISON = Option("comparison", str, "<=", "whether the rim of a ball belongs to it", choices=("<=", "<"))
_NEIGHBOURS = (Option("neighborhood", int, 3, "neighbours that make a ball", low=1), _COMPARISON)
_DENSITY_NEIGHBOURS = (Option("density_neighborhood", int, 5, "neighbours that make a ball", low=1), _COMPARISON)

FID = Metric(CATALOG["fid"], _frechet, per_class=_frechet_by_class)
FID_CORRECTED = Metric(CATALOG["fid_corrected"], _frechet_corrected)
FID_INFINITY = Metric(
    CATALOG["fid_infinity"],
    _frechet_infinity,
    (
        Option("fid_infinity_sizes", int, 15, "numbers of images that the line goes through", low=2),
        Option("fid_infinity_draws", int, 3, "random draws of each", low=1),
        Option("fid_infinity_rng_seed", int, 2020, "seed of the draws", low=0),
    ),
)
SFID = Metric(CATALOG["sfid"], _frechet)
FD_DINOV2 = Metric(CATALOG["fd_dinov2"], _frechet)
IS = Metric(
    CATALOG["is"],
    _inception_score,
    (
        Option("is_splits", int, 10, "parts that the score is averaged over", low=1),
        Option("is_shuffle", bool, True, "whether images are shuffled before they are split"),
        Option("is_rng_seed", int, 2020, "seed of the shuffle", low=0),
    ),
)
KID = Metric(CATALOG["kid"], _kid, _KID)
KID_SUBSETS = Metric(
    CATALOG["kid_subsets"],
    _kid_subsets,
    (
        *_KID,
        Option("kid_subsets", int, 100, "number of random subsets", low=1),
        Option("kid_subset_size", int, 1000, "images in each", low=2),
        Option("kid_rng_seed", int, 2020, "seed of the draws", low=0),
    ),
)
PRECISION = Metric(CATALOG["precision"], _manifold, _NEIGHBOURS)
RECALL = Metric(CATALOG["recall"], _manifold, _NEIGHBOURS)
DENSITY = Metric(CATALOG["density"], _manifold, _DENSITY_NEIGHBOURS)
COVERAGE = Metric(CATALOG["coverage"], _manifold, _DENSITY_NEIGHBOURS)
CMMD = Metric(
    CATALOG["cmmd"],
    _cmmd,
    (
        Option("cmmd_sigma", float, 10.0, "width of the Gaussian kernel", above=0),
        Option("cmmd_scale", float, 1000.0, "factor of the value", above=0),
    ),
)
