"""What a metric is to the harness: its row of the catalogue and a pure function of judge outputs.

Names and options are checked without importing the functions (nor numpy with them), so that every command can do it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.contracts.plugins import Group
from results.catalog import CATALOG, FACTS
from results.errors import BenchError, one_line, unknown
from results.facts import MetricFact, Option

if TYPE_CHECKING:
    from bench.metrics.cell import Cell
    from bench.metrics.records import MetricValue, PerClass

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A metric, as an entry point of the group `bench.metrics` gives it; the entry point has the metric's name.

    Attributes:
        fact: its row of the catalogue, with the options that it reads.
        measure: `(cell, fact, options)` to the value; `options` has every one of the metric's, defaults included.
            Raises Unavailable where it cannot be computed.
        per_class: `(cell, fact, options)` to values by class, where the metric has them.
        ahead: `(cell, fact, options)`, to compute what the cells of a reference share before the first one's samples
            are there: the cell has a reference and no outputs.
    """

    fact: MetricFact
    measure: Callable[[Cell, MetricFact, Options], MetricValue]
    per_class: Callable[[Cell, MetricFact, Options], Iterator[PerClass]] | None = None
    ahead: Callable[[Cell, MetricFact, Options], None] | None = None

    def settings(self, options: Options) -> dict[str, Any]:
        """Return the metric's own options out of `options`, defaults for the rest."""
        return {option.name: options.get(option.name, option.default) for option in self.fact.options}


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
    options. `where` (as `protocol FILE`) begins every message, followed by the key.
    """
    facts = [_row(name, where and f"{where}: key 'metrics.names': ") for name in metrics]
    known = _by_name([*CATALOG.values(), *facts])
    if not set(options) <= set(known):
        known = _by_name([*CATALOG.values(), *(metric.fact for _, metric in METRICS.load_all())])
    for name, value in options.items():
        if name not in known:
            subject = where and f"{where}: key 'metrics.options': "
            raise BenchError(f"{subject}{unknown('metric option', name, known)}")
        for option in known[name]:
            if not option.accepts(value) and not (value is None and option.default is None):
                raise BenchError(
                    f"{where and f'{where}: '}key 'metrics.options.{name}' must be {option.wanted}, "
                    f"found {one_line(repr(value))}"
                )


def _row(name: str, subject: str) -> MetricFact:
    """Return a metric's row, without its function where it is a built-in one; `subject` begins what is raised."""
    try:
        METRICS.check(name)
        return fact_of(name)
    except BenchError as error:
        raise BenchError(f"{subject}{error}") from error


def _by_name(facts: Iterable[MetricFact]) -> dict[str, list[Option]]:
    found = {PER_CLASS.name: [PER_CLASS]}
    for fact in facts:
        for option in fact.options:
            found.setdefault(option.name, []).append(option)
    return found
