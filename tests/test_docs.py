"""The documentation is current: commands, keys, methods and the worked example."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard, WeightsSource
from bench.models.cards import cards
from protocols import protocol_files
from results.database import TABLES

ROOT = Path(__file__).parent.parent
DOCS = {path.name: path.read_text(encoding="utf-8") for path in [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]}


LINE = 120
FENCED = r"^```.*?^```"
ACRONYMS = {
    "ERNIE",
    "NVIDIA",
    "ILSVRC",
    "CIFAR",
    "TFLOP",
    "GFLOP",
    "SHAKE",
    "LAION",
    "README",
    "LICENSE",
    "LPIPS",
    "POSIX",
    "ASCII",
    "CHANGELOG",
    "CONTRIBUTING",
}


def prose(text):
    """Return a page without its listings (fenced or indented) and inline code."""
    text = re.sub(FENCED, "", text, flags=re.M | re.S)
    return re.sub(r"^    .*$|`[^`]*`", "", text, flags=re.M)


def commands():
    from typer.main import get_command

    from bench.cli import app

    def walk(command, words):
        yield " ".join(words), command
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, [*words, name])

    return dict(walk(get_command(app), ["bench"]))


def test_generated_pages_are_current():
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tables_of_measurements_are_those_of_the_stored_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import stored_runs

    pages = {name: DOCS[name] for name in ("README.md", "digits.md")}
    blocks = [name for text in pages.values() for name in re.findall(r"<!-- stored run: (.*) -->", text)]
    assert sorted(blocks) == sorted(stored_runs.BLOCKS)
    for text in pages.values():
        altered = re.sub(r"(<!-- stored run: .* -->\n).*?([ ]*<!-- end)", r"\1| 0.99 |\n\2", text, flags=re.S)
        assert altered != text == stored_runs.with_tables(altered) == stored_runs.with_tables(text)


def test_every_command_has_help_and_is_in_the_documentation():
    for name, command in commands().items():
        assert command.help, f"{name} is missing its help"
        assert f"## {name}\n" in DOCS["cli.md"], f"{name} is missing from docs/cli.md"


def test_what_takes_long_can_be_asked_what_it_would_do():
    takes = {name for name, command in commands().items() if "--dry-run" in {o for p in command.params for o in p.opts}}
    downloads, judges = {"bench fetch", "bench weights fetch"}, {"bench score", "bench reference build"}
    assert takes == {"bench run", "bench weights convert", *downloads, *judges}


def test_every_option_has_help():
    for name, command in commands().items():
        for parameter in command.params:
            if parameter.name != "help":
                assert parameter.help, f"{name} {parameter.name} is missing its help"


def test_every_protocol_key_is_documented():
    import tomllib

    text = DOCS["protocols.md"]
    for path in protocol_files().values():
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        for section in ("labels", "sampling", "metrics", "composite"):
            for key in table.get(section, {}):
                assert f"{section}.{key}" in text or f"`{key}`" in text, f"{path.stem}: {section}.{key}"
        for key in table.get("reference", {}):
            assert f"`{key}`" in text + DOCS["references.md"], f"{path.stem}: reference.{key}"


def test_every_adapter_method_and_card_key_is_documented():
    text = DOCS["adding-an-adapter.md"]
    for name in vars(Adapter):
        if not name.startswith("_") and name not in ("device", "dtype"):
            assert f"`{name}" in text, f"Adapter.{name}"
    for kind in (ModelCard, WeightsSource):
        for field in dataclasses.fields(kind):
            if not (kind is ModelCard and field.name == "path"):
                assert f"`{field.name}`" in text, f"{kind.__name__}.{field.name}"


def test_every_task_that_is_named_exists():
    import ast

    tasks = {
        node.name
        for node in ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8")).body[1:]
        if hasattr(node, "name")
    }
    assert set(re.findall(r"nox -s (\w+)", DOCS["CONTRIBUTING.md"])) == tasks


def test_commands_pin_no_version():
    for name, text in DOCS.items():
        for line in re.findall(r"pip install[^\n]*", text):
            assert "==" not in line, f"{name}: {line}"


def test_every_table_of_the_database_is_documented():
    for table in TABLES:
        assert f"`{table}`" in DOCS["database.md"], table


def test_every_model_is_in_the_table():
    for name in cards():
        assert f"`{name}`" in DOCS["models.md"]


def test_every_card_says_what_sets_its_network_apart():
    assert [card.name for card in cards().values() if not card.differs] == []


@pytest.mark.parametrize("name", sorted(DOCS))
def test_lines_wrap_but_for_tables_and_links(name):
    """What cannot be broken may be longer: a table's row, a picture, a line of one word."""
    lines = [line for line in DOCS[name].splitlines() if len(line) > LINE and not line.startswith(("|", "!["))]
    assert [line for line in lines if " " in re.sub(r"\[[^]]*\]\([^)]*\)", "link", line).strip()] == []


@pytest.mark.parametrize("name", sorted(DOCS))
def test_no_heading_stands_twice(name):
    headings = re.findall(r"^#+ .*", re.sub(FENCED, "", DOCS[name], flags=re.M | re.S), re.M)
    assert len(headings) == len(set(headings)), sorted(headings)


@pytest.mark.parametrize("name", sorted(set(DOCS) - {"cli.md"}))
def test_no_word_in_capitals_is_left_over(name):
    """A marker that was to be replaced (a word of capitals that is not an acronym of the field) is an accident."""
    assert set(re.findall(r"\b[A-Z]{5,}\b", prose(DOCS[name]))) - ACRONYMS == set()


def test_links_and_files_that_are_named_exist():
    for name, text in DOCS.items():
        folder = ROOT if (ROOT / name).exists() else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (folder / target).exists(), f"{name} links to {target}"
        for target in re.findall(r"`((?:bench|adapters|protocols|results|report|tests|docs)/[\w./-]+\.\w+)`", text):
            assert (ROOT / target).exists(), f"{name} names {target}"


def test_the_worked_example_works(tmp_path):
    """docs/adding-an-adapter.md, block by block, in a package of its own."""
    text = DOCS["adding-an-adapter.md"]
    assert "bench adapter new my-model" in text and "bench adapter check my-model" in text
    run = [sys.executable, "-m", "bench"]
    subprocess.run([*run, "adapter", "new", "my-model"], cwd=tmp_path, check=True, capture_output=True)
    for listed in re.findall(r"^    (my-model/\S+)", text, re.M):
        assert (tmp_path / listed).exists(), listed
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site]
    subprocess.run([*install, tmp_path / "my-model"], check=True, capture_output=True)
    import os

    environment = os.environ | {"PYTHONPATH": str(site)}
    checked = subprocess.run(
        [*run, "adapter", "check", "my-model"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    measured = subprocess.run(
        [*run, "run", "--model", "my-model", "--steps", "1,2,4", "--num-samples", "200", "--workers", "1"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    assert "my-model" in measured.stderr and (tmp_path / "runs" / "bench.duckdb").exists()
    (script,) = (block for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "recorder" in block)
    (tmp_path / "record.py").write_text(script, encoding="utf-8")
    (tmp_path / "their_code.py").write_text(THEIR_CODE, encoding="utf-8")
    typed = re.findall(r"^\$ bench (adapter record .*|parity .*)$", text, re.M)
    assert len(typed) == 2
    both = "\n".join([
        "import sys", "from bench.cli import main", "try:", "    main(sys.argv[1].split())",
        "except SystemExit as end:", "    assert not end.code", "main(sys.argv[2].split())",
    ])  # fmt: skip
    proved = subprocess.run(
        [sys.executable, "-c", both, *typed], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert proved.returncode == 0 and "2 of 2 calls within tolerance" in proved.stderr, proved.stdout + proved.stderr


THEIR_CODE = """
import torch


class TheirNetwork(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.means, self.width = torch.nn.Parameter(torch.randn(11, 1, 8, 8)), width

    def forward(self, x, t, labels):
        mean, t = self.means[labels], t.view(-1, 1, 1, 1)
        return mean + (t * self.width**2 - (1 - t)) / (t**2 * self.width**2 + (1 - t) ** 2) * (x - t * mean)


def their_sampler(network, x, labels, steps, scale):
    for i in range(steps):
        t = torch.full((len(x),), i / steps)
        null = network(x, t, torch.full_like(labels, 10))
        x = x + (null + scale * (network(x, t, labels) - null)) / steps
    return x
"""


def test_the_worked_worker_works(tmp_path):
    """docs/adding-a-worker.md, block by block; the environment is this one, for a test installs nothing."""
    import os

    text = DOCS["adding-a-worker.md"]
    commands = [line.split() for line in re.findall(r"^\$ bench (.*)$", text, re.M)]
    run = [sys.executable, "-m", "bench"]
    subprocess.run([*run, *commands[0]], cwd=tmp_path, check=True, capture_output=True)
    for listed in re.findall(r"^    (my-worker/\S+)", text, re.M):
        assert (tmp_path / listed).exists(), listed
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site]
    subprocess.run([*install, tmp_path / "my-worker"], check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(site), "BENCH_CACHE_DIR": str(tmp_path / "cache")}
    assert [command[:2] for command in commands[1:3]] == [["worker", "setup"], ["adapter", "check"]]
    environment |= {"BENCH_WORKER_PYTHON": sys.executable}
    for command in commands[2:4]:
        done = subprocess.run([*run, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    card = (tmp_path / "my-worker/my_worker/cards/my-worker.toml").read_text(encoding="utf-8")
    (tmp_path / "my-card.toml").write_text(card.replace('family = "my-worker"', 'family = "worker"'), encoding="utf-8")
    script = (tmp_path / "my-worker/my_worker/worker.py").read_text(encoding="utf-8")
    (tmp_path / "my_script.py").write_text(script.replace('["shift"]', '.get("shift", 1)'), encoding="utf-8")
    (tmp_path / "bench_worker.py").write_bytes((tmp_path / "my-worker/my_worker/bench_worker.py").read_bytes())
    (tmp_path / "my-venv/bin").mkdir(parents=True)
    (tmp_path / "my-venv/bin/python").symlink_to(sys.executable)
    (tmp_path / "my-venv/pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
    (tmp_path / "my-venv/lib").symlink_to(Path(sys.prefix) / "lib")
    last = [*commands[4], "--num-samples", "100"]
    done = subprocess.run([*run, *last], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
