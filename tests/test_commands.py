"""Every command that the documentation names is one of the command line's, and runs where that is cheap."""

import os
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from bench.cli import UsageFault, main
from bench.cli.parsing import completed
from bench.models.cards import cards, find_card
from protocols import find_protocol, protocol_files

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]}
HAND_WRITTEN = sorted(set(PAGES) - {"cli.md", "models.md"})
OWN = {"my-model", "my-worker", "my-ddim"}
"""Models that a page makes before it names them."""


def commands_of(text):
    """Return the words of each `bench` command that a page tells people to type, without prompt and comment."""
    text = re.sub(r" *\\\n *", " ", text)  # a command may go on in the next line
    lines = re.findall(r"^ *\$ (.*)$", text, re.M) + re.findall(r"^    ((?:bench|python) .*)$", text, re.M)
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
    return [words[1:] for words in parts if words[:1] == ["bench"] and "[" not in "".join(words)]


@cache
def root():
    from typer.main import get_command

    from bench.cli import app

    return get_command(app)


def leaf(words):
    """Return the command that the words name, its own words, and how many words its name has."""
    found, depth = root(), 0
    while depth < len(words) and words[depth] in getattr(found, "commands", {}):
        found, depth = found.commands[words[depth]], depth + 1
    return found, words[depth:], depth


def parsed(words):
    """Return what the command line makes of the words: the command's parameters by name."""
    command, rest, depth = leaf(words)
    assert depth, f"bench {' '.join(words)}: no such command"
    return command.make_context(" ".join(words[:depth]), completed(rest)).params


@pytest.fixture
def ran(tmp_path, monkeypatch, capsys):
    """Run a command here, in a folder of its own; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("BENCH_RUNS_DIR", raising=False)

    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(words)
        return stop.value.code or 0, "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize("page", [page for page in HAND_WRITTEN if commands_of(PAGES[page])])
def test_commands_to_type_are_understood_word_by_word(page):
    for words in commands_of(PAGES[page]):
        try:
            given = parsed(words)
        except UsageFault as fault:
            pytest.fail(f"{page}: bench {' '.join(words)}: {fault.format_message()}")
        names = {name for key in ("model", "models") for name in names_in(given.get(key))}
        for name in names - OWN:
            assert name in cards() or name.endswith(".toml"), f"{page}: no model {name}"
        protocol = given.get("protocol")
        assert not protocol or protocol in {*protocol_files(), "mine"} or protocol.endswith(".toml"), (page, protocol)


def names_in(value):
    return [name for text in ([value] if isinstance(value, str) else value or []) for name in text.split(",")]


@pytest.mark.parametrize("page", HAND_WRITTEN)
def test_commands_in_the_running_text_have_the_options_that_are_named(page):
    for span in re.findall(r"`bench ([^`]*)`", PAGES[page].replace("\n", " ")):
        words = span.split()
        command, rest, depth = leaf(words)
        assert depth or words[0].startswith("-"), f"{page}: bench {span}"
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "--version"}
        for word in rest:
            option = word.strip("[]").partition("=")[0]
            assert not option.startswith("--") or option in known, f"{page}: bench {span}: {option}"


def test_references_that_can_be_built_are_named_by_a_protocol():
    known = {find_protocol(name).reference.get("name") for name in protocol_files()}
    pages = "\n".join(PAGES[page] for page in HAND_WRITTEN)
    named = re.findall(r"`bench reference build ([^` ]*)|^\$ bench reference build (\S+)", pages, re.M)
    assert {first or second for first, second in named} - {"", "my-digits"} <= known


def test_the_commands_of_readme_run_one_after_the_other(ran, tmp_path):
    """After a run of few samples; what takes long does so with less: --dry-run, a shorter repetition, one row."""
    from protocols.digits.data import load_split

    less = {"run": ["--dry-run"], "speed": ["--seconds", "0.01"], "fetch": ["--dry-run"]}
    less["check"] = ["--model", "digits-dmd", "--steps", "1", "--workers", "1"]
    few = ["--model", "digits-flow,digits-ucgm-few", "--steps", "2,32", "--num-samples", "60", "--workers", "1"]
    assert ran("run", *few)[0] == 0
    (tmp_path / "my-images").mkdir()
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    from PIL import Image

    for index, image in enumerate(load_split("test").images[:60]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "my-images" / f"{index:03d}.png")
    done = []
    typed = commands_of(PAGES["README.md"])[2:]  # without the default run and its report
    assert ["doctor"] in typed  # tests/bench/cli/test_cli_pages.py runs it
    for words in typed:
        if words == ["doctor"]:
            continue
        code, said = ran(*words, *less.get(words[0], []))
        if words[:2] == ["reference", "build"]:  # nobody has the data here, and that is all that is wrong
            assert code == 2 and ("judge" in said or "/data/imagenet" in said), said
        else:
            assert code == 0, (words, said)
        done.append(words[0])
    code, said = ran("compare", "digits-ucgm@2", "digits-flow@2")
    assert code == 0 and "a = digits-ucgm-few, 2 steps" in said and "busy machine" not in said
    assert {"leaderboard", "compare", "power", "report", "sample", "speed", "score", "check"} <= set(done)
    assert (tmp_path / "grid.png").is_file() and (tmp_path / "runs" / "report.html").is_file()


ON_DIGITS = ("--protocol", "digits", "--model", "digits-dmd", "--steps", "1", "--device", "cpu", "--dtype", "float32")
"""What makes a page's command small: of an option that is given twice, the last counts."""


@pytest.mark.parametrize("page", ["planning", "many-machines", "text-to-image", "digits", "imagenet"])
def test_commands_of_other_pages_plan_the_same_on_digits(ran, page):
    less = {"run": [*ON_DIGITS, "--dry-run"], "plan": ON_DIGITS, "fetch": ["--model", "digits-dmd", "--dry-run"]}
    for words in commands_of(PAGES[f"{page}.md"]):
        if words[0] in less:
            code, said = ran(*words, *less[words[0]])
            assert code == 0, (words, said)


def test_the_commands_of_the_page_on_verification_run_one_after_the_other(ran, tmp_path):
    rows = ["--model", "digits-flow,digits-meanflow", "--steps", "4", "--num-samples", "40", "--workers", "1"]
    assert ran("run", *rows)[0] == 0
    (tmp_path / "submissions").mkdir()
    less = {"audit": ["--samples", "8"]}
    done = []
    for words in commands_of(PAGES["verification.md"]):
        if "--sign" in words:  # tests/results/test_bundles.py signs
            at = words.index("--sign")
            words = words[:at] + words[at + 2 :]
        code, said = ran(*words, *less.get(words[0], []))
        assert code == 0, (words, said)
        done.append(words[0])
        if words[0] == "bundle":
            shutil.copy(tmp_path / "rows.zip", tmp_path / "submissions")
    assert done == ["bundle", "audit", "merge", "site"] and (tmp_path / "public" / "index.html").is_file()


@pytest.mark.skipif(os.name == "nt", reason="a script for bash")
def test_the_imagenet_recipe_is_made_of_commands_that_run(ran, tmp_path):
    """The script writes down what it would run; each line is parsed, and the dry run is made."""
    recorder = tmp_path / "bin" / "bench"
    recorder.parent.mkdir()
    recorder.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/said\n', encoding="utf-8")
    recorder.chmod(0o755)
    environment = os.environ | {"PATH": f"{recorder.parent}{os.pathsep}{os.environ['PATH']}", "MODELS": "ucgm-xl-few"}
    script = ["bash", str(ROOT / "docs" / "imagenet.sh")]
    subprocess.run([*script, "--dry-run"], env=environment, check=True)
    dry = (tmp_path / "said").read_text().splitlines()
    assert len(dry) == 2 and all("--dry-run" in line for line in dry)
    outputs = "".join(ran(*line.split())[1] for line in dry)
    assert "of ucgm-xl-few" in outputs and "NFE" in outputs
    (tmp_path / "said").unlink()
    subprocess.run([*script, "/data/ILSVRC/val"], env=environment, check=True)
    whole = [line.split() for line in (tmp_path / "said").read_text().splitlines()]
    assert [words[0] for words in whole] == ["fetch", "reference", "run", "leaderboard", "report", "report"]
    for words in whole:
        parsed(words)
    protocol = find_protocol(whole[0][-1])
    assert whole[1][2] == protocol.reference["name"] and find_card("ucgm-xl-few").resolution == protocol.resolution
    assert subprocess.run(script, env=environment, capture_output=True).returncode != 0
