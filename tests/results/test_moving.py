"""Rows that come, go, and are rebuilt: nothing is lost on the way, and directories and database agree."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from bench.cli import main
from results.cells import CellDirectory, alone, sweep_runs
from results.database import transaction, write_ahead_log
from results.errors import DatabaseInUseError, StoreError
from results.files import mark
from results.index import Indexer, reindex
from results.moving import differs, find_rows, forget, merge
from results.store import connect


def command(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code or 0


def test_merged_rows_have_directories_so_that_a_rebuilt_database_keeps_them(tmp_path, runs_with, only_rows, cells):
    runs = runs_with(tmp_path / "mine", "a")
    merged = merge(runs, [only_rows(tmp_path / "other.duckdb", "a", "b"), runs_with(tmp_path / "theirs", "c", "d")])
    assert sorted(merged.added) == ["b", "c", "d"] and merged.faults == []
    assert (runs / "cells/c/pick.score.npy").read_bytes() == (tmp_path / "theirs/cells/c/pick.score.npy").read_bytes()
    before = cells(runs)
    assert reindex(runs).kept == []
    assert cells(runs) == before == ["a", "b", "c", "d"]
    assert merge(runs, [tmp_path / "other.duckdb"]).added == []
    assert not list(runs.glob("merging-*"))


def test_a_merge_adds_nothing_when_one_source_cannot_be_read(tmp_path, runs_with, only_rows, cells):
    runs = runs_with(tmp_path / "mine", "a")
    (tmp_path / "page").write_text("<html>")
    with pytest.raises(StoreError, match="an HTML or XML page"):
        merge(runs, [only_rows(tmp_path / "other.duckdb", "b"), tmp_path / "page"])
    assert cells(runs) == ["a"] and [path.name for path in (runs / "cells").iterdir()] == ["a"]


def test_a_merge_that_the_database_refuses_takes_its_directories_back(
    tmp_path, monkeypatch, runs_with, only_rows, cells
):
    runs = runs_with(tmp_path / "mine", "a")

    def refuse(*arguments, **keywords):
        raise duckdb.IOException("IO Error: No space left on device")

    monkeypatch.setattr("results.moving.write_record", refuse)
    with pytest.raises(StoreError, match="no space left on the device"):
        merge(runs, [only_rows(tmp_path / "other.duckdb", "b")])
    assert cells(runs) == ["a"] and [path.name for path in (runs / "cells").iterdir()] == ["a"]


def test_rows_without_a_directory_are_kept_by_name_or_dropped_when_asked(tmp_path, capsys, only_rows, cells):
    only_rows(tmp_path / "bench.duckdb", "a", "b")
    assert command("reindex", "--runs-dir", tmp_path) == 0
    assert "a: had a row but no readable record; the row is kept" in " ".join(capsys.readouterr().err.split("\n"))
    assert cells(tmp_path) == ["a", "b"]
    (tmp_path / "cells/a/result.json").unlink()
    assert command("reindex", "--drop", "--runs-dir", tmp_path) == 0
    assert "a: had a row but no readable record; dropped" in capsys.readouterr().err
    assert cells(tmp_path) == ["b"]


def test_a_truncated_record_is_written_anew_from_its_row(tmp_path, runs_with, cells):
    runs = runs_with(tmp_path, "a", "b")
    path = runs / "cells/a/result.json"
    path.write_bytes(path.read_bytes()[:100])
    assert reindex(runs).kept == ["a"]
    assert json.loads(path.read_text())["metrics"][0]["value"] == 3.0 and cells(runs) == ["a", "b"]


def test_a_cell_that_another_user_keeps_closed_is_named_and_the_others_are_taken(tmp_path, monkeypatch, runs_with):
    runs, mine = runs_with(tmp_path / "theirs", "a", "b", database=False), tmp_path / "mine"
    look = Path.stat

    def closed(path, **options):
        if path.parent.name == "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", closed)
    for faults in (merge(mine, [runs]).faults, reindex(runs).faults):
        assert [fault.cell for fault in faults] == ["a"] and "Permission denied" in faults[0].reason
    assert CellDirectory(runs, "a").scores("pick.score") is None
    sweep_runs(runs)


def test_a_damaged_database_is_moved_aside_with_its_log_and_rebuilt(tmp_path, capsys, runs_with, cells):
    runs = runs_with(tmp_path, "a")
    database = runs / "bench.duckdb"
    database.write_bytes(database.read_bytes()[:4096] + b"x" * 9000)
    write_ahead_log(database).write_bytes(b"log")
    assert command("leaderboard", "--runs-dir", runs) == 2
    said = capsys.readouterr().err
    assert "'bench reindex' rebuilds it" in said and "bench.duckdb.wal" in said
    assert command("reindex", "--runs-dir", runs) == 0
    assert cells(runs) == ["a"] and not write_ahead_log(database).exists()
    assert (runs / "bench.damaged-1.duckdb").exists() and (runs / "bench.damaged-1.duckdb.wal").read_bytes() == b"log"


@pytest.mark.parametrize("round", range(int(os.environ.get("BENCH_KILLS", "2"))))
def test_a_kill_in_a_write_of_the_database_leaves_one_that_reindex_makes_readable(tmp_path, round, runs_with):
    runs = runs_with(tmp_path, "a", "b")
    code = (
        "import os, signal, sys, duckdb\n"
        "connection = duckdb.connect(sys.argv[1])\n"
        "connection.execute('SET wal_autocheckpoint = \\'1GB\\'')\n"
        'connection.execute("UPDATE cells SET nfe = nfe + 1")\n'
        "connection.execute('BEGIN')\n"
        "connection.execute(\"DELETE FROM metrics WHERE cell_id = 'a'\")\n"
        "if int(sys.argv[2]) % 2: connection.execute('COMMIT')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, runs / "bench.duckdb", str(round)])
    assert killed.returncode == -signal.SIGKILL and write_ahead_log(runs / "bench.duckdb").exists()
    assert reindex(runs).indexed == 2
    assert not write_ahead_log(runs / "bench.duckdb").exists()
    with connect(runs / "bench.duckdb", write=True) as connection:
        assert connection.execute("SELECT count(*) FROM metrics").fetchone() == (2,)


def test_removed_rows_are_gone_from_directories_and_database_and_stay_gone(tmp_path, capsys, runs_with, record, cells):
    runs = runs_with(tmp_path, "a1", "b2", database=False)
    CellDirectory(runs, "c3").write_result(record("c3", steps=8, model="other", status="failed", reason="broke"))
    reindex(runs)
    assert command("remove", "nobody", "--yes", "--runs-dir", runs) == 2
    assert "no row 'nobody'" in capsys.readouterr().err
    assert command("remove", "other@8@1", "a1", "--yes", "--runs-dir", runs) == 0
    said = capsys.readouterr().err
    assert "c3  other, 8 steps, cfg 1, digits, 100 samples, seed 0, failed" in said and "2 rows removed" in said
    assert cells(runs) == ["b2"] and [path.name for path in (runs / "cells").iterdir()] == ["b2"]
    assert reindex(runs).indexed == 1 and cells(runs) == ["b2"]
    forget(runs, [row.cell for row in find_rows(runs, ["m"])])
    assert cells(runs) == []
    assert not list(runs.glob("removing-*"))


def test_nothing_is_removed_unasked(tmp_path, monkeypatch, capsys, runs_with, cells):
    runs = runs_with(tmp_path, "a")
    monkeypatch.setattr("typer.confirm", lambda *words, **how: False)
    assert command("remove", "a", "--runs-dir", runs) == 1
    assert "nothing removed" in capsys.readouterr().err and cells(runs) == ["a"]
    monkeypatch.undo()
    monkeypatch.setattr("sys.stdin", io.StringIO())  # a script, where nobody answers
    assert command("remove", "a", "--runs-dir", runs) == 1
    assert "--yes removes without asking\nnothing removed" in capsys.readouterr().err and cells(runs) == ["a"]


def test_litter_of_the_dead_is_swept_and_the_living_keep_theirs(tmp_path, runs_with):
    runs = runs_with(tmp_path, "a")
    dead = subprocess.run(
        [sys.executable, "-c", "from results.files import mark; print(mark())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    mine = mark()
    for owner in (dead, mine):
        (runs / "cells" / f"scoring-{owner}").mkdir()
        (runs / f"merging-{owner}").mkdir()
        (runs / "cells" / "a" / f"result.json.{owner}.tmp").write_text("{")
        (runs / f"report.html.{owner}.tmp").write_text("<")
    (runs / "cells/a/shard-00000000-00000100.safetensors").write_bytes(b"")
    (runs / "cells/unfinished").mkdir()
    (runs / "cells/unfinished/shard-00000000-00000100.safetensors").write_bytes(b"")
    with alone(runs):
        pass
    left = {str(path.relative_to(runs)) for path in runs.rglob("*")}
    assert not any(dead in path for path in left)
    assert sum(mine in path for path in left) == 4
    assert "cells/unfinished/shard-00000000-00000100.safetensors" in left
    assert "cells/a/shard-00000000-00000100.safetensors" not in left


def test_a_reader_holds_up_the_database_and_not_the_run(tmp_path, monkeypatch, runs_with, record, cells):
    monkeypatch.setattr("results.database.WAIT_SECONDS", 0.2)
    runs = runs_with(tmp_path, "a")
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True); print(flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(runs / "bench.duckdb")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    indexer = Indexer(runs / "bench.duckdb")
    try:
        assert holder.stdout.readline() == "\n"
        with pytest.warns(UserWarning, match="in use by another process") as warned:
            for name in ("b", "c"):
                CellDirectory(runs, name).write_result(record(name))
                indexer.add(CellDirectory(runs, name))
        assert len(warned) == 1
        with pytest.raises(DatabaseInUseError):
            indexer.catch_up()
    finally:
        holder.communicate("")
    CellDirectory(runs, "d").write_result(record("d"))
    indexer.add(CellDirectory(runs, "d"))
    assert cells(runs) == ["a", "b", "c", "d"]


def test_a_write_that_the_disk_refuses_says_so(tmp_path, runs_with):
    runs = runs_with(tmp_path, "a")
    full = duckdb.IOException("IO Error: Could not write all bytes to file: No space left on device")
    with (
        pytest.raises(StoreError, match="no space left on the device; free some"),
        connect(runs / "bench.duckdb", write=True) as connection,
        transaction(connection),
    ):
        connection.execute("COMMIT")  # what ends the transaction before its error is known
        raise full
    broken = duckdb.IOException("IO Error: Corrupt database file: computed checksum 1 does not match block 7")
    with pytest.raises(StoreError, match="not a readable database") as error, connect(runs / "bench.duckdb"):
        raise broken
    assert "checksum" in str(error.value) and "'bench reindex' rebuilds it" in str(error.value)


def test_a_row_of_the_same_id_with_other_numbers_is_named_and_never_takes_the_place(
    tmp_path, runs_with, record, capsys
):
    runs, other = runs_with(tmp_path / "runs", "a", "b"), runs_with(tmp_path / "other", "b", "c")
    CellDirectory(other, "a").write_result(record("a", value=2.0))
    reindex(other)
    with pytest.raises(SystemExit) as caught:
        main(["merge", str(other), "--runs-dir", str(runs)])
    said = capsys.readouterr().err
    assert caught.value.code == 1
    assert "left out: a: other numbers (fid 2 instead of 3) than the row here, which was kept" in said
    with connect(runs / "bench.duckdb") as connection:
        found = connection.execute("SELECT cell_id, value FROM metrics ORDER BY 1").fetchall()
    assert found == [("a", 3.0), ("b", 3.0), ("c", 3.0)]
    assert CellDirectory(runs, "a").load_result()["metrics"][0]["value"] == 3.0


def test_two_sources_that_disagree_are_named(tmp_path, runs_with, record):
    one, other = runs_with(tmp_path / "one", "a"), tmp_path / "other"
    CellDirectory(other, "a").write_result(record("a", value=2.0))
    merged = merge(tmp_path / "runs", [one, other])
    assert merged.added == ["a"]
    assert [(fault.cell, "source before it" in fault.reason) for fault in merged.faults] == [("a", True)]


@pytest.mark.parametrize("column", ["value", "low", "high"])
def test_sources_with_values_that_nobody_measured_are_compared_too(tmp_path, runs_with, record, column):
    runs, (one, other) = runs_with(tmp_path / "runs", "b"), (tmp_path / "one", tmp_path / "other")
    for directory, cells in ((one, "a"), (other, "ab")):
        for cell in cells:
            lacking = record(cell)
            lacking["metrics"] = [{key: row[key] for key in row if key != column} for row in lacking["metrics"]]
            CellDirectory(directory, cell).write_result(lacking)
    merged = merge(runs, [one, other])
    assert merged.added == ["a"]
    faults = {"b": "other numbers (fid not measured instead of 3)"} if column == "value" else {}
    assert {fault.cell: fault.reason.partition(" than")[0] for fault in merged.faults} == faults
    assert differs(record("a"), lacking) == faults.get("b")


def test_rounding_of_another_machine_is_no_conflict(record):
    assert differs(record("a", value=3.0), record("a", value=3.0 + 0.009)) is None
    assert differs(record("a", value=3.0), record("a", value=3.02)) == "other numbers (fid 3.02 instead of 3)"
    assert differs(record("a"), record("a", value=float("nan"))) is not None
