import json

import pytest

from results.baseline import FORMAT, read_baseline
from results.errors import BenchError

WHOLE = {
    "format": FORMAT,
    "protocol": "digits",
    "models": ["digits-dmd"],
    "steps": [1],
    "num_samples": 20,
    "cells": {"digits-dmd 1 steps cfg 1": {"fid": {"value": 1.0, "low": 0.5, "high": 1.5}}},
}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("cells", {}, "nothing to compare"),
        ("cells", {"a": {}}, "nothing to compare"),
        ("cells", [], "'cells' is no table"),
        ("cells", {"a": {"fid": {"value": 1.0}}}, "'fid' of 'a' lacks numbers"),
        ("steps", [-1], "'steps' is no list"),
        ("steps", [], "'steps' is no list"),
        ("models", [], "'models' is no list"),
        ("models", "digits-dmd", "'models' is no list"),
        ("num_samples", "20", "'num_samples' is no number"),
        ("protocol", 3, "'protocol' is no name"),
    ],
)
def test_a_baseline_with_nothing_to_check_is_refused_before_work(tmp_path, key, value, reason):
    (tmp_path / "b.json").write_text(json.dumps({**WHOLE, key: value}))
    with pytest.raises(BenchError, match=reason):
        read_baseline(tmp_path / "b.json")
