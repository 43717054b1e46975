"""Feature spaces beside each other, and rows that were trained on what a metric reads."""

import csv
import io
import json

import numpy as np
import pytest
from scipy.stats import kendalltau

from results.database import insert_many
from results.errors import BenchError
from results.export import export
from results.leaderboard import rankings, rows
from results.ranking import rank
from results.spaces import agreements, disputed, leaders, space_of
from results.store import connect, write_cell
from results.training import leave_out_trained, trained_rows

BLOCKS = 10
JUDGES = {"fid": "inception", "kid": "inception", "fd_dinov2": "dinov2", "clip": "clip_l14"}


def metric(name, value, spread, seed):
    noise = np.random.default_rng(seed).normal(size=BLOCKS) * spread
    return {
        "metric": name, "value": value, "low": value - spread, "high": value + spread, "standard_error": spread / 2,
        "corrected": value, "n": 100, "method": "x", "judge": JUDGES[name], "judge_digest": "",
        "reference": None, "reference_digest": None, "jackknife": (value + noise).tolist(),
    }  # fmt: skip


def model_row(name, trained_on):
    return {
        "model": name, "family": "f", "title": name, "resolution": 8, "num_classes": 10, "parameters": 1,
        "guidance": "none", "natural_steps": 1, "natural_cfg": 1.0, "paper": "", "licence": "",
        "card": {"name": name, "trained_on": trained_on},
    }  # fmt: skip


@pytest.fixture
def board(tmp_path, cell):
    """Make a database of models with the values of two distances and what they were trained on."""

    def make(table, spread=0.001, trained=None):
        path = tmp_path / "bench.duckdb"
        with connect(path, write=True) as connection:
            for number, (name, (fid, dino)) in enumerate(table.items()):
                row = cell(f"{name}cell", model=name, checkpoint=name)
                metrics = [
                    metric(key, value, spread, 100 * number + place)
                    for place, (key, value) in enumerate(
                        {"fid": fid, "kid": fid / 9, "fd_dinov2": dino, "clip": 9}.items()
                    )
                ]
                write_cell(connection, {"cell": row, "metrics": metrics})
            insert_many(connection, "models", [model_row(name, (trained or {}).get(name, [])) for name in table])
            rank(connection)
        return path

    return make


TABLE = {"a": (1.0, 5.0), "b": (2.0, 3.0), "c": (3.0, 4.0), "d": (4.0, 9.0)}


def test_the_rank_correlation_of_two_spaces_is_kendalls_tau_b(board):
    with connect(board(TABLE)) as connection:
        (pair,) = agreements(rows(connection))
    expected = kendalltau([1, 2, 3, 4], [5, 3, 4, 9]).statistic
    assert (pair.one.name, pair.other.name, pair.n) == ("fid", "fd_dinov2", 4)
    assert pair.tau == pytest.approx(expected) and pair.row()["tau_b"] == pair.tau


def test_spaces_that_have_other_models_first_disagree_and_say_whether_it_may_be_luck(board):
    with connect(board(TABLE)) as connection:
        (pair,) = found = agreements(rows(connection))
    assert disputed(found) is pair and pair.sure
    assert leaders(pair) == "a is first by FID, b by FD-DINOv2"


def test_a_dispute_within_the_noise_may_be_luck(board):
    with connect(board({"a": (1.0, 3.001), "b": (1.001, 3.0)}, spread=1.0)) as connection:
        (pair,) = agreements(rows(connection))
    assert pair.disagree and not pair.sure and pair.tau is None
    assert leaders(pair).endswith(", which may be luck")


def test_spaces_with_one_leader_do_not_disagree(board):
    with connect(board({"a": (1.0, 2.0), "b": (2.0, 4.0), "c": (3.0, 3.0)})) as connection:
        assert disputed(agreements(rows(connection))) is None


@pytest.mark.parametrize(
    ("judge", "space"),
    [("clip", "clip"), ("clip_l14_336", "clip"), ("dinov2", "dinov2"), ("dinov2_256", "dinov2"),
     ("cross_check", "cross_check"), ("image_reward", "image_reward")],
)  # fmt: skip
def test_a_space_is_named_after_the_network_without_its_size(judge, space):
    assert space_of(judge) == space


def test_metrics_that_read_what_a_model_was_trained_on_are_marked(board):
    path = board(TABLE, trained={"a": ["inception"], "c": ["clip", "mae"]})
    with connect(path) as connection:
        found = {row.cell["model"]: row for row in rows(connection)}
    marked = {
        name: sorted(key for key, value in row.metrics.items() if value.trained_on) for name, row in found.items()
    }
    assert marked == {"a": ["fid", "kid"], "b": [], "c": ["clip"], "d": []}
    assert found["c"].trained_on == ("clip", "mae") and found["b"].trained_on == ()


@pytest.mark.parametrize("trained_on", [None, 3, {"inception": 1}, "inception", [None], []])
def test_a_card_that_says_it_wrongly_says_nothing(board, trained_on):
    with connect(board({"a": (1.0, 2.0)}, trained={"a": trained_on})) as connection:
        assert rows(connection)[0].trained_on == ()


def test_others_are_ranked_anew_without_the_rows_left_out_and_nothing_is_stored(board):
    path = board(TABLE, trained={"a": ["inception"]})
    with connect(path) as connection:
        before = {row.cell["model"]: row.metrics["fid"].rank_low for row in rows(connection)}
        assert [row.cell["model"] for row in leave_out_trained(connection, rows(connection), ["any"])] == ["a"]
        after = {row.cell["model"]: row.metrics["fid"] for row in rows(connection)}
        assert list(rankings(connection)) == ["k"]
    assert (before["a"], before["b"], after["b"].rank_low, after["d"].rank_high) == (1, 2, 1, 3)
    assert after["a"].rank_low is None
    with connect(path) as connection:
        assert {row.cell["model"]: row.metrics["fid"].rank_low for row in rows(connection)} == before


def test_spaces_are_named_by_their_judges_or_not_at_all(board):
    with connect(board(TABLE, trained={"a": ["inception"], "b": ["siglip"]})) as connection:
        found = rows(connection)
    assert [row.cell["model"] for row in trained_rows(found, ["siglip"])] == ["b"]
    assert trained_rows(found, ["dinov2"]) == []
    with pytest.raises(BenchError, match=r"unknown feature space 'dinv2': did you mean dinov2\?|dinov2"):
        trained_rows(found, ["dinv2"])


def test_exports_of_cells_and_metrics_carry_the_mark(board):
    path = board(TABLE, trained={"a": ["inception"]})
    texts = {}
    for table in ("cells", "metrics"):
        stream = io.BytesIO()
        assert export(path, table, "csv", stream) == {"cells": 4, "metrics": 16}[table]
        texts[table] = list(csv.DictReader(io.StringIO(stream.getvalue().decode())))
    assert {row["model"]: row["trained_on"] for row in texts["cells"]} == {"a": "inception", "b": "", "c": "", "d": ""}
    marked = [(row["cell_id"], row["metric"]) for row in texts["metrics"] if row["trained_on"] == "true"]
    assert sorted(marked) == [("acell", "fid"), ("acell", "kid")]
    stream = io.BytesIO()
    export(path, "metrics", "json", stream)
    assert sum(row["trained_on"] for row in json.loads(stream.getvalue())) == 2
