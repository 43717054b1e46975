"""Records of cells, held against the schema before they reach the database: from `result.json`, or another database.

A record holds the rows of one cell by table, as JSON: `cell`, the optional `run`, `model` and `protocol`, and the
optional lists `references`, `metric_facts`, `metrics`, `skipped_metrics`, `per_class` and `thumbnails` (whose rows do
not repeat the cell's id). Files and databases come from anywhere, so columns are taken from the schema, never from a
record: keys that it does not know are of a later version and are left out, values are of its types and within bounds.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.resources import files
from typing import Any, NamedTuple

import duckdb

from results.digests import measurement_digest
from results.errors import StoreError, one_line
from results.timing import checked_timing

SINGLE = {"cell": "cells", "run": "runs", "model": "models", "protocol": "protocols"}
"""Parts of a record that are one row, and their tables."""
LISTS = ("references", "metric_facts", "metrics", "skipped_metrics", "per_class", "thumbnails")
"""Parts that are rows of the table of that name."""
CELL_KEYS = {
    "metrics": ("metric",),
    "skipped_metrics": ("metric",),
    "per_class": ("label", "metric"),
    "thumbnails": ("sample_index",),
}
"""Tables whose rows belong to one cell, and what tells those of a cell apart."""
CELL_TABLES = tuple(CELL_KEYS)
STATUSES = ("done", "failed", "unsupported")
LONGEST_TEXT = 100_000
"""Letters of one text."""
INTEGERS = {"INTEGER": 2**31, "BIGINT": 2**63}
LEAST = {
    ("cells", "steps"): 1,
    ("cells", "num_samples"): 1,
    ("cells", "batch_size"): 1,
    ("cells", "seed"): 0,
    ("cells", "nfe"): 0,
    ("cells", "guide_nfe"): 0,
    ("cells", "substeps"): 0,
    ("cells", "failures"): 0,
    ("cells", "parameters"): 0,
    ("cells", "flops"): 0,
    ("cells", "network_seconds"): 0,
    ("cells", "decode_seconds"): 0,
    ("cells", "judge_seconds"): 0,
    ("cells", "images_per_second"): 0,
    ("cells", "latency_seconds"): 0,
    ("cells", "peak_memory"): 0,
    ("metrics", "n"): 0,
    ("metrics", "standard_error"): 0,
    ("per_class", "n"): 0,
    ("thumbnails", "width"): 1,
    ("thumbnails", "height"): 1,
    ("thumbnails", "sample_index"): 0,
    ("references", "n"): 0,
    ("models", "resolution"): 1,
    ("protocols", "resolution"): 1,
}
"""Smallest values of what counts or lasts."""


class Column(NamedTuple):
    """A column of the schema."""

    name: str
    type: str
    required: bool


def columns_of(table: str) -> tuple[Column, ...]:
    """Return the columns of a table, in the schema's order."""
    return _schema_columns()[table]


@functools.cache
def _schema_columns() -> Mapping[str, tuple[Column, ...]]:
    with duckdb.connect() as connection:
        connection.execute(schema())
        return stored_columns(connection)


def stored_columns(connection: duckdb.DuckDBPyConnection) -> Mapping[str, tuple[Column, ...]]:
    """Return the columns of every table of an open database."""
    found: dict[str, tuple[Column, ...]] = {}
    rows = connection.execute(
        "SELECT table_name, column_name, data_type, NOT is_nullable FROM duckdb_columns() WHERE NOT internal "
        "ORDER BY table_name, column_index"
    )
    for table, *column in rows.fetchall():
        found[table] = (*found.get(table, ()), Column(*column))
    return found


def schema() -> str:
    """Return the statements that make the tables."""
    return (files("results") / "schema.sql").read_text(encoding="utf-8")


def is_cell_id(name: str) -> bool:
    """Tell whether `name` may be a cell's id, and so the name of its directory: nothing of a path."""
    return re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) is not None


def parsed(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises StoreError for what is not JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise StoreError("nested too deeply") from error
    except ValueError as error:
        raise StoreError(f"not readable as JSON ({one_line(str(error), 80)})") from error


def checked(record: Any, cell_id: str | None = None) -> dict[str, Any]:
    """Return a record as the database takes it: known columns only, pictures as bytes, `measurement` worked out.

    `cell_id` is the id that it must have. Raises StoreError, naming table and column, for anything else than a record.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("cell"), Mapping):
        raise StoreError("not the record of a cell")
    found: dict[str, Any] = {}
    for part, table in SINGLE.items():
        if record.get(part) is not None:
            found[part] = _row(table, part, record[part])
    cell = found["cell"]
    if not is_cell_id(cell["cell_id"]) or (cell_id is not None and cell["cell_id"] != cell_id):
        raise StoreError(f"cell.cell_id: {_shown(cell['cell_id'])} is not the id of this cell")
    if cell["status"] not in STATUSES:
        raise StoreError(f"cell.status: {_shown(cell['status'])} is not one of {', '.join(STATUSES)}")
    for table in LISTS:
        rows = record.get(table)
        if rows is None:
            continue
        if not isinstance(rows, (list, tuple)):
            raise StoreError(f"{table}: not a list of rows")
        found[table] = [_row(table, f"{table}[{index}]", row) for index, row in enumerate(rows)]
        keys = [tuple(row[name] for name in CELL_KEYS[table]) for row in found[table]] if table in CELL_KEYS else []
        if len(set(keys)) < len(keys):
            twice = next(key for index, key in enumerate(keys) if key in keys[:index])
            raise StoreError(f"{table}: {_shown(twice[-1])} appears twice")
    if cell.get("measurement") is None:
        try:
            cell["measurement"] = measurement_digest(found.get("protocol", {}).get("definition", {}))
        except (AttributeError, TypeError, RecursionError) as error:
            raise StoreError("protocol.definition: not the definition of a protocol") from error
    return found


def _row(table: str, where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise StoreError(f"{where}: not a row of table {table}")
    found: dict[str, Any] = {}
    for column in columns_of(table):
        if column.name == "cell_id" and table in CELL_TABLES:
            continue
        value = row.get(column.name)
        if value is None:
            if column.required:
                raise StoreError(f"{where}.{column.name}: missing")
            found[column.name] = None  # rows of one statement share their columns
            continue
        try:
            found[column.name] = _value(table, column, value)
        except _NotThis as error:
            raise StoreError(f"{where}.{column.name}: {_shown(value)} is not {error}") from None
    return found


class _NotThis(Exception):
    """What a value should have been."""


def _value(table: str, column: Column, value: Any) -> Any:
    if column.type in INTEGERS:
        end = INTEGERS[column.type]
        if isinstance(value, bool) or not isinstance(value, int) or not -end <= value < end:
            raise _NotThis("an integer" if not isinstance(value, int) else f"an integer below 2^{end.bit_length() - 1}")
    elif column.type in CHECKS:
        value = CHECKS[column.type](value)
    if (table, column.name) == ("cells", "timing"):
        try:
            checked_timing(value)
        except ValueError as error:
            raise _NotThis(f"a timing: {error}") from None
    least = LEAST.get((table, column.name))
    if least is not None and value < least:
        raise _NotThis(f"a number of at least {least}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise _NotThis(f"text of at most {LONGEST_TEXT:,} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _NotThis("UTF-8 text") from None
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _NotThis("a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _NotThis("a finite number")
    return number


def _numbers(value: Any) -> list[float]:
    if not isinstance(value, (list, tuple)):
        raise _NotThis("a list of numbers")
    return [_number(item) for item in value]


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _NotThis("true or false")
    return value


def _moment(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise _NotThis("a date and time") from None
    if moment.tzinfo is not None or moment.year < 1970:
        raise _NotThis("a date and time in UTC, without a time zone")
    return moment


def _table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _NotThis("a table of keys and values")
    try:
        json.dumps(value, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise _NotThis("JSON") from None
    return value


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise _NotThis("bytes in base64") from None


CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "VARCHAR": _text,
    "DOUBLE": _number,
    "DOUBLE[]": _numbers,
    "BOOLEAN": _truth,
    "TIMESTAMP": _moment,
    "JSON": _table,
    "BLOB": _bytes,
}


def _shown(value: Any) -> str:
    try:
        return one_line(repr(value), 60)
    except (ValueError, RecursionError):  # an integer too long to print
        return "a value"


def as_json(value: Any) -> Any:
    """Return a column's value as a record holds it: pictures in base64, moments in ISO 8601, no NaN."""
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def parsed_or_none(text: Any) -> Any:
    """Return the value of a JSON column, None where there is none. Raises StoreError for what is not JSON."""
    return None if text is None else parsed(text)
