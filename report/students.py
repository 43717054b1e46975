"""Students beside their teachers: FID against evaluations with the teacher's line, and how much for how little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from report import figures, text
from results.catalog import MetricFact
from results.leaderboard import within_budget
from results.rows import Row
from results.teachers import Point, Student, setting_of

CAPTION = (
    "Each student (solid) and its teacher (dashed), both by what they do best within a budget of network evaluations; "
    "a teacher is its weights, by whichever solver and guidance were measured. Bars are 95% intervals. A cross marks "
    "the budget from which on the teacher is significantly better; dotted: the student gains nothing from more "
    "evaluations."
)
NOTE = (
    "Quality is the ratio of the two values, 100% where the student equals its teacher; its interval (Fieller's) "
    "contains 100% exactly where the two are tied. Both are at their best settings, picked on the samples they are "
    "scored on."
)


def finding(found: Sequence[Student], short: str) -> str:
    """Say what the cheapest students keep of their teachers' quality."""
    points = [(point, student) for student in found for point in student.points if point.cost is not None]
    if not points:
        return "No teacher was measured alongside its student"
    level = [(point, student) for point, student in points if point.verdict != "worse"]
    if level:
        point, student = min(level, key=lambda pair: (pair[0].cost or 0.0, -_kept(pair[0])))
        said = "beats" if point.verdict == "better" else "is statistically tied with"
        return (
            f"By {short}, {setting_of(point.row)} {said} {student.teacher} at its best for {_share(point.cost)} of the "
            "evaluations"
        )
    point, student = max(points, key=lambda pair: _kept(pair[0]))
    kept = "" if point.quality is None else f" keeps {_share(point.quality.value)} of the quality ({short})"
    return f"{setting_of(point.row)}{kept} of {student.teacher} at {_share(point.cost)} of the evaluations"


def sentence(student: Student, cell: str, short: str) -> str:
    """Return a student's row beside its teacher in a sentence, for its details."""
    if student.best is None:
        return f"{student.teacher}, not measured here"
    at = "is not overtaken by" if student.overtaken_at is None else "is overtaken at"
    reached = student.measured_to if student.overtaken_at is None else student.overtaken_at
    overtaken = f"{student.model} {at} {reached:g} NFE"
    point = next((point for point in student.points if point.row.cell["cell_id"] == cell), None)
    if point is None:
        return overtaken
    cost = f" for {_share(point.cost)} of its evaluations" if point.cost is not None else ""
    return f"{_quality(point)} of the quality ({short}) of {setting_of(student.best)}{cost}; {overtaken}"


def headings(short: str) -> tuple[str, ...]:
    """Return the headings of the table of students, for the metric with this short name."""
    own = ("student", "NFE", short, "quality", "evaluations", "of the teacher at its best")
    return (*own, "tied from NFE", "overtaken at NFE")


def lines(found: Sequence[Student]) -> list[list[str]]:
    """Return the lines of the table: what each student does best within a budget, beside its teacher."""
    table = []
    for student in found:
        theirs = [f"{student.teacher}, not measured", text.NOTHING, text.NOTHING]
        if (best := student.best) is not None:
            at_best = f"{setting_of(best)}: {_value(best, student.metric)}, {best.evaluations:g} NFE"
            theirs = [at_best, *(_budget(student, budget) for budget in (student.level_at, student.overtaken_at))]
        shares = [[_quality(point), _share(point.cost)] for point in student.points]
        for row, share in zip(student.line, shares or [[text.NOTHING] * 2] * len(student.line), strict=True):
            table.append([setting_of(row), text.plain(row.evaluations), _value(row, student.metric), *share, *theirs])
            theirs = ["", "", ""]
    return table


def figure(found: Sequence[Student], metric: MetricFact, styles: Mapping[str, dict[str, str]]) -> go.Figure:
    """Draw each student's line and its teacher's over evaluations, and where the teacher overtakes."""
    drawn = go.Figure()
    teachers = {student.teacher: student for student in found if student.teacher_line}
    for name, student in teachers.items():
        line = student.teacher_line
        colour = styles.get(name, {"colour": figures.NEUTRAL})["colour"]
        drawn.add_scatter(
            x=[row.evaluations for row in line],
            y=[row.value(metric.name) for row in line],
            error_y=figures.error_bars([row.measured(metric.name) for row in line]),
            mode="lines+markers+text",
            name=figures.label(f"{name}, at its best"),
            text=[f" {figures.label(name)}", *[""] * (len(line) - 1)],
            textposition="middle right",
            line={"color": colour, "width": 2.5, "dash": "dash"},
            marker={"size": 8, "color": colour, "symbol": "square"},
            hovertext=[_hover(row, metric) for row in line],
            hoverinfo="text",
        )
    for student in found:
        style = styles[student.model]
        drawn.add_scatter(
            x=[row.evaluations for row in student.line],
            y=[row.value(metric.name) for row in student.line],
            error_y=figures.error_bars([row.measured(metric.name) for row in student.line]),
            mode="lines+markers",
            name=figures.label(student.model),
            meta={"model": student.model},
            line={"color": style["colour"], "width": 2, "dash": style["dash"]},
            marker={"size": 9, "color": style["colour"], "symbol": style["symbol"]},
            hovertext=[_hover(row, metric) for row in student.line],
            hoverinfo="text",
        )
    for student in found:
        colour = styles[student.model]["colour"]
        last, end = student.line[-1], student.overtaken_at or student.measured_to
        if end is not None and end > (last.evaluations or 0.0):
            drawn.add_scatter(
                x=[last.evaluations, end],
                y=[last.value(metric.name)] * 2,
                mode="lines",
                meta={"model": student.model},
                line={"color": colour, "width": 1.5, "dash": "dot"},
                hoverinfo="skip",
            )
        if student.overtaken_at is not None:
            names = [figures.label(name) for name in (student.teacher, student.model)]
            drawn.add_scatter(
                x=[student.overtaken_at],
                y=[within_budget(student.line, nfe=student.overtaken_at)[-1].value(metric.name)],
                mode="markers",
                name=f"{names[1]} overtaken",
                meta={"model": student.model},
                marker={"size": 12, "symbol": "x-thin", "line": {"width": 2.5, "color": colour}},
                hovertext=[f"{names[0]} is significantly better than {names[1]} within {student.overtaken_at:g} NFE"],
                hoverinfo="text",
            )
    shown = [row.value(metric.name) for student in found for row in [*student.line, *student.teacher_line]]
    figures.axes(
        drawn,
        figures.AXES["nfe"],
        figures.axis_title(metric),
        log_x=True,
        log_y=figures.spans(pd.Series(shown, dtype=float), metric),
    )
    return drawn


def _hover(row: Row, metric: MetricFact) -> str:
    return f"{figures.label(setting_of(row))}<br>{row.evaluations:g} NFE<br>{metric.short} {_value(row, metric.name)}"


def _value(row: Row, metric: str) -> str:
    value = row.measured(metric)
    return text.NOTHING if value is None else text.with_interval(value.value, value.low, value.high)


def _kept(point: Point) -> float:
    return 0.0 if point.quality is None else point.quality.value


def _quality(point: Point) -> str:
    share = point.quality
    if share is None:
        return point.verdict
    high = None if share.high is None else 100 * share.high
    return f"{text.with_interval(100 * share.value, 100 * share.low, high)}%"


def _share(value: float | None) -> str:
    return text.NOTHING if value is None else f"{100 * value:.3g}%"


def _budget(student: Student, budget: float | None) -> str:
    return f"not by {student.measured_to:g}" if budget is None else f"{budget:g}"
