"""An adapter cannot end the run or bend it for others."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.contracts.adapter import Adapter
from bench.run.containment import TimedOut, contained, time_limit
from bench.run.runner import run
from results.errors import BenchError
from results.leaderboard import rows
from results.store import connect


def test_state_is_put_back_and_named(tmp_path, monkeypatch):
    here = Path.cwd()
    with contained() as changes:
        torch.set_default_dtype(torch.float64)
        os.environ["SOMETHING"] = "else"
        os.chdir(tmp_path)
        torch.nn.functional.linear = lambda *arguments: None
        torch.manual_seed(7)
    assert Path.cwd() == here
    assert "SOMETHING" not in os.environ
    assert torch.get_default_dtype() == torch.float32
    assert torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).item() == 1.0
    assert changes.patched == ["torch.nn.functional.linear"]
    assert changes.settings == ["the default dtype", "environment variables", "the working directory"]


def test_what_changes_nothing_names_nothing():
    with contained() as changes:
        torch.randn(3)
    assert not changes.patched
    assert not changes.settings


def test_an_endless_loop_ends_at_the_limit():
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"longer than 0\.2 s \(--timeout\)"), time_limit(0.2):
        while True:
            pass
    assert time.monotonic() - began < 5
    with time_limit(None):
        pass


def over(kind):
    raise kind("over")


FAULTS = {
    2: (lambda: sys.exit(0), "SystemExit: 0"),
    3: (lambda: over(GeneratorExit), "GeneratorExit"),
    4: (lambda: over(BaseException), "BaseException"),
    5: (
        lambda: setattr(torch.nn.functional, "silu", torch.nn.functional.silu.__call__),
        "replaced torch.nn.functional.silu",
    ),
    6: (lambda: os._exit(0), "SystemExit: os._exit(0)"),
}
"""What an adapter does at so many steps, and what is said of it."""


def test_an_adapter_that_breaks_is_a_failed_row_and_the_others_go_on(tmp_path, digits_request, quiet, monkeypatch):
    sound, leave = Adapter.sample, os._exit

    def sample(self, labels, steps, cfg, **rest):
        if steps in FAULTS:
            FAULTS[steps][0]()
        return sound(self, labels, steps, cfg, **rest)

    monkeypatch.setattr(Adapter, "sample", sample)
    request = digits_request(steps=(*FAULTS, 1))
    summary = run(request, tmp_path, progress=quiet(), workers=1)
    assert {cell.steps: FAULTS[cell.steps][1] in said for cell, said in summary.failed} == dict.fromkeys(FAULTS, True)
    assert [cell.steps for cell in summary.measured] == [1]
    assert os._exit is leave


def test_a_child_of_a_block_may_end_itself():
    with contained():
        child = os.fork()
        if child == 0:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


CARD = """
name = "breaking"
family = "breaking"
title = "Breaks"
resolution = 4
num_classes = 2
home = "gaussian"
latent_shape = [3, 4, 4]

[architecture]
deviation = 0.15
offset = 0.3
"""
BREAKING = """
import ctypes
import itertools
import os
import resource
import signal
from pathlib import Path

from adapters.gaussian import Gaussian


def killed_once():
    if "HANGING" in os.environ:
        FAULTS[4]()
    mark = Path(os.environ["MARK"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def out_of_memory():
    limit = 12 << 30  # of address space, so that the machine keeps its own
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    bytearray(1 << 40)


FAULTS = {
    2: killed_once,
    5: out_of_memory,
    3: lambda: ctypes.string_at(0),
    4: lambda: sum(itertools.repeat(1)),  # never returns to the interpreter: no handler of a signal runs
}


class Breaking(Gaussian):
    def generate(self, labels, steps, cfg, noise, settings):
        FAULTS.get(steps, lambda: None)()
        return super().generate(labels, steps, cfg, noise, settings)
"""


@pytest.fixture(scope="module")
def breaking(tmp_path_factory, install):
    points = "[bench.adapters]\nbreaking = breaking:Breaking\n[bench.cards]\nbreaking = breaking_cards\n"
    files = {"breaking.py": BREAKING, "breaking_cards/__init__.py": "", "breaking_cards/breaking.toml": CARD}
    return install(tmp_path_factory.mktemp("site"), "breaking", points, **files)


def test_a_worker_that_dies_costs_its_cell_alone(breaking, tmp_path, run_bench):
    """With a limit of time even one worker is a process of its own."""
    words = ["--protocol", "gaussian", "--steps", "1,2,3,4", "--cfg", "1", "--num-samples", "40", "--timeout", "6"]
    done = run_bench(
        breaking,
        "run",
        "--model",
        "breaking",
        *words,
        "--workers",
        "1",
        MARK=str(tmp_path / "mark"),
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    with connect(breaking / "runs" / "bench.duckdb") as connection:
        found = {row.cell["steps"]: row.cell for row in rows(connection, status=None)}
    reasons = {steps: cell["reason"] for steps, cell in found.items()}
    assert [steps for steps, reason in reasons.items() if reason is None] == [1, 2], reasons
    assert "worker process died while it sampled 0..39, and again in a new one: seg" in found[3]["reason"]
    assert "was ended while it sampled 0..39: a batch took longer than 6 s (--timeout)" in found[4]["reason"]
    assert not list(tmp_path.glob("bench-workers-*"))


def test_the_culprit_is_found_among_several_workers(breaking, tmp_path, run_bench):
    """A worker's death takes what the others were at; each goes again alone, and one cell is to blame."""
    words = ["--protocol", "gaussian", "--steps", "1,3,5", "--cfg", "1", "--num-samples", "40", "--workers", "2"]
    runs = tmp_path / "runs"
    done = run_bench(breaking, "run", "--model", "breaking", *words, "--runs-dir", runs, MARK=str(tmp_path / "mark"))
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    with connect(runs / "bench.duckdb") as connection:
        reasons = {row.cell["steps"]: row.cell["reason"] for row in rows(connection, status=None)}
    assert sorted(steps for steps, reason in reasons.items() if reason is None) == [1], reasons
    assert "worker process died" in reasons[3] and "MemoryError" in reasons[5]


def test_processes_that_cannot_start_are_one_line(tmp_path, digits_request, quiet, monkeypatch):
    monkeypatch.setattr("bench.run.dispatch.idle_task", os.abort)
    with pytest.raises(BenchError, match="no worker process can be started"):
        run(digits_request(), tmp_path, progress=quiet(), workers=2)


def test_a_check_of_an_adapter_ends_in_time(breaking, run_bench):
    done = run_bench(breaking, "adapter", "check", "breaking", "--timeout", "6", HANGING="yes")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "a clause took longer than 6 s (--timeout)" in done.stdout
