"""The database as an index of the cells' directories: written, and rebuilt from them at will."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results.cells import CellDirectory
from results.digests import measurement_digest
from results.errors import StoreError
from results.ranking import rank_all
from results.store import connect, finish_runs, now, write_cell


def index_cells(database: Path, directories: Sequence[CellDirectory], *, only_new: bool = False) -> None:
    """Put finished cells into the database, each in one transaction."""
    if not directories:
        return
    with connect(database, write=True, retry=True) as connection:
        known: set[str] = set()
        if only_new:
            found = connection.execute("SELECT cell_id FROM cells WHERE status = 'done'").fetchall()
            known = {cell_id for (cell_id,) in found}
        for directory in directories:
            record = directory.read_result()
            if record is not None and directory.path.name not in known:
                write_cell(connection, decoded(record))


def reindex(runs: Path) -> int:
    """Rebuild the database from the cells' directories; return the number of cells.

    The old database is kept until the new one is whole.
    """
    database = runs / "bench.duckdb"
    rebuilt = runs / "bench.duckdb.rebuilt"
    rebuilt.unlink(missing_ok=True)
    directories = [CellDirectory(runs, path.name) for path in sorted((runs / "cells").glob("*")) if path.is_dir()]
    finished = [directory for directory in directories if directory.read_result() is not None]
    if not finished:
        raise StoreError(f"{runs}: no finished cells to index; 'bench run' makes them")
    index_cells(rebuilt, finished)
    rank_all(rebuilt)
    with connect(rebuilt, write=True) as connection:
        finish_runs(connection, now().isoformat())
    rebuilt.replace(database)
    return len(finished)


def decoded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its pictures as bytes, and what older records do not say, ready for the store."""
    import base64

    thumbnails = [{**row, "png": base64.b64decode(row["png"])} for row in record.get("thumbnails", [])]
    definition = record.get("protocol", {}).get("definition", {})
    cell = {"measurement": measurement_digest(definition), **record["cell"]}
    return {**record, "cell": cell, "thumbnails": thumbnails}
