"""A model's setting is chosen on one seed and reported on another, and compared at equal cost."""

import json

import pytest

from bench.cli import main
from bench.contracts.adapter import Adapter
from bench.run.plan import make_plan
from results.errors import BenchError
from results.leaderboard import best_of_each, chosen_on, rows, within_budget
from results.store import connect

FROZEN = {"bounds": {"fid": [0, 20], "is": [0, 10], "clip": [20, 30], "pick": [15, 25]}}


def values(fid):
    return {"fid": fid, "is": 5.0, "clip": 25.0, "pick": 20.0}


@pytest.fixture
def lucky(synthetic, tmp_path):
    """Two models; `lucky` at 4 steps is best on the reported seed only by luck."""
    database = synthetic(composite=FROZEN)
    for seed, fids in (
        (0, {"lucky": (3.0, 1.0), "steady": (2.0, 5.0)}),
        (7, {"lucky": (2.9, 4.0), "steady": (2.1, 5.0)}),
    ):
        for model, pair in fids.items():
            for steps, fid in zip((1, 4), pair, strict=True):
                rate = 10.0 / steps
                database.add(
                    model, values(fid), steps=steps, nfe=float(steps), seed=seed, ranking=f"k{seed}",
                    images_per_second=rate, guide_nfe=2.0 if model == "steady" and steps == 4 else None,
                )  # fmt: skip
    database.path = database.write()
    return database


@pytest.fixture
def board(capsys, tmp_path):
    """Run `bench leaderboard` in this process; return (exit code, parsed stdout or text, stderr)."""

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            main(["leaderboard", *words, "--runs-dir", str(tmp_path / "runs")])
        out = capsys.readouterr()
        return stop.value.code, json.loads(out.out) if "--json" in words and out.out else out.out, out.err

    return call


def test_the_winner_is_not_chosen_on_its_own_test(lucky, board):
    reported = [row for row in board("--json")[1] if row["seed"] == 0]
    assert [(row["model"], row["steps"]) for row in reported] == [("lucky", 4), ("steady", 1)]
    _, chosen, _ = board("--select-on", "7", "--json")
    assert [(row["model"], row["steps"], row["seed"]) for row in chosen] == [("steady", 1, 0), ("lucky", 1, 0)]
    assert [row["metrics"]["fid"]["value"] for row in chosen] == [2.0, 3.0]
    assert chosen[1]["chosen_on"]["seed"] == 7 and chosen[1]["chosen_on"]["metric"] == "mmhm"


def test_the_choice_goes_by_the_metric_and_the_budget_asked_for(lucky, board):
    _, chosen, _ = board("--select-on", "7", "--sort", "nfe", "--json")
    assert {row["steps"] for row in chosen} == {1}
    _, chosen, _ = board("--select-on", "7", "--at-steps", "4", "--json")
    assert [(row["model"], row["steps"]) for row in chosen] == [("lucky", 4), ("steady", 4)]
    code, text, _ = board("--select-on", "7")
    assert code == 0 and "seed 0, settings chosen on seed 7 by mmhm" in text


def test_a_setting_that_is_not_measured_on_the_other_seed_is_named(lucky, board):
    lucky.add("alone", values(1.0), seed=7, ranking="k7")
    lucky.write()
    code, _, err = board("--select-on", "7")
    assert code == 0 and "alone, 1 step, cfg 1: chosen on seed 7, but not measured on another" in err
    code, _, err = board("--select-on", "9")
    assert code == 2 and "no finished row of seed 9 to choose by; 'bench run --select-on 9' measures them" in err
    assert "use one of the two" in board("--select-on", "7", "--all")[2]


def test_random_weights_are_never_chosen(lucky):
    lucky.add("noise", values(0.1), seed=7, ranking="k7", random_weights=True)
    with connect(lucky.write()) as connection:
        choices = chosen_on(rows(connection), 7, "fid")
    assert {choice.chosen.cell["model"] for choice in choices} == {"lucky", "steady"}


def test_models_meet_at_equal_evaluations_seconds_and_steps(lucky, board):
    with connect(lucky.path) as connection:
        found = [row for row in rows(connection) if row.cell["seed"] == 0]

    def best(**budget):
        return [(row.cell["model"], row.cell["steps"]) for row in best_of_each(within_budget(found, **budget), "fid")]

    assert best() == [("lucky", 4), ("steady", 1)]
    assert best(nfe=1) == [("steady", 1), ("lucky", 1)]
    assert len(within_budget(found, nfe=4)) == 3  # the guide's 2 evaluations count
    assert len(within_budget(found, nfe=6)) == 4
    assert best(seconds=0.1) == [("steady", 1), ("lucky", 1)]
    assert best(steps=4) == [("lucky", 4), ("steady", 4)]
    code, text, _ = board("--at-nfe", "1")
    assert code == 0 and "at most 1 network evaluations per image" in text
    assert "no finished rows" in board("--at-nfe", "0.5")[2]


def test_without_mmhm_rows_are_ordered_and_chosen_by_fid(synthetic, board):
    database = synthetic()
    for seed, fids in ((0, (3.0, 1.0, 2.0)), (7, (1.0, 2.0, 3.0))):
        for steps, fid in enumerate(fids, 1):
            database.add("model", {"fid": fid, "is": 1.0}, seed=seed, ranking=f"k{seed}", steps=steps)
    database.write()
    assert [(row["seed"], row["steps"]) for row in board("--json")[1]] == [(0, 2), (7, 1)]
    (chosen,) = board("--select-on", "7", "--json")[1]
    assert (chosen["seed"], chosen["steps"], chosen["chosen_on"]["metric"]) == (0, 1, "fid")
    ordered = board("--all", "--json")[1]
    assert [row["steps"] for row in ordered] == [2, 3, 1, 1, 2, 3]  # ranking by ranking, never mixed


def test_rows_without_a_measured_cost_fit_no_budget(synthetic):
    database = synthetic()
    database.add("folder", values(1.0), steps=None, cfg=None, nfe=None, images_per_second=None)
    with connect(database.write()) as connection:
        (row,) = rows(connection)
    assert within_budget([row], nfe=1e9) == within_budget([row], seconds=1e9) == within_budget([row], steps=1) == []


def test_composites_stand_side_by_side_and_say_where_they_disagree(synthetic, board):
    database = synthetic()
    for model, row in {"a": (4, 280, 28, 20.6), "b": (8, 330, 29, 20.9), "c": (20, 390, 30.2, 21.6)}.items():
        database.add(model, dict(zip(("fid", "is", "clip", "pick"), map(float, row), strict=True)))
    database.write()
    _, (ranking,), _ = board("--composites", "--json")
    assert [row["model"] for row in ranking["rows"]] == ["b", "c", "a"]
    assert [row["bottleneck"] for row in ranking["rows"][:2]] == ["pick", "fid"]
    assert ranking["bounds"]["fid"] == [4.0, 20.0] and ranking["correlation"]["fid"]["is"] == pytest.approx(-1)
    _, text, _ = board("--composites")
    assert "mean rank: orders 1 of 3 pairs differently from MMHM" in text
    assert "geometric mean: orders 0 of 3 pairs" in text
    assert "bounds, rows, not clipped: fid 4 .. 20" in text


def test_failed_samples_have_their_own_column_and_failed_cells_a_line(synthetic, board):
    database = synthetic(composite=FROZEN)
    database.add("sound", values(1.0))
    database.add("broken", values(2.0), failures=3)
    database.add("dead", {}, status="failed", failures=5, reason="5 of samples 0..9 contain NaN or infinite values")
    database.write()
    _, text, err = board()
    header, first, second = text.splitlines()[1:4]
    assert header.split()[-1] == "failed" and first.split()[-1] == "0" and second.split()[-1] == "3"
    assert "failed: dead, 1 step, cfg 1: 5 of samples 0..9 contain NaN" in err


def test_a_run_counts_the_samples_that_broke_a_cell(measure, monkeypatch):
    sound = Adapter.sample

    def spoiled(self, *arguments, **settings):
        images = sound(self, *arguments, **settings).clone()
        images[:3] = float("nan")
        return images

    monkeypatch.setattr(Adapter, "sample", spoiled)
    with connect(measure().database) as connection:
        (row,) = rows(connection, status="failed")
    assert row.cell["failures"] == 3 and "3 of samples 0..49" in row.cell["reason"]


def test_a_run_measures_the_plan_on_the_selection_seed_too(digits_request, measure, tmp_path):
    cells = make_plan(digits_request(steps=(1, 2), select_on=7), "")
    assert sorted((cell.steps, cell.seed, cell.selection) for cell in cells) == [
        (1, 7, True), (1, 2026, False), (2, 7, True), (2, 2026, False),
    ]  # fmt: skip
    alone = {cell.cell_id for cell in make_plan(digits_request(steps=(1, 2)), "")}
    assert alone == {cell.cell_id for cell in cells if not cell.selection}
    with pytest.raises(BenchError, match="--select-on: 2026 is a seed that results are reported on"):
        make_plan(digits_request(select_on=2026), "")
    with connect(measure(steps=(1, 2), select_on=7).database) as connection:
        found = rows(connection)
    (choice,) = chosen_on(found, 7)
    assert choice.chosen.cell["seed"] == 7
    assert [row.cell["seed"] for row in choice.reported] == [2026]
    assert choice.reported[0].cell["steps"] == choice.chosen.cell["steps"]


def test_the_closing_table_says_on_what_the_choice_was_made(capsys, tmp_path):
    words = "run --model digits-flow-small --steps 1,2 --num-samples 100 --workers 1 --select-on 7 --runs-dir"
    with pytest.raises(SystemExit) as stop:
        main([*words.split(), str(tmp_path / "runs")])
    err = capsys.readouterr().err
    assert not stop.value.code
    assert "Best setting of each model by MMHM, chosen on seed 7 alone" in err
    with pytest.raises(SystemExit) as stop:
        main([*words.split(), str(tmp_path / "runs"), "--random-weights"])
    assert stop.value.code == 2 and "there is nothing to choose" in capsys.readouterr().err
