"""Leaderboard queries: one row per measured cell, ranked only within what makes rows comparable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from results import StoreError

LOWER_IS_BETTER = {"fid", "kid", "fid_corrected", "fid_infinity", "sfid", "fd_dinov2", "cmmd", "nfe", "latency", "rank"}


@dataclass(frozen=True)
class Value:
    """A metric of one row: value, 95 % interval and bias-corrected value where there is one."""

    value: float | None
    low: float | None = None
    high: float | None = None
    corrected: float | None = None
    standard_error: float | None = None
    n: int = 0


@dataclass(frozen=True)
class Row:
    """One measured cell as the leaderboard shows it."""

    cell: Mapping[str, Any]
    metrics: Mapping[str, Value]
    rank: Mapping[str, Any] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """Return a metric's value, or a fact of the cell (`nfe`, `images_per_second`), or MMHM, or None."""
        if metric == "mmhm":
            return self.rank.get("mmhm")
        if metric == "rank":
            return self.rank.get("rank_median")
        if metric in self.metrics:
            return self.metrics[metric].value
        found = self.cell.get(metric)
        return float(found) if isinstance(found, (int, float)) else None


def rows(
    connection: duckdb.DuckDBPyConnection, *, protocol: str | None = None, status: str | None = "done"
) -> list[Row]:
    """Return the rows of the database, with their metrics and ranks, in the order they were measured."""
    conditions, values = [], []
    for column, wanted in (("protocol", protocol), ("status", status)):
        if wanted is not None:
            conditions.append(f"{column} = ?")
            values.append(wanted)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    cells = dictionaries(connection, f"SELECT * FROM cells {where} ORDER BY finished, cell_id", values)
    metrics: dict[str, dict[str, Value]] = {}
    for row in dictionaries(connection, "SELECT * EXCLUDE (jackknife) FROM metrics"):
        metrics.setdefault(row["cell_id"], {})[row["metric"]] = Value(
            row["value"], row["low"], row["high"], row["corrected"], row["standard_error"], row["n"]
        )
    ranks = {row["cell_id"]: row for row in dictionaries(connection, "SELECT * FROM ranks")}
    for cell in cells:
        cell["settings"], cell["options"] = json.loads(cell["settings"]), json.loads(cell["options"])
    return [Row(cell, metrics.get(cell["cell_id"], {}), ranks.get(cell["cell_id"], {})) for cell in cells]


def sorted_rows(found: Sequence[Row], metric: str = "mmhm") -> list[Row]:
    """Return the rows best first by `metric`; rows without it come last. Raises StoreError for an unknown metric."""
    known = {"mmhm", "rank", "nfe", "images_per_second", "steps"} | {name for row in found for name in row.metrics}
    if found and metric not in known:
        raise StoreError(f"unknown metric '{metric}': the metrics here are {', '.join(sorted(known))}")
    sign = 1.0 if metric in LOWER_IS_BETTER or metric == "steps" else -1.0

    def key(row: Row) -> tuple[bool, float]:
        value = row.value(metric)
        return (value is None, 0.0 if value is None else sign * value)

    return sorted(found, key=key)


def best_per_model(found: Sequence[Row], metric: str = "mmhm") -> list[Row]:
    """Return each model's best row by `metric`, best model first, within each ranking."""
    best: dict[tuple[str, str], Row] = {}
    for row in sorted_rows(found, metric):
        best.setdefault((row.cell["ranking"], row.cell["model"]), row)
    return list(best.values())


def dictionaries(connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Return a query's rows as dictionaries."""
    result = connection.execute(query, list(values))
    names = [column[0] for column in result.description or []]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
