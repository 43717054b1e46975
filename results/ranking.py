"""Ranks over the rows that may be compared: by each metric, and by MMHM with intervals of scores and ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import duckdb
import numpy as np

from results.catalog import FACTS, MMHM_METRICS, read_facts
from results.chances import chances_of_first
from results.composite import (
    COLUMNS,
    PartialBounds,
    column_of,
    harmonic_scores,
    leave_one_row_out,
    metric_correlation,
    minmax_geometric_mean,
    minmax_harmonic_mean,
    rank_composite,
    resolve_bounds,
    table_array,
    utilities_of,
)
from results.database import RANKING_TABLES, dictionaries, insert, insert_many, transaction
from results.digests import digest_of
from results.errors import BenchError, unknown_key
from results.facts import MetricFact
from results.names import UNDER_ONE_NAME
from results.published import published_rows
from results.rank_sets import Better, rank_sets
from results.statistics import FEWEST_BLOCKS, jackknife

INCOMPLETE = "MMHM needs FID, IS, CLIP score and PickScore over all samples of a row; no row has all four"
Tables = dict[str, list[dict[str, Any]]]
Measured = Mapping[str, Mapping[str, Any]]
"""The metrics of one row: name -> value, jackknife ..."""


def rank(connection: duckdb.DuckDBPyConnection) -> None:
    """Rank every group of comparable rows anew and store ranks, scores, intervals, bounds and sensitivity.

    A row takes part in a metric's ranks when it has the metric over all samples of its ranking: with samples missing,
    its FID would be one of another N; and in MMHM's when it has all four so. Bounds, eps and clipping are those of the
    protocol that the rows were measured under. A ranking whose MMHM cannot be computed says why in its `note`.
    """
    _replace(connection, _ranked(connection), [fact.row() for fact in FACTS.values()], published_rows())


def _replace(
    connection: duckdb.DuckDBPyConnection,
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    facts: Sequence[Mapping[str, Any]],
    published: Sequence[Mapping[str, Any]],
) -> None:
    """Replace all rankings by `tables` (name in RANKING_TABLES -> rows) and the built-in facts, in one transaction.

    Facts of metrics that are not among `facts`, those of plug-ins, stay.
    """
    with transaction(connection):
        for table in RANKING_TABLES:
            connection.execute(f"DELETE FROM {table}")
            insert_many(connection, table, tables[table])
        for fact in facts:
            insert(connection, "metric_facts", fact, replace=True)
        connection.execute("DELETE FROM published")
        insert_many(connection, "published", published)


def rank_without(connection: duckdb.DuckDBPyConnection, cells: Sequence[str]) -> None:
    """Rank every group anew without some of its rows, for what is read over this connection; nothing is stored."""
    for table, rows in _ranked(connection, cells).items():
        connection.execute(f"CREATE TEMP TABLE {table} AS SELECT * FROM {table} WHERE false")
        insert_many(connection, table, rows)


def _ranked(connection: duckdb.DuckDBPyConnection, without: Sequence[str] = ()) -> Tables:
    """Return the rows of the tables of rankings, computed anew but for the cells `without`."""
    facts = read_facts(connection)
    groups = dictionaries(
        connection,
        "SELECT ranking, min(c.protocol) AS protocol, num_samples, seed, any_value(p.definition) AS definition "
        "FROM cells c LEFT JOIN protocols p ON p.digest = c.protocol_digest "
        "WHERE status = 'done' AND NOT random_weights GROUP BY ranking, num_samples, seed ORDER BY ranking",
    )
    tables: Tables = {table: [] for table in RANKING_TABLES}
    for group in groups:
        rows = contenders(connection, group["ranking"])
        rows = {cell_id: measured for cell_id, measured in rows.items() if cell_id not in without}
        ranking, ranks = _rank_by_composite(group, rows)
        tables["rankings"].append(ranking)
        tables["ranks"] += ranks
        tables["metric_ranks"] += rank_by_metrics(group["ranking"], rows, facts)
    return tables


def contenders(connection: duckdb.DuckDBPyConnection, ranking: str) -> dict[str, Measured]:
    """Return the metrics of each row of a ranking, as far as they are over all its samples; cell_id -> name -> row."""
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in dictionaries(
        connection,
        "SELECT m.cell_id, m.metric, m.value, m.corrected, m.jackknife, m.jackknife_reference, m.reference "
        "FROM metrics m JOIN cells c USING (cell_id) "
        "WHERE c.ranking = ? AND c.status = 'done' AND NOT c.random_weights AND m.n = c.num_samples "
        f"AND isfinite(m.value) AND {UNDER_ONE_NAME} ORDER BY m.cell_id, m.metric",
        [ranking],
    ):
        rows.setdefault(row["cell_id"], {})[row["metric"]] = row
    return dict(rows)


def rank_by_metrics(
    ranking: str, rows: Mapping[str, Measured], facts: Mapping[str, MetricFact]
) -> list[dict[str, Any]]:
    """Return the rows of table `metric_ranks`; a metric that no fact tells the direction of has none."""
    found = []
    for metric in dict.fromkeys(name for measured in rows.values() for name in measured):
        if metric not in facts:
            continue
        fact = facts[metric]
        cells = [cell_id for cell_id, measured in rows.items() if metric in measured]
        values = np.array([rows[cell_id][metric]["value"] for cell_id in cells], dtype=np.float64)
        places = places_of(values, fact.sign)
        members = [rows[cell_id][metric] for cell_id in cells]
        limits = _limits(values, members, fact.better, seed_of(ranking, metric))
        found += [
            {"ranking": ranking, "cell_id": cell_id, "metric": metric, "rank": place} | limit
            for cell_id, place, limit in zip(cells, places, limits, strict=True)
        ]
    return found


def places_of(values: Sequence[float | None] | np.ndarray, sign: float) -> list[int]:
    """Return the place of each value, 1 the best by a fact's `sign`; equal values share the first of their places."""
    from scipy.stats import rankdata

    return [int(place) for place in rankdata(-sign * np.asarray(values, dtype=np.float64), method="min")]


def seed_of(*names: str) -> int:
    """Return the seed of what is drawn for a ranking: a repeated ranking is the same to the last digit."""
    return int(digest_of(list(names))[:8], 16)


def _limits(
    values: np.ndarray, measured: Sequence[Mapping[str, Any]], better: Better, seed: int
) -> list[dict[str, Any]]:
    """Return rank set and `may_be_best` of each row.

    Rows of one ranking are measured on the same blocks, so there is one number of blocks, or none: of a row without,
    nothing is said, and it may stand anywhere among the others.
    """
    limits: list[dict[str, Any]] = [dict.fromkeys(("rank_low", "rank_high", "may_be_best")) for _ in values]
    kinds = [(_length(row["jackknife"]), _length(row["jackknife_reference"])) for row in measured]
    for kind in {kind for kind in kinds if kind[0] >= FEWEST_BLOCKS}:
        members = [index for index, own in enumerate(kinds) if own == kind]
        left = np.array([measured[index]["jackknife"] for index in members], dtype=np.float64)
        reference = np.array([measured[index]["jackknife_reference"] for index in members]) if kind[1] else None
        sets = rank_sets(values[members], left, better, leave_reference_out=reference, seed=seed)
        others = len(values) - len(members)
        for index, low, high, best in zip(members, *sets, strict=True):
            limits[index] = {"rank_low": int(low), "rank_high": int(high) + others, "may_be_best": bool(best)}
    return limits


def _length(blocks: Sequence[float] | None) -> int:
    """Return the number of blocks of which the values without one are known, all of them finite; else 0."""
    return len(blocks) if blocks and all(value is not None and math.isfinite(value) for value in blocks) else 0


class Scaling(NamedTuple):
    """How a protocol's composite scales the four metrics: softening, frozen bounds if any, and clipping."""

    eps: float
    bounds: PartialBounds | None
    clip: bool
    version: str
    corrected: bool = False
    """FID enters less its bias, so that models of less variety have no advantage."""


def read_scaling(composite: Any) -> Scaling:
    """Return the scaling that a protocol's `composite` table asks for.

    Raises BenchError, naming the key, for a table that no MMHM can be computed from.
    """
    if not isinstance(composite, Mapping):
        raise BenchError("composite: not a table")
    known = ("eps", "bounds", "clip", "version", "source", "metrics", "fid")
    for key in composite:
        if key not in known:
            raise BenchError(unknown_key("composite", key, known))
    asked = composite.get("metrics", MMHM_METRICS)
    if not isinstance(asked, list | tuple) or sorted(map(str, asked)) != sorted(MMHM_METRICS):
        raise BenchError(f"composite.metrics: {asked} requested, but MMHM is over {', '.join(MMHM_METRICS)}")
    eps = composite.get("eps", 1e-3)
    if not _is_number(eps) or eps < 0:
        raise BenchError(f"composite.eps: {eps!r} is not a number of at least 0")
    frozen = composite.get("bounds")
    if frozen is not None and not isinstance(frozen, Mapping):
        raise BenchError(f"composite.bounds: {frozen!r} is not a table of metrics")
    bounds: dict[str, dict[str, float]] = {}
    for name, pair in (frozen or {}).items():
        if column_of(str(name)) is None:
            raise BenchError(unknown_key("composite.bounds", name, MMHM_METRICS))
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(map(_is_number, pair)):
            raise BenchError(f"composite.bounds.{name}: {pair!r} is not a pair of numbers")
        if pair[0] > pair[1]:
            raise BenchError(f"composite.bounds.{name}: the lower bound {pair[0]:g} is above the upper {pair[1]:g}")
        bounds[name] = {"min": float(pair[0]), "max": float(pair[1])}
    clip = composite.get("clip", frozen is not None)
    if not isinstance(clip, bool):
        raise BenchError(f"composite.clip: {clip!r} is neither true nor false")
    fid = composite.get("fid", "raw")
    if fid not in ("raw", "corrected"):
        raise BenchError(f"composite.fid: {fid!r} is neither 'raw' nor 'corrected'")
    version = str(composite.get("version", 1))
    return Scaling(float(eps), None if frozen is None else bounds, clip, version, fid == "corrected")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rank_by_composite(
    group: Mapping[str, Any], rows: Mapping[str, Measured]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the row of table `rankings` and those of table `ranks`."""
    ranking: dict[str, Any] = {key: group[key] for key in ("ranking", "protocol", "num_samples", "seed")}
    references = [row["reference"] for measured in rows.values() for row in measured.values() if row["reference"]]
    ranking["reference"] = references[0] if references else None
    ranking |= dict.fromkeys(("note", "eps", "clip", "bounds", "bounds_source", "correlation", "sensitivity"))
    complete: dict[str, Measured] = {
        cell_id: measured for cell_id, measured in rows.items() if measured.keys() >= set(MMHM_METRICS)
    }
    try:
        if not complete:
            raise BenchError(INCOMPLETE)
        definition = json.loads(group["definition"] or "{}")
        scaling = read_scaling(definition.get("composite", {}))
    except BenchError as error:
        return ranking | {"note": str(error)}, []
    source = "rows" if scaling.bounds is None else f"frozen ({group['protocol']}/{scaling.version})"
    if scaling.corrected:
        # Whether the bias can be removed goes by N and the reference, which the rows of a ranking share.
        less: dict[str, Measured] = {
            cell: row for cell, measured in complete.items() if (row := _corrected(measured)) is not None
        }
        source += ", FID without its bias" if less else ", raw FID: too few images to remove its bias"
        complete = less or complete
    facts, ranks = _scored(complete, scaling, seed_of(group["ranking"], "mmhm"))
    return ranking | facts | {"bounds_source": source}, [{"ranking": group["ranking"]} | row for row in ranks]


def _corrected(measured: Measured) -> Measured | None:
    """Return the metrics of a row with FID's bias removed, of equal standard error; None where it cannot be."""
    fid = measured["fid"]
    if fid["corrected"] is None or not _length(fid["jackknife"]):
        return None
    moved = dict(fid) | {"value": fid["corrected"]}
    for column in ("jackknife", "jackknife_reference"):
        if _length(fid[column]):
            left = np.asarray(fid[column])
            moved[column] = (left - left.mean() + fid["corrected"]).tolist()
    return dict(measured) | {"fid": moved}


def _scored(
    complete: Mapping[str, Measured], scaling: Scaling, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what the composites say of the table as a whole, and of each of its rows."""
    cells = list(complete)
    table = {
        column: [complete[cell_id][name]["value"] for cell_id in cells]
        for column, name in zip(COLUMNS, MMHM_METRICS, strict=True)
    }
    values = table_array(table)
    scored = minmax_harmonic_mean(table, scaling.eps, scaling.bounds, scaling.clip)
    used = None if scaling.bounds is None else resolve_bounds(values, scaling.bounds)
    measured = [[complete[cell_id][name] for name in MMHM_METRICS] for cell_id in cells]
    intervals = _intervals(values, measured, used, scaling, seed)
    geometric = minmax_geometric_mean(scored.utilities, scaling.eps)
    places = 1.0 + (1.0 - rank_composite(values)) * (len(values) - 1)
    mean_rank = np.round(8 * places) / 8  # means of four places, shared ones by halves: exact, so that ties stay ties
    ranks = [
        {
            "cell_id": cell_id,
            "mmhm": float(scored.scores[index]),
            "utilities": dict(zip(MMHM_METRICS, map(float, scored.utilities[index]), strict=True)),
            "outside": {name: True for name, out in zip(MMHM_METRICS, scored.outside[index], strict=True) if out},
            "geometric": float(geometric[index]),
            "mean_rank": float(mean_rank[index]),
            **intervals[index],
        }
        for index, cell_id in enumerate(cells)
    ]
    sensitivity = leave_one_row_out(table, scaling.eps, scaling.bounds, scaling.clip)
    correlation = metric_correlation(values)
    names = dict(zip(COLUMNS, MMHM_METRICS, strict=True))
    facts = {
        "eps": scaling.eps,
        "clip": scaling.clip,
        "bounds": {names[column]: [pair["min"], pair["max"]] for column, pair in scored.bounds.items()},
        "correlation": {
            one: {other: _number(correlation[i, j]) for j, other in enumerate(MMHM_METRICS)}
            for i, one in enumerate(MMHM_METRICS)
        },
        "sensitivity": {cells[row.dropped]: len({i for pair in row.reordered for i in pair}) for row in sensitivity},
    }
    return facts, ranks


def _intervals(
    values: np.ndarray,
    measured: Sequence[Sequence[Mapping[str, Any]]],
    bounds: np.ndarray | None,
    scaling: Scaling,
    seed: int,
) -> list[dict[str, Any]]:
    """Return interval, rank set and chance of being first of each row's score; or why they are withheld."""

    def score(table: np.ndarray) -> np.ndarray:
        return harmonic_scores(utilities_of(table, bounds, scaling.clip), scaling.eps)

    full = score(values)
    empty = dict.fromkeys(
        ("low", "high", "rank_low", "rank_high", "may_be_best", "p_first", "withheld", "jackknife",
         "jackknife_reference")
    )  # fmt: skip
    found = [empty | {"rank": place} for place in places_of(full, 1.0)]
    lengths = {_length(row["jackknife"]) for rows in measured for row in rows}
    if len(lengths) > 1 or min(lengths) < 2:
        return [row | {"withheld": "the rows were not measured on the same blocks"} for row in found]
    blocks = min(lengths)
    if blocks < FEWEST_BLOCKS:
        return [row | {"withheld": f"{blocks} blocks, but an order needs {FEWEST_BLOCKS}"} for row in found]
    without = _without(values, measured, "jackknife", score)
    assert without is not None
    reference = _without(values, measured, "jackknife_reference", score)
    if not (np.isfinite(full).all() and np.isfinite(without).all()):
        return [row | {"withheld": "a score is not finite"} for row in found]
    for index, row in enumerate(found):
        interval = jackknife(full[index], without[index], reference=None if reference is None else reference[index])
        row |= {"low": interval.low, "high": interval.high, "jackknife": without[index].tolist()}
        row["jackknife_reference"] = None if reference is None else reference[index].tolist()
    sets = rank_sets(full, without, "higher", leave_reference_out=reference, seed=seed)
    chances = chances_of_first(full, without, "higher", leave_reference_out=reference, seed=seed)
    for row, low, high, best, chance in zip(found, *sets, chances, strict=True):
        row |= {"rank_low": int(low), "rank_high": int(high), "may_be_best": bool(best), "p_first": float(chance)}
    return found


def _without(
    values: np.ndarray,
    measured: Sequence[Sequence[Mapping[str, Any]]],
    column: str,
    score: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray | None:
    """Return the scores [R, K] with each block left out of all rows; a metric without such blocks keeps its value."""
    counts = {_length(row[column]) for rows in measured for row in rows} - {0}
    if len(counts) != 1:
        return None
    (count,) = counts
    tables = np.repeat(values[:, :, None], count, axis=2)
    for index, rows in enumerate(measured):
        for place, row in enumerate(rows):
            if _length(row[column]):
                tables[index, place] = row[column]
    return np.stack([score(tables[:, :, k]) for k in range(count)], axis=1)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
