"""Options of metrics are typed: unknown and ill-typed ones are refused before anything is measured."""

import numpy as np
import pytest

from bench.metrics.measure import measure
from bench.metrics.registry import METRICS, check_metrics
from results.errors import BenchError


def all_options():
    return sorted(
        {(option.name, metric.fact.name) for _, metric in METRICS.load_all() for option in metric.fact.options}, key=str
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"is_splits": "ten"}, "must be an integer of at least 1, found 'ten'"),
        ({"is_splits": 0}, "must be an integer of at least 1, found 0"),
        ({"is_splits": True}, "must be an integer of at least 1, found True"),
        ({"is_splits": 2.5}, "must be an integer"),
        ({"is_splits": [10]}, r"must be an integer of at least 1, found \[10\]"),
        ({"is_splits": None}, "must be an integer of at least 1, found None"),
        ({"is_shuffle": 1}, "must be true or false, found 1"),
        ({"kid_gamma": -1}, "must be a number above 0, found -1"),
        ({"kid_coef0": float("nan")}, "must be a number of at least 0, found nan"),
        ({"cmmd_sigma": float("inf")}, "must be a number above 0, found inf"),
        ({"comparison": "=="}, "must be '<=' or '<', found '=='"),
        ({"per_class": "no"}, "must be true or false, found 'no'"),
        ({"is_spilts": 10}, "p.toml: key 'metrics.options': unknown metric option 'is_spilts': did you mean is_splits"),
        ({"neighborhood": {}}, "must be an integer of at least 1, found {}"),
    ],
)
def test_an_option_of_another_kind_is_refused_with_file_and_key(options, reason):
    with pytest.raises(BenchError, match=reason) as stop:
        check_metrics(["is"], options, "protocol p.toml")
    assert "protocol p.toml" in str(stop.value) and len(str(stop.value).splitlines()) == 1
    assert next(iter(options)) in str(stop.value)


@pytest.mark.parametrize(("option", "metric"), all_options())
def test_every_option_refuses_what_it_is_not(option, metric):
    for value in ([], {}, object()):
        with pytest.raises(BenchError, match=option):
            check_metrics([metric], {option: value})


def test_every_default_is_a_value_of_its_option():
    for _, metric in METRICS.load_all():
        for option in metric.fact.options:
            assert option.meaning and (option.default is None or option.accepts(option.default))


def test_options_of_metrics_that_are_not_asked_for_may_stay():
    check_metrics(["fid"], {"is_splits": 5, "kid_gamma": 0.5, "num_classes": 10, "per_class": False})


def test_nothing_is_measured_with_a_bad_option():
    logits = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    with pytest.raises(BenchError, match=r"metrics.options.is_splits"):
        measure({"inception.logits": logits}, None, ["is"], options={"is_splits": "ten"})


def test_an_option_reaches_the_metric():
    logits = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    one, ten = (
        measure({"inception.logits": logits}, None, ["is"], options={"is_splits": splits}).values[0]
        for splits in (1, 10)
    )
    assert one.value != ten.value and one.method.startswith("1 splits")
