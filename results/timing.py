"""How long something takes, as repeated measurements say it: a median, with its interval, and under what conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from results.numbers import counted

if TYPE_CHECKING:
    from results.rows import Row

NARROW = 0.05
"""Width of the interval, as a share of the median, at which a time counts as measured."""
FEWEST = 6
"""Repetitions below which the median of a sample has no 95% interval."""
BUSY = 0.5
"""Load beside the measurement, as a share of the processor's cores, from which a machine counts as busy."""


class Timing(NamedTuple):
    """A time in seconds.

    Attributes:
        median: of all repetitions.
        low, high: its 95% interval, free of assumptions about the distribution; None below FEWEST repetitions.
        repeats: how many repetitions there were, warm-up left out.
    """

    median: float
    low: float | None
    high: float | None
    repeats: int

    @property
    def narrow(self) -> bool:
        """Whether the whole interval is less than NARROW of the median."""
        return self.low is not None and self.high is not None and self.high - self.low < NARROW * self.median


def timing_of(seconds: Sequence[float]) -> Timing:
    """Return the median of repeated times with its interval, from the order statistics (a binomial test inverted)."""
    import numpy as np
    from scipy.stats import quantile_test

    median = float(np.median(seconds))
    if len(seconds) < FEWEST:
        return Timing(median, None, None, len(seconds))
    low, high = quantile_test(np.asarray(seconds), q=median, p=0.5).confidence_interval(0.95)
    return Timing(median, float(low), float(high), len(seconds))


class Interval(NamedTuple):
    """A cost of a row with the ends of its 95% interval, both None where it was timed without one."""

    value: float
    low: float | None
    high: float | None

    def surely_below(self, level: float) -> bool:
        """Whether the cost is at most `level`, noise of the measurement included."""
        return (self.value if self.high is None else self.high) <= level

    def surely_less(self, other: Interval) -> bool:
        """Whether this is the smaller cost with intervals that do not overlap; without both, nothing is sure."""
        return self.high is not None and other.low is not None and self.high < other.low


def timed(cell: Mapping[str, Any], cost: Literal["seconds", "latency_seconds"]) -> Interval | None:
    """Return the seconds of one image, in batches or alone, of a row of `cells`; None where it was not timed."""
    table = cell.get("timing") or {}
    part = table.get("batch" if cost == "seconds" else "latency")
    if part:
        share = 1.0 / table["batch_size"] if cost == "seconds" else 1.0
        ends = (None if part.get(end) is None else part[end] * share for end in ("low", "high"))
        return Interval(part["median"] * share, *ends)
    rate, latency = cell.get("images_per_second"), cell.get("latency_seconds")
    value = (1.0 / rate if rate else None) if cost == "seconds" else latency
    return None if value is None else Interval(float(value), None, None)


def checked_timing(table: Mapping[str, Any]) -> None:
    """Raise ValueError, naming what is wrong, for a `timing` that `timed` and `conditions` cannot read."""

    def number(name: str, value: Any, least: float) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
            raise ValueError(f"'{name}' is not a number of at least {least:g}")

    for name in ("batch_size", "threads", "cores"):
        number(name, table.get(name), 1)
    for name in ("load", "clock_mhz", "matrix_peak"):
        if table.get(name) is not None:
            number(name, table[name], 0)
    for part in ("batch", "latency"):
        measured = table.get(part)
        if not isinstance(measured, Mapping):
            raise ValueError(f"'{part}' is missing")
        number(f"{part}.median", measured.get("median"), 0)
        number(f"{part}.repeats", measured.get("repeats"), 1)
        if (measured.get("low") is None) != (measured.get("high") is None):
            raise ValueError(f"'{part}' has one end of an interval")
        for end in ("low", "high"):
            if measured.get(end) is not None:
                number(f"{part}.{end}", measured[end], 0)


def conditions(cell: Mapping[str, Any], *, batch: bool = True) -> str:
    """Return where and how a row was timed, in words; `batch` names the images of a batch too."""
    table = cell.get("timing")
    if not table:
        return f"{cell['device']}, while other work ran"
    parts = [str(cell["device"]), counted(table["threads"], "thread")]
    if batch:
        parts.append(f"batch {table['batch_size']}")
    if table.get("clock_mhz"):
        parts.append(f"{table['clock_mhz']:,.0f} MHz")
    if table.get("load") is not None:
        parts.append(f"load {table['load']:.1f} on {table['cores']} cores")
    return ", ".join(parts)


def share_of_peak(cell: Mapping[str, Any]) -> float | None:
    """Return a row's operations a second as a share of the fastest matrix product; None where that was not measured."""
    peak, rate = (cell.get("timing") or {}).get("matrix_peak"), cell.get("images_per_second")
    return cell["flops"] * rate / peak if peak and rate and cell.get("flops") else None


def described(cell: Mapping[str, Any]) -> str:
    """Return the times of a row with their intervals, repetitions and conditions, in words."""
    from results import numbers

    parts = []
    for cost, what, part in (("latency_seconds", "one image", "latency"), ("seconds", "an image in batches", "batch")):
        time = timed(cell, cost)  # type: ignore[arg-type]
        if time is not None:
            low, high = (None if end is None else 1e3 * end for end in (time.low, time.high))
            repeats = ((cell.get("timing") or {}).get(part) or {}).get("repeats")
            often = f" over {repeats} repetitions" if repeats else ""
            parts.append(f"{what} {numbers.with_interval(1e3 * time.value, low, high)} ms{often}")
    return "; ".join([*parts, conditions(cell)]) if parts else ""


def busy(cell: Mapping[str, Any]) -> bool:
    """Whether the machine did much other work when a row was timed."""
    table = cell.get("timing") or {}
    return table.get("load") is not None and table["load"] - 1.0 > BUSY * table["cores"]


def remarks(shown: Iterable[Row]) -> list[str]:
    """Return what keeps the times of these rows from being compared, one line each."""
    rows = [row for row in shown if row.cell.get("images_per_second") is not None]
    devices: dict[str, int] = {}
    for row in rows:
        device = str(row.cell.get("device"))
        devices[device] = devices.get(device, 0) + 1
    lines = []
    if len(devices) > 1:
        each = ", ".join(f"{device} ({counted(count, 'row')})" for device, count in devices.items())
        lines.append(f"times are of {len(devices)} devices and do not compare across them: {each}")
    old = [row for row in rows if not row.cell.get("timing")]
    if old:
        lines.append(f"{_rows(len(old))} timed while other work ran: without an interval, so no claim rests on it")
    few = [row for row in rows if row.cell.get("timing") and row.cell["timing"]["batch"].get("low") is None]
    if few:
        lines.append(f"{_rows(len(few))} timed fewer than {FEWEST} times: images/s without an interval")
    loaded = [row for row in rows if busy(row.cell)]
    if loaded:
        most = max(row.cell["timing"]["load"] for row in loaded)
        lines.append(f"{_rows(len(loaded))} timed on a busy machine (load up to {most:.1f}): intervals are wide")
    return lines


def _rows(count: int) -> str:
    return f"{count} row{'s were' if count != 1 else ' was'}"
