"""Ctrl-C at any moment: one line, exit code 130, no process left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc for the moment")


def read(path):
    """Return what the kernel tells of a process or a thread, which may end before it is asked."""
    try:
        return path.read_text()
    except OSError:
        return ""


def importing_torch(process, runs):
    return "libtorch" in read(Path(f"/proc/{process.pid}/maps"))


def starting_workers(process, runs):
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return sum(len(read(task).split()) for task in tasks) >= 2  # the resource tracker and the first worker


def sampling(process, runs):
    return any(runs.glob("cells/*/shard-*"))


def alive(session):
    """Return the processes of a session that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        state, _, _, own = (read(stat).rpartition(")")[2].split() + [""] * 4)[:4]
        if own == str(session) and state != "Z":
            found.append(stat.parent.name)
    return found


def test_ctrl_c_while_a_worker_starts_waits_until_it_is_known(monkeypatch):
    """The signal may be taken by any thread: it must not come between a process and what it is to read."""
    from bench.run.executors import Processes

    pool, before = Processes(1), signal.getsignal(signal.SIGINT)
    start = pool.pool._spawn_process

    def interrupted():
        signal.raise_signal(signal.SIGINT)  # as when another thread takes it
        signal.getsignal(signal.SIGINT)(signal.SIGINT, None)
        start()

    monkeypatch.setattr(pool.pool, "_spawn_process", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.submit(os.getpid)
        assert len(pool.pool._processes) == 1
        assert signal.getsignal(signal.SIGINT) == before
        assert pool.pool.submit(os.getpid).result() in pool.pool._processes
    finally:
        pool.shutdown(now=True)


@pytest.mark.parametrize("moment", [importing_torch, starting_workers, sampling])
def test_ctrl_c_is_one_line_and_leaves_nothing_running(tmp_path, moment):
    command = [sys.executable, "-m", "bench", "run", "--model", "digits-flow-small", "--steps", "32", "--cfg", "1"]
    command += ["--num-samples", "4000", "--workers", "2", "--runs-dir", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not moment(process, tmp_path) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("Interrupted. Nothing is lost: the same command continues where it stopped.\n")
    assert "Traceback" not in said and "Warning" not in said
    deadline = time.monotonic() + 30
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(process.pid)


def test_ctrl_c_in_a_query_is_an_interruption(tmp_path, capsys, monkeypatch, request):
    """DuckDB turns the KeyboardInterrupt of a signal that arrives in a query into a RuntimeError."""
    import duckdb

    import results.database
    import results.export
    from bench.cli import main

    def slow(*arguments, **options):
        threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
        query = "SELECT count(*) FROM range(2000) a, range(1000000) b WHERE a.range * b.range % 7 = 3"
        duckdb.connect(config=results.database.ALONE).execute(query).fetchall()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell starts with it ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    monkeypatch.setattr(results.export, "export", slow)
    with pytest.raises(SystemExit) as stop:
        main(["export", "cells", "--output", str(tmp_path / "x"), "--runs-dir", str(tmp_path)])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "Interrupted. Nothing is lost: the same command continues where it stopped.\n"
