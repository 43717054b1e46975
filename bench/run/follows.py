"""Whether a row's stored metrics follow from its evidence, as far as that says.

Means over samples follow exactly, up to the rounding of float16. A Frechet distance lies between two bounds that meet
where the evidence holds the whole covariance (features of up to 48 dimensions); beyond, with covariance F F^T + E,
tr E = t, and s the trace of the reference's covariance off the span of F,

    base - 2 sqrt(t s) <= distance <= base = |m1 - m2|^2 + tr S1 + tr S2 - 2 |F^T L|_nuclear,    S2 = L L^T,

since the fidelity of Gaussians grows with E and by no more than sqrt(t s). A kernel distance is a mean of what is kept
of each sample; precision, recall, density and coverage are counts of it. Of other metrics, and of rows with evidence of
version 1, only the interval is held against the values without each block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from bench.metrics.distances import (
    CMMD,
    FDR6,
    FID,
    FID_CORRECTED,
    FID_INFINITY,
    IS,
    KID,
    KID_SUBSETS,
    PRECISION,
    cmmd_kernel,
    kid_kernel,
    neighbours,
    subset_draws,
)
from bench.metrics.kernel import Kernel
from bench.metrics.records import ReferenceFeatures
from bench.metrics.registry import Metric, find_metric
from bench.metrics.scores import ACCURACY, CLIP
from bench.run.evidence import splits_of
from protocols import Protocol
from results.catalog import CATALOG
from results.errors import BenchError
from results.evidence import SKETCH, Evidence, Grid, projection
from results.statistics import COUNTED_ONCE, HALF_SAMPLES, JACKKNIFE, jackknife

Verdict = Literal["follows", "cannot tell", "contradicted"]
ROUNDED = 2.0**-11
"""Largest relative error of a float16."""
SURE = 6.0
"""Standard deviations of rounding noise that are let through."""
BLOCK_DRIFT = 1.0
"""Standard errors by which the mean of the values without a block may lie off the value, beside its bias."""
EXTRAPOLATED = 4.0
"""Standard errors of a distance that its extrapolation may lie off its corrected value, beside its bias."""
EQUAL = 1e-6
KERNELS: Mapping[Any, Callable[[Mapping[str, Any]], Kernel]] = {KID.measure: kid_kernel, CMMD.measure: cmmd_kernel}
"""The kernel distances, and the kernel of each as its options have it."""


class Finding(NamedTuple):
    """What the evidence says of one metric, or (no metric) of itself."""

    metric: str
    verdict: Verdict
    reason: str


def follow(
    metrics: Sequence[Mapping[str, Any]],
    evidence: Evidence,
    protocol: Protocol,
    references: Mapping[str, ReferenceFeatures],
    labels: np.ndarray | None,
) -> list[Finding]:
    """Return a finding for every stored metric (rows of table `metrics`), and for a sketch that denies its moments."""
    found = [finding for output in evidence.outputs for finding in _moments(output, evidence.parts(output))]
    for row in metrics:
        own = _interval(row) or _of_evidence(row, metrics, evidence, protocol, references, labels)
        found.append((_drift(row) or own) if own.verdict == "cannot tell" else own)
    return found


def _of_evidence(
    row: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    evidence: Evidence,
    protocol: Protocol,
    references: Mapping[str, ReferenceFeatures],
    labels: np.ndarray | None,
) -> Finding:
    name = str(row["metric"])
    try:
        metric = find_metric(name)
    except BenchError:
        return Finding(name, "cannot tell", "the metric is not installed here")
    parts, array = evidence.parts(metric.fact.array), metric.fact.array
    if row["n"] != evidence.samples:
        return Finding(name, "contradicted", f"{row['n']:,} samples, but evidence of {evidence.samples:,}")
    if metric.measure is CLIP.measure and "score" in parts:
        return _mean(name, row["value"], parts["score"])
    if metric.measure is ACCURACY.measure and "named" in parts and labels is not None:
        share = float((parts["named"] == labels).mean())
        return _within(name, row["value"], share - 1e-9, share + 1e-9)
    if metric.measure is IS.measure and "marginals" in parts:
        return _inception_score(row["value"], parts, protocol)
    if metric.measure is FID.measure and "factor" in parts and array in references:
        return _frechet(name, row["value"], parts, references[array])
    if metric.measure in (FID_CORRECTED.measure, FID_INFINITY.measure):
        return _corrected(row, rows, extrapolated=metric.measure is FID_INFINITY.measure)
    options = metric.settings({"num_classes": len(protocol.class_names), **protocol.metric_options})
    if metric.measure is FDR6.measure:
        return _ratios(row, metric, evidence, options, references)
    source = KID.fact if metric.measure is KID_SUBSETS.measure else metric.fact
    counted, real = evidence.parts(source.name), references.get(array)
    whole = bool(source.counted_from) and set(source.counted_from) <= set(counted)
    if whole and real is not None and real.features is not None:
        if metric.measure in KERNELS:
            return _kernel(row, counted, real, KERNELS[metric.measure](options), options.get("cmmd_scale"))
        if metric.measure is KID_SUBSETS.measure:
            return _subsets(row, counted, real, options)
        if metric.measure is PRECISION.measure:
            return _counted(row, counted, len(real.features), neighbours(options)[0])
    return Finding(name, "cannot tell", "the evidence lacks what it is computed from")


def _within(name: str, value: float, low: float, high: float) -> Finding:
    if low <= value <= high:
        return Finding(name, "follows", "")
    said = f"{low:.6g}" if high - low <= 1e-3 * abs(high) else f"{low:.4g} .. {high:.4g}"
    return Finding(name, "contradicted", f"{value:.6g} is stored, the evidence gives {said}")


def _mean(name: str, value: float, scores: np.ndarray) -> Finding:
    known = scores.astype(np.float64)
    spacing = np.spacing(np.abs(scores)).astype(np.float64)
    slack = spacing.mean() / 2
    if known.std() > spacing.mean():  # rounding errors of spread scores do not add up
        slack = min(slack, SURE * float(np.sqrt((spacing**2).mean() / 12 / len(known))))
    slack += 1e-7 * max(1.0, abs(value))
    return _within(name, value, known.mean() - slack, known.mean() + slack)


def _inception_score(value: float, parts: Mapping[str, np.ndarray], protocol: Protocol) -> Finding:
    certainty, q = parts["certainty"].astype(np.float64), parts["marginals"].astype(np.float64)
    split = splits_of(protocol, len(certainty))
    if split is None or int(split.max()) + 1 != len(q):
        return Finding("is", "contradicted", f"evidence of {len(q)} splits, which the protocol does not have")
    mean = np.bincount(split, weights=certainty) / np.bincount(split)
    entropy = np.array([-(row[row > 0] * np.log(row[row > 0])).sum() for row in q])
    score = float(np.exp(mean + entropy).mean())
    slack = score * (ROUNDED * float(np.abs(certainty).mean()) + 1e-5)
    return _within("is", value, score - slack, score + slack)


def _frechet(name: str, value: float, parts: Mapping[str, np.ndarray], reference: ReferenceFeatures) -> Finding:
    found = _frechet_bounds(name, parts, reference)
    return found if isinstance(found, Finding) else _within(name, value, *found)


def _frechet_bounds(
    name: str, parts: Mapping[str, np.ndarray], reference: ReferenceFeatures
) -> tuple[float, float] | Finding:
    """Return between what a Frechet distance lies, or why the evidence is none of one."""
    real, mean, factor = reference.frechet, parts["mean"].astype(np.float64), parts["factor"].astype(np.float64)
    if mean.size != real.mu.size:
        return Finding(name, "contradicted", f"evidence of {mean.size} dimensions, the reference has {real.mu.size}")
    trace, known = float(parts["trace"][0]), float((factor**2).sum())
    rest = trace - known
    if rest < -1e-4 * trace:
        return Finding(name, "contradicted", "the evidence's covariance is larger than its trace")
    traces = trace + float(np.trace(real.sigma))
    nuclear = float(np.linalg.svd(factor.T @ real.root, compute_uv=False).sum())
    base = float(((mean - real.mu) ** 2).sum()) + traces - 2 * nuclear
    slack = 3e-6 * traces
    low = base
    if factor.shape[1] < factor.shape[0]:
        basis = np.linalg.svd(factor, full_matrices=False)[0]
        off = max(0.0, float(np.trace(real.sigma) - np.einsum("ij,jk,ki->", basis.T, real.sigma, basis)))
        low = base - 2 * float(np.sqrt(max(rest, 0.0) * off))
    return low - slack, base + slack


def _corrected(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, extrapolated: bool) -> Finding:
    """Hold a corrected distance against the values without each block of the one that it corrects.

    One that is `extrapolated` is less the bias of the samples alone, as far as a line through random draws shows it.
    """
    name = str(row["metric"])
    plain = next((other for other in rows if other["metric"] == FID.fact.name), None)
    if plain is None or not plain.get("jackknife") or len(plain["jackknife"]) < 2:
        return Finding(name, "cannot tell", f"the row has no {FID.fact.title} that it corrects")
    reference = plain.get("jackknife_reference")
    sides = (np.asarray(plain["jackknife"]), None if not reference else np.asarray(reference))
    made = jackknife(plain["value"], sides[0], reference=None if extrapolated else sides[1])
    wanted = made.corrected or 0.0
    slack = EQUAL * max(abs(plain["value"]), abs(wanted))
    if extrapolated:
        slack += EXTRAPOLATED * (made.standard_error or 0.0) + abs(plain["value"] - wanted)
    return _within(name, row["value"], wanted - slack, wanted + slack)


def _ratios(
    row: Mapping[str, Any],
    metric: Metric,
    evidence: Evidence,
    options: Mapping[str, Any],
    references: Mapping[str, ReferenceFeatures],
) -> Finding:
    """Hold a mean of Frechet distances, each as a multiple of the validation images', against the bounds of each."""
    name, low, high = str(row["metric"]), 0.0, 0.0
    for judge in metric.fact.judges:
        parts = evidence.parts(f"{judge}.features")
        if "factor" not in parts or f"{judge}.features" not in references:
            return Finding(name, "cannot tell", f"the evidence lacks the features of '{judge}'")
        found = _frechet_bounds(name, parts, references[f"{judge}.features"])
        if isinstance(found, Finding):
            return found
        scale = 1 / (len(metric.fact.judges) * options[f"{name}_{judge}"])
        low, high = low + scale * found[0], high + scale * found[1]
    return _within(name, row["value"], low, high)


def _kernel(
    row: Mapping[str, Any],
    parts: Mapping[str, np.ndarray],
    reference: ReferenceFeatures,
    form: Kernel,
    scale: float | None,
) -> Finding:
    """Hold a kernel distance against the mean kernels of its samples; with a `scale` it is CMMD, which is biased."""
    own, cross = parts["own"].astype(np.float64), parts["cross"].astype(np.float64)
    n, biased = len(own), scale is not None
    # The diagonal, which a biased estimate keeps, is zero: CMMD's kernel has 1 taken off.
    inner = own.mean() * ((n - 1) / n if biased else 1.0)
    real = reference.self_mean(form, biased).whole
    slack = 2.0**-22 * (abs(real) + float(np.abs(own).mean()) + 2 * float(np.abs(cross).mean()))
    value, times = real + inner - 2 * cross.mean(), 1.0 if scale is None else scale
    return _within(str(row["metric"]), row["value"], times * (value - slack), times * (value + slack))


def _subsets(
    row: Mapping[str, Any], parts: Mapping[str, np.ndarray], reference: ReferenceFeatures, options: Mapping[str, Any]
) -> Finding:
    """Hold KID over random subsets against KID of all samples, from which it differs by the luck of the draws."""
    own, cross = parts["own"].astype(np.float64), parts["cross"].astype(np.float64)
    whole = reference.self_mean(kid_kernel(options), False).whole + own.mean() - 2 * cross.mean()
    # Twice: the reference is drawn from too, and what pairs add is not in the samples' influence.
    slack = SURE * 2 * float((2 * (own - cross)).std()) / np.sqrt(subset_draws(options))
    return _within(str(row["metric"]), row["value"], whole - slack, whole + slack)


def _counted(row: Mapping[str, Any], parts: Mapping[str, np.ndarray], real: int, k: int) -> Finding:
    """Hold precision, recall, density or coverage against what is kept of each sample and of `real` images."""
    name = str(row["metric"])
    if "holder" in parts:
        if len(parts["holder"]) != real:
            return Finding(name, "contradicted", f"evidence of {len(parts['holder']):,} reference images, not {real:,}")
        value = float((parts["holder"] >= 0).mean())
    elif "around" in parts:
        value = float(parts["around"].mean()) / k
    else:
        value = float((parts["inside"] > 0).mean())
    return _within(name, row["value"], value - 1e-9, value + 1e-9)


def _interval(row: Mapping[str, Any]) -> Finding | None:
    """Return a contradiction between a metric's interval and its values without each block; None where there is none.

    The spacing of the values is all that an interval rests on, so it has to be theirs to the last digits. Where pairs
    of blocks are counted once, the standard error may be less by what they can do at most; the interval has to be its.
    """
    name, value, left = str(row["metric"]), row["value"], row.get("jackknife")
    if row.get("low") is not None and not row["low"] - EQUAL <= value <= row["high"] + EQUAL:
        return Finding(name, "contradicted", f"{value:.6g} lies outside of its own interval")
    if left is None or len(left) < 2 or not any(how in row["method"] for how in (JACKKNIFE, HALF_SAMPLES)):
        return None
    reference = row.get("jackknife_reference")
    sides = (np.asarray(left), None if not reference else np.asarray(reference))
    made = jackknife(value, sides[0], reference=sides[1])
    stored = row.get("standard_error")
    if stored is not None and COUNTED_ONCE in row["method"] and stored < made.standard_error:
        made = jackknife(value, sides[0], reference=sides[1], twice=made.standard_error**2 - stored**2)
    if stored is not None and made.standard_error is not None and not _equal(stored, made.standard_error):
        return Finding(name, "contradicted", "its standard error is not that of its values without each block")
    corrected = row.get("corrected")
    if name == "fid" and not (corrected is None or _equal(corrected, made.corrected or 0.0, abs(value))):
        return Finding(name, "contradicted", "its corrected value is not that of its values without each block")
    if "Wilson" not in row["method"] and row.get("low") is not None and made.low is not None and made.high is not None:
        fact = CATALOG.get(name)
        bounded = fact is not None and fact.lowest == 0.0 and fact.highest == 1.0
        low, high = (max(0.0, made.low), min(1.0, made.high)) if bounded else (made.low, made.high)
        scale = max(abs(value), abs(high - low))
        if not (_equal(row["low"], low, scale) and _equal(row["high"], high, scale)):
            return Finding(name, "contradicted", "its interval is not that of its values without each block")
    return None


def _drift(row: Mapping[str, Any]) -> Finding | None:
    """Return a contradiction where a value is far from its values without each block; None where it is not.

    Their mean lies off it by bias / (blocks - 1). The bias of a distance is positive and at most the distance itself.
    """
    name, value, left = str(row["metric"]), row["value"], row.get("jackknife")
    if left is None or len(left) < 2 or not any(how in row["method"] for how in (JACKKNIFE, HALF_SAMPLES)):
        return None
    reference = row.get("jackknife_reference")
    error = jackknife(
        value, np.asarray(left), reference=None if not reference else np.asarray(reference)
    ).standard_error
    drift, fact = float(np.mean(left)) - value, CATALOG.get(name)
    bias = max(0.0, value) / (len(left) - 1) if fact is not None and fact.better == "lower" else 0.0
    if not error or -BLOCK_DRIFT * error <= drift <= BLOCK_DRIFT * error + bias:
        return None
    return Finding(name, "contradicted", f"{value:.6g} is far from its values without each block")


def _equal(one: float, other: float, scale: float = 0.0) -> bool:
    return abs(one - other) <= EQUAL * max(abs(one), abs(other), scale)


def _moments(output: str, parts: Mapping[str, np.ndarray]) -> list[Finding]:
    """Return a contradiction between a sketch and the mean and covariance beside it."""
    if "sketch" not in parts:
        return []
    grid = Grid(*parts["grid"].astype(np.float64))
    mean, factor = parts["mean"].astype(np.float64), parts["factor"].astype(np.float64)
    matrix = projection(output, mean.size)
    levels = parts["sketch"].astype(np.float64)
    n = len(levels)
    spread = levels.std(axis=0) + 0.3
    drift = np.abs((mean @ matrix - grid.centre) / grid.step - levels.mean(axis=0))
    if (drift > SURE * 0.3 / np.sqrt(n) + 0.02 * spread).any():
        return [Finding("", "contradicted", f"the sketch of '{output}' does not have the mean that is beside it")]
    wanted = ((factor.T @ matrix) ** 2).sum(axis=0) / grid.step**2
    rest = max(0.0, float(parts["trace"][0]) - float((factor**2).sum())) * (matrix**2).sum(axis=0) / grid.step**2
    there = levels.var(axis=0, ddof=1) if n > 1 else np.zeros(SKETCH)
    slack = 0.05 * wanted + 1.0
    if ((there < wanted - slack) | (there > wanted + rest + slack)).any():
        return [Finding("", "contradicted", f"the sketch of '{output}' does not have the covariance that is beside it")]
    return []
