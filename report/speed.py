"""Speed on random weights: what `bench speed` measured, as a table. No quality stands beside it."""

from __future__ import annotations

from collections.abc import Sequence

from report import text
from results.rows import Row
from results.timing import conditions, share_of_peak, timed

HEADINGS = (
    "model", "steps", "cfg", "NFE", "batch", "dtype", "images/s", "one image", "memory", "FLOPs per image", "of peak",
    "timed on",
)  # fmt: skip
NOTE = (
    "Random weights: 'bench speed' times the architecture alone. Times are medians with their 95% interval. Of peak: "
    "operations a second against the fastest square matrix product on the same device and in the same precision."
)


def finding(found: Sequence[Row]) -> str:
    """Say which row makes most images a second, and whether another may."""
    done = [row for row in found if timed(row.cell, "seconds") is not None]
    devices = {row.cell["device"] for row in done}
    if len(devices) > 1:
        return f"Times are of {len(devices)} devices and do not compare across them"
    best, *rest = sorted(done, key=lambda row: row.seconds or 0.0)
    one = timed(best.cell, "seconds")
    open_still = [row for row in rest if one and (two := timed(row.cell, "seconds")) and not one.surely_less(two)]
    first = f"{_name(best)} makes most images a second"
    return first if not open_still else f"{first}, but {text.counted(len(open_still), 'row')} may be as fast"


def lines(found: Sequence[Row]) -> list[list[str]]:
    """Return the rows of the table, fastest first on each device."""
    return [_line(row) for row in sorted(found, key=lambda row: (row.cell["device"], row.seconds or 0.0))]


def _line(row: Row) -> list[str]:
    cell, share = row.cell, share_of_peak(row.cell)
    batch, one = timed(cell, "seconds"), timed(cell, "latency_seconds")
    rate = "-"
    if batch is not None:
        ends = (None, None) if not batch.low or not batch.high else (1 / batch.high, 1 / batch.low)
        rate = text.with_interval(1 / batch.value, *ends)
    latency = "-"
    if one is not None:
        low, high = (None if end is None else 1e3 * end for end in (one.low, one.high))
        latency = f"{text.with_interval(1e3 * one.value, low, high)}\N{NO-BREAK SPACE}ms"
    return [
        cell["model"],
        str(cell["steps"]),
        f"{cell['cfg']:g}",
        text.plain(row.evaluations),
        str(cell["batch_size"]),
        cell["dtype"] + ", compiled" * bool(cell["options"].get("compile")),
        rate,
        latency,
        text.memory(cell["peak_memory"]),
        text.size(cell["flops"], ("", "k", "M", "G", "T", "P"), 1000),
        "-" if share is None else f"{share:.1%}",
        conditions(cell),
    ]


def _name(row: Row) -> str:
    cell = row.cell
    return f"{cell['model']} at {text.counted(cell['steps'], 'step')} in batches of {cell['batch_size']}"
