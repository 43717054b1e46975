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
from typing import Any, Literal, NamedTuple

import numpy as np

from bench.metrics import algebra
from bench.metrics.frechet import release

TILE = 1024
SPARE = 8  # neighbours kept beyond the k-th, to find radii again when a block is left out

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


class LeaveOneOut(NamedTuple):
    """The figures of all samples, without each block of the generated and without each block of the real ones."""

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
        i, x = mine.rows, np.asarray(features[mine.rows], dtype=np.float64)
        best = np.full((len(x), 0), np.inf)
        index = np.zeros((len(x), 0), dtype=np.int64)
        for other in _tiles(features, centre):
            tile = _squared_distances(mine, other)
            if i == other.rows:
                np.fill_diagonal(tile, np.inf) if isinstance(tile, np.ndarray) else tile.fill_diagonal_(np.inf)
            if tile.shape[1] > kept:
                near, column = algebra.smallest(tile, kept)
            else:
                near, column = algebra.host(tile), np.broadcast_to(np.arange(tile.shape[1]), tile.shape)
            best = np.concatenate([best, near], axis=1)
            index = np.concatenate([index, column + other.rows.start], axis=1)
            if best.shape[1] > kept:
                nearest = np.argpartition(best, kept - 1, axis=1)[:, :kept]
                best, index = np.take_along_axis(best, nearest, axis=1), np.take_along_axis(index, nearest, axis=1)
        exact = np.stack([_exact_squared(x, np.asarray(features[near], np.float64)) for near in index.T], axis=1)
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
    return precision_recall_leave_one_out(generated, real, blocks, k, comparison, real_balls).whole


def precision_recall_leave_one_out(
    generated: np.ndarray,
    real: np.ndarray,
    blocks: np.ndarray,
    k: int = 3,
    comparison: Comparison = "<=",
    real_balls: Balls | None = None,
    real_blocks: np.ndarray | None = None,
) -> LeaveOneOut:
    """Return the figures, and the same without each block of `generated` (int [n], numbers 0..K-1; none if K is 1).

    `real_blocks` (int [m], numbers 0..R-1) gives them without each block of `real` too.
    One pass over the distances: a generated ball grows only if a left-out block holds one of its k nearest, and then to
    a neighbour that was kept. Exact unless more than SPARE of a sample's k + SPARE nearest share one block; its
    furthest kept neighbour then stands in.
    """
    n, m, count = len(generated), len(real), int(blocks.max()) + 1
    inner = real_balls if real_balls is not None else balls(real, k)
    outer = balls(generated, k)
    radius_without = _radii_without(outer, blocks, count)  # [n, K]
    widest = np.maximum(outer.squared_radius, radius_without.max(axis=1))
    real_member = np.zeros(m, dtype=np.int64) if real_blocks is None else real_blocks
    real_count = int(real_member.max()) + 1
    real_radius_without = _radii_without(inner, real_member, real_count)  # [m, R]
    real_widest = np.maximum(inner.squared_radius, real_radius_without.max(axis=1))
    centre = algebra.array(_centre(real))

    around_generated = np.zeros(n, dtype=np.int64)  # real balls around each generated sample
    in_real_ball = np.zeros((m, count), dtype=np.int64)  # generated samples of each block inside each real ball
    covers_real = np.zeros((m, count), dtype=np.int64)  # generated balls of each block around each real sample
    covered_without = np.zeros((m, count), dtype=bool)  # held by a ball that grew when the block was left out
    around_by_block = np.zeros((n, real_count), dtype=np.int64)  # real balls of each block around each generated sample
    around_grown = np.zeros((n, real_count), dtype=np.int64)  # real balls that grew around it without the block
    holds_without = np.zeros((m, real_count), dtype=bool)  # real balls that hold a generated sample once grown
    reached, covering = _Nearest(m), _Nearest(m)
    for x in _tiles(generated, centre):
        i, member = x.rows, blocks[x.rows]
        for y in _tiles(real, centre):
            j = y.rows
            tile = _squared_distances(x, y)
            inside = _within(tile, inner.squared_radius[j], x, y, comparison)
            around_generated[i] += algebra.host(inside.sum(axis=1))
            in_real_ball[j] += algebra.count_by(inside, member, count)
            covering.take(tile, inside, i, j)

            held = _within(tile, outer.squared_radius[i, None], x, y, comparison)
            covers_real[j] += algebra.count_by(held, member, count)
            reached.take(tile, held, i, j)
            if count > 1:
                row, column = algebra.places(_within(tile, widest[i, None], x, y, comparison) & ~held)
                distance = _pair_distances(x, y, row, column)
                grown = _compare(distance[:, None], radius_without[i][row], comparison)
                grown[np.arange(len(row)), member[row]] = False
                pair, block = np.nonzero(grown)
                covered_without[column[pair] + j.start, block] = True
            if real_count > 1:
                own = real_member[j]
                around_by_block[i] += algebra.count_by(inside.T, own, real_count)
                row, column = algebra.places(_within(tile, real_widest[j], x, y, comparison) & ~inside)
                distance = _pair_distances(x, y, row, column)
                grown = _compare(distance[:, None], real_radius_without[j][column], comparison)
                grown[np.arange(len(row)), own[column]] = False
                pair, block = np.nonzero(grown)
                np.add.at(around_grown, (row[pair] + i.start, block), 1)
                holds_without[column[pair] + j.start, block] = True

    whole = _figures(
        (around_generated > 0).mean(),
        covers_real.any(axis=1).mean(),
        around_generated.mean() / k,
        in_real_ball.any(axis=1).mean(),
    )
    left = []
    for g in range(count if count > 1 else 0):
        rest = around_generated[blocks != g]
        others = np.arange(count) != g
        recalled = covers_real[:, others].any(axis=1) | covered_without[:, g]
        covered = in_real_ball[:, others].any(axis=1)
        left.append(_figures((rest > 0).mean(), recalled.mean(), rest.mean() / k, covered.mean()))
    left_real = []
    reaches, holds = (np.asarray(counts.any(axis=1)) for counts in (covers_real, in_real_ball))
    for g in range(real_count if real_count > 1 else 0):
        around = around_generated - around_by_block[:, g] + around_grown[:, g]
        stays = real_member != g
        held_without = holds[stays] | holds_without[stays, g]
        left_real.append(_figures((around > 0).mean(), reaches[stays].mean(), around.mean() / k, held_without.mean()))
    return LeaveOneOut(
        whole, left, left_real, Held(around_generated, outer.squared_radius, reached.index, covering.index)
    )


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


def _within(tile: Any, squared_radius: np.ndarray, x: _Tile, y: _Tile, comparison: Comparison) -> Any:
    """Compare a tile of squared distances [a, b] with radii [b] or [a, 1], settling near ties by difference."""
    there = algebra.array(squared_radius)
    inside = _compare(tile, there, comparison)
    row, column = algebra.places(abs(tile - there) <= 1e-12 * (x.largest + y.largest))
    if len(row):
        radius = np.broadcast_to(squared_radius, tile.shape)[row, column]
        algebra.put(inside, row, column, _compare(_pair_distances(x, y, row, column), radius, comparison))
    return inside


def _radii_without(outer: Balls, blocks: np.ndarray, count: int) -> np.ndarray:
    """Squared k-th neighbour distance of each sample with each block left out, [n, K]."""
    k = outer.k
    radius = np.repeat(outer.squared_radius[:, None], count, axis=1)
    if count == 1:
        return radius
    block_of = blocks[outer.neighbours]
    for position in range(k):
        g = block_of[:, position]
        stays = np.cumsum(block_of != g[:, None], axis=1)
        kth = np.where(stays[:, -1] >= k, np.argmax(stays >= k, axis=1), block_of.shape[1] - 1)
        radius[np.arange(len(g)), g] = outer.squared[np.arange(len(g)), kth]
    return radius
