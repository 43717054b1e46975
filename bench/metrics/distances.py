"""Metrics of whole sets of images: FID and its relatives, IS, KID, CMMD, precision and recall."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.metrics import inception, kernel, manifold
from bench.metrics.cell import Cell, Unavailable
from bench.metrics.frechet import frechet_infinity, frechet_per_class, rows_of
from bench.metrics.records import MetricValue, PerClass
from bench.metrics.registry import Metric, Options
from results.catalog import CATALOG
from results.facts import MetricFact
from results.interactions import Interactions
from results.statistics import FEWEST_BLOCKS, HALF_SAMPLES, ROUGH, jackknife, tail_share, wilson

OF_REFERENCE = ("recall", "coverage")
"""Shares of the reference's images."""


CORRECTABLE, UNSURE = 5, 10
"""Images per dimension below which the bias of a Frechet distance cannot be removed, or only roughly: its higher orders
count. At 2.5 the corrected value is a standard deviation too low, at 1 far below zero."""


def _images_a_dimension(cell: Cell, array: str) -> tuple[str | None, list[str]]:
    """Return why the bias cannot be removed (None where it can), and remarks on how well its removal does."""
    n, d = cell.outputs[array].shape
    sides = [(n, "images")]
    reference = cell.reference(array).n
    if reference is not None:
        sides.append((reference, "reference images"))
    for count, what in sides:
        if count < CORRECTABLE * d:
            needed = CORRECTABLE * d
            return f"{count:,} {what} in {d:,} dimensions are too few to remove the bias; it takes {needed:,}", []
    return None, [f"{ROUGH}: {count:,} {what} in {d:,} dimensions" for count, what in sides if count < UNSURE * d]


def _frechet(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    array = fact.array
    distance = cell.frechet(array)
    n, d = cell.outputs[array].shape
    form = "Cholesky form from moments" if n > d else f"exact low-rank form, {n} images in {d} dimensions"
    biased, remarks = _images_a_dimension(cell, array)
    if biased is not None:
        remarks = [f"no corrected value: {biased}"]
    value = cell.value(
        fact, distance.value, distance.without, form,
        reference=distance.without_reference, remarks=remarks, tails=distance.tails,
        interactions=distance.interactions,
    )  # fmt: skip
    return value if biased is None else value._replace(corrected=None)


def _frechet_ahead(cell: Cell, fact: MetricFact, options: Options) -> None:
    cell.frechet_ahead(fact.array)


def _distance_ratios(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    """Return the mean over feature spaces of the Frechet distance as a multiple of the validation images'."""
    distances = {judge: cell.frechet(f"{judge}.features") for judge in fact.judges}
    scales = {judge: 1 / (len(distances) * options[f"{fact.name}_{judge}"]) for judge in distances}
    total = sum(scales[judge] * distance.value for judge, distance in distances.items())
    left = np.array([scales[judge] * distance.without for judge, distance in distances.items()]).sum(axis=0)
    sides = [scales[judge] * d.without_reference for judge, d in distances.items() if d.without_reference is not None]
    reference = np.array(sides).sum(axis=0) if len(sides) == len(distances) else None
    short = any(_images_a_dimension(cell, f"{judge}.features")[0] for judge in fact.judges)
    how = f"mean over {len(distances)} feature spaces"
    tails = max(distance.tails for distance in distances.values())
    pairs = Interactions.total([d.interactions for d in distances.values()], list(scales.values()))
    value = cell.value(fact, float(total), left, how, reference=reference, tails=tails, interactions=pairs)
    return value._replace(corrected=None) if short else value


def _distance_ratios_ahead(cell: Cell, fact: MetricFact, options: Options) -> None:
    for judge in fact.judges:
        cell.frechet_ahead(f"{judge}.features")


def _frechet_corrected(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    value, left, reference, tails, pairs = cell.frechet(fact.array)
    if len(left) < 2:
        raise Unavailable(f"needs at least 4 images for a jackknife, got {cell.outputs.n}")
    biased, remarks = _images_a_dimension(cell, fact.array)
    if biased is not None:
        raise Unavailable(biased)
    corrected = jackknife(value, left, reference=reference).corrected
    assert corrected is not None
    # Shifted to the corrected value's level: the same standard error, and no second correction.
    left = left - left.mean() + corrected
    reference = None if reference is None else reference - reference.mean() + corrected
    how = "bias removed by the jackknife"
    return cell.value(fact, corrected, left, how, reference=reference, remarks=remarks, tails=tails, interactions=pairs)


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
    blocks, strata = cell.blocks, cell.strata
    if cell.order is not None and not options["is_shuffle"]:
        logits, strata = rows_of(logits, cell.order), strata[cell.order]
        blocks = None if blocks is None else blocks[cell.order]
    score = inception.inception_score(logits, *settings)
    left, remarks = np.empty(0), []
    if blocks is not None:
        try:
            score, left = inception.inception_leave_one_out(logits, blocks, *settings, strata)
        except ValueError as error:  # tiny splits may lie in one block as a whole
            remarks = [f"no interval: {error}"]
    # Splits make the bias other than c/n: the jackknife does not remove it.
    how = f"{splits} splits, spread over splits {score.std:.4g}"
    value = cell.value(fact, score.mean, left, how, remarks=remarks)
    return value._replace(corrected=None)


def kid_kernel(options: Options) -> kernel.PolynomialKernel:
    """Return KID's kernel as the options have it."""
    return kernel.PolynomialKernel(options["kid_degree"], options["kid_gamma"], options["kid_coef0"])


def _kid(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    array = fact.array
    generated, real = cell.array(array), cell.reference_features(array)
    form = kid_kernel(options)
    own, blocks_1 = _own_mean(cell, array, form, biased=False)
    result = kernel.kernel_distance(
        real, generated, kernel=form, blocks=cell.blocks, self_mean_1=own, blocks_1=blocks_1
    )
    return _kernel_value(cell, fact, result, "unbiased, all images")._replace(corrected=None)


def _own_mean(
    cell: Cell, array: str, form: kernel.Kernel, *, biased: bool
) -> tuple[kernel.SelfMean, np.ndarray | None]:
    """Return the reference's own term, computed once, and the blocks it was cut into."""
    blocks = cell.reference_blocks(array)
    return cell.reference(array).self_mean(form, biased, blocks), blocks


def _kernel_value(cell: Cell, fact: MetricFact, result: kernel.KernelDistance, how: str) -> MetricValue:
    cell.kept[f"{fact.name}/own"] = result.own.astype(np.float32)
    cell.kept[f"{fact.name}/cross"] = result.cross.astype(np.float32)
    return cell.value(
        fact, result.value, result.leave_one_out, how,
        reference=result.leave_reference_out, tails=tail_share(result.influence), interactions=result.interactions,
    )  # fmt: skip


def subset_draws(options: Options) -> int:
    """Return how many images are drawn in all for KID over subsets, as the options have it."""
    draws: int = options["kid_subsets"] * options["kid_subset_size"]
    return draws


def _kid_subsets(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    array = fact.array
    generated, real = cell.array(array), cell.reference_features(array)
    subsets, size = options["kid_subsets"], options["kid_subset_size"]
    result = kernel.kernel_distance_subsets(
        generated, real, subsets=subsets, subset_size=size, kernel=kid_kernel(options),
        rng_seed=options["kid_rng_seed"],
    )  # fmt: skip
    return cell.value(
        fact,
        result.mean,
        np.empty(0),
        f"{subsets} subsets of {size}, spread over subsets {result.std:.4g}, no interval",
    )


def _kid_ahead(cell: Cell, fact: MetricFact, options: Options) -> None:
    _own_mean(cell, fact.array, kid_kernel(options), biased=False)


def _manifold_ahead(cell: Cell, fact: MetricFact, options: Options) -> None:
    k, _ = neighbours(options)
    cell.reference(fact.array).balls(k)


def neighbours(options: Options) -> tuple[int, manifold.Comparison]:
    """Return the k of the balls and whether their surface is inside, as a metric's options have them."""
    return options["neighborhood" if "neighborhood" in options else "density_neighborhood"], options["comparison"]


def _manifold(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    k, comparison = neighbours(options)
    found = cell.manifold(k, comparison)
    cell.kept |= {f"{fact.name}/{part}": values for part, values in _counted(fact, found.held).items()}
    value = getattr(found.whole, fact.name)
    values, reference = (
        np.array([getattr(figures, fact.name) for figures in left]) for left in (found.without, found.without_real)
    )
    how = f"k = {k}, '{comparison}'"
    if cell.blocks is not None and int(cell.blocks.max()) + 1 < FEWEST_BLOCKS:
        values, reference = np.empty(0), np.empty(0)
        how += f"; no interval: {int(cell.blocks.max()) + 1} blocks, of {FEWEST_BLOCKS} something can be said"
    elif cell.blocks is not None and not len(values):
        how += f"; no interval: half of the images are too few for {k} neighbours"
    result = cell.value(fact, value, values, how, reference=reference, estimator=HALF_SAMPLES)
    # Balls shrink with their number by another power than 1/n: the jackknife does not remove that bias.
    result = result._replace(corrected=None)
    if fact.highest is None or len(values) < FEWEST_BLOCKS:
        return result
    low, high, method = result.low, result.high, result.method
    if value in (0.0, 1.0) or low is None or high is None:
        # No block moves it, which is not certainty: a share of images, of the reference for recall and coverage.
        n = len(cell.reference_features(fact.array)) if fact.name in OF_REFERENCE else cell.outputs.n
        _, least, most, *_ = wilson(value * n, n)
        low, high = min(least, value if low is None else low), max(most, value if high is None else high)
        method += f"; Wilson interval, for the share of {n:,} is {value:g}"
        method = method.replace("; no interval: no block moves the value, which is not certainty", "")
    return result._replace(low=max(0.0, low), high=min(1.0, high), method=method)


def _counted(fact: MetricFact, held: manifold.Held) -> dict[str, np.ndarray]:
    """Return what a figure is counted from, by part of the evidence."""
    parts: dict[str, np.ndarray] = {
        "inside": (held.around > 0).astype(np.uint8),
        "around": held.around.astype(np.int32),
        "radius": held.radius.astype(np.float32),
        "holder": (held.reached if "radius" in fact.counted_from else held.covering).astype(np.int32),
    }
    return {part: parts[part] for part in fact.counted_from}


def cmmd_kernel(options: Options) -> kernel.UnitGaussianKernel:
    """Return CMMD's kernel as the options have it."""
    return kernel.UnitGaussianKernel(options["cmmd_sigma"])


def _cmmd(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    array = fact.array
    sigma, scale = options["cmmd_sigma"], options["cmmd_scale"]
    generated, real = cell.array(array), cell.reference_features(array)
    own, blocks_1 = _own_mean(cell, array, cmmd_kernel(options), biased=True)
    result = kernel.clip_maximum_mean_discrepancy(
        real, generated, sigma=sigma, scale=scale, blocks=cell.blocks, self_mean_1=own, blocks_1=blocks_1
    )
    return _kernel_value(cell, fact, result, f"biased estimator on unit rows, Gaussian kernel of width {sigma:g}")


def _cmmd_ahead(cell: Cell, fact: MetricFact, options: Options) -> None:
    _own_mean(cell, fact.array, cmmd_kernel(options), biased=True)


def _frechet_by_class(cell: Cell, fact: MetricFact, options: Options) -> Iterator[PerClass]:
    reference = cell.reference(fact.array)
    if cell.labels is None or reference.features is None or reference.labels is None:
        return
    distances = frechet_per_class(reference.features, reference.labels, cell.array(fact.array), cell.labels)
    counts = dict(zip(*np.unique(cell.labels, return_counts=True), strict=True))
    real = dict(zip(*np.unique(reference.labels, return_counts=True), strict=True))
    for label, distance in distances.items():
        if distance is not None:
            yield PerClass(label, fact.name, distance, int(counts[label]), int(real[label]))


def _kid_by_class(cell: Cell, fact: MetricFact, options: Options) -> Iterator[PerClass]:
    """Yield the unbiased distance within each class of at least two images a side.

    Unlike FID, whose bias goes with the spread of the class, it orders classes by the model's error.
    """
    reference = cell.reference(fact.array)
    if cell.labels is None or reference.features is None or reference.labels is None:
        return
    generated, form = cell.array(fact.array), kid_kernel(options)
    for label in np.intersect1d(cell.labels, reference.labels):
        ours, real = np.flatnonzero(cell.labels == label), np.flatnonzero(reference.labels == label)
        if min(len(ours), len(real)) < 2:
            continue
        result = kernel.kernel_distance(rows_of(reference.features, real), rows_of(generated, ours), kernel=form)
        yield PerClass(int(label), fact.name, result.value, len(ours), len(real))


FID = Metric(CATALOG["fid"], _frechet, per_class=_frechet_by_class, ahead=_frechet_ahead)
FID_CORRECTED = Metric(CATALOG["fid_corrected"], _frechet_corrected)
FID_INFINITY = Metric(CATALOG["fid_infinity"], _frechet_infinity)
SFID = Metric(CATALOG["sfid"], _frechet, ahead=_frechet_ahead)
FD_DINOV2 = Metric(CATALOG["fd_dinov2"], _frechet, ahead=_frechet_ahead)
FD_CROSS_CHECK = Metric(CATALOG["fd_cross_check"], _frechet, ahead=_frechet_ahead)
FD_CONVNEXT = Metric(CATALOG["fd_convnext"], _frechet, ahead=_frechet_ahead)
FD_DINOV2_256 = Metric(CATALOG["fd_dinov2_256"], _frechet, ahead=_frechet_ahead)
FD_MAE = Metric(CATALOG["fd_mae"], _frechet, ahead=_frechet_ahead)
FD_SIGLIP = Metric(CATALOG["fd_siglip"], _frechet, ahead=_frechet_ahead)
FD_CLIP = Metric(CATALOG["fd_clip"], _frechet, ahead=_frechet_ahead)
FDR6 = Metric(CATALOG["fdr6"], _distance_ratios, ahead=_distance_ratios_ahead)
IS = Metric(CATALOG["is"], _inception_score)
KID = Metric(CATALOG["kid"], _kid, per_class=_kid_by_class, ahead=_kid_ahead)
KID_SUBSETS = Metric(CATALOG["kid_subsets"], _kid_subsets)
PRECISION = Metric(CATALOG["precision"], _manifold, ahead=_manifold_ahead)
RECALL = Metric(CATALOG["recall"], _manifold, ahead=_manifold_ahead)
DENSITY = Metric(CATALOG["density"], _manifold, ahead=_manifold_ahead)
COVERAGE = Metric(CATALOG["coverage"], _manifold, ahead=_manifold_ahead)
CMMD = Metric(CATALOG["cmmd"], _cmmd, ahead=_cmmd_ahead)
