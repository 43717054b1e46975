"""MMHM over comparable rows: scores, rank intervals that behave, composites, and who is never ranked with whom."""

from dataclasses import replace

import numpy as np
import pytest

from protocols import find_protocol
from results.index import rank_all
from results.leaderboard import best_of_each, by_ranking, rankings, rows
from results.marks import legend
from results.store import connect, write_cell

METRICS = ("fid", "is", "clip", "pick")
FROZEN = {"bounds": {"fid": [0, 20], "is": [0, 10], "clip": [20, 30], "pick": [15, 25]}}
CRITIQUE = {"a": (4, 280, 28, 20.6), "b": (8, 330, 29, 20.9), "c": (20, 390, 30.2, 21.6), "d": (11, 150, 27, 20.1)}
BLOCKS = 20


def drawn(random, means, spread=0.5, n=100):
    """Values and leave-one-block-out values of four metrics that are means of `n` samples a block."""
    parts = np.array(means)[:, None] + spread / np.sqrt(n) * random.normal(size=(4, BLOCKS))
    left = (parts.sum(axis=1, keepdims=True) - parts) / (BLOCKS - 1)
    return dict(zip(METRICS, map(float, parts.mean(axis=1)), strict=True)), dict(zip(METRICS, left, strict=True))


def read(path):
    with connect(path) as connection:
        return rows(connection), rankings(connection)


@pytest.fixture
def simulated(synthetic):
    """Forty rankings of the models `means`, each drawn anew; returns {ranking: {model: rank}}."""

    def simulate(means):
        random = np.random.default_rng(5)
        database = synthetic(composite=FROZEN)
        for trial in range(40):
            for model, mean in means.items():
                database.add(model, *drawn(random, mean), ranking=f"{trial:02d}")
        found = {}
        for row in read(database.write())[0]:
            found.setdefault(row.cell["ranking"], {})[row.cell["model"]] = row.rank
        return found

    return simulate


MIDDLE = (10, 5, 25, 20)


def test_two_equal_models_are_first_equally_often(simulated):
    found = simulated({"one": MIDDLE, "other": MIDDLE})
    first = [ranks["one"]["p_first"] for ranks in found.values()]
    assert np.mean(first) == pytest.approx(0.5, abs=0.1)
    assert all(ranks["one"]["p_first"] + ranks["other"]["p_first"] == pytest.approx(1.0) for ranks in found.values())
    unsure = [ranks["one"]["rank_low"] == 1 and ranks["one"]["rank_high"] == 2 for ranks in found.values()]
    assert np.mean(unsure) >= 0.8


def test_a_clearly_better_model_is_first(simulated):
    found = simulated({"better": (9, 5.3, 25.3, 20.3), "worse": MIDDLE})
    assert all(ranks["better"]["p_first"] > 0.95 for ranks in found.values())
    assert all(ranks["better"]["rank_low"] == ranks["better"]["rank_high"] == 1 for ranks in found.values())


def test_rank_sets_hold_the_true_rank(simulated):
    means = {
        name: (10 - step, 5 + step, 25 + step, 20 + step) for name, step in zip("abc", (0.05, 0.02, 0), strict=True)
    }
    found = simulated(means)
    held = [
        ranks[model]["rank_low"] <= place <= ranks[model]["rank_high"]
        for ranks in found.values()
        for place, model in enumerate("abc", 1)
    ]
    assert np.mean(held) >= 0.88


def test_score_intervals_hold_the_true_score(simulated):
    utilities = (0.5, 0.5, 0.5, 0.5)
    true = 4 / sum(1 / (1e-3 + u) for u in utilities)
    ranks = [ranks["one"] for ranks in simulated({"one": MIDDLE}).values()]
    assert np.mean([rank["low"] <= true <= rank["high"] for rank in ranks]) >= 0.88


def test_identical_rows_share_the_first_place(synthetic):
    database = synthetic(composite=FROZEN)
    values, blocks = drawn(np.random.default_rng(1), MIDDLE)
    for model in ("one", "other"):
        database.add(model, values, blocks)
    assert [row.rank["p_first"] for row in read(database.write())[0]] == [0.5, 0.5]


def critique(database, extra=()):
    for name, values in [*CRITIQUE.items(), *extra]:
        database.add(name, dict(zip(METRICS, map(float, values), strict=True)))
    found, facts = read(database.write())
    return {row.cell["model"]: row for row in found}, facts["k"]


def test_bounds_from_the_rows_score_as_the_paper_and_show_what_each_row_moves(synthetic):
    table, ranking = critique(synthetic())
    assert [round(table[name].rank["mmhm"], 3) for name in "abcd"] == [0.443, 0.652, 0.004, 0.001]
    assert ranking["bounds_source"] == "rows"
    moved = {name: ranking["sensitivity"][row.cell["cell_id"]] for name, row in table.items()}
    assert moved["d"] == 2  # without d, c stands above a
    assert table["c"].bottleneck == "fid"


def test_the_gentler_composites_are_stored_beside_mmhm(synthetic):
    table, ranking = critique(synthetic())
    utilities = np.array([list(map(table["a"].rank["utilities"].get, METRICS))])
    assert table["a"].rank["geometric"] == pytest.approx(float(np.prod(1e-3 + utilities) ** 0.25))
    assert [table[name].rank["mean_rank"] for name in "abcd"] == [2.5, 2.0, 1.75, 3.75]
    assert ranking["correlation"]["is"]["clip"] == pytest.approx(1.0)
    assert ranking["correlation"]["fid"]["is"] == pytest.approx(-0.4)


def test_under_frozen_bounds_a_broken_row_moves_nobody(synthetic, tmp_path):
    bounds = {"fid": [4, 20], "is": [150, 390], "clip": [27, 30.2], "pick": [20.1, 21.6]}
    table, ranking = critique(synthetic(composite={"bounds": bounds, "version": 3}), [("broken", (250, 3, 17, 17.5))])
    assert [round(table[name].rank["mmhm"], 3) for name in "abcd"] == [0.443, 0.652, 0.004, 0.001]
    assert set(ranking["sensitivity"].values()) == {0}
    assert ranking["bounds_source"] == "frozen (synthetic/3)"
    assert set(table["broken"].rank["outside"]) == set(METRICS)
    assert set(table["broken"].rank["utilities"].values()) == {0.0}


def test_a_row_that_misses_samples_or_a_metric_is_not_ranked(synthetic):
    database = synthetic(composite=FROZEN)
    values = dict(zip(METRICS, MIDDLE, strict=True))
    database.add("whole", values)
    database.add("short", values)
    for metric in database.records[-1]["metrics"]:
        metric["n"] = 99
    database.add("partial", {"fid": 1.0})
    assert {row.cell["model"]: bool(row.rank) for row in read(database.write())[0]} == {
        "whole": True,
        "short": False,
        "partial": False,
    }


def test_a_cell_that_fails_later_leaves_no_rank_behind(synthetic):
    database = synthetic(composite=FROZEN)
    database.add("model", dict(zip(METRICS, MIDDLE, strict=True)))
    path = database.write()
    (record,) = database.records
    with connect(path, write=True) as connection:
        write_cell(connection, record | {"cell": record["cell"] | {"status": "failed"}, "metrics": []})
    rank_all(path)
    with connect(path) as connection:
        for table in ("ranks", "rankings"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_fids_of_another_n_seed_or_reference_are_never_ranked_together(measure):
    other = replace(find_protocol("digits"), reference={**find_protocol("digits").reference, "part": "train"})
    measure()
    measure(num_samples=100)
    measure(seed=3)
    found, _ = read(measure(protocol=other).database)
    facts = [(row.cell["num_samples"], row.cell["seed"], row.cell["ranking"]) for row in found]
    assert len(found) == len({ranking for _, _, ranking in facts}) == 4
    assert sorted((n, seed) for n, seed, _ in facts) == [(100, 2026), (200, 3), (200, 2026), (200, 2026)]
    for row in found:  # each is alone in its ranking
        assert row.rank["rank_low"] == 1 and row.rank["p_first"] is None and row.rank["p_first_model"] is None
    assert len(best_of_each(found, "fid")) == 4
    assert [len(members) for members in by_ranking(found).values()] == [1, 1, 1, 1]


def test_a_model_alone_in_its_ranking_has_no_chance_of_being_the_best(synthetic):
    database = synthetic(composite=FROZEN)
    for _ in range(2):
        database.add("only", *drawn(np.random.default_rng(1), MIDDLE))
    found, _ = read(database.write())
    assert [row.rank["p_first"] for row in found] == [0.5, 0.5]
    assert {row.rank["p_first_model"] for row in found} == {None}
    assert any("first: probability that the row" in line for line in legend(found))
    assert not any("first:" in line for line in legend(best_of_each(found)))


def test_mmhm_takes_fid_less_its_bias_where_the_protocol_says_so(synthetic):
    found = {}
    for fid in ("raw", "corrected"):
        database = synthetic(composite=FROZEN | {"fid": fid})
        for model, bias in (("varied", 4.0), ("collapsed", 1.0)):
            values, blocks = drawn(np.random.default_rng(1), (6 + bias, 5, 25, 20))
            database.add(model, values, blocks)
            for metric in database.records[-1]["metrics"]:
                metric["corrected"] = metric["value"] - bias if metric["metric"] == "fid" else None
        table, facts = read(database.write())
        found[fid] = {row.cell["model"]: row for row in table}
        assert facts["k"]["bounds_source"].endswith(", FID without its bias") is (fid == "corrected")
    assert found["raw"]["collapsed"].rank["mmhm"] > found["raw"]["varied"].rank["mmhm"]
    varied, collapsed = (found["corrected"][model].rank for model in ("varied", "collapsed"))
    assert varied["mmhm"] == pytest.approx(collapsed["mmhm"])
    assert varied["utilities"]["fid"] == pytest.approx(1 - 6 / 20, abs=0.05)


def test_an_mmhm_whose_fid_cannot_be_corrected_says_so(synthetic):
    database = synthetic(composite=FROZEN | {"fid": "corrected"})
    database.add("one", *drawn(np.random.default_rng(1), MIDDLE))
    for metric in database.records[-1]["metrics"]:
        metric["corrected"] = None
    (row,), facts = read(database.write())
    assert row.rank["mmhm"] > 0 and "raw FID: too few images to remove its bias" in facts["k"]["bounds_source"]


def test_too_few_blocks_leave_the_score_and_withhold_its_order(synthetic):
    database = synthetic(composite=FROZEN)
    for model in ("one", "other"):
        values, blocks = drawn(np.random.default_rng(1), MIDDLE)
        database.add(model, values, {metric: left[:4] for metric, left in blocks.items()})
    for row in read(database.write())[0]:
        assert row.rank["mmhm"] > 0 and row.rank["low"] is None and row.rank["high"] is None
        assert row.rank["rank_low"] is None and row.rank["p_first"] is None
        assert row.rank["withheld"] == "4 blocks, but an order needs 5"
        assert row.metrics["fid"].rank_low is None
