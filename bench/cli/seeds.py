"""Settings measured on several seeds, as the terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bench.cli.output import plain_table, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from results.seeds import OverSeeds, Repeated

LEGEND = (
    "mean over seeds ± 95% interval by the jackknife; between: standard deviation between seeds, expected: by the "
    "jackknife; disagree: metrics whose seeds differ more (or less) than that (F test, 1% for all metrics of a row)"
)


def print_over_seeds(out: Console, found: Sequence[Repeated], metric: str | None = None) -> None:
    """Print a line for each setting: `metric` (default: the headline of its rows) over its seeds."""
    from results import numbers
    from results.leaderboard import headline

    columns = ["model", "steps", "cfg", "seeds", "metric", "mean", "between", "expected", "best", "disagree"]
    lines = []
    for setting in found:
        by = metric if metric in setting.metrics else headline(setting.rows)
        over = setting.metrics.get(by) or next(iter(setting.metrics.values()), None)
        if over is None:
            continue
        cell = setting.rows[0].cell
        spreads = ["-" if value is None else numbers.number(value, digits=2) for value in (over.spread, over.expected)]
        lines.append(
            [
                cell["model"], str(cell["steps"]), f"{cell['cfg']:g}", ",".join(map(str, over.seeds)), over.metric,
                numbers.with_interval(over.mean, over.low, over.high), *spreads,
                numbers.number(over.best, over.low, over.high), _disagreeing(setting.metrics),
            ]
        )  # fmt: skip
    if lines:
        out.print("Over several seeds:", markup=False)
        print_table(out, plain_table(columns, lines, right=columns[1:3] + columns[5:9], fixed=columns[:5]))
        out.print(LEGEND, markup=False, soft_wrap=True)


def _disagreeing(metrics: Mapping[str, OverSeeds]) -> str:
    return ", ".join(f"{name} ({over.disagree})" for name, over in metrics.items() if over.disagree) or "-"
