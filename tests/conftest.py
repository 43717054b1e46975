"""What several tests share: quiet runs of the embedded default on a small scale."""

from dataclasses import replace

import pytest

from bench.plan import Request
from bench.runner import run
from protocols import find_protocol


class Quiet:
    """Progress that shows nothing; `stop_after` shards it interrupts, as Ctrl-C would."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.shards = 0
        self.outcomes = []

    def plan(self, cells, reused, samples, cost):
        self.planned = (cells, reused, samples)

    def shard(self, cell, done, total, samples):
        self.shards += 1
        if self.shards == self.stop_after:
            raise KeyboardInterrupt

    def cell(self, cell, status, reason):
        self.outcomes.append((cell.label, status, reason))


@pytest.fixture
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
