"""The command the project is known by, typed on an empty machine against a hub on 127.0.0.1."""

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

import protocols
from bench.models.cards import find_card

CARD = """
name = "{name}"
family = "digits-flow"
title = "A tiny model"
resolution = 8
num_classes = 10
home = "../tiny.toml"
latent_shape = [1, 8, 8]
parameters = 35908
{rest}
"""
NETWORK = """
[architecture]
width = 32
blocks = 2
[weights]
format = "safetensors"
repo = "owner/repository"
file = "{file}"
sha256 = "{sha256}"
"""
MEMBERS = """
[[members]]
model = "tiny-few"
steps = [1, 8]
[[members]]
model = "tiny-many"
steps = [9]
"""
PROTOCOL = """
extends = "digits"
name = "tiny"
title = "A few digits"
[sampling]
num_samples = 60
[judges.second]
kind = "clip-features"
hub = "owner/repository"
"""


@pytest.fixture
def machine(tmp_path, hub):
    """The environment of a machine that has the program, a distribution of cards, and nothing else."""
    card = find_card("digits-flow-small")
    hub.files["few.safetensors"] = hub.files["many.safetensors"] = card.weights.path.read_bytes()
    preference = Path(protocols.__file__).parent / "digits" / "preference"
    for name in ("model.safetensors", "config.json"):
        hub.files[name] = (preference / name).read_bytes()
    site = tmp_path / "site"
    (site / "tiny_cards").mkdir(parents=True)
    (site / "tiny_cards" / "__init__.py").touch()
    for name, rest in (
        ("tiny-few", NETWORK.format(file="few.safetensors", sha256=card.weights.sha256)),
        ("tiny-many", NETWORK.format(file="many.safetensors", sha256=card.weights.sha256)),
        ("tiny-pair", MEMBERS),
    ):
        (site / "tiny_cards" / f"{name}.toml").write_text(CARD.format(name=name, rest=rest))
    (site / "tiny.toml").write_text(PROTOCOL)
    facts = site / "tiny_models-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-models\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[bench.cards]\ntiny = tiny_cards\n")
    home = tmp_path / "home"
    home.mkdir()
    own = {"HOME": home, "HF_HOME": home / "hf", "BENCH_CACHE_DIR": home / "cache", "PYTHONPATH": site}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "BENCH_", "TORCH_HOME"))}
    own |= {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "BENCH_RUNS_DIR": tmp_path / "runs"}

    def call(*words, **more):
        return subprocess.run(
            [sys.executable, "-m", "bench", *words],
            cwd=tmp_path, env=kept | {key: str(value) for key, value in (own | more).items()},
            capture_output=True, text=True,
        )  # fmt: skip

    return call


def test_the_command_typed_on_an_empty_machine_ends_with_rows(machine, hub, tmp_path):
    typed = ("run", "--model", "tiny-pair", "--steps", "1,2,4,40")
    refused = machine(*typed)
    assert refused.returncode == 2
    lines = refused.stderr.splitlines()
    assert "home of tiny-pair" in lines[0]
    assert lines[1].startswith("Error: missing for tiny-pair under tiny: 4 files")
    assert [line.split("  ")[1].strip() for line in lines[2:5]] == [
        "weights of tiny-few", "weights of tiny-many", "weights, configuration of judge 'second'",
    ]  # fmt: skip
    assert "bench fetch --model tiny-pair" in lines[-1] and len(lines) == 6
    assert hub.requests == []  # nothing is asked of anybody before it is wanted
    done = machine(*typed, "--fetch", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "weights of tiny-many: fetched" in done.stderr and "Best setting of each model" in done.stderr
    with duckdb.connect(str(tmp_path / "runs" / "bench.duckdb"), read_only=True) as database:
        rows = database.execute("SELECT checkpoint, steps, status FROM cells ORDER BY steps").fetchall()
    assert rows == [
        (f"tiny-{name}", steps, "done") for name, steps in (("few", 1), ("few", 2), ("few", 4), ("many", 40))
    ]
    again = machine("fetch", "--model", "tiny-pair", HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and "were already here and are unaltered" in again.stderr
