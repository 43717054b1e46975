import numpy as np
import pandas as pd

from results.standing import best_of_each, budgets, pareto_front, standing_from_differences


def values(table: dict[str, tuple[float, float, list[float] | None]]) -> pd.DataFrame:
    rows = [{"cell_id": cell, "value": v, "standard_error": e, "jackknife": j} for cell, (v, e, j) in table.items()]
    return pd.DataFrame(rows).set_index("cell_id")


def test_rows_with_wide_intervals_share_their_ranks():
    standing = standing_from_differences(
        values({"a": (1.0, 0.5, None), "b": (1.2, 0.5, None), "c": (9.0, 0.5, None)}), "fid", False
    )
    assert standing.rank_low.to_dict() == {"a": 1, "b": 1, "c": 3}
    assert standing.rank_high.to_dict() == {"a": 2, "b": 2, "c": 3}
    assert standing.tied("a", "b") and not standing.tied("a", "c")


def test_pairing_separates_rows_whose_single_intervals_overlap():
    shared = np.random.RandomState(0).randn(20)
    paired = values({"a": (1.0, 0.5, list(1.0 + shared)), "b": (1.2, 0.5, list(1.2 + shared + 1e-4 * shared**2))})
    assert not standing_from_differences(paired, "fid", False).tied("a", "b")
    unpaired = paired.assign(jackknife=None)
    assert standing_from_differences(unpaired, "fid", False).tied("a", "b")


def test_paired_error_is_the_jackknife_of_the_difference():
    blocks = np.random.RandomState(1).randn(10)
    error = np.sqrt(9 / 10 * ((blocks - blocks.mean()) ** 2).sum())
    for distance, apart in ((1.95 * error, False), (1.97 * error, True)):
        table = values({"a": (0.0, 0.0, list(blocks)), "b": (distance, 0.0, [0.0] * 10)})
        assert standing_from_differences(table, "is", True).tied("a", "b") is not apart


def test_missing_values_are_not_ranked():
    standing = standing_from_differences(values({"a": (1.0, 0.1, None), "b": (float("nan"), 0.1, None)}), "fid", False)
    assert list(standing.score.index) == ["a"] and standing.rank_high["a"] == 1


def cells() -> pd.DataFrame:
    return pd.DataFrame({"model": ["one", "one", "two"], "nfe": [1.0, 8.0, 8.0]}, index=["one-1", "one-8", "two-8"])


def test_best_setting_of_each_model_comes_best_first():
    table = values({"one-1": (3.0, 0.1, None), "one-8": (2.0, 0.1, None), "two-8": (1.0, 0.1, None)})
    assert best_of_each(standing_from_differences(table, "fid", False), cells(), ["model"]) == ["two-8", "one-8"]


def test_budget_counts_every_row_that_costs_no_more_and_names_ties():
    table = values({"one-1": (1.0, 0.2, None), "one-8": (5.0, 0.2, None), "two-8": (1.1, 0.2, None)})
    found = budgets(standing_from_differences(table, "fid", False), cells())
    assert [(b.level, b.winner, b.tied) for b in found] == [(1.0, "one-1", []), (8.0, "one-1", ["two-8"])]


def test_many_budgets_become_powers_of_two():
    many = pd.DataFrame({"model": "m", "nfe": np.arange(1.0, 21.0)}, index=[str(k) for k in range(20)])
    table = values({str(k): (float(k), 0.0, None) for k in range(20)})
    assert [b.level for b in budgets(standing_from_differences(table, "is", True), many)] == [1, 2, 4, 8, 16, 32]


def test_budgets_of_time_are_round_numbers():
    timed = pd.DataFrame({"model": ["a", "b"], "seconds": [0.0013, 0.018]}, index=["a", "b"])
    standing = standing_from_differences(values({"a": (1.0, 0.0, None), "b": (2.0, 0.0, None)}), "is", True)
    found = budgets(standing, timed, "seconds")
    assert [(b.level, b.winner) for b in found] == [(0.002, "a"), (0.005, "a"), (0.01, "a"), (0.02, "b")]


def test_pareto_front_drops_dominated_rows():
    cost, score = pd.Series({"a": 1.0, "b": 2.0, "c": 3.0}), pd.Series({"a": 1.0, "b": 0.5, "c": 2.0})
    assert pareto_front(cost, score) == ["a", "c"]
