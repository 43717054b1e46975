"""Which rows are of models trained on the very features that a metric reads: it then measures what was trained.

A card says so (`trained_on`), as the database keeps it in table `models`. A name there means the judge of that name and
those whose names begin with it: `clip` means `clip`, `clip_l14` and `clip_l14_336`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from results.errors import BenchError, unknown

if TYPE_CHECKING:
    import duckdb

    from results.rows import Row

ANY = "any"
"""What is said for every feature space at once."""
SPACES = "coalesce(TRY_CAST(json_extract(trained.card, '$.trained_on') AS VARCHAR[]), [])"
"""SQL of the feature spaces that a card says training used; `trained` is the card's row of table `models`."""
READS_THEM = (
    f"len([judge FOR judge IN string_split(m.judge, ', ') IF len([space FOR space IN {SPACES} "
    "IF judge = space OR starts_with(judge, space || '_')]) > 0]) > 0"
)
"""SQL of whether a row `m` of table `metrics` reads one of them."""
WAIVED = "json_extract(trained.card, '$.waive')"
"""SQL of the clauses of the adapter contract that a card waives, as JSON."""
OF_CELL = "LEFT JOIN models trained ON trained.model = c.checkpoint"
"""SQL that joins the card that a row `c` of table `cells` was sampled from."""


def mark_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Put tables with a column `trained_on` in the place of `cells` and `metrics`, for this connection alone.

    In `cells` it names the feature spaces, in `metrics` it tells whether the metric reads one of them.
    """
    for table, query in (
        (
            "metrics",
            f"SELECT m.*, {READS_THEM} AS trained_on FROM metrics m LEFT JOIN cells c USING (cell_id) {OF_CELL}",
        ),
        ("cells", f"SELECT c.*, array_to_string({SPACES}, ', ') AS trained_on FROM cells c {OF_CELL}"),
    ):
        connection.execute(f"CREATE TEMP TABLE {table} AS {query}")


def trained_rows(found: Sequence[Row], spaces: Sequence[str]) -> list[Row]:
    """Return the rows whose models were trained on one of `spaces`, or on any where `ANY` is among them.

    Raises BenchError for a space that neither a judge of these rows nor a card is named after.
    """
    said = {space for row in found for space in row.trained_on}
    known = said | {part for row in found for value in row.metrics.values() for part in value.judge.split(", ")} - {""}
    for space in spaces:
        if space != ANY and not any(_meant(space, name) for name in known):
            raise unknown("feature space", space, sorted({ANY, *known}))
    return [
        row
        for row in found
        if row.trained_on and (ANY in spaces or any(_meant(space, own) for space in spaces for own in row.trained_on))
    ]


def leave_out_trained(connection: duckdb.DuckDBPyConnection, found: Sequence[Row], spaces: Sequence[str]) -> list[Row]:
    """Return the rows of `found` that were trained on `spaces`; for this connection the others are ranked without them.

    Raises BenchError as `trained_rows` does.
    """
    from results.ranking import rank_without

    out = trained_rows(found, spaces)
    if out:
        rank_without(connection, sorted({str(row.cell["cell_id"]) for row in out}))
    return out


def left_out_line(out: Sequence[Row], spaces: Sequence[str]) -> str:
    """Say which models were left out."""
    models = ", ".join(dict.fromkeys(row.cell["model"] for row in out)) or "none"
    which = "any judge's features" if ANY in spaces else f"features of {', '.join(spaces)}"
    return f"Left out, trained on {which}: {models}"


def spaces_of(text: str) -> tuple[str, ...]:
    """Return the feature spaces of a comma-separated list. Raises BenchError when there is none."""
    spaces = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not spaces:
        raise BenchError(f"--exclude-trained-on: the list is empty; name feature spaces, or {ANY}")
    return spaces


def _meant(space: str, name: str) -> bool:
    """Tell whether one of two names means the other's judge too."""
    return space == name or space.startswith(f"{name}_") or name.startswith(f"{space}_")


def remarks(found: Sequence[Row]) -> list[str]:
    """Return a line for each model that was trained on features which its own metrics, if any, read."""
    lines: dict[str, None] = {}
    for row in found:
        if row.trained_on:
            metrics = [name for name, value in row.metrics.items() if value.trained_on]
            which = (
                f": {', '.join(metrics)} measure{'s' if len(metrics) == 1 else ''} what was trained" if metrics else ""
            )
            lines[f"{row.cell['model']}: trained on features of {', '.join(row.trained_on)}{which}"] = None
    return list(lines)
