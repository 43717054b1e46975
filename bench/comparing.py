"""Two rows side by side: paired differences over the blocks that both were measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np

from bench.errors import BenchError
from bench.metrics.catalog import CATALOG
from bench.metrics.uncertainty import paired_difference
from results.leaderboard import dictionaries
from results.store import connect


class Difference(NamedTuple):
    """The difference a - b of one metric with its 95 % interval, in the metric's unit."""

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    verdict: str
    """`a is better`, `b is better`, or `tied` when the interval spans zero."""


class Comparison(NamedTuple):
    """All paired differences of two rows."""

    title_a: str
    title_b: str
    differences: list[Difference]


def compare_cells(database: Path, a: str, b: str) -> Comparison:
    """Return the paired differences of two rows, each a cell id or MODEL@STEPS[@CFG].

    Raises BenchError when a row is not found or not unique, or the two were not measured alike.
    """
    with connect(database, retry=True) as connection:
        cells = [_find(connection, name) for name in (a, b)]
        rows = [_metrics(connection, cell["cell_id"]) for cell in cells]
    if cells[0]["ranking"] != cells[1]["ranking"]:
        raise BenchError(
            f"{a} and {b} were not measured alike (protocol, reference, judges, samples or seed differ): measure both "
            "with one 'bench run'"
        )
    differences = []
    for metric, value in rows[0].items():
        other = rows[1].get(metric)
        if other is None or not value["jackknife"] or not other["jackknife"]:
            continue
        interval = paired_difference(
            value["value"], np.array(value["jackknife"]), other["value"], np.array(other["jackknife"])
        )
        differences.append(
            Difference(
                metric,
                value["value"],
                other["value"],
                interval.value,
                interval.low,
                interval.high,
                _verdict(metric, interval.low, interval.high),
            )
        )
    titles = [_title(cell) for cell in cells]
    return Comparison(titles[0], titles[1], differences)


def _verdict(metric: str, low: float, high: float) -> str:
    if low <= 0.0 <= high:
        return "tied"
    a_is_higher = low > 0.0
    return "a is better" if a_is_higher == (CATALOG[metric].better == "higher") else "b is better"


def _title(cell: dict[str, Any]) -> str:
    steps = "images" if cell["steps"] is None else f"{cell['steps']} steps, cfg {cell['cfg']:g}, NFE {cell['nfe']:g}"
    return f"{cell['model']}, {steps} ({cell['cell_id']})"


def _metrics(connection: duckdb.DuckDBPyConnection, cell_id: str) -> dict[str, dict[str, Any]]:
    rows = dictionaries(connection, "SELECT * FROM metrics WHERE cell_id = ?", [cell_id])
    order = list(CATALOG)
    return {row["metric"]: row for row in sorted(rows, key=lambda row: order.index(row["metric"]))}


def _find(connection: duckdb.DuckDBPyConnection, name: str) -> dict[str, Any]:
    done = "SELECT * FROM cells WHERE status = 'done' AND "
    model, *rest = name.split("@")
    if rest:
        try:
            steps, scale = int(rest[0]), float(rest[1]) if len(rest) > 1 else None
        except ValueError:
            raise BenchError(f"'{name}' is not of the form MODEL@STEPS or MODEL@STEPS@CFG") from None
        found = dictionaries(connection, f"{done} model = ? AND steps = ? ORDER BY finished DESC", [model, steps])
        found = [cell for cell in found if scale is None or cell["cfg"] == scale]
    else:
        found = dictionaries(connection, f"{done} (starts_with(cell_id, ?) OR model = ?)", [name, name])
    if not found:
        raise BenchError(f"no finished cell '{name}'; 'bench leaderboard --all' lists them")
    if len(found) > 1:
        choices = ", ".join(f"{cell['cell_id']} ({cell['steps']} steps, cfg {cell['cfg']:g})" for cell in found[:4])
        raise BenchError(f"'{name}' fits {len(found)} cells: {choices}; give one id, or MODEL@STEPS@CFG")
    return found[0]
