"""How commands speak: tables and progress on stderr, data on stdout."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from results.leaderboard import Row, Value

RUNS_DIR = typer.Option("--runs-dir", help="Where results lie [BENCH_RUNS_DIR, else ./runs].", show_default=False)
JSON = typer.Option("--json", help="Print data alone, as JSON on stdout.")


def runs_directory(given: Path | None) -> Path:
    """Return the runs directory: the option, else BENCH_RUNS_DIR, else `runs` in the working directory."""
    return given or Path(os.environ.get("BENCH_RUNS_DIR") or "runs")


def console() -> Console:
    """Return the console for people: stderr, wide enough for the tables when it is not a terminal."""
    from rich.console import Console

    terminal = Console(stderr=True, highlight=False)
    return terminal if terminal.is_terminal else Console(stderr=True, highlight=False, width=150)


def page() -> Console:
    """Return the console for a command whose output is its table: stdout."""
    from rich.console import Console

    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=150)


def print_json(value: Any) -> None:
    """Print JSON on stdout; not-a-number becomes null."""
    typer.echo(json.dumps(_finite(value), indent=2, default=str))


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
    """Return a table without lines; `right` names the columns of numbers, `fixed` those that never wrap."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in fixed
        )
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def with_interval(value: Value | None) -> str:
    """Return a value with half its interval, cut to the digits that the interval leaves."""
    if value is None or value.value is None:
        return "-"
    if value.low is None or value.high is None:
        return f"{value.value:.4g}"
    half = (value.high - value.low) / 2
    digits = digits_for(half)
    return f"{value.value:.{digits}f} ± {half:.{digits}f}"


def digits_for(half_width: float) -> int:
    """Return the decimals that show two digits of an interval's half width."""
    if half_width <= 0 or not math.isfinite(half_width):
        return 3
    return max(0, min(4, 1 - math.floor(math.log10(half_width))))


WIDE = 130
"""Columns of a terminal that show the whole leaderboard."""
LEADERBOARD_METRICS = ("fid", "is", "clip", "pick", "accuracy")


def leaderboard_table(found: Sequence[Row], width: int) -> Table:
    """Return the leaderboard: rank interval, setting, NFE, metrics with intervals, MMHM, speed; fewer if narrow.

    Samples that failed have a column where there are any, the probability of being first where it is wide enough.
    """
    wide = width >= WIDE
    wanted = LEADERBOARD_METRICS if wide else LEADERBOARD_METRICS[:1]
    failures = any(row.cell["failures"] for row in found)
    metrics = [name for name in wanted if any(name in row.metrics for row in found)]
    columns = ["rank", "model", "steps", "cfg", "NFE", *[name.upper() for name in metrics], "MMHM"]
    columns += ["first"] * wide + ["img/s"] + ["failed"] * failures
    rows = []
    for row in found:
        cell = row.cell
        mark = " *" if cell["off_regime"] else ""
        name = cell["model"] + (" (random)" if cell["random_weights"] else "")
        rows.append(
            [
                _rank(row),
                name + mark,
                "-" if cell["steps"] is None else str(cell["steps"]),
                "-" if cell["cfg"] is None else f"{cell['cfg']:g}",
                "-" if cell["nfe"] is None else f"{cell['nfe']:g}",
                *[with_interval(row.metrics.get(name)) for name in metrics],
                _mmhm(row),
                *["-" if row.rank.get("p_first") is None else f"{row.rank['p_first']:.0%}"] * wide,
                "-" if cell["images_per_second"] is None else f"{cell['images_per_second']:,.0f}",
                *[str(cell["failures"])] * failures,
            ]
        )
    return plain_table(columns, rows, right=[column for column in columns if column != "model"], fixed=columns)


def _rank(row: Row) -> str:
    rank = row.rank
    if not rank or rank.get("rank_low") is None:
        return "-"
    low, high = round(rank["rank_low"]), round(rank["rank_high"])
    return str(low) if low == high else f"{low}-{high}"


def _mmhm(row: Row) -> str:
    from results.leaderboard import Value

    if row.rank.get("mmhm") is None:
        return "-"
    return with_interval(Value(row.rank["mmhm"], row.rank.get("low"), row.rank.get("high")))
