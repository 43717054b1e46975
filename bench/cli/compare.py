"""`bench compare`: paired differences of rows, and rows beside what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.output import (
    JSON,
    RUNS_DIR,
    page,
    plain_table,
    print_json,
    print_lines,
    print_table,
    with_interval,
)
from bench.cli.output import runs_directory as directory_of
from results.errors import BenchError
from results.marks import TRAINED, caveats, marks_of

if TYPE_CHECKING:
    from results.comparing import Comparison
    from results.rows import Row


def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="ROWS", help="Cell ids (4 letters are enough), MODEL, MODEL@STEPS or MODEL@STEPS@CFG."),
    ],
    published: Annotated[bool, typer.Option("--published", help="Compare a row with its published figures.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Only rows of this seed.")] = None,
    as_json: Annotated[bool, JSON] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Compare rows with each other or with published figures.

    Two rows: the paired difference a - b. Several rows: every pair. Two models without step counts are compared at
    every step count that both were measured at.
    """
    from bench.models.cards import answering

    if published == (len(names) > 1):
        raise BenchError("compare: name two or more rows, or one row and --published")
    database = directory_of(runs_dir) / "bench.duckdb"
    if published:
        _compare_published(database, answering(names[0]), seed, as_json)
    elif len(names) == 2:
        _compare_rows(database, names[0], names[1], seed, as_json)
    else:
        _compare_several(database, [answering(name) for name in names], seed, as_json)


def _compare_several(database: Path, names: Sequence[str], seed: int | None, as_json: bool) -> None:
    from results.leaderboard import headline
    from results.matrix import compare_several

    outcome = compare_several(database, names, seed)
    if as_json:
        print_json([pair._asdict() for pair in outcome.pairs])
        return
    letters = {row.cell["cell_id"]: _letters(index) for index, row in enumerate(outcome.rows)}
    for row, title in zip(outcome.rows, outcome.titles, strict=True):
        print_lines(page(), [f"{letters[row.cell['cell_id']]} = {title}{marks_of(row)}"])
    metrics = list(dict.fromkeys(pair.metric for pair in outcome.pairs))
    if not metrics:
        page().print("none of the metrics that these rows share can be compared: too few common blocks", markup=False)
        return
    columns = ["", *metrics]
    lines = [
        [letters[row.cell["cell_id"]], *(with_interval(row.measured(metric)) for metric in metrics)]
        for row in outcome.rows
    ]
    print_table(page(), plain_table(columns, lines, right=metrics))
    for metric in metrics:
        first, rest = ([letters[row.cell["cell_id"]] for row in part] for part in outcome.leading(metric))
        page().print(f"{metric}: {_leads(first, rest)}", markup=False)
    leading = {metric: {row.cell["cell_id"] for row in outcome.leading(metric)[0]} for metric in metrics}
    print_lines(page(), [*_at_odds(outcome.rows, leading), *caveats(outcome.rows, times=False)])
    metric = next((name for name in (headline(outcome.rows), "fid") if name in metrics), metrics[0])
    signs = {"better": ">", "worse": "<", "tied": "="}
    table = [
        [
            letters[one.cell["cell_id"]],
            *("" if one is other else signs[outcome.verdict(metric, one, other)] for other in outcome.rows),
        ]
        for one in outcome.rows
        if one.measured(metric) is not None
    ]
    page().print(f"\n{metric}, row compared with column: > better, < worse, = tied", markup=False)
    print_table(page(), plain_table(["", *letters.values()], table))
    page().print(
        "The intervals of all pairs of a metric are simultaneous at 95%; --json prints them.",
        markup=False,
        soft_wrap=True,
    )


def _at_odds(rows: Sequence[Row], leading: Mapping[str, set[str]]) -> list[str]:
    from results.spaces import at_odds

    pairs = at_odds(rows, lambda metric: leading.get(metric, set()))
    return [f"{one.short} and {other.short} disagree about the leader" for one, other in pairs]


def _letters(index: int) -> str:
    """Return a, b ... z, a2, b2 ..."""
    turn, letter = divmod(index, 26)
    return chr(ord("a") + letter) + (str(turn + 1) if turn else "")


def _leads(first: Sequence[str], rest: Sequence[str]) -> str:
    """Name the rows that no other row is better than."""
    if len(first) == 1:
        return f"{first[0]} leads" + (", the others are worse" if rest else "")
    named, last = (first[:-1], first[-1]) if len(first) < 4 else (first[:2], f"{len(first) - 2} more")
    shown = f"{', '.join(named)} and {last}"
    return f"{shown} {'lead, ' if rest else 'are '}tied"


def _compare_rows(database: Path, a: str, b: str, seed: int | None, as_json: bool) -> None:
    from bench import api

    outcomes = api.compare(a, b, seed=seed, runs=database.parent).comparisons
    if as_json:
        which = ("ranking", "num_samples", "seed", "steps") if len(outcomes) > 1 else ()
        print_json(
            [
                {key: outcome.rows[0].cell[key] for key in which} | difference._asdict()
                for outcome in outcomes
                for difference in outcome.differences
            ]
        )
        return
    for position, outcome in enumerate(outcomes):
        if position:
            page().print("")
        _print_comparison(outcome)


def _print_comparison(outcome: Comparison) -> None:
    from results import numbers
    from results.comparing import TIED

    for letter, title, row in zip("ab", (outcome.title_a, outcome.title_b), outcome.rows, strict=True):
        print_lines(page(), [f"{letter} = {title}{marks_of(row)}"])
    columns = ["metric", "a", "b", "a - b", "95% interval", "verdict"]
    rows = [
        [
            d.metric,
            *(with_interval(row.measured(d.metric)) for row in outcome.rows),
            numbers.difference(d.difference, d.low, d.high),
            numbers.limits(d.low, d.high),
            d.verdict,
        ]
        for d in outcome.differences
    ]
    if not rows:
        page().print("no metric that both rows have can be compared: too few blocks in common", markup=False)
        return
    print_table(page(), plain_table(columns, rows, right=columns[1:5]))
    better = {d.metric: {d.verdict[0]} if d.verdict != TIED else {"a", "b"} for d in outcome.differences}
    print_lines(page(), [*_at_odds(outcome.rows, better), *caveats(outcome.rows, times=False)])
    print_lines(page(), outcome.without_win_rate)
    for d in outcome.differences:
        if d.win_rate is not None:
            share, low, high = (f"{100 * (value or 0.0):.1f}" for value in (d.win_rate, d.win_low, d.win_high))
            print_lines(page(), [f"{d.metric}: a's image scores above b's in {share}% of pairs ({low}% to {high}%)"])


def _compare_published(database: Path, name: str, seed: int | None, as_json: bool) -> None:
    from results import numbers
    from results.claims import published_claims

    found, elsewhere = published_claims(database, name, seed)
    if as_json:
        print_json([claim._asdict() for claim in found])
        return
    if not found:
        where = f"; published are {', '.join(elsewhere)}" if elsewhere else ""
        page().print(f"{name}: no published figure for the measured metrics{where}", markup=False, soft_wrap=True)
        return
    columns = ["model", "steps", "cfg", "metric", "measured", "published", "difference", "half widths", "source"]
    rows = []
    for claim in found:
        half = claim.half_width
        ends = (None, None) if half is None else (claim.difference - half, claim.difference + half)
        rows.append(
            [
                claim.model,
                str(claim.steps),
                f"{claim.cfg:g}",
                claim.metric + f" {TRAINED}" * claim.trained_on,
                numbers.with_interval(claim.measured, claim.low, claim.high),
                f"{claim.published:g}",
                numbers.difference(claim.difference, *ends),
                "-" if claim.half_widths is None else f"{claim.half_widths:+.1f}",
                claim.source,
            ]
        )
    print_table(page(), plain_table(columns, rows, right=columns[1:3] + columns[4:8], fixed=columns[:8]))
    if any(claim.trained_on for claim in found):
        page().print(f"{TRAINED} the model was trained on the features that the metric reads", markup=False)
    obstacles = {obstacle: None for claim in found for obstacle in claim.not_comparable}
    if obstacles:
        page().print(f"Not comparable: {'; '.join(obstacles)}.", markup=False, soft_wrap=True)
    else:
        page().print("Beyond ±1 half-width, the sampling noise of the measured row does not explain the difference.")
