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

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from results.leaderboard import Row, Value

RUNS_DIR = typer.Option(
    "--runs-dir", help="Directory of the results (default: BENCH_RUNS_DIR, else ./runs).", show_default=False
)
JSON = typer.Option("--json", help="Print JSON on stdout and nothing else.")
ALLOWED = typer.Option(
    "--allowed-signers", help="Take only bundles signed by one of the keys in this file (as ssh-keygen writes it)."
)
GAP = 2
"""Blanks between the columns of a table."""
NARROWEST_TEXT = 24
"""Width down to which a column of text wraps."""
OFF_REGIME = "* outside the step counts that the checkpoint was trained for"
REMARKED = "!"
"""Marks a row whose images look like a mistake; the legend says which."""
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
    """Print a table with its fixed columns whole, past the edge if need be: a number cut short is another number."""
    from rich.cells import cell_len

    needed = -GAP
    for column in table.columns:
        widest = max(cell_len(str(cell)) for cell in [column.header, *column.cells])
        needed += GAP + (widest if column.no_wrap else min(widest, NARROWEST_TEXT))
    out.width = max(out.width, needed)
    out.print(table)


def with_interval(value: Value | None, digits: int = 4) -> str:
    """Return a value with its interval, cut to the digits that the interval leaves."""
    from results import numbers

    if value is None or value.value is None:
        return "-"
    return numbers.with_interval(value.value, value.low, value.high, digits)


USUAL = {"sampler": ("native", "images"), "dtype": ("float32", "uint8")}
"""Settings that need no mention."""


CLIPPED = "^"
"""Marks a row with a metric outside the bounds of MMHM."""
TRAINED = "#"
"""Marks a row whose model was trained on features that metrics read; the legend says which."""
ORDER = (
    "rank: 95 % rank set, simultaneous over all rows; first: probability that the {who} is truly the best by MMHM; =: "
    "one of the rows that may be the best, at 95 %"
)


class Column(NamedTuple):
    """A column of the leaderboard."""

    heading: str
    text: Callable[[Row], str]
    """What stands there in a row."""


def leaderboard_table(found: Sequence[Row], width: int, sort: str | None = None) -> Table:
    """Return the leaderboard: rank set, setting, NFE, metrics with intervals, MMHM, speed; fewer columns if narrow.

    `first` is the probability of being truly the best (of the model, where each has one row); `legend` says so. What
    the rows are sorted by has a column, and samples that failed have one where there are any.
    """
    hidden = hidden_columns(found, width, sort)
    columns = [column for column in leaderboard_columns(found, sort) if column.heading not in hidden]
    headings = [column.heading for column in columns]
    lines = [[column.text(row) for column in columns] for row in found]
    return plain_table(headings, lines, right=[name for name in headings if name != "model"], fixed=["model"])


def hidden_columns(found: Sequence[Row], width: int, sort: str | None = None) -> list[str]:
    """Return the headings of the columns that a page of `width` has no room for."""
    columns, hidden = leaderboard_columns(found, sort), []
    for heading in _dropped():
        if _width(columns, found) <= width:
            break
        kept = [column for column in columns if column.heading != heading or heading == (sort or "").upper()]
        hidden += [heading] * (len(kept) < len(columns))
        columns = kept
    return hidden


def leaderboard_columns(found: Sequence[Row], sort: str | None) -> list[Column]:
    """Return the columns for these rows, where the page is wide enough."""
    from results.catalog import CATALOG

    names = [name for name, fact in CATALOG.items() if fact.summary and any(name in row.metrics for row in found)]
    if sort is not None and sort not in (*names, *SHOWN_ANYWAY):
        names = [sort, *names]
    whole = one_of_each(found)
    columns = [
        Column("rank", _rank),
        Column("model", _name),
        Column("steps", partial(_count, "steps")),
        Column("cfg", partial(_count, "cfg")),
        Column("NFE", partial(_count, "nfe")),
    ]
    if any(row.cell.get("substeps") for row in found):
        columns.append(Column("substeps", partial(_count, "substeps")))
    columns += [Column(name.upper(), partial(_value, name)) for name in names]
    columns += [
        Column("MMHM", lambda row: with_interval(row.measured("mmhm"))),
        Column("first", lambda row: _first(row, whole)),
        Column("img/s", _rate),
    ]
    if any(row.cell["failures"] for row in found):
        columns.append(Column("failed", partial(_count, "failures")))
    return columns


def _dropped() -> list[str]:
    """Return the columns that a narrow page goes without, the first one first: all metrics but the foremost."""
    from results.catalog import CATALOG

    return ["first", *(name.upper() for name, fact in reversed(CATALOG.items()) if fact.summary)][:-1]


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


def rate_of(cell: Mapping[str, Any]) -> str:
    """Return images per second with their interval: `1,234 ± 20`."""
    from results.numbers import with_interval as written
    from results.timing import timed

    rate, time = cell["images_per_second"], timed(cell, "seconds")
    if rate is None or time is None or not time.low or not time.high:
        return "-" if rate is None else f"{rate:,.0f}"
    return written(rate, 1 / time.high, 1 / time.low)


def _value(name: str, row: Row) -> str:
    from results.numbers import number

    digits = row.fact(name).digits
    if name in row.metrics:
        return with_interval(row.metrics[name], digits)
    value = row.value(name)
    return "-" if value is None else number(value, digits=digits)


def one_of_each(found: Sequence[Row]) -> bool:
    """Tell whether these are single rows of their models, so that a model's chances may stand beside them."""
    models = [row.cell["model"] for row in found]
    return len(models) == len(set(models))


def _first(row: Row, whole: bool) -> str:
    chance = row.rank.get("p_first_model" if whole else "p_first")
    if chance is None:
        return "-"
    return f"{'=' if row.rank.get('may_be_best') else ''}{chance:.0%}"


def legend(shown: Sequence[Row], clip: bool | None = None) -> list[str]:
    """Return what ranks, chances and marks of a leaderboard mean, and why any are withheld, one line each.

    `clip` tells whether values outside the bounds of MMHM were clipped to them.
    """
    lines = [OFF_REGIME] if any(row.cell["off_regime"] for row in shown) else []
    if any(row.rank.get("rank_low") is not None for row in shown):
        lines.append(ORDER.format(who="model, with any of its settings," if one_of_each(shown) else "row"))
    lines += signatures(shown)
    lines += [
        f"no rank sets: {reason}"
        for reason in dict.fromkeys(row.rank["withheld"] for row in shown if row.rank.get("withheld"))
    ]
    return [*lines, *caveats(shown, clip)]


def signatures(shown: Sequence[Row]) -> list[str]:
    """Return a line for each key that signed bundles which rows came in: the rows."""
    signers: dict[str, list[str]] = {}
    for row in shown:
        if row.cell.get("signed_by"):
            signers.setdefault(row.cell["signed_by"], []).append(_setting_of(row, shown))
    return [f"signed by {signer}: {', '.join(dict.fromkeys(names))}" for signer, names in signers.items()]


def caveats(shown: Sequence[Row], clip: bool | None = None) -> list[str]:
    """Return what keeps the numbers of these rows from being taken as they are, one line each: the marks, and more.

    That is: clipped to the bounds of MMHM (`clip`, where it is known), training on features that a metric reads, order
    by bias, heavy tails, and images that look like a mistake.
    """
    from results import timing, training

    outside = dict.fromkeys(name for row in shown for name in row.rank.get("outside") or ())
    how = {None: "", True: ", clipped to them: differences beyond are invisible", False: ", not clipped"}[clip]
    lines = [f"{CLIPPED} outside the bounds of MMHM ({', '.join(outside)}){how}"] if outside else []
    lines += [f"{TRAINED} {line}" for line in training.remarks(shown)]
    lines += [*reversed_by_bias(shown), *heavy_tails(shown), *timing.remarks(shown), *waivers(shown)]
    return lines + [f"{REMARKED} {row.cell['model']}: {remark}" for row in shown for remark in row.remarks]


def waivers(shown: Sequence[Row]) -> list[str]:
    """Return a line about each clause of the adapter contract that a model's card waives, with the card's reason."""
    found = {
        f"{row.cell['model']} waives '{clause}' of the adapter contract: {reason}": None
        for row in shown
        for clause, reason in (row.cell.get("waived") or {}).items()
    }
    return list(found)


def heavy_tails(shown: Sequence[Row]) -> list[str]:
    """Return a line about the rows and metrics whose intervals few images decide; none where there are no such."""
    heavy: dict[str, list[str]] = {}
    for row in shown:
        for name, value in row.metrics.items():
            if value.heavy_tails:
                heavy.setdefault(_setting_of(row, shown), []).append(name)
    if not heavy:
        return []
    names = [f"{setting} ({', '.join(metrics)})" for setting, metrics in heavy.items()]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"heavy tails, intervals may be too narrow: {', '.join(names[:3])}{more}"]


def reversed_by_bias(shown: Sequence[Row]) -> list[str]:
    """Return a line about the pairs of rows whose order by FID is that of its bias; none where there are no such."""
    from results import comparing

    pairs = comparing.reversed_by_bias(shown)
    if not pairs:
        return []
    names = [" and ".join(_setting_of(row, shown) for row in pair) for pair in pairs]
    more = f" and {len(names) - 3} more pairs" if len(names) > 3 else ""
    listed = ", for ".join(names[:3]) + more
    return [f"Without FID's bias, which depends on the model, the order reverses for {listed}"]


def _setting_of(row: Row, shown: Sequence[Row]) -> str:
    """Return the model, with its steps where several rows are of it."""
    alone = sum(other.cell["model"] == row.cell["model"] for other in shown) == 1
    return row.cell["model"] if alone or row.cell["steps"] is None else f"{row.cell['model']}@{row.cell['steps']}"


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
    signs = " *" * bool(cell["off_regime"]) + f" {REMARKED}" * bool(row.remarks)
    return cell["model"] + (f" ({', '.join(marks)})" if marks else "") + signs + marks_of(row)


def marks_of(row: Row) -> str:
    """Return the marks of a row that the bounds of MMHM clip, and of one trained on what metrics read."""
    return f" {CLIPPED}" * bool(row.rank.get("outside")) + f" {TRAINED}" * bool(row.trained_on)


def _rank(row: Row) -> str:
    from results.numbers import rank

    return "-" if row.rank.get("rank_low") is None else rank(row.rank["rank_low"], row.rank["rank_high"])
