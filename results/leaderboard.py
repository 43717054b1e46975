"""Leaderboard queries: one row per measured cell, ranked only within what makes rows comparable."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import duckdb

from results.catalog import FACTS, MMHM_METRICS, read_facts
from results.database import dictionaries
from results.errors import StoreError
from results.facts import MetricFact, ordered
from results.names import NAMES, UNDER_ONE_NAME
from results.rows import COMPOSITE, Row, Value
from results.timing import timed
from results.training import OF_CELL, READS_THEM, SPACES, WAIVED

DISTANCES = ("fid_corrected", "fid")
"""What orders rows without the composite: FID without its bias, which depends on the model, else as published."""
SPEED = "speed"
"""The protocol of rows that were timed on random weights and judged by nobody; shown only where asked for."""
SETTING = (
    "protocol", "measurement", "num_samples", "model", "checkpoint", "steps", "cfg", "sampler", "settings", "dtype",
    "weights_sha256",
)  # fmt: skip
"""What two cells of different seeds share when they measure the same setting."""
ACCELERATORS = ("NVIDIA", "Tesla", "AMD Instinct")
"""How the names of devices begin whose memory was always the model's own."""
ROUNDING = 0.005
"""Evaluations per image by which a row may exceed a budget: budgets are written with two decimals."""


def rows(
    connection: duckdb.DuckDBPyConnection,
    *,
    protocol: str | None = None,
    status: str | None = "done",
    ranking: str | None = None,
    cells: Sequence[str] | None = None,
    blocks: bool = False,
) -> list[Row]:
    """Return the rows of the database, with their metrics and ranks, in the order they were measured.

    Where a model's name has rows of several versions, `cell["model"]` tells them apart (`results.names`). A row alone
    in its ranking has no chance of being first (`rank["p_first"]`), nor has a model alone (`rank["p_first_model"]`).

    Args:
        connection: an open database.
        protocol: only rows of this protocol; without it rows of SPEED are left out.
        status: only rows of this status (`done`, `failed`, `unsupported`); None for all.
        ranking: only rows of this ranking.
        cells: only these cell ids.
        blocks: read the values without each block too, which comparisons of rows need.
    """
    conditions = ["true"]
    values: list[Any] = []
    for column, wanted in (("protocol", protocol), ("status", status), ("ranking", ranking)):
        if wanted is not None:
            conditions.append(f"c.{column} = ?")
            values.append(wanted)
    if cells is not None:
        conditions.append("list_contains(?::VARCHAR[], c.cell_id)")
        values.append(list(cells))
    if protocol is None and cells is None:
        conditions.append(f"c.protocol <> '{SPEED}'")
    if cells is None:
        conditions.append(UNDER_ONE_NAME)
    where = f"WHERE {' AND '.join(conditions)}"
    columns = "c.* REPLACE (named.name AS model), named.several AS several_versions, "
    columns += f"trained.licence, {SPACES} AS trained_on, {WAIVED} AS waived"
    tables = f"cells c JOIN {NAMES} named USING (cell_id) {OF_CELL}"
    query = f"SELECT {columns} FROM {tables} {where} ORDER BY finished, cell_id"
    found = dictionaries(connection, query, values)
    for cell in found:
        for column in ("pixels", "timing", "waived"):
            cell[column] = json.loads(cell[column]) if cell.get(column) else None
        if cell["timing"] is None and not cell["device"].startswith(ACCELERATORS):
            cell["peak_memory"] = None  # of the whole process, as older versions measured it
        cell["settings"], cell["options"] = json.loads(cell["settings"]), json.loads(cell["options"])
        cell["measurement"] = cell["measurement"] or cell["protocol_digest"]
        cell["trained_on"] = [space for space in cell["trained_on"] if space]
    metrics = _metrics(connection, where, values, blocks)
    ranks: dict[str, dict[str, Any]] = {}
    query = (
        f"WITH names AS {NAMES} SELECT r.* REPLACE (CASE WHEN s.rivals THEN r.p_first END AS p_first), s.p_first_model "
        "FROM ranks r JOIN cells c USING (ranking, cell_id) JOIN names n USING (cell_id) JOIN (SELECT q.ranking, "
        "o.name, sum(count(*)) OVER ranking > 1 AS rivals, "
        "CASE WHEN sum(count(*)) OVER ranking > count(*) THEN sum(q.p_first) END AS p_first_model "
        "FROM ranks q JOIN names o USING (cell_id) GROUP BY q.ranking, o.name "
        "WINDOW ranking AS (PARTITION BY q.ranking)) s "
        f"ON s.ranking = r.ranking AND s.name = n.name {where}"
    )
    for rank in dictionaries(connection, query, values):
        rank["utilities"], rank["outside"] = json.loads(rank["utilities"]), json.loads(rank["outside"])
        for column in ("jackknife", "jackknife_reference"):
            left = rank.pop(column)
            if blocks and left:
                rank[column] = tuple(left)
        ranks[rank["cell_id"]] = rank
    facts = read_facts(connection)
    return [Row(cell, metrics.get(cell["cell_id"], {}), ranks.get(cell["cell_id"], {}), facts) for cell in found]


def _metrics(
    connection: duckdb.DuckDBPyConnection, where: str, values: Sequence[Any], blocks: bool
) -> dict[str, dict[str, Value]]:
    columns = "m.*" if blocks else "m.* EXCLUDE (jackknife, jackknife_reference)"
    query = (
        f"SELECT {columns}, r.rank_low, r.rank_high, r.may_be_best, {READS_THEM} AS trained_on "
        f"FROM metrics m JOIN cells c USING (cell_id) {OF_CELL} "
        f"LEFT JOIN metric_ranks r USING (ranking, cell_id, metric) {where} ORDER BY m.cell_id, m.metric"
    )
    found: dict[str, dict[str, Value]] = {}
    for row in dictionaries(connection, query, values):
        found.setdefault(row["cell_id"], {})[row["metric"]] = Value(
            row["value"],
            row["low"],
            row["high"],
            row["corrected"],
            row["standard_error"],
            row["n"],
            row["rank_low"],
            row["rank_high"],
            row["may_be_best"],
            row["method"],
            row["judge"],
            row["judge_digest"],
            row["trained_on"],
            tuple(row["jackknife"]) if row.get("jackknife") else None,
            tuple(row["jackknife_reference"]) if row.get("jackknife_reference") else None,
        )
    return found


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
    """Return the rankings by digest: bounds, eps, correlation of the metrics and leave-one-row-out sensitivity.

    Where there is no MMHM, `note` says why and the rest is None.
    """
    found = {row["ranking"]: row for row in dictionaries(connection, "SELECT * FROM rankings")}
    for row in found.values():
        for column in ("bounds", "correlation", "sensitivity"):
            row[column] = None if row[column] is None else json.loads(row[column])
    return found


def measured_facts(found: Sequence[Row]) -> list[MetricFact]:
    """Return what each metric of these rows is, the composite among them, in the order of tables.

    A metric that the database does not describe, as one of a plug-in that is not installed, has no place there.
    """
    facts = {name: row.facts[name] for row in found for name in row.metrics if name in row.facts}
    if any(row.value(COMPOSITE) is not None for row in found):
        facts[COMPOSITE] = FACTS[COMPOSITE]
    return ordered(facts.values())


def headline(found: Sequence[Row]) -> str:
    """Return the metric that orders these rows unless told otherwise: MMHM, else FID, else the first of the tables.

    FID without its bias goes before raw FID.
    """
    measured = [fact.name for fact in measured_facts(found)]
    return next((name for name in (COMPOSITE, *DISTANCES) if name in measured), measured[0] if measured else "fid")


def ranked_by(found: Sequence[Row], sort: str | None = None) -> str:
    """Return the metric whose rank sets stand beside these rows: what they are sorted by, else their `headline`."""
    values = [row.measured(sort) for row in found] if sort is not None else []
    if sort is not None and any(value is not None and value.rank_low is not None for value in values):
        return sort
    return headline(found)


def comparable(found: Iterable[Row], metric: str) -> list[Row]:
    """Return the rows with real weights that have `metric` over all their samples: with some missing, N is another."""
    return [
        row
        for row in found
        if not row.cell["random_weights"]
        and (value := row.measured(metric)) is not None
        and value.value is not None
        and value.n == row.cell["num_samples"]
    ]


def sorted_rows(found: Sequence[Row], metric: str | None = None, known: Collection[str] = ()) -> list[Row]:
    """Return the rows best first by `metric` (None: their `headline`); rows without it come last.

    The order means something only among rows of one ranking: `by_ranking` takes them apart. Raises StoreError for a
    metric that neither these rows have nor is `known` from others.
    """
    check_metric(found, metric, known)
    return _ordered(found, metric or headline(found))


def best_of_each(
    found: Sequence[Row],
    metric: str | None = None,
    by: Sequence[str] = ("model",),
    known: Collection[str] = (),
) -> list[Row]:
    """Return the best row of each group (say of each model) by `metric`, ranking by ranking, best first.

    `metric` None is the `headline` of each ranking; `by` names columns of `cells`. Raises StoreError for a metric that
    neither these rows have nor is `known` from others.
    """
    check_metric(found, metric, known)
    best: dict[tuple[Any, ...], Row] = {}
    for ranking, members in by_ranking(found).items():
        for row in _ordered(members, metric or headline(members)):
            best.setdefault((ranking, *(row.cell[column] for column in by)), row)
    return list(best.values())


def sortable(found: Sequence[Row]) -> list[str]:
    """Return what these rows can be sorted by: their metrics, the composites and the costs."""
    measured = {name for row in found for name in row.metrics}
    return sorted(measured | {name for name, fact in FACTS.items() if fact.kind != "metric"})


def check_metric(found: Sequence[Row], metric: str | None, known: Collection[str] = ()) -> None:
    """Raise StoreError for a metric that neither these rows have nor is `known` from others; None is no metric."""
    if found and metric is not None and metric not in known and metric not in sortable(found):
        raise StoreError(f"unknown metric '{metric}': the metrics here are {', '.join(sortable(found))}")


def _ordered(found: Sequence[Row], metric: str) -> list[Row]:
    def key(row: Row) -> tuple[bool, float]:
        value = row.value(metric)
        return (value is None, 0.0 if value is None else -row.fact(metric).sign * value)

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

    Rows whose cost was not measured are in no budget, nor are those whose time may be above it: the whole interval of
    the time must be within.
    """

    def fits(row: Row) -> bool:
        if nfe is not None and (row.evaluations is None or row.evaluations > nfe + ROUNDING):
            return False
        if seconds is not None and ((time := timed(row.cell, "seconds")) is None or not time.surely_below(seconds)):
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
    found: Sequence[Row],
    seed: int,
    metric: str | None = None,
    candidates: Sequence[Row] | None = None,
    known: Collection[str] = (),
) -> list[Choice]:
    """Return each model's best setting on cells of `seed`, with the same setting's rows of other seeds.

    So no model is chosen on the samples it is judged by. `metric` None is the `headline`; `candidates` (default: all)
    narrows what may be chosen. Raises StoreError for an unknown metric, or when nothing was measured on that seed.
    """
    pool = [row for row in (found if candidates is None else candidates) if row.cell["seed"] == seed]
    pool = [row for row in pool if not row.cell["random_weights"]]
    if not pool:
        raise StoreError(f"no finished row of seed {seed} to choose by; 'bench run --select-on {seed}' measures them")
    check_metric(found, metric, known)
    elsewhere = [row for row in found if row.cell["seed"] != seed]
    choices = []
    for members in by_ranking(pool).values():
        by = metric or headline(members)
        for row in best_of_each(members, by, known={by}):
            if row.value(by) is not None:
                choices.append(Choice(row, by, [other for other in elsewhere if setting_of(other) == setting_of(row)]))
    return choices


def setting_of(row: Row) -> tuple[Any, ...]:
    """Return what rows of one setting share whatever their seed; it can be hashed."""
    return tuple(json.dumps(row.cell[key], sort_keys=True) for key in SETTING)
