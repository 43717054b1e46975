"""Two rows side by side: paired differences over the blocks that both were measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np

from results.catalog import CATALOG
from results.cells import CellDirectory
from results.errors import BenchError
from results.leaderboard import dictionaries
from results.statistics import Interval, paired_difference, win_rate
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
    win_rate: float | None = None
    """How often a's image of a prompt scores above b's, ties counting half; only for scores of single images."""
    win_low: float | None = None
    """Lower end of its Wilson interval."""
    win_high: float | None = None
    """Upper end of its Wilson interval."""


class Comparison(NamedTuple):
    """All paired differences of two rows."""

    title_a: str
    title_b: str
    differences: list[Difference]


def compare_cells(database: Path, a: str, b: str, seed: int | None = None) -> Comparison:
    """Return the paired differences of two rows, each a cell id, MODEL or MODEL@STEPS[@CFG]; `seed` narrows them.

    Raises BenchError when a row is not found or not unique, or the two were not measured alike.
    """
    with connect(database, retry=True) as connection:
        found = [find_cells(connection, name, seed) for name in (a, b)]
        cells = _pair(found[0], found[1], a, b)
        rows = [_metrics(connection, cell["cell_id"]) for cell in cells]
    directories = [CellDirectory(database.parent, cell["cell_id"]) for cell in cells]
    differences = []
    for metric, value in rows[0].items():
        other = rows[1].get(metric)
        if other is None or not value["jackknife"] or len(value["jackknife"]) != len(other["jackknife"] or []):
            continue
        interval = paired_difference(
            value["value"], np.array(value["jackknife"]), other["value"], np.array(other["jackknife"])
        )
        wins = _win_rate(metric, directories)
        differences.append(
            Difference(
                metric,
                value["value"],
                other["value"],
                interval.value,
                interval.low,
                interval.high,
                _verdict(metric, interval.low, interval.high),
                *((None, None, None) if wins is None else wins[:3]),
            )
        )
    titles = [_title(cell) for cell in cells]
    return Comparison(titles[0], titles[1], differences)


def _win_rate(metric: str, directories: list[CellDirectory]) -> Interval | None:
    """Return the win rate over sample indices, whose prompts both rows share; None without scores of single images."""
    array = CATALOG[metric].array
    if not array.endswith(".score"):
        return None
    paths = [directory.path / f"{array}.npy" for directory in directories]
    if not all(path.is_file() for path in paths):  # a merged database has the rows without their directories
        return None
    a, b = (np.load(path, mmap_mode="r", allow_pickle=False) for path in paths)
    return win_rate(a, b)


def _verdict(metric: str, low: float, high: float) -> str:
    if low <= 0.0 <= high:
        return "tied"
    a_is_higher = low > 0.0
    return "a is better" if a_is_higher == (CATALOG[metric].better == "higher") else "b is better"


def _title(cell: dict[str, Any]) -> str:
    return f"{cell['model']}, {_setting(cell)} ({cell['cell_id']})"


def _setting(cell: dict[str, Any]) -> str:
    steps = "images" if cell["steps"] is None else f"{cell['steps']} steps, cfg {cell['cfg']:g}"
    nfe = "" if cell["nfe"] is None else f", NFE {cell['nfe']:g}"
    return f"{steps}{nfe}, {cell['num_samples']:,} samples, seed {cell['seed']}"


def _metrics(connection: duckdb.DuckDBPyConnection, cell_id: str) -> dict[str, dict[str, Any]]:
    rows = dictionaries(connection, "SELECT * FROM metrics WHERE cell_id = ?", [cell_id])
    order = list(CATALOG)
    return {row["metric"]: row for row in sorted(rows, key=lambda row: order.index(row["metric"]))}


def _pair(
    found_a: list[dict[str, Any]], found_b: list[dict[str, Any]], a: str, b: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the one pair of rows that were measured alike."""
    pairs = [(one, other) for one in found_a for other in found_b if one["ranking"] == other["ranking"]]
    if not pairs:
        raise BenchError(
            f"{a} and {b} were not measured alike (protocol, reference, judges, samples or seed differ): measure both "
            "with one 'bench run'"
        )
    if len(pairs) > 1:
        name, cells = (a, [one for one, _ in pairs]) if len({one["cell_id"] for one, _ in pairs}) > 1 else (b, found_b)
        unique = {cell["cell_id"]: cell for cell in cells}
        choices = "; ".join(f"{cell_id} ({_setting(cell)})" for cell_id, cell in list(unique.items())[:4])
        raise BenchError(f"'{name}' fits {len(unique)} cells: {choices}; give one id, MODEL@STEPS@CFG, or --seed")
    return pairs[0]


def find_cells(connection: duckdb.DuckDBPyConnection, name: str, seed: int | None = None) -> list[dict[str, Any]]:
    """Return the finished cells that `name` stands for: the beginning of a cell id, MODEL, MODEL@STEPS[@CFG].

    Raises BenchError when there is none, or `name` has another form.
    """
    model, *rest = name.split("@")
    try:
        steps, scale = int(rest[0]) if rest else None, float(rest[1]) if len(rest) > 1 else None
    except ValueError:
        raise BenchError(f"'{name}' is not of the form MODEL@STEPS or MODEL@STEPS@CFG") from None
    found = dictionaries(
        connection,
        "SELECT * FROM cells WHERE status = 'done' AND (model = $1 OR ($2 IS NULL AND starts_with(cell_id, $1))) "
        "AND ($2 IS NULL OR steps = $2) AND ($3 IS NULL OR cfg = $3) AND ($4 IS NULL OR seed = $4) "
        "ORDER BY steps, cfg, seed, cell_id",
        [model, steps, scale, seed],
    )
    if not found:
        where = "" if seed is None else f" of seed {seed}"
        raise BenchError(f"no finished cell '{name}'{where}; 'bench leaderboard --all' lists them")
    return found
