"""How commands speak: tables and progress on stderr, data on stdout."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from bench.cli.terminal import WIDTH, people, spelled, write_data
from results.marks import ROUGH, chance, marks_of, one_of_each

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from results.rows import Row, Value

RUNS_DIR = typer.Option(
    "--runs-dir", help="Directory of the results (default: BENCH_RUNS_DIR, else ./runs).", show_default=False
)
JSON = typer.Option("--json", help="Print JSON on stdout and nothing else.")
DRY_RUN = typer.Option("--dry-run", help="Print what there is to do, what it takes and what is missing, then stop.")
ALLOWED = typer.Option(
    "--allowed-signers", help="Take only bundles signed by one of the keys in this file (as ssh-keygen writes it)."
)
GAP = 2
"""Blanks between the columns of a table."""
NARROWEST_TEXT = 24
"""Width down to which a column of text wraps."""
SHOWN_ANYWAY = ("mmhm", "rank", "nfe", "steps", "images_per_second")
"""What a leaderboard can be sorted by and always shows."""


def runs_directory(given: Path | None) -> Path:
    """Return the runs directory: the option, else BENCH_RUNS_DIR, else `runs` in the working directory."""
    from results.files import runs_directory as directory_of

    return directory_of(given)


def console() -> Console:
    """Return the console for people: stderr, wide enough for the tables when it is not a terminal."""
    terminal: Console = people(stderr=True)
    return terminal if terminal.is_terminal else people(stderr=True, width=WIDTH)


def page() -> Console:
    """Return the console for a command whose output is its table: stdout."""
    terminal: Console = people(stderr=False)
    return terminal if terminal.is_terminal else people(stderr=False, width=WIDTH)


def room(out: Console) -> int:
    """Return how wide a table may be: a terminal has an edge, a file or pipe has none."""
    return out.width if out.is_terminal else sys.maxsize


def print_json(value: Any) -> None:
    """Print JSON on stdout; not-a-number becomes null."""
    # ASCII alone, control characters escaped: JSON says so itself.
    write_data(json.dumps(_finite(value), indent=2, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def plain_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    fixed: Sequence[str] = (),
) -> Table:
    """Return a table without lines; `right` names the columns of numbers, which never wrap, nor do the `fixed` ones."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column in columns:
        number = column in right
        table.add_column(
            escape(spelled(column)),
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=number or column in fixed,
        )
    for row in rows:
        table.add_row(*(escape(spelled(cell)) for cell in row))
    return table


def print_table(out: Console, table: Table) -> None:
    """Print a table with its fixed columns whole, past the edge if need be: a number cut short is another number.

    No line ends in blanks.
    """
    from rich.cells import cell_len
    from rich.text import Text

    needed = -GAP
    for column in table.columns:
        widest = max(cell_len(str(cell)) for cell in [column.header, *column.cells])
        needed += GAP + (widest if column.no_wrap else min(widest, NARROWEST_TEXT))
    out.width = max(out.width, needed)
    for segments in out.render_lines(table, pad=False):
        line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
        line.rstrip()
        out.print(line, soft_wrap=True)


def with_interval(value: Value | None, digits: int = 4) -> str:
    """Return a value with its interval, cut to the digits that the interval leaves."""
    from results import numbers

    if value is None or value.value is None:
        return "-"
    return numbers.with_interval(value.value, value.low, value.high, digits) + f" {ROUGH}" * value.rough


USUAL = {"sampler": ("native", "images"), "dtype": ("float32", "uint8")}
"""Settings that need no mention."""


class Column(NamedTuple):
    """A column of the leaderboard."""

    heading: str
    text: Callable[[Row], str]
    """What stands there in a row."""
    sorts: str = ""
    """The metric or cost of a column that a narrow page may go without; empty for the others."""


def print_leaderboard(out: Console, found: Sequence[Row], sort: str | None = None) -> None:
    """Print the leaderboard, and in a line what the page has no room for."""
    print_table(out, leaderboard_table(found, room(out), sort))
    if hidden := hidden_columns(found, room(out), sort):
        print_lines(out, [f"no room for {', '.join(hidden)}: widen the terminal, pipe the output or use --json"])


def leaderboard_table(found: Sequence[Row], width: int, sort: str | None = None) -> Table:
    """Return the leaderboard: rank set, setting, NFE, metrics with intervals, MMHM, speed; fewer columns if narrow.

    Ranks are by the metric that the rows are sorted by, where it has rank sets.

    `first` is the probability of being truly the best (of the model, where each has one row); `results.marks.legend`
    says so. What the rows are sorted by has a column, and samples that failed have one where there are any.
    """
    columns, _ = _fitting(found, width, sort)
    headings = [column.heading for column in columns]
    lines = [[column.text(row) for column in columns] for row in found]
    return plain_table(headings, lines, right=[name for name in headings if name != "model"], fixed=["model"])


def hidden_columns(found: Sequence[Row], width: int, sort: str | None = None) -> list[str]:
    """Return what a page of `width` has no room for: columns by their headings, and the interval of the speed."""
    return _fitting(found, width, sort)[1]


def _fitting(found: Sequence[Row], width: int, sort: str | None) -> tuple[list[Column], list[str]]:
    """Return the columns that fit, and what does not: first the interval of the speed, then whole columns."""
    from results.catalog import FACTS

    columns, hidden = leaderboard_columns(found, sort), []
    speed = FACTS["images_per_second"].short
    if _width(columns, found) > width and any(_rate(row) != _bare_rate(row) for row in found):
        columns = [Column(speed, _bare_rate) if column.heading == speed else column for column in columns]
        hidden.append(f"the interval of {speed}")
    for heading in _dropped():
        if _width(columns, found) <= width:
            break
        kept = [column for column in columns if column.heading != heading or column.sorts == sort]
        hidden += [heading] * (len(kept) < len(columns))
        columns = kept
    return columns, hidden


def leaderboard_columns(found: Sequence[Row], sort: str | None) -> list[Column]:
    """Return the columns for these rows, where the page is wide enough."""
    from results.catalog import CATALOG, FACTS
    from results.leaderboard import ranked_by

    names = [name for name, fact in CATALOG.items() if fact.summary and any(name in row.metrics for row in found)]
    if sort is not None and sort not in (*names, *SHOWN_ANYWAY):
        names = [sort, *names]
    whole = one_of_each(found)
    columns = [
        Column("rank", partial(_rank, ranked_by(found, sort))),
        Column("model", _name),
        Column("steps", partial(_count, "steps")),
        Column("cfg", partial(_count, "cfg")),
        Column(FACTS["nfe"].short, partial(_count, "nfe")),
    ]
    if any(row.cell.get("substeps") for row in found):
        columns.append(Column("substeps", partial(_count, "substeps")))
    columns += [Column(_heading(found, name), partial(_value, name), name) for name in names]
    columns += [
        Column(FACTS["mmhm"].short, lambda row: with_interval(row.measured("mmhm"))),
        Column("first", lambda row: _first(row, whole)),
        Column(FACTS["images_per_second"].short, _rate),
    ]
    if any(row.cell["failures"] for row in found):
        columns.append(Column("failed", partial(_count, "failures")))
    return columns


def _heading(found: Sequence[Row], metric: str) -> str:
    """Return the short name of what these rows are measured by, with its unit where it has one."""
    fact = next((row.fact(metric) for row in found), None)
    return metric if fact is None else ", ".join(filter(None, (fact.short, fact.unit)))


def _dropped() -> list[str]:
    """Return the columns that a narrow page goes without, the first one first: all metrics but the foremost."""
    from results.catalog import CATALOG

    return ["first", *(fact.short for fact in reversed(CATALOG.values()) if fact.summary)][:-1]


def _width(columns: Sequence[Column], rows: Sequence[Row]) -> int:
    widest = [max(len(column.heading), *(len(column.text(row)) for row in rows)) for column in columns]
    return sum(widest) + GAP * (len(widest) - 1)


def _count(column: str, row: Row) -> str:
    value = row.cell.get(column)
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:g}"


def _rate(row: Row) -> str:
    return rate_of(row.cell)


def _bare_rate(row: Row) -> str:
    from results.numbers import number

    rate = row.cell["images_per_second"]
    return "-" if rate is None else number(rate)


def rate_of(cell: Mapping[str, Any]) -> str:
    """Return images per second with their interval: `1,234 ± 20`."""
    from results.numbers import number
    from results.numbers import with_interval as written
    from results.timing import timed

    rate, time = cell["images_per_second"], timed(cell, "seconds")
    if rate is None or time is None or not time.low or not time.high:
        return "-" if rate is None else number(rate)
    return written(rate, 1 / time.high, 1 / time.low)


def _value(name: str, row: Row) -> str:
    from results.numbers import number

    digits = row.fact(name).digits
    if name in row.metrics:
        return with_interval(row.metrics[name], digits)
    value = row.value(name)
    return "-" if value is None else number(value, digits=digits)


def _first(row: Row, whole: bool) -> str:
    found = chance(row, whole)
    if found is None:
        return "-"
    return f"{'=' if row.rank.get('may_be_best') else ''}{found:.0%}"


def print_lines(out: Console, lines: Iterable[str]) -> None:
    """Print lines as they are, each on a line of its own however wide the page is."""
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def _name(row: Row) -> str:
    """Return the model with what sets the row apart: another sampler, precision or setting, random weights; marks."""
    cell = row.cell
    marks = ["random"] if cell["random_weights"] else []
    marks += [cell[key] for key, usual in USUAL.items() if cell[key] not in usual]
    marks += [f"{key}={value}" for key, value in cell["options"].items()]
    return cell["model"] + (f" ({', '.join(marks)})" if marks else "") + marks_of(row)


def _rank(metric: str, row: Row) -> str:
    from results.numbers import rank

    value = row.measured(metric)
    return "-" if value is None or value.rank_low is None else rank(value.rank_low, value.rank_high)
