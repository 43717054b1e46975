"""Commands killed at a chosen call (SIGKILL), then typed again: they complete, with the tables of one that was not."""

import os
import random
import signal
import subprocess
import sys

import duckdb
import numpy as np
import pytest

KILLED = """
import importlib, os, signal, sys
module, name, left = importlib.import_module(sys.argv[1]), sys.argv[2], int(sys.argv[3])
real = getattr(module, name)
def killed(*arguments, **keywords):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **keywords)
setattr(module, name, killed)
from bench.cli import main
main(sys.argv[4:])
"""
ROUNDS = int(os.environ.get("BENCH_KILLS", "1"))
"""How often everything is killed; without the variable, the slow cases are left out."""
THOROUGH = pytest.mark.skipif("BENCH_KILLS" not in os.environ, reason="slow: BENCH_KILLS=3 tries it three times")
TABLES = {"cells": "cell_id, status, nfe", "metrics": "cell_id, metric, value, low, high", "per_class": "*"}
RUN = ("run", "--model", "digits-dmd", "--steps", "1", "--num-samples", "40", "--workers", "1")


def bench(*words, kill=None):
    start = [sys.executable, "-m", "bench"] if kill is None else [sys.executable, "-c", KILLED, *map(str, kill)]
    return subprocess.run([*start, *map(str, words)], capture_output=True, text=True, timeout=120)


def tables(runs):
    with duckdb.connect(str(runs / "bench.duckdb"), read_only=True) as connection:
        return {
            name: connection.execute(f"SELECT {columns} FROM {name} ORDER BY ALL").fetchall()
            for name, columns in TABLES.items()
        }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A runs directory that nothing was killed in: a run's row and a scored one, and the images of that."""
    place = tmp_path_factory.mktemp("whole")
    images = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(place / "images.npz", images)
    for words in (RUN, ("score", place / "images.npz")):
        done = bench(*words, "--runs-dir", place / "runs")
        assert done.returncode == 0, done.stderr
    return place


@pytest.mark.parametrize("round", range(ROUNDS))
@pytest.mark.parametrize(
    ("command", "module", "name", "calls"),
    [
        ("run", "results.database", "insert_many", 12),
        pytest.param("run", "os", "fsync", 3, marks=THOROUGH),
        pytest.param("score", "results.database", "insert_many", 10, marks=THOROUGH),
        pytest.param("score", "os", "fsync", 2, marks=THOROUGH),
        ("merge", "results.database", "insert_many", 12),
        pytest.param("merge", "os", "fsync", 2, marks=THOROUGH),
        ("reindex", "results.database", "insert_many", 12),
        ("reindex", "results.index", "remove", 3),
    ],
)
def test_a_killed_command_completes_when_it_is_typed_again(whole, tmp_path, command, module, name, calls, round):
    runs = tmp_path / "runs"
    words = {
        "run": RUN,
        "score": ("score", whole / "images.npz"),
        "merge": ("merge", whole / "runs"),
        "reindex": ("reindex",),
    }[command]
    if command == "reindex":
        assert bench("merge", whole / "runs", "--runs-dir", runs).returncode == 0
    at = random.Random(f"{command} {module} {round}").randrange(calls)
    killed = bench(*words, "--runs-dir", runs, kill=(module, name, at))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if command != "reindex" and list((runs / "cells").glob("*/result.json")):
        rebuilt = bench("reindex", "--runs-dir", runs)
        assert rebuilt.returncode == 0, rebuilt.stderr
    again = bench(*words, "--runs-dir", runs)
    assert again.returncode == 0, again.stderr
    of_both, found = tables(whole / "runs"), tables(runs)
    ids = {row[0] for row in found["cells"]}
    assert len(ids) == (1 if command in ("run", "score") else 2)
    assert found == {table: [row for row in rows if row[0] in ids] for table, rows in of_both.items()}
    litter = [path.name for path in runs.rglob("*") if path.name.startswith(("scoring-", "merging-"))]
    assert litter == [] and not list(runs.rglob("*.tmp"))


@pytest.mark.parametrize("round", range(ROUNDS))
def test_a_killed_export_leaves_the_file_that_was_there(whole, tmp_path, round):
    target = tmp_path / "metrics.csv"
    target.write_text("older")
    words = ("export", "metrics", "--runs-dir", whole / "runs", "--output", target)
    assert bench(*words, kill=("os", "fsync", 0)).returncode == -signal.SIGKILL
    assert target.read_text() == "older"
    assert bench(*words).returncode == 0 and target.read_text().startswith("cell_id,metric,value")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    streamed = bench(*words[:-1], "-")
    assert streamed.stdout == target.read_text()
