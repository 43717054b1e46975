"""What a metric is to the harness: its row of the catalogue, a pure function of judge outputs, and its options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.contracts.plugins import Group
from bench.metrics.cell import Cell
from bench.metrics.records import MetricValue, PerClass
from results.catalog import CATALOG, FACTS, MetricFact
from results.errors import BenchError, one_line, unknown

Options = Mapping[str, Any]
WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


@dataclass(frozen=True)
class Option:
    """One option of metrics, as `[metrics.options]` of a protocol states it.

    Attributes:
        name: its key; metrics that share a setting share the option.
        kind: `bool`, `int`, `float` (takes whole numbers too) or `str`.
        default: used where the protocol does not say; None where the metric finds out for itself.
        meaning: what it sets, in a few words.
        low: the least value.
        above: a bound that values must exceed.
        choices: the texts that are possible; empty for any.
    """

    name: str
    kind: type
    default: bool | int | float | str | None
    meaning: str
    low: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def wanted(self) -> str:
        """What values may be, in words."""
        if self.choices:
            return " or ".join(repr(choice) for choice in self.choices)
        low = "" if self.low is None else f" of at least {self.low:g}"
        return WORDS[self.kind] + low + ("" if self.above is None else f" above {self.above:g}")

    def accepts(self, value: Any) -> bool:
        """Tell whether `value` is of the kind and in the range."""
        if self.kind is str:
            return isinstance(value, str) and (not self.choices or value in self.choices)
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if not isinstance(value, (int, float) if self.kind is float else int) or not math.isfinite(value):
            return False
        return (self.low is None or value >= self.low) and (self.above is None or value > self.above)


@dataclass(frozen=True)
class Metric:
    """A metric, as an entry point of the group `bench.metrics` gives it; the entry point has the metric's name.

    Attributes:
        fact: its row of the catalogue.
        measure: `(cell, fact, options)` to the value; `options` has every one of the metric's, defaults included.
            Raises Unavailable where it cannot be computed.
        options: the options it reads.
        per_class: `(cell, fact, options)` to values by class, where the metric has them.
    """

    fact: MetricFact
    measure: Callable[[Cell, MetricFact, Options], MetricValue]
    options: tuple[Option, ...] = ()
    per_class: Callable[[Cell, MetricFact, Options], Iterator[PerClass]] | None = None

    def settings(self, options: Options) -> dict[str, Any]:
        """Return the metric's own options out of `options`, defaults for the rest."""
        return {option.name: options.get(option.name, option.default) for option in self.options}


METRICS: Group[Metric] = Group(
    "bench.metrics", "metric", "a bench.metrics.registry.Metric", lambda found: isinstance(found, Metric)
)
PER_CLASS = Option("per_class", bool, True, "whether values by class are kept")
"""The one option that belongs to no metric."""


def find_metric(name: str) -> Metric:
    """Return the metric called `name`. Raises BenchError for one that is unknown or broken."""
    metric = METRICS.load(name)
    if metric.fact.name != name:
        raise BenchError(f"metric '{name}': its row of the catalogue is called '{one_line(metric.fact.name)}'")
    if metric.fact.name in FACTS and name not in CATALOG:
        raise BenchError(f"metric '{name}': the name is that of a {FACTS[name].kind}; give it another")
    return metric


def fact_of(name: str) -> MetricFact:
    """Return the catalogue's row of a metric, a plug-in's too. Raises BenchError for an unknown metric."""
    return CATALOG[name] if name in CATALOG else find_metric(name).fact


def check_metrics(metrics: Iterable[str], options: Options, where: str = "") -> None:
    """Raise BenchError for the first metric or option that is unknown, and for an option of another kind or range.

    An option is known if any installed metric has it, asked for or not: a protocol that extends another keeps its
    options. `where` (as `protocol FILE`) begins the message about an option, followed by its key.
    """
    asked = [find_metric(name) for name in metrics]
    known: dict[str, list[Option]] = {PER_CLASS.name: [PER_CLASS]}
    for metric in asked:
        for option in metric.options:
            known.setdefault(option.name, []).append(option)
    if not set(options) <= set(known):
        for _, metric in METRICS.load_all():
            for option in metric.options:
                known.setdefault(option.name, []).append(option)
    of = f" in {where}" if where else ""
    for name, value in options.items():
        if name not in known:
            raise unknown(f"metric option{of}", name, known)
        for option in known[name]:
            if not option.accepts(value) and not (value is None and option.default is None):
                found = one_line(repr(value))
                raise BenchError(
                    f"{where}{where and ': '}key 'metrics.options.{name}' must be {option.wanted}, found {found}"
                )
