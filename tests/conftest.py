"""What several tests share: quiet runs of the embedded default on a small scale, and distributions of others."""

import contextlib
import os
import platform
import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import pytest

from bench.models.cards import cards
from bench.run.plan import Request
from bench.run.provenance import package_versions
from bench.run.record import model_row
from bench.run.runner import run
from protocols import find_protocol

VERSIONS = ("pytest", "pandas", "plotly", "typer", "threadpoolctl", "torchvision", "huggingface-hub")
"""Beside the packages that can move a number."""


def versions():
    """The versions in use, on one line: a failure may be theirs."""
    found = {"python": platform.python_version(), **package_versions()}
    for name in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return ", ".join(f"{name} {number}" for name, number in found.items())


def pytest_report_header():
    return f"versions: {versions()}"


def pytest_terminal_summary(terminalreporter):
    """Name the versions below the failures, where the header is out of sight or was not printed (-q)."""
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.section("versions")
        terminalreporter.write_line(versions())


def pytest_collection_modifyitems(items):
    """Skip what needs a CUDA device where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]  # keywords hold names of folders too
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def install():
    """Write a distribution as pip leaves it into the folder `site`: its entry points, and files by their paths."""

    def write(site, name, entry_points, **files):
        info = f"{name.replace('-', '_')}-1.0.dist-info"
        files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        files[f"{info}/entry_points.txt"] = entry_points
        for path, content in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            content = textwrap.dedent(content).encode() if isinstance(content, str) else content
            (site / path).write_bytes(content)
        return site

    return write


@pytest.fixture(scope="session")
def run_bench():
    """Run `bench ...` in a process of its own with the folder `site` on its path."""

    def start(site, *arguments, cwd=None, **environment):
        return subprocess.run(
            [sys.executable, "-m", "bench", *map(str, arguments)],
            cwd=cwd or site,
            env=os.environ | {"PYTHONPATH": str(site), **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return start


class Quiet:
    """Progress that shows nothing; `stop_after` shards it interrupts, as Ctrl-C would."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.shards = 0
        self.outcomes = []

    def wait(self, runs):
        self.waited = True

    def plan(self, cells, reused, samples, cost):
        self.planned = (cells, reused, samples)

    def shares(self, ended, jobs, done, total):
        pass

    def timing(self, done, total):
        pass

    def shard(self, cell, done, total, samples):
        self.shards += 1
        if self.shards == self.stop_after:
            raise KeyboardInterrupt

    def cell(self, cell, status, reason):
        self.outcomes.append((cell.label, status, reason))


@pytest.fixture(scope="session")
def quiet():
    """The class of silent progress."""
    return Quiet


@pytest.fixture
def digits_request():
    """A request for the small flow network, 200 samples, one step count."""

    def make(**changes):
        defaults = {
            "models": ("digits-flow-small",),
            "steps": (2,),
            "cfg": (1.0,),
            "num_samples": 200,
            "batch_size": 50,
        }
        protocol = changes.pop("protocol", None) or find_protocol("digits")
        return Request(protocol, **(defaults | changes))

    return make


@pytest.fixture
def measure(tmp_path, digits_request):
    """Run a small request in this process and return its summary."""

    def start(runs=None, *, progress=None, fresh=False, protocol_changes=None, **changes):
        if protocol_changes:
            changes["protocol"] = replace(find_protocol("digits"), **protocol_changes)
        return run(
            digits_request(**changes), runs or tmp_path / "runs", progress=progress or Quiet(), workers=1, fresh=fresh
        )

    return start


class Synthetic:
    """A database of invented rows; `write` stores and ranks them."""

    def __init__(self, path, composite=None, reference="synthetic", num_samples=100):
        self.path, self.num_samples, self.records = path, num_samples, []
        self.protocol = {
            "digest": "p", "name": "synthetic", "title": "Synthetic", "resolution": 8,
            "definition": {"composite": composite or {}, "reference": {"name": reference}},
        }  # fmt: skip

    def add(self, model, values, blocks=None, **changes):
        """Add a finished cell with `values` by metric and, by metric, the values without each block."""
        cell_id = f"{len(self.records):020d}"
        cell = {
            "cell_id": cell_id, "run_id": "r", "model": model, "checkpoint": model, "family": "f",
            "protocol": "synthetic", "protocol_digest": "p", "ranking": "k", "status": "done", "reason": None,
            "steps": 1, "cfg": 1.0, "sampler": "native", "settings": {}, "options": {}, "dtype": "float32", "seed": 0,
            "num_samples": self.num_samples, "batch_size": 10, "off_regime": False, "random_weights": False,
            "weights_sha256": None, "nfe": 1.0, "failures": 0, "images_per_second": 10.0, "device": "cpu",
            "latent_shape": "1x8x8", "command": "bench run", "started": "2026-01-01", "finished": "2026-01-01",
        }  # fmt: skip
        cell |= changes
        metrics = [
            {
                "metric": name, "value": value, "low": value - 0.1, "high": value + 0.1, "standard_error": 0.05,
                "corrected": None, "n": cell["num_samples"], "method": "none", "judge": "j", "judge_digest": "",
                "reference": self.protocol["definition"]["reference"]["name"] if name == "fid" else None,
                "reference_digest": None, "jackknife": None if blocks is None else [float(x) for x in blocks[name]],
            }
            for name, value in values.items()
        ]  # fmt: skip
        card = cards().get(cell["checkpoint"])
        record = {"cell": cell, "protocol": self.protocol, "metrics": metrics}
        self.records.append(record | ({"model": model_row(card)} if card else {}))
        return cell_id

    def write(self):
        from results.index import rank_all
        from results.store import connect, write_cell

        with connect(self.path, write=True) as connection:
            for record in self.records:
                write_cell(connection, record)
        rank_all(self.path)
        return self.path


@pytest.fixture
def synthetic(tmp_path):
    """Start a database of invented rows in `tmp_path/runs`."""

    def make(**options):
        (tmp_path / "runs").mkdir(exist_ok=True)
        return Synthetic(tmp_path / "runs" / "bench.duckdb", **options)

    return make
