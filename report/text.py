"""Numbers and names as the page shows them: intervals that do not break, units that fit, plain labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from results import numbers
from results.numbers import NOTHING, counted, known, number, spread


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return a value and its interval in one string that no line break cuts, for sentences and captions."""
    return numbers.with_interval(value, low, high).replace(" ", "\N{NO-BREAK SPACE}")


def plain(value: float | None) -> str:
    """Return a setting as it was typed: 1.5, 32."""
    return f"{value:g}" if known(value) else NOTHING


def rank(low: float | None, high: float | None) -> str:
    """Return a rank interval, `1–3`, or a single rank where both ends agree."""
    return numbers.rank(low, high).replace("-", "–")


def seconds(value: float | None) -> str:
    """Return a duration in the unit that fits."""
    if value is None or not known(value):
        return NOTHING
    factor, unit = _unit(value)
    return f"{number(value * factor)} {unit}"


def seconds_spread(value: float, low: float, high: float) -> str:
    """Return the interval of a duration in the unit that `seconds` gives it."""
    factor, _ = _unit(value)
    return spread(value * factor, low * factor, high * factor)


def _unit(value: float) -> tuple[float, str]:
    units = ((1.0, "s"), (1e3, "ms"), (1e6, "µs"), (1e9, "ns"))
    return next((found for found in units if value * found[0] >= 1), units[-1])


def budget(level: float, cost: str) -> str:
    """Return a budget per image: of network evaluations (`nfe`), else of seconds."""
    if cost == "nfe":
        return f"{level:g} NFE"
    return f"{level:g} s" if level >= 1 else f"{1e3 * level:.3g} ms"


def size(value: float | None, units: Sequence[str], base: float) -> str:
    """Return a count in the largest unit of which it has at least one; each unit is `base` times the former."""
    if value is None or not known(value):
        return NOTHING
    power = 0
    while value >= base and power + 1 < len(units):
        value, power = value / base, power + 1
    return f"{number(value)} {units[power]}".strip()


def memory(value: float | None) -> str:
    """Return bytes in binary units."""
    return size(value, ("B", "KiB", "MiB", "GiB", "TiB"), 1024)


def parameters(value: float | None) -> str:
    """Return a parameter count: 177 k, 675 M."""
    return size(value, ("", "k", "M", "G"), 1000)


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return `a, b and c`, or `a, b, c and 4 more` for long lists."""
    shown = list(names[:most])
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def in_lines(name: str, most: int) -> list[str]:
    """Return `name`, in two lines if it is longer than `most`: broken after a comma, else at a blank, if it has one."""
    cut = max(name.rfind(", ", 0, most) + 1, 0) or name.rfind(" ", 0, most + 1)
    return [name] if len(name) <= most or cut < 1 else [name[:cut], name[cut + 1 :]]


def shortened(name: str, most: int = 24) -> str:
    """Return `name`, cut with an ellipsis for axes that cannot hold more."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def moment(value: Any) -> str:
    """Return a time stamp to the minute."""
    return NOTHING if value is None or pd.isna(value) else f"{pd.Timestamp(value):%Y-%m-%d %H:%M}"


__all__ = [
    "NOTHING", "counted", "in_lines", "known", "listed", "memory", "moment", "number", "parameters", "plain", "rank",
    "seconds", "shortened", "size", "spread", "with_interval",
]  # fmt: skip
