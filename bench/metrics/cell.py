"""What metrics read: judge outputs of one cell, the reference, the blocks that are left out, and shared work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bench.metrics import algebra, downdates, manifold
from bench.metrics.frechet import FrechetSide, distances_to_sides, row_blocks, sides_without_blocks
from bench.metrics.interactions import frechet_interactions
from bench.metrics.once import Once
from bench.metrics.records import JudgeOutputs, MetricValue, ReferenceFeatures
from results.facts import MetricFact
from results.interactions import Interactions
from results.statistics import (
    COUNTED_ONCE,
    FEWEST_BLOCKS,
    HEAVY_TAILS,
    JACKKNIFE,
    TAIL_SHARE,
    Interval,
    block_count,
    blocks_by_label,
    jackknife,
    label_strata,
    tail_share,
)

REFERENCE_BLOCKS = 20
"""The most blocks a reference is cut into: each keeps a factor of its covariance in memory."""
FEWEST_FOR_TAILS = 100
ROUNDING = 1e-12


class Frechet(NamedTuple):
    """A Frechet distance, and the same without each block of the samples [K] and of the reference [R] (or None)."""

    value: float
    without: np.ndarray
    without_reference: np.ndarray | None
    tails: float
    """Share of the variance of the samples' squared distances from their mean that 1% of them carry."""
    interactions: Interactions | None
    """What pairs of blocks do; None where that is not known."""


class Unavailable(ValueError):
    """The metric cannot be computed; the message says why."""


UNLABELLED = "needs the requested class of every image"
"""Why there is no value where nobody says which class the images are of."""


class Cell:
    """Outputs, references and blocks of one cell, and what several metrics share.

    Attributes:
        outputs: judge outputs by name, [N, ...] each.
        references: what the same judges said of the reference, by the same names.
        labels: class asked for, int64 [N], or None.
        blocks: number of the jackknife block of each sample, int64 [N]; None where there are too few samples.
        order: the order in which samples are split, int64 [N], where it is not that of their indices; else None.
        kept: what metrics were counted from, `<metric>/<part>`: part of the cell's evidence.
    """

    def __init__(
        self,
        outputs: JudgeOutputs,
        references: Mapping[str, ReferenceFeatures],
        labels: np.ndarray | None,
        blocks: int,
        order: np.ndarray | None = None,
    ) -> None:
        self.outputs, self.references, self.labels = outputs, references, labels
        self.strata = label_strata(labels, outputs.n)
        self.order = order
        self.kept: dict[str, np.ndarray] = {}
        self._wanted = blocks
        count = block_count(self.strata, blocks)
        self.blocks = blocks_by_label(self.strata, count) if count else None
        self._broken = Once()
        self._frechet = Once()
        self._manifold = Once()

    @property
    def one_block(self) -> np.ndarray:
        """All samples in one block, int64 [N]."""
        return np.zeros(self.outputs.n, dtype=np.int64)

    @property
    def largest_class(self) -> int:
        """Samples of the class that has most of them; 0 where nobody says which are of which."""
        return 0 if self.labels is None else int(np.unique(self.labels, return_counts=True)[1].max(initial=0))

    @property
    def asked(self) -> np.ndarray:
        """Class asked for, int64 [N]. Raises Unavailable (UNLABELLED) if there are none."""
        if self.labels is None:
            raise Unavailable(UNLABELLED)
        return self.labels

    def array(self, name: str) -> np.ndarray:
        """Return a judge's output [N, ...]. Raises Unavailable if it is not there, not finite or of a single image."""
        if name not in self.outputs:
            raise Unavailable(f"no judge produced '{name}'; add its judge to the protocol")
        array = self.outputs[name]
        if len(array) < 2:
            raise Unavailable(f"needs at least 2 images, got {len(array)}")
        broken = self._broken.get(name, lambda: _not_finite(array))
        if broken:
            raise Unavailable(f"'{name}' is not finite for {broken} of {len(array)} images; find them")
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
            raise Unavailable("needs the reference's features, but only its mean and covariance are known")
        self.check_width(name, features.shape[1])
        return features

    def check_width(self, name: str, width: int) -> None:
        """Raise Unavailable unless output `name` is [N, width]."""
        if self.outputs[name].shape[1] != width:
            raise Unavailable(
                f"'{name}' has {self.outputs[name].shape[1]} values per image, the reference {width}; they come from "
                "different judges"
            )

    def reference_blocks(self, name: str) -> np.ndarray | None:
        """Return the block of each reference image, int64 [M]; None where features are unknown or too few for blocks.

        Equal for every row that is measured against the reference with as many blocks, so rows are paired in it.
        """
        reference = self.reference(name)
        if reference.features is None:
            return None
        strata = label_strata(reference.labels, len(reference.features))
        count = block_count(strata, min(self._wanted, REFERENCE_BLOCKS))
        return blocks_by_label(strata, count) if count else None

    def frechet(self, name: str) -> Frechet:
        """Return the distance to the reference, also without each block (empty if there are no blocks)."""
        return self._frechet.get(name, lambda: self._distance(name))

    def _distance(self, name: str) -> Frechet:
        features, known = self.array(name), self.reference(name)
        reference = known.frechet
        self.check_width(name, reference.mu.size)
        decomposed = None
        if self.blocks is None:
            found, left = reference.distance_from_features(features), np.empty(0)
        else:
            found, left, decomposed = downdates.leave_one_out(reference, features, self.blocks)
        without, blocks, interactions, out = None, self.reference_blocks(name), None, None
        real = None if blocks is None else self.reference_features(name)
        if decomposed is not None and blocks is not None and real is not None:
            out = self._out(name, real, blocks)
        if self.blocks is not None:
            interactions = frechet_interactions(reference, features, self.blocks, real, blocks, decomposed, out)
        if blocks is not None and real is not None and len(left):
            if decomposed is not None:
                without = decomposed.without_reference_blocks(out)
            if without is None:
                without = distances_to_sides(features, self._sides(name, real, blocks))
        tails = tail_share(_squared_deviations(features))
        return Frechet(found, left, without, tails, interactions)

    def _sides(self, name: str, real: np.ndarray, blocks: np.ndarray) -> list[FrechetSide]:
        key = ("sides", int(blocks.max()))
        found: list[FrechetSide] = self.reference(name).keep(key, lambda: sides_without_blocks(real, blocks))
        return found

    def frechet_ahead(self, name: str) -> None:
        """Factor the reference's covariance, and take each block out of it."""
        known, blocks = self.reference(name), self.reference_blocks(name)
        _ = known.frechet.root
        if blocks is not None and known.features is not None and self._out(name, known.features, blocks) is None:
            self._sides(name, known.features, blocks)

    def _out(self, name: str, real: np.ndarray, blocks: np.ndarray) -> downdates.BlocksOut | None:
        known, key = self.reference(name), ("blocks out", int(blocks.max()))
        found: downdates.BlocksOut | None = known.keep(
            key, lambda: downdates.reference_blocks_out(known.frechet, real, blocks)
        )
        return found

    def manifold(self, k: int, comparison: manifold.Comparison) -> manifold.Halved:
        """Precision, recall, density and coverage with `k` neighbours, and what stands for those without each block."""
        return self._manifold.get((k, comparison), lambda: _in_balls(self, k, comparison))

    def value(
        self,
        fact: MetricFact,
        value: float,
        left: np.ndarray,
        how: str,
        interval: Interval | None = None,
        *,
        reference: np.ndarray | None = None,
        remarks: Sequence[str] = (),
        tails: float = 0.0,
        interactions: Interactions | None = None,
        estimator: str = JACKKNIFE,
    ) -> MetricValue:
        """Assemble a value; the interval is the jackknife's unless one is given.

        Args:
            fact: the metric's row of the catalogue.
            value: of all samples.
            left: without each block, float64 [K]; empty where there is no such thing.
            how: the estimator and its settings, in a few words.
            interval: where there is a better one than the jackknife's.
            reference: without each block of the reference, float64 [R]; None or empty where that is not known.
            remarks: what a reader must know of the estimate, a few words each.
            tails: `tail_share` of the samples' influence on the value; a large one is remarked on.
            interactions: what pairs of blocks do to the value, where that is known: the jackknife counts it twice.
            estimator: what the values without each block are.
        """
        said = [how]
        reference = reference if reference is not None and len(reference) >= FEWEST_BLOCKS else None
        if interval is None and self.blocks is None and "no interval" not in how:
            said.append(f"no interval: {self.outputs.n} images are too few for blocks")
        elif interval is None and 0 < len(left) < FEWEST_BLOCKS:
            said.append(f"no interval: {len(left)} blocks, of {FEWEST_BLOCKS} something can be said")
        elif interval is None and len(left):
            twice = 0.0
            if interactions is not None:
                twice = interactions.counted_twice(len(left), None if reference is None else len(reference))
            interval = jackknife(value, left, reference=reference, twice=twice)
            said.append(f"{estimator}, {len(left)} blocks")
            if reference is not None:
                said[-1] += f", {len(reference)} of the reference"
            elif fact.reference != "none":
                said.append("reference sampling not included")
            if interactions is not None:
                said.append(COUNTED_ONCE)
        if interval is not None and interval.high - interval.low <= ROUNDING * abs(value):
            interval = None
            said.append("no interval: no block moves the value, which is not certainty")
        said += remarks
        n = self.outputs.n
        if interval is not None and n >= FEWEST_FOR_TAILS and tails > TAIL_SHARE:
            said.append(
                f"{HEAVY_TAILS}: 1% of the images carry {tails:.0%} of the variance, the interval may be narrow"
            )
        name, judge, method = fact.name, fact.judge, "; ".join(said)
        kept = left if len(left) >= 2 else None
        if interval is None:
            shared = None if kept is None else reference
            return MetricValue(name, float(value), None, None, None, None, n, method, judge, kept, shared)
        return MetricValue(
            name, float(value), interval.low, interval.high, interval.standard_error, interval.corrected,
            n, method, judge, kept, None if kept is None else reference,
        )  # fmt: skip


def _in_balls(cell: Cell, k: int, comparison: manifold.Comparison) -> manifold.Halved:
    name = "inception.features"
    generated, real = cell.array(name), cell.reference_features(name)
    real_balls = cell.reference(name).balls(k)
    blocks = cell.one_block if cell.blocks is None else cell.blocks
    return manifold.precision_recall_halves(
        generated, real, blocks, k, comparison, real_balls, cell.reference_blocks(name)
    )


def _not_finite(array: np.ndarray) -> int:
    """Return how many rows of an array [n, ...] hold a number that is not finite."""
    finite = (np.isfinite(block).reshape(len(block), -1).all(axis=1) for block in row_blocks(array))
    return sum(int((~whole).sum()) for whole in finite)


def _squared_deviations(features: np.ndarray) -> np.ndarray:
    mean = sum(algebra.array(block).sum(axis=0) for block in row_blocks(features)) / len(features)
    parts = (((algebra.array(block) - mean) ** 2).sum(axis=1) for block in row_blocks(features))
    return np.concatenate([algebra.host(part) for part in parts])
