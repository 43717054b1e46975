import base64
import json

import numpy as np
import pytest

from results.baseline import FORMAT, Baseline, Kept, Measured, changed_digests, compare, read_baseline, write_baseline
from results.errors import BenchError

WHOLE = {
    "format": FORMAT,
    "protocol": "digits",
    "models": ["digits-dmd"],
    "steps": [1],
    "num_samples": 20,
    "cells": {"digits-dmd@1@1": {"fid": {"value": 1.0, "low": 0.5, "high": 1.5}}},
}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("cells", {}, "nothing to compare"),
        ("cells", {"a": {}}, "nothing to compare"),
        ("cells", [], "'cells' is not a table"),
        ("cells", {"a": {"fid": {"value": 1.0}}}, "'fid' of 'a' needs numbers"),
        ("steps", [-1], "'steps' is not a list"),
        ("steps", [], "'steps' is not a list"),
        ("models", [], "'models' is not a list"),
        ("models", "digits-dmd", "'models' is not a list"),
        ("num_samples", "20", "'num_samples' is not a number"),
        ("protocol", 3, "'protocol' is not a name"),
        ("cells", {"a": {"fid": {"value": 1.0, "low": 0, "high": 2, "blocks": "no"}}}, "not float32 in base64"),
        ("cells", {"a": {"fid": {"value": 1.0, "low": 0, "high": 2, "blocks": 7}}}, "not float32 in base64"),
        ("cells", {"a": {"fid": {"value": 1.0, "low": 0, "high": 2, "blocks": "AADAfwAAwH8="}}}, "not two finite"),
        ("costs", {"a": {"nfe": "1"}}, "'costs' is not a table of numbers"),
        ("costs", [1], "'costs' is not a table of numbers"),
        ("digests", {"protocol": 1}, "'digests' is not a table"),
        ("seed", -1, "'seed' is not a number"),
        ("cfg", ["1"], "'cfg' is not a list"),
        ("options", [], None),
        ("options", "x", "'options' is not a table"),
    ],
)
def test_a_baseline_with_nothing_to_check_is_refused_before_work(tmp_path, key, value, reason):
    (tmp_path / "b.json").write_text(json.dumps({**WHOLE, key: value}))
    if reason is None:
        assert read_baseline(tmp_path / "b.json").options == {}
        return
    with pytest.raises(BenchError, match=reason):
        read_baseline(tmp_path / "b.json")


def kept(value, noise=0.1, blocks=20, seed=0):
    left = value + noise * np.random.default_rng(seed).normal(size=blocks) / blocks
    return Kept(value, value - noise, value + noise, left)


def one(entry, costs=None):
    return Baseline("p", ("m",), (1,), 20, {"c": {"fid": entry}}, {"c": costs} if costs else {})


def test_a_written_baseline_is_read_as_it_was(tmp_path):
    asked = Baseline(
        "digits", ("a", "b"), (1, 4), 500, {"c": {"fid": kept(2.5), "kid_subsets": Kept(0.1, None, None, None)}},
        {"c": {"nfe": 4.0, "guide_nfe": None}}, (1.0, 2.0), 7, {"order": 2}, {"judge inception": "ab", "harness": "1"},
    )  # fmt: skip
    write_baseline(tmp_path / "b.json", asked)
    found = read_baseline(tmp_path / "b.json")
    assert found._replace(cells={}) == asked._replace(cells={})
    assert found.cells["c"]["kid_subsets"] == Kept(0.1, None, None, None)
    assert found.cells["c"]["fid"].blocks == pytest.approx(kept(2.5).blocks, abs=1e-9)


def test_a_baseline_of_the_first_format_is_compared_unpaired(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps({**WHOLE, "format": 1}))
    old = read_baseline(tmp_path / "b.json")
    (cell,) = old.cells
    for value, verdict in ((1.4, "same"), (1.6, "worse"), (0.4, "better")):
        (check,) = compare(old, Measured({cell: {"fid": kept(value)}}, {}))
        assert (check.rule, check.verdict, check.passed) == ("unpaired", verdict, verdict == "same")
    assert changed_digests(old, {"protocol": "a"}) == []


def test_settings_of_older_formats_are_read_under_the_names_that_commands_take(tmp_path):
    name, costs = "digits-dmd 1 steps cfg 1.25", {"nfe": 1.0}
    content = {**WHOLE, "format": 2, "cells": {name: WHOLE["cells"]["digits-dmd@1@1"]}, "costs": {name: costs}}
    (tmp_path / "b.json").write_text(json.dumps(content))
    old = read_baseline(tmp_path / "b.json")
    assert list(old.cells) == ["digits-dmd@1@1.25"] and old.costs == {"digits-dmd@1@1.25": costs}


def test_pairing_sees_what_the_interval_hides_and_a_trifle_is_none():
    was = kept(2.0)
    moved = Kept(2.02, 1.9, 2.1, was.blocks + 0.02)
    (check,) = compare(one(was), Measured({"c": {"fid": moved}}, {}))
    assert (check.rule, check.verdict, check.passed) == ("paired", "worse", False)
    assert "fid moved by +0.02" in str(check)
    trifle = Kept(2.0001, 1.9, 2.1, was.blocks + 0.0001)
    (check,) = compare(one(was), Measured({"c": {"fid": trifle}}, {}))
    assert check.passed and check.low > 0
    other = kept(2.02, blocks=10)
    (check,) = compare(one(was), Measured({"c": {"fid": other}}, {}))
    assert (check.rule, check.verdict) == ("unpaired", "same")


def test_a_tolerance_takes_the_place_of_the_statistics():
    was, moved = kept(2.0), Kept(2.02, 1.9, 2.1, kept(2.0).blocks + 0.02)
    for size, passed in ((0.03, True), (0.01, False)):
        (check,) = compare(one(was), Measured({"c": {"fid": moved}}, {}), tolerances={"fid": size})
        assert (check.rule, check.passed) == ("tolerance", passed)
    for name, size, reason in (
        ("fidd", 0.1, "did you mean fid"),
        ("fid", -1.0, "number of at least 0"),
        ("fid", np.inf, "0"),
    ):
        with pytest.raises(BenchError, match=reason):
            compare(one(was), Measured({}, {}), tolerances={name: size})


def test_costs_are_equal_or_changed():
    was = one(kept(2.0), {"nfe": 4.0, "guide_nfe": None, "flops": 8.0, "parameters": 5})
    same = Measured({"c": {"fid": kept(2.0)}}, {"c": dict(was.costs["c"])})
    assert all(check.passed for check in compare(was, same))
    now = Measured(same.cells, {"c": {"nfe": 8.0, "guide_nfe": 1.0, "flops": 4.0, "parameters": 6}})
    verdicts = {check.name: check.verdict for check in compare(was, now, allow_better=True) if not check.passed}
    assert verdicts == {"nfe": "worse", "guide_nfe": "changed", "flops": "better", "parameters": "changed"}
    lenient = compare(was, now, tolerances={"nfe": 4.0})
    assert [check.passed for check in lenient if check.name == "nfe"] == [True]


def test_what_is_missing_fails_and_what_has_no_spread_is_said_not_to_be_compared():
    (check,) = compare(one(kept(2.0)), Measured({}, {}))
    assert (check.verdict, check.passed) == ("missing", False)
    (check,) = compare(one(Kept(2.0, None, None, None)), Measured({"c": {"fid": kept(9.0)}}, {}))
    assert (check.verdict, check.passed) == ("not compared", True) and "--tolerance" in str(check)


def test_changed_digests_are_named_unless_accepted():
    baseline = one(kept(1.0))._replace(digests={"protocol": "a", "judge inception": "b", "weights of m": "c"})
    found = {"protocol": "a", "judge inception": "x", "judge clip": "y", "weights of m": "z"}
    words = changed_digests(baseline, found, ["weights"])
    assert words == ["judge inception (b -> x)", "judge clip (none -> y)"]
    assert changed_digests(baseline, found, ["weights", "judge"]) == []


def test_blocks_take_few_bytes(tmp_path):
    write_baseline(tmp_path / "b.json", one(kept(2.0)))
    entry = json.loads((tmp_path / "b.json").read_text())["cells"]["c"]["fid"]
    assert len(base64.b64decode(entry["blocks"])) == 80
