"""All metrics of one cell from its judge outputs: the one entry point of the runner.

The same blocks of samples are left out for every metric, so that values can be compared in pairs and ranked jointly.
A metric that cannot be computed is skipped with its reason; the others stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from bench.metrics import inception, kernel, manifold
from bench.metrics.frechet import frechet_infinity, frechet_per_class, row_blocks
from bench.metrics.records import (
    CellMetrics,
    JudgeOutputs,
    MetricValue,
    PerClass,
    ReferenceFeatures,
    SkippedMetric,
)
from results.catalog import CATALOG
from results.errors import BenchError, unknown
from results.statistics import Interval, blocks_by_label, jackknife, label_strata, mean_interval, wilson

__all__ = [
    "OPTIONS",
    "CellMetrics",
    "JudgeOutputs",
    "MetricValue",
    "PerClass",
    "ReferenceFeatures",
    "SkippedMetric",
    "measure",
]

OPTIONS: dict[str, Any] = {
    "is_splits": 10,
    "is_shuffle": True,
    "is_rng_seed": 2020,
    "kid_degree": 3,
    "kid_gamma": None,
    "kid_coef0": 1.0,
    "kid_subsets": 100,
    "kid_subset_size": 1000,
    "kid_rng_seed": 2020,
    "neighborhood": 3,
    "density_neighborhood": 5,
    "comparison": "<=",
    "cmmd_sigma": 10.0,
    "cmmd_scale": 1000.0,
    "fid_infinity_sizes": 15,
    "fid_infinity_draws": 3,
    "fid_infinity_rng_seed": 2020,
    "num_classes": None,
    "per_class": True,
}
"""Every option of `measure` with its default; `num_classes` None means the largest label + 1."""


class _Unavailable(ValueError):
    """The metric cannot be computed; the message says why."""


def measure(
    generated: Mapping[str, np.ndarray],
    reference: ReferenceFeatures | Mapping[str, ReferenceFeatures] | None,
    metrics: Sequence[str],
    *,
    labels: np.ndarray | None = None,
    blocks: int = 20,
    options: Mapping[str, Any] | None = None,
) -> CellMetrics:
    """Measure one cell.

    Args:
        generated: judge outputs by name (`JudgeOutputs` or a plain mapping), [N, ...] each.
        reference: the reference of `inception.features`, or references by array name; None for reference-free metrics.
        metrics: metric names, as in the catalog.
        labels: class asked for, int [N]; None if there are none (no strata, no per-class values).
        blocks: number of jackknife blocks; fewer are used if there are fewer samples.
        options: overrides of OPTIONS.

    Returns:
        Values in the order of `metrics`, skipped metrics with reasons, and per-class values.

    Raises:
        BenchError: an unknown metric or option, or labels of another length.
    """
    check_metrics(metrics, options or {})
    outputs = generated if isinstance(generated, JudgeOutputs) else JudgeOutputs(generated)
    if labels is not None and len(labels) != outputs.n:
        raise BenchError(f"{outputs.n} judged images but {len(labels)} labels: give one label per image")
    references = (
        {"inception.features": reference} if isinstance(reference, ReferenceFeatures) else dict(reference or {})
    )
    cell = _Cell(outputs, references, labels, blocks, {**OPTIONS, **(options or {})})
    values: list[MetricValue] = []
    skipped: list[SkippedMetric] = []
    for name in metrics:
        try:
            value = _MEASURES[name](cell, name)
            if not np.isfinite(value.value):
                raise _Unavailable(f"the value is {value.value}; look for broken images among the judge's outputs")
            values.append(value)
        except (ValueError, np.linalg.LinAlgError) as error:
            skipped.append(SkippedMetric(name, str(error)))
    done = [value.name for value in values]
    return CellMetrics(values, skipped, list(_per_class(cell, done)) if cell.options["per_class"] else [])


def check_metrics(metrics: Iterable[str], options: Iterable[str]) -> None:
    """Raise BenchError for the first metric or metric option that is not known."""
    for name in metrics:
        if name not in CATALOG:
            raise unknown("metric", name, CATALOG)
    for name in options:
        if name not in OPTIONS:
            raise unknown("metric option", name, OPTIONS)


class _Cell:
    """Outputs, references and blocks of one cell, and what several metrics share."""

    def __init__(
        self,
        outputs: JudgeOutputs,
        references: Mapping[str, ReferenceFeatures],
        labels: np.ndarray | None,
        blocks: int,
        options: Mapping[str, Any],
    ) -> None:
        self.outputs, self.references, self.labels, self.options = outputs, references, labels, options
        self.strata = label_strata(labels, outputs.n)
        count = min(blocks, outputs.n // 2)
        self.blocks = blocks_by_label(self.strata, count) if count >= 2 else None
        self._broken: dict[str, int] = {}
        self._frechet: dict[str, tuple[float, np.ndarray]] = {}
        self._manifold: dict[int, tuple[manifold.Manifold, list[manifold.Manifold]]] = {}

    @property
    def one_block(self) -> np.ndarray:
        return np.zeros(self.outputs.n, dtype=np.int64)

    def array(self, name: str) -> np.ndarray:
        if name not in self.outputs:
            raise _Unavailable(f"no judge gave '{name}'; add its judge to the protocol")
        array = self.outputs[name]
        if len(array) < 2:
            raise _Unavailable(f"needs at least 2 images, got {len(array)}")
        if name not in self._broken:
            finite = (np.isfinite(block).reshape(len(block), -1).all(axis=1) for block in row_blocks(array))
            self._broken[name] = sum(int((~whole).sum()) for whole in finite)
        if self._broken[name]:
            raise _Unavailable(f"'{name}' is not finite for {self._broken[name]} of {len(array)} images; find them")
        return array

    def reference(self, name: str) -> ReferenceFeatures:
        if name not in self.references:
            raise _Unavailable(f"the reference has no '{name}'; build it with this judge")
        return self.references[name]

    def reference_features(self, name: str) -> np.ndarray:
        features = self.reference(name).features
        if features is None:
            raise _Unavailable("needs the reference's features; only its mean and covariance are known")
        self.check_width(name, features.shape[1])
        return features

    def check_width(self, name: str, width: int) -> None:
        if self.outputs[name].shape[1] != width:
            raise _Unavailable(
                f"'{name}' has {self.outputs[name].shape[1]} values an image, the reference {width}; "
                "they come from different judges"
            )

    def frechet(self, name: str) -> tuple[float, np.ndarray]:
        """Distance to the reference and without each block (empty if there are no blocks)."""
        if name not in self._frechet:
            features = self.array(name)
            reference = self.reference(name).frechet
            self.check_width(name, reference.mu.size)
            if self.blocks is None:
                self._frechet[name] = reference.distance_from_features(features), np.empty(0)
            else:
                self._frechet[name] = reference.leave_one_out(features, self.blocks)
        return self._frechet[name]

    def manifold(self, k: int) -> tuple[manifold.Manifold, list[manifold.Manifold]]:
        if k not in self._manifold:
            name = "inception.features"
            generated, real = self.array(name), self.reference_features(name)
            real_balls = self.reference(name).keep(("balls", k), lambda: manifold.balls(real, k))
            blocks = self.one_block if self.blocks is None else self.blocks
            self._manifold[k] = manifold.precision_recall_leave_one_out(
                generated, real, blocks, k, self.options["comparison"], real_balls
            )
        return self._manifold[k]

    def value(
        self, name: str, value: float, left: np.ndarray, how: str, interval: Interval | None = None
    ) -> MetricValue:
        """Assemble a value; the interval is the jackknife's unless one is given."""
        method = how
        if interval is None and len(left) >= 2:
            interval = jackknife(value, left)
            method = f"{how}; delete-block jackknife, {len(left)} blocks"
        judge = CATALOG[name].judge
        n = self.outputs.n
        kept = left if len(left) >= 2 else None
        if interval is None:
            return MetricValue(name, float(value), None, None, None, None, n, method, judge, kept)
        return MetricValue(
            name, float(value), interval.low, interval.high, interval.standard_error, interval.corrected,
            n, method, judge, kept,
        )  # fmt: skip


def _frechet(cell: _Cell, name: str) -> MetricValue:
    array = CATALOG[name].array
    value, left = cell.frechet(array)
    n, d = cell.outputs[array].shape
    form = "Cholesky form from moments" if n > d else f"exact low-rank form, {n} images in {d} dimensions"
    return cell.value(name, value, left, form)


def _frechet_corrected(cell: _Cell, name: str) -> MetricValue:
    value, left = cell.frechet(CATALOG[name].array)
    if len(left) < 2:
        raise _Unavailable(f"needs at least 4 images for a jackknife, got {cell.outputs.n}")
    corrected = jackknife(value, left).corrected
    assert corrected is not None
    # Shifted to the corrected value's level: the same standard error, and no second correction.
    return cell.value(name, corrected, left - left.mean() + corrected, "bias removed by the jackknife")


def _frechet_infinity(cell: _Cell, name: str) -> MetricValue:
    array = CATALOG[name].array
    features = cell.array(array)
    reference = cell.reference(array).frechet
    cell.check_width(array, reference.mu.size)
    sizes, draws = cell.options["fid_infinity_sizes"], cell.options["fid_infinity_draws"]
    result = frechet_infinity(
        reference, features, sizes=sizes, draws=draws, rng_seed=cell.options["fid_infinity_rng_seed"]
    )
    how = f"line in 1/N through {len(result.sizes)} sizes from {result.sizes[0]}, {draws} draws each, no interval"
    return cell.value(name, result.value, np.empty(0), how)


def _inception_score(cell: _Cell, name: str) -> MetricValue:
    logits, splits = cell.array("inception.logits"), cell.options["is_splits"]
    settings = (splits, cell.options["is_shuffle"], cell.options["is_rng_seed"])
    score = inception.inception_score(logits, *settings)
    left = np.empty(0)
    if cell.blocks is not None:
        # Tiny splits may lie in one block as a whole: then there is a value but no interval.
        with suppress(ValueError):
            score, left = inception.inception_leave_one_out(logits, cell.blocks, *settings)
    return cell.value(name, score.mean, left, f"{splits} splits, spread over splits {score.std:.4g}")


def _kid_kernel(cell: _Cell) -> kernel.PolynomialKernel:
    return kernel.PolynomialKernel(cell.options["kid_degree"], cell.options["kid_gamma"], cell.options["kid_coef0"])


def _kid(cell: _Cell, name: str) -> MetricValue:
    array = CATALOG[name].array
    generated, real = cell.array(array), cell.reference_features(array)
    form = _kid_kernel(cell)
    own = cell.reference(array).keep(form, lambda: kernel.kernel_self_mean(real, form))
    result = kernel.kernel_distance(real, generated, kernel=form, blocks=cell.blocks, self_mean_1=own)
    return cell.value(name, result.value, result.leave_one_out, "unbiased, all images")


def _kid_subsets(cell: _Cell, name: str) -> MetricValue:
    array = CATALOG[name].array
    generated, real = cell.array(array), cell.reference_features(array)
    subsets, size = cell.options["kid_subsets"], cell.options["kid_subset_size"]
    result = kernel.kernel_distance_subsets(
        generated, real, subsets=subsets, subset_size=size, kernel=_kid_kernel(cell),
        rng_seed=cell.options["kid_rng_seed"],
    )  # fmt: skip
    return cell.value(
        name,
        result.mean,
        np.empty(0),
        f"{subsets} subsets of {size}, spread over subsets {result.std:.4g}, no interval",
    )


def _manifold(cell: _Cell, name: str) -> MetricValue:
    k = cell.options["neighborhood" if name in ("precision", "recall") else "density_neighborhood"]
    whole, left = cell.manifold(k)
    values = np.array([getattr(figures, name) for figures in left])
    result = cell.value(name, getattr(whole, name), values, f"k = {k}, '{cell.options['comparison']}'")
    if CATALOG[name].highest is None or result.low is None or result.high is None or result.corrected is None:
        return result
    # Shares. For recall and coverage the jackknife errs on the wide side (balls overlap, the share is not smooth).
    return result._replace(
        low=max(0.0, result.low), high=min(1.0, result.high), corrected=min(1.0, max(0.0, result.corrected))
    )


def _cmmd(cell: _Cell, name: str) -> MetricValue:
    array = CATALOG[name].array
    sigma, scale = cell.options["cmmd_sigma"], cell.options["cmmd_scale"]
    generated, real = cell.array(array), cell.reference_features(array)
    form = kernel.UnitGaussianKernel(sigma)
    own = cell.reference(array).keep(form, lambda: kernel.kernel_self_mean(real, form, biased=True))
    result = kernel.clip_maximum_mean_discrepancy(
        real, generated, sigma=sigma, scale=scale, blocks=cell.blocks, self_mean_1=own
    )
    how = f"biased estimator on unit rows, Gaussian kernel of width {sigma:g}"
    return cell.value(name, result.value, result.leave_one_out, how)


def _mean(cell: _Cell, name: str) -> MetricValue:
    scores = np.asarray(cell.array(CATALOG[name].array), dtype=np.float64)
    interval = mean_interval(scores, cell.labels)
    how = "mean; normal interval" + ("" if cell.labels is None else " within classes")
    return cell.value(name, interval.value, _means_without(scores, cell.blocks), how, interval)


def _accuracy(cell: _Cell, name: str) -> MetricValue:
    agreement = _agreement(cell, name)
    interval = wilson(float(agreement.sum()), len(agreement))
    stratified = mean_interval(agreement, cell.labels)
    interval = interval._replace(standard_error=stratified.standard_error)
    return cell.value(name, interval.value, _means_without(agreement, cell.blocks), "share; Wilson interval", interval)


def _agreement(cell: _Cell, name: str) -> np.ndarray:
    if cell.labels is None:
        raise _Unavailable("needs the class asked for of every image")
    logits = cell.array(CATALOG[name].array)
    classes = cell.options["num_classes"] or int(np.max(cell.labels)) + 1
    if logits.shape[1] != classes:
        raise _Unavailable(f"the judge has {logits.shape[1]} classes, the labels {classes}; they cannot be compared")
    named = np.concatenate([np.argmax(block, axis=1) for block in row_blocks(logits)])
    return (named == cell.labels).astype(np.float64)


def _means_without(values: np.ndarray, blocks: np.ndarray | None) -> np.ndarray:
    if blocks is None:
        return np.empty(0)
    rest = len(values) - np.bincount(blocks)
    return (values.sum() - np.bincount(blocks, weights=values)) / rest


def _per_class(cell: _Cell, done: Sequence[str]) -> Iterator[PerClass]:
    if cell.labels is None:
        return
    classes, member, size = np.unique(cell.labels, return_inverse=True, return_counts=True)
    per_image = {name: cell.outputs[CATALOG[name].array] for name in done if _MEASURES[name] is _mean}
    per_image |= {name: _agreement(cell, name) for name in ("accuracy", "top1") if name in done}
    for name, values in per_image.items():
        means = np.bincount(member, weights=np.asarray(values, dtype=np.float64)) / size
        for label, mean, n in zip(classes, means, size, strict=True):
            yield PerClass(int(label), name, float(mean), int(n))
    reference = cell.references.get("inception.features")
    if "fid" in done and reference is not None and reference.features is not None and reference.labels is not None:
        distances = frechet_per_class(
            reference.features, reference.labels, cell.outputs["inception.features"], np.asarray(cell.labels)
        )
        counts = dict(zip(classes.tolist(), size.tolist(), strict=True))
        for label, distance in distances.items():
            if distance is not None:
                yield PerClass(label, "fid", distance, counts[label])


_MEASURES: dict[str, Callable[[_Cell, str], MetricValue]] = {
    "fid": _frechet,
    "fid_corrected": _frechet_corrected,
    "fid_infinity": _frechet_infinity,
    "sfid": _frechet,
    "fd_dinov2": _frechet,
    "is": _inception_score,
    "kid": _kid,
    "kid_subsets": _kid_subsets,
    "precision": _manifold,
    "recall": _manifold,
    "density": _manifold,
    "coverage": _manifold,
    "cmmd": _cmmd,
    "clip": _mean,
    "clip_l14": _mean,
    "pick": _mean,
    "image_reward": _mean,
    "hpsv2": _mean,
    "accuracy": _accuracy,
    "top1": _accuracy,
}
