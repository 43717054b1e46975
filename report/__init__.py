"""The report: one HTML file that opens offline, read from a results database."""

from collections.abc import Sequence
from pathlib import Path

from results.errors import ReportError


def write_report(
    database: Path, output: Path, *, protocol: str | None = None, without_trained_on: Sequence[str] = ()
) -> Path:
    """Write the report of one protocol of `database` to the HTML file `output` and return its path.

    Without `protocol`, the protocol with the most finished cells is shown. The file is written beside its final
    place and renamed, so an interrupted call leaves an older report as it was.

    `without_trained_on` leaves out the models that were trained on these judges' features, and ranks without them.

    Raises `ReportError` when the database cannot be read or holds nothing to show.
    """
    from report.page import write  # plotly and pandas are loaded only when a report is written

    return write(Path(database), Path(output), protocol, without_trained_on)


__all__ = ["ReportError", "write_report"]
