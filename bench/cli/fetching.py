"""Downloads as people see them: what there is to get, how large, a bar for each file, what is left for them to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.licences import ACCEPT, agree
from bench.cli.output import JSON, console, page, print_json
from results.errors import BenchError

if TYPE_CHECKING:
    from rich.console import Console

    from bench.run.needs import Needs
    from bench.weights.download import Progress
    from bench.weights.file import FileState, NeededFile

AT_ONCE = 8
"""Files whose sizes are asked for at once."""
LARGE = 100 * 2**20
"""Bytes from which a download is told of on the way where there is no terminal."""


TO_GET = typer.Option("--dry-run", help="Print what there is to get, then stop.")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(fetch)


def fetch(
    model: Annotated[str | None, typer.Option(help="Models, comma-separated.")] = None,
    protocol: Annotated[str | None, typer.Option(help="A protocol's name or file (default: the models' home).")] = None,
    dry_run: Annotated[bool, TO_GET] = False,
    accept_licence: Annotated[bool, ACCEPT] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Fetch everything that a run needs.

    Weights, autoencoders, latent statistics and the protocol's judges; for a protocol alone, those of all its models.
    Sizes are printed first; downloads are resumed, verified and pinned.
    """
    from bench.cli.parsing import parse_models, parse_protocol
    from bench.run.needs import joined, needs_of_models
    from bench.run.plan import by_home

    if model is None and protocol is None:
        raise BenchError(
            "fetch: name models with --model or a protocol with --protocol (the embedded default needs nothing)"
        )
    models = parse_models(model) if model is not None else None
    plans = by_home(models) if models is not None and protocol is None else {str(protocol): models}
    needs = joined([needs_of_models(parse_protocol(name), chosen) for name, chosen in plans.items()])
    lacking = needs.lacking()
    if dry_run:
        print_lacking(lacking, as_json)
        return
    states = get(needs, accept_licence)
    if as_json:
        print_json([state_row(state) for state in states])
    for name, data, command in lacking.references:
        console().print(f"Left to you: reference {name}, from your copy of the data ({data}): {command}", markup=False)


def print_lacking(lacking: Needs, as_json: bool) -> None:
    """Print what there is to get, with sizes."""
    if as_json:
        sizes = ask_sizes(lacking.fetchable())
        files = [
            {
                "file": file.title,
                "source": file.origin,
                "bytes": sizes.get(file, file.size),
                "by_hand": file.by_hand,
            }
            for file in lacking.files
        ]
        print_json({"files": files, "references": [found._asdict() for found in lacking.references]})
        return
    for line in table_with_sizes(lacking) or [f"{lacking.what}: everything is here"]:
        page().print(line, markup=False, soft_wrap=True)


def get(needs: Needs, accept_licence: bool = False) -> list[FileState]:
    """Fetch and verify all files of `needs`, licences and sizes first.

    Raises BenchError for the first that cannot be had, after all others are here.
    """
    from bench.weights.file import fetch_files

    out = console()
    lacking = needs.lacking()
    agree(lacking.files, accept_licence)
    if lacking.fetchable():
        out.print(f"To fetch for {needs.what}:", markup=False, soft_wrap=True)
        for line in table_with_sizes(replace(lacking, references=())):
            out.print(line, markup=False, soft_wrap=True)
    absent = set(lacking.files)
    with download_bars(out) as bar:
        states = fetch_files(needs.files, lambda state: tell(out, state) if state.file in absent else None, bar)
    if len(states) > len(absent):
        out.print(
            f"{len(states) - len(absent)} files of {needs.what} were already here and are unaltered", markup=False
        )
    return states


def table_with_sizes(lacking: Needs) -> list[str]:
    """Return the lines of what is missing, with the servers' sizes where they answer, and the sum."""
    from bench.weights.file import size_text

    sizes = ask_sizes(lacking.fetchable())
    lines = lacking.table(sizes)
    total = sum(sizes.get(file) or file.size or 0 for file in lacking.fetchable())
    return [*lines, f"  {size_text(total)} in total"] if total else lines


def ask_sizes(files: Sequence[NeededFile]) -> dict[NeededFile, int]:
    """Return the sizes that the servers tell; files of which none is told are left out."""
    from bench.weights.file import ask

    def size(file: NeededFile) -> int | None:
        with suppress(BenchError):  # fetching it says what is wrong
            return ask(file).size
        return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        told = zip(files, pool.map(size, files), strict=True)
        return {file: count for file, count in told if count is not None}


@contextmanager
def download_bars(out: Console) -> Iterator[Any]:
    """Yield what shows one file's progress: a bar on a terminal, elsewhere a line at every tenth of a large file."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    text = TextColumn("{task.description}", markup=False)
    with Bars(
        text, BarColumn(bar_width=20), *columns, console=out, disable=not out.is_terminal, transient=True
    ) as bars:

        def bar(file: NeededFile) -> Progress:
            return _bar(bars, file) if out.is_terminal else _lines(out, file)

        yield bar


def _bar(bars: Any, file: NeededFile) -> Progress:
    task = None

    def told(done: int, size: int | None) -> None:
        nonlocal task
        if task is None:
            task = bars.add_task(file.title, total=size)
        bars.update(task, completed=done, total=size, visible=done != size)

    return told


def _lines(out: Console, file: NeededFile) -> Progress:
    from bench.weights.file import size_text

    said = 0

    def told(done: int, size: int | None) -> None:
        nonlocal said
        tenth = 10 * done // size if size else 0
        if size and size >= LARGE and said < tenth < 10:
            said = tenth
            out.print(f"{file.title}: {size_text(done)} of {size_text(size)}", markup=False, soft_wrap=True)

    return told


def tell(out: Console, state: FileState) -> None:
    """Print what was done about one file."""
    from bench.weights.file import size_text

    if state.state == "shipped":
        what = "shipped with the package, nothing to fetch"
    else:
        verb = "fetched" if state.state == "fetched" else "already here"
        what = f"{verb}, {size_text(bytes_of(state.path))}, {state.path}"
    what += f"; {state.detail}" if state.detail else ""
    out.print(f"{state.file.title}: {what}", markup=False, soft_wrap=True)


def state_row(state: FileState) -> dict[str, Any]:
    """Return the facts of one file as `--json` prints them."""
    size = bytes_of(state.path)
    return {"file": state.file.title, "state": state.state, "bytes": size, "path": state.path, "detail": state.detail}


def bytes_of(path: Path | None) -> int | None:
    """Return the size of a file or folder, None when it is not there."""
    if path is None or not path.exists():
        return None
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
