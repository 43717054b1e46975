"""Inception Score: exp of the mean divergence of an image's class probabilities from their mean (arXiv 1606.03498).

With p = soft-max(logits) and q = mean p over a split,  mean KL(p || q) = mean sum p log p - sum q log q,  so a split
needs only two sums, and leaving a block of samples out of it only a subtraction.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, xlogy

from bench.metrics.frechet import row_blocks


class InceptionScore(NamedTuple):
    """Mean and population standard deviation over splits (divisor: number of splits)."""

    mean: float
    std: float


class _Sums(NamedTuple):
    """Sums over the samples of each group: `size` [G], `p` [G, C], `p_log_p` [G]."""

    size: np.ndarray
    p: np.ndarray
    p_log_p: np.ndarray

    def scores(self) -> np.ndarray:
        q = self.p / self.size[..., None]
        return np.exp(self.p_log_p / self.size - xlogy(q, q).sum(axis=-1))


def _sums(logits: np.ndarray, group: np.ndarray, groups: int) -> _Sums:
    p_sum = np.zeros((groups, logits.shape[1]))
    p_log_p = np.zeros(groups)
    start = 0
    for block in row_blocks(logits):
        member = group[start : start + len(block)]
        log_p = log_softmax(block, axis=1)
        p = np.exp(log_p)
        order = np.argsort(member, kind="stable")
        present, first = np.unique(member[order], return_index=True)
        p_sum[present] += np.add.reduceat(p[order], first, axis=0)
        p_log_p += np.bincount(member, weights=(p * log_p).sum(axis=1), minlength=groups)
        start += len(block)
    return _Sums(np.bincount(group, minlength=groups).astype(np.float64), p_sum, p_log_p)


def split_of_rows(n: int, splits: int, shuffle: bool = True, rng_seed: int = 2020) -> np.ndarray:
    """Return the split of each of n rows, int [n], as torch-fidelity makes it.

    Rows are permuted by numpy's RandomState(rng_seed) if `shuffle`; split i then holds positions i n // splits up to
    (i + 1) n // splits.
    """
    edges = np.arange(1, splits) * n // splits
    split = np.empty(n, dtype=np.int64)
    order = np.random.RandomState(rng_seed).permutation(n) if shuffle else np.arange(n)
    split[order] = np.searchsorted(edges, np.arange(n), side="right")
    return split


def order_of_content(keys: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Return an order of samples, int64 [n], that depends on what they are and not on where they lie.

    Classes take turns (rank within the class, then class), as in a run with balanced labels: consecutive splits then
    hold every class. Within a class, or without labels, the order is that of `keys`.

    Args:
        keys: a digest of each image, uint64 [n].
        labels: class of each, int [n], or None.
    """
    n = len(keys)
    label = np.zeros(n, dtype=np.int64) if labels is None else np.asarray(labels)
    by_class = np.lexsort((keys, label))
    sizes = np.unique(label, return_counts=True)[1]
    rank = np.empty(n, dtype=np.int64)
    rank[by_class] = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.lexsort((label, rank))


def inception_score(logits: np.ndarray, splits: int = 10, shuffle: bool = True, rng_seed: int = 2020) -> InceptionScore:
    """Return torch-fidelity's Inception Score of `logits` [n, C] (unbiased logits: the last layer without its bias).

    Raises:
        ValueError: fewer samples than splits.
    """
    n = len(logits)
    if n < splits or splits < 1:
        raise ValueError(f"{splits} splits need at least {splits} samples, got {n}")
    scores = _sums(logits, split_of_rows(n, splits, shuffle, rng_seed), splits).scores()
    return InceptionScore(float(scores.mean()), float(scores.std()))


def inception_score_by_chunk(logits: np.ndarray, chunk_size: int = 5000) -> InceptionScore:
    """Return the ADM evaluator's score: consecutive chunks, no shuffle, a short last chunk weighs like a full one.

    Too low on class-sorted files, where a chunk holds few classes.
    """
    chunk = np.arange(len(logits)) // chunk_size
    scores = _sums(logits, chunk, int(chunk[-1]) + 1).scores()
    return InceptionScore(float(scores.mean()), float(scores.std()))


def inception_score_per_class(logits: np.ndarray, labels: np.ndarray) -> dict[int, float | None]:
    """Return each class's score against its own mean prediction; None below two samples.

    A measure of variety inside a class, not comparable with the score of a whole set.
    """
    classes, group, count = np.unique(labels, return_inverse=True, return_counts=True)
    scores = _sums(logits, group, len(classes)).scores()
    return {int(c): float(s) if n >= 2 else None for c, s, n in zip(classes, scores, count, strict=True)}


def inception_leave_one_out(
    logits: np.ndarray,
    blocks: np.ndarray,
    splits: int = 10,
    shuffle: bool = True,
    rng_seed: int = 2020,
    strata: np.ndarray | None = None,
) -> tuple[InceptionScore, np.ndarray]:
    """Return the score and the scores without each block (int [n], numbers 0..K-1), float64 [K].

    Every sample keeps its split: drawing splits anew for each left-out block would add the permutation's noise K times.
    `strata` (class asked for, int [n]): a class keeps its share of every split, for the plan fixes it; were it to lose
    what the block holds, a score that is mostly the balance of the classes would seem to vary several times too much.
    """
    n = len(logits)
    if n < splits or splits < 1:
        raise ValueError(f"{splits} splits need at least {splits} samples, got {n}")
    count = int(blocks.max()) + 1
    split = split_of_rows(n, splits, shuffle, rng_seed)
    cells = _sums(logits, split * count + blocks, splits * count)
    lost = cells.size.reshape(splits, count)
    if (lost == lost.sum(axis=1, keepdims=True)).any():
        raise ValueError(f"{n} samples are too few for {splits} splits and {count} blocks")
    whole = _Sums(
        lost.sum(axis=1),
        cells.p.reshape(splits, count, -1).sum(axis=1),
        cells.p_log_p.reshape(splits, count).sum(axis=1),
    )
    scores = whole.scores()
    classes = np.zeros(n, dtype=np.int64) if strata is None else strata
    weights, emptied = _kept_shares(split, blocks, classes)
    size, p, p_log_p = (np.zeros((splits, count, *shape)) for shape in ((), (logits.shape[1],), ()))
    start = 0
    for block in row_blocks(logits):
        log_p = log_softmax(block, axis=1)
        probability = np.exp(log_p)
        negative_entropy = (probability * log_p).sum(axis=1)
        kept = weights[start : start + len(block)]
        member = split[start : start + len(block)]
        for part in np.unique(member):
            rows = member == part
            size[part] += kept[rows].sum(axis=0)
            p[part] += kept[rows].T @ probability[rows]
            p_log_p[part] += kept[rows].T @ negative_entropy[rows]
        start += len(block)
    # A class that the block takes out of a split as a whole is known from the other splits.
    for label, k in sorted(set(zip(classes[emptied].tolist(), blocks[emptied].tolist(), strict=True))):
        others = np.flatnonzero((classes == label) & (blocks != k))
        if len(others):
            log_p = log_softmax(np.asarray(logits[others], dtype=np.float64), axis=1)
            gone = emptied[(classes[emptied] == label) & (blocks[emptied] == k)]
            times = np.bincount(split[gone], minlength=splits)
            size[:, k] += times
            p[:, k] += np.outer(times, np.exp(log_p).mean(axis=0))
            p_log_p[:, k] += times * (np.exp(log_p) * log_p).sum(axis=1).mean()
    return InceptionScore(float(scores.mean()), float(scores.std())), _Sums(size, p, p_log_p).scores().mean(axis=0)


def _kept_shares(split: np.ndarray, blocks: np.ndarray, strata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of each sample without each block, [n, K]: what is left of its split's class shares the loss.

    Zero for the block's own samples. Also the indices of samples whose split has none left of their class.
    """
    count = int(blocks.max()) + 1
    _, cell = np.unique(np.stack([split, strata]), axis=1, return_inverse=True)
    lost = np.zeros((int(cell.max()) + 1, count))
    np.add.at(lost, (cell, blocks), 1.0)
    size = lost.sum(axis=1, keepdims=True)
    weights: np.ndarray = (size / np.maximum(size - lost, 1.0))[cell]
    weights[np.arange(len(blocks)), blocks] = 0.0
    return weights, np.flatnonzero(lost[cell, blocks] == size[cell, 0])
