"""Recorded upstream numbers hold at their own tolerance."""

from pathlib import Path

import pytest

from bench.contracts.recording import load_case
from bench.recordings.metrics import replay
from bench.recordings.replay import replay_case

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = [f"metrics-{kind}-a" for kind in ("fid", "is", "kid", "prc", "mmhm", "cmmd")]


@pytest.mark.parametrize("name", CASES)
def test_recorded_case_holds(name):
    case = load_case(GOLDEN / name)
    results = replay_case(case, replay(case))
    assert results
    assert [result for result in results if not result.ok] == []
    assert all(any(entry.startswith("expected.") for entry in result.compared) for result in results)
