import numpy as np
import pytest

from results.budgets import budgets, pareto_front
from results.comparing import paired, tied
from results.leaderboard import best_of_each
from results.rank_sets import rank_sets
from results.rows import Row, Value

K = 20
NOISE = np.linspace(-1, 1, K)


def row(cell, value, model="m", metric="fid", spread=0.0, noise=NOISE, **facts):
    """One row; its values without a block spread by `spread` x `noise`."""
    left = None if spread is None else tuple(value + spread * noise)
    cell = {"cell_id": cell, "ranking": "k", "model": model, "steps": 1, "cfg": 1.0, "num_samples": 100, "nfe": 1.0,
            "guide_nfe": None, "images_per_second": None, "latency_seconds": None} | facts  # fmt: skip
    return Row(cell, {metric: Value(value, n=100, jackknife=left)})


def test_pairing_separates_rows_whose_single_intervals_overlap():
    shared = np.random.RandomState(0).randn(K)
    a = row("a", 1.0, noise=shared, spread=1.0)
    b = row("b", 1.2, noise=shared + 1e-4 * shared**2, spread=1.0)
    assert not tied(a, b, "fid")
    assert tied(a, row("b", 1.2, spread=None), "fid")  # no blocks in common: nothing is known of the difference


def test_the_limit_is_students_t_of_the_jackknife_of_the_difference():
    blocks = np.random.RandomState(1).randn(10)
    error = np.sqrt(9 / 10 * ((blocks - blocks.mean()) ** 2).sum())
    zero = row("b", 0.0, metric="is", noise=np.zeros(10))
    for distance, apart in ((2.26 * error, False), (2.265 * error, True)):  # t of 9 degrees of freedom: 2.2622
        a = row("a", distance, metric="is", noise=blocks, spread=1.0)
        assert tied(a, zero, "is") is not apart
        assert paired(a, zero, "is").standard_error == pytest.approx(error)


def test_ranks_lie_between_the_rows_surely_better_and_those_surely_worse():
    values = np.array([1.0, 1.01, 9.0])
    left = values[:, None] + np.random.RandomState(2).randn(3, K) / 20
    lower, higher = rank_sets(values, left, "lower"), rank_sets(values, left, "higher")
    assert (lower.low.tolist(), lower.high.tolist()) == ([1, 1, 3], [2, 2, 3])
    assert (higher.low.tolist(), higher.high.tolist()) == ([2, 2, 1], [3, 3, 1])
    assert (lower.best.tolist(), higher.best.tolist()) == ([True, True, False], [False, False, True])


def test_best_setting_of_each_model_comes_best_first():
    found = [row("one-1", 3.0, "one"), row("one-8", 2.0, "one"), row("two-8", 1.0, "two")]
    assert [found.cell["cell_id"] for found in best_of_each(found, "fid")] == ["two-8", "one-8"]


def names(found):
    return [(budget.level, budget.winner.cell["cell_id"], [r.cell["cell_id"] for r in budget.tied]) for budget in found]


def test_budget_counts_every_row_that_costs_no_more_and_names_ties():
    noise = np.random.RandomState(3).randn(3, K)
    found = [
        row("one-1", 1.0, "one", noise=noise[0], spread=0.2),
        row("one-8", 5.0, "one", noise=noise[1], spread=0.2, nfe=8.0),
        row("two-8", 1.1, "two", noise=noise[2], spread=0.2, nfe=7.0, guide_nfe=1.0),
    ]
    assert names(budgets(found, "fid")) == [(1.0, "one-1", []), (8.0, "one-1", ["two-8"])]


def test_many_budgets_become_powers_of_two():
    found = [row(str(k), float(k), metric="is", nfe=k + 1.0) for k in range(20)]
    assert [budget.level for budget in budgets(found, "is")] == [1, 2, 4, 8, 16, 32]


def test_budgets_of_time_are_round_numbers():
    found = [
        row("a", 1.0, "a", metric="is", images_per_second=1 / 0.0013),
        row("b", 2.0, "b", metric="is", images_per_second=1 / 0.018),
    ]
    expected = [(0.002, "a"), (0.005, "a"), (0.01, "a"), (0.02, "b")]
    assert [entry[:2] for entry in names(budgets(found, "is", "seconds"))] == expected


def test_pareto_front_drops_dominated_rows():
    found = [row(n, v, metric="is", nfe=c) for n, c, v in (("a", 1.0, 1.0), ("b", 2.0, 0.5), ("c", 3.0, 2.0))]
    assert [r.cell["cell_id"] for r in pareto_front(found, "is", "nfe")] == ["a", "c"]
