"""Rank sets and chances of being first, held against fields whose true order is known.

BENCH_SIMULATIONS=500 repeats each field so often (40 unless told).
"""

import os
import runpy
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from results import chances as chances_module
from results import rank_sets as rank_sets_module
from results.chances import chances_of_first
from results.rank_sets import method_of, possible_bests, rank_sets, simultaneous_differences, surely_beaten
from results.statistics import paired_difference

SIMULATION = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "order_simulation.py"))
FIELDS, SIZES, calibration, observed, simulate = (
    SIMULATION[name] for name in ("FIELDS", "SIZES", "calibration", "observed", "simulate")
)
REPETITIONS = int(os.environ.get("BENCH_SIMULATIONS", "40"))
LEAST = 0.95 - 0.02 - 2.6 * np.sqrt(0.95 * 0.05 / REPETITIONS)
"""93%, less what so few repetitions leave open."""
CASES = [(field, rows) for rows in SIZES for field in FIELDS if rows > 2 or field != "tied leaders"]


@pytest.fixture(scope="module")
def outcomes():
    return {case: simulate(*case, REPETITIONS, shared=0.5 * (index % 2)) for index, case in enumerate(CASES)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rank_sets_hold_all_true_ranks_and_the_best_row_at_once(outcomes, case):
    outcome = outcomes[case]
    assert outcome.covered >= LEAST and outcome.first >= LEAST and outcome.best >= LEAST


@pytest.mark.parametrize("rows", SIZES)
def test_chances_of_being_first_are_true_over_all_fields(outcomes, rows):
    for said, true, count in calibration([outcome for case, outcome in outcomes.items() if case[1] == rows]):
        assert abs(said - true) < 0.1 + 2.6 * np.sqrt(0.25 / count)


def test_few_blocks_do_not_make_many_rows_surer():
    assert simulate("tied", 44, REPETITIONS, blocks=10).covered >= LEAST


def test_separated_rows_are_told_apart():
    values, left = observed(np.random.default_rng(0), np.arange(44) * 10.0, shared=0.5)
    sets = rank_sets(values, left, "higher")
    assert np.array_equal(sets.low, sets.high) and np.array_equal(sets.low, np.arange(44, 0, -1))
    assert chances_of_first(values, left, "higher")[-1] > 0.99 and chances_of_first(values, left, "lower")[0] > 0.99


def test_a_lone_leader_ahead_of_tied_rows_is_believed():
    """Four standard errors ahead of seven equal rows: 0.72 on average, and 0.64 if no group could be of one row."""
    fields = [observed(np.random.default_rng(seed), np.array([4.0] + [0.0] * 7)) for seed in range(40)]
    said = [chances_of_first(*field, "higher", draws=1000)[0] for field in fields]
    assert 0.68 < np.mean(said) < 0.9


def test_noise_that_all_rows_share_cannot_turn_the_order_round():
    noise = np.random.default_rng(4).normal(size=20)
    values = np.array([1.0, 1.001])
    left = values[:, None] + noise
    assert rank_sets(values, left, "higher").low.tolist() == [2, 1]
    assert chances_of_first(values, left, "higher").tolist() == [0.0, 1.0]


def test_three_hundred_rows_repeat_to_the_bit():
    values, left = observed(np.random.default_rng(1), np.random.default_rng(2).normal(size=300) * 3)
    one, other = (rank_sets(values, left, "lower", seed=5) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    chances = chances_of_first(values, left, "lower", seed=5)
    assert np.array_equal(chances, chances_of_first(values, left, "lower", seed=5))
    assert chances.sum() == pytest.approx(1.0) and chances[one.best].sum() > 0.9


@pytest.mark.parametrize("unit", [2.0**-200, 2.0**200])
def test_the_unit_of_a_metric_changes_nothing(unit):
    values, left = observed(np.random.default_rng(9), np.arange(8) * 2.0)
    one, other = rank_sets(values, left, "higher"), rank_sets(unit * values, unit * left, "higher")
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_row_measured_twice_shares_its_chance_and_is_never_told_from_itself():
    values, left = observed(np.random.default_rng(3), np.array([2.0, 2.0, -20.0]))
    values[1], left[1] = values[0], left[0]
    sets = rank_sets(values, left, "higher")
    assert (sets.low.tolist(), sets.high.tolist()) == ([1, 1, 3], [2, 2, 3])
    assert chances_of_first(values, left, "higher").tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_one_pair_is_the_paired_difference_and_many_pairs_are_wider():
    values, left = observed(np.random.default_rng(6), np.zeros(5))
    single = paired_difference(values[0], left[0], values[1], left[1])
    alone = simultaneous_differences(values, left, [(0, 1)])
    assert [float(part[0]) for part in alone[:4]] == pytest.approx(single[:4])
    pairs = [(i, j) for i in range(5) for j in range(i)]
    together = simultaneous_differences(values, left, pairs)
    index = pairs.index((1, 0))
    assert together.low[index] < -alone.high[0] and together.high[index] > -alone.low[0]


def test_sampling_of_the_reference_widens_the_sets():
    values, left = observed(np.random.default_rng(7), np.array([0.0, 6.0]))
    assert rank_sets(values, left, "higher").high.tolist() == [2, 1]
    _, reference = observed(np.random.default_rng(8), values)
    wide = rank_sets(values, left, "higher", leave_reference_out=values[:, None] + 9 * (reference - values[:, None]))
    assert wide.low.tolist() == [1, 1]


def test_one_row_is_first_and_too_few_blocks_or_missing_values_are_refused():
    assert rank_sets(np.ones(1), np.ones((1, 5)), "lower").low.tolist() == [1]
    assert rank_sets(np.ones(1), np.ones((1, 5)), "lower").best.tolist() == [True]
    for values, left, reason in (
        (np.ones(2), np.ones((2, 4)), "at least 5 blocks"),
        (np.array([np.nan, 1.0]), np.ones((2, 5)), "finite"),
        (np.ones(3), np.ones((2, 5)), r"not \[R\] and \[R, K\]"),
    ):
        for ask in (rank_sets, surely_beaten, chances_of_first):
            with pytest.raises(ValueError, match=reason):
                ask(values, left, "lower")


def by_holm(values, left):
    """Rank sets by Holm's step-down and possible bests by Bonferroni, pair by pair."""
    rows, blocks = left.shape
    parts = np.sqrt((blocks - 1) / blocks) * (left.mean(axis=1, keepdims=True) - left)
    error = np.sqrt(((parts[:, None] - parts) ** 2).sum(axis=2))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num((values[:, None] - values) / error)
    one, other = np.triu_indices(rows, 1)
    size, order = np.abs(t[one, other]), np.argsort(-np.abs(t[one, other]))
    told = np.zeros((rows, rows), dtype=bool)
    for step, pair in enumerate(order):
        if size[pair] <= student.isf(0.025 / (len(size) - step), blocks - 1):
            break
        told[one[pair], other[pair]] = told[other[pair], one[pair]] = True
    best = ~(t > student.isf(0.05 / (rows - 1), blocks - 1)).any(axis=0)
    return 1 + (told & (t < 0)).sum(axis=1), rows - (told & (t > 0)).sum(axis=1), best


@pytest.mark.parametrize("step", [1 << 20, 40 * 7])
def test_the_sets_of_very_many_rows_are_those_of_all_pairs_at_once(monkeypatch, step):
    values, left = observed(np.random.default_rng(10), np.random.default_rng(11).normal(size=40) * 8, shared=0.9)
    values[3], left[3] = values[5], left[5]
    whole = rank_sets(values, left, "higher")
    monkeypatch.setattr(rank_sets_module, "MANY", 20)
    monkeypatch.setattr(rank_sets_module, "_AT_ONCE", step)
    sets, (low, high, best) = rank_sets(values, left, "higher"), by_holm(values, left)
    assert sets.best.tolist() == best.tolist() == possible_bests(values, left, "higher").tolist()
    assert (sets.best == ~surely_beaten(values, left, "higher").any(axis=0)).all()
    # Pairs that are left are counted upwards, so a set may be wider than Holm's, by next to nothing.
    assert (sets.low <= low).all() and (sets.high >= high).all()
    assert (sets.high - sets.low).sum() <= 1.05 * (high - low).sum() + 2
    assert (sets.low <= whole.low).mean() > 0.9 and (sets.high - sets.low).sum() <= 1.6 * (whole.high - whole.low).sum()


def test_many_rows_are_ranked_in_bounded_memory(monkeypatch):
    values, left = observed(np.random.default_rng(12), np.sort(np.random.default_rng(13).normal(size=1100) * 30))
    tracemalloc.start()
    sets, chances = rank_sets(values, left, "higher"), chances_of_first(values, left, "higher", draws=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # the errors of all pairs alone would take 97 MB, their draws 4 MB more
    assert "Holm" in method_of(1100) and not method_of(1000)
    true = np.arange(1100, 0, -1)
    assert ((sets.low <= true) & (true <= sets.high)).all() and sets.best[-1]
    assert sets.low[0] > 1000 and chances.sum() == pytest.approx(1.0) and chances[sets.best].sum() > 0.95


@pytest.mark.parametrize("field", ["tied", "separated", "tied leaders"])
def test_chances_of_many_rows_are_those_of_few(monkeypatch, field):
    true = SIMULATION["true_scores"](np.random.default_rng(14), field, 40)
    values, left = observed(np.random.default_rng(15), true)
    few = chances_of_first(values, left, "higher")
    monkeypatch.setattr(chances_module, "MANY", 20)
    monkeypatch.setattr(chances_module, "_SIZES", 40)
    assert chances_of_first(values, left, "higher") == pytest.approx(few, abs=0.08)
