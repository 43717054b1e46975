"""Students beside the models they were distilled from: how much of the quality at which share of the cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import duckdb

from results.budgets import cost_of, pareto_front
from results.comparing import Ratio, ratio, verdict
from results.database import dictionaries
from results.errors import StoreError
from results.leaderboard import best_of_each, by_ranking, comparable, headline, within_budget
from results.numbers import counted
from results.rows import Row

RATIO_METRIC = "fid"
"""The metric that students are held against their teachers by, where it was measured and no other was asked for."""


class Point(NamedTuple):
    """One row of a student beside its teacher at its best."""

    row: Row
    quality: Ratio | None
    """The student's share of the teacher's quality: the ratio of the two values, above 1 where the student is better.
    Its interval holds 1 exactly where the two are tied. None where the metric has no ratio, or blocks are missing."""
    cost: float | None
    """The student's evaluations of networks per image, as a share of the teacher's."""
    verdict: str
    """`better`, `worse` or `tied`: the student against its teacher."""


class Student(NamedTuple):
    """A model and its teacher, of one ranking.

    The teacher is a network, however it is sampled: its rows are those of its card and of every other card of the same
    weights (another solver, guidance), so that a student is held against the best that its teacher does.
    """

    model: str
    teacher: str
    """The card that the student's card names."""
    metric: str
    line: list[Row]
    """The student's rows that nothing of its own beats by `metric` at lower or equal cost, cheapest first; so the last
    one is its best."""
    teacher_line: list[Row]
    """The same of the teacher; empty where it has no row in this ranking."""
    points: list[Point]
    """The student's line beside the teacher at its best; empty without a teacher."""
    level_at: float | None
    """The smallest budget of evaluations within which the teacher is not significantly worse than the student within
    the same budget; None where it is significantly worse as far as it was measured."""
    overtaken_at: float | None
    """The smallest budget of evaluations within which the teacher is significantly better; None where it never is."""

    @property
    def best(self) -> Row | None:
        """The teacher's best row; None where the teacher has none in this ranking."""
        return self.teacher_line[-1] if self.teacher_line else None

    @property
    def measured_to(self) -> float | None:
        """The evaluations of the teacher's best row."""
        return None if self.best is None else self.best.evaluations

    def json(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        beside = {id(point.row): point for point in self.points}
        line = []
        for row in self.line:
            point = beside.get(id(row))
            share = None if point is None or point.quality is None else point.quality._asdict()
            held = (None, None) if point is None else (point.cost, point.verdict)
            line.append({**_facts(row, self.metric), "quality": share, "cost": held[0], "verdict": held[1]})
        return {
            "ranking": self.line[0].cell["ranking"],
            "protocol": self.line[0].cell["protocol"],
            "model": self.model,
            "teacher": self.teacher,
            "metric": self.metric,
            "line": line,
            "teacher_line": [_facts(row, self.metric) for row in self.teacher_line],
            "level_at_nfe": self.level_at,
            "overtaken_at_nfe": self.overtaken_at,
        }


def students(connection: duckdb.DuckDBPyConnection, found: Sequence[Row], metric: str | None = None) -> list[Student]:
    """Return the students among finished rows read with their blocks, ranking by ranking, best first.

    `metric` None is FID where it was measured, else the headline of the ranking. Rows of random weights are left out.
    Raises StoreError for a metric that no row of these has.
    """
    if metric is not None and all(row.value(metric) is None for row in found):
        raise StoreError(f"no row here has '{metric}', so students and teachers cannot be compared by it")
    query = "SELECT model, card FROM models"
    cards = {row["model"]: json.loads(row["card"]) for row in dictionaries(connection, query)}
    result = []
    for members in by_ranking([row for row in found if not row.cell["random_weights"]]).values():
        by = metric or (RATIO_METRIC if any(row.value(RATIO_METRIC) is not None for row in members) else None)
        result += _students(members, cards, by or headline(members))
    return result


def _students(members: Sequence[Row], cards: Mapping[str, Mapping[str, Any]], metric: str) -> list[Student]:
    measured = [row for row in comparable(members, metric) if cost_of(row, "nfe") is not None]
    pupils: dict[tuple[str, str], list[Row]] = {}
    for row in measured:
        teacher = cards.get(row.cell["checkpoint"], {}).get("teacher")
        if teacher:
            pupils.setdefault((row.cell["model"], teacher), []).append(row)
    made = [
        _student(model, teacher, rows, [row for row in measured if _samples(row, teacher, cards)], metric)
        for (model, teacher), rows in pupils.items()
    ]
    order = [id(row) for row in best_of_each([student.line[-1] for student in made], metric, ("cell_id",))]
    return sorted(made, key=lambda student: order.index(id(student.line[-1])))


def _samples(row: Row, name: str, cards: Mapping[str, Mapping[str, Any]]) -> bool:
    """Tell whether a row samples the network of the card `name`: by that card, or by another of the same weights."""
    checkpoint = row.cell["checkpoint"]
    if checkpoint == name:
        return True
    own, other = _weights(cards.get(checkpoint, {})), _weights(cards.get(name, {}))
    return own is not None and own == other


def _weights(card: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return what tells one set of weights from another: the file's digest, else its place, and the tree inside."""
    weights = card.get("weights")
    if not weights:
        return None
    place = (weights.get("repo"), weights.get("url"), weights.get("path"), weights.get("file"))
    return weights.get("sha256") or place, weights.get("tree"), weights.get("prefix")


def _student(model: str, teacher: str, own: Sequence[Row], theirs: Sequence[Row], metric: str) -> Student:
    line, teacher_line = pareto_front(own, metric, "nfe"), pareto_front(theirs, metric, "nfe")
    budgets = sorted({_cost(row) for row in [*line, *teacher_line]})
    budgets = [budget for budget in budgets if budget >= _cost(line[0])]
    judged = [(budget, _within(budget, line, teacher_line, metric)) for budget in budgets]

    def first(is_so: Callable[[str], bool]) -> float | None:
        return next((budget for budget, said in judged if said is not None and is_so(said)), None)

    return Student(
        model=model,
        teacher=teacher,
        metric=metric,
        line=line,
        teacher_line=teacher_line,
        points=[_point(row, teacher_line[-1], metric) for row in line] if teacher_line else [],
        level_at=first(lambda said: said != "better"),
        overtaken_at=first(lambda said: said == "worse"),
    )


def _point(row: Row, best: Row, metric: str) -> Point:
    over, under = (row, best) if row.fact(metric).higher_is_better else (best, row)
    cost = _cost(row) / _cost(best) if _cost(best) else None
    return Point(row, ratio(over, under, metric), cost, _spoken(verdict(row, best, metric)))


def _within(budget: float, line: Sequence[Row], teacher_line: Sequence[Row], metric: str) -> str | None:
    """Say how the student's best within a budget stands to the teacher's; None where the teacher has none there."""
    own, theirs = (within_budget(rows, nfe=budget) for rows in (line, teacher_line))
    return _spoken(verdict(own[-1], theirs[-1], metric)) if own and theirs else None


def _spoken(said: str) -> str:
    return {"a is better": "better", "b is better": "worse"}.get(said, said)


def _cost(row: Row) -> float:
    return float(cost_of(row, "nfe") or 0.0)


def _facts(row: Row, metric: str) -> dict[str, Any]:
    value = row.measured(metric)
    assert value is not None
    settings = {key: row.cell[key] for key in ("cell_id", "model", "checkpoint", "steps", "cfg", "sampler", "options")}
    return {**settings, "evaluations": row.evaluations, "value": value.value, "low": value.low, "high": value.high}


def setting_of(row: Row) -> str:
    """Return what people read of a row that stands for a model's best: `sit-xl at 4 steps, cfg 1.5`."""
    cell, count = row.cell, row.cell["steps"]
    steps = "" if count is None else f" at {counted(count, 'step')}"
    guidance = [] if cell["cfg"] in (None, 1.0) else [f"cfg {cell['cfg']:g}"]
    return ", ".join([cell["model"] + steps, *guidance, *(f"{key}={value}" for key, value in cell["options"].items())])
