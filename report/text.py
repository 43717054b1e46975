"""Numbers and names as people read them: decimals cut to the interval, units that fit, plain labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import pandas as pd

NOTHING = "–"


def known(value: object) -> bool:
    """Tell whether `value` is a number that can be shown."""
    return isinstance(value, Real) and math.isfinite(value)


def decimals_of(half_width: float) -> int:
    """Return how many decimals an interval of this half-width supports.

    The rule of the Particle Data Group: the half-width keeps two digits when they are at most 35, else one.
    """
    exponent = math.floor(math.log10(half_width))
    return max(0, -exponent + (1 if half_width / 10.0**exponent < 3.55 else 0))


def number(value: float | None, low: float | None = None, high: float | None = None, digits: int = 3) -> str:
    """Return `value` cut to its interval, or to `digits` significant digits where there is none."""
    if value is None or not known(value):
        return NOTHING
    if known(low) and known(high) and high > low:  # type: ignore[operator]
        return f"{value:.{decimals_of((high - low) / 2)}f}"  # type: ignore[operator]
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.0f}" if decimals <= 0 else f"{value:.{decimals}f}"


def spread(value: float | None, low: float | None, high: float | None) -> str:
    """Return the interval beside a value: `±0.03`, or `0.48 to 0.55` where it is lopsided; empty if unknown."""
    if not (known(value) and known(low) and known(high)) or high <= low:  # type: ignore[operator]
        return ""
    assert value is not None and low is not None and high is not None
    half = (high - low) / 2
    decimals = decimals_of(half)
    if abs((high + low) / 2 - value) < 0.15 * half:
        return f"±{half:.{decimals}f}"
    return f"{low:.{decimals}f} to {high:.{decimals}f}"


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return a value and its interval in one string, for sentences and captions."""
    interval = spread(value, low, high)
    interval = f"({interval})" if " to " in interval else interval
    return f"{number(value, low, high)}\N{NO-BREAK SPACE}{interval}" if interval else number(value, low, high)


def plain(value: float | None) -> str:
    """Return a setting as it was typed: 1.5, 32."""
    return f"{value:g}" if known(value) else NOTHING


def rank(low: float | None, high: float | None) -> str:
    """Return a rank interval, `1–3`, or a single rank where both ends agree."""
    if low is None or high is None or not (known(low) and known(high)):
        return NOTHING
    first, last = round(low), round(high)
    return str(first) if first == last else f"{first}–{last}"


def seconds(value: float | None) -> str:
    """Return a duration in the unit that fits."""
    if value is None or not known(value):
        return NOTHING
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1:
            return f"{number(value * factor)} {unit}"
    return f"{number(value * 1e9)} ns"


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


def plural(count: int, noun: str) -> str:
    """Return `1 row`, `2 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return `a, b and c`, or `a, b, c and 4 more` for long lists."""
    shown = list(names[:most])
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def shortened(name: str, most: int = 24) -> str:
    """Return `name`, cut with an ellipsis for axes that cannot hold more."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def moment(value: Any) -> str:
    """Return a time stamp to the minute."""
    return NOTHING if value is None or pd.isna(value) else f"{pd.Timestamp(value):%Y-%m-%d %H:%M}"
