"""The DuckDB file: opened without reach to anything else, its faults as one line, its schema, and rows in and out.

A database may come from anywhere, so no connection reaches other files, the network or extensions, and our tables must
be tables: a view of the same name would answer with whatever its author wrote.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from results.errors import DamagedDatabaseError, DatabaseInUseError, StoreError, one_line
from results.files import FULL, disk_error, mark, remove
from results.records import columns_of, schema, stored_columns

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
def closing(connection: duckdb.DuckDBPyConnection) -> Iterator[duckdb.DuckDBPyConnection]:
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


def open_database(path: Path, write: bool, retry: bool, scratch: Path | None = None) -> duckdb.DuckDBPyConnection:
    """Open the file at `path`, whatever its schema; see `results.store.connect`."""
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
        with closing(duckdb.connect(str(temporary), config=ALONE)) as connection:
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
    if isinstance(error, duckdb.OutOfMemoryException):
        return StoreError(f"{path}: not enough memory to open or query it; free some, then try again")
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


def schema_version_of(connection: duckdb.DuckDBPyConnection, path: Path, write: bool) -> int:
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
                kind = f"is {there[column.name]}, not {column.type}" if column.name in there else "is missing"
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


def dictionaries(connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Return a query's rows as dictionaries."""
    result = connection.execute(query, list(values))
    names = [column[0] for column in result.description or []]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def now() -> datetime:
    """Return the present moment in UTC, without a time zone mark, as the store keeps it."""
    return datetime.now(UTC).replace(tzinfo=None)
