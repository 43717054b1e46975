"""What enters the database: records of the schema, and nothing else that a file or another database holds."""

import json

import duckdb
import pytest

from results.cells import CellDirectory
from results.errors import StoreError
from results.index import reindex
from results.moving import merge
from results.records import checked
from results.store import connect


@pytest.fixture
def finished(record):
    def make(runs, cell_id="a", **changes):
        path = CellDirectory(runs, cell_id).result_path
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record(cell_id) | changes))
        return path

    return make


INJECTION = (
    "run_id\") SELECT run_id FROM runs WHERE false; COPY (SELECT 1) TO '{}' (FORMAT csv); SELECT (?::VARCHAR) --"
)


def test_keys_of_a_record_never_become_statements(tmp_path, finished, cell, metric):
    target = tmp_path / "written"
    key = INJECTION.format(target)
    finished(tmp_path, run={key: "x"})
    finished(tmp_path, "b", cell=cell("b") | {key: 1, "added_later": 2}, metrics=[metric("fid", 1.0) | {key: 3}])
    outcome = reindex(tmp_path)
    assert not target.exists()
    assert outcome.indexed == 1 and [fault.cell for fault in outcome.faults] == ["a"]
    with connect(tmp_path / "bench.duckdb") as connection:
        assert connection.execute("SELECT cell_id FROM cells").fetchall() == [("b",)]


def test_a_connection_reaches_no_other_file(tmp_path):
    (tmp_path / "secret").write_text("x")
    with connect(tmp_path / "bench.duckdb", write=True) as connection:
        for query in (
            f"SELECT * FROM read_text('{tmp_path}/secret')",
            f"COPY cells TO '{tmp_path}/out.csv'",
            f"ATTACH '{tmp_path}/other.duckdb'",
            "INSTALL httpfs",
            "SET enable_external_access = true",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(query)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**63}, "cell.seed: 9223372036854775808 is not an integer below 2^63"),
        ({"seed": "7"}, "cell.seed: '7' is not an integer"),
        ({"seed": True}, "cell.seed: True is not an integer"),
        ({"num_samples": 2**31}, "cell.num_samples: 2147483648 is not an integer below 2^31"),
        ({"num_samples": 0}, "cell.num_samples: 0 is not a number of at least 1"),
        ({"nfe": -1.0}, "cell.nfe: -1.0 is not a number of at least 0"),
        ({"nfe": float("inf")}, "cell.nfe: inf is not a finite number"),
        ({"settings": "DROP"}, "cell.settings: 'DROP' is not a table of keys and values"),
        ({"started": "yesterday"}, "cell.started: 'yesterday' is not a date and time"),
        ({"model": "\ud800"}, "is not UTF-8 text"),
        ({"model": None}, "cell.model: missing"),
        ({"off_regime": 1}, "cell.off_regime: 1 is not true or false"),
        ({"status": "maybe"}, "cell.status: 'maybe' is not one of done, failed, unsupported"),
        ({"cell_id": "../../x"}, "cell.cell_id: '../../x' is not the id of this cell"),
    ],
)
def test_a_value_out_of_bounds_is_named(changes, message, cell):
    with pytest.raises(StoreError) as error:
        checked({"cell": cell("a") | changes})
    assert message in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '["cell"]', '"cell"', "{", '{"cell": 1}', '{"cell": {}}', "[" * 100_000, "9" * 5000],
    ids=range(9),
)
def test_reindex_names_what_it_could_not_take_and_takes_the_rest(tmp_path, text, finished):
    finished(tmp_path, "good")
    finished(tmp_path, "bad").write_text(text)
    outcome = reindex(tmp_path)
    assert outcome.indexed == 1
    ((name, reason),) = outcome.faults
    assert name == "bad" and "result.json" in reason and "\n" not in reason


@pytest.fixture
def foreign(only_rows):
    def make(path, *statements):
        only_rows(path, "z")
        with duckdb.connect(str(path)) as connection:
            for statement in statements:
                connection.execute(statement)
        return path

    return make


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (
            ["DROP TABLE models", "CREATE VIEW models AS SELECT content AS model FROM read_text('/etc/hostname')"],
            "'models' is a view, not a table",
        ),
        (["CREATE VIEW extra AS SELECT 1"], "'extra' is a view; only plain tables"),
        (["CREATE MACRO list_contains(a, b) AS true"], "'list_contains' is a macro"),
        (["CREATE TABLE more (a INTEGER, b INTEGER GENERATED ALWAYS AS (a + 1))"], "'more' is a table with computed"),
        (["UPDATE schema_version SET version = 99"], "its schema is version 99"),
        (["DROP TABLE metrics"], "its tables have another layout"),
    ],
)
def test_a_foreign_database_is_only_plain_tables(tmp_path, statements, message, foreign):
    path = foreign(tmp_path / "foreign.duckdb", *statements)
    runs = tmp_path / "runs"
    runs.mkdir()
    with pytest.raises(StoreError) as error:
        merge(runs, [path])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (runs / "cells").exists()


def test_rows_of_a_foreign_database_are_held_against_the_schema(tmp_path, foreign):
    path = foreign(
        tmp_path / "foreign.duckdb",
        "UPDATE cells SET cell_id = '../../out'",
        "INSERT INTO cells SELECT * REPLACE ('fine' AS cell_id) FROM cells",
    )
    runs = tmp_path / "runs"
    runs.mkdir()
    merged = merge(runs, [path])
    assert merged.added == ["fine"] and [fault.cell for fault in merged.faults] == ["../../out"]
    assert [place.name for place in (runs / "cells").iterdir()] == ["fine"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"SQLite format 3\0" + bytes(200), "starts like an SQLite database"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!doctype html>", "an HTML or XML page"),
        (b"PK\3\4" + bytes(100), "a zip archive"),
        (b"", "not a readable database"),
        (b"nothing known" * 99, "it is not a DuckDB file"),
    ],
)
def test_a_file_that_is_no_database_is_told_by_its_first_bytes(tmp_path, content, kind):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(StoreError) as error, connect(path):
        pass
    assert kind in str(error.value) and path.read_bytes() == content
