"""The evidence that a finished cell keeps of its samples, from the judges' outputs. See `results.evidence`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy.special import log_softmax

from bench.metrics import algebra
from bench.metrics.frechet import Moments, row_blocks
from bench.metrics.inception import split_of_rows
from bench.metrics.registry import find_metric
from protocols import Protocol
from results.evidence import RANK, Evidence, Grid, projection


def evidence_of(
    protocol: Protocol,
    arrays: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray],
    order: np.ndarray | None = None,
) -> Evidence:
    """Return the evidence of judge outputs [N, ...] of a whole cell, `<judge>.<array>` each, under `protocol`.

    `kept`: what the metrics were counted from (`CellMetrics.kept`). Other arguments as `evidence_of_outputs` has them.
    """
    return with_counts(evidence_of_outputs(protocol, arrays, order), kept)


def with_counts(outputs: Evidence, kept: Mapping[str, np.ndarray]) -> Evidence:
    """Return the evidence of `outputs` with what the metrics were counted from, `kept` as `evidence_of` takes it."""
    counted = {name: values for name, values in kept.items() if np.isfinite(values).all()}
    return Evidence(counted | dict(outputs.arrays), outputs.samples)


def evidence_of_outputs(
    protocol: Protocol, arrays: Mapping[str, np.ndarray], order: np.ndarray | None = None
) -> Evidence:
    """Return the evidence of the judges' outputs alone.

    Outputs that are not finite, or of other kinds, leave none. `order`: see `bench.metrics.measure.measure`.
    """
    found: dict[str, np.ndarray] = {}
    samples = len(next(iter(arrays.values()))) if arrays else 0
    features = features_of(protocol)

    def parts_of(name: str) -> dict[str, np.ndarray]:
        values = arrays[name]
        if name == "thumbnails" or not np.issubdtype(values.dtype, np.floating) or not _finite(values):
            return {}
        if values.ndim == 2 and len(values) > 1 and name in features:
            return _sketch_parts(name, values)
        parts = sample_parts(name, values)
        return parts | (_marginals(protocol, values, order) if "named" in parts else {})

    for name, parts in zip(arrays, algebra.spread(parts_of, arrays), strict=True):
        found |= {f"{name}/{part}": array for part, array in parts.items()}
    return Evidence(found, samples)


def features_of(protocol: Protocol) -> set[str]:
    """Return the judge outputs that metrics of the protocol hold against a reference: its features."""
    facts = [find_metric(name).fact for name in protocol.metrics]
    read = [fact for fact in facts if fact.reference != "none"]
    return {fact.array for fact in read} | {f"{judge}.features" for fact in read for judge in fact.judges}


def sample_parts(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is kept of each sample of an output that is a score [n] or logits [n, C], by part; else nothing."""
    if values.ndim == 1:
        with np.errstate(over="ignore"):
            score = np.asarray(values, dtype=np.float16)
        return {"score": score} if np.isfinite(score).all() else {}
    if values.ndim == 2 and name.endswith("logits") and values.shape[1] < np.iinfo(np.int16).max:
        named, certainty = zip(*_classes(values), strict=True)
        return {
            "named": np.concatenate(named).astype(np.int16),
            "certainty": np.concatenate(certainty).astype(np.float16),
        }
    return {}


def _classes(logits: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for block in row_blocks(logits):
        log_p = log_softmax(block, axis=1)
        yield np.argmax(block, axis=1), (np.exp(log_p) * log_p).sum(axis=1)


def score_options(protocol: Protocol) -> dict[str, Any]:
    """Return the splits of the Inception Score as the protocol has them."""
    return find_metric("is").settings(protocol.metric_options)


def splits_of(protocol: Protocol, n: int, order: np.ndarray | None = None) -> np.ndarray | None:
    """Return the split of each of n samples, int64 [n]; None where there are fewer samples than splits."""
    options = score_options(protocol)
    splits = int(options["is_splits"])
    if n < splits:
        return None
    split = split_of_rows(n, splits, bool(options["is_shuffle"]), int(options["is_rng_seed"]))
    if order is None or options["is_shuffle"]:
        return split
    placed = np.empty_like(split)
    placed[order] = split
    return placed


def _marginals(protocol: Protocol, logits: np.ndarray, order: np.ndarray | None) -> dict[str, np.ndarray]:
    split = splits_of(protocol, len(logits), order)
    if split is None:
        return {}
    total = np.zeros((int(split.max()) + 1, logits.shape[1]))
    start = 0
    for block in row_blocks(logits):
        np.add.at(total, split[start : start + len(block)], np.exp(log_softmax(block, axis=1)))
        start += len(block)
    return {"marginals": (total / np.bincount(split)[:, None]).astype(np.float32)}


def project(name: str, features: np.ndarray) -> np.ndarray:
    """Return the projections of features [n, d] of output `name`, float64 [n, 16]."""
    matrix = projection(name, features.shape[1])
    return np.concatenate([block @ matrix for block in row_blocks(features)])


def _sketch_parts(name: str, features: np.ndarray) -> dict[str, np.ndarray]:
    projected = project(name, features)
    grid = Grid.of(projected)
    moments = Moments.of(features, shift=np.asarray(features[0], dtype=np.float64))
    covariance = moments.covariance
    values, vectors = algebra.largest(covariance, min(len(covariance), RANK))
    factor = vectors * np.sqrt(np.clip(values, 0.0, None))
    return {
        "sketch": grid.levels(projected),
        "grid": np.stack(grid).astype(np.float32),
        "mean": moments.mean.astype(np.float32),
        "factor": factor.astype(np.float32),
        "trace": np.array([np.trace(covariance)]),
    }


def _finite(values: np.ndarray) -> bool:
    return all(bool(np.isfinite(block).all()) for block in row_blocks(values))
