import numpy as np
import pytest

from results.errors import BenchError
from results.power import FEWEST_SAMPLES, power_of
from results.rows import Row, Value
from results.statistics import blocks_by_label, paired_difference

K = 20


def without(values):
    blocks = blocks_by_label(np.zeros(len(values), dtype=int), K)
    return (values.sum() - np.bincount(blocks, weights=values)) / (len(values) - np.bincount(blocks))


def row(values, reference=None):
    cell = {"cell_id": "x", "ranking": "k", "model": "m", "num_samples": len(values)}
    return Row(cell, {"pick": Value(float(values.mean()), n=len(values), jackknife=tuple(without(values)),
                                    jackknife_reference=reference)})  # fmt: skip


def draw(random, n, difference, correlation=0.9):
    """Scores of two models of unit variance that share their noise, a ahead of b by `difference`."""
    shared = random.normal(size=n)
    own = np.sqrt(1 - correlation) * random.normal(size=(2, n))
    a, b = np.sqrt(correlation) * shared + own
    return a + difference, b


@pytest.fixture(scope="module")
def pilots():
    random = np.random.default_rng(0)
    return [power_of(*map(row, draw(random, 300, 0.05)), samples=2000)[0] for _ in range(40)]


def rejections(n, difference, trials=400):
    random, found = np.random.default_rng(1), 0
    for _ in range(trials):
        a, b = draw(random, n, difference)
        found += paired_difference(a.mean(), without(a), b.mean(), without(b)).sign == 1
    return found / trials


def test_the_difference_it_says_is_resolved_is_found_four_times_of_five(pilots):
    resolves = np.mean([power.resolves for power in pilots])
    assert 0.74 <= rejections(2000, resolves) <= 0.87
    assert rejections(2000, resolves / 2) < 0.4


def test_the_samples_it_asks_for_find_the_difference_four_times_of_five():
    random = np.random.default_rng(2)
    needed = [power_of(*map(row, draw(random, 300, 0.05)), difference=0.06, metric="pick")[0].needed for _ in range(40)]
    assert 0.72 <= rejections(int(np.mean(needed)), 0.06) <= 0.88


def test_shared_noise_is_worth_the_samples_it_says(pilots):
    assert np.mean([power.gain for power in pilots]) == pytest.approx(1 / (1 - 0.9), rel=0.2)


def test_a_difference_that_shows_at_once_still_takes_the_samples_of_a_verdict():
    a, b = draw(np.random.default_rng(5), 300, 50.0)
    (power,) = power_of(row(a), row(b))
    assert power.needed == FEWEST_SAMPLES == 10


def test_no_number_of_samples_finds_what_the_reference_hides():
    random = np.random.default_rng(3)
    a, b = draw(random, 300, 0.0)
    reference = [tuple(values) for values in 0.05 * random.normal(size=(2, K))]
    (power,) = power_of(row(a, reference[0]), row(b, reference[1]), difference=0.1, metric="pick", samples=10**9)
    assert power.needed is None and "reference" in power.reason and power.resolves > 0.1
    (power,) = power_of(row(a, reference[0]), row(b, reference[1]), difference=5.0, metric="pick")
    assert power.needed is not None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"samples": 0}, "--n: 0"), ({"difference": -1.0, "metric": "pick"}, "--difference: -1"),
        ({"difference": float("nan"), "metric": "pick"}, "--difference: nan"),
        ({"difference": 1.0}, "name the metric with --metric"), ({"metric": "fid"}, "no paired values of 'fid'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(options, reason):
    a, b = draw(np.random.default_rng(4), 100, 0.1)
    with pytest.raises(BenchError, match=reason):
        power_of(row(a), row(b), **options)
