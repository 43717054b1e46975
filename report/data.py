"""What the report shows: the rows of the leaderboard, and what hangs on them, as frames to draw from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import duckdb
import pandas as pd

from results import budgets as costs
from results import convergence, leaderboard, picks, store
from results.budgets import Budget
from results.claims import Claim, claims_of
from results.derived import COMPOSITES
from results.errors import ReportError, StoreError
from results.facts import MetricFact
from results.marks import marks_of
from results.numbers import counted
from results.published import PublishedFigure, claims_under
from results.ranking import places_of
from results.rows import COMPOSITE, Row
from results.spaces import Agreement, agreements
from results.teachers import Student, students
from results.training import leave_out_trained, left_out_line

NUMBERS = (
    "steps", "cfg", "nfe", "guide_nfe", "substeps", "parameters", "flops", "network_seconds", "decode_seconds",
    "judge_seconds", "images_per_second", "latency_seconds", "peak_memory",
)  # fmt: skip
"""Columns of `cells` that are numbers, some of them unknown."""


@dataclass(frozen=True)
class Measurements:
    """One protocol of a database. Frames of cells are indexed by cell_id."""

    protocol: dict[str, Any]
    ranking: dict[str, Any] | None
    other_protocols: list[str]
    rows: dict[str, Row]
    """The rows of `cells`, with what results says of them."""
    cells: pd.DataFrame
    """Finished cells that may be compared with one another."""
    elsewhere: pd.DataFrame
    """Finished cells of the protocol with another sample count, seed, reference ...: never ranked with `cells`."""
    unfinished: pd.DataFrame
    """Failed and unsupported cells, with the reason."""
    values: pd.DataFrame
    """One row per cell and metric: value, low, high, rank_low, rank_high, corrected, n, method, judge ..."""
    metrics: dict[str, MetricFact]
    """The metrics that were measured, in the order they are shown."""
    skipped: pd.DataFrame
    per_class: pd.DataFrame
    thumbnails: pd.DataFrame
    models: pd.DataFrame
    claims: list[Claim]
    """Measured values beside figures published for the same checkpoint and setting."""
    published_only: list[PublishedFigure]
    """What was published for this data set of systems with nothing to run: claims, never ranked."""
    students: list[Student]
    """Models next to the ones that they were distilled from, by FID where it was measured."""
    speed: list[Row]
    """Rows of `bench speed`, timed on random weights."""
    runs: pd.DataFrame
    references: pd.DataFrame
    left_out: str
    """What was left out because of what it was trained on; empty for nothing."""
    spaces: list[Agreement]
    """Every two feature spaces that the rows were measured in."""
    finished: list[Row]
    """Every finished row of the protocol, those of other rankings too."""
    runs_directory: Path
    """Where the per-image scores of the cells are, as far as they are here."""
    number: str
    """The digest of the ranking."""
    missing: list[str]
    """A line for each reason why rows lack metrics."""

    @property
    def title(self) -> str:
        """What tells the ranking from others of the database."""
        cell = self.cells.iloc[0]
        return f"{self.protocol['name']}, {int(cell['num_samples']):,} images, seed {cell['seed']}"

    @cached_property
    def distance(self) -> str:
        """The metric that figures begin with: FID without its bias, else FID, else the headline."""
        return next((name for name in leaderboard.DISTANCES if name in self.metrics), self.headline)

    @cached_property
    def headline(self) -> str:
        """The metric that decides the order of the page; empty where none was measured."""
        return leaderboard.headline([self.rows[cell] for cell in self.ranked.index]) if self.metrics else ""

    @cached_property
    def ranked(self) -> pd.DataFrame:
        """The cells that take part in rankings."""
        return self.cells[~self.cells["random_weights"]]

    @cached_property
    def composites(self) -> dict[str, MetricFact]:
        """What rows can be chosen by besides the metrics: the other composites of the ranking, without intervals."""
        ranked = [self.rows[cell] for cell in self.ranked.index]
        return {
            fact.name: fact
            for fact in COMPOSITES
            if fact.name not in self.metrics and any(row.value(fact.name) is not None for row in ranked)
        }

    def by_composite(self, name: str) -> list[Row]:
        """Return the rows that have one of `composites`, best first."""
        having = [row for cell in self.ranked.index if (row := self.rows[cell]).value(name) is not None]
        return leaderboard.sorted_rows(having, name)

    @property
    def many(self) -> bool:
        """Whether there are so many rows that the page carries less of each."""
        return len(self.cells) > MANY

    def contenders(self, metric: str, among: Iterable[str] | None = None) -> list[Row]:
        """Return the rows (of the cells `among`, all by default) that `metric` ranks, best first."""
        if among is not None:
            return leaderboard.sorted_rows(leaderboard.comparable(self._chosen(among), metric), metric)
        if metric not in self._orders:  # a page reads each order a dozen times
            found = leaderboard.comparable(self.rows.values(), metric)
            self._orders[metric] = leaderboard.sorted_rows(found, metric)
        return list(self._orders[metric])

    @cached_property
    def _orders(self) -> dict[str, list[Row]]:
        return {}

    def best(self, metric: str, by: Sequence[str] = ("model",), among: Iterable[str] | None = None) -> list[str]:
        """Return the best cell by `metric` of each group, best first; groups without a value are left out."""
        return [cell_of(row) for row in leaderboard.best_of_each(self.contenders(metric, among), metric, by)]

    def leaders(self, metric: str) -> list[str]:
        """Return the cells among which the best by `metric` is with 95%, best first."""
        found = self.contenders(metric)
        return [cell_of(row) for row in found[:1] + [row for row in found[1:] if row.may_be_best(metric)]]

    def order(self, metric: str) -> list[str]:
        """Return every cell: those that `metric` ranks, best first, then the others."""
        ranked = dict.fromkeys(map(cell_of, self.contenders(metric))) if metric else {}
        return [*ranked, *(str(cell) for cell in self.cells.index if cell not in ranked)]

    def places(self, metric: str) -> dict[str, int]:
        """Return the place of each cell that `metric` ranks, best first; equal values share one."""
        ranked = self.contenders(metric)
        values = [row.value(metric) for row in ranked]
        return dict(zip(map(cell_of, ranked), places_of(values, self.metrics[metric].sign), strict=True))

    def affordable(self, level: float) -> list[str]:
        """Return the cells of at most `level` network evaluations per image."""
        return [cell_of(row) for row in leaderboard.within_budget(list(self.rows.values()), nfe=level)]

    def budgets(self, metric: str, cost: Literal["nfe", "seconds"] = "nfe") -> list[Budget]:
        """Return the winner by `metric` at each budget of `cost` per image."""
        return costs.budgets(self.contenders(metric), metric, cost)

    def front(self, metric: str, cost: costs.Cost, among: Iterable[str]) -> list[str]:
        """Return the cells that nothing beats by `metric` at lower or equal cost, cheapest first."""
        return [cell_of(row) for row in costs.pareto_front(self._chosen(among), metric, cost)]

    def price(self, cell: str, cost: costs.Cost) -> tuple[float | None, float | None]:
        """Return the ends of the interval of a cell's cost; (None, None) where it is not known."""
        price = costs.price_of(self.rows[cell], cost)
        return (None, None) if price is None else (price.low, price.high)

    @cached_property
    def compared(self) -> list[str]:
        """The cells whose ties are known within any choice of rows: all, or of very many the best of each setting."""
        ranked = [str(cell) for cell in self.ranked.index]
        if len(ranked) <= MOST_COMPARED or not self.headline:
            return ranked[:MOST_COMPARED]
        best = dict.fromkeys([*self.best(self.headline), *self.best(self.headline, ("model", "steps"))])
        return list(best)[:MOST_COMPARED]

    def beaten(self, metric: str) -> dict[str, frozenset[str]]:
        """Return which of the `compared` cells are significantly better than each of them by `metric`."""
        return picks.beaten_by(leaderboard.comparable(self._chosen(self.compared), metric), metric)

    def converging(self, metric: str) -> list[convergence.Convergence]:
        """Return how `metric` changes with the number of images for each model's best row."""
        return convergence.convergence(self._chosen(self.best(metric)), self.finished, metric)

    def drawn(self, rows: pd.DataFrame, metric: str) -> pd.DataFrame:
        """Return the rows that a chart can hold: all, or of very many each model's best at each step count."""
        if len(rows) <= MOST_DRAWN:
            return rows
        return rows.loc[self.best(metric, ("model", "steps"), rows.index)[:MOST_DRAWN]].assign(variant="")

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

    def student(self, cell: str) -> Student | None:
        """Return the student that a cell's model is by its checkpoint, beside its teacher; None for no student."""
        row = self.rows[cell].cell
        own = [student for student in self.students if student.model == row["model"]]
        return next((student for student in own if student.line[0].cell["checkpoint"] == row["checkpoint"]), None)

    def _chosen(self, among: Iterable[str] | None) -> list[Row]:
        return list(self.rows.values()) if among is None else [self.rows[cell] for cell in among]


MANY = 1000
"""Rows from which on a page is packed."""
MOST_DRAWN = 500
"""Points of one chart."""
MOST_COMPARED = 150
"""Rows among which every pair is compared: the time and the page's size go with their square."""


def cell_of(row: Row) -> str:
    """Return the id of a row's cell."""
    return str(row.cell["cell_id"])


MOST_RANKINGS = 8
"""Rankings that one page holds, those with the most rows."""


def read_rankings(
    database: Path, protocol: str | None = None, without_trained_on: Sequence[str] = ()
) -> list[Measurements]:
    """Read every ranking of `database` (of one protocol where it is given), the one to show first in front.

    Raises `ReportError` as `read_measurements` does.
    """
    first = read_measurements(database, protocol, without_trained_on)
    with store.connect(database, retry=True) as connection:
        largest = connection.execute(
            "SELECT protocol, ranking FROM cells WHERE status = 'done' AND protocol = coalesce($1, protocol) "
            "AND protocol <> $2 GROUP BY ALL "
            "ORDER BY count(*) FILTER (NOT random_weights) DESC, max(finished) DESC, ranking",
            [protocol, leaderboard.SPEED],  # a section of every page
        ).fetchall()
    found = [first]
    for name, ranking in [(name, ranking) for name, ranking in largest if ranking != first.number][: MOST_RANKINGS - 1]:
        try:
            found.append(read_measurements(database, name, without_trained_on, ranking))
        except ReportError:
            if not without_trained_on:  # else all of it may be left out
                raise
    return found


def read_measurements(
    database: Path, protocol: str | None = None, without_trained_on: Sequence[str] = (), ranking: str | None = None
) -> Measurements:
    """Read one ranking of `protocol` from `database`; by default the one with the most finished cells.

    Models that were trained on the features of the judges `without_trained_on` are left out, and the others ranked
    without them. Raises `ReportError` when the file is missing, locked, of another schema, or without a finished cell.
    """
    try:
        with store.connect(database, retry=True) as connection:
            return _read(connection, database, protocol, without_trained_on, ranking)
    except StoreError as error:
        raise ReportError(str(error)) from error
    except duckdb.Error as error:
        first_line = str(error).strip().splitlines()[0]
        raise ReportError(f"cannot read {database}: {first_line}") from error


def _read(
    connection: duckdb.DuckDBPyConnection,
    database: Path,
    protocol: str | None,
    without_trained_on: Sequence[str],
    ranking: str | None,
) -> Measurements:
    name, others = _choose_protocol(connection, database, protocol)

    def frame(query: str, *arguments: object) -> pd.DataFrame:
        found = connection.execute(query, list(arguments)).df()
        return found.astype(object).where(found.notna(), None) if found.empty else found

    found = leaderboard.rows(connection, protocol=name, status=None)
    left_out = leave_out_trained(connection, found, without_trained_on) if without_trained_on else []
    if left_out:
        gone = set(map(cell_of, left_out))
        found = [row for row in found if cell_of(row) not in gone]
        if not any(row.cell["status"] == "done" for row in found):
            raise ReportError(f"every finished cell of {name} is of a model trained on {', '.join(without_trained_on)}")
    cells = _labelled(found)
    done = cells[cells["status"] == "done"]
    ranking = ranking or _choose_ranking(done)
    if not (done["ranking"] == ranking).any():
        raise ReportError(f"nothing of ranking {ranking[:12]} is left to show")
    read = leaderboard.rows(connection, protocol=name, ranking=ranking, blocks=True)
    shown = done[done["ranking"] == ranking]
    by_cell = {cell_of(row): row for row in read}
    rows = {str(cell): by_cell[cell] for cell in shown.index if cell in by_cell}
    facts = leaderboard.measured_facts(list(rows.values()))
    metrics = {fact.name: fact for fact in facts if leaderboard.comparable(rows.values(), fact.name)}
    ours = "WHERE cell_id IN (SELECT cell_id FROM cells WHERE protocol = ? AND status = 'done' AND ranking = ?)"
    digest = shown["protocol_digest"].iloc[-1]
    protocols = frame("SELECT * FROM protocols WHERE digest = ?", digest)
    return Measurements(
        left_out=left_out_line(left_out, without_trained_on) if without_trained_on else "",
        spaces=agreements(list(rows.values())),
        finished=[row for row in found if row.cell["status"] == "done"],
        runs_directory=database.parent,
        number=ranking,
        missing=leaderboard.missing_metrics(connection, list(rows.values())),
        protocol=record(protocols.iloc[0])
        if len(protocols)
        else {"name": name, "title": name, "digest": digest, "definition": "{}"},
        ranking=leaderboard.rankings(connection).get(ranking),
        other_protocols=others,
        rows=rows,
        cells=shown,
        elsewhere=done[done["ranking"] != ranking],
        unfinished=cells[cells["status"] != "done"],
        values=_values(rows, metrics),
        metrics=metrics,
        skipped=frame(f"SELECT * FROM skipped_metrics {ours} ORDER BY metric, reason, cell_id", name, ranking),
        per_class=frame(f"SELECT * FROM per_class {ours} ORDER BY label", name, ranking),
        thumbnails=frame(f"SELECT * FROM thumbnails {ours} ORDER BY cell_id, sample_index", name, ranking),
        claims=claims_of(connection, list(rows.values())).claims,
        published_only=claims_under(connection, name),
        students=students(connection, list(rows.values())) if metrics else [],
        speed=leaderboard.rows(connection, protocol=leaderboard.SPEED),
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
    if len(names) > 1:
        names = [name for name in names if name != leaderboard.SPEED]  # a section of every page
    if not names:
        others = connection.execute("SELECT status, reason FROM cells ORDER BY finished DESC LIMIT 1").fetchone()
        last = "run 'bench run' first" if others is None else f"the last one is {others[0]} ({others[1]})"
        raise ReportError(f"{database} has no finished rows: {last}")
    if asked is not None and asked not in names:
        raise ReportError(f"{database} has no finished rows of protocol {asked!r}, only of {', '.join(sorted(names))}")
    chosen = asked or names[0]
    return chosen, sorted(set(names) - {chosen})


def _choose_ranking(done: pd.DataFrame) -> str:
    """Return the ranking with the most rows of real weights, the latest one among equals."""
    sizes = (
        done.assign(real=~done["random_weights"]).groupby("ranking").agg(real=("real", "sum"), last=("finished", "max"))
    )
    return str(sizes.sort_values(["real", "last"]).index[-1])


def _labelled(found: Sequence[Row]) -> pd.DataFrame:
    """Return the cells with what tells the rows of one model apart, their evaluations and seconds per image.

    `label` names a row; `marked` is the label with the row's marks (`results.marks`).
    """
    cells = pd.DataFrame(
        [{**row.cell, "evaluations": row.evaluations, "seconds": row.seconds, "marks": marks_of(row)} for row in found]
    ).set_index("cell_id")
    cells = cells.drop(columns="trained_on")  # the rows say it
    numbers = [column for column in (*NUMBERS, "evaluations", "seconds") if cells[column].dtype == object]
    cells[numbers] = cells[numbers].astype(float)
    cells = cells.sort_values(["model", "steps", "cfg", "cell_id"])
    per_model = cells.groupby("model")[["cfg", "sampler", "dtype"]].nunique()
    variants, labels = [], []
    for _, row in cells.iterrows():
        varied = per_model.loc[row["model"]]
        parts = []
        if varied["cfg"] > 1 and pd.notna(row["cfg"]):
            parts.append(f"cfg {row['cfg']:g}")
        parts += [str(row[column]) for column in ("sampler", "dtype") if varied[column] > 1]
        parts += [f"{key}={value}" for key, value in row["options"].items()]
        variants.append(", ".join(parts))
        steps = "" if pd.isna(row["steps"]) else f" at {counted(int(row['steps']), 'step')}"
        labels.append(", ".join([row["model"] + steps, *parts]))
    label = pd.Series(labels, cells.index, dtype=object)
    variant = pd.Series(variants, cells.index, dtype=object)
    return cells.assign(variant=variant, label=label, marked=label + cells["marks"])


def _values(rows: dict[str, Row], metrics: dict[str, MetricFact]) -> pd.DataFrame:
    """Return one row per metric and cell; ranks only where the row takes part in the metric's ranking."""
    numbers = ("value", "low", "high", "corrected", "standard_error", "rank_low", "rank_high")
    columns = (
        "cell_id",
        "metric",
        *numbers,
        "n",
        "method",
        "judge",
        "judge_digest",
        "trained_on",
        "heavy_tails",
        "rough",
    )
    lines = []
    for metric in metrics:
        for cell, row in rows.items():
            value = row.measured(metric)
            if value is not None:
                known = {column: getattr(value, column) for column in columns[2:]}
                lines.append({"cell_id": cell, "metric": metric, **known})
    return pd.DataFrame(lines, columns=columns).astype(dict.fromkeys(numbers, float))


def decoded(column: object) -> dict[str, Any]:
    """Return a JSON column as a dictionary; empty where it is missing."""
    if isinstance(column, dict):
        return column
    found = json.loads(column) if isinstance(column, str) and column else {}
    return found if isinstance(found, dict) else {"value": found}


def record(row: Any) -> dict[str, Any]:
    """Return a row of a frame as a dictionary."""
    return {str(key): value for key, value in row.items()}


__all__ = ["COMPOSITE", "Measurements", "decoded", "read_measurements", "read_rankings", "record"]
