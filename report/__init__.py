"""The report, one HTML file that opens offline, and the site of many: read from results databases and bundles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from results.errors import ReportError

if TYPE_CHECKING:
    from report.samples import RealImages
    from report.site import Written


def write_report(
    database: Path,
    output: Path,
    *,
    protocol: str | None = None,
    without_trained_on: Sequence[str] = (),
    real: RealImages | None = None,
) -> Path:
    """Write the report of `database` to the HTML file `output` and return its path.

    The page shows the ranking with the most finished rows first, of `protocol` if it is given, and the others at the
    choice of the reader. `real` gives the real images to show next to samples. The file is written beside its final
    place and renamed, so an interrupted call leaves an older report as it was.

    `without_trained_on` leaves out the models that were trained on these judges' features, and ranks without them.

    Raises `ReportError` when the database cannot be read or holds nothing to show.
    """
    from report.page import write  # plotly and pandas are loaded only when a report is written

    return write(Path(database), Path(output), protocol, without_trained_on, real)


def write_figures(
    database: Path, directory: Path, *, protocol: str | None = None, without_trained_on: Sequence[str] = ()
) -> list[Path]:
    """Write quality against cost and the rank sets as SVG and PDF, and the leaderboard as LaTeX, to `directory`.

    Returns the paths written; the same database gives the same bytes. Raises `ReportError` as `write_report` does, and
    where Matplotlib is not installed.
    """
    from report.paper import write_figures

    return write_figures(Path(database), Path(directory), protocol, without_trained_on)


def write_site(
    directory: Path,
    bundles: Sequence[Path],
    *,
    audits: Sequence[Path] = (),
    title: str = "Few-step generators compared",
    allowed: Path | None = None,
) -> Written:
    """Write static pages from bundles to `directory`. See `report.site.write_site`."""
    from report.site import write_site as write

    return write(directory, bundles, audits=audits, title=title, allowed=allowed)


__all__ = ["ReportError", "write_figures", "write_report", "write_site"]
