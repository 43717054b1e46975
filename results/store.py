"""The DuckDB store: an index of measured cells, one transaction per cell, rebuilt from their directories at will.

A database may come from anywhere, so no connection reaches other files, the network or extensions, and our tables must
be tables: a view of the same name would answer with whatever its author wrote.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import duckdb

from results.errors import DamagedDatabaseError, DatabaseInUseError, StoreError, one_line
from results.files import FULL, disk_error, mark, remove, sweep, writing
from results.records import CELL_TABLES, LISTS, SINGLE, checked, columns_of, schema, stored_columns

SCHEMA_VERSION = 7
TABLES = (
    "runs", "models", "protocols", "cells", "metrics", "skipped_metrics", "metric_facts", "per_class", "thumbnails",
    "ranks", "metric_ranks", "rankings", "references", "published", "schema_version",
)  # fmt: skip
RANKING_TABLES = ("rankings", "ranks", "metric_ranks")
"""What is computed over the cells of a ranking, and so never copied from one database to another."""
ROWS_PER_INSERT = 100
WAIT_SECONDS, POLL_SECONDS = 10.0, 0.1
"""How long a command waits for another to let go of the database, and how often it looks."""
ALONE: dict[str, str | bool | int | float | list[str]] = {
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "threads": 1,  # where a thread of DuckDB's own has taken the whole of a query, Ctrl-C waits for its end
}
OTHER_FILES = {
    b"SQLite format 3": "an SQLite database",
    b"PAR1": "a Parquet file",
    b"PK": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer ('git lfs pull' gets the file)",
    b"<": "an HTML or XML page",
    b"{": "JSON",
}
"""First bytes of what is mistaken for a database."""


@contextmanager
def connect(
    path: Path, *, write: bool = False, retry: bool = False, scratch: Path | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the database and close it in the end.

    `write` creates it when it is absent; `retry` waits up to ten seconds for another process to let go of it;
    `scratch` is the one directory whose files the connection may write. A database of an older schema is brought to
    this one: in place when it is opened for writing, else as a temporary copy. Raises StoreError in one line when the
    file is absent, in use, damaged, or of a newer schema; nothing is overwritten.
    """
    if not write and not path.exists():
        raise StoreError(f"{path}: no database here; 'bench run' creates one (or choose another with --runs-dir)")
    with ExitStack() as stack:
        connection = stack.enter_context(_closing(_open(path, write, retry, scratch)))
        try:
            version = _schema_version(connection, path, write)
            if version < SCHEMA_VERSION:
                from results.migration import rebuilt

                place = stack.enter_context(rebuilt(connection, path, in_place=write))
                connection.close()
                connection = stack.enter_context(_closing(_open(place, write, True, scratch)))
            yield connection
        except duckdb.Error as error:
            fault = fault_of(path, error)
            if fault is None:
                raise
            raise fault from error


@contextmanager
def _closing(connection: duckdb.DuckDBPyConnection) -> Iterator[duckdb.DuckDBPyConnection]:
    """Close the connection; what closing says of a full or broken disk has been said by the write before."""
    try:
        yield connection
    finally:
        with suppress(duckdb.Error):
            connection.close()


def create_schema(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the tables in an empty database."""
    with transaction(connection):
        connection.execute(schema())
        connection.execute("INSERT INTO schema_version VALUES (?)", [SCHEMA_VERSION])


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Keep what the block writes, or nothing of it."""
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(duckdb.Error):  # a commit that failed has ended the transaction: its own error tells why
            connection.execute("ROLLBACK")
        raise


def write_ahead_log(path: Path) -> Path:
    """Return the file beside a database that holds what was written last, until the database takes it in."""
    return path.with_name(f"{path.name}.wal")


def _open(path: Path, write: bool, retry: bool, scratch: Path | None = None) -> duckdb.DuckDBPyConnection:
    _check_first_bytes(path)
    if write and not path.exists():
        _make(path)
    deadline = time.monotonic() + (WAIT_SECONDS if retry else 0.0)
    config = ALONE if scratch is not None else {**ALONE, "enable_external_access": "false"}
    while True:
        try:
            connection = duckdb.connect(str(path), read_only=not write, config=config)
        except duckdb.Error as error:
            if _in_use(error) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
                continue
            fault = fault_of(path, error)
            if fault is not None and not isinstance(fault, DamagedDatabaseError):
                raise fault from error
            raise _damaged(path, str(error)) from error
        if scratch is not None:
            place = str(scratch.resolve()).replace("'", "''")
            connection.execute(f"SET allowed_directories = ['{place}']")
            connection.execute("SET enable_external_access = false")
        return connection


def _make(path: Path) -> None:
    """Put an empty database at `path`, whole or not at all, unless another process is first."""
    temporary = path.with_name(f"{path.name}.{mark()}.tmp")
    try:
        with _closing(duckdb.connect(str(temporary), config=ALONE)) as connection:
            create_schema(connection)
            connection.execute("CHECKPOINT")
        try:
            os.link(temporary, path)  # fails where a rename would replace what another process has filled
        except FileExistsError:
            return
        except OSError:  # a file system without links
            if not path.exists():
                temporary.replace(path)
    except duckdb.Error as error:
        fault = fault_of(path, error)
        raise fault or error from error
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        with suppress(OSError):
            remove(temporary)
            remove(write_ahead_log(temporary))


def _check_first_bytes(path: Path) -> None:
    """Raise StoreError for a file that is not a DuckDB database, before a library looks for one that reads it."""
    try:
        if not path.exists():
            return
        if path.is_dir():
            raise StoreError(f"{path}: a directory, not a database; name its bench.duckdb")
        if not path.is_file():
            raise StoreError(f"{path}: a device or a pipe, not a database; correct the path")
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error}); ask its owner") from error
    if not start or start[8:12] == b"DUCK":
        return  # of an empty file DuckDB says what is wrong, or who may not read it
    for beginning, kind in OTHER_FILES.items():
        if start.lstrip().startswith(beginning):
            raise _damaged(path, f"it starts like {kind}")
    raise _damaged(path, "it is not a DuckDB file")


def _in_use(error: duckdb.Error) -> bool:
    return any(words in str(error) for words in ("Could not set lock", "Conflicting lock", "being used by another"))


def fault_of(path: Path, error: duckdb.Error) -> StoreError | None:
    """Return the one line for what the disk or the file did to a query; None for a fault of the query."""
    message = str(error)
    if _in_use(error):
        return DatabaseInUseError(
            f"{path}: the database is in use by another process; wait for it to finish, then try again"
        )
    if "different configuration" in message:
        return DatabaseInUseError(
            f"{path}: the database is open in this process with different settings; close it first"
        )
    if "version number" in message or "newer version" in message:
        return StoreError(f"{path}: written by a newer DuckDB than {duckdb.__version__}; upgrade duckdb to read it")
    if "permission denied" in message.lower():
        return StoreError(f"{path}: permission denied; ask its owner, or choose another place with --runs-dir")
    if "no space left" in message.lower() or "quota" in message.lower():
        return StoreError(f"{path}: {FULL}")
    signs = ("corrupt", "checksum", "wal file", "deserializ", "not a valid duckdb", "magic bytes")
    kinds = (duckdb.InternalException, duckdb.FatalException, duckdb.SerializationException)
    if any(sign in message.lower() for sign in signs) or isinstance(error, kinds):
        return _damaged(path, message)
    if isinstance(error, duckdb.IOException):
        reason = one_line(message.splitlines()[0], 160)
        return StoreError(
            f"{path}: cannot be read or written ({reason}); free space or fix permissions, then try again"
        )
    if isinstance(error, (duckdb.CatalogException, duckdb.BinderException)):
        reason = one_line(message.splitlines()[0], 120)
        return _damaged(path, f"its tables have another layout: {reason}")
    return None


def _damaged(path: Path, reason: str) -> DamagedDatabaseError:
    log = write_ahead_log(path)
    both = f"it and {log.name}" if log.exists() else "it"
    return DamagedDatabaseError(
        f"{path}: not a readable database ({one_line((reason.splitlines() or [''])[0], 120)}); "
        f"'bench reindex' rebuilds it from the cells and moves {both} aside"
    )


def _schema_version(connection: duckdb.DuckDBPyConnection, path: Path, write: bool) -> int:
    """Return the schema version of a database, at most this program's; an empty one that may be written is filled."""
    tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    for (view,) in views:
        if view in TABLES:
            raise StoreError(f"{path}: '{view}' is a view, not a table; only tables are read")
    if not tables:
        if not write:
            raise StoreError(f"{path}: the database is empty; 'bench run' fills it")
        create_schema(connection)
        return SCHEMA_VERSION
    if "schema_version" not in tables:
        raise StoreError(f"{path}: not a database of this program; choose another --runs-dir")
    row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    version = row[0] if row else None
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise StoreError(
            f"{path}: its schema is version {version}, this program knows {SCHEMA_VERSION}; upgrade fewstep-bench"
        )
    if version == SCHEMA_VERSION:
        _check_columns(connection, path)
    return version


def _check_columns(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Raise DamagedDatabaseError unless the tables have the schema's columns; more are of a later version."""
    stored = stored_columns(connection)
    for table in TABLES:
        there = {column.name: column.type for column in stored.get(table, ())}
        for column in columns_of(table):
            if there.get(column.name) != column.type:
                kind = f"is {there[column.name]}, not {column.type}" if column.name in there else "is not there"
                raise _damaged(path, f"its tables have another layout: {table}.{column.name} {kind}")


def check_foreign(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Raise StoreError for a database of other people that holds more than tables of plain columns."""
    for kind, query in (
        ("a view", "SELECT view_name FROM duckdb_views() WHERE NOT internal"),
        ("a macro", "SELECT function_name FROM duckdb_functions() WHERE NOT internal"),
        (
            "a table with computed columns",
            "SELECT table_name FROM duckdb_tables() WHERE regexp_matches(sql, '(?i)GENERATED ALWAYS')",
        ),
    ):
        for (name,) in connection.execute(query).fetchall():
            raise StoreError(
                f"{path}: '{one_line(name, 60)}' is {kind}; only plain tables are read from other databases"
            )


def insert(connection: duckdb.DuckDBPyConnection, table: str, row: Mapping[str, Any], *, replace: bool = False) -> None:
    """Insert one row; mappings and lists of mappings become JSON. `replace` overwrites a row of the same key."""
    insert_many(connection, table, [row], verb="INSERT OR REPLACE" if replace else "INSERT")


def insert_many(
    connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[Mapping[str, Any]], *, verb: str = "INSERT"
) -> None:
    """Insert rows that share their columns, many to a statement (DuckDB prepares each anew).

    Only columns of the schema become part of a statement.
    """
    for start in range(0, len(rows), ROWS_PER_INSERT):
        part = rows[start : start + ROWS_PER_INSERT]
        names = [column.name for column in columns_of(table) if column.name in part[0]]
        columns = ", ".join(f'"{name}"' for name in names)
        marks = ", ".join([f"({', '.join('?' for _ in names)})"] * len(part))
        values = [_plain(row[name]) for row in part for name in names]
        connection.execute(f'{verb} INTO "{table}" ({columns}) VALUES {marks}', values)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) or (isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping)):
        return json.dumps(value, sort_keys=True)
    return value


def write_cell(connection: duckdb.DuckDBPyConnection, record: Mapping[str, Any]) -> None:
    """Replace everything stored of one cell, in one transaction; see `write_record`."""
    with transaction(connection):
        write_record(connection, record)


def write_record(connection: duckdb.DuckDBPyConnection, record: Mapping[str, Any], *, shared: bool = True) -> None:
    """Replace everything stored of one cell, within the caller's transaction.

    `record` holds the rows by table: `cell`, the optional `run`, `model`, `protocol`, and the optional lists
    `references`, `metric_facts` (of metrics that are not built in) and `metrics`, `skipped_metrics`, `per_class`,
    `thumbnails` (without cell_id). `shared` False keeps what the database already says of runs, models, protocols,
    references and metrics. Raises StoreError for a record that is none.
    """
    rows = checked(record)
    cell_id = rows["cell"]["cell_id"]
    verb = "INSERT OR REPLACE" if shared else "INSERT OR IGNORE"
    for part, table in SINGLE.items():
        if part in rows and part != "cell":
            insert_many(connection, table, [rows[part]], verb=verb)
    for table in LISTS:
        if table not in CELL_TABLES:
            for row in rows.get(table, []):  # a key twice in one statement is refused
                insert_many(connection, table, [row], verb=verb)
            continue
        connection.execute(f"DELETE FROM {table} WHERE cell_id = ?", [cell_id])
        insert_many(connection, table, [{"cell_id": cell_id, **row} for row in rows.get(table, [])])
    insert(connection, "cells", rows["cell"], replace=True)


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
    from results.training import mark_tables

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
