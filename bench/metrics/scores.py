"""Metrics that are means over images: scores of text judges, and agreement with the class asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.metrics.cell import Cell, Unavailable
from bench.metrics.frechet import row_blocks
from bench.metrics.records import MetricValue, PerClass
from bench.metrics.registry import Metric, Options
from results.catalog import CATALOG
from results.facts import MetricFact
from results.statistics import FEWEST_BLOCKS, mean_interval, wilson


def _mean(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    scores = np.asarray(cell.array(fact.array), dtype=np.float64)
    interval = mean_interval(scores, cell.labels)
    how = "mean; normal interval" + ("" if cell.labels is None else " within classes")
    if len(scores) < FEWEST_BLOCKS:
        how = f"mean; no interval: {len(scores)} images, of {FEWEST_BLOCKS} something can be said"
        return cell.value(fact, interval.value, np.empty(0), how)
    return cell.value(fact, interval.value, _means_without(scores, cell.blocks), how, interval)


def _accuracy(cell: Cell, fact: MetricFact, options: Options) -> MetricValue:
    agreement = _agreement(cell, fact, options)
    interval = wilson(float(agreement.sum()), len(agreement))
    stratified = mean_interval(agreement, cell.labels)
    interval = interval._replace(standard_error=stratified.standard_error)
    return cell.value(fact, interval.value, _means_without(agreement, cell.blocks), "share; Wilson interval", interval)


def _agreement(cell: Cell, fact: MetricFact, options: Options) -> np.ndarray:
    asked, logits = cell.asked, cell.array(fact.array)
    classes = options["num_classes"] or int(np.max(asked)) + 1
    if logits.shape[1] != classes:
        raise Unavailable(f"the judge has {logits.shape[1]} classes, the labels {classes}, so they cannot be compared")
    named = np.concatenate([np.argmax(block, axis=1) for block in row_blocks(logits)])
    return (named == asked).astype(np.float64)


def _means_without(values: np.ndarray, blocks: np.ndarray | None) -> np.ndarray:
    if blocks is None:
        return np.empty(0)
    rest = len(values) - np.bincount(blocks)
    return (values.sum() - np.bincount(blocks, weights=values)) / rest


def _score_by_class(cell: Cell, fact: MetricFact, options: Options) -> Iterator[PerClass]:
    return _by_class(cell, fact, np.asarray(cell.array(fact.array), dtype=np.float64))


def _agreement_by_class(cell: Cell, fact: MetricFact, options: Options) -> Iterator[PerClass]:
    return _by_class(cell, fact, _agreement(cell, fact, options))


def _by_class(cell: Cell, fact: MetricFact, values: np.ndarray) -> Iterator[PerClass]:
    if cell.labels is None:
        return
    classes, member, size = np.unique(cell.labels, return_inverse=True, return_counts=True)
    means = np.bincount(member, weights=values) / size
    for label, mean, n in zip(classes, means, size, strict=True):
        yield PerClass(int(label), fact.name, float(mean), int(n))


CLIP = Metric(CATALOG["clip"], _mean, per_class=_score_by_class)
CLIP_L14 = Metric(CATALOG["clip_l14"], _mean, per_class=_score_by_class)
PICK = Metric(CATALOG["pick"], _mean, per_class=_score_by_class)
IMAGE_REWARD = Metric(CATALOG["image_reward"], _mean, per_class=_score_by_class)
HPSV2 = Metric(CATALOG["hpsv2"], _mean, per_class=_score_by_class)
AESTHETIC = Metric(CATALOG["aesthetic"], _mean, per_class=_score_by_class)
ACCURACY = Metric(CATALOG["accuracy"], _accuracy, per_class=_agreement_by_class)
TOP1 = Metric(CATALOG["top1"], _accuracy, per_class=_agreement_by_class)
