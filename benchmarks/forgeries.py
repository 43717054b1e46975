"""Rows of the digits with one metric made better, by hand: in the record alone, and in the evidence as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bench.metrics.records import ReferenceFeatures
from bench.metrics.registry import fact_of
from results.evidence import Evidence, projection

Rows = Sequence[Mapping[str, Any]]


DERIVED = {"fid": ("fid_corrected", "fid_infinity"), "kid": ("kid_subsets",)}
"""Metrics that are held against another, which who forges that one leaves out of the row."""


class Forgery(NamedTuple):
    """A forged row: its metrics and its evidence."""

    rows: Rows
    evidence: Evidence


def half_width(row: Mapping[str, Any]) -> float:
    """Return half of a metric's interval, or 2% of its value where that is more."""
    half = 0.0 if row["high"] is None else (row["high"] - row["low"]) / 2
    return max(half, 0.02 * abs(row["value"]))


def moved(rows: Rows, metric: str, by: float, *, alone: bool = False) -> Rows:
    """Return the rows with a metric moved by `by`: its value `alone`, or its interval and block values too."""
    changed = []
    for row in rows:
        if row["metric"] == metric:
            row = {**row, "value": row["value"] + by}
            for key in () if alone else ("low", "high", "corrected"):
                row[key] = None if row[key] is None else row[key] + by
            for key in () if alone else ("jackknife", "jackknife_reference"):
                row[key] = None if row[key] is None else [value + by for value in row[key]]
        changed.append(row)
    return changed


def forge(
    rows: Rows,
    evidence: Evidence,
    metric: str,
    by: float,
    references: Mapping[str, ReferenceFeatures],
    labels: np.ndarray,
) -> Iterator[tuple[str, Forgery]]:
    """Yield rows whose `metric` is better by `by` (> 0) and follows from evidence that was changed for it, and how.

    Where evidence bounds the value (a share), it is moved as far as it goes.
    """
    fact = fact_of(metric)
    (row,) = (row for row in rows if row["metric"] == metric)
    sign = 1 if fact.better == "higher" else -1
    draws = np.random.Generator(np.random.PCG64(0))
    arrays = dict(evidence.arrays)
    rows = [row for row in rows if row["metric"] not in DERIVED.get(metric, ())]

    def with_part(name: str, values: np.ndarray, value: float) -> Forgery:
        return Forgery(moved(rows, metric, value - row["value"]), evidence._replace(arrays=arrays | {name: values}))

    if metric in ("clip", "pick"):
        name = f"{fact.array}/score"
        scores = (arrays[name].astype(np.float64) + by).astype(np.float16)
        yield "all scores", with_part(name, scores, float(scores.astype(np.float64).mean()))
    elif metric == "is":
        name = f"{fact.array}/certainty"
        factor = np.log1p(by / row["value"])
        yield "all entropies", with_part(name, (arrays[name] + factor).astype(np.float16), row["value"] + by)
    elif metric == "accuracy":
        name, named = f"{fact.array}/named", arrays[f"{fact.array}/named"].copy()
        wrong = draws.permutation(np.flatnonzero(named != labels))[: max(1, round(by * len(labels)))]
        named[wrong] = labels[wrong]
        yield "as many classes", with_part(name, named, float((named == labels).mean()))
    elif metric == "kid":
        for part, share in (("own", 1.0), ("cross", -0.5)):
            name = f"kid/{part}"
            yield f"all of '{part}'", with_part(name, arrays[name] - np.float32(share * by), row["value"] - by)
    elif metric == "precision":
        name, inside = "precision/inside", arrays["precision/inside"].copy()
        inside[draws.permutation(np.flatnonzero(inside == 0))[: max(1, round(by * len(inside)))]] = 1
        yield "as many samples", with_part(name, inside, float(inside.mean()))
    elif metric == "density":
        name, around = "density/around", arrays["density/around"].copy()
        extra = by / row["value"] * around.sum()
        np.add.at(around, draws.integers(0, len(around), round(extra)), 1)
        yield "as many balls", with_part(name, around, row["value"] * around.sum() / arrays[name].sum())
    elif metric in ("recall", "coverage"):
        name, holder = f"{metric}/holder", arrays[f"{metric}/holder"].copy()
        none = draws.permutation(np.flatnonzero(holder < 0))[: max(1, round(by * len(holder)))]
        holder[none] = draws.integers(0, evidence.samples, len(none))
        yield "as many images", with_part(name, holder, float((holder >= 0).mean()))
    elif metric in ("fid", "fd_cross_check"):
        found = _moments_towards(arrays, fact.array, references[fact.array], row["value"] + sign * by)
        changed = evidence._replace(arrays=arrays | found[0])
        yield "moments that the sketch does not show", Forgery(moved(rows, metric, found[1] - row["value"]), changed)


def _moments_towards(
    arrays: Mapping[str, np.ndarray], array: str, reference: ReferenceFeatures, wanted: float
) -> tuple[dict[str, np.ndarray], float]:
    """Return a mean and factor nearer to the reference's, moved only where the sketch's projection does not look.

    So far that the distance is `wanted`, or as near as it gets; and the distance.
    """
    mean, factor = (arrays[f"{array}/{part}"].astype(np.float64) for part in ("mean", "factor"))
    real = reference.frechet
    seen = np.linalg.qr(projection(array, len(mean)))[0]
    hidden = np.eye(len(mean)) - seen @ seen.T
    covariance = factor @ factor.T

    def at(share: float) -> tuple[np.ndarray, np.ndarray, float]:
        moved_mean = mean + share * hidden @ (real.mu - mean)
        moved_covariance = covariance + share * hidden @ (real.sigma - covariance) @ hidden
        values, vectors = np.linalg.eigh(moved_covariance)
        root = vectors * np.sqrt(values.clip(0.0))
        nuclear = np.linalg.svd(root.T @ real.root, compute_uv=False).sum()
        distance = ((moved_mean - real.mu) ** 2).sum() + (root**2).sum() + np.trace(real.sigma) - 2 * nuclear
        return moved_mean, root, float(distance)

    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[2] > wanted else (low, middle)
    moved_mean, root, distance = at(high)
    made = {
        "mean": moved_mean.astype(np.float32),
        "factor": root.astype(np.float32),
        "trace": np.array([(root**2).sum()]),
    }
    return {f"{array}/{part}": values for part, values in made.items()}, distance
