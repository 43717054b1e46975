"""Runs can stop at any moment and continue, and the numbers depend on nothing but the setting."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.numpy import save

import bench.run.runner
from bench.contracts.adapter import Adapter
from bench.run.executors import InProcess, Processes, open_executor
from bench.run.shard import shard_ranges
from results.cells import CellDirectory
from results.errors import BenchError
from results.index import reindex
from results.leaderboard import rows
from results.store import connect


def metrics_of(summary):
    with connect(summary.database) as connection:
        return {
            row.cell["cell_id"]: {name: (v.value, v.low, v.high) for name, v in row.metrics.items()}
            for row in rows(connection)
        }


def test_a_run_leaves_a_complete_row(measure):
    summary = measure()
    with connect(summary.database) as connection:
        (row,) = rows(connection)
        names = dict(connection.execute("SELECT metric, n FROM metrics").fetchall())
        assert connection.execute("SELECT count(*) FROM thumbnails").fetchone() == (20,)
        assert connection.execute("SELECT count(DISTINCT label) FROM per_class WHERE metric = 'clip'").fetchone() == (
            10,
        )
    assert set(names) == {
        "fid", "is", "clip", "pick", "kid", "precision", "recall", "accuracy", "fd_cross_check",
    }  # fmt: skip
    assert set(names.values()) == {200}
    assert row.cell["nfe"] == 2.0
    assert row.cell["images_per_second"] > 0 and row.cell["latency_seconds"] > 0
    assert row.rank["mmhm"] is not None
    assert "--steps 2 --cfg 1" in row.cell["command"]


def test_guidance_costs_a_second_evaluation(measure):
    with connect(measure(cfg=(1.0, 1.5)).database) as connection:
        assert {row.cell["cfg"]: row.cell["nfe"] for row in rows(connection)} == {1.0: 2.0, 1.5: 4.0}


def test_a_finished_cell_is_reused_unless_fresh(measure):
    measure()
    again = measure()
    assert (len(again.measured), len(again.reused)) == (0, 1)
    assert len(measure(fresh=True).measured) == 1


def test_an_interrupted_run_ends_with_the_same_bits(measure, tmp_path, monkeypatch, quiet):
    monkeypatch.setattr(bench.run.shard, "SHARD_SAMPLES", 50)
    undisturbed = metrics_of(measure(tmp_path / "whole"))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            measure(tmp_path / "stopped", progress=quiet(stop_after=1))
    assert metrics_of(measure(tmp_path / "stopped")) == undisturbed


def test_a_torn_shard_is_sampled_again(measure, tmp_path, monkeypatch, quiet):
    monkeypatch.setattr(bench.run.shard, "SHARD_SAMPLES", 50)
    undisturbed = metrics_of(measure(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "torn", progress=quiet(stop_after=2))
    (shard, *_) = sorted((tmp_path / "torn").glob("cells/*/shard-*"))
    shard.write_bytes(shard.read_bytes()[:100])
    assert metrics_of(measure(tmp_path / "torn")) == undisturbed


def test_a_shard_whose_facts_or_names_are_foreign_harms_nothing(measure, tmp_path, monkeypatch, quiet):
    monkeypatch.setattr(bench.run.shard, "SHARD_SAMPLES", 50)
    undisturbed = metrics_of(measure(tmp_path / "whole"))
    for facts in ([1], 3, {"batch_size": 50}, {"batch_size": 50, "network_rows": "many"}):
        with pytest.raises(KeyboardInterrupt):
            measure(tmp_path / str(facts), progress=quiet(stop_after=2))
        (path, *_) = sorted((tmp_path / str(facts)).glob("cells/*/shard-*"))
        path.write_bytes(save({"../../../out": np.ones(50)}, metadata={"facts": json.dumps(facts)}))
        assert metrics_of(measure(tmp_path / str(facts))) == undisturbed
    spoils = {
        "another name": lambda arrays: {**arrays, "../../../out": np.ones(50)},
        "fewer arrays": lambda arrays: {"inception.features": arrays["inception.features"]},
        "fewer rows": lambda arrays: {name: array[:3] for name, array in arrays.items()},
        "another dtype": lambda arrays: {name: array.astype(np.float16) for name, array in arrays.items()},
        "another shape": lambda arrays: {name: array[..., None] for name, array in arrays.items()},
    }
    for case, spoil in spoils.items():
        with pytest.raises(KeyboardInterrupt):
            measure(tmp_path / case, progress=quiet(stop_after=2))
        (path, *_) = sorted((tmp_path / case).glob("cells/*/shard-*"))
        with safe_open(path, framework="numpy") as shard:
            arrays, facts = {name: shard.get_tensor(name) for name in shard.keys()}, shard.metadata()  # noqa: SIM118
        path.write_bytes(save({name: array.copy() for name, array in spoil(arrays).items()}, metadata=facts))
        assert metrics_of(measure(tmp_path / case)) == undisturbed, case
    assert not list(tmp_path.rglob("out*"))


def test_workers_and_shards_do_not_change_the_bits(measure, tmp_path, monkeypatch, digits_request, quiet):
    alone = metrics_of(measure(tmp_path / "one"))
    monkeypatch.setattr(bench.run.shard, "SHARD_SAMPLES", 100)
    many = bench.run.runner.run(digits_request(), tmp_path / "two", progress=quiet(), workers=2)
    assert metrics_of(many) == alone


ENVIRONMENTS = {
    "none": {},
    "one": {"OMP_NUM_THREADS": "1"},
    "each its own": {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "4"},
}


def test_the_environment_does_not_change_the_bits(tmp_path):
    """All metrics with their jackknife values, of both ways to a row: `bench run` and `bench score`."""
    found = {}
    for number, (name, variables) in enumerate(ENVIRONMENTS.items()):
        environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
        command = [sys.executable, "-c", MEASURE_AND_SCORE, str(tmp_path / str(number)), "2" if number == 1 else "1"]
        subprocess.run(command, env=environment | variables, check=True, capture_output=True)
        with connect(tmp_path / str(number) / "bench.duckdb") as connection:
            query = (
                "SELECT model, metric, value, low, high, jackknife FROM metrics JOIN cells USING (cell_id) ORDER BY ALL"
            )
            found[name] = connection.execute(query).fetchall()
    assert {row[0] for row in found["one"]} == {"digits-flow-small", "noise"}
    assert all(rows == found["one"] for rows in found.values())


MEASURE_AND_SCORE = """
import sys
from pathlib import Path
import numpy as np
from bench.cli import main

if __name__ == "__main__":
    runs = Path(sys.argv[1])
    runs.mkdir()
    shared = ["--runs-dir", str(runs)]
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    np.savez(runs / "noise.npz", arr_0=pixels, arr_1=np.arange(200) % 10)
    request = ["run", "--model", "digits-flow-small", "--steps", "2", "--cfg", "1", "--num-samples", "200"]
    for words in ([*request, "--workers", sys.argv[2]], ["score", str(runs / "noise.npz"), "--name", "noise"]):
        try:
            main([*words, *shared])
        except SystemExit as end:
            if end.code:
                raise
"""


def test_a_run_gives_the_callers_threads_back(measure):
    from threadpoolctl import threadpool_info

    before = torch.get_num_threads(), {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    measure()
    after = torch.get_num_threads(), {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    assert before[0] == after[0] and before[1].items() <= after[1].items()


def test_the_batch_size_changes_no_printed_digit(measure, tmp_path):
    from bench.cli.output import with_interval

    printed = []
    for size in (7, 200):
        with connect(measure(tmp_path / str(size), batch_size=size).database) as connection:
            (row,) = rows(connection)
        printed.append({name: with_interval(value) for name, value in row.metrics.items()})
    assert printed[0] == printed[1]


def test_shards_are_whole_batches_and_cover_every_sample():
    for count, batch in ((2000, 250), (2000, 7), (10, 64), (501, 500)):
        ranges = shard_ranges(count, batch)
        assert [i for a, b in ranges for i in range(a, b)] == list(range(count))
        assert all(start % batch == 0 for start, _ in ranges)


def test_the_database_is_rebuilt_from_the_cells(measure, tmp_path):
    summary = measure()
    before = metrics_of(summary)
    summary.database.write_bytes(b"damaged")
    assert reindex(tmp_path / "runs").indexed == 1
    assert metrics_of(summary) == before


def test_models_share_noise_and_labels(measure, tmp_path):
    measure(models=("digits-flow-small", "digits-flow-small"), cfg=(1.0, 1.0 + 1e-7))
    scores = [
        CellDirectory(tmp_path / "runs", p.name).arrays()["clip.score"] for p in (tmp_path / "runs/cells").iterdir()
    ]
    assert len(scores) == 2
    assert np.allclose(scores[0], scores[1], atol=0.05)


BROKEN = {
    "shape": (
        lambda images: images[:, :1],
        "the adapter returned (50, 1, 8, 8), expected a tensor of shape (50, 3, 8, 8)",
    ),
    "dtype": (lambda images: images.double(), "the adapter returned torch.float64, expected torch.float32"),
    "nan": (lambda images: images.log(), "contain NaN or infinite values"),
    "array": (lambda images: images.numpy(), "the adapter returned ndarray"),
}


@pytest.mark.parametrize("fault", sorted(BROKEN))
def test_a_broken_adapter_fails_its_cell_and_the_others_go_on(measure, monkeypatch, fault):
    spoil, message = BROKEN[fault]
    sound = Adapter.sample
    monkeypatch.setattr(
        Adapter,
        "sample",
        lambda self, labels, steps, cfg, **rest: (
            spoil(sound(self, labels, steps, cfg, **rest)) if steps == 2 else sound(self, labels, steps, cfg, **rest)
        ),
    )
    summary = measure(steps=(2, 1))
    ((_, reason),) = summary.failed
    assert message in reason
    assert [cell.steps for cell in summary.measured] == [1]
    with connect(summary.database) as connection:
        stored = {row.cell["steps"]: row.cell["status"] for row in rows(connection, status=None)}
    assert stored == {1: "done", 2: "failed"}
    monkeypatch.undo()
    assert not measure(steps=(2, 1)).failed


def test_a_step_count_that_the_model_cannot_take_is_a_row(measure):
    summary = measure(models=("digits-dmd",), steps=(1, 3), cfg=None)
    ((cell, reason),) = summary.unsupported
    assert cell.steps == 3 and "1 step" in reason
    with connect(summary.database) as connection:
        (row,) = rows(connection, status="unsupported")
    assert row.cell["reason"] == reason


def test_random_weights_are_measured_but_never_ranked(measure):
    summary = measure(random_weights=True)
    with connect(summary.database) as connection:
        (row,) = rows(connection)
    assert row.cell["random_weights"] and row.rank == {}


def test_a_full_disk_stops_the_run_in_one_line(measure, monkeypatch):
    def full(path, payload):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("results.files._fill", full)
    with pytest.raises(BenchError, match="no space left on the device; free some and run the same command"):
        measure()
    monkeypatch.undo()
    assert len(measure().measured) == 1


def test_a_refusal_while_shards_are_joined_says_why(tmp_path):
    import resource

    directory = CellDirectory(tmp_path, "cell")
    directory.write_shard(0, 1000, {"judge.scores": np.zeros((1000, 100))}, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(BenchError, match="File too large"):
            directory.assemble([(0, 1000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_second_run_in_the_directory_waits_for_the_first(tmp_path, digits_request, quiet):
    (tmp_path / "runs").mkdir()
    first, progress, summaries = FileLock(tmp_path / "runs" / "run.lock"), quiet(), []

    def second():
        summaries.append(bench.run.runner.run(digits_request(), tmp_path / "runs", progress=progress, workers=1))

    first.acquire()
    thread = threading.Thread(target=second)
    thread.start()
    deadline = time.monotonic() + 30
    while not hasattr(progress, "waited") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert progress.waited and not (tmp_path / "runs" / "cells").exists()
    first.release()
    thread.join()
    assert len(summaries[0].measured) == 1


def test_an_unknown_metric_is_met_before_the_first_sample(measure, tmp_path):
    with pytest.raises(BenchError, match="unknown metric 'fdi': did you mean fid"):
        measure(protocol_changes={"metrics": ("fdi",)})
    with pytest.raises(BenchError, match=r"protocol .*: key 'metrics.options': unknown metric option 'is_splitz'"):
        measure(protocol_changes={"metric_options": {"is_splitz": 2}})
    assert not (tmp_path / "runs" / "cells").exists()


def test_a_metric_that_the_protocol_asks_for_by_now_is_measured(measure):
    assert len(measure(protocol_changes={"metrics": ("fid", "is")}).measured) == 1
    more = measure(protocol_changes={"metrics": ("fid", "is", "kid")})
    assert len(more.measured) == 1
    with connect(more.database) as connection:
        (row,) = rows(connection)
    assert set(row.metrics) == {"fid", "is", "kid"}
    assert len(measure(protocol_changes={"metrics": ("fid",)}).reused) == 1


def test_a_judge_file_that_nobody_can_fetch_is_asked_for_beside_the_protocol(measure):
    judges = {"clip": {"kind": "open-clip", "config": "absent.json", "weights": "absent.safetensors"}}
    with pytest.raises(BenchError, match="put it there, or correct the path in the protocol"):
        measure(protocol_changes={"judges": judges})


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_an_unwritable_directory_is_met_first(measure, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(BenchError, match="cannot be written"):
        measure(locked / "runs")


def test_a_runs_directory_that_is_a_file_is_met_first(measure, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="cannot be written"):
        measure(tmp_path / "file")


def test_one_worker_runs_in_this_process_and_more_in_their_own():
    assert isinstance(open_executor("local", 1, "cpu").executor, InProcess)
    with open_executor("local", 2, "cpu") as opened:
        assert isinstance(opened.executor, Processes)
        assert opened.executor.submit(os.getpid).result() != os.getpid()
    with pytest.raises(BenchError, match="unknown executor 'clouds'"):
        open_executor("clouds", 1, "cpu")


def test_a_cell_measured_in_a_thread_has_the_same_numbers(digits_request, tmp_path, quiet, monkeypatch):
    """As beside an accelerator, which samples the next cell meanwhile."""
    request = digits_request(steps=(1, 2), num_samples=100)
    plain = metrics_of(bench.run.runner.run(request, tmp_path / "plain", progress=quiet(), workers=1))
    threads, finish = [], bench.run.worker.finish_rows

    def told(*about):
        threads.append(threading.current_thread().name)
        return finish(*about)

    monkeypatch.setattr(bench.run.worker, "finish_rows", told)
    monkeypatch.setattr(InProcess, "__init__", lambda executor, device: setattr(executor, "beside", True))
    beside = metrics_of(bench.run.runner.run(request, tmp_path / "beside", progress=quiet(), workers=1))
    assert [name.split("_")[0] for name in threads] == ["measuring", "measuring"]
    assert beside == plain and len(plain) == 2


def test_kill_minus_nine_loses_nothing(tmp_path):
    command = [sys.executable, "-m", "bench", "run", "--model", "digits-flow-small", "--steps", "32", "--cfg", "1,1.5"]
    command += ["--num-samples", "1000", "--batch-size", "50", "--workers", "1", "--runs-dir"]
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").glob("cells/*/shard-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").glob("cells/*/result.json"))
    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / name)], check=True, stderr=subprocess.DEVNULL)
    stored = []
    for name in ("killed", "whole"):
        with connect(tmp_path / name / "bench.duckdb") as connection:
            query = "SELECT cell_id, metric, value, low, high FROM metrics ORDER BY ALL"
            stored.append(connection.execute(query).fetchall())
    assert len(stored[0]) == 2 * 10
    assert stored[0] == stored[1]


def test_torch_keeps_its_random_state(measure):
    before = torch.get_rng_state()
    measure()
    assert torch.equal(before, torch.get_rng_state())


def test_the_next_model_is_read_ahead_during_the_last_shard(measure, tmp_path, monkeypatch, quiet):
    seen = []
    monkeypatch.setattr(bench.run.shard, "SHARD_SAMPLES", 100)
    monkeypatch.setattr("bench.run.dispatch.read_ahead", lambda cell: seen.append((cell.card.name, progress.shards)))
    progress = quiet()
    measure(models=("digits-flow-small", "digits-flow"), progress=progress)
    assert seen == [("digits-flow", 1)], "asked for once, after the first of two shards"


def test_files_are_read_ahead_by_the_system(monkeypatch, digits_request):
    from bench.run.plan import make_plan
    from bench.run.reading_ahead import read_ahead

    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *words: asked.append(words[1:]), raising=False)
    (cell,) = make_plan(digits_request(), "")
    read_ahead(cell)
    assert asked == [(0, 0, os.POSIX_FADV_WILLNEED)]
