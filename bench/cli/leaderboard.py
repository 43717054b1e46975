"""`bench leaderboard`: the rows of each ranking as a table, as JSON, or by composite."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.claims import claims_json, print_claims
from bench.cli.output import (
    JSON,
    RUNS_DIR,
    console,
    page,
    plain_table,
    print_json,
    print_leaderboard,
    print_lines,
    print_table,
)
from bench.cli.output import runs_directory as directory_of
from bench.cli.seeds import print_over_seeds
from bench.cli.students import show_students
from results.errors import BenchError
from results.marks import caveats, legend, marks_of
from results.numbers import counted

if TYPE_CHECKING:
    from results.leaderboard import Choice
    from results.rows import Row
    from results.seeds import OverSeeds
    from results.standings import Leaderboard, Standing, View

ExcludeTrainedOn = Annotated[
    str | None,
    typer.Option(
        "--exclude-trained-on",
        metavar="[SPACE,...]",
        help="Rank without models trained on these judges' features, e.g. inception (default: any).",
        show_default=False,
    ),
]


def leaderboard(
    protocol: Annotated[str | None, typer.Option(help="Only this protocol's rows.")] = None,
    sort: Annotated[
        str | None, typer.Option(help="mmhm, rank, geometric, fid, is, clip, kid, nfe ... (default: mmhm, else fid).")
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
        bool, typer.Option("--composites", help="MMHM next to other composites, and how the metrics correlate.")
    ] = False,
    teachers: Annotated[
        bool, typer.Option("--teachers", help="Each student next to the model it was distilled from.")
    ] = False,
    exclude: ExcludeTrainedOn = None,
    claims: Annotated[
        bool,
        typer.Option("--claims", help="Also show published figures of systems that cannot be run here; never ranked."),
    ] = False,
    as_json: Annotated[bool, JSON] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Rank measured rows. Rows that differ in reference, judges, seed or sample count get separate rankings."""
    from bench import api
    from results.published import claims_under
    from results.standings import View
    from results.store import connect
    from results.training import spaces_of

    database = directory_of(runs_dir) / "bench.duckdb"
    view = View(protocol, sort, every, at_nfe, at_seconds, at_steps, select_on)
    if exclude is not None:
        view = dataclasses.replace(view, without_trained_on=spaces_of(exclude))
    if teachers:
        views = {"--all": every, "--at-nfe": at_nfe, "--at-seconds": at_seconds, "--at-steps": at_steps}
        views |= {"--select-on": select_on, "--composites": composites, "--claims": claims}
        views |= {"--exclude-trained-on": None if exclude is None else True}
        if given := [name for name, value in views.items() if value not in (None, False)]:
            raise BenchError(f"--teachers compares all settings of student and teacher: leave out {given[0]}")
        show_students(database, protocol, sort, as_json)
        return
    board = api.leaderboard(database.parent, view).board
    with connect(database, retry=True) as connection:
        names = dict.fromkeys(standing.rows[0].cell["protocol"] for standing in board.standings) if claims else ()
        published = {name: claims_under(connection, name) for name in names}
    if as_json:
        print_json([*board_json(board, composites), *claims_json(published)])
        return
    for standing in board.standings:
        _print_standing(standing, board, composites)
        page().print("")
    if not composites:
        print_over_seeds(page(), board.repeated, sort)
    print_claims(published)
    print_lines(console(), remainder(board))


def board_json(board: Leaderboard, composites: bool) -> list[dict[str, Any]]:
    """Return the rows of a leaderboard as JSON; with `composites` by ranking, beside its bounds and correlations."""
    seeds = {row.cell["cell_id"]: setting.metrics for setting in board.repeated for row in setting.rows}
    groups = [
        [
            row_json(row, standing.choices.get(row.cell["cell_id"]), seeds.get(row.cell["cell_id"]))
            for row in standing.rows
        ]
        for standing in board.standings
    ]
    if composites:
        return [
            {**standing.facts, "spaces": [pair.row() for pair in standing.spaces], "rows": group}
            for standing, group in zip(board.standings, groups, strict=True)
        ]
    return [row for group in groups for row in group]


def row_json(row: Row, choice: Choice | None = None, seeds: Mapping[str, OverSeeds] | None = None) -> dict[str, Any]:
    """Return a row as JSON: its cell, metrics and ranks, how it was chosen on another seed, and its metrics by seed."""
    metrics = {name: dataclasses.asdict(value) for name, value in row.metrics.items()}
    for name, value in metrics.items():
        del value["jackknife"], value["jackknife_reference"]
        value["heavy_tails"] = row.metrics[name].heavy_tails
    entry = {**row.cell, "metrics": metrics, "mmhm": dict(row.rank), "bottleneck": row.bottleneck}
    if seeds is not None:
        entry["over_seeds"] = {name: over._asdict() for name, over in seeds.items()}
    if choice is not None:
        chosen = choice.chosen
        entry["chosen_on"] = {
            "seed": chosen.cell["seed"],
            "cell_id": chosen.cell["cell_id"],
            "metric": choice.metric,
            "value": chosen.value(choice.metric),
        }
    return entry


def unreported(rows: Sequence[Row]) -> list[str]:
    """Return one line for each row whose setting was chosen but is not measured on any other seed."""
    return [
        f"{_label(row)}: chosen on seed {row.cell['seed']}, but not measured on another; "
        f"'bench run --select-on {row.cell['seed']}' measures both"
        for row in rows
    ]


def remainder(board: Leaderboard) -> list[str]:
    """Return what is to be said besides the tables: chosen but not measured, failed, nothing there."""
    lines = [board.left_out] if board.left_out else []
    lines += [*unreported(board.unreported), *(f"failed: {_label(row)}: {row.cell['reason']}" for row in board.failed)]
    if not board.standings and not board.choices:
        budget = _budget(board.view).removeprefix(", ") if board.found else ""
        lines.append(f"{budget}{budget and ': '}no finished rows here; 'bench run' measures some")
        if board.timed:
            lines.append(f"{counted(board.timed, 'row')} of 'bench speed', never ranked: 'bench report' shows them")
    return lines


def _print_standing(standing: Standing, board: Leaderboard, composites: bool) -> None:
    from results.rank_sets import method_of
    from results.ranking import INCOMPLETE
    from results.spaces import disputed

    title = _title(standing, board)
    if not standing.measured:
        print_lines(page(), [f"{title}: {_label(row)}: nothing could be measured" for row in standing.rows])
        print_lines(page(), standing.missing)
        return
    count = len(standing.ranked)
    among = f"ranks among {counted(count, 'row')}{method_of(count)}" if count else "not ranked"
    apart = disputed(standing.spaces)
    dispute = "" if apart is None else f"; {apart.one.short} and {apart.other.short} disagree about the leader"
    print_lines(page(), [f"{title} (ranking {standing.ranking[:8]}, {among}){dispute}"])
    if composites:
        _print_composites(standing)
        notes = caveats(standing.rows, standing.facts.get("clip"), times=False)
        print_lines(page(), [*_agreements(standing), *notes])
    else:
        sort = board.view.sort
        print_leaderboard(page(), standing.rows, sort)
        print_lines(page(), [*_agreements(standing), *legend(standing.rows, standing.facts.get("clip"), sort)])
        print_lines(page(), standing.missing)
        if sort is not None and all(row.value(sort) is None for row in standing.rows):
            print_lines(page(), [f"no row here has '{sort}': in the order of measurement"])
    note = standing.facts.get("note")
    if note and (composites or note != INCOMPLETE):
        print_lines(page(), [f"no MMHM: {note}"])


def _agreements(standing: Standing) -> list[str]:
    """Return how alike two feature spaces order the rows of a ranking, and whom each has first where they differ."""
    from results.spaces import leaders

    lines = []
    for pair in standing.spaces:
        line = f"{pair.one.short} and {pair.other.short}: too few rows for a rank correlation"
        if pair.tau is not None:
            line = f"{pair.one.short} and {pair.other.short} order {pair.n} rows with Kendall's tau-b {pair.tau:+.2f}"
        lines.append(line + (f"; {leaders(pair)}" if pair.disagree else ""))
    return lines


def _title(standing: Standing, board: Leaderboard) -> str:
    cell, seed = standing.rows[0].cell, board.view.select_on
    title = f"{cell['protocol']}, {cell['num_samples']:,} samples, seed {cell['seed']}{_budget(board.view)}"
    return title if seed is None else f"{title}, settings chosen on seed {seed} by {board.choices[0].metric}"


def _budget(view: View) -> str:
    words = "" if view.nfe is None else f", at most {view.nfe:g} network evaluations per image"
    words += "" if view.seconds is None else f", at most {view.seconds:g} s per image"
    return words + ("" if view.steps is None else f", {counted(view.steps, 'step')}")


def _label(row: Row) -> str:
    cell = row.cell
    if cell["steps"] is None:
        return str(cell["model"])
    return f"{cell['model']}, {counted(cell['steps'], 'step')}, cfg {cell['cfg']:g}"


def _print_composites(standing: Standing) -> None:
    """Print the composites of the rows, and over all of the ranking where they disagree and what correlates."""
    from results.catalog import MMHM_METRICS

    ranking = standing.facts
    if not ranking or ranking["note"]:
        return
    columns = ["model", "steps", "cfg", "NFE", "MMHM", "geometric", "mean rank", "bottleneck", "dropping it"]
    rows = []
    for row in standing.rows:
        if not row.rank:
            continue
        moved = ranking["sensitivity"].get(row.cell["cell_id"], 0)
        rows.append(
            [
                row.cell["model"] + marks_of(row),
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
        apart, pairs = standing.disagreements(name)
        page().print(f"{label}: orders {apart:,} of {pairs:,} pairs differently from MMHM", markup=False)
    bounds = ", ".join("{} {:.4g} .. {:.4g}".format(name, *ranking["bounds"][name]) for name in MMHM_METRICS)
    clipped = "clipped" if ranking["clip"] else "not clipped"
    print_lines(page(), [f"bounds, {ranking['bounds_source']}, {clipped}: {bounds}; eps {ranking['eps']:g}"])
    table = []
    for one in MMHM_METRICS:
        values = [ranking["correlation"][one][other] for other in MMHM_METRICS]
        table.append([one, *("-" if value is None else f"{value:+.2f}" for value in values)])
    page().print(
        f"rank correlation over {len(standing.ranked)} rows (+ means agreement, FID counted as lower is better)"
    )
    print_table(page(), plain_table(["", *MMHM_METRICS], table, right=MMHM_METRICS))
