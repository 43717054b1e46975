"""Precision, recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797) from k-nearest-neighbour balls.

A ball surrounds each sample; its radius is the distance to the k-th neighbour in the sample's own set, itself excluded.

    precision = share of generated inside some real ball         recall   = share of real inside some generated ball
    density   = mean number of real balls around a generated / k  coverage = share of real balls with a generated inside

Distances come in tiles from |x|^2 + |y|^2 - 2 x.y on centred float64 features; wherever that could decide wrongly (a
distance within rounding of a radius, duplicates above all) the pair is computed again by difference. The same pair of
vectors then gives the same bits in every place, so that `<=` and `<` differ exactly on true ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from bench.metrics import algebra, halfsamples
from bench.metrics.frechet import release

TILE = 1024
PAIRS = 1 << 16  # pairs within reach of each other that are held against all splits at once
SPARE = 28  # neighbours kept beyond the k-th: of so many, k are in the same half but for 3 in 100,000

Comparison = Literal["<=", "<"]


class Manifold(NamedTuple):
    """Shares in [0, 1]; density is a count ratio and may exceed 1. `f_score` = 2 p r / (p + r)."""

    precision: float
    recall: float
    f_score: float
    density: float
    coverage: float


class Held(NamedTuple):
    """Who lies in whose ball, sample by sample: what the figures are counted from.

    Attributes:
        around: real balls around each generated sample, int64 [n].
        radius: squared radius of each generated sample's ball, float64 [n].
        reached: the nearest generated sample among those whose ball holds the real sample, -1 for none; int64 [m].
        covering: the nearest generated sample inside the real sample's ball, -1 for none; int64 [m].
    """

    around: np.ndarray
    radius: np.ndarray
    reached: np.ndarray
    covering: np.ndarray


class Halved(NamedTuple):
    """The figures of all samples, and what stands for those without each block: see `halfsamples`.

    Attributes:
        whole: of all samples.
        without: K values that a jackknife finds the share of the generated samples in the error from; none where there
            are no blocks, or halves of no more than k samples.
        without_real: the same of the real ones' share.
        held: who lies in whose ball.
    """

    whole: Manifold
    without: list[Manifold]
    without_real: list[Manifold]
    held: Held


class Balls(NamedTuple):
    """The k-nearest-neighbour balls of a set.

    Attributes:
        squared_radius: squared distance to the k-th neighbour, float64 [n].
        squared: squared distances to the nearest k + SPARE neighbours, ascending, [n, m].
        neighbours: their indices, int64 [n, m].
        k: the k.
    """

    squared_radius: np.ndarray
    squared: np.ndarray
    neighbours: np.ndarray
    k: int


def balls(features: np.ndarray, k: int = 3) -> Balls:
    """Return the balls of `features` [n, d].

    Raises:
        ValueError: n <= k.
    """
    n = len(features)
    if not 1 <= k < n:
        raise ValueError(f"{k} nearest neighbours need at least {k + 1} samples, got {n}")
    kept = min(k + SPARE, n - 1)
    centre = algebra.array(_centre(features))
    squared, neighbours = np.empty((n, kept)), np.empty((n, kept), dtype=np.int64)
    for mine in _tiles(features, centre):
        i, nearest = mine.rows, algebra.Smallest(kept)
        for other in _tiles(features, centre):
            tile = _squared_distances(mine, other)
            if i == other.rows:
                np.fill_diagonal(tile, np.inf) if isinstance(tile, np.ndarray) else tile.fill_diagonal_(np.inf)
            nearest.take(tile, other.rows.start)
        index = nearest.columns
        differ = partial(_distances_to, features, np.asarray(features[i], dtype=np.float64))
        exact = np.stack(algebra.spread(differ, index.T), axis=1)
        order = np.argsort(exact, axis=1, kind="stable")
        squared[i] = np.take_along_axis(exact, order, axis=1)
        neighbours[i] = np.take_along_axis(index, order, axis=1)
    return Balls(squared[:, k - 1].copy(), squared, neighbours, k)


def precision_recall(
    generated: np.ndarray, real: np.ndarray, k: int = 3, comparison: Comparison = "<=", real_balls: Balls | None = None
) -> Manifold:
    """Return the five figures for `generated` [n, d] and `real` [m, d].

    Args:
        generated: generated features.
        real: real features.
        k: neighbourhood size (3 for precision and recall, 5 for density and coverage as published).
        comparison: whether a sample exactly on a ball's surface is inside: `<=` (torch-fidelity, ADM) or `<` (prdc).
        real_balls: `balls(real, k)` if known already.
    """
    blocks = np.zeros(len(generated), dtype=np.int64)
    return precision_recall_halves(generated, real, blocks, k, comparison, real_balls).whole


def precision_recall_halves(
    generated: np.ndarray,
    real: np.ndarray,
    blocks: np.ndarray,
    k: int = 3,
    comparison: Comparison = "<=",
    real_balls: Balls | None = None,
    real_blocks: np.ndarray | None = None,
) -> Halved:
    """Return the figures, and their error by halves of `generated` (int [n], numbers 0..K-1; none if K is 1).

    `real_blocks` (int [m], numbers 0..R-1) halves `real` too; both sides then have the smaller of K and R values. One
    pass over the distances. Of a sample with fewer than k of its k + SPARE nearest in its own half, the furthest of
    them stands in.
    """
    n, m = len(generated), len(real)
    inner = real_balls if real_balls is not None else balls(real, k)
    outer = balls(generated, k)
    halves = _halves(outer, inner, blocks, real_blocks)
    centre = algebra.array(_centre(real))

    around_generated = np.zeros(n, dtype=np.int64)  # real balls around each generated sample
    reached, covering = _Nearest(m), _Nearest(m)
    for x in _tiles(generated, centre):
        for y in _tiles(real, centre):
            i, j = x.rows, y.rows
            tile = _squared_distances(x, y)
            inside = _within(tile, inner.squared_radius[j], x, y, comparison)
            around_generated[i] += algebra.host(inside.sum(axis=1))
            covering.take(tile, inside, i, j)
            reached.take(tile, _within(tile, outer.squared_radius[i, None], x, y, comparison), i, j)
            if halves is not None:
                mine, theirs = algebra.array(halves.own.widest[i, None]), algebra.array(halves.real.widest[j])
                row, column = algebra.places(tile <= algebra.larger(mine, theirs) + _rounding(x, y))
                squared = algebra.at(tile, row, column)
                for start in range(0, len(row), PAIRS):
                    part = slice(start, start + PAIRS)
                    halves.count(x, y, row[part], column[part], squared[part], comparison)

    whole = _figures(
        (around_generated > 0).mean(),
        (reached.index >= 0).mean(),
        around_generated.mean() / k,
        (covering.index >= 0).mean(),
    )
    held = Held(around_generated, outer.squared_radius, reached.index, covering.index)
    if halves is None:
        return Halved(whole, [], [], held)
    own, theirs = halves.differences(k)
    return Halved(whole, _stand_ins(whole, own), [] if theirs is None else _stand_ins(whole, theirs), held)


class _Side:
    """One side's halves.

    Attributes:
        half: of each sample in each split, int [S, n]: 0 or 1, and 2 where it is left out.
        squared_radius: of its ball within its half, [S, n]; -1 where it is left out.
        widest: the largest of them, [n].
    """

    def __init__(self, own: Balls, half: np.ndarray) -> None:
        self.half = half
        if (half == 0).all():  # the whole side in every table
            self.squared_radius = np.repeat(own.squared_radius[None], len(half), axis=0)
        else:
            self.squared_radius = np.stack([_radius(own, split) for split in half])
        self.widest = self.squared_radius.max(axis=0)

    def members(self, count: int) -> np.ndarray:
        """Return who is in which half, float64 [S, count, n]."""
        return np.stack([self.half == which for which in range(count)], axis=1).astype(np.float64)


class _Halves:
    """What the halves of both sides count as pairs come by."""

    def __init__(self, own: _Side, real: _Side, sampled: bool) -> None:
        self.own, self.real, self.sampled = own, real, sampled
        (splits, n), m = own.half.shape, real.half.shape[1]
        self.around = np.zeros((splits, 3, n), dtype=np.int32)  # real balls of each half around a generated sample
        self.inside = np.zeros((splits, 3, m), dtype=np.int32)  # generated samples of each half inside a real ball
        self.covers = np.zeros((splits, 3, m), dtype=np.int32)  # generated balls of each half around a real sample

    def count(
        self, x: _Tile, y: _Tile, row: np.ndarray, column: np.ndarray, squared: np.ndarray, comparison: Comparison
    ) -> None:
        """Count pairs of a tile of generated samples and real ones by their squared distances, [P] each."""
        own, theirs = row + x.rows.start, column + y.rows.start
        radius, real_radius = self.own.squared_radius[:, own], self.real.squared_radius[:, theirs]
        near = np.abs(radius - squared) <= _rounding(x, y)
        near |= np.abs(real_radius - squared) <= _rounding(x, y)
        unsure = np.flatnonzero(near.any(axis=0))
        squared[unsure] = _pair_distances(x, y, row[unsure], column[unsure])
        half_own, half_real = self.own.half[:, own], self.real.half[:, theirs]
        split, pair = np.nonzero(_compare(squared, real_radius, comparison))
        _add(self.around[:, :, x.rows], split, half_real[split, pair], row[pair])
        _add(self.inside[:, :, y.rows], split, half_own[split, pair], column[pair])
        split, pair = np.nonzero(_compare(squared, radius, comparison))
        _add(self.covers[:, :, y.rows], split, half_own[split, pair], column[pair])

    def differences(self, k: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return D_s of the five figures for the generated samples, [5, S], and for the real ones."""
        count = 2 if self.sampled else 1
        own, real = self.own.members(2), self.real.members(count)
        size, real_size = own.sum(axis=2)[:, :, None], real.sum(axis=2)[:, None]
        around = self.around[:, :count].astype(np.float64).transpose(0, 2, 1)
        precision, density = own @ (around > 0) / size, own @ around / size / k
        recall, coverage = (
            (table[:, :2] > 0).astype(np.float64) @ real.transpose(0, 2, 1) / real_size
            for table in (self.covers, self.inside)
        )
        f_score = 2.0 * precision * recall / np.maximum(1e-5, precision + recall)
        figures = np.stack([precision, recall, f_score, density, coverage])  # [5, S, 2, count]
        used = np.sqrt((self.own.half < 2).mean(axis=1))
        first, second = figures.mean(axis=3).transpose(2, 0, 1)
        mine = (first - second) / 2 * used
        if not self.sampled:
            return mine, None
        first, second = figures.mean(axis=2).transpose(2, 0, 1)
        return mine, (first - second) / 2 * np.sqrt((self.real.half < 2).mean(axis=1))


def _radius(own: Balls, half: np.ndarray) -> np.ndarray:
    """Return the squared distance to each sample's k-th neighbour in its own half, [n]; -1 where it is left out."""
    there = np.cumsum(half[own.neighbours] == half[:, None], axis=1, dtype=np.int32) >= own.k
    kth = np.where(there[:, -1], np.argmax(there, axis=1), there.shape[1] - 1)
    return np.where(half == 2, -1.0, own.squared[np.arange(len(half)), kth])


def _halves(outer: Balls, inner: Balls, blocks: np.ndarray, real_blocks: np.ndarray | None) -> _Halves | None:
    """Return the halves of both sides; None where there are no blocks, or halves are too small for k."""
    counts = [int(side.max()) + 1 for side in (blocks, real_blocks) if side is not None]
    number = min(counts) - 1
    if number < 1:
        return None
    which = [np.array([1, 2, 0], dtype=np.int8)[halfsamples.splits(count, number) + 1] for count in counts]
    own = which[0][:, blocks]
    real = np.zeros((number, len(inner.squared)), np.int8) if real_blocks is None else which[1][:, real_blocks]
    for side, own_balls in ((own, outer), (real, inner)):
        if side.any() and min((side == half).sum(axis=1).min() for half in (0, 1)) <= own_balls.k:
            return None
    return _Halves(_Side(outer, own), _Side(inner, real), real_blocks is not None)


def _add(counts: np.ndarray, split: np.ndarray, half: np.ndarray, place: np.ndarray) -> None:
    """Add one to `counts` [S, 3, n] at each place."""
    _, halves, n = counts.shape
    flat = (split * halves + half) * n + place
    counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape).astype(counts.dtype)


def _stand_ins(whole: Manifold, differences: np.ndarray) -> list[Manifold]:
    stands = [halfsamples.stand_ins(value, side) for value, side in zip(whole, differences, strict=True)]
    return [Manifold(*map(float, figures)) for figures in zip(*stands, strict=True)]


class _Nearest:
    """The nearest generated sample of those marked, for each of m real ones, found tile by tile."""

    def __init__(self, m: int) -> None:
        self.index = np.full(m, -1, dtype=np.int64)
        self._squared = np.full(m, np.inf)

    def take(self, tile: Any, marked: Any, rows: slice, columns: slice) -> None:
        """Take in squared distances [a, b] of generated `rows` to real `columns`, where `marked` [a, b]."""
        least, row = algebra.least(tile, marked)
        nearer = least < self._squared[columns]
        self._squared[columns] = np.where(nearer, least, self._squared[columns])
        self.index[columns] = np.where(nearer, row + rows.start, self.index[columns])


def _figures(precision: float, recall: float, density: float, coverage: float) -> Manifold:
    f_score = 2.0 * precision * recall / max(1e-5, precision + recall)
    return Manifold(float(precision), float(recall), float(f_score), float(density), float(coverage))


def _centre(features: np.ndarray) -> np.ndarray:
    """Return a point amid the features: any will do, so a sample of them is enough."""
    stride = max(1, len(features) // 1000)
    return np.asarray(features[::stride], dtype=np.float64).mean(axis=0)


class _Tile(NamedTuple):
    """Some rows of `features`, about the centre where the algebra runs."""

    features: np.ndarray
    rows: slice
    centred: Any
    squares: Any
    """Squared length of each centred row."""
    largest: float
    """Largest squared length of a row as it is."""

    def chosen(self, index: np.ndarray) -> np.ndarray:
        """Return rows of the tile as float64."""
        return np.asarray(self.features[self.rows][index], dtype=np.float64)


def _tiles(features: np.ndarray, centre: Any) -> Iterator[_Tile]:
    for start in range(0, len(features), TILE):
        rows = slice(start, min(start + TILE, len(features)))
        x = algebra.array(features[rows])
        largest, centred = float((x * x).sum(axis=1).max()), x - centre
        yield _Tile(features, rows, centred, (centred * centred).sum(axis=1), largest)
        release(features)


def _squared_distances(x: _Tile, y: _Tile) -> Any:
    squared = x.centred @ y.centred.T
    squared *= -2.0
    squared += x.squares[:, None]
    squared += y.squares
    return squared


def _distances_to(features: np.ndarray, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return _exact_squared(x, np.asarray(features[rows], dtype=np.float64))


def _exact_squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    difference = x - y
    return (difference * difference).sum(axis=-1)


def _pair_distances(x: _Tile, y: _Tile, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return squared distances by difference, always by the processor: the same bits for the same pair of vectors."""
    squared = np.empty(len(row))
    for start in range(0, len(row), TILE):
        part = slice(start, start + TILE)
        squared[part] = _exact_squared(x.chosen(row[part]), y.chosen(column[part]))
    return squared


def _compare(squared: Any, squared_radius: Any, comparison: Comparison) -> Any:
    return squared <= squared_radius if comparison == "<=" else squared < squared_radius


def _rounding(x: _Tile, y: _Tile) -> float:
    """Return what the squared distances of a tile may be off by."""
    return 1e-12 * (x.largest + y.largest)


def _within(tile: Any, squared_radius: np.ndarray, x: _Tile, y: _Tile, comparison: Comparison) -> Any:
    """Compare a tile of squared distances [a, b] with radii [b] or [a, 1], settling near ties by difference."""
    there = algebra.array(squared_radius)
    inside = _compare(tile, there, comparison)
    row, column = algebra.places(abs(tile - there) <= _rounding(x, y))
    if len(row):
        radius = np.broadcast_to(squared_radius, tile.shape)[row, column]
        algebra.put(inside, row, column, _compare(_pair_distances(x, y, row, column), radius, comparison))
    return inside
