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
    "exit": (lambda: sys.exit(0), "SystemExit"),
    "generator exit": (lambda: over(GeneratorExit), "GeneratorExit"),
    "base exception": (lambda: over(BaseException), "BaseException"),
    "patch": (
        lambda: setattr(torch.nn.functional, "silu", torch.nn.functional.silu.__call__),
        "replaced torch.nn.functional.silu",
    ),
    "endless loop": (lambda: time.sleep(60), "longer than 5 s"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_breaks_is_a_failed_row_and_the_others_go_on(
    tmp_path, digits_request, quiet, monkeypatch, fault
):
    cause, reason = FAULTS[fault]
    sound = Adapter.sample

    def sample(self, labels, steps, cfg, **rest):
        if steps == 2:
            cause()
        return sound(self, labels, steps, cfg, **rest)

    monkeypatch.setattr(Adapter, "sample", sample)
    request = digits_request(steps=(2, 1))
    summary = run(request, tmp_path, progress=quiet(), workers=1, timeout=5.0)
    assert [(cell.steps, reason in said) for cell, said in summary.failed] == [(2, True)]
    assert [cell.steps for cell in summary.measured] == [1]
