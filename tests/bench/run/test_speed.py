"""`bench speed` and `bench sample`: what needs neither weights nor judges."""

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image

from bench.cli import main
from bench.models.timing import repeated
from bench.run.speed import SpeedRequest, measure_speed
from report import write_report
from results.index import reindex
from results.leaderboard import SPEED, rows
from results.moving import forget, merge
from results.standings import View, leaderboard
from results.store import connect
from results.timing import checked_timing, share_of_peak


@pytest.fixture
def cli(capsys):
    """Run a command and return its exit code, stdout and stderr."""

    def call(*words):
        with pytest.raises(SystemExit) as end:
            main(words)
        return end.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def timed_runs(tmp_path_factory):
    """Rows of two models and two batch sizes, one setting of which the second model does not take."""
    runs = tmp_path_factory.mktemp("speed")
    request = SpeedRequest(("digits-flow", "digits-dmd"), steps=(1, 2), batches=(1, 16), seconds=0.2)
    found = list(measure_speed(request, runs, ["speed"]))
    return runs, found


def test_a_slow_call_is_repeated_as_often_as_an_interval_needs_if_that_is_soon():
    def timed_with(seconds):
        return repeated(lambda: time.sleep(0.01), torch.device("cpu"), seconds)

    assert timed_with(0.03).low is not None
    assert timed_with(0.001).low is None


def test_speed_rows_state_what_a_buyer_of_hardware_asks(timed_runs):
    _, found = timed_runs
    done = [row for row in found if row["status"] == "done"]
    assert [(row["model"], row["steps"], row["batch_size"]) for row in done] == [
        ("digits-flow", 1, 1), ("digits-flow", 1, 16), ("digits-flow", 2, 1), ("digits-flow", 2, 16),
        ("digits-dmd", 1, 1), ("digits-dmd", 1, 16),
    ]  # fmt: skip
    for row in done:
        checked_timing(row["timing"])
        assert row["nfe"] == row["steps"] and row["parameters"] > 1e5 and row["peak_memory"] > 4 * row["parameters"]
        assert 0 < share_of_peak(row) < 1.2
    one, sixteen = done[0], done[1]
    assert sixteen["peak_memory"] > one["peak_memory"] and sixteen["flops"] == one["flops"]
    refused = [row for row in found if row["status"] != "done"]
    assert {row["reason"] for row in refused} == {"digits-dmd takes 1 step only"}


def test_speed_rows_are_stored_merged_removed_and_never_ranked(timed_runs, tmp_path):
    runs, _ = timed_runs
    merge(tmp_path, [runs])
    reindex(tmp_path)
    with connect(tmp_path / "bench.duckdb") as connection:
        stored = rows(connection, protocol=SPEED)
        assert len(stored) == 6 and rows(connection) == [] and not leaderboard(connection, View()).standings
    page = write_report(runs / "bench.duckdb", tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Speed on random weights" in page and "digits-dmd" in page
    forget(tmp_path, [row.cell["cell_id"] for row in stored[:2]])
    with connect(tmp_path / "bench.duckdb") as connection:
        assert len(rows(connection, protocol=SPEED)) == 4


def test_the_command_prints_rows_or_json_and_fails_where_nothing_was_timed(cli, tmp_path):
    place = ("--runs-dir", str(tmp_path), "--seconds", "0.05", "--batch-size", "2")
    code, out, _ = cli("speed", "digits-flow", *place)
    assert code == 0 and "of peak" in out and "digits-flow" in out and "batch 2," not in out
    code, out, _ = cli("speed", "digits-flow", "--json", *place)
    assert code == 0 and json.loads(out)[0]["batch_size"] == 2
    code, _, err = cli("speed", "digits-dmd", "--steps", "2", *place)
    assert code == 1 and "takes 1 step only" in err
    code, _, err = cli("leaderboard", *place[:2])
    assert code == 0 and "1 row of 'bench speed', never ranked" in err
    code, _, err = cli("speed", "digits-flow", "--batch-size", "0", "--runs-dir", str(tmp_path))
    assert code == 2 and "--batch-size" in err


def test_a_grid_shows_the_classes_asked_for(cli, tmp_path):
    place = tmp_path / "grid.png"
    code, _, err = cli(
        "sample", "digits-flow", "--steps", "8", "--labels", "0,1", "--images", "4", "--cfg", "1", "-o", str(place)
    )
    assert code == 0 and "4 images of digits-flow, 8 steps, cfg 1, NFE 8, seed 0, classes 0, 1" in err
    image = np.asarray(Image.open(place)).astype(float)
    assert image.shape == (64 + 2 + 64, 64 + 2 + 64, 3)
    zeros, ones = image[:64, :64, 0], image[:64, 66:, 0]
    assert zeros[24:40, 28:36].mean() < ones[24:40, 28:36].mean()  # a zero is empty in the middle, a one is not


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("digits-flow", "--labels", "11"), "labels must be in 0..9"),
        (("digits-dmd", "--steps", "2"), "takes 1 step only"),
        (("digits-flow", "-o", "grid.jpg"), "ends in .png"),
        (("digits-flow", "--option", "nothing=1"), "nothing"),
    ],
)
def test_what_a_model_does_not_take_is_one_line(cli, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("sample", *words)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1 and not list(tmp_path.iterdir())
