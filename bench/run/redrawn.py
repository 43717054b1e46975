"""Samples drawn again against the reference: what metrics were counted from, held against the features themselves.

Of a sample that is the row's, the features drawn again are its own up to `reach`, the little that a sketch does not
show. Within it, its mean kernel with the reference is known, and so is which balls of the reference it lies in and
which images of the reference its own ball holds.

Its mean kernel with the row's other samples is not, nor is a mean or covariance of all of them. But over pairs of
samples drawn again each of

    k(x_i, x_j) - own_i - own_j + mean(own)                                kernel distances
    e_i.e_j                                                                the mean, with e = x - mean
    (y_i.y_j)^2 - |F'y_i|^2 - |F'y_j|^2 + |F'F|^2                          the covariance F F', with y = e in F's span

has mean zero and a small spread (the degenerate part of Hoeffding's decomposition), so that what is stated of all the
samples together cannot be far from what they are. The first is nearly a combination of the others, which are its
control variates: a tenth of its spread is left.

The row's samples are all there are, drawn without replacement. The stated mean and covariance are theirs, so the last
two, and the control variates, have mean zero over all N^2 pairs, a sample with itself included; over different samples
it is -(mean of the diagonal) / (N - 1), which matters to a row of few samples and is taken off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bench.metrics.distances import PRECISION, neighbours
from bench.metrics.frechet import row_blocks
from bench.metrics.kernel import Kernel
from bench.metrics.records import ReferenceFeatures
from bench.metrics.registry import Metric, find_metric
from bench.run.follows import KERNELS, Finding
from protocols import Protocol
from results.errors import BenchError
from results.evidence import DEVIATIONS, LEVELS, Evidence, Grid

SURE = 12.0
"""Standard errors that the mean over pairs may lie off. It is a mixture of chi-squares: if one of them has all of the
variance, a true row lies further off once in 40,000 times."""
REACHES = ((0.5, 1), (0.0, 2))
"""How far a sample that did not move may lie off, in levels of its sketch, and how many that deny a figure then deny
the row. The sketch does not show half a level; a row of which two samples moved by it unseen, each so near to a ball's
surface that it matters, is not to be expected."""
FEWEST = 16
"""Samples whose pairs tell anything."""
ROUNDED = 1e-5
"""Relative rounding of float32 in squared distances and mean kernels, with room."""


class Redrawn:
    """Samples of a row drawn again, beside its evidence and the reference.

    Attributes:
        evidence: the row's.
        references: features of the reference, by judge's output.
        outputs: what the judges say of the samples drawn again, [n, ...] by name.
        indices: which samples of the row they are, int64 [n].
        size: how far rounding may move a number, in standard deviations over the row's samples.
    """

    def __init__(
        self,
        evidence: Evidence,
        protocol: Protocol,
        references: Mapping[str, ReferenceFeatures],
        outputs: Mapping[str, np.ndarray],
        indices: np.ndarray,
        size: float,
    ) -> None:
        self.evidence, self.references = evidence, references
        self.outputs, self.indices, self.size = outputs, indices, size
        self._options = {"num_classes": len(protocol.class_names), **protocol.metric_options}
        self._metrics = [metric for name in protocol.metrics if (metric := _found(name)) is not None]

    def moved(self) -> np.ndarray:
        """Return whose mean kernel with the reference is another one than the row's, bool [n]."""
        found = np.zeros(len(self.indices), dtype=bool)
        for _, parts, real, drawn, form in self._kernels():
            stored = parts["cross"].astype(np.float64)
            anew = np.sum([form(drawn, block).sum(axis=1) for block in row_blocks(real)], axis=0) / len(real)
            off = np.abs(anew - stored[self.indices])
            found |= off > ROUNDED * np.abs(stored[self.indices]) + self.size * _spread(stored)
        return found

    def denied(self, moved: np.ndarray) -> list[Finding]:
        """Return a contradiction for each metric that the samples which did not move (bool [n]) deny."""
        stays = ~moved
        return [*self._moments(stays), *self._classes(stays), *self._own_terms(stays), *self._balls(stays)]

    def _kernels(self) -> Iterator[tuple[str, dict[str, np.ndarray], np.ndarray, np.ndarray, Kernel]]:
        for metric in self._metrics:
            parts, found = self.evidence.parts(metric.fact.name), self._features(metric)
            if metric.measure in KERNELS and found is not None and {"own", "cross"} <= set(parts):
                yield metric.fact.name, parts, *found, KERNELS[metric.measure](metric.settings(self._options))

    def _features(self, metric: Metric) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the features of the reference and of the samples, float64 of the latter; None where there are none."""
        array = metric.fact.array
        known = self.references.get(array)
        if known is None or known.features is None or array not in self.outputs:
            return None
        drawn = np.asarray(self.outputs[array], dtype=np.float64)
        return None if drawn.ndim != 2 or drawn.shape[1] != known.features.shape[1] else (known.features, drawn)

    def _own_terms(self, stays: np.ndarray) -> Iterator[Finding]:
        for name, parts, _, drawn, form in self._kernels():
            own = parts["own"].astype(np.float64)
            chosen = own[self.indices[stays]]
            pairs = form(drawn[stays], drawn[stays])
            # Numbers that moved by `size` move each mean by about as much.
            slack = self.size * _spread(own) + ROUNDED * float(np.abs(own).mean())
            controls = self._controls(name, drawn[stays])
            if _off(pairs - chosen[:, None] - chosen + own.mean(), slack, controls):
                yield Finding(name, "contradicted", f"{len(chosen)} samples drawn again deny what it is counted from")

    def _controls(self, metric: str, drawn: np.ndarray) -> list[np.ndarray]:
        """Return matrices [n, n] of features [n, d] whose mean over pairs is zero if the stated moments are theirs."""
        parts = self.evidence.parts(find_metric(metric).fact.array)
        if "factor" not in parts:
            return []
        mean, e, y, values = _centred(parts, drawn)
        product, inner = y @ y.T, (np.square(y) * np.square(values)).sum(axis=1)
        along, across = y @ mean, (y * np.square(values)) @ mean
        controls = [
            e @ e.T,
            np.square(product) - inner[:, None] - inner + float((values**4).sum()),
            (along[:, None] + along) * product - across[:, None] - across,
            np.outer(along, along),
        ]
        return [self._balanced(control) for control in controls]

    def _balanced(self, pairs: np.ndarray) -> np.ndarray:
        """Return a matrix [n, n] whose mean over all pairs of the row is zero, so that it is over different samples."""
        return pairs + pairs.diagonal().sum() / max(1, len(pairs) * (self.evidence.samples - 1))

    def _moments(self, stays: np.ndarray) -> Iterator[Finding]:
        for output in self.outputs:
            parts = self.evidence.parts(output)
            if "factor" not in parts:
                continue
            _, e, y, values = _centred(parts, np.asarray(self.outputs[output], dtype=np.float64)[stays])
            inner, powers = (np.square(y) * np.square(values)).sum(axis=1), float((values**4).sum())
            trace = float(parts["trace"][0])
            for what, pairs, slack in (
                ("mean", e @ e.T, self.size**2 * trace),
                ("covariance", (y @ y.T) ** 2 - inner[:, None] - inner + powers, self.size * powers),
            ):
                if _off(self._balanced(pairs), slack + ROUNDED * trace):
                    said = f"{len(e)} samples drawn again deny the {what} stated of '{output}'"
                    yield Finding("", "contradicted", said)

    def _classes(self, stays: np.ndarray) -> Iterator[Finding]:
        for output, values in self.outputs.items():
            named = self.evidence.parts(output).get("named")
            if named is None or values.ndim != 2 or not stays.any():
                continue
            logits, said = np.asarray(values, dtype=np.float64)[stays], named[self.indices[stays]]
            known = (said >= 0) & (said < logits.shape[1])
            stated = logits[np.arange(len(said)), np.where(known, said, 0)]
            wrong = ~known | (logits.max(axis=1) - stated > (0.1 + 4 * self.size) * logits.std())
            if wrong.any():
                samples = f"{int(wrong.sum())} of {len(wrong)} samples drawn again"
                yield Finding("", "contradicted", f"{samples} are of another class than '{output}' is said to name")

    def _balls(self, stays: np.ndarray) -> Iterator[Finding]:
        for metric in self._metrics:
            name, parts = metric.fact.name, self.evidence.parts(metric.fact.name)
            found, sketch = self._features(metric), self.evidence.parts(metric.fact.array)
            wanted = metric.fact.counted_from if metric.measure is PRECISION.measure else ()
            if not wanted or not set(wanted) <= set(parts) or found is None or "grid" not in sketch:
                continue
            real, drawn, indices = found[0], found[1][stays], self.indices[stays]
            k = neighbours(metric.settings(self._options))[0]
            distance = np.concatenate([_distances(drawn, block) for block in row_blocks(real)], axis=1)
            if "radius" in wanted:
                radius = np.sqrt(parts["radius"][indices].clip(0).astype(np.float64))[:, None]
            else:
                radius = np.sqrt(self.references[metric.fact.array].balls(k).squared_radius)[None]
            for levels, fewest in REACHES:
                reach = _reach(sketch, drawn.shape[1], self.size, levels)
                if "holder" in wanted:
                    wrong = _wrong_holders(parts["holder"], indices, distance, radius, reach)
                else:
                    least = (distance < radius * (1 - ROUNDED) - reach).sum(axis=1)
                    most = (distance <= radius * (1 + ROUNDED) + reach).sum(axis=1)
                    if "inside" in wanted:
                        least, most = np.minimum(least, 1), np.minimum(most, 1)
                    said = parts[wanted[0]][indices]
                    wrong = (said < least) | (said > most)
                if "radius" in wanted and len(drawn) > k:  # the nearest of all are no further than those of these
                    wrong |= radius[:, 0] > np.sort(_distances(drawn, drawn), axis=1)[:, k] * (1 + ROUNDED) + 2 * reach
                if wrong.sum() >= fewest:
                    samples = f"{int(wrong.sum())} of {len(wrong)} samples drawn again"
                    yield Finding(name, "contradicted", f"{samples} deny what it is counted from")
                    break


def _centred(
    parts: Mapping[str, np.ndarray], drawn: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return features [n, d] about the stated mean, and them and the mean in the span of the covariance's factor.

    Mean [r], features [n, d], the same in the span [n, r], and the factor's singular values [r].
    """
    mean = parts["mean"].astype(np.float64)
    basis, values, _ = np.linalg.svd(parts["factor"].astype(np.float64), full_matrices=False)
    e = drawn - mean
    return mean @ basis, e, e @ basis, values


def _off(pairs: np.ndarray, slack: float, controls: Sequence[np.ndarray] = ()) -> bool:
    """Tell whether the mean over pairs [n, n] of different samples lies off zero by more than chance and `slack`.

    `controls` [n, n] have mean zero: what they explain of the pairs is taken off.
    """
    if len(pairs) < FEWEST:
        return False
    above = np.triu_indices(len(pairs), 1)
    left = pairs[above]
    columns = np.stack([np.ones(len(left)), *(control[above] for control in controls)], axis=1)
    scale = np.abs(columns).max(axis=0).clip(1e-300)
    found = np.linalg.lstsq(columns / scale, left, rcond=None)[0]
    rest = left - columns / scale @ found
    return bool(abs(found[0]) > SURE * rest.std() / np.sqrt(len(left)) + slack)


def _wrong_holders(
    holder: np.ndarray, indices: np.ndarray, distance: np.ndarray, radius: np.ndarray, reach: float
) -> np.ndarray:
    """Return which samples, bool [n], are said to cover a reference image that they do not, or cover one said to have
    none.

    Args:
        holder: the sample that covers each reference image, int [M], or -1.
        indices: of the samples, int [n].
        distance: of the samples and the reference images, [n, M].
        radius: within which one covers the other, [n, 1] or [1, M].
        reach: how far off the samples may be.
    """
    if len(holder) != distance.shape[1]:
        return np.ones(len(indices), dtype=bool)
    claimed = holder[None] == indices[:, None]
    too_far = claimed & (distance > radius * (1 + ROUNDED) + reach)
    passed_over = (holder < 0)[None] & (distance < radius * (1 - ROUNDED) - reach)
    wrong: np.ndarray = (too_far | passed_over).any(axis=1)
    return wrong


def _reach(sketch: Mapping[str, np.ndarray], width: int, size: float, levels: float) -> float:
    """Return how far the features of a sample may lie off whose numbers move by `levels` of its sketch and by `size`.

    A projection spreads a difference evenly, so each of the 16 numbers moves by about |difference| / sqrt(width). All
    of them stay within half a level and the tolerance only if that is less than about twice as much: at twice as much
    the chance is below one in a million.
    """
    step = Grid(*sketch["grid"].astype(np.float64)).step
    return float(2 * (levels + size * LEVELS / DEVIATIONS) * np.sqrt(width * np.square(step).mean()))


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squared = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2.0 * (x @ y.T)
    distances: np.ndarray = np.sqrt(squared.clip(0.0, None))
    return distances


def _spread(values: np.ndarray) -> float:
    """Return a standard deviation that a few outliers do not widen."""
    low, high = np.percentile(values, [15.87, 84.13])
    return float(high - low) / 2


def _found(name: str) -> Metric | None:
    try:
        return find_metric(name)
    except BenchError:
        return None
