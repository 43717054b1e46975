"""What people see: tables that are whole at any width, marks, hints that help."""

import io
import json
import sys

import pytest
from rich.console import Console

from bench.cli import main
from bench.cli.output import leaderboard_table, plain_table, print_table
from results.comparing import compare_cells
from results.errors import BenchError
from results.moving import find_rows
from results.rows import Row, Value


def row(model="a-model", metrics=("fid", "is", "clip", "pick", "accuracy"), **changes):
    cell = {
        "model": model, "steps": 4, "cfg": 1.0, "nfe": 4.0, "images_per_second": 1234.5, "failures": 0,
        "off_regime": False, "random_weights": False, "sampler": "native", "dtype": "float32", "options": {},
    }  # fmt: skip
    values = {name: Value(12.3456, 12.3, 12.4) for name in metrics}
    rank = {"rank_low": 1, "rank_high": 2, "p_first": 0.5, "mmhm": 0.9, "low": 0.88, "high": 0.92}
    return Row(cell | changes, values, rank)


def printed(table, width):
    out = Console(file=io.StringIO(), width=width)
    print_table(out, table)
    return out.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 60, 80, 100, 120, 160])
def test_the_leaderboard_is_whole_at_any_width(width):
    heading, line = printed(leaderboard_table([row()], width), width)
    shown = heading.split()
    assert shown[:6] == ["rank", "model", "steps", "cfg", "NFE", "FID"] and shown[-1] == "images/s"
    assert line.count("12.35 ± 0.05") == len({"FID", "IS", "CLIP", "Pick", "Accuracy"} & set(shown))
    assert line.rstrip().endswith("1,234")
    assert len(heading) <= max(width, 80)
    assert ("Accuracy" in shown) == (width == 160)


def test_a_narrow_page_shows_the_speed_without_its_interval_and_lines_end_in_no_blanks():
    timing = {"batch_size": 1, "batch": {"median": 1e-3, "low": 9e-4, "high": 1.2e-3}}
    found = [row("a-model-with-a-longer-name", images_per_second=1000.0, timing=timing)]
    wide, narrow = (printed(leaderboard_table(found, width), 300)[1] for width in (300, 80))
    assert wide.endswith("1,000 (833 to 1,111)") and narrow.endswith("1,000")
    assert all(line == line.rstrip() for line in printed(plain_table(["a", "b"], [["x", "y"], ["long", ""]]), 80))


def test_help_names_bounds_that_people_may_run_into():
    from bench.cli.help import _bounded

    assert _bounded("Peak.  [1e-06<=x<=1000000000.0]") == "Peak.  [x>0]"
    assert _bounded("Share.  [default: 0.25; 1e-06<=x<=1.0]") == "Share.  [default: 0.25; 0<x<=1.0]"
    assert _bounded("Workers.  [0<=x<=1024]") == "Workers.  [0<=x<=1024]"
    assert _bounded("Seed.  [0<=x<=9223372036854775807]") == "Seed.  [x>=0]"


def test_what_rows_are_sorted_by_has_a_column():
    assert "KID" in printed(leaderboard_table([row(metrics=("fid", "kid"))], 160, "kid"), 160)[0]
    heading, line = printed(leaderboard_table([row(latency_seconds=0.125)], 200, "latency_seconds"), 200)
    assert "latency, s" in heading and "0.125" in line
    assert printed(leaderboard_table([row()], 200, "fid"), 200)[0].count("FID") == 1


def test_what_sets_a_row_apart_is_told():
    changes = [
        {"random_weights": True}, {"sampler": "plain"}, {"dtype": "bfloat16"}, {"options": {"shift": 2}},
        {"off_regime": True}, {"sampler": "images", "dtype": "uint8"},
    ]  # fmt: skip
    lines = printed(leaderboard_table([row(**change) for change in changes], 200), 200)[1:]
    for line, mark in zip(
        lines, ("(random)", "(plain)", "(bfloat16)", "(shift=2)", "a-model *", "a-model "), strict=True
    ):
        assert mark in line


def test_numbers_never_wrap_and_text_does():
    table = plain_table(["n", "what"], [["1234567890", "word " * 20]], right=["n"])
    lines = printed(table, 20)
    assert "1234567890" in lines[1] and len(lines) > 3


@pytest.fixture
def bench(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_RUNS_DIR", str(tmp_path / "runs"))

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out = capsys.readouterr()
        return stop.value.code or 0, out.out, out.err

    return call


def test_the_version(bench):
    code, out, _ = bench("--version")
    assert code == 0 and out.startswith("fewstep-bench ")


@pytest.mark.parametrize("names", ["", " , "])
def test_an_empty_list_of_models_is_not_all_models(bench, names):
    for command in (["run"], ["check", "--write", "x.json"]):
        code, _, err = bench(*command, "--model", names)
        assert code == 2 and "--model: the list is empty" in err


def test_the_doctor_says_once_what_each_protocol_lacks(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE_DIR", str(tmp_path / "cache"))
    findings = {row["subject"]: row for row in json.loads(bench("doctor", "--json")[1])}
    detail = findings["protocol imagenet-256-adm"]["detail"]
    assert findings["protocol imagenet-256-adm"]["state"] == "missing"
    assert "bench weights fetch judges --protocol imagenet-256-adm" in detail and "bench reference build" in detail
    assert not any(subject.endswith("smoke") for subject in findings)
    assert "bench doctor --protocol NAME" in bench("doctor")[1].splitlines()[-1]
    said = bench("doctor", "--protocol", "imagenet-256-adm")[1].splitlines()
    assert said[1:] == [f"  {command}" for command in findings["protocol imagenet-256-adm"]["commands"]]


def test_debug_shows_where_and_keeps_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("BENCH_DEBUG", "1")
    with pytest.raises(BenchError) as fault:
        main(["show", "nothing", "--debug"])
    with pytest.raises(SystemExit) as end:
        sys.excepthook(fault.type, fault.value, fault.tb)
    assert end.value.code == 2 and "Traceback" in capsys.readouterr().err


def test_a_letter_or_two_is_no_row(synthetic):
    database = synthetic()
    for model in ("one", "other"):
        database.add(model, {"fid": 3.0})
    path = database.write()
    cell = database.records[0]["cell"]["cell_id"]
    with pytest.raises(BenchError, match="no finished row"):
        compare_cells(path, cell[:3], "other")
    with pytest.raises(BenchError, match="no row"):
        find_rows(path.parent, [cell[:3]])


def test_merging_nothing_or_itself_is_refused_and_leaves_nothing(bench, tmp_path, synthetic):
    code, _, err = bench("merge", tmp_path / "nowhere.duckdb")
    assert code == 2 and "no such file" in err and not (tmp_path / "runs" / "bench.duckdb").exists()
    database = synthetic().write()
    code, _, err = bench("merge", database)
    assert code == 2 and "is the database itself" in err


def test_scored_images_do_not_take_the_name_of_a_model(bench, tmp_path):
    code, _, err = bench("score", tmp_path, "--name", "digits-flow")
    assert code == 2 and "is the name of a model; choose another with --name" in err


def test_an_unwritable_place_names_the_option_that_chooses_another(bench, tmp_path, synthetic):
    (tmp_path / "file").write_text("")
    synthetic().write()
    for words, option in (
        (["adapter", "new", "mine", "--directory", tmp_path / "file" / "mine"], "--directory"),
        (["export", "cells", "--output", tmp_path / "file" / "cells.csv"], "--output"),
    ):
        code, _, err = bench(*words)
        assert code == 2 and "cannot be written" in err and option in err


def test_a_database_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    import duckdb

    from results.errors import StoreError
    from results.store import connect

    def refuse(*arguments, **keywords):
        raise duckdb.IOException('IO Error: Cannot open file "bench.duckdb": Permission denied')

    monkeypatch.setattr("results.database.duckdb.connect", refuse)
    (tmp_path / "bench.duckdb").write_text("")
    with pytest.raises(StoreError, match="permission denied; ask its owner"), connect(tmp_path / "bench.duckdb"):
        pass


@pytest.mark.parametrize("width", [80, 160])
def test_the_progress_display_is_whole(width):
    from types import SimpleNamespace

    from bench.cli.progress import RunProgress

    out = Console(file=io.StringIO(), width=width, force_terminal=True)
    cell = SimpleNamespace(label="digits-flow-small 16 steps, cfg 1.25", steps=16)
    progress = RunProgress(out)
    with progress:
        progress.plan(43, 0, 86_000, 1e9)
        progress.shard(cell, 1, 4, 500)
        out.print(progress.bars.get_renderable())
    shown = out.file.getvalue()
    assert "images/s, about" in shown and " left" in shown and "cfg 1.25" in shown
    assert "…" not in shown


def test_columns_without_room_are_named_in_the_order_they_go():
    from bench.cli.output import hidden_columns

    found = [row()]
    assert hidden_columns(found, 1000) == []
    narrow = hidden_columns(found, 10)
    assert narrow[0] == "first" and "MMHM" not in narrow
    shown = printed(leaderboard_table(found, 10), 300)[0]
    assert not set(narrow) & set(shown.split()) and "MMHM" in shown
