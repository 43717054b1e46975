"""Commands that move what was measured: export, merge, reindex, remove."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from bench.cli.output import ALLOWED, RUNS_DIR, console, runs_directory
from bench.cli.shares import ALLOW_MIXED, measure_plan, whole_plans
from bench.cli.terminal import write_line
from results.errors import BenchError
from results.numbers import counted

if TYPE_CHECKING:
    from results.index import Fault


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (export, merge, reindex, remove):
        app.command()(command)


def export(
    table: Annotated[str, typer.Argument(help="cells, metrics, per_class, ranks, runs, models ...")],
    format: Annotated[str, typer.Option("--format", help="parquet, csv or json.")] = "csv",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file, or - for stdout (default: TABLE.FORMAT in the working directory)."
        ),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Leave CSV text as it is, including what a spreadsheet would run as a formula."),
    ] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Write one table of the database to a file."""
    from results.export import export as export_table
    from results.files import output_file

    path = output or Path(f"{table}.{format}")
    database = runs_directory(runs_dir) / "bench.duckdb"
    if path == Path("-"):
        target: Path | BinaryIO = typer.get_binary_stream("stdout")
    else:
        target = output_file(path, "--output", database)
    count = export_table(database, table, format, target, raw=raw)
    console().print(f"{counted(count, 'row')}: {path}", markup=False, soft_wrap=True)


def merge(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="PLACES", help="Bundles, runs directories or databases, here or s3://, gs:// ..."),
    ],
    allowed: Annotated[Path | None, ALLOWED] = None,
    allow_mixed: Annotated[bool, ALLOW_MIXED] = False,
    workers: Annotated[int, typer.Option(min=0, max=1024, help="Processes that measure shares; 0: one per core.")] = 0,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Add the rows of bundles, other runs directories or databases.

    Rows that are already here are left as they are; rankings are computed again. Shares of a run, from 'bench run
    --shards', are put together and measured.
    """
    from results.bundles import LARGEST_BUNDLE
    from results.mirror import local_copies

    with local_copies(sources, LARGEST_BUNDLE) as paths:
        _merge(runs_directory(runs_dir), paths, allowed, runs_dir, workers, allow_mixed)


def _merge(
    runs: Path, sources: Sequence[Path], allowed: Path | None, given: Path | None, workers: int, allow_mixed: bool
) -> None:
    from results.cells import share_files
    from results.files import disk_error
    from results.moving import merge as merge_cells

    rows: list[Path] = []
    for source in sources:
        if not source.exists():
            raise BenchError(f"{source}: no such file; name a bundle, a runs directory or its bench.duckdb")
        shares = source.is_dir() and bool(share_files(source))
        mine = runs if source.is_dir() else runs / "bench.duckdb"
        if mine.exists() and mine.samefile(source):
            if shares:
                continue
            what = "the runs directory" if source.is_dir() else "the database"
            raise BenchError(f"{source}: this is {what} itself; name another, or merge into another --runs-dir")
        if not shares or any(source.glob("cells/*/result.json")) or (source / "bench.duckdb").exists():
            rows.append(source)
    # Everything is found and checked before anything is added.
    plans = whole_plans(runs, sources, allow_mixed) if any(share_files(source) for source in sources) else []
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(runs, error) from error
    faults: list[Fault] = []
    if rows:
        merged = merge_cells(runs, rows, allowed)
        count = len(merged.added)
        faults = merged.faults
        console().print(f"{counted(count, 'row')} added to {runs / 'bench.duckdb'}", markup=False)
    failed = [measure_plan(plan, runs, given, workers, allow_mixed) for plan in plans]
    _print_faults(faults)
    if any(failed):
        raise typer.Exit(1)


def _print_faults(faults: Sequence[Fault]) -> None:
    """Name the cells that could not be taken, and end with exit code 1 if there are some."""
    for fault in faults:
        console().print(f"left out: {fault.cell}: {fault.reason}", markup=False, soft_wrap=True)
    if faults:
        raise typer.Exit(1)


def reindex(
    drop: Annotated[
        bool, typer.Option("--drop", help="Drop rows whose directory is gone instead of writing the directory again.")
    ] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Rebuild the database from the cell directories."""
    from results.index import reindex as rebuild

    runs = runs_directory(runs_dir)
    rebuilt = rebuild(runs, drop=drop)
    count = rebuilt.indexed
    console().print(f"{counted(count, 'row')} indexed: {runs / 'bench.duckdb'}", markup=False)
    for path in rebuilt.aside:
        console().print(f"unreadable, moved aside: {path}", markup=False, soft_wrap=True)
    for names, what in (
        (rebuilt.kept, "had a row but no readable record; the row is kept (--drop drops such rows)"),
        (rebuilt.dropped, "had a row but no readable record; dropped"),
    ):
        for name in names:
            console().print(f"{name}: {what}", markup=False, soft_wrap=True)
    _print_faults(rebuilt.faults)


def remove(
    names: Annotated[
        list[str],
        typer.Argument(metavar="ROWS", help="Cell ids (4 letters are enough), MODEL, MODEL@STEPS or MODEL@STEPS@CFG."),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Remove measured rows and their directories.

    Failed and unsupported rows can be removed too.
    """
    from results.moving import find_rows, forget

    runs = runs_directory(runs_dir)
    found = find_rows(runs, names)
    for row in found:
        console().print(f"{row.cell}  {row.title}", markup=False, soft_wrap=True)
    rows = counted(len(found), "row")
    if not yes and not _agreed(f"Remove {rows} and everything measured for {'it' if len(found) == 1 else 'them'}?"):
        console().print("nothing removed")
        raise typer.Exit(1)
    forget(runs, [row.cell for row in found])
    console().print(f"{rows} removed from {runs / 'bench.duckdb'}", markup=False)


def _agreed(question: str) -> bool:
    """Ask on the terminal; where nobody can answer, as in a script, the answer is no."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        if sys.stdin is not None and sys.stdin.isatty():
            raise  # Ctrl-C
        typer.echo(err=True)  # ends the question's line
        write_line("nobody answered; --yes removes without asking")
        return False
