"""Recorded upstream calls: every one must hold at its own tolerance, through the code that real judges use."""

from pathlib import Path

import pytest

from bench.contracts.recording import load_case
from bench.recordings.judges import replay_judges
from bench.recordings.replay import replay_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = ("metrics-clip-a", "metrics-open-clip-a", "metrics-pick-a", "metrics-resize-a")


@pytest.mark.parametrize("name", CASES)
def test_recorded_calls_hold(name):
    case = load_case(GOLDEN / name)
    results = replay_case(case, lambda call: replay_judges(case, call))
    assert [result.call for result in results if not result.ok] == []
    for call, result in zip(case.spec["calls"], results, strict=True):
        recorded = {key for key in ("output", "expected") if key in call}
        assert {entry.split(".")[0] for entry in result.compared} == recorded


def test_hugging_face_padding_is_replayed():
    case = load_case(GOLDEN / "metrics-open-clip-a")
    call = next(call for call in case.spec["calls"] if call["kind"] == "clip-tokens")
    padded = replay_judges(case, {**call, "options": {"context_length": 77, "padding_id": 49407}})["output"]
    tokens = case.tensors["tokens"]
    assert (padded[tokens == 0] == 49407).all()
    assert (padded[tokens != 0] == tokens[tokens != 0]).all()


def test_unknown_recorded_method_is_refused():
    case = load_case(GOLDEN / "metrics-resize-a")
    call = {**case.spec["calls"][0], "options": {"size": 8, "method": "nearest"}}
    with pytest.raises(BenchError, match="unknown recorded resize method"):
        replay_judges(case, call)
