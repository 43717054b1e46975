"""A database of an older schema, written anew in this one.

Rows are copied column by column, what an older version did not store is worked out from what it did, and ranks are
computed anew. The older database is never altered: the new one takes its place when it is whole, or is a copy to read.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import duckdb

from results.database import (
    RANKING_TABLES,
    TABLES,
    create_schema,
    dictionaries,
    insert_many,
    transaction,
    write_ahead_log,
)
from results.digests import measurement_digest
from results.errors import StoreError
from results.files import remove, writing
from results.ranking import rank
from results.records import columns_of

WORKED_OUT = ("schema_version", "published", *RANKING_TABLES)
"""Tables that are made, not copied."""


@contextmanager
def rebuilt(old: duckdb.DuckDBPyConnection, path: Path, *, in_place: bool) -> Iterator[Path]:
    """Yield where the database at `path`, open as `old`, lies in this program's schema.

    `in_place` needs `old` to be open for writing, which keeps others out until the new file has taken its place;
    otherwise the new file is a temporary one. Raises StoreError when it cannot be written.
    """
    try:
        if in_place:
            with writing(path) as temporary:
                _copy(old, temporary)
                remove(write_ahead_log(path))
            yield path
        else:
            with tempfile.TemporaryDirectory(prefix="bench-schema-") as folder:
                place = Path(folder) / "bench.duckdb"
                _copy(old, place)
                yield place
    except OSError as error:
        raise StoreError(
            f"{path}: written by an older version, and the upgraded copy cannot be written "
            f"({error.strerror or error}); free space or fix permissions"
        ) from error


def _copy(old: duckdb.DuckDBPyConnection, place: Path) -> None:
    with closing(duckdb.connect(str(place))) as new:
        create_schema(new)
        for table in TABLES:
            if table in WORKED_OUT:
                continue
            there = {name for (name, *_) in old.execute(f'DESCRIBE "{table}"').fetchall()}
            shared = ", ".join(f'"{column.name}"' for column in columns_of(table) if column.name in there)
            with transaction(new):
                insert_many(new, table, dictionaries(old, f'SELECT {shared} FROM "{table}"'))
        _fill_measurements(new)
        rank(new)


def _fill_measurements(connection: duckdb.DuckDBPyConnection) -> None:
    for digest, definition in connection.execute("SELECT digest, definition FROM protocols").fetchall():
        connection.execute(
            "UPDATE cells SET measurement = ? WHERE measurement IS NULL AND protocol_digest = ?",
            [measurement_digest(json.loads(definition)), digest],
        )
