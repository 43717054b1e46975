import json
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from results.database import SCHEMA_VERSION, fault_of
from results.errors import DamagedDatabaseError, StoreError
from results.export import export
from results.leaderboard import best_of_each, rows, sorted_rows
from results.moving import merge
from results.store import connect, write_cell


@pytest.fixture
def database(tmp_path, cell, metric):
    path = tmp_path / "bench.duckdb"
    with connect(path, write=True) as connection:
        write_cell(connection, {"cell": cell("a"), "metrics": [metric("fid", 3.0), metric("is", 7.0)]})
        write_cell(connection, {"cell": cell("b", steps=8), "metrics": [metric("fid", 2.0), metric("is", 6.0)]})
    return path


def test_a_cell_is_replaced_whole(database, cell, metric):
    with connect(database, write=True) as connection:
        write_cell(connection, {"cell": cell("a"), "metrics": [metric("fid", 9.0)]})
        assert connection.execute("SELECT metric, value FROM metrics WHERE cell_id = 'a'").fetchall() == [("fid", 9.0)]


def test_a_cell_that_cannot_be_written_leaves_nothing(database, cell, metric):
    broken = {"cell": cell("c"), "metrics": [metric("fid", 1.0), metric("fid", 1.0)]}
    with connect(database, write=True) as connection:
        with pytest.raises(StoreError, match="metrics: 'fid' appears twice"):
            write_cell(connection, broken)
        assert connection.execute("SELECT count(*) FROM metrics WHERE cell_id = 'c'").fetchone() == (0,)


def test_the_best_setting_depends_on_the_metric(database):
    with connect(database) as connection:
        found = rows(connection)
    assert [row.cell["cell_id"] for row in sorted_rows(found, "fid")] == ["b", "a"]
    assert [row.cell["cell_id"] for row in best_of_each(found, "is")] == ["a"]
    with pytest.raises(StoreError, match="unknown metric 'fjd'"):
        sorted_rows(found, "fjd")


def test_a_missing_database_says_how_to_make_one(tmp_path):
    with (
        pytest.raises(StoreError, match="no database here; 'bench run' creates one"),
        connect(tmp_path / "none.duckdb"),
    ):
        pass


def test_a_damaged_database_is_left_as_it_is(tmp_path):
    path = tmp_path / "bench.duckdb"
    path.write_bytes(b"not a database at all" * 400)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not a readable database"), connect(path, write=True):
        pass
    assert path.read_bytes() == before


def test_a_database_of_a_newer_schema_is_refused(database):
    connection = duckdb.connect(str(database))
    connection.execute("UPDATE schema_version SET version = ?", [SCHEMA_VERSION + 1])
    connection.close()
    with pytest.raises(StoreError, match="upgrade fewstep-bench"), connect(database, write=True):
        pass


def test_a_database_of_another_program_is_refused(tmp_path):
    path = tmp_path / "bench.duckdb"
    connection = duckdb.connect(str(path))
    connection.execute("CREATE TABLE birds (name VARCHAR)")
    connection.close()
    with pytest.raises(StoreError, match="not a database of this program"), connect(path, write=True):
        pass


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("ALTER TABLE per_class DROP COLUMN value", "per_class.value is missing"),
        ("ALTER TABLE cells ALTER COLUMN nfe TYPE VARCHAR", "cells.nfe is VARCHAR, not DOUBLE"),
        ("DROP TABLE runs", "runs.run_id is missing"),
    ],
)
def test_a_database_whose_tables_were_changed_is_refused(database, change, line):
    with duckdb.connect(str(database)) as connection:
        connection.execute(change)
    with pytest.raises(StoreError, match=line), connect(database):
        pass


def test_a_column_of_a_later_version_is_no_damage(database):
    with duckdb.connect(str(database)) as connection:
        connection.execute("ALTER TABLE cells ADD COLUMN later INTEGER")
    with connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM cells").fetchone()


def test_a_database_locked_by_another_process_is_one_line(database):
    code = f"import duckdb, sys; c = duckdb.connect({str(database)!r}); print('locked', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "locked"
        with pytest.raises(StoreError, match="in use by another process"), connect(database, write=True):
            pass
    finally:
        holder.communicate("")


def test_merge_adds_only_what_is_new(database, tmp_path, cell, metric):
    other = tmp_path / "other.duckdb"
    shutil.copy(database, other)
    with connect(other, write=True) as connection:
        write_cell(connection, {"cell": cell("c"), "metrics": [metric("fid", 1.0)]})
        write_cell(connection, {"cell": cell("a"), "metrics": [metric("fid", 99.0)]})
    assert merge(database.parent, [other]).added == ["c"]
    with connect(database) as connection:
        values = dict(connection.execute("SELECT cell_id, value FROM metrics WHERE metric = 'fid'").fetchall())
    assert values == {"a": 3.0, "b": 2.0, "c": 1.0}


@pytest.mark.parametrize("format", ["csv", "json", "parquet"])
def test_any_table_exports(database, tmp_path, format):
    path = tmp_path / f"metrics.{format}"
    assert export(database, "metrics", format, path) == 4
    assert duckdb.connect().execute(f"SELECT count(*) FROM '{path}'").fetchone() == (4,)
    if format == "json":
        assert {row["metric"] for row in json.loads(path.read_text())} == {"fid", "is"}


def test_unknown_tables_and_formats_are_named(database, tmp_path):
    with pytest.raises(StoreError, match="unknown table 'metric'"):
        export(database, "metric", "csv", tmp_path / "x")
    with pytest.raises(StoreError, match="unknown format 'xlsx'"):
        export(database, "metrics", "xlsx", tmp_path / "x")


def test_want_of_memory_is_no_damage():
    fault = fault_of(Path("bench.duckdb"), duckdb.OutOfMemoryException("Out of Memory Error: Allocation failure"))
    assert fault is not None and not isinstance(fault, DamagedDatabaseError)
    assert "not enough memory" in str(fault) and "reindex" not in str(fault)
