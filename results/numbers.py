"""Numbers as people read them: one rule for decimals and intervals, wherever a value is printed."""

from __future__ import annotations

import math
from numbers import Real
from typing import TypeGuard

NOTHING = "–"
"""What stands where there is no number."""
MOST_DIGITS = 6
"""Significant digits of a value beyond which no interval, however narrow, adds any."""
NEGLIGIBLE = 1e-9
"""Width of an interval, as a share of the value, below which it is the rounding of the arithmetic."""
LOPSIDED = 0.15
"""Share of the half-width by which an interval's middle may lie beside the value and still be written as ±."""


def known(value: object) -> TypeGuard[float]:
    """Tell whether `value` is a number that can be shown."""
    return isinstance(value, Real) and math.isfinite(value)


def decimals_of(half_width: float) -> int:
    """Return how many decimals an interval of this half-width supports.

    The rule of the Particle Data Group: the half-width keeps two digits when they are at most 35, else one.
    """
    exponent = math.floor(math.log10(half_width))
    return max(0, -exponent + (1 if half_width / 10.0**exponent < 3.55 else 0))


def _wide(value: float, low: float | None, high: float | None) -> bool:
    return known(low) and known(high) and high - low > NEGLIGIBLE * abs(value)


def _decimals(value: float, half_width: float) -> int:
    """Return how many decimals a value and its interval are shown with: the interval's, up to `MOST_DIGITS` digits."""
    wanted = decimals_of(half_width)
    size = max(abs(value), half_width)
    return max(0, min(wanted, MOST_DIGITS - 1 - math.floor(math.log10(size))))


def number(value: float | None, low: float | None = None, high: float | None = None, digits: int = 3) -> str:
    """Return `value` cut to its interval, or to `digits` significant digits where there is none."""
    if not known(value):
        return NOTHING
    if _wide(value, low, high):
        assert low is not None and high is not None
        return f"{value:z,.{_decimals(value, (high - low) / 2)}f}"
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.0f}" if decimals <= 0 else f"{value:.{decimals}f}"


def spread(value: float | None, low: float | None, high: float | None) -> str:
    """Return the interval beside a value: `± 0.03`, or `0.48 to 0.55` where it is lopsided; empty if unknown."""
    if not known(value) or not _wide(value, low, high):
        return ""
    assert low is not None and high is not None
    half = (high - low) / 2
    decimals = _decimals(value, half)
    if decimals < decimals_of(half) and float(f"{half:.{decimals}f}") == 0:
        return f"± {half:.0e}"
    if abs((high + low) / 2 - value) < LOPSIDED * half:
        return f"± {half:,.{decimals}f}"
    return f"{low:z,.{decimals}f} to {high:z,.{decimals}f}"


def with_interval(value: float | None, low: float | None = None, high: float | None = None, digits: int = 3) -> str:
    """Return a value and its interval in one string: `2.10 ± 0.03`, or `0.51 (0.48 to 0.55)` where it is lopsided."""
    interval = spread(value, low, high)
    shown = number(value, low, high, digits)
    return f"{shown} ({interval})" if " to " in interval else f"{shown} {interval}".rstrip()


def difference(value: float, low: float | None = None, high: float | None = None) -> str:
    """Return a difference with its sign, cut to its interval."""
    return ("-" if value < 0 else "+") + number(abs(value), low, high)


def limits(low: float, high: float) -> str:
    """Return the ends of the interval of a difference, with their signs: `-0.20 .. +0.01`."""
    return f"{difference(low, low, high)} .. {difference(high, low, high)}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 step`, `2,000 samples`."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def rank(low: float | None, high: float | None) -> str:
    """Return a rank interval, `1-3`, or a single rank where both ends agree."""
    if not (known(low) and known(high)):
        return NOTHING
    first, last = round(low), round(high)
    return str(first) if first == last else f"{first}-{last}"
