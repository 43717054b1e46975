"""Where too little is known of a spread the value stays and the statement is withheld: no interval of width zero."""

import numpy as np
import pytest

from bench.metrics.measure import ReferenceFeatures, measure
from results.comparing import paired
from results.rows import Row, Value

METRICS = ["fid", "kid", "precision", "recall", "density", "coverage", "clip", "accuracy"]
RANDOM = np.random.default_rng(0)
REAL = RANDOM.normal(size=(200, 4))


def found(features, metrics=METRICS, real=REAL):
    n = len(features)
    outputs = {
        "inception.features": features,
        "clip.score": np.full(n, 30.0),
        "classifier.logits": np.eye(2)[np.arange(n) % 2],
    }
    references = {"inception.features": ReferenceFeatures.of(real)}
    return {value.name: value for value in measure(outputs, references, metrics, labels=np.arange(n) % 2).values}


@pytest.mark.parametrize("n", [6, 8])
def test_two_to_four_blocks_leave_the_value_and_say_why_there_is_no_interval(n):
    values = found(RANDOM.normal(size=(n, 4)) + 0.5)
    for name in ("fid", "kid", "precision", "recall", "density", "coverage"):
        assert values[name].low is None and values[name].high is None
        assert f"no interval: {n // 2} blocks, of 5 something can be said" in values[name].method


@pytest.mark.parametrize("n", [2, 3, 12])
def test_a_value_without_an_interval_says_why(n):
    features = RANDOM.normal(size=(n, 4))
    outputs = {"inception.features": features, "inception.logits": features}
    metrics = ["fid", "kid", "precision", "density", "is"]
    splits = {"is_splits": 2 if n < 12 else 10}
    values = measure(outputs, ReferenceFeatures.of(REAL), metrics, options=splits).values
    assert {value.name for value in values if value.low is None} >= ({"fid", "kid", "is"} if n < 12 else {"is"})
    for value in values:
        assert value.low is not None or f"no interval: {n} " in value.method


@pytest.mark.parametrize("features", [RANDOM.normal(size=(100, 4)), np.zeros((100, 4)), np.full((100, 4), 50.0)])
def test_no_interval_has_width_zero(features):
    for value in found(features).values():
        assert value.low is None or value.high - value.low > 1e-6, value
        if value.low is None:
            assert "no interval" in value.method
    assert "no block moves the value" in found(features)["clip"].method


def test_shares_that_no_block_moves_have_wilsons_interval():
    far = found(np.full((100, 4), 50.0) + RANDOM.normal(size=(100, 4)))
    for name in ("precision", "recall", "coverage"):
        assert far[name].value == 0.0 and far[name].low == 0.0 and 0.0 < far[name].high < 0.05


def test_two_perfect_shares_are_tied_with_an_interval():
    cell = {"ranking": "k"}
    perfect = Row(cell, {"accuracy": Value(1.0, 0.98, 1.0, n=200, jackknife=(1.0,) * 20)})
    none = Row(cell, {"accuracy": Value(0.0, 0.0, 0.02, n=200, jackknife=(0.0,) * 20)})
    difference = paired(perfect, perfect, "accuracy")
    assert (difference.value, difference.sign) == (0.0, 0)
    assert (difference.low, difference.high) == pytest.approx((-0.02, 0.02))
    difference = paired(perfect, none, "accuracy")
    assert difference.sign == 1 and 0.96 < difference.low < 1.0


def test_rows_of_four_blocks_are_not_compared():
    row = Row({"ranking": "k"}, {"fid": Value(1.0, n=8, jackknife=(1.0, 1.1, 0.9, 1.0))})
    assert paired(row, row, "fid") is None
