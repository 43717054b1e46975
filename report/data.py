"""What the report shows, read from the results database through read-only queries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from report.text import plural
from results import store
from results.errors import ReportError, StoreError
from results.standing import Standing, standing_from_differences

COMPOSITE = "mmhm"
ORDER = ("mmhm", "fid", "is", "clip", "pick", "kid", "precision", "recall", "accuracy")
ABBREVIATED = {
    "mmhm": "MMHM",
    "fid": "FID",
    "is": "IS",
    "kid": "KID",
    "clip": "CLIP",
    "pick": "Pick",
    "accuracy": "Accuracy",
}


@dataclass(frozen=True)
class Metric:
    """One metric's name and direction."""

    key: str
    title: str
    higher_is_better: bool
    definition: str

    @property
    def short(self) -> str:
        """What headings call it."""
        return ABBREVIATED.get(self.key, self.title)


@dataclass(frozen=True)
class Measurements:
    """One protocol of a database. Frames of cells are indexed by cell_id."""

    protocol: dict[str, Any]
    ranking: dict[str, Any] | None
    other_protocols: list[str]
    cells: pd.DataFrame
    """Finished cells that may be compared with one another."""
    elsewhere: pd.DataFrame
    """Finished cells of the protocol with another sample count, seed, reference ...: never ranked with `cells`."""
    unfinished: pd.DataFrame
    """Failed and unsupported cells, with the reason."""
    values: pd.DataFrame
    """One row per cell and metric: value, low, high, rank_low, rank_high, corrected, n, method, judge ..."""
    metrics: dict[str, Metric]
    """The metrics that were measured, in the order they are shown."""
    standings: dict[str, Standing]
    ranks: pd.DataFrame
    skipped: pd.DataFrame
    per_class: pd.DataFrame
    thumbnails: pd.DataFrame
    models: pd.DataFrame
    runs: pd.DataFrame
    references: pd.DataFrame

    @property
    def headline(self) -> str:
        """The metric that decides the order of the page: the composite, else FID, else the first one measured."""
        return next((key for key in (COMPOSITE, "fid") if key in self.standings), next(iter(self.standings), ""))

    @property
    def ranked(self) -> pd.DataFrame:
        """The cells that take part in rankings."""
        return self.cells[~self.cells["random_weights"]]

    def with_metric(self, metric: str) -> pd.DataFrame:
        """Return the ranked cells that have `metric`, joined with its value, low, high and ranks."""
        values = self.values[self.values["metric"] == metric].set_index("cell_id")
        return self.ranked.join(values.drop(columns="metric"), how="inner").dropna(subset="value")

    def value(self, cell: str, metric: str) -> dict[str, Any] | None:
        """Return value, low, high ... of one cell's metric, None where it was not measured."""
        found = self.values[(self.values["cell_id"] == cell) & (self.values["metric"] == metric)]
        return None if found.empty else record(found.iloc[0])

    def fact(self, cell: str, column: str) -> Any:
        """Return one column of one cell, such as its label."""
        return self.cells.at[cell, column]


def read_measurements(database: Path, protocol: str | None = None) -> Measurements:
    """Read the measurements of `protocol` (default: the one with the most finished cells) from `database`.

    Raises `ReportError` when the file is missing, locked, of another schema, or without a finished cell.
    """
    try:
        with store.connect(database) as connection:
            return _read(connection, database, protocol)
    except StoreError as error:
        raise ReportError(str(error)) from error
    except duckdb.Error as error:
        first_line = str(error).strip().splitlines()[0]
        raise ReportError(f"cannot read {database}: {first_line}") from error


def _read(connection: duckdb.DuckDBPyConnection, database: Path, protocol: str | None) -> Measurements:
    name, others = _choose_protocol(connection, database, protocol)

    def frame(query: str, *arguments: object) -> pd.DataFrame:
        found = connection.execute(query, list(arguments)).df()
        return found.astype(object).where(found.notna(), None) if found.empty else found

    cells = frame("SELECT * FROM cells WHERE protocol = ? ORDER BY model, steps, cfg, cell_id", name).set_index(
        "cell_id"
    )
    done = _labelled(cells[cells["status"] == "done"])
    ranking = _choose_ranking(done)
    shown = done[done["ranking"] == ranking]
    ranks = frame("SELECT * FROM ranks WHERE ranking = ?", ranking).set_index("cell_id")
    ranking_row = frame("SELECT * FROM rankings WHERE ranking = ?", ranking)
    ours = "WHERE cell_id IN (SELECT cell_id FROM cells WHERE protocol = ? AND status = 'done' AND ranking = ?)"
    values = frame(f"SELECT * FROM metrics {ours} ORDER BY cell_id, metric", name, ranking)
    metrics = _metrics(frame("SELECT * FROM metric_facts"), values, not ranks.empty)
    values, standings = _ranked(values, metrics, ranks, shown)
    metrics = {key: metrics[key] for key in standings}
    digest = shown["protocol_digest"].iloc[-1]
    protocols = frame("SELECT * FROM protocols WHERE digest = ?", digest)
    return Measurements(
        protocol=_first(protocols) or {"name": name, "title": name, "digest": digest, "definition": "{}"},
        ranking=_decoded(_first(ranking_row), ("bounds", "correlation", "sensitivity")),
        other_protocols=others,
        cells=shown,
        elsewhere=done[done["ranking"] != ranking],
        unfinished=_labelled(cells[cells["status"] != "done"]),
        values=values,
        metrics=metrics,
        standings=standings,
        ranks=ranks,
        skipped=frame(f"SELECT * FROM skipped_metrics {ours} ORDER BY metric, reason, cell_id", name, ranking),
        per_class=frame(f"SELECT * FROM per_class {ours} ORDER BY label", name, ranking),
        thumbnails=frame(f"SELECT * FROM thumbnails {ours} ORDER BY cell_id, sample_index", name, ranking),
        models=frame("SELECT * FROM models ORDER BY model").set_index("model"),
        runs=frame(
            "SELECT * FROM runs WHERE run_id IN (SELECT run_id FROM cells WHERE protocol = ?) ORDER BY started", name
        ),
        references=frame(
            'SELECT * FROM "references" WHERE digest IN (SELECT reference_digest FROM metrics '
            "WHERE cell_id IN (SELECT cell_id FROM cells WHERE protocol = ?)) ORDER BY name",
            name,
        ),
    )


def _choose_protocol(connection: duckdb.DuckDBPyConnection, database: Path, asked: str | None) -> tuple[str, list[str]]:
    counts = connection.execute(
        "SELECT protocol FROM cells WHERE status = 'done' GROUP BY protocol ORDER BY count(*) DESC, max(finished) DESC"
    ).fetchall()
    names = [str(row[0]) for row in counts]
    if not names:
        raise ReportError(f"{database} holds no finished cell: run `bench run` first")
    if asked is not None and asked not in names:
        raise ReportError(f"{database} holds no finished cell of protocol {asked!r}: it has {', '.join(sorted(names))}")
    chosen = asked or names[0]
    return chosen, sorted(set(names) - {chosen})


def _choose_ranking(done: pd.DataFrame) -> str:
    """Return the ranking with the most rows of real weights, the latest one among equals."""
    counted = (
        done.assign(real=~done["random_weights"]).groupby("ranking").agg(real=("real", "sum"), last=("finished", "max"))
    )
    return str(counted.sort_values(["real", "last"]).index[-1])


def _labelled(cells: pd.DataFrame) -> pd.DataFrame:
    """Add what tells the rows of one model apart, seconds per image, and booleans that are booleans."""
    cells = cells.copy()
    for column in ("off_regime", "random_weights"):
        cells[column] = cells[column].astype(bool)
    rate = pd.to_numeric(cells["images_per_second"])
    cells["seconds"] = (1 / rate.where(rate > 0)).astype(float)
    per_model = cells.groupby("model")[["cfg", "sampler", "dtype"]].nunique()
    variants, labels = [], []
    for _, row in cells.iterrows():
        varied = per_model.loc[row["model"]]
        parts = []
        if varied["cfg"] > 1 and pd.notna(row["cfg"]):
            parts.append(f"cfg {row['cfg']:g}")
        parts += [str(row[column]) for column in ("sampler", "dtype") if varied[column] > 1]
        parts += [f"{key}={value}" for key, value in decoded(row["options"]).items()]
        variants.append(", ".join(parts))
        steps = "" if pd.isna(row["steps"]) else f" at {plural(int(row['steps']), 'step')}"
        labels.append(", ".join([row["model"] + steps, *parts]))
    return cells.assign(
        variant=pd.Series(variants, cells.index, dtype=object), label=pd.Series(labels, cells.index, dtype=object)
    )


def _metrics(facts: pd.DataFrame, values: pd.DataFrame, composite: bool) -> dict[str, Metric]:
    measured = set(values.loc[values["value"].notna(), "metric"]) | ({COMPOSITE} if composite else set())
    known = {row["metric"]: row for _, row in facts.iterrows()}
    order = [key for key in ORDER if key in measured] + sorted(measured - set(ORDER))
    metrics = {}
    for key in order:
        if key in known:
            row = known[key]
            metrics[key] = Metric(key, row["title"], bool(row["higher_is_better"]), row["definition"])
        elif key == COMPOSITE:
            metrics[key] = Metric(key, "MMHM", True, "Harmonic mean of the min-max normalised metrics.")
        else:
            raise ReportError(f"metric {key!r} has values but no entry in metric_facts: rebuild with `bench reindex`")
    return metrics


def _ranked(
    values: pd.DataFrame, metrics: dict[str, Metric], ranks: pd.DataFrame, cells: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Standing]]:
    """Add the composite as one more metric, and to every metric the rank intervals of the cells with real weights."""
    real = cells.index[~cells["random_weights"]]
    values = values[values["metric"] != COMPOSITE]
    standings: dict[str, Standing] = {}
    parts = []
    for key, metric in metrics.items():
        if key == COMPOSITE:
            rows = ranks.loc[ranks.index.intersection(real)]
            part = pd.DataFrame({"cell_id": rows.index, "metric": key, "value": rows["mmhm"].to_numpy()})
            for column in ("low", "high"):
                part[column] = rows[column].to_numpy(dtype=float)
            part = part.assign(
                n=cells.loc[rows.index, "num_samples"].to_numpy(), method="blocks resampled jointly", judge=""
            )
            plain_rank = rows["mmhm"].rank(ascending=False, method="min")
            low, high = (pd.to_numeric(rows[side]).fillna(plain_rank) for side in ("rank_low", "rank_high"))
            standings[key] = Standing(key, rows["mmhm"].astype(float), low, high)
        else:
            part = values[values["metric"] == key]
            # A row that lost samples has a FID of another N: shown, not ranked.
            complete = part["n"] == part["n"].max()
            rows = part[part["cell_id"].isin(real) & complete].set_index("cell_id")
            standings[key] = standing_from_differences(rows, key, metric.higher_is_better)
        if standings[key].score.empty:
            del standings[key]
            continue
        for side in ("rank_low", "rank_high"):
            part = part.assign(**{side: part["cell_id"].map(getattr(standings[key], side)).astype(float)})
        parts.append(part)
    merged = pd.concat([part.drop(columns="jackknife", errors="ignore") for part in parts]) if parts else values[:0]
    return merged.reset_index(drop=True), standings


def decoded(text: object) -> dict[str, Any]:
    """Return a JSON column as a dictionary; empty where it is missing."""
    found = json.loads(text) if isinstance(text, str) and text else {}
    return found if isinstance(found, dict) else {"value": found}


def record(row: Any) -> dict[str, Any]:
    """Return a row of a frame as a dictionary."""
    return {str(key): value for key, value in row.items()}


def _first(frame: pd.DataFrame) -> dict[str, Any] | None:
    return None if frame.empty else record(frame.iloc[0])


def _decoded(record: dict[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any] | None:
    return None if record is None else record | {key: decoded(record[key]) for key in keys}
