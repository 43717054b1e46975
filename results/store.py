"""The DuckDB store: an index of measured cells, one transaction per cell, rebuilt from their directories at will."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb

from results.errors import StoreError

SCHEMA_VERSION = 3
TABLES = (
    "runs", "models", "protocols", "cells", "metrics", "skipped_metrics", "metric_facts", "per_class", "thumbnails",
    "ranks", "metric_ranks", "rankings", "references", "published",
)  # fmt: skip
CELL_TABLES = ("metrics", "skipped_metrics", "per_class", "thumbnails")
RANKING_TABLES = ("rankings", "ranks", "metric_ranks")
"""What is computed over the cells of a ranking, and so never copied from one database to another."""
ROWS_PER_INSERT = 100
LOCK_RETRIES, LOCK_WAIT_SECONDS = 20, 0.25


@contextmanager
def connect(path: Path, *, write: bool = False, retry: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the database and close it in the end.

    `write` creates it when it is absent; `retry` waits up to five seconds for another writer to finish. A database of
    an older schema is brought to this one: in place when it is opened for writing, else as a temporary copy. Raises
    StoreError in one line when the file is absent, locked, damaged, or of a newer schema; nothing is overwritten.
    """
    if not write and not path.exists():
        raise StoreError(f"{path}: no database here; 'bench run' makes one (or give --runs-dir)")
    with ExitStack() as stack:
        connection = stack.enter_context(closing(_open(path, write, LOCK_RETRIES if retry else 1)))
        try:
            version = _schema_version(connection, path, write)
            if version < SCHEMA_VERSION:
                from results.migration import rebuilt

                place = stack.enter_context(rebuilt(connection, path, in_place=write))
                connection.close()
                connection = stack.enter_context(closing(_open(place, write, LOCK_RETRIES)))
            yield connection
        except duckdb.IOException as error:
            reason = str(error).splitlines()[0]
            raise StoreError(
                f"{path}: cannot write ({reason}); free space or fix permissions, then run the same command again"
            ) from error


def create_schema(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the tables in an empty database."""
    with transaction(connection):
        connection.execute((files("results") / "schema.sql").read_text(encoding="utf-8"))
        connection.execute("INSERT INTO schema_version VALUES (?)", [SCHEMA_VERSION])


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Keep what the block writes, or nothing of it."""
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _open(path: Path, write: bool, attempts: int) -> duckdb.DuckDBPyConnection:
    for attempt in range(attempts):
        try:
            return duckdb.connect(str(path), read_only=not write)
        except duckdb.Error as error:
            message = str(error)
            locked = "lock" in message.lower()
            if locked and attempt + 1 < attempts:
                time.sleep(LOCK_WAIT_SECONDS)
                continue
            if locked:
                raise StoreError(
                    f"{path}: the database is in use by another process; wait for it to finish, then try again"
                ) from error
            if "version number" in message or "newer version" in message:
                raise StoreError(
                    f"{path}: written by a newer DuckDB than {duckdb.__version__}; upgrade duckdb to read it"
                ) from error
            if "permission denied" in message.lower():
                raise StoreError(
                    f"{path}: permission denied; ask its owner, or give another place with --runs-dir"
                ) from error
            raise StoreError(
                f"{path}: not a readable database ({message.splitlines()[0][:120]}); "
                "move it away and run 'bench reindex' to rebuild it from the cells"
            ) from error
    raise AssertionError("unreachable")


def _schema_version(connection: duckdb.DuckDBPyConnection, path: Path, write: bool) -> int:
    """Return the schema version of a database, at most this program's; an empty one that may be written is filled."""
    tables = {name for (name,) in connection.execute("SELECT table_name FROM information_schema.tables").fetchall()}
    if not tables:
        if not write:
            raise StoreError(f"{path}: the database is empty; 'bench run' fills it")
        create_schema(connection)
        return SCHEMA_VERSION
    if "schema_version" not in tables:
        raise StoreError(f"{path}: not a database of this program; give another --runs-dir")
    row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    version = row[0] if row else None
    if version is None or version > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: its schema is version {version}, this program knows {SCHEMA_VERSION}; upgrade fewstep-bench"
        )
    return int(version)


def insert(connection: duckdb.DuckDBPyConnection, table: str, row: Mapping[str, Any], *, replace: bool = False) -> None:
    """Insert one row; mappings and lists of mappings become JSON. `replace` overwrites a row of the same key."""
    columns = ", ".join(f'"{column}"' for column in row)
    marks = ", ".join("?" for _ in row)
    verb = "INSERT OR REPLACE" if replace else "INSERT"
    connection.execute(f'{verb} INTO "{table}" ({columns}) VALUES ({marks})', [_plain(value) for value in row.values()])


def insert_many(connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that share their columns, many to a statement (DuckDB prepares each anew)."""
    for start in range(0, len(rows), ROWS_PER_INSERT):
        part = rows[start : start + ROWS_PER_INSERT]
        columns = ", ".join(f'"{column}"' for column in part[0])
        marks = ", ".join([f"({', '.join('?' for _ in part[0])})"] * len(part))
        values = [_plain(value) for row in part for value in row.values()]
        connection.execute(f'INSERT INTO "{table}" ({columns}) VALUES {marks}', values)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) or (isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping)):
        return json.dumps(value, sort_keys=True)
    return value


def write_cell(connection: duckdb.DuckDBPyConnection, record: Mapping[str, Any]) -> None:
    """Replace everything stored of one cell, in one transaction.

    `record` holds the rows by table: `cell`, the optional `run`, `model`, `protocol`, and the optional lists
    `references`, `metric_facts` (of metrics that are not built in) and `metrics`, `skipped_metrics`, `per_class`,
    `thumbnails` (without cell_id).
    """
    cell = record["cell"]
    with transaction(connection):
        for key, table in (("run", "runs"), ("model", "models"), ("protocol", "protocols")):
            if record.get(key):
                insert(connection, table, record[key], replace=True)
        for table in ("references", "metric_facts"):
            for row in record.get(table, []):
                insert(connection, table, row, replace=True)
        for table in CELL_TABLES:
            connection.execute(f"DELETE FROM {table} WHERE cell_id = ?", [cell["cell_id"]])
            rows = [{"cell_id": cell["cell_id"], **row} for row in record.get(table, [])]
            insert_many(connection, table, rows)
        insert(connection, "cells", cell, replace=True)


def finish_runs(connection: duckdb.DuckDBPyConnection, moment: str, run_id: str | None = None) -> None:
    """Note that a run ended at `moment`; without `run_id` every run ended with its last cell (a rebuilt index)."""
    if run_id is not None:
        connection.execute("UPDATE runs SET finished = ? WHERE run_id = ?", [moment, run_id])
        return
    connection.execute(
        "UPDATE runs SET finished = (SELECT max(cells.finished) FROM cells WHERE cells.run_id = runs.run_id) "
        "WHERE finished IS NULL"
    )


def replace_rankings(
    connection: duckdb.DuckDBPyConnection,
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    facts: Sequence[Mapping[str, Any]],
    published: Sequence[Mapping[str, Any]],
) -> None:
    """Replace all rankings by `tables` (name in RANKING_TABLES -> rows) and the built-in facts, in one transaction.

    Facts of metrics that are not among `facts`, those of plug-ins, stay.
    """
    with transaction(connection):
        for table in RANKING_TABLES:
            connection.execute(f"DELETE FROM {table}")
            insert_many(connection, table, tables[table])
        for fact in facts:
            insert(connection, "metric_facts", fact, replace=True)
        connection.execute("DELETE FROM published")
        insert_many(connection, "published", published)


def merge(connection: duckdb.DuckDBPyConnection, other: Path) -> int:
    """Add what `other` holds and this database lacks (by key); return the number of cells added.

    Ranks are not copied: rank anew afterwards.
    """
    before = _count(connection, "cells")
    with connect(other) as source:
        query = "SELECT path FROM duckdb_databases() WHERE database_name = current_database()"
        place = source.execute(query).fetchone()
        source.close()
        connection.execute(f"ATTACH '{_quoted(Path(place[0] if place else other))}' AS other (READ_ONLY)")
        try:
            with transaction(connection):
                fresh = "cell_id NOT IN (SELECT cell_id FROM main.cells)"
                for table in (*CELL_TABLES, "cells"):
                    connection.execute(f"INSERT INTO main.{table} BY NAME SELECT * FROM other.{table} WHERE {fresh}")
                for table in ("runs", "models", "protocols", "metric_facts", '"references"'):
                    connection.execute(f"INSERT OR IGNORE INTO main.{table} BY NAME SELECT * FROM other.{table}")
        finally:
            connection.execute("DETACH other")
    return _count(connection, "cells") - before


def export(connection: duckdb.DuckDBPyConnection, table: str, format: str, output: Path, *, raw: bool = False) -> int:
    """Write one table as `parquet`, `csv` or `json`; return its number of rows.

    In a CSV, texts that a spreadsheet would take for formulas begin with a quote, unless `raw`.
    """
    if table not in TABLES:
        raise StoreError(f"unknown table '{table}': the tables are {', '.join(TABLES)}")
    options = {"parquet": "FORMAT parquet", "csv": "FORMAT csv, HEADER", "json": "FORMAT json, ARRAY true"}
    if format not in options:
        raise StoreError(f"unknown format '{format}': choose parquet, csv or json")
    try:
        rows = f'"{table}"' if raw or format != "csv" else f"({_for_spreadsheet(connection, table)})"
        connection.execute(f"COPY {rows} TO '{_quoted(output)}' ({options[format]})")
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"{output}: cannot be written ({reason}); choose another place with --output") from error
    return _count(connection, table)


def _for_spreadsheet(connection: duckdb.DuckDBPyConnection, table: str) -> str:
    """Return the query of a table whose texts are no formulas; numbers stay numbers, also where they are texts."""
    columns = connection.execute(f'DESCRIBE "{table}"').fetchall()
    formula = "regexp_matches({0}, '^[=+@\\t\\r-]') AND TRY_CAST({0} AS DOUBLE) IS NULL"
    quoted = "CASE WHEN " + formula + " THEN chr(39) || {0} ELSE {0} END AS {0}"
    shown = [quoted.format(f'"{name}"') if kind == "VARCHAR" else f'"{name}"' for name, kind, *_ in columns]
    return f'SELECT {", ".join(shown)} FROM "{table}"'


def dictionaries(connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Return a query's rows as dictionaries."""
    result = connection.execute(query, list(values))
    names = [column[0] for column in result.description or []]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    row = connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()
    return int(row[0]) if row else 0


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def now() -> datetime:
    """Return the present moment in UTC, without a time zone mark, as the store keeps it."""
    return datetime.now(UTC).replace(tzinfo=None)
