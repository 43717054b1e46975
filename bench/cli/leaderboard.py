"""Commands that are read off the results: the leaderboard with its views, and comparisons of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.output import (
    JSON,
    OFF_REGIME,
    RUNS_DIR,
    console,
    leaderboard_table,
    page,
    plain_table,
    print_json,
    print_order,
    print_remarks,
    print_reversed,
    print_table,
    room,
    with_interval,
)
from bench.cli.output import runs_directory as directory_of
from bench.cli.students import show_students
from results.errors import BenchError

if TYPE_CHECKING:
    from results.comparing import Comparison
    from results.leaderboard import Choice, Row


def leaderboard(
    protocol: Annotated[str | None, typer.Option(help="Only this protocol's rows.")] = None,
    sort: Annotated[
        str | None, typer.Option(help="mmhm, rank, geometric, fid, is, clip, kid, nfe ... [mmhm, else fid].")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every setting, not only each model's best.")] = False,
    at_nfe: Annotated[
        float | None, typer.Option(min=0, help="At most this many network evaluations per image.")
    ] = None,
    at_seconds: Annotated[float | None, typer.Option(min=0, help="At most this many seconds per image.")] = None,
    at_steps: Annotated[int | None, typer.Option(min=1, help="Exactly this many steps.")] = None,
    select_on: Annotated[
        int | None, typer.Option(min=0, help="Choose each model's setting on this seed, report it on the others.")
    ] = None,
    composites: Annotated[
        bool, typer.Option(help="MMHM beside other composites, and how the metrics correlate.")
    ] = False,
    teachers: Annotated[
        bool, typer.Option("--teachers", help="Each student beside the model it was distilled from.")
    ] = False,
    as_json: Annotated[bool, JSON] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Rank measured rows. Rows that differ in reference, judges, seed or sample count get separate rankings."""
    from results.leaderboard import (
        best_of_each,
        by_ranking,
        check_metric,
        chosen_on,
        headline,
        rankings,
        rows,
        sortable,
        sorted_rows,
        within_budget,
    )
    from results.ranking import INCOMPLETE
    from results.store import connect

    if teachers:
        views = {"--all": every, "--at-nfe": at_nfe, "--at-seconds": at_seconds, "--at-steps": at_steps}
        views |= {"--select-on": select_on, "--composites": composites or None}
        if given := [name for name, value in views.items() if value not in (None, False)]:
            raise BenchError(f"--teachers compares all settings of student and teacher: leave out {given[0]}")
        show_students(directory_of(runs_dir) / "bench.duckdb", protocol, sort, as_json)
        return
    if every and select_on is not None:
        raise BenchError("--all shows every setting, --select-on one of each model: give one of the two")
    with connect(directory_of(runs_dir) / "bench.duckdb", retry=True) as connection:
        everything = rows(connection)
        found = [row for row in everything if protocol in (None, row.cell["protocol"])]
        failed = rows(connection, protocol=protocol, status="failed")
        facts = rankings(connection)
    candidates = within_budget(found, nfe=at_nfe, seconds=at_seconds, steps=at_steps)
    choices: list[Choice] = []
    check_metric(everything, sort)
    known = sortable(everything)
    if select_on is not None:
        choices = chosen_on(found, select_on, sort, candidates, known)
        chosen = best_of_each([row for choice in choices for row in choice.reported], sort, known=known)
    else:
        chosen = sorted_rows(candidates, sort, known) if every else best_of_each(candidates, sort, known=known)
    everyone = by_ranking(found)
    by = {name: sort or headline(members) for name, members in everyone.items()}
    groups = {name: sorted_rows(rows, by[name], {by[name]}) for name, rows in by_ranking(chosen).items()}
    # Groups that lack what is sorted by come last, as rows without it do.
    groups = dict(sorted(groups.items(), key=lambda group: all(row.value(by[group[0]]) is None for row in group[1])))
    if as_json:
        selected = {row.cell["cell_id"]: choice for choice in choices for row in choice.reported}
        table = [row_json(row, selected.get(row.cell["cell_id"])) for rows in groups.values() for row in rows]
        print_json([{**facts.get(name, {}), "rows": _of(table, name)} for name in groups] if composites else table)
        return
    view = _view(at_nfe, at_seconds, at_steps)
    for name, members in groups.items():
        cell = members[0].cell
        title = f"{cell['protocol']}, {cell['num_samples']:,} samples, seed {cell['seed']}{view}"
        if select_on is not None:
            title += f", settings chosen on seed {select_on} by {choices[0].metric}"
        if not any(row.metrics for row in everyone[name]):
            for row in members:
                page().print(f"{title}: {_label(row)}: nothing could be measured", markup=False, soft_wrap=True)
            page().print("")
            continue
        ranked = [row for row in everyone[name] if row.rank]
        among = f"ranks among {len(ranked)} row{'s' if len(ranked) != 1 else ''}" if ranked else "not ranked"
        page().print(f"{title} (ranking {name[:8]}, {among})", markup=False)
        if composites:
            _print_composites(members, ranked, facts.get(name))
        else:
            print_table(page(), leaderboard_table(members, room(page()), sort))
            if any(row.cell["off_regime"] for row in members):
                page().print(OFF_REGIME)
            print_order(page(), members, facts.get(name, {}).get("clip"))
            print_reversed(page(), members)
            print_remarks(page(), members)
            if sort is not None and all(row.value(sort) is None for row in members):
                page().print(f"no row here has '{sort}': in the order of measurement", markup=False)
        note = facts.get(name, {}).get("note")
        if note and (composites or note != INCOMPLETE):
            page().print(f"no MMHM: {note}", markup=False, soft_wrap=True)
        page().print("")
    for line in unreported(choices):
        console().print(line, markup=False)
    for row in failed:
        console().print(f"failed: {_label(row)}: {row.cell['reason']}", markup=False)
    if not chosen and not choices:
        budget = f"{view.removeprefix(', ')}: " if found and view else ""
        console().print(f"{budget}no finished cells here; 'bench run' measures some", markup=False)


def row_json(row: Row, choice: Choice | None = None) -> dict[str, Any]:
    """Return a row as JSON: its cell, metrics and ranks, and how its setting was chosen on another seed."""
    metrics = {name: dataclasses.asdict(value) for name, value in row.metrics.items()}
    for value in metrics.values():
        del value["jackknife"], value["jackknife_reference"]
    entry = {**row.cell, "metrics": metrics, "mmhm": dict(row.rank), "bottleneck": row.bottleneck}
    if choice is not None:
        chosen = choice.chosen
        entry["chosen_on"] = {
            "seed": chosen.cell["seed"],
            "cell_id": chosen.cell["cell_id"],
            "metric": choice.metric,
            "value": chosen.value(choice.metric),
        }
    return entry


def unreported(choices: Sequence[Choice]) -> list[str]:
    """Return one line for each model whose chosen setting is not measured on any other seed."""
    return [
        f"{_label(choice.chosen)}: chosen on seed {choice.chosen.cell['seed']}, but not measured on another; "
        f"'bench run --select-on {choice.chosen.cell['seed']}' measures both"
        for choice in choices
        if not choice.reported
    ]


def _of(table: Sequence[Mapping[str, Any]], ranking: str) -> list[Mapping[str, Any]]:
    return [row for row in table if row["ranking"] == ranking]


def _view(nfe: float | None, seconds: float | None, steps: int | None) -> str:
    words = "" if nfe is None else f", at most {nfe:g} network evaluations an image"
    words += "" if seconds is None else f", at most {seconds:g} s an image"
    return words + ("" if steps is None else f", {steps} step{'s' if steps != 1 else ''}")


def _label(row: Row) -> str:
    cell = row.cell
    return cell["model"] if cell["steps"] is None else f"{cell['model']}, {cell['steps']} steps, cfg {cell['cfg']:g}"


def _print_composites(members: Sequence[Row], ranked: Sequence[Row], ranking: Mapping[str, Any] | None) -> None:
    """Print the composites of `members`, and over all rows of the ranking where they disagree and what correlates."""
    from results.catalog import MMHM_METRICS

    if ranking is None or ranking["note"]:
        return
    columns = ["model", "steps", "cfg", "NFE", "MMHM", "geometric", "mean rank", "bottleneck", "dropping it"]
    rows = []
    for row in members:
        if not row.rank:
            continue
        moved = ranking["sensitivity"].get(row.cell["cell_id"], 0)
        rows.append(
            [
                row.cell["model"],
                *("-" if row.cell[key] is None else f"{row.cell[key]:g}" for key in ("steps", "cfg", "nfe")),
                f"{row.rank['mmhm']:.3f}",
                f"{row.rank['geometric']:.3f}",
                f"{row.rank['mean_rank']:.2f}",
                f"{row.bottleneck} {row.rank['utilities'][row.bottleneck]:.3f}",
                f"moves {moved} rows" if moved else "-",
            ]
        )
    print_table(page(), plain_table(columns, rows, right=columns[1:7], fixed=columns))
    for name, label in (("geometric", "geometric mean"), ("mean_rank", "mean rank")):
        apart, pairs = disagreements(ranked, name)
        page().print(f"{label}: orders {apart} of {pairs} pairs otherwise than MMHM", markup=False)
    bounds = ", ".join("{} {:.4g} .. {:.4g}".format(name, *ranking["bounds"][name]) for name in MMHM_METRICS)
    clipped = "clipped" if ranking["clip"] else "not clipped"
    page().print(f"bounds, {ranking['bounds_source']}, {clipped}: {bounds}; eps {ranking['eps']:g}", markup=False)
    table = []
    for one in MMHM_METRICS:
        values = [ranking["correlation"][one][other] for other in MMHM_METRICS]
        table.append([one, *("-" if value is None else f"{value:+.2f}" for value in values)])
    page().print(f"rank correlation over {len(ranked)} rows (+ means agreement, FID counted as lower is better)")
    print_table(page(), plain_table(["", *MMHM_METRICS], table, right=MMHM_METRICS))


def disagreements(rows: Sequence[Row], composite: str) -> tuple[int, int]:
    """Return how many pairs of ranked rows `composite` orders otherwise than MMHM, and the number of pairs."""
    from results.catalog import FACTS

    sign = FACTS[composite].sign
    pairs = list(combinations(rows, 2))
    apart = sum(
        sign * (one.rank[composite] - two.rank[composite]) * (one.rank["mmhm"] - two.rank["mmhm"]) < 0
        for one, two in pairs
    )
    return apart, len(pairs)


def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="ROWS...", help="Cell ids, MODEL, MODEL@STEPS, or MODEL@STEPS@CFG.")
    ],
    published: Annotated[bool, typer.Option("--published", help="Compare a row with its published figures.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Only cells of this seed.")] = None,
    as_json: Annotated[bool, JSON] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Show the paired difference a - b of two rows, every pair of several, or how far a row is from what was published.

    Two models without steps are compared at every step count that both were measured at.
    """
    if published == (len(names) > 1):
        raise BenchError("compare: give two rows or more, or one and --published")
    database = directory_of(runs_dir) / "bench.duckdb"
    if published:
        _compare_published(database, names[0], seed, as_json)
    elif len(names) == 2:
        _compare_rows(database, names[0], names[1], seed, as_json)
    else:
        _compare_several(database, names, seed, as_json)


def _compare_several(database: Path, names: Sequence[str], seed: int | None, as_json: bool) -> None:
    from results.leaderboard import headline
    from results.matrix import compare_several

    outcome = compare_several(database, names, seed)
    if as_json:
        print_json([pair._asdict() for pair in outcome.pairs])
        return
    letters = {row.cell["cell_id"]: _letters(index) for index, row in enumerate(outcome.rows)}
    for row, title in zip(outcome.rows, outcome.titles, strict=True):
        page().print(f"{letters[row.cell['cell_id']]} = {title}", markup=False)
    metrics = list(dict.fromkeys(pair.metric for pair in outcome.pairs))
    if not metrics:
        page().print("no metric that these rows have can be compared: too few blocks in common", markup=False)
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
    print_reversed(page(), outcome.rows)
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
    page().print(f"\n{metric}, row beside column: > better, < worse, = tied", markup=False)
    print_table(page(), plain_table(["", *letters.values()], table))
    page().print(
        "Intervals of all pairs of a metric hold at once with 95 %; --json prints them.", markup=False, soft_wrap=True
    )


def _letters(index: int) -> str:
    """Return a, b ... z, a2, b2 ..."""
    turn, letter = divmod(index, 26)
    return chr(ord("a") + letter) + (str(turn + 1) if turn else "")


def _leads(first: Sequence[str], rest: Sequence[str]) -> str:
    """Say which rows none is better than."""
    if len(first) == 1:
        return f"{first[0]} leads" + (", the others are worse" if rest else "")
    shown = " and ".join(first) if len(first) < 4 else f"{', '.join(first[:2])} and {len(first) - 2} more"
    return f"{shown} {'lead, ' if rest else 'are '}tied"


def _compare_rows(database: Path, a: str, b: str, seed: int | None, as_json: bool) -> None:
    from results.comparing import compare_settings

    outcomes = compare_settings(database, a, b, seed)
    if as_json:
        several = len(outcomes) > 1
        print_json(
            [
                ({"steps": outcome.rows[0].cell["steps"]} if several else {}) | difference._asdict()
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

    page().print(f"a = {outcome.title_a}\nb = {outcome.title_b}", markup=False)
    columns = ["metric", "a", "b", "a - b", "95 % interval", "verdict"]
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
        page().print("no metric that both rows have can be compared", markup=False)
        return
    print_table(page(), plain_table(columns, rows, right=columns[1:5]))
    print_reversed(page(), outcome.rows)
    for line in outcome.without_win_rate:
        page().print(line, markup=False, soft_wrap=True)
    for d in outcome.differences:
        if d.win_rate is not None:
            share, low, high = (f"{100 * (value or 0.0):.1f}" for value in (d.win_rate, d.win_low, d.win_high))
            page().print(f"{d.metric}: a's image scores above b's in {share} % of pairs ({low} .. {high} %)")


def _compare_published(database: Path, name: str, seed: int | None, as_json: bool) -> None:
    from results import numbers
    from results.published import published_claims

    found, elsewhere = published_claims(database, name, seed)
    if as_json:
        print_json([claim._asdict() for claim in found])
        return
    if not found:
        where = f"; published are {', '.join(elsewhere)}" if elsewhere else ""
        page().print(f"{name}: no published figure for what is measured{where}", markup=False, soft_wrap=True)
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
                claim.metric,
                numbers.with_interval(claim.measured, claim.low, claim.high),
                f"{claim.published:g}",
                numbers.difference(claim.difference, *ends),
                "-" if claim.half_widths is None else f"{claim.half_widths:+.1f}",
                claim.source,
            ]
        )
    print_table(page(), plain_table(columns, rows, right=columns[1:3] + columns[4:8], fixed=columns[:8]))
    obstacles = {obstacle: None for claim in found for obstacle in claim.not_comparable}
    if obstacles:
        page().print(f"Not comparable: {'; '.join(obstacles)}.", markup=False, soft_wrap=True)
    else:
        page().print("Beyond ±1 half width, the sampling noise of the measured row does not explain the difference.")
