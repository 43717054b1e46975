"""What goes into the measurement of a cell and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bench.metrics.frechet import FrechetReference
from bench.metrics.kernel import Kernel, SelfMean, kernel_self_mean
from bench.metrics.manifold import Balls, balls
from bench.metrics.once import Once
from results.errors import BenchError


@dataclass(frozen=True)
class JudgeOutputs(Mapping[str, np.ndarray]):
    """What the judges said of a cell's images: arrays [N, ...] in sample order, memory maps welcome.

    Names: `inception.features` [N, d], `inception.logits` [N, C] (unbiased), `inception.spatial` [N, d'],
    `classifier.logits` [N, C], `clip.score` [N], `clip_l14.score` [N], `pick.score` [N], `dinov2.features` [N, d],
    `clip_l14_336.features` [N, d], projections of any length: CMMD takes unit rows of them.
    """

    arrays: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        lengths = {name: len(array) for name, array in self.arrays.items()}
        if len(set(lengths.values())) > 1:
            raise BenchError(f"judge outputs differ in length ({lengths}): every judge must see every image once")

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def n(self) -> int:
        """Number of images."""
        return len(next(iter(self.arrays.values()), ()))


@dataclass(frozen=True, eq=False)
class ReferenceFeatures:
    """What one judge said of the reference images; costly parts (factor, balls, self terms) are computed once.

    Attributes:
        features: [n, d], or None where only statistics are known.
        mu: mean [d]; None to take it from the features.
        sigma: covariance [d, d], divisor n - 1; None likewise.
        labels: class of each reference image, int [n], if known.
        n: number of reference images; None where statistics do not say.
    """

    features: np.ndarray | None = None
    mu: np.ndarray | None = None
    sigma: np.ndarray | None = None
    labels: np.ndarray | None = None
    n: int | None = None
    _kept: Once = field(default_factory=Once, repr=False)

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray | None = None) -> ReferenceFeatures:
        """Take the features of every reference image."""
        return cls(features=features, labels=labels, n=len(features))

    @property
    def frechet(self) -> FrechetReference:
        """The reference's side of a Frechet distance."""
        found: FrechetReference = self.keep("frechet", self._frechet)
        return found

    def _frechet(self) -> FrechetReference:
        if self.mu is not None and self.sigma is not None:
            return FrechetReference(self.mu, self.sigma)
        if self.features is None:
            raise ValueError("the reference has neither features nor a mean and covariance; build it for this judge")
        return FrechetReference.of(self.features)

    def balls(self, k: int) -> Balls:
        """The reference's k-nearest-neighbour balls. Raises ValueError where its features are unknown."""
        if self.features is None:
            raise ValueError("the reference's features are unknown")
        features = self.features
        return self.keep(("balls", k), lambda: balls(features, k))

    def self_mean(self, form: Kernel, biased: bool, blocks: np.ndarray | None = None) -> SelfMean:
        """The reference's own term of a kernel distance. Raises ValueError where its features are unknown."""
        if self.features is None:
            raise ValueError("the reference's features are unknown")
        features, key = self.features, (form, biased, 0 if blocks is None else int(blocks.max()))
        return self.keep(key, lambda: kernel_self_mean(features, form, biased=biased, blocks=blocks))

    def keep(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return `compute()`, computed once for each `key`."""
        return self._kept.get(key, compute)


class MetricValue(NamedTuple):
    """One metric of one cell.

    Attributes:
        name: metric name, as in the catalog.
        value: the value at this n.
        low: lower end of the 95% interval around `value`; None where there is no interval.
        high: upper end.
        standard_error: standard error of `value`.
        corrected: value less its estimated 1/n bias.
        n: number of generated samples used.
        method: how value and interval were made, for people.
        judge: judge that was read.
        jackknife: the value without each block, float64 [K]; None where there are no blocks.
        jackknife_reference: the value without each block of the reference, float64 [R]; None where the reference has no
            share in the value, or is known by its statistics only.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    standard_error: float | None
    corrected: float | None
    n: int
    method: str
    judge: str
    jackknife: np.ndarray | None
    jackknife_reference: np.ndarray | None = None


class SkippedMetric(NamedTuple):
    """A metric that could not be computed, and why (one line)."""

    name: str
    reason: str


class PerClass(NamedTuple):
    """A metric within one class (label), from n generated and n_reference real images (None where it reads none)."""

    label: int
    metric: str
    value: float
    n: int
    n_reference: int | None = None


class CellMetrics(NamedTuple):
    """All that was measured of one cell."""

    values: list[MetricValue]
    skipped: list[SkippedMetric]
    per_class: list[PerClass]
    kept: Mapping[str, np.ndarray]
    """What a metric was counted from, sample by sample, as `<metric>/<part>` (see `results.evidence`)."""
