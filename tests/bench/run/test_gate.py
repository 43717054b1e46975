"""The regression gate on the digits network: what it sees of perturbed weights, and how seldom it is wrong."""

from itertools import combinations, groupby

import numpy as np
import pytest
import torch

from bench.metrics.measure import measure
from bench.models.loading import build_adapter
from bench.references.stored import conditions, prepare_reference
from bench.run.plan import Request, make_plan
from bench.run.shard import sample_shard
from bench.run.worker import load_judges
from protocols import find_protocol
from results.baseline import Baseline, Kept, Measured, compare

PROTOCOL = find_protocol("digits")
MODELS, N, FEW = ("digits-dmd", "digits-flow-small"), 500, 100


class Network:
    """Measures the digits networks at one step, their weights multiplied by 1 + `scale`."""

    def __init__(self, runs):
        self.judges = load_judges(PROTOCOL, "cpu")
        self.reference = prepare_reference(PROTOCOL, self.judges, runs)
        self.features = self.reference.features()
        request = Request(PROTOCOL, models=MODELS, steps=(1,), num_samples=N)
        self.cells = make_plan(request, conditions(self.judges, self.reference))

    def judged(self, cell, n, scale=0.0):
        adapter = build_adapter(cell.card, device="cpu", dtype="float32")
        with torch.no_grad():
            for parameter in adapter.network.parameters():
                parameter.mul_(1 + scale)
        arrays, _ = sample_shard(cell, PROTOCOL, adapter, self.judges, np.arange(n) % 10, 0, n)
        return {name: array for name, array in arrays.items() if name != "thumbnails"}

    def kept(self, arrays):
        labels = np.arange(len(next(iter(arrays.values())))) % 10
        options = {"num_classes": 10, **PROTOCOL.metric_options}
        found = measure(arrays, self.features, PROTOCOL.metrics, labels=labels, blocks=20, options=options)
        return {value.name: Kept(value.value, value.low, value.high, value.jackknife) for value in found.values}

    def measured(self, scale=0.0):
        return Measured({cell.label: self.kept(self.judged(cell, N, scale)) for cell in self.cells}, {})


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return Network(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def baseline(network):
    return Baseline("digits", MODELS, (1,), N, network.measured().cells)


def unpaired(baseline):
    cells = {
        cell: {name: kept._replace(blocks=None) for name, kept in table.items()}
        for cell, table in baseline.cells.items()
    }
    return baseline._replace(cells=cells)


def moved(checks):
    return [check for check in checks if not check.passed]


def test_paired_gate_sees_a_tenth_of_the_change_that_an_unpaired_one_sees(network, baseline):
    small, large = network.measured(0.0005), network.measured(0.005)
    assert moved(compare(unpaired(baseline), large)), "the change that the metrics' own intervals show"
    assert not moved(compare(unpaired(baseline), network.measured(0.003)))
    assert not moved(compare(unpaired(baseline), small))
    assert moved(compare(baseline, small)) and moved(compare(baseline, large))


def test_paired_intervals_of_continuous_metrics_are_ten_times_narrower(network, baseline):
    checks = compare(baseline, network.measured(0.0005))
    own = {(cell, name): kept.high - kept.low for cell, table in baseline.cells.items() for name, kept in table.items()}
    ratios = [
        own[check.cell, check.name] / (check.high - check.low)
        for check in checks
        if check.name in ("fid", "is", "kid", "clip", "pick")
    ]
    assert np.median(ratios) > 10


def test_rounding_of_weights_is_no_change(network, baseline):
    checks = compare(baseline, network.measured(1e-6))
    assert len(checks) == 20 and not moved(checks) and {check.rule for check in checks} == {"paired"}


def test_same_model_on_other_noise_fails_in_less_than_one_check_of_a_hundred(network):
    """Rows of one model without common noise: every difference is chance. All metrics of a check count together."""
    pool = network.judged(network.cells[0], 24 * FEW)
    parts = [{name: array[at : at + FEW] for name, array in pool.items()} for at in range(0, 24 * FEW, FEW)]
    kept = [network.kept(part) for part in parts]
    alarms = [
        bool(moved(compare(Baseline("digits", MODELS, (1,), FEW, {"a": one}), Measured({"a": other}, {}))))
        for one, other in combinations(kept, 2)
    ]
    assert len(alarms) == 276 and np.mean(alarms) < 0.01 + 2 * np.sqrt(0.01 * 0.99 / 24 / 2)


@pytest.mark.parametrize("blocks", [5, 20])
def test_false_alarms_over_many_metrics_together_stay_below_one_percent(blocks):
    random = np.random.default_rng(5)

    def row(noise):
        mean = noise.mean()
        return Kept(mean, mean - 1, mean + 1, (noise.sum() - noise) / (len(noise) - 1))

    alarms = 0
    for _ in range(400):
        shared = random.normal(size=(30, blocks))
        rows = [{str(i): row(noise + 0.1 * random.normal(size=blocks)) for i, noise in enumerate(shared)} for _ in "ab"]
        alarms += bool(moved(compare(Baseline("p", ("m",), (1,), 20, {"c": rows[0]}), Measured({"c": rows[1]}, {}))))
    assert alarms <= 10  # 4 expected


def test_better_and_worse_are_told_apart_and_better_may_pass(network, baseline):
    checks = compare(baseline, network.measured(0.03))
    verdicts = {verdict: list(found) for verdict, found in groupby(sorted(checks, key=verdict_of), verdict_of)}
    assert {"better", "worse", "same"} == set(verdicts)
    assert not any(check.passed for check in verdicts["better"] + verdicts["worse"])
    lenient = compare(baseline, network.measured(0.03), allow_better=True)
    assert {check.verdict for check in moved(lenient)} == {"worse"}


def verdict_of(check):
    return check.verdict
