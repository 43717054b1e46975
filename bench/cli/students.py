"""`bench leaderboard --teachers`: each student beside its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.output import (
    page,
    plain_table,
    print_json,
    print_lines,
    print_table,
    with_interval,
)
from results.errors import BenchError
from results.marks import caveats, marks_of

if TYPE_CHECKING:
    from results.rows import Row
    from results.teachers import Point, Student

SIGNS = {"better": ">", "worse": "<", "tied": "="}
LEGEND = """\
a line for each setting of a student that none of its own beats at lower or equal cost; the teacher's best setting is \
that of any card of its weights, picked on these samples
quality: the ratio of the two {metric}s, 100% where equal, with its 95% interval (> the student is better, < worse, \
= tied); NFE share: of the teacher's network evaluations
tied from, overtaken at: NFE from which the teacher, within the same budget, is no longer significantly worse, and is \
significantly better"""


def show_students(database: Path, protocol: str | None, metric: str | None, as_json: bool) -> None:
    """Print the students of a database, ranking by ranking, beside their teachers."""
    from results.leaderboard import rows
    from results.store import connect
    from results.teachers import students

    with connect(database, retry=True) as connection:
        found = students(connection, rows(connection, protocol=protocol, blocks=True), metric)
    if as_json:
        print_json([student.json() for student in found])
        return
    if not found:
        raise BenchError(
            "no finished row here is a student's: the card of a student names its teacher ('bench models --json' tells "
            "which do); measure both with one 'bench run --model STUDENT,TEACHER'"
        )
    for ranking in dict.fromkeys(student.line[0].cell["ranking"] for student in found):
        _print([student for student in found if student.line[0].cell["ranking"] == ranking])


def _print(found: Sequence[Student]) -> None:
    cell, metric = found[0].line[0].cell, found[0].metric
    name = found[0].line[0].fact(metric).short
    title = f"{cell['protocol']}, {cell['num_samples']:,} samples, seed {cell['seed']} (ranking {cell['ranking'][:8]})"
    page().print(title, markup=False)
    columns = [
        "student",
        "NFE",
        name,
        "quality",
        "NFE share",
        "of the teacher at its best",
        "tied from",
        "overtaken at",
    ]
    lines = []
    for student in found:
        theirs = [f"{student.teacher}: not measured", "-", "-"]
        if student.best is not None:
            at_best = f"{_marked(student.best)}: {name} {with_interval(student.best.measured(metric))}"
            theirs = [f"{at_best}, NFE {_nfe(student.best)}", *(_budget(student, b) for b in student[-2:])]
        shares = [[_quality(point), _percent(point.cost)] for point in student.points] or [["-", "-"]] * len(
            student.line
        )
        for row, share in zip(student.line, shares, strict=True):
            lines.append([_marked(row), _nfe(row), with_interval(row.measured(metric)), *share, *theirs])
            theirs = ["", "", ""]
    text = ["student", "of the teacher at its best"]
    print_table(page(), plain_table(columns, lines, right=[name for name in columns if name not in text], fixed=text))
    page().print(LEGEND.format(metric=name), markup=False, soft_wrap=True)
    shown = [row for student in found for row in (*student.line, *([] if student.best is None else [student.best]))]
    print_lines(page(), caveats(shown, times=False))
    page().print("")


def _marked(row: Row) -> str:
    from results.teachers import setting_of

    return setting_of(row) + marks_of(row)


def _nfe(row: Row) -> str:
    return "-" if row.evaluations is None else f"{row.evaluations:g}"


def _quality(point: Point) -> str:
    sign, share = SIGNS[point.verdict], point.quality
    if share is None:
        return sign
    from results import numbers

    high = None if share.high is None else 100 * share.high
    return f"{sign} {numbers.with_interval(100 * share.value, 100 * share.low, high)}%"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g}%"


def _budget(student: Student, budget: float | None) -> str:
    return f"not by {student.measured_to:g}" if budget is None else f"{budget:g}"
