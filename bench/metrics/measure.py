"""All metrics of one cell from its judge outputs: the one entry point of the runner.

The same blocks of samples are left out for every metric, so that values can be compared in pairs and ranked jointly.
A metric that cannot be computed is skipped with its reason; the others stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    "check_metrics",
    "measure",
]


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
    values: list[MetricValue] = []
    skipped: list[SkippedMetric] = []
    by_class: list[PerClass] = []
    for name in metrics:
        metric = find_metric(name)
        settings = metric.settings(options)
        try:
            value = _value(metric, cell, settings)
            if not isinstance(value, MetricValue):
                raise TypeError(f"returned {type(value).__name__}, not a MetricValue")
            if not np.isfinite(value.value):
                raise Unavailable(f"the value is {value.value}; look for broken images among the judge's outputs")
        except (ValueError, np.linalg.LinAlgError) as error:
            skipped.append(SkippedMetric(name, str(error)))
            continue
        except Exception as error:  # anyone's metric may fail in any way; the others and the images stay
            if type(error).__name__ == "AcceleratorError":
                raise  # the device is gone, and with it all that follows: no fault of the metric
            skipped.append(SkippedMetric(name, one_line(f"{type(error).__name__}: {error}")))
            continue
        values.append(value)
        if metric.per_class is not None and labels is not None and options.get(PER_CLASS.name, PER_CLASS.default):
            by_class += metric.per_class(cell, metric.fact, settings)
    return CellMetrics(values, skipped, by_class, cell.kept)


def _value(metric: Metric, cell: Cell, settings: Mapping[str, Any]) -> MetricValue:
    """Return the metric of a cell, from the processor where an accelerator has too little memory for it."""
    try:
        return metric.measure(cell, metric.fact, settings)
    except Exception as error:
        if algebra.device() is None or type(error).__name__ != "OutOfMemoryError":
            raise
    with algebra.on(None):
        return metric.measure(cell, metric.fact, settings)
