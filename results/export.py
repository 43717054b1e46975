"""A table of the database as Parquet, CSV or JSON."""

from __future__ import annotations

import glob
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

import duckdb

from results.database import TABLES
from results.errors import StoreError, one_line
from results.files import disk_error, sweep, writing
from results.store import connect
from results.training import mark_tables


def export(database: Path, table: str, format: str, output: Path | BinaryIO, *, raw: bool = False) -> int:
    """Write one table as `parquet`, `csv` or `json`, whole or not at all; return its number of rows.

    `output` is a file's path or a stream of bytes. In a CSV, texts that a spreadsheet would take for formulas begin
    with a quote, unless `raw`. `cells` and `metrics` have one column more, `trained_on`. Raises StoreError for an
    unknown table or format, or a file that cannot be written.
    """
    if table not in TABLES:
        raise StoreError(f"unknown table '{table}': the tables are {', '.join(TABLES)}")
    options = {"parquet": "FORMAT parquet", "csv": "FORMAT csv, HEADER", "json": "FORMAT json, ARRAY true"}
    if format not in options:
        raise StoreError(f"unknown format '{format}': choose parquet, csv or json")
    with tempfile.TemporaryDirectory(prefix="bench-export-") as folder:
        place = Path(folder).resolve() / f"table.{format}"
        with connect(database, retry=True, scratch=place.parent) as connection:
            mark_tables(connection)
            rows = f'"{table}"' if raw or format != "csv" else f"({_for_spreadsheet(connection, table)})"
            try:
                connection.execute(f"COPY {rows} TO '{_quoted(place)}' ({options[format]})")
            except duckdb.IOException as error:
                reason = one_line(str(error).splitlines()[0], 160)
                raise StoreError(f"{place.parent}: cannot be written ({reason}); set TMPDIR to another disk") from error
            count = _count(connection, table)
        try:
            with place.open("rb") as source:
                if isinstance(output, Path):
                    sweep(output.parent, f"{glob.escape(output.name)}.*.tmp")
                    with writing(output) as temporary, temporary.open("wb") as target:
                        shutil.copyfileobj(source, target)
                else:
                    shutil.copyfileobj(source, output)
        except BrokenPipeError:
            raise
        except OSError as error:
            where = output if isinstance(output, Path) else Path("-")
            raise disk_error(where, error, "--output") from error
    return count


def _for_spreadsheet(connection: duckdb.DuckDBPyConnection, table: str) -> str:
    """Return the query of a table whose texts are not formulas; numbers stay numbers, also where they are texts."""
    columns = connection.execute(f'DESCRIBE "{table}"').fetchall()
    formula = "regexp_matches({0}, '^[=+@\\t\\r-]') AND TRY_CAST({0} AS DOUBLE) IS NULL"
    quoted = "CASE WHEN " + formula + " THEN chr(39) || {0} ELSE {0} END AS {0}"
    shown = [quoted.format(f'"{name}"') if kind == "VARCHAR" else f'"{name}"' for name, kind, *_ in columns]
    return f'SELECT {", ".join(shown)} FROM "{table}"'


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    row = connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()
    return int(row[0]) if row else 0


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
