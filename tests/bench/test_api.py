"""The API gives typed results and tables, and its notebook shows what it gives."""

import ast
import contextlib
import io
import json
import multiprocessing
import shutil
from pathlib import Path

import pandas as pd
import pytest

from bench import api
from bench.cli import main
from results.rows import Row
from results.standings import View

NOTEBOOK = Path(__file__).parents[2] / "docs" / "api.ipynb"


def executed(source, names):
    """Run a cell as a notebook does and return what it prints and the value of its last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return printed.getvalue(), value


@pytest.fixture(scope="module")
def notebook():
    """What each code cell of the notebook printed and gave, in order, and the names that it left."""
    names = {}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    outcomes = [executed("".join(cell["source"]), names) for cell in cells]
    yield outcomes, names
    shutil.rmtree(names["runs"].parent)


def test_the_notebook_runs_and_gives_what_it_says(notebook):
    (_, measured, unsupported, reused, fid, board, compared, noise, wrong), _ = notebook
    assert list(measured[1].columns) == ["model", "steps", "nfe", "fid", "fid_low", "fid_high"]
    assert set(zip(measured[1].model, measured[1].steps, strict=True)) == {
        ("digits-flow-small", 1),
        ("digits-flow-small", 4),
        ("digits-dmd", 1),
    }
    assert [label for label, _ in unsupported[1]] == ["digits-dmd 4 steps"] and reused[1] == 1
    assert fid[1][2:] == (True, 200)
    assert list(board[1].fid) == sorted(board[1].fid) and len(board[1]) == 3
    assert set(compared[1].verdict) <= {"a is better", "b is better", "tied", "better", "worse"}
    assert noise[1] and "did you mean digits-flow" in wrong[0] and len(wrong[0].splitlines()) == 1


def test_results_are_typed_and_the_commands_say_the_same(notebook, capsys):
    runs = notebook[1]["runs"]
    board = api.leaderboard(runs, View(every=True, sort="fid"))
    assert all(isinstance(row, Row) for row in board.rows) and isinstance(board.frame(), pd.DataFrame)
    with pytest.raises(SystemExit):
        main(["leaderboard", "--all", "--sort", "fid", "--json", "--runs-dir", str(runs)])
    said = json.loads(capsys.readouterr().out)
    assert [row["cell_id"] for row in said] == [row.cell["cell_id"] for row in board.rows]
    frame = board.frame().set_index("cell_id")
    assert all(frame.fid[row["cell_id"]] == row["metrics"]["fid"]["value"] for row in said)
    with pytest.raises(SystemExit):
        main(["compare", "digits-flow-small@1", "digits-flow-small@4", "--json", "--runs-dir", str(runs)])
    pairs = json.loads(capsys.readouterr().out)
    assert [pair["difference"] for pair in pairs] == list(notebook[1]["difference"].frame().difference)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda runs: api.run("nobody", runs=runs), "unknown model 'nobody'"),
        (lambda runs: api.run("digits-flow", sampler="mine", runs=runs), "--sampler: 'mine' is unknown"),
        (lambda runs: api.run("digits-flow", seed=1, seeds=(1, 2), runs=runs), "use one of the two"),
        (lambda runs: api.run("digits-flow", protocol="nothing", runs=runs), "nothing"),
        (lambda runs: api.leaderboard(runs), "no database here"),
        (lambda runs: api.leaderboard(runs, View(), sort="fid"), "give a view, or its parts"),
        (lambda runs: api.compare("a", "b", runs=runs), "no database here"),
        (lambda runs: api.score(runs / "none", runs=runs), "none"),
    ],
)
def test_faults_are_one_line(tmp_path, call, reason):
    with pytest.raises(api.BenchError, match=reason) as fault:
        call(tmp_path / "runs")
    assert "\n" not in str(fault.value)


def test_a_script_that_workers_read_again_is_told_so_instead_of_waiting_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit, match="if __name__ == "):
        api.run("digits-dmd", steps=1, num_samples=20, runs=tmp_path)
    assert not (tmp_path / "cells").exists()


def test_devices_without_judges_are_refused_by_name():
    from bench.models.loading import parse_device

    for name in ("mps", "meta", "xpu:0"):
        with pytest.raises(api.BenchError, match=f"device '{name}': .*use --device cpu"):
            parse_device(name)


def test_a_frame_of_nothing_has_its_columns():
    assert list(api.frame([]).columns)[:2] == ["cell_id", "model"]
