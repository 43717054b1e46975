"""A measured cell as the leaderboard shows it: its values with their intervals, its ranks and its costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from results.catalog import FACTS, MMHM_METRICS
from results.errors import StoreError
from results.facts import MetricFact

COMPOSITE = "mmhm"
"""The composite that orders rows where it is known."""


@dataclass(frozen=True)
class Value:
    """A metric of one row: value, 95% interval, bias-corrected value where there is one, and 95% rank set."""

    value: float | None
    low: float | None = None
    high: float | None = None
    corrected: float | None = None
    standard_error: float | None = None
    n: int = 0
    rank_low: float | None = None
    rank_high: float | None = None
    may_be_best: bool | None = None
    """Whether the row is one of those among which the best of its ranking is with 95%; None where nothing is known."""
    method: str = ""
    judge: str = ""
    judge_digest: str = ""
    trained_on: bool = False
    """Whether the model was trained on the features that the metric reads: it then measures what was trained."""
    jackknife: tuple[float, ...] | None = field(default=None, repr=False)
    """The value without each block, where it was asked for and there is one."""
    jackknife_reference: tuple[float, ...] | None = field(default=None, repr=False)
    """The value without each block of the reference, likewise."""

    @property
    def heavy_tails(self) -> bool:
        """Whether few images carry so much of the variance that the interval may be too narrow."""
        from results.statistics import HEAVY_TAILS

        return HEAVY_TAILS in self.method

    @property
    def rough(self) -> bool:
        """Whether there are so few images per dimension that the bias is removed only roughly."""
        from results.statistics import ROUGH

        return f"{ROUGH}:" in self.method


@dataclass(frozen=True)
class Row:
    """One measured cell as the leaderboard shows it."""

    cell: Mapping[str, Any]
    metrics: Mapping[str, Value]
    rank: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, MetricFact] = field(default_factory=lambda: FACTS, repr=False, compare=False)

    def fact(self, metric: str) -> MetricFact:
        """Return what a metric is. Raises StoreError where the database does not say."""
        if metric not in self.facts:
            raise StoreError(
                f"metric '{metric}' has values but no entry in metric_facts; run 'bench reindex' where its plug-in is "
                "installed"
            )
        return self.facts[metric]

    def measured(self, metric: str) -> Value | None:
        """Return a metric's or the composite's value with its intervals; None where it was not measured."""
        if metric != COMPOSITE:
            return self.metrics.get(metric)
        if self.rank.get("mmhm") is None:
            return None
        rank = self.rank
        return Value(
            rank["mmhm"],
            rank.get("low"),
            rank.get("high"),
            n=self.cell.get("num_samples", 0),
            rank_low=rank.get("rank_low"),
            rank_high=rank.get("rank_high"),
            may_be_best=rank.get("may_be_best"),
            method="delete-block jackknife of the score",
            trained_on=any(self.metrics[name].trained_on for name in MMHM_METRICS if name in self.metrics),
            jackknife=rank.get("jackknife"),
            jackknife_reference=rank.get("jackknife_reference"),
        )

    def may_be_best(self, metric: str) -> bool:
        """Tell whether the row may be the best of its ranking by a metric that it has; unless it is known not to be."""
        value = self.measured(metric)
        return value is not None and value.may_be_best is not False

    def value(self, metric: str) -> float | None:
        """Return a metric's value, a composite, or a cost of the cell (`nfe`, `images_per_second`); None without."""
        if metric in self.metrics:
            return self.metrics[metric].value
        fact = FACTS.get(metric)
        if fact is None or fact.kind == "metric":
            return None
        found = (self.rank if fact.kind == "composite" else self.cell).get(fact.array)
        return float(found) if isinstance(found, int | float) else None

    @property
    def pixels(self) -> Mapping[str, Any] | None:
        """What the images look like: counts and `remarks`; None for rows of older versions."""
        found: Mapping[str, Any] | None = self.cell.get("pixels")
        return found

    @property
    def remarks(self) -> list[str]:
        """What about the images looks like a mistake, one line each."""
        return list((self.pixels or {}).get("remarks", []))

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The feature spaces that its model was trained on, as the card says."""
        return tuple(self.cell.get("trained_on") or ())

    @property
    def evaluations(self) -> float | None:
        """Network evaluations per image, those of a guide network included; None where they were not counted."""
        nfe = self.cell["nfe"]
        return None if nfe is None else nfe + (self.cell["guide_nfe"] or 0.0)

    @property
    def seconds(self) -> float | None:
        """Seconds of network and decoder per image, without the first batch where the cell has more than one."""
        rate = self.cell["images_per_second"]
        return 1.0 / rate if rate else None

    @property
    def bottleneck(self) -> str | None:
        """The metric with the smallest normalised value, which decides MMHM almost alone."""
        utilities = self.rank.get("utilities")
        return min(utilities, key=utilities.__getitem__) if utilities else None
