"""MMHM over the rows that may be compared, with intervals of scores and ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from results.catalog import FACTS, MMHM_METRICS
from results.composite import (
    COLUMNS,
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
from results.leaderboard import dictionaries
from results.published import published_rows
from results.statistics import jackknife, joint_rank_intervals
from results.store import connect, forget_rankings, replace_table, write_ranking


def metric_fact_rows() -> list[dict[str, Any]]:
    """Return the rows of table `metric_facts`."""
    columns = ("metric", "title", "higher_is_better", "definition")
    return [{column: fact.row()[column] for column in columns} for fact in FACTS.values()]


def rank_all(database: Path) -> None:
    """Rank every group of comparable rows anew and store scores, intervals, ranks, bounds and sensitivity.

    Bounds, eps and clipping are those of the protocol that each row was measured under. A row takes part when it has
    all four metrics over all samples of its ranking: with samples missing, its FID would be one of another N.
    """
    with connect(database, write=True, retry=True) as connection:
        replace_table(connection, "metric_facts", metric_fact_rows())
        replace_table(connection, "published", published_rows())
        groups = dictionaries(
            connection,
            "SELECT ranking, min(c.protocol) AS protocol, num_samples, seed, any_value(p.definition) AS definition "
            "FROM cells c JOIN protocols p ON p.digest = c.protocol_digest "
            "WHERE status = 'done' AND NOT random_weights GROUP BY ranking, num_samples, seed ORDER BY ranking",
        )
        ranked = []
        for group in groups:
            rows = dictionaries(
                connection,
                "SELECT m.cell_id, m.metric, m.value, m.jackknife, m.reference FROM metrics m "
                "JOIN cells c USING (cell_id) WHERE c.ranking = ? AND c.status = 'done' AND NOT c.random_weights "
                "AND m.n = c.num_samples",
                [group["ranking"]],
            )
            ranking = _rank_group(group, rows, json.loads(group["definition"])["composite"])
            if ranking is not None:
                write_ranking(connection, *ranking)
                ranked.append(group["ranking"])
        forget_rankings(connection, ranked)


def _rank_group(
    group: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], composite: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    by_cell: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_cell.setdefault(row["cell_id"], {})[row["metric"]] = row
    complete = {
        cell_id: metrics
        for cell_id, metrics in sorted(by_cell.items())
        if all(metrics.get(name, {}).get("value") is not None for name in MMHM_METRICS)
    }
    if not complete:
        return None
    eps = float(composite.get("eps", 1e-3))
    frozen = composite.get("bounds")
    bounds = None if frozen is None else {name: {"min": pair[0], "max": pair[1]} for name, pair in frozen.items()}
    clip = bool(composite.get("clip", frozen is not None))
    table = {
        column: [complete[cell_id][name]["value"] for cell_id in complete]
        for column, name in zip(COLUMNS, MMHM_METRICS, strict=True)
    }
    scored = minmax_harmonic_mean(table, eps, bounds, clip)
    values = table_array(table)
    used = None if bounds is None else resolve_bounds(values, bounds)
    left = [[complete[cell_id][name]["jackknife"] for name in MMHM_METRICS] for cell_id in complete]
    scores, ranks = _intervals(values, left, used, clip, eps)
    geometric = minmax_geometric_mean(scored.utilities, eps)
    places = 1.0 + (1.0 - rank_composite(values)) * (len(values) - 1)
    mean_rank = np.round(8 * places) / 8  # means of four places, shared ones by halves: exact, so that ties stay ties
    sensitivity = {
        list(complete)[row.dropped]: len({index for pair in row.reordered for index in pair})
        for row in leave_one_row_out(table, eps, bounds, clip)
    }
    correlation = metric_correlation(values)
    ranking = {
        "ranking": group["ranking"],
        "protocol": group["protocol"],
        "reference": next((row["reference"] for row in rows if row["reference"]), None),
        "num_samples": group["num_samples"],
        "seed": group["seed"],
        "eps": eps,
        "clip": clip,
        "bounds": {
            name: [scored.bounds[c]["min"], scored.bounds[c]["max"]]
            for c, name in zip(COLUMNS, MMHM_METRICS, strict=True)
        },
        "bounds_source": "rows" if bounds is None else f"frozen ({group['protocol']}/{composite.get('version', 1)})",
        "correlation": {
            a: {b: _number(correlation[i, j]) for j, b in enumerate(MMHM_METRICS)} for i, a in enumerate(MMHM_METRICS)
        },
        "sensitivity": sensitivity,
    }
    cell_rows = [
        {
            "ranking": group["ranking"],
            "cell_id": cell_id,
            "mmhm": float(scored.scores[index]),
            **scores[index],
            "utilities": dict(zip(MMHM_METRICS, map(float, scored.utilities[index]), strict=True)),
            "outside": {name: True for name, out in zip(MMHM_METRICS, scored.outside[index], strict=True) if out},
            **ranks[index],
            "geometric": float(geometric[index]),
            "mean_rank": float(mean_rank[index]),
        }
        for index, cell_id in enumerate(complete)
    ]
    return ranking, cell_rows


def _intervals(
    values: np.ndarray, left: list[list[Any]], bounds: np.ndarray | None, clip: bool, eps: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the interval of each score and of each rank; empty where the blocks are missing or differ."""
    lengths = {len(blocks) if blocks else 0 for row in left for blocks in row}
    if len(lengths) != 1 or lengths == {0}:
        none = {"rank_median": None, "rank_low": None, "rank_high": None, "p_first": None}
        return [{"low": None, "high": None}] * len(values), [none] * len(values)
    blocks = np.array(left, dtype=np.float64)

    def score(table: np.ndarray) -> np.ndarray:
        return harmonic_scores(utilities_of(table, bounds, clip), eps)

    full = score(values)
    without = np.stack([score(blocks[:, :, k]) for k in range(blocks.shape[2])], axis=1)
    intervals = [jackknife(full[row], without[row]) for row in range(len(values))]
    scores = [{"low": _number(interval.low), "high": _number(interval.high)} for interval in intervals]
    ranks = [
        {"rank_median": rank.median, "rank_low": rank.low, "rank_high": rank.high, "p_first": rank.first}
        for rank in joint_rank_intervals(values, blocks, score)
    ]
    return scores, ranks


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
