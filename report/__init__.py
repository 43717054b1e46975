"""The report: one HTML file that opens offline, read from a results database."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from results.errors import ReportError


def write_report(
    database: Path,
    output: Path,
    *,
    protocol: str | None = None,
    without_trained_on: Sequence[str] = (),
    real: Mapping[str, Mapping[int, Sequence[bytes]]] | None = None,
) -> Path:
    """Write the report of `database` to the HTML file `output` and return its path.

    The page shows the ranking with the most finished rows first, of `protocol` if it is given, and the others at the
    choice of the reader. `real` holds PNG files of real images by protocol and label, shown next to samples. The file
    is written beside its final place and renamed, so an interrupted call leaves an older report as it was.

    `without_trained_on` leaves out the models that were trained on these judges' features, and ranks without them.

    Raises `ReportError` when the database cannot be read or holds nothing to show.
    """
    from report.page import write  # plotly and pandas are loaded only when a report is written

    return write(Path(database), Path(output), protocol, without_trained_on, real)


__all__ = ["ReportError", "write_report"]
