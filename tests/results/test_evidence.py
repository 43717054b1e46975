"""Evidence is small, comes back as it was written, and is refused where it is none."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from results.catalog import CATALOG
from results.errors import StoreError
from results.evidence import (
    NAME,
    PARTS,
    RANK,
    Evidence,
    Grid,
    parse_evidence,
    projection,
    read_evidence,
    write_evidence,
)


def made(n=200, width=40):
    random = np.random.default_rng(0)
    features = random.normal(size=(n, width))
    projected = features @ projection("inception.features", width)
    grid = Grid.of(projected)
    arrays = {
        "pick.score": random.normal(20, 1, n).astype(np.float16),
        "inception.logits/named": random.integers(0, 10, n).astype(np.int16),
        "inception.logits/certainty": random.normal(size=n).astype(np.float16),
        "inception.features/sketch": grid.levels(projected),
        "inception.features/grid": np.stack(grid).astype(np.float32),
        "inception.features/mean": features.mean(axis=0).astype(np.float32),
        "inception.features/factor": np.zeros((width, min(width, RANK)), np.float32),
        "inception.features/trace": np.ones(1),
    }
    arrays["pick.score/score"] = arrays.pop("pick.score")
    return Evidence(arrays, n)


def payload(arrays, facts=None, n=200):
    return save(arrays, metadata={"facts": json.dumps({"version": 1, "samples": n} if facts is None else facts)})


def test_it_comes_back_as_it_was_written(tmp_path):
    evidence = made()
    assert read_evidence(tmp_path) is None
    write_evidence(tmp_path, evidence)
    again = read_evidence(tmp_path)
    assert again.samples == 200 and again.arrays.keys() == evidence.arrays.keys()
    assert all((again.arrays[name] == values).all() for name, values in evidence.arrays.items())
    assert set(again.parts("inception.features")) == {"sketch", "grid", "mean", "factor", "trace"}


def test_fifty_thousand_samples_of_inception_take_less_than_three_megabytes(tmp_path):
    n, width = 50_000, 2048
    random = np.random.default_rng(0)
    features = {
        "sketch": random.integers(-127, 128, (n, 16)).astype(np.int8),
        "grid": np.ones((2, 16), np.float32),
        "mean": np.zeros(width, np.float32),
        "factor": np.zeros((width, RANK), np.float32),
        "trace": np.ones(1),
    }
    metrics = ("kid", "precision", "recall", "density", "coverage")
    counted = {f"{name}/{part}": np.ones(n, PARTS[part][0]) for name in metrics for part in CATALOG[name].counted_from}
    arrays = {f"inception.features/{part}": values for part, values in features.items()} | counted
    arrays |= {f"{name}.score/score": np.ones(n, np.float16) for name in ("clip", "pick")}
    arrays |= {"inception.logits/named": np.ones(n, np.int16), "inception.logits/certainty": np.ones(n, np.float16)}
    write_evidence(tmp_path, Evidence(arrays, n))
    assert 2.5e6 < (tmp_path / NAME).stat().st_size < 3e6
    assert len(read_evidence(tmp_path).arrays) == len(arrays)


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_are_read(version):
    assert parse_evidence(payload(made().arrays, {"version": version, "samples": 200})).samples == 200


def test_a_sketch_names_the_level_that_a_projection_is_nearest_to():
    projected = np.random.default_rng(1).normal(3, 2, (500, 16))
    grid = Grid.of(projected)
    levels = grid.levels(projected)
    assert np.abs(grid.positions(projected) - levels).max() <= 0.5
    assert np.abs(grid.centre + levels * grid.step - projected).max() <= 0.51 * grid.step.max()


def test_a_constant_feature_has_a_grid_too():
    grid = Grid.of(np.full((5, 16), 7.0))
    assert (grid.step > 0).all() and (grid.levels(np.full((5, 16), 7.0)) == 0).all()


def test_the_projection_never_changes():
    matrix = projection("inception.features", 48)
    assert matrix.shape == (48, 16)
    assert matrix[0, :3] == pytest.approx(FIRST, rel=1e-12)


FIRST = (0.12516315851016316, 0.27660310722982784, -0.024620619733787884)


def other(**changes):
    return {**made().arrays, **changes}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "not the evidence of a cell"),
        (b"\x80\x04K\x01.", "not the evidence of a cell"),
        (b"\xff" * 64, "not the evidence of a cell"),
        (save({"pick.score/score": np.zeros(2, np.float16)}), "not the evidence of a cell"),
        (payload(made().arrays, {"version": 3, "samples": 200}), "of version 3"),
        (payload(made().arrays, {"version": 1, "samples": True}), "no count of samples"),
        (payload(made().arrays, [1]), "not the evidence of a cell"),
        (payload(made().arrays, n=199), "of 199 samples"),
        (payload(other(**{"pick.score/code": np.zeros(3)})), "none that evidence has"),
        (payload(other(**{"pick.score/score": np.zeros(200)})), "is float64"),
        (payload(other(**{"pick.score/score": np.full(200, np.inf, np.float16)})), "is not finite"),
        (payload(other(**{"inception.features/grid": np.zeros((2, 16), np.float32)})), "is not whole"),
        (payload(other(**{"inception.features/mean": np.zeros(3, np.float32)})), "is not whole"),
        (payload(other(**{"recall/holder": np.full(9, 200, np.int32)})), "names samples that there are not"),
        (payload(other(**{"kid/own": np.zeros(199, np.float32)})), "of 200 samples"),
        (payload({"a.b/sketch": np.zeros((200, 16), np.int8)}), "is not whole"),
    ],
)
def test_what_is_no_evidence_is_refused_in_one_line(bad, reason, tmp_path):
    with pytest.raises(StoreError, match=reason) as refused:
        parse_evidence(bad)
    assert "\n" not in str(refused.value)
    (tmp_path / NAME).write_bytes(bad)
    with pytest.raises(StoreError, match=NAME):
        read_evidence(tmp_path)
