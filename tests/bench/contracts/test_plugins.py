"""Plug-ins of other distributions: found, named when broken, and never in each other's way."""

import json
import os
import subprocess
import sys

import pytest

from bench.contracts import plugins

CARD = """
name = "{name}"
family = "gaussian"
title = "{name}"
resolution = 4
num_classes = 2
latent_shape = [3, 4, 4]
"""


def point(group, value, name="x"):
    return f"[bench.{group}]\n{name} = {value}\n"


def package(cards, **more):
    return {"pack/__init__.py": ""} | {f"pack/{name}.toml": text for name, text in cards.items()} | more


BROKEN = {
    "import-error": (point("cards", "nosuchpackage"), {}, "ModuleNotFoundError"),
    "syntax-error": (point("cards", "mod"), {"mod/__init__.py": "def ("}, "SyntaxError"),
    "raises": (point("cards", "mod"), {"mod/__init__.py": "raise RuntimeError('no\\nluck \\x1b[31m')"}, "no luck"),
    "exits": (point("cards", "mod"), {"mod/__init__.py": "import sys\nsys.exit(0)"}, "SystemExit"),
    "base-exception": (point("cards", "mod"), {"mod/__init__.py": "raise GeneratorExit"}, "GeneratorExit"),
    "bad-toml": (point("cards", "pack"), package({"a": "name = = 1"}), "not valid TOML"),
    "bad-card": (point("cards", "pack"), package({"a": 'name = "oops"'}), "a.toml"),
    "not-text": (point("cards", "pack"), package({"a": "name = 5"}), "a.toml"),
    "taken-name": (point("cards", "pack"), package({"a": CARD.format(name="gaussian")}), "'gaussian' is taken"),
    "no-package": (point("cards", "mod"), {"mod.py": ""}, "mod is not a package"),
    "no-cards": (point("cards", "pack"), package({}), "has no cards"),
    "not-an-object": (point("cards", "json:nothing"), {}, "AttributeError"),
    "malformed-value": (point("cards", "!! ??"), {}, "Error"),
    "malformed-points": ("[bench.cards]\nno equals sign\n", {}, "entry_points.txt"),
    "not-utf8": (b"[bench.cards]\nx = \xff\xfe\n", {}, "UnicodeDecodeError"),
}


UNREADABLE = ("malformed-points", "not-utf8")
"""torch, triton and pydantic read the entry points of every distribution themselves, and fail on these."""
READABLE = {name: case for name, case in BROKEN.items() if name not in UNREADABLE}


def models_of(done):
    return {card["name"] for card in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def models(tmp_path_factory, run_bench):
    return models_of(run_bench(tmp_path_factory.mktemp("none"), "models", "--json"))


@pytest.mark.parametrize("name", READABLE)
def test_a_broken_distribution_is_one_line_and_stops_nothing(tmp_path, models, name, install, run_bench):
    points, modules, reason = BROKEN[name]
    done = run_bench(install(tmp_path, name, points, **modules), "models", "--json")
    assert done.returncode == 0 and models_of(done) == models
    assert len(done.stderr.splitlines()) == 1 and name in done.stderr and reason in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_distribution_on_which_other_libraries_fail_is_named(tmp_path, install, run_bench, name):
    points, modules, reason = BROKEN[name]
    done = run_bench(install(tmp_path, name, points, **modules), "doctor")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"'{name}'" in done.stderr and reason in done.stderr


def test_a_card_of_a_gigabyte_is_not_read(tmp_path, models, install, run_bench):
    install(tmp_path, "huge", point("cards", "pack"), **package({"a": ""}))
    os.truncate(tmp_path / "pack" / "a.toml", 2**30)
    done = run_bench(tmp_path, "models", "--json")
    assert done.returncode == 0 and models_of(done) == models
    assert len(done.stderr.splitlines()) == 1 and "larger than 1 MiB" in done.stderr


def test_a_bad_card_leaves_its_neighbours(tmp_path, models, install, run_bench):
    cards = {"a": 'name = "oops"', "b": CARD.format(name="mine"), "c": CARD.format(name="mine")}
    done = run_bench(install(tmp_path, "half", point("cards", "pack"), **package(cards)), "models", "--json")
    assert models_of(done) == models | {"mine"}
    assert len(done.stderr.splitlines()) == 1 and "half" in done.stderr


def test_what_a_plug_in_prints_stays_out_of_the_data(tmp_path, models, install, run_bench):
    loud = "import os\nprint('hello')\nos.write(1, b'hello from C')"
    modules = package({"b": CARD.format(name="mine")}) | {"pack/__init__.py": loud}
    done = run_bench(install(tmp_path, "loud", point("cards", "pack"), **modules), "models", "--json")
    assert models_of(done) == models | {"mine"} and "hello\n" in done.stderr and "hello from C" in done.stderr


@pytest.fixture(scope="module")
def all_broken(tmp_path_factory, install):
    """One folder with every broken distribution, and some whose other nouns are broken."""
    site = tmp_path_factory.mktemp("site")
    for name, (points, modules, _) in READABLE.items():
        own = f"{name.replace('-', '_')}_"
        files = {path.replace("mod", f"{own}mod").replace("pack", f"{own}pack"): text for path, text in modules.items()}
        points = points.replace("= mod", f"= {own}mod").replace("= pack", f"= {own}pack")
        install(site, name, points, **files)
    for group in GROUPS:
        install(site, f"wrong-{group}", point(group, "json.decoder:NaN", "wrong"))
        install(site, f"twice-{group}", point(group, "json:loads", BUILT_IN[group]))
        install(site, f"exits-{group}", point(group, "leaves", "leaving"))
    (site / "leaves.py").write_text("raise SystemExit(3)")
    return site


BUILT_IN = {
    "adapters": "gaussian",
    "parity": "ucgm",
    "judges": "dinov2",
    "extractors": "protocols.gaussian:Pixels",
    "references": "protocols.gaussian:exact_statistics",
    "metrics": "fid",
    "datasets": "folder",
    "executors": "local",
}
GROUPS = list(BUILT_IN)


def test_doctor_lists_every_broken_distribution_with_what_to_do(all_broken, tmp_path, run_bench):
    done = run_bench(all_broken, "doctor", "--json", "--runs-dir", str(tmp_path))
    found = json.loads(done.stdout)
    broken = [finding for finding in found if finding["state"] == "broken"]
    expected = {*READABLE} | {f"{kind}-{group}" for kind in ("wrong", "twice", "exits") for group in GROUPS}
    assert {finding["subject"].split()[1] for finding in broken} == expected
    assert all(f"pip uninstall {finding['subject'].split()[1]}" in finding["detail"] for finding in broken)
    assert all(len(finding["detail"].splitlines()) == 1 for finding in broken)
    taken = [finding["detail"] for finding in broken if "twice" in finding["subject"]]
    assert all("is already provided by 'fewstep-bench'" in detail for detail in taken)
    (own,) = [finding for finding in found if finding["subject"] == "plug-ins of fewstep-bench"]
    assert all(group in own["detail"] for group in ("cards", *GROUPS))
    assert done.returncode == 1


def test_a_run_a_listing_and_a_leaderboard_go_on_beside_broken_distributions(all_broken, tmp_path, run_bench):
    small = ["--protocol", "gaussian", "--steps", "1", "--num-samples", "40", "--workers", "1"]
    for words in (["run", *small], ["leaderboard", "--protocol", "gaussian"], ["show", "digits-flow"]):
        place = [] if words[0] == "show" else ["--runs-dir", str(tmp_path)]
        done = run_bench(all_broken, *words, *place, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr)
        assert "Traceback" not in done.stderr
        warned = [line for line in done.stderr.splitlines() if line.startswith("Warning: plug-in")]
        assert len(warned) == len({line.split("'")[1] for line in warned})


def test_the_first_distribution_by_name_keeps_a_name(tmp_path, install):
    for name in ("zeta", "alpha"):
        install(
            tmp_path, name, point("executors", f"{name}_module:run", "mine"), **{f"{name}_module.py": "run = print"}
        )
    code = (
        "from bench.run.executors import EXECUTORS\n"
        "print([p.distribution for p in EXECUTORS.plugins() if p.name == 'mine'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "['alpha']"
    assert (
        done.stderr.count("Warning") == 1 and "'zeta'" in done.stderr and "already provided by 'alpha'" in done.stderr
    )


def test_a_broken_plug_in_that_is_asked_for_is_one_line_with_its_distribution(tmp_path, install, run_bench):
    install(
        tmp_path, "broken-executor", point("executors", "leaves:run", "far"), **{"leaves.py": "raise SystemExit(0)"}
    )
    done = run_bench(tmp_path, "run", "--protocol", "gaussian", "--executor", "far", "--num-samples", "40")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "executor 'far'" in done.stderr and "uninstall 'broken-executor'" in done.stderr


def test_every_built_in_plug_in_loads():
    from bench.run.readiness import GROUPS as groups

    for group in groups:
        own = [plugin for plugin in group.plugins() if plugin.distribution == plugins.BUILT_IN]
        assert own
        for plugin in own:
            if group.unique:
                group.load(plugin.name)
