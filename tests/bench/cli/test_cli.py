"""What people type, and what they get for it: one line, an exit code, never a traceback."""

import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from bench.cli import main
from results.store import connect, write_cell


@pytest.fixture
def bench(capsys, tmp_path, monkeypatch):
    """Run a command in this process; return (exit code, stdout, stderr)."""
    monkeypatch.setenv("BENCH_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out = capsys.readouterr()
        return stop.value.code or 0, out.out, out.err

    return call


SMALL = [
    "run",
    "--model",
    "digits-flow-small",
    "--steps",
    "2",
    "--cfg",
    "1,1.5",
    "--num-samples",
    "200",
    "--workers",
    "1",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A runs directory with two measured cells."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    with pytest.raises(SystemExit) as stop:
        main([*SMALL, "--runs-dir", str(runs)])
    assert not stop.value.code
    return runs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--model", "digits-flwo"], "unknown model 'digits-flwo': did you mean digits-flow"),
        (["run", "--protocol", "digit"], "unknown protocol 'digit': did you mean digits"),
        (["run", "--protocol", "nowhere.toml"], "protocol nowhere.toml: cannot be read"),
        (["run", "--steps", "0"], "--steps: 0 is not above zero"),
        (["run", "--steps", "1,2.5"], "--steps: '2.5' is not an integer"),
        (["run", "--steps", ","], "--steps: the list is empty"),
        (["run", "--cfg", "nan"], "--cfg: 'nan' is not finite"),
        (["run", "--cfg", "strong"], "--cfg: 'strong' is not a number"),
        (["run", "--device", "gpu9"], "unknown device 'gpu9'"),
        (["run", "--dtype", "float8"], "unknown dtype 'float8': did you mean float"),
        (["run", "--sampler", "best"], "--sampler: 'best' is unknown"),
        (["run", "--option", "x"], "--option: 'x' is not of the form key=value"),
        (["run", "--model", "digits-flow", "--option", "speed=2"], "unknown sampler setting 'speed'; it takes:"),
        (
            ["run", "--model", "sit-xl", "--protocol", "digits"],
            "model 'sit-xl' makes 256-pixel images, protocol 'digits' judges 8",
        ),
        (["run", "--model", "shortcut-celeba-b"], "its card names no home protocol; choose one with --protocol"),
        (["fetch"], "fetch: name models with --model or a protocol"),
        (["run", "--executor", "slrm"], "unknown executor 'slrm': did you mean slurm"),
        (["run", "--address", "h:1"], "--address: executor 'local' has no cluster; leave it out"),
        (["run", "--shards", "4/3"], "--shards: '4/3' is not one share of several; write for example 1/3"),
        (["run", "--num-samples", "1"], "--num-samples"),
        (["run", "--unknown"], "No such option"),
        (["show", "digits-fow"], "did you mean digits-flow"),
        (["leaderboard"], "no database here; 'bench run' creates one"),
        (["report"], "no database here"),
        (["compare", "a", "b"], "no database here"),
        (["export", "metrics"], "no database here"),
        (["reindex"], "no finished cells to index"),
        (["parity", "nowhere"], "no case.json here"),
        (["score", "nowhere"], "does not exist"),
        (["check"], "use either --baseline FILE to compare, or --write FILE"),
        (["check", "--baseline", "nowhere.json"], "baseline nowhere.json: cannot be read"),
        (["models", "--family", "digits-flw"], "unknown family 'digits-flw'"),
        (["adapter", "new", "Bad Name"], "must be lower-case letters"),
        (["adapter", "check", "digits-flwo"], "unknown model"),
        (["adapter", "check", "zebra"], "unknown model 'zebra': 'bench models' lists those that are installed"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(bench, words, message):
    code, out, err = bench(*words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err and out == ""
    assert len(err.strip().splitlines()) == 1 or "Usage" in err


def test_debug_shows_the_traceback(bench):
    with pytest.raises(Exception, match="unknown model"):
        main(["run", "--model", "nothing", "--debug"])


def test_a_run_says_what_it_did_and_what_to_type_next(bench):
    code, out, err = bench(*SMALL)
    assert code == 0 and out == ""
    assert "2 rows, 400 samples to draw" in err
    assert "Best setting of each model by MMHM" in err and "digits-flow-small" in err
    assert "Database: " in err and "Next: bench report" in err
    assert "2 rows, 2 already measured" in bench(*SMALL)[2]


def test_a_dry_run_measures_nothing(bench, tmp_path):
    code, out, _ = bench(*SMALL, "--dry-run")
    assert code == 0
    assert out.count("to measure") == 2
    assert not (tmp_path / "runs" / "cells").exists()


def planned(out):
    """Return the cells of each row of a dry run's table, which its sums follow after an empty line."""
    return [line.split() for line in out.partition("\n\n")[0].splitlines()[1:]]


def test_a_dry_run_knows_what_is_measured_and_loads_no_judge(bench, finished, monkeypatch):
    def refused(*arguments, **named):
        raise AssertionError("a judge was loaded")

    monkeypatch.setattr("bench.run.worker.load_judge", refused)
    rows = planned(bench(*SMALL, "--dry-run", "--runs-dir", finished)[1])
    assert [row[1:] for row in rows] == [
        ["digits-flow-small", "2", "1", "2", "200", "2026", "done"],
        ["digits-flow-small", "2", "1.5", "4", "200", "2026", "done"],
    ]
    assert all((finished / "cells" / row[0] / "result.json").exists() for row in rows)
    other = bench(*SMALL, "--dry-run", "--runs-dir", finished, "--seed", "7")[1]
    assert other.count("to measure") == 2 and "done" not in other


def test_a_dry_run_counts_the_evaluations_of_models_that_need_no_memory(bench, cache):
    code, out, _ = bench("run", "--model", "edm2-xxl", "--random-weights", "--dry-run")
    (row,) = [line.split() for line in out.splitlines() if " edm2-xxl " in line and " 63 " in line]
    assert code == 0 and row[1:5] == ["edm2-xxl", "32", "1", "63"]
    assert "missing for edm2-xxl under imagenet-512-adm" in out and "weights of judge 'inception'" in out


def test_a_model_that_the_protocol_does_not_name_is_asked_for_steps_that_it_can_take_and_its_own(bench):
    def steps(model):
        return [row[2] for row in planned(bench("run", "--protocol", "digits-field", "--model", model, "--dry-run")[1])]

    assert steps("digits-dmd") == ["1"]
    assert steps("digits-flow-small") == ["1", "2", "4", "8", "16", "32"]


def test_a_dry_run_names_missing_weights_and_the_command_that_fetches_them(bench, cache):
    code, out, _ = bench("run", "--protocol", "imagenet-256-adm", "--model", "soflow-xl-2", "--steps", "1", "--dry-run")
    assert code == 0
    assert "weights of soflow-xl-2" in out
    assert "bench fetch --model soflow-xl-2 --protocol imagenet-256-adm" in out


def test_a_scale_for_a_model_without_guidance_is_refused_not_replaced(bench):
    words = ("run", "--model", "digits-meanflow", "--steps", "1", "--num-samples", "20", "--dry-run")
    code, out, _ = bench(*words, "--cfg", "3")
    assert code == 0 and "digits-meanflow takes no guidance (cfg must be 1)" in out and "to measure" not in out
    code, out, _ = bench(*words, "--cfg", "1,3")
    assert code == 0 and out.count("digits-meanflow") == 1 and "to measure" in out


def test_the_leaderboard_is_data_with_json(bench, finished):
    code, out, _ = bench("leaderboard", "--all", "--sort", "fid", "--json", "--runs-dir", finished)
    table = json.loads(out)
    assert code == 0
    values = [row["metrics"]["fid"]["value"] for row in table]
    assert len(values) == 2 and values == sorted(values)
    assert all(
        row["metrics"]["fid"]["low"] < row["metrics"]["fid"]["value"] < row["metrics"]["fid"]["high"] for row in table
    )


def test_students_are_shown_beside_their_teachers_with_data_for_programs(bench, finished):
    code, _, err = bench("leaderboard", "--teachers", "--runs-dir", finished)
    assert code == 2 and "no finished row here is a student's" in err and "--model STUDENT,TEACHER" in err
    assert json.loads(bench("leaderboard", "--teachers", "--json", "--runs-dir", finished)[1]) == []
    code, _, err = bench("leaderboard", "--teachers", "--at-nfe", "4", "--runs-dir", finished)
    assert code == 2 and "--teachers compares all settings of student and teacher: leave out --at-nfe" in err


def test_an_unknown_metric_names_the_known_ones(bench, finished):
    code, _, err = bench("leaderboard", "--sort", "fjd", "--runs-dir", finished)
    assert code == 2 and "unknown metric 'fjd': the metrics here are accuracy, clip, fd_cross_check, fid" in err


def test_compare_pairs_the_same_noise(bench, finished):
    code, out, _ = bench(
        "compare", "digits-flow-small@2@1.5", "digits-flow-small@2@1", "--json", "--runs-dir", finished
    )
    differences = {row["metric"]: row for row in json.loads(out)}
    assert code == 0
    assert set(differences) >= {"fid", "is", "clip", "pick"}
    assert all(row["low"] <= row["difference"] <= row["high"] for row in differences.values())
    ambiguous = bench("compare", "digits-flow-small@2", "digits-flow-small@2@1", "--runs-dir", finished)
    assert "matches 2 rows" in ambiguous[2]


def test_power_says_what_more_samples_of_a_pilot_would_find(bench, finished):
    rows = ("digits-flow-small@2@1.5", "digits-flow-small@2@1")
    code, out, _ = bench("power", *rows, "--n", "10000", "--json", "--runs-dir", finished)
    found = {row["metric"]: row for row in json.loads(out)}
    assert code == 0 and set(found) >= {"fid", "is", "clip", "pick"}
    assert all(row["samples"] == 10000 and row["resolves"] > 0 and row["gain"] > 0 for row in found.values())
    code, out, _ = bench("power", *rows, "--metric", "clip", "--difference", "0.5", "--runs-dir", finished)
    assert code == 0 and "samples needed" in out
    code, _, error = bench("power", *rows, "--difference", "0.5", "--runs-dir", finished)
    assert code == 2 and "name the metric with --metric" in error


def test_a_stored_command_repeats_its_row(bench, finished, tmp_path):
    import shlex

    _, out, _ = bench("leaderboard", "--all", "--json", "--runs-dir", finished)
    for row in json.loads(out):
        words = shlex.split(row["command"])[1:]
        assert bench(*words, "--workers", "1", "--runs-dir", tmp_path / "again")[0] == 0
    _, again, _ = bench("leaderboard", "--all", "--json", "--runs-dir", tmp_path / "again")
    first, second = ({row["cell_id"]: row["metrics"] for row in json.loads(text)} for text in (out, again))
    assert first == second


def test_show_tells_all_of_a_cell(bench, finished):
    cell = json.loads(bench("leaderboard", "--json", "--runs-dir", finished)[1])[0]["cell_id"]
    code, out, _ = bench("show", cell[:8], "--runs-dir", finished)
    assert code == 0 and "weights_sha256" in out and "command: bench run" in out


def test_merge_reindex_and_export(bench, finished, tmp_path):
    assert bench("merge", finished / "bench.duckdb")[2].startswith("2 rows added")
    assert bench("merge", finished / "bench.duckdb")[2].startswith("0 rows added")
    code, out, err = bench("compare", "digits-flow-small@2@1", "digits-flow-small@2@1.5")
    assert code == 0 and "fid" in out + err
    code, out, err = bench(*SMALL)
    assert code == 0 and "2 reused" in out + err, err  # a merged row is not measured again
    code, _, err = bench("export", "cells", "--format", "csv", "--output", tmp_path / "cells.csv")
    assert code == 0 and err.startswith("2 rows")
    shutil.copytree(finished, tmp_path / "copy")
    assert "2 rows indexed" in bench("reindex", "--runs-dir", tmp_path / "copy")[2]


def test_doctor_finds_the_embedded_default_ready(bench):
    code, out, err = bench("doctor", "--json")
    assert code == 0, err or out
    states = {row["subject"]: row["state"] for row in json.loads(out)}
    assert code == 0 and states["protocol digits"] == "ready" and states["database"] == "missing"


def test_check_passes_on_its_own_baseline_and_names_what_moved(bench, tmp_path, monkeypatch):
    path = tmp_path / "baseline.json"
    subset = ["--model", "digits-flow-small", "--steps", "2", "--num-samples", "200", "--workers", "1"]
    assert bench("check", "--write", path, *subset)[0] == 0
    code, out, err = bench("check", "--baseline", path, "--workers", "1", "--json")
    assert code == 0 and "check passed: 9 metrics and 4 costs" in err
    records = json.loads(out)
    assert len(records) == 13 and {record["verdict"] for record in records} == {"same"}
    baseline = json.loads(path.read_text())
    (cell,) = baseline["cells"]
    baseline["cells"][cell]["fid"] = {"value": 1.0, "low": 0.9, "high": 1.1}
    baseline["costs"][cell]["nfe"] = 1.0
    path.write_text(json.dumps(baseline))
    page, junit = tmp_path / "page.md", tmp_path / "junit.xml"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    code, _, err = bench("check", "--baseline", path, "--workers", "1", "--junit", junit)
    assert code == 1
    assert f"{cell}: fid moved by " in err and "check failed: 1 of 9 metrics moved, 1 of 4 costs changed" in err
    assert f"{cell}: nfe moved by " in err and "::error file=" in err and ",title=fid worse::" in err
    assert "| nfe |" in page.read_text() and "**worse**" in page.read_text()
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("13", "2")


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({"digests": {"protocol": "0"}}, [], "no longer comparable, because its inputs have changed: protocol (0 ->"),
        ({"digests": {"protocol": "0"}}, ["--accept", "weights,harness"], "--accept protocol"),
        ({}, ["--seed", "3"], "--seed: is fixed by the baseline"),
        ({}, ["--model", "digits-dmd"], "has no digits-dmd, but digits-flow-small"),
        ({}, ["--cfg", "7"], "contains nothing of this subset"),
        ({}, ["--tolerance", "fid"], "not of the form METRIC=SIZE"),
        ({}, ["--tolerance", "fld=1"], "the baseline has no 'fld'; did you mean fid?"),
        ({}, ["--accept", "wieghts"], "did you mean weights?"),
    ],
)
def test_check_refuses_what_it_cannot_compare_before_sampling(bench, tmp_path, change, options, reason):
    content = {
        "format": 2, "protocol": "digits", "models": ["digits-flow-small"], "steps": [2], "num_samples": 20,
        "cells": {"digits-flow-small 2 steps cfg 1.25": {"fid": {"value": 1.0, "low": 0.9, "high": 1.1}}},
    }  # fmt: skip
    (tmp_path / "b.json").write_text(json.dumps(content | change))
    code, _, err = bench("check", "--baseline", tmp_path / "b.json", "--workers", "1", *options)
    assert code == 2 and reason in err and "to draw" not in err


def digits_folder(path, count=40):
    from protocols.digits.data import CLASS_NAMES, load_split

    images, labels = load_split("train")
    for index in range(count):
        folder = path / CLASS_NAMES[int(labels[index])]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(folder / f"{index:03d}.png")


def test_score_judges_a_folder_as_one_row(bench, tmp_path):
    digits_folder(tmp_path / "mine")
    code, _, err = bench("score", tmp_path / "mine", "--name", "somebody")
    assert code == 0 and "somebody" in err
    (row,) = json.loads(bench("leaderboard", "--json")[1])
    assert row["metrics"]["accuracy"]["value"] > 0.9 and row["num_samples"] == 40 and row["steps"] is None


def test_score_without_labels_skips_what_needs_prompts(bench, tmp_path):
    from protocols.digits.data import load_split

    path = tmp_path / "images.npz"
    np.savez(path, load_split("train").images[:50].permute(0, 2, 3, 1).numpy())
    assert bench("score", path)[0] == 0
    cell = json.loads(bench("leaderboard", "--json", "--sort", "fid")[1])[0]
    assert set(cell["metrics"]) == {"fd_cross_check", "fid", "is", "kid", "precision", "recall"}
    _, out, _ = bench("show", cell["cell_id"], "--json")
    assert {"clip", "pick", "accuracy"} <= set(json.loads(out)["skipped_metrics"])


def test_no_row_stops_the_leaderboard(bench, finished, tmp_path):
    """Rows without the metric come last, in every order; only a name that no row has is unknown."""
    assert bench("merge", finished)[0] == 0
    np.savez(tmp_path / "two.npz", np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8))
    assert bench("score", tmp_path / "two.npz", "--name", "two")[0] == 0
    assert bench("run", "--protocol", "gaussian", "--steps", "1", "--cfg", "1", "--num-samples", "20")[0] == 0
    for sort in ("clip", "is", "accuracy", "fid", "mmhm"):
        code, out, err = bench("leaderboard", "--all", "--sort", sort)
        assert code == 0, err
        said = out + err
        assert "two" in said and "gaussian" in said and "digits-flow-small" in said
        if sort in ("clip", "accuracy", "mmhm"):
            assert said.index("digits-flow-small") < min(said.index("two"), said.index(" gaussian"))
            assert f"no row here has '{sort}'" in said
    assert bench("leaderboard", "--sort", "fjd")[0] == 2


def test_an_unreadable_image_is_named_and_nothing_is_half_scored(bench, tmp_path):
    digits_folder(tmp_path / "mine", 20)
    broken = tmp_path / "mine" / "zero" / "999.png"
    broken.parent.mkdir(exist_ok=True)
    broken.write_bytes(b"\x89PNG\r\n\x1a\n torn")
    code, _, err = bench("score", tmp_path / "mine")
    assert code == 2 and str(broken) in err
    assert not list((tmp_path / "runs").glob("cells/*"))


def test_images_of_another_size_or_class_are_refused(bench, tmp_path):
    (tmp_path / "big").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / "big" / name)
    assert "protocol 'digits' judges 8x8" in bench("score", tmp_path / "big")[2]
    for folder in ("cat", "three"):
        (tmp_path / "other" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "other" / folder / "a.png")
    assert "'cat' does not match any class" in bench("score", tmp_path / "other")[2]


def test_adapter_new_writes_what_adapter_check_accepts(bench, tmp_path, monkeypatch):
    from bench.models.cards import load_card
    from bench.models.conformance import check_adapter

    code, _, err = bench("adapter", "new", "my-model", "--directory", tmp_path / "my-model")
    assert code == 0 and "bench adapter check my-model" in err
    monkeypatch.syspath_prepend(tmp_path / "my-model")
    from my_model.adapter import MyModel

    monkeypatch.setattr("bench.models.registry.family_class", lambda family: MyModel)
    findings = check_adapter(load_card(tmp_path / "my-model/my_model/cards/my-model.toml"))
    assert [finding for finding in findings if not finding.ok] == []
    assert (
        "exists and is not an empty folder"
        in bench("adapter", "new", "my-model", "--directory", tmp_path / "my-model")[2]
    )


def test_adapter_check_names_what_does_not_hold(bench, monkeypatch):
    import torch

    from adapters.digits.adapters import DigitsFlow

    honest = DigitsFlow.generate
    monkeypatch.setattr(DigitsFlow, "generate", lambda self, *a, **k: honest(self, *a, **k) + 0.1 * torch.randn(1))
    code, out, err = bench("adapter", "check", "digits-flow-small")
    assert code == 1 and "clauses failed" in err
    failed = [line for line in out.splitlines() if line.startswith("FAIL")]
    assert any("draws no random numbers" in line for line in failed)
    assert any("any batch split" in line for line in failed)


@pytest.mark.parametrize("model", ["digits-flow-small", "digits-ucgm-few", "digits-dmd", "digits-meanflow"])
def test_the_embedded_models_keep_the_contract(bench, model):
    code, out, _ = bench("adapter", "check", model)
    assert code == 0, out


def test_show_lists_the_sampler_settings_of_a_model(bench):
    code, out, _ = bench("show", "ucgm-xl", "--json")
    settings = {setting["name"]: setting for setting in json.loads(out)["settings"]}
    assert code == 0
    assert settings["stochast_ratio"]["allowed"] == "a number in [0, 1] or Auto"
    assert settings["transport"]["choices"][:2] == ["Linear", "ReLinear"]
    assert settings["eta"]["default"] == 0.001
    assert all(setting["meaning"] for setting in settings.values())
    code, out, _ = bench("show", "digits-flow")
    assert "solver: one of euler, midpoint, heun2, heun3, rk4" in out
    assert "[default: euler]" in out
    assert "latent_shape: [1, 8, 8]" in out and "worker" not in out and "(1" not in out
    _, out, _ = bench("show", "digits-ucgm")
    assert "steps: 1 to 4" in out and "steps: 5 and more" in out


@pytest.mark.parametrize(("option", "line"), [
    ("solver=eulr", "digits-flow: sampler setting solver must be one of euler"),
    ("slover=euler", "digits-flow: unknown sampler setting 'slover'; did you mean solver?"),
])  # fmt: skip
def test_a_wrong_option_is_met_before_the_first_sample(bench, option, line):
    code, _, err = bench("run", "--model", "digits-flow", "--steps", "1", "--option", option)
    assert code == 2
    assert line in err and "did you mean" in err


def test_claims_are_shown_apart_and_never_ranked(bench, tmp_path):
    cell = {
        "cell_id": "a" * 20, "run_id": "r", "model": "m", "checkpoint": "m", "family": "f", "protocol": "imagenet-64",
        "protocol_digest": "d", "ranking": "k", "status": "done", "steps": 1, "cfg": 1.0, "sampler": "native",
        "settings": {}, "options": {}, "dtype": "float32", "seed": 0, "num_samples": 100, "batch_size": 10,
        "off_regime": False, "random_weights": False, "nfe": 1.0, "failures": 0, "device": "cpu",
        "latent_shape": "3x64x64", "command": "bench run", "started": "2026-01-01", "finished": "2026-01-01",
    }  # fmt: skip
    fid = {"metric": "fid", "value": 3.0, "low": 2.9, "high": 3.1, "n": 100, "method": "", "judge": "j"}
    definition = {"reference": {"name": "adm-imagenet-64"}}
    protocol = {"digest": "d", "name": "imagenet-64", "title": "t", "resolution": 64, "definition": definition}
    with connect(tmp_path / "bench.duckdb", write=True) as connection:
        write_cell(connection, {"cell": cell, "metrics": [{**fid, "judge_digest": ""}], "protocol": protocol})
    plain = bench("leaderboard", "--json", "--runs-dir", tmp_path)[1]
    code, out, _ = bench("leaderboard", "--claims", "--json", "--runs-dir", tmp_path)
    measured, *claims = json.loads(out)
    assert code == 0 and [measured] == json.loads(plain)
    assert all(claim["claim"] and claim["model"] is None and claim["source"] for claim in claims)
    assert {"DMD", "sCM", "MSD"} <= {claim["system"] for claim in claims}
    lines = bench("leaderboard", "--claims", "--runs-dir", tmp_path)[1].splitlines()
    (line,) = [line for line in lines if " DMD " in line]
    assert line.split()[:2] == ["claim", "DMD"] and "2.62" in line and "2023-11" in line
    assert next(place for place, line in enumerate(lines) if line.startswith("claim")) > 2
    assert "DMD" not in bench("leaderboard", "--runs-dir", tmp_path)[1]


def test_models_are_listed_by_family_teacher_home_and_licence(bench):
    def names(*words):
        return {card["name"] for card in json.loads(bench("models", *words, "--json")[1])}

    assert names("--family", "facm", "--teacher", "facm-xl-flow") == {"facm-xl-100ep", "facm-xl-250ep", "facm-xl-400ep"}
    assert {"digits-dmd", "digits-shortcut"} == names("--teacher", "digits-flow", "--home", "digits") - {
        "digits-meanflow", "digits-ucgm-few"
    }  # fmt: skip
    assert names("--licence", "apache", "--family", "facm") == names("--family", "facm")
    code, _, err = bench("models", "--teacher", "digits-flwo")
    assert code == 2 and "unknown teacher 'digits-flwo': did you mean digits-flow" in err
