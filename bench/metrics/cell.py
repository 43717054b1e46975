"""What metrics read: judge outputs of one cell, the reference, the blocks that are left out, and shared work."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bench.metrics import manifold
from bench.metrics.frechet import row_blocks
from bench.metrics.manifold import Manifold
from bench.metrics.records import JudgeOutputs, MetricValue, ReferenceFeatures
from results.catalog import MetricFact
from results.statistics import Interval, blocks_by_label, jackknife, label_strata


class Unavailable(ValueError):
    """The metric cannot be computed; the message says why."""


class Cell:
    """Outputs, references and blocks of one cell, and what several metrics share.

    Attributes:
        outputs: judge outputs by name, [N, ...] each.
        references: what the same judges said of the reference, by the same names.
        labels: class asked for, int64 [N], or None.
        blocks: number of the jackknife block of each sample, int64 [N]; None where there are too few samples.
    """

    def __init__(
        self,
        outputs: JudgeOutputs,
        references: Mapping[str, ReferenceFeatures],
        labels: np.ndarray | None,
        blocks: int,
    ) -> None:
        self.outputs, self.references, self.labels = outputs, references, labels
        self.strata = label_strata(labels, outputs.n)
        count = min(blocks, outputs.n // 2)
        self.blocks = blocks_by_label(self.strata, count) if count >= 2 else None
        self._broken: dict[str, int] = {}
        self._frechet: dict[str, tuple[float, np.ndarray]] = {}
        self._manifold: dict[tuple[int, str], tuple[Manifold, list[Manifold]]] = {}

    @property
    def one_block(self) -> np.ndarray:
        """All samples in one block, int64 [N]."""
        return np.zeros(self.outputs.n, dtype=np.int64)

    def array(self, name: str) -> np.ndarray:
        """Return a judge's output [N, ...]. Raises Unavailable if it is not there, not finite or of a single image."""
        if name not in self.outputs:
            raise Unavailable(f"no judge gave '{name}'; add its judge to the protocol")
        array = self.outputs[name]
        if len(array) < 2:
            raise Unavailable(f"needs at least 2 images, got {len(array)}")
        if name not in self._broken:
            finite = (np.isfinite(block).reshape(len(block), -1).all(axis=1) for block in row_blocks(array))
            self._broken[name] = sum(int((~whole).sum()) for whole in finite)
        if self._broken[name]:
            raise Unavailable(f"'{name}' is not finite for {self._broken[name]} of {len(array)} images; find them")
        return array

    def reference(self, name: str) -> ReferenceFeatures:
        """Return what is known of the reference under a judge output's name. Raises Unavailable if nothing is."""
        if name not in self.references:
            raise Unavailable(f"the reference has no '{name}'; build it with this judge")
        return self.references[name]

    def reference_features(self, name: str) -> np.ndarray:
        """Return the reference's features [n, d]. Raises Unavailable if they are unknown or of another width."""
        features = self.reference(name).features
        if features is None:
            raise Unavailable("needs the reference's features; only its mean and covariance are known")
        self.check_width(name, features.shape[1])
        return features

    def check_width(self, name: str, width: int) -> None:
        """Raise Unavailable unless output `name` is [N, width]."""
        if self.outputs[name].shape[1] != width:
            raise Unavailable(
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

    def manifold(self, k: int, comparison: manifold.Comparison) -> tuple[Manifold, list[Manifold]]:
        """Precision, recall, density and coverage with `k` neighbours, and the same without each block."""
        if (k, comparison) not in self._manifold:
            name = "inception.features"
            generated, real = self.array(name), self.reference_features(name)
            real_balls = self.reference(name).keep(("balls", k), lambda: manifold.balls(real, k))
            blocks = self.one_block if self.blocks is None else self.blocks
            self._manifold[k, comparison] = manifold.precision_recall_leave_one_out(
                generated, real, blocks, k, comparison, real_balls
            )
        return self._manifold[k, comparison]

    def value(
        self, fact: MetricFact, value: float, left: np.ndarray, how: str, interval: Interval | None = None
    ) -> MetricValue:
        """Assemble a value; the interval is the jackknife's unless one is given.

        Args:
            fact: the metric's row of the catalogue.
            value: of all samples.
            left: without each block, float64 [K]; empty where there is no such thing.
            how: the estimator and its settings, in a few words.
            interval: where there is a better one than the jackknife's.
        """
        method = how
        if interval is None and len(left) >= 2:
            interval = jackknife(value, left)
            method = f"{how}; delete-block jackknife, {len(left)} blocks"
        name, judge = fact.name, fact.judge
        n = self.outputs.n
        kept = left if len(left) >= 2 else None
        if interval is None:
            return MetricValue(name, float(value), None, None, None, None, n, method, judge, kept)
        return MetricValue(
            name, float(value), interval.low, interval.high, interval.standard_error, interval.corrected,
            n, method, judge, kept,
        )  # fmt: skip
