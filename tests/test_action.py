"""The action of this repository, step by step, in another repository with a model of its own."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


class Repository:
    """A scratch repository, and the packages that its job has installed."""

    def __init__(self, place):
        self.place, self.site = place / "scratch", place / "site"
        self.harness = place / "harness"
        subprocess.run(
            ["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", self.harness], check=True, capture_output=True
        )
        self.run("-m", "bench", "adapter", "new", "scratch", site=False, cwd=place)

    def run(self, *words, site=True, cwd=None):
        return subprocess.run(
            [sys.executable, *words], cwd=cwd or self.place, env=self.environment(site), capture_output=True, text=True
        )

    def environment(self, site=True):
        # a job has the network; here packages come from this environment, and nothing is resolved
        offline = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_TARGET": str(self.site), "PIP_UPGRADE": "1"}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "GITHUB"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        return (
            kept | offline | {"PATH": path, "OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(self.site)} if site else {})
        )

    def step(self, name, **inputs):
        """Run one step of the action as a runner does: its `run` under bash, with `env` filled in."""
        step = next(step for step in ACTION["runs"]["steps"] if step["id"] == name)
        given = {key: fact.get("default", "") for key, fact in ACTION["inputs"].items()} | inputs
        values = {f"inputs.{key}": value for key, value in given.items()} | {"github.action_path": str(self.harness)}
        filled = {key: values[text.removeprefix("${{ ").removesuffix(" }}")] for key, text in step["env"].items()}
        environment = self.environment() | filled
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.place, env=environment, capture_output=True, text=True,
        )  # fmt: skip


def test_the_gate_of_another_repository_passes_its_model_and_catches_a_doubled_cost(tmp_path):
    repository = Repository(tmp_path)
    installed = repository.step("install", package=".")
    assert installed.returncode == 0, installed.stderr
    assert (repository.site / "bench").is_dir() and (repository.site / "scratch").is_dir()
    words = ("check", "--write", "baseline.json", "--model", "scratch", "--steps", "1", "--num-samples", "60")
    written = repository.run("-m", "bench", *words)
    assert written.returncode == 0, written.stderr
    assert json.loads((repository.place / "baseline.json").read_text())
    passed = repository.step("check", baseline="baseline.json", arguments="--workers 1")
    assert passed.returncode == 0, passed.stderr
    source = repository.place / "scratch" / "adapter.py"
    text = source.read_text(encoding="utf-8")
    line = "            v = self.network(x, t_batch, labels)\n"
    source.write_text(text.replace(line, line * 2), encoding="utf-8")
    assert repository.step("install", package=".").returncode == 0
    caught = repository.step("check", baseline="baseline.json", model="scratch", arguments="--workers 1")
    assert caught.returncode == 1, caught.stdout + caught.stderr
    assert "nfe" in (caught.stdout + caught.stderr).lower()
    report = ElementTree.parse(repository.place / "bench-check.xml").getroot()
    assert report.findall(".//failure")


@pytest.mark.parametrize("name", ["install", "check"])
def test_inputs_reach_the_shell_as_variables_alone(name):
    step = next(step for step in ACTION["runs"]["steps"] if step["id"] == name)
    assert "${{" not in step["run"] and all(text.startswith("${{ ") for text in step["env"].values())
