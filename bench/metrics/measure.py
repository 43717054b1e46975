"""All metrics of one cell from its judge outputs: the one entry point of the runner.

The same blocks of samples are left out for every metric, so that values can be compared in pairs and ranked jointly.
A metric that cannot be computed is skipped with its reason; the others stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bench.metrics import algebra
from bench.metrics.cell import Cell, Unavailable
from bench.metrics.records import CellMetrics, JudgeOutputs, MetricValue, PerClass, ReferenceFeatures, SkippedMetric
from bench.metrics.registry import PER_CLASS, Metric, check_metrics, find_metric
from results.errors import BenchError, one_line

__all__ = [
    "CellMetrics",
    "JudgeOutputs",
    "MetricValue",
    "PerClass",
    "ReferenceFeatures",
    "SkippedMetric",
    "ahead",
    "check_metrics",
    "measure",
]

WORTH_A_TRIP = 1000
"""Samples of a class from which an accelerator is sooner done with them than the processor."""


def measure(
    generated: Mapping[str, np.ndarray],
    reference: ReferenceFeatures | Mapping[str, ReferenceFeatures] | None,
    metrics: Sequence[str],
    *,
    labels: np.ndarray | None = None,
    blocks: int = 20,
    options: Mapping[str, Any] | None = None,
    order: np.ndarray | None = None,
) -> CellMetrics:
    """Measure one cell.

    Args:
        generated: judge outputs by name (`JudgeOutputs` or a plain mapping), [N, ...] each.
        reference: the reference of `inception.features`, or references by array name; None for reference-free metrics.
        metrics: metric names, as in the catalog.
        labels: class asked for, int [N]; None if there are none (no strata, no per-class values).
        blocks: number of jackknife blocks; fewer are used if there are fewer samples.
        options: the metrics' options, as `[metrics.options]` of a protocol states them.
        order: the order in which the Inception Score splits samples where it does not shuffle them, int [N]; for images
            whose indices mean nothing. That of the indices by default.

    Returns:
        Values in the order of `metrics`, skipped metrics with reasons, per-class values, and what was counted.

    Raises:
        BenchError: an unknown metric, an unknown option or value of one, or labels of another length.
    """
    options = options or {}
    check_metrics(metrics, options)
    outputs = generated if isinstance(generated, JudgeOutputs) else JudgeOutputs(generated)
    if labels is not None and len(labels) != outputs.n:
        raise BenchError(f"{outputs.n} judged images but {len(labels)} labels; there must be one label per image")
    references = (
        {"inception.features": reference} if isinstance(reference, ReferenceFeatures) else dict(reference or {})
    )
    cell = Cell(outputs, references, labels, blocks, order)
    found = [_Found(metric, metric.settings(options)) for metric in map(find_metric, metrics)]
    by_class = labels is not None and bool(options.get(PER_CLASS.name, PER_CLASS.default))
    algebra.spread(partial(_fill, cell, by_class), found)
    return CellMetrics(
        [one.value for one in found if isinstance(one.value, MetricValue)],
        [one.value for one in found if isinstance(one.value, SkippedMetric)],
        [row for one in found for row in one.by_class],
        cell.kept,
    )


def ahead(
    references: Mapping[str, ReferenceFeatures], metrics: Sequence[str], *, blocks: int, options: Mapping[str, Any]
) -> None:
    """Compute what `measure` needs of the references alone and keep it with them; arguments are those of `measure`.

    What a metric has not ahead, or cannot compute, is left to `measure`, which says why.
    """
    cell = Cell(JudgeOutputs({}), references, None, blocks)

    def prepare(name: str) -> None:
        metric = find_metric(name)
        if metric.ahead is not None:
            with suppress(ValueError, np.linalg.LinAlgError):
                metric.ahead(cell, metric.fact, metric.settings(options))

    algebra.spread(prepare, metrics)


@dataclass
class _Found:
    """What becomes of a metric."""

    metric: Metric
    settings: Mapping[str, Any]
    value: MetricValue | SkippedMetric | None = None
    by_class: Sequence[PerClass] = ()


def _fill(cell: Cell, by_class: bool, found: _Found) -> None:
    """Compute a metric of a cell and, if wanted, its values by class, or why there is none."""
    metric, name = found.metric, found.metric.fact.name
    try:
        value = _value(metric, cell, found.settings)
        if not isinstance(value, MetricValue):
            raise TypeError(f"returned {type(value).__name__}, not a MetricValue")
        if not np.isfinite(value.value):
            raise Unavailable(f"the value is {value.value}; look for broken images among the judge's outputs")
    except (ValueError, np.linalg.LinAlgError) as error:
        found.value = SkippedMetric(name, str(error))
        return
    except Exception as error:  # anyone's metric may fail in any way; the others and the images stay
        if type(error).__name__ == "AcceleratorError":
            raise  # the device is gone, and with it all that follows: no fault of the metric
        found.value = SkippedMetric(name, one_line(f"{type(error).__name__}: {error}"))
        return
    found.value = value
    if by_class and metric.per_class is not None:
        with algebra.on(algebra.device() if cell.largest_class >= WORTH_A_TRIP else None):
            found.by_class = list(metric.per_class(cell, metric.fact, found.settings))


def _value(metric: Metric, cell: Cell, settings: Mapping[str, Any]) -> MetricValue:
    """Return the metric of a cell, from the processor where an accelerator has too little memory for it."""
    try:
        return metric.measure(cell, metric.fact, settings)
    except Exception as error:
        if algebra.device() is None or type(error).__name__ != "OutOfMemoryError":
            raise
    with algebra.on(None):
        return metric.measure(cell, metric.fact, settings)
