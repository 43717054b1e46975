"""The best rows for what they cost: winners within budgets, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from results.leaderboard import best_of_each, within_budget
from results.picks import tied_with_best
from results.rows import Row
from results.timing import Interval, timed

Cost = Literal["nfe", "seconds", "latency_seconds"]


class Budget(NamedTuple):
    """The best row that costs at most `level`, and the best rows of the other models tied with it."""

    level: float
    winner: Row
    tied: list[Row]


def cost_of(row: Row, cost: Cost) -> float | None:
    """Return evaluations of networks per image, seconds per image in batches, or seconds of one image alone."""
    price = price_of(row, cost)
    return None if price is None else price.value


def budgets(found: Sequence[Row], metric: str, cost: Literal["nfe", "seconds"] = "nfe", most: int = 8) -> list[Budget]:
    """Return the winner by `metric` at each budget of `cost` per image, cheapest budget first.

    Rows are of one ranking and carry their blocks. Budgets are the measured evaluation counts themselves, or powers of
    two where there are more than `most`; budgets of seconds are 1, 2 and 5 times powers of ten, or powers of ten alone.
    """
    priced = [row for row in found if row.value(metric) is not None and cost_of(row, cost) is not None]
    costs = [float(cost_of(row, cost) or 0.0) for row in priced]
    chosen = []
    for level in _levels(costs, cost, most) if costs else []:
        affordable = within_budget(priced, nfe=level) if cost == "nfe" else within_budget(priced, seconds=level)
        best = best_of_each(affordable, metric)
        if best:
            chosen.append(Budget(level, best[0], tied_with_best(best, metric)))
    return chosen


def _levels(costs: Sequence[float], cost: str, most: int) -> list[float]:
    if cost == "nfe":
        levels = sorted({round(count, 2) for count in costs if count > 0})
        if len(levels) > most:
            first, last = math.floor(math.log2(levels[0])), math.ceil(math.log2(levels[-1]))
            levels = [float(2**power) for power in range(first, last + 1)]
        return levels
    levels = _round_levels(min(costs), max(costs), (1, 2, 5))
    return levels if len(levels) <= most else _round_levels(min(costs), max(costs), (1,))


def _round_levels(low: float, high: float, digits: tuple[int, ...]) -> list[float]:
    """Return the round numbers from the first that is at least `low` to the first that is at least `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    numbers = [float(f"{digit}e{power}") for power in powers for digit in digits]
    last = next((number for number in numbers if number >= high), numbers[-1])
    return [number for number in numbers if low <= number <= last]


def price_of(row: Row, cost: Cost) -> Interval | None:
    """Return a cost with its interval; evaluations are exact."""
    if cost != "nfe":
        return timed(row.cell, cost)
    count = row.evaluations
    return None if count is None else Interval(count, count, count)


def unsure_of_front(front: Sequence[Row], found: Sequence[Row], metric: str, cost: Cost) -> list[Row]:
    """Return the rows of a Pareto front that may owe their place to the noise of timing.

    A row is sure of its place when each better row of `found` surely costs more: the intervals of the two costs do not
    overlap. A time without an interval is sure of nothing, and the best row of all needs no such proof.
    """
    unsure = []
    for row in front:
        price, value = price_of(row, cost), row.value(metric)
        sign = row.fact(metric).sign
        better = [
            other
            for other in found
            if (theirs := other.value(metric)) is not None
            and value is not None
            and sign * theirs > sign * value
            and price_of(other, cost) is not None
        ]
        if price is None or any(not price.surely_less(p) for o in better if (p := price_of(o, cost)) is not None):
            unsure.append(row)
    return unsure


def pareto_front(found: Sequence[Row], metric: str, cost: Cost) -> list[Row]:
    """Return the rows that no other row beats by `metric` at lower or equal cost, cheapest first.

    Times have intervals: `unsure_of_front` tells which of the rows may owe their place to them.
    """
    priced = []
    for row in found:
        price, value = cost_of(row, cost), row.value(metric)
        if price is not None and value is not None:
            priced.append((price, -row.fact(metric).sign * value, row))
    front: list[Row] = []
    best = math.inf
    for _, loss, row in sorted(priced, key=lambda entry: entry[:2]):
        if loss < best:
            front.append(row)
            best = loss
    return front
