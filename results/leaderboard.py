"""Leaderboard queries: one row per measured cell, ranked only within what makes rows comparable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import duckdb

from results.catalog import FACTS, MMHM_METRICS
from results.errors import StoreError

SETTING = (
    "protocol", "measurement", "num_samples", "model", "checkpoint", "steps", "cfg", "sampler", "settings", "dtype",
    "weights_sha256",
)  # fmt: skip
"""What two cells of different seeds share when they measure the same setting."""


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
        """Return a metric's value, a composite, or a fact of the cell (`nfe`, `images_per_second`); None without."""
        if metric in self.metrics:
            return self.metrics[metric].value
        fact = FACTS.get(metric)
        if fact is None or fact.kind == "metric":
            return None
        found = (self.rank if fact.kind == "composite" else self.cell).get(fact.array)
        return float(found) if isinstance(found, (int, float)) else None

    @property
    def pixels(self) -> Mapping[str, Any] | None:
        """What the images look like: counts and `remarks`; None for rows of older versions."""
        found: Mapping[str, Any] | None = self.cell.get("pixels")
        return found

    @property
    def remarks(self) -> list[str]:
        """What about the images looks like a mistake, one line each."""
        return list((self.pixels or {}).get("remarks", []))

    @property
    def evaluations(self) -> float | None:
        """Network evaluations per image, those of a guide network included; None where they were not counted."""
        nfe = self.cell["nfe"]
        return None if nfe is None else nfe + (self.cell["guide_nfe"] or 0.0)

    @property
    def seconds(self) -> float | None:
        """Seconds of network and decoder per image, without the first batch where the cell has more than one."""
        rate = self.cell["images_per_second"]
        return 1.0 / rate if rate else None

    @property
    def bottleneck(self) -> str | None:
        """The metric with the smallest normalised value, which decides MMHM almost alone."""
        utilities = self.rank.get("utilities")
        return min(utilities, key=utilities.__getitem__) if utilities else None


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
    for rank in ranks.values():
        rank["utilities"], rank["outside"] = json.loads(rank["utilities"]), json.loads(rank["outside"])
    measurements = {
        row["digest"]: _measurement(json.loads(row["definition"]))
        for row in dictionaries(connection, "SELECT digest, definition FROM protocols")
    }
    for cell in cells:
        cell["pixels"] = json.loads(cell["pixels"]) if cell.get("pixels") else None
        cell["settings"], cell["options"] = json.loads(cell["settings"]), json.loads(cell["options"])
        cell["measurement"] = measurements.get(cell["protocol_digest"], cell["protocol_digest"])
    return [Row(cell, metrics.get(cell["cell_id"], {}), ranks.get(cell["cell_id"], {})) for cell in cells]


def _measurement(definition: Mapping[str, Any]) -> str:
    """Return a digest of a protocol without what only chooses its cells: sweeps, seed, sample count, metric names."""
    kept = {key: value for key, value in definition.items() if key not in ("name", "sampling", "metrics")}
    kept["sampling"] = {key: definition.get("sampling", {}).get(key) for key in ("quantise", "levels")}
    kept["metrics"] = {key: definition.get("metrics", {}).get(key) for key in ("blocks", "options")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:20]


def missing_metrics(connection: duckdb.DuckDBPyConnection, found: Sequence[Row]) -> list[str]:
    """Return a line for each reason why rows lack metrics, and the composite with them."""
    shown = {row.cell["cell_id"]: row for row in found}
    reasons: dict[str, dict[str, list[str]]] = {}
    for row in dictionaries(connection, "SELECT * FROM skipped_metrics ORDER BY cell_id"):
        if row["cell_id"] in shown:
            reasons.setdefault(row["reason"], {}).setdefault(row["metric"], []).append(row["cell_id"])
    lines = []
    for reason, metrics in reasons.items():
        names = list(metrics)
        if set(names) & set(MMHM_METRICS) and not any(shown[cell].rank for cells in metrics.values() for cell in cells):
            names.append("mmhm")
        cells = {cell for cells in metrics.values() for cell in cells}
        whose = (
            "" if len(cells) == len(found) else f" ({', '.join(sorted({shown[cell].cell['model'] for cell in cells}))})"
        )
        head, mark, tail = reason.partition("; ")
        lines.append(f"{head}: {', '.join(names)} not measured{whose}{mark}{tail}")
    return lines


def rankings(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, Any]]:
    """Return the rankings by digest: bounds, eps, correlation of the metrics and leave-one-row-out sensitivity."""
    found = {row["ranking"]: row for row in dictionaries(connection, "SELECT * FROM rankings")}
    for row in found.values():
        for column in ("bounds", "correlation", "sensitivity"):
            row[column] = json.loads(row[column])
    return found


def headline(found: Sequence[Row]) -> str:
    """Return the metric that orders these rows unless told otherwise: MMHM, else FID, else the first measured one."""
    if any(row.value("mmhm") is not None for row in found):
        return "mmhm"
    measured = [name for row in found for name in row.metrics]
    return "fid" if "fid" in measured or not measured else measured[0]


def sorted_rows(found: Sequence[Row], metric: str | None = None) -> list[Row]:
    """Return the rows best first by `metric` (None: their `headline`); rows without it come last.

    The order means something only among rows of one ranking: `by_ranking` takes them apart. Raises StoreError for an
    unknown metric.
    """
    _check_metric(found, metric)
    return _ordered(found, metric or headline(found))


def best_per_model(found: Sequence[Row], metric: str | None = None) -> list[Row]:
    """Return each model's best row by `metric` (None: the `headline` of its ranking), ranking by ranking, best first.

    Raises StoreError for an unknown metric.
    """
    _check_metric(found, metric)
    best: dict[tuple[str, str], Row] = {}
    for ranking, members in by_ranking(found).items():
        for row in _ordered(members, metric or headline(members)):
            best.setdefault((ranking, row.cell["model"]), row)
    return list(best.values())


def _check_metric(found: Sequence[Row], metric: str | None) -> None:
    known = {name for name, fact in FACTS.items() if fact.kind != "metric"}
    known |= {name for row in found for name in row.metrics}
    if found and metric is not None and metric not in known:
        raise StoreError(f"unknown metric '{metric}': the metrics here are {', '.join(sorted(known))}")


def _ordered(found: Sequence[Row], metric: str) -> list[Row]:
    sign = FACTS[metric].sign

    def key(row: Row) -> tuple[bool, float]:
        value = row.value(metric)
        return (value is None, 0.0 if value is None else -sign * value)

    return sorted(found, key=key)


def by_ranking(found: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each ranking in their order: rows of different N, seed, reference or judges stand apart."""
    groups: dict[str, list[Row]] = {}
    for row in found:
        groups.setdefault(row.cell["ranking"], []).append(row)
    return groups


def within_budget(
    found: Sequence[Row], *, nfe: float | None = None, seconds: float | None = None, steps: int | None = None
) -> list[Row]:
    """Return the rows of at most `nfe` evaluations and `seconds` per image, and of exactly `steps` steps.

    Rows whose cost was not measured are in no budget.
    """

    def fits(row: Row) -> bool:
        if nfe is not None and (row.evaluations is None or row.evaluations > nfe + 1e-9):
            return False
        if seconds is not None and (row.seconds is None or row.seconds > seconds):
            return False
        return steps is None or row.cell["steps"] == steps

    return [row for row in found if fits(row)]


class Choice(NamedTuple):
    """A model's best setting on the selection seed, and the rows that measured it on other seeds."""

    chosen: Row
    metric: str
    """What it was chosen by."""
    reported: list[Row]


def chosen_on(
    found: Sequence[Row], seed: int, metric: str | None = None, candidates: Sequence[Row] | None = None
) -> list[Choice]:
    """Return each model's best setting on cells of `seed`, with the same setting's rows of other seeds.

    So no model is chosen on the samples it is judged by. `metric` None is the `headline`; `candidates` (default: all)
    narrows what may be chosen. Raises StoreError for an unknown metric, or when nothing was measured on that seed.
    """
    pool = [row for row in (found if candidates is None else candidates) if row.cell["seed"] == seed]
    pool = [row for row in pool if not row.cell["random_weights"]]
    if not pool:
        raise StoreError(f"no finished cell of seed {seed} to choose on; 'bench run --select-on {seed}' measures them")
    _check_metric(found, metric)
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in pool:
        alike.setdefault((row.cell["measurement"], row.cell["num_samples"]), []).append(row)
    elsewhere = [row for row in found if row.cell["seed"] != seed]
    choices = []
    for members in alike.values():
        by = metric or headline(members)
        best: dict[str, Row] = {}
        for row in _ordered(members, by):
            if row.value(by) is not None:
                best.setdefault(row.cell["model"], row)
        for row in best.values():
            choices.append(Choice(row, by, [other for other in elsewhere if _setting(other) == _setting(row)]))
    return choices


def _setting(row: Row) -> tuple[Any, ...]:
    return tuple(row.cell[key] for key in SETTING)


def dictionaries(connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Return a query's rows as dictionaries."""
    result = connection.execute(query, list(values))
    names = [column[0] for column in result.description or []]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
