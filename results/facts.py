"""What is known of a number by which rows are shown and sorted, and of the options that a metric reads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

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


LAST = 1000
"""The place of a metric that says nothing about its own."""


@dataclass(frozen=True, kw_only=True)
class MetricFact:
    """Facts about one number that rows can be shown and sorted by.

    Attributes:
        name: name in protocols, tables, options and the database.
        title: name for people.
        short: name for headings; the title where there is no shorter one.
        better: whether `lower` or `higher` values are better.
        definition: one sentence, with the source.
        judge: the judge whose output is read, by its name in protocols; several with ", " between them; empty for
            composites and costs.
        array: a metric's judge output, as named in `JudgeOutputs`; a composite's column of table `ranks`; a cost's
            column of table `cells`.
        reference: what it needs of the reference: nothing, its `statistics` (mean and covariance), or its `features`.
        unit: unit of the value; empty for a pure number.
        digits: significant digits shown where no interval says how many are known.
        lowest: smallest possible value; None where there is none.
        highest: largest possible value; None where there is none.
        place: position in tables, smallest first; equal places are in alphabetical order.
        summary: whether the leaderboard of a terminal has a column for it.
        mmhm: its column in tables of the fair benchmark, which MMHM is computed from; empty for all but four metrics.
        aliases: other names of that column that the fair benchmark's script accepts.
        options: the options that the metric reads.
        counted_from: the parts of a cell's evidence, `<name>/<part>`, that the metric is counted from; empty where it
            has none of its own.
        kind: `metric` of a cell, `composite` over the rows of a ranking, or `cost` of a cell.
    """

    name: str
    title: str
    better: Literal["lower", "higher"]
    definition: str
    judge: str = ""
    array: str = ""
    reference: Literal["none", "statistics", "features"] = "none"
    short: str = ""
    unit: str = ""
    digits: int = 4
    lowest: float | None = None
    highest: float | None = None
    place: int = LAST
    summary: bool = False
    mmhm: str = ""
    aliases: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    counted_from: tuple[str, ...] = ()
    kind: Literal["metric", "composite", "cost"] = "metric"

    def __post_init__(self) -> None:
        if not self.short:
            object.__setattr__(self, "short", self.title)

    @property
    def bounded(self) -> bool:
        """Whether there is a best possible value above all others; composites are means of shares or of ranks."""
        return self.highest is not None or self.kind == "composite"

    @property
    def judges(self) -> tuple[str, ...]:
        """The judges whose outputs are read."""
        return tuple(self.judge.split(", ")) if self.judge else ()

    @property
    def higher_is_better(self) -> bool:
        """Whether higher values are better."""
        return self.better == "higher"

    @property
    def is_share(self) -> bool:
        """Whether it is a share of images, or of other things that are counted, in [0, 1]."""
        return self.kind == "metric" and self.lowest == 0.0 and self.highest == 1.0

    @property
    def sign(self) -> float:
        """1 where higher values are better, else -1: `sign * value` is a score, more is better."""
        return 1.0 if self.better == "higher" else -1.0

    def row(self) -> dict[str, Any]:
        """Return the row of table `metric_facts`."""
        row = dataclasses.asdict(self)
        del row["better"], row["aliases"], row["options"], row["counted_from"]
        return {"metric": row.pop("name"), "higher_is_better": self.higher_is_better} | row


def ordered(facts: Iterable[MetricFact]) -> list[MetricFact]:
    """Return the facts in the order in which tables show them."""
    return sorted(facts, key=lambda fact: (fact.place, fact.name))
