"""`bench report`: the page, and figures for papers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.leaderboard import ExcludeTrainedOn
from bench.cli.output import RUNS_DIR, console, runs_directory
from results.errors import BenchError


def report(
    protocol: Annotated[str | None, typer.Option(help="Only this protocol's rows.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page to write (default: report.html in the runs directory)."),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write figures (SVG, PDF) and a LaTeX table to this directory instead.")
    ] = None,
    real_images: Annotated[
        Path | None, typer.Option(help="Real images to show next to samples: class folders, an archive or .npz.")
    ] = None,
    exclude: ExcludeTrainedOn = None,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Write the results as one HTML page. It is self-contained and opens offline."""
    from report import write_figures, write_report
    from results.errors import ReportError
    from results.files import output_file
    from results.training import spaces_of

    if figures is not None and (output is not None or real_images is not None):
        raise BenchError("--figures writes no page: leave out --output and --real-images")
    runs = runs_directory(runs_dir)
    database, place = runs / "bench.duckdb", output or runs / "report.html"

    def real(name: str, labels: Collection[int]) -> Mapping[int, Sequence[bytes]]:
        return _real_images(name, labels, real_images)

    try:
        without = () if exclude is None else spaces_of(exclude)
        if figures is not None:
            for path in write_figures(database, figures, protocol=protocol, without_trained_on=without):
                console().print(f"{path}", markup=False, soft_wrap=True)
            return
        target = output_file(place, "--output", database)
        write_report(database, target, protocol=protocol, without_trained_on=without, real=real)
    except ReportError as error:
        raise BenchError(str(error)) from error
    console().print(f"Report: {place}", markup=False, soft_wrap=True)


def _real_images(name: str, labels: Collection[int], directory: Path | None) -> Mapping[int, Sequence[bytes]]:
    """Return real images of a protocol by its name; none where nothing says what they are."""
    from protocols.schema import find_protocol

    try:
        protocol = find_protocol(name)
    except BenchError:
        if directory is not None:
            raise
        return {}  # a protocol of the user's own, which the database holds and this directory does not
    if directory is None and "source" not in protocol.reference:
        return {}
    from bench.references.real import real_images

    return real_images(protocol, labels, directory)
