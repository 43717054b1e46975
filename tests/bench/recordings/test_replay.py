"""The parity tool itself: what it compares, and what it says of what it cannot replay."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.cli import main
from bench.contracts.recording import load_case
from bench.recordings.replay import replay_case, run_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[2] / "golden"
RECORDED = sorted(path for path in GOLDEN.iterdir() if (path / "case.json").exists())


@pytest.mark.parametrize("directory", RECORDED, ids=lambda path: path.name)
def test_every_recorded_case_holds_through_its_entry_point(directory):
    bad = [result for result in run_case(directory) if not result.ok]
    assert bad == []


@pytest.fixture
def case(tmp_path):
    """A case of two calls whose recorded outputs are known."""
    spec = {
        "name": "made-up", "adapter": "nobody", "calls": [
            {"id": "a", "kind": "network", "output": "y", "atol": 0.1},
            {"id": "b", "kind": "mmhm", "expected": {"mean": 2.0, "per_class": {"0": 1.0, "1": None}}, "rtol": 0.01},
        ],
    }  # fmt: skip
    (tmp_path / "case.json").write_text(json.dumps(spec))
    save_file({"y": torch.tensor([1.0, 2.0])}, tmp_path / "tensors.safetensors")
    return tmp_path


def replay_of(outputs):
    return lambda call: outputs[call["id"]]


GOOD = {
    "a": {"output": torch.tensor([1.05, 2.0])},
    "b": {"expected": {"mean": 2.01, "per_class": {"0": 1.0, "1": None}}},
}


def test_outputs_within_tolerance_pass(case):
    results = replay_case(load_case(case), replay_of(GOOD))
    assert [result.ok for result in results] == [True, True]
    assert results[0].max_abs == pytest.approx(0.05, rel=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"a": {"output": torch.tensor([1.2, 2.0])}},
        {"a": {"output": torch.tensor([1.0])}},
        {"a": {"output": torch.tensor([float("nan"), 2.0])}},
        {"a": {}},
        {"b": {"expected": {"mean": 2.1}}},
        {"b": {"expected": {"per_class": {"1": 0.5}}}},
    ],
)
def test_anything_else_fails(case, change):
    results = replay_case(load_case(case), replay_of(GOOD | change))
    assert sorted(result.ok for result in results) == [False, True]


def test_a_case_that_nobody_can_replay_fails_by_name(case, capsys):
    results = run_case(case)
    assert all("unknown parity adapter 'nobody'" in result.error for result in results)
    with pytest.raises(SystemExit) as stop:
        main(["parity", str(case)])
    assert stop.value.code == 1
    assert "0 of 2 calls within tolerance" in capsys.readouterr().err


def test_one_wrong_weight_is_noticed(tmp_path):
    shutil.copytree(GOLDEN / "sit-a", tmp_path / "sit")
    weights = dict(load_case(tmp_path / "sit").weights)
    weights["blocks.0.mlp.fc1.bias"] = weights["blocks.0.mlp.fc1.bias"] + 0.01
    save_file(weights, tmp_path / "sit" / "weights.safetensors")
    assert not run_case(tmp_path / "sit")[0].ok


def test_a_directory_without_a_case_is_an_error(tmp_path):
    with pytest.raises(BenchError, match=r"no case\.json here"):
        load_case(tmp_path)
