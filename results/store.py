"""The store: an index of measured cells, one transaction per cell, rebuilt from their directories at will."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import duckdb

from results.catalog import CATALOG
from results.database import (
    SCHEMA_VERSION,
    closing,
    dictionaries,
    fault_of,
    insert,
    insert_many,
    open_database,
    schema_version_of,
    transaction,
)
from results.errors import StoreError
from results.records import (
    CELL_TABLES,
    LISTS,
    SINGLE,
    as_json,
    checked,
    columns_of,
    parsed_or_none,
)

KEYS = {
    "runs": "run_id",
    "models": "model",
    "protocols": "digest",
    "references": "digest",
    "metric_facts": "metric",
}
"""Tables whose rows cells share, and their keys."""


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
        connection = stack.enter_context(closing(open_database(path, write, retry, scratch)))
        try:
            version = schema_version_of(connection, path, write)
            if version < SCHEMA_VERSION:
                from results.migration import rebuilt

                place = stack.enter_context(rebuilt(connection, path, in_place=write))
                connection.close()
                connection = stack.enter_context(closing(open_database(place, write, True, scratch)))
            yield connection
        except duckdb.Error as error:
            fault = fault_of(path, error)
            if fault is None:
                raise
            raise fault from error


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


def records_of(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, Any]]:
    """Return the records of all cells of a database, by id and not checked.

    Every record names the references that its metrics were measured against, or all where it does not say.
    """

    def rows(table: str) -> list[dict[str, Any]]:
        documents = {column.name for column in columns_of(table) if column.type == "JSON"}
        found = []
        for row in dictionaries(connection, f'SELECT * FROM "{table}"'):
            found.append({key: parsed_or_none(row[key]) if key in documents else as_json(row[key]) for key in row})
        return found

    records: dict[str, dict[str, Any]] = {}
    keyed = {table: {row[key]: row for row in rows(table)} for table, key in KEYS.items()}
    for cell in rows("cells"):
        record: dict[str, Any] = {"cell": cell}
        for part, table, column in (
            ("run", "runs", "run_id"),
            ("model", "models", "checkpoint"),
            ("protocol", "protocols", "protocol_digest"),
        ):
            if cell.get(column) in keyed[table]:
                record[part] = keyed[table][cell[column]]
        records[str(cell["cell_id"])] = record
    for table in CELL_TABLES:
        for row in rows(table):
            record = records.get(str(row.pop("cell_id")), {})
            record.setdefault(table, []).append(row)
    references, facts = keyed["references"], keyed["metric_facts"]
    for record in records.values():
        metrics = record.get("metrics", [])
        named = {row["reference_digest"] for row in metrics} & set(references)
        record["references"] = [references[digest] for digest in sorted(named)] or list(references.values())
        record["metric_facts"] = [
            facts[row["metric"]] for row in metrics if row["metric"] in facts and row["metric"] not in CATALOG
        ]
    return records
