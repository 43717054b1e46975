"""Each clause of the adapter contract can fail: adapters with one fault each."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.contracts.adapter import Adapter
from bench.contracts.card import Guidance, ModelCard
from bench.models import conformance, watching
from bench.models import registry as families
from bench.models.conformance import check_adapter


class Towards(nn.Module):
    """The velocity towards a class's mean."""

    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(torch.linspace(-0.8, 0.8, 4).reshape(4, 1, 1, 1).expand(4, 3, 4, 4).clone())

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return (self.means[labels] - x.to(self.means.dtype)).float() * (1 + t[:, None, None, None])


class Sound(Adapter):
    """Keeps the contract; `fault` makes the subclasses break one clause."""

    fault = ""

    def __init__(self, card):
        super().__init__(card)
        self.network = Towards()

    def load(self, state, extra):
        """There are no weights."""

    def declared_nfe(self, steps, cfg, settings):
        return float(steps + (self.fault == "declared"))

    def generate(self, labels, steps, cfg, noise, settings):
        x = noise.normal(self.latent_shape)
        if self.fault == "exit" and steps > 1:
            raise SystemExit(0)
        null = torch.full_like(labels, 3)
        used = null if self.fault == "labels" else labels
        steps = 1 if self.fault == "steps" else steps
        for i in range(steps):
            t = torch.full((len(x),), i / steps, device=x.device)
            v = self.network(x, t, used)
            if cfg != 1.0 or self.fault == "evaluations":
                v_null = self.network(x, t, null)
                v = v if self.fault == "guidance" else v_null + cfg * (v - v_null)
            h = 1 / steps
            if self.fault == "item":
                h = h + 0 * x.mean().item()
            elif self.fault == "branch" and (x > 100).any():
                h = 0.0
            elif self.fault == "copy":
                h = torch.tensor([h], device=x.device)
            x = x + h * v
        return x - x.mean(dim=0) if self.fault == "batch" else x


FAULTS = {
    "labels": "labels matter",
    "exit": "steps matter",
    "steps": "steps matter",
    "guidance": "guidance changes the image if there is any",
    "evaluations": "guidance 1.0 equals no guidance",
    "item": "never waits for the device between steps",
    "branch": "never waits for the device between steps",
    "copy": "never waits for the device between steps",
    "batch": "same noise, same image, for any batch split",
    "declared": "evaluations are counted",
}


def findings_of(monkeypatch, klass, **facts):
    for module in (families, conformance):
        monkeypatch.setattr(module, "skeleton", lambda card: klass(card).to("meta"), raising=False)
    monkeypatch.setattr("bench.models.registry.family_class", lambda family: klass)
    monkeypatch.setattr(conformance, "family_class", lambda family: klass)
    guidance = Guidance("classifier-free", 2.0, (1.0, 3.0))
    card = ModelCard("sound", "sound", "sound", 4, 3, (3, 4, 4), guidance=guidance, **facts)
    return check_adapter(card)


def broken(monkeypatch, fault):
    klass = type("Faulty", (Sound,), {"fault": fault})
    return [finding.clause for finding in findings_of(monkeypatch, klass) if not finding.ok]


class Typo(Sound):
    def generate(self, labels, steps, cfg, noise, settings):
        return noise.norml(self.latent_shape)


def test_an_error_is_told_once_with_the_adapters_own_line(monkeypatch):
    failed = [finding for finding in findings_of(monkeypatch, Typo) if not finding.ok]
    told = [finding for finding in failed if "the same error as" not in finding.detail]
    first = failed[0]
    assert len(failed) > 8 and told[0] is first and len(told) <= 3  # on the meta device it is met anew
    assert "test_conformance.py:" in first.detail and "noise.norml(self.latent_shape)" in first.detail
    assert "AttributeError" in first.detail


def test_a_waived_clause_holds_with_its_reason_and_a_needless_or_unknown_waiver_is_said(monkeypatch):
    clause = "never waits for the device between steps"
    klass = type("Faulty", (Sound,), {"fault": "item"})
    found = {f.clause: f for f in findings_of(monkeypatch, klass, waive={clause: "a host scheduler"})}
    assert found[clause].ok and found[clause].waived == "a host scheduler"
    assert "waived: a host scheduler (seen: test_conformance.py:" in found[clause].detail
    needless = {f.clause: f for f in findings_of(monkeypatch, Sound, waive={clause: "a host scheduler"})}
    assert needless[clause].ok and not needless[clause].waived and "not needed" in needless[clause].detail
    unknown = findings_of(monkeypatch, Sound, waive={"is fast": "it is not"})
    assert not unknown[0].ok and "'is fast'" in unknown[0].detail


def test_a_sound_adapter_keeps_every_clause(monkeypatch):
    assert broken(monkeypatch, "") == []


@pytest.mark.parametrize(("fault", "clause"), FAULTS.items())
def test_a_fault_is_found(monkeypatch, fault, clause):
    assert clause in broken(monkeypatch, fault)


ON_META = torch.zeros(4, 3, device="meta")
WAITS = {
    "tensor": lambda: torch.tensor([1.0], device="meta"),
    "tensor of a number": lambda: torch.tensor(1.0, device="meta"),
    "as_tensor": lambda: torch.as_tensor([1.0], device="meta"),
    "asarray": lambda: torch.asarray([1.0], device="meta"),
    "new_tensor": lambda: ON_META.new_tensor([1.0, 2.0]),
    "data by keyword": lambda: torch.tensor(data=[1.0], device="meta"),
    "array": lambda: torch.from_numpy(np.ones(2)).to("meta"),
    "to": lambda: torch.ones(2).to("meta"),
    "to another's device": lambda: torch.ones(2).to(ON_META),
    "copy_": lambda: torch.zeros(3, device="meta").copy_(torch.ones(3)),
    "module": lambda: nn.Linear(2, 2, bias=False).to("meta"),
    "default device": lambda: _under_device(lambda: torch.tensor([1.0])),
    "list as index": lambda: ON_META[[0, 2]],
    "array as index": lambda: ON_META[:, np.array([0, 2])],
    "tensor of the host as index": lambda: ON_META[torch.tensor([0, 2])],
    "assignment through a list": lambda: ON_META.clone().__setitem__([0, 2], 1.0),
}
FREE = {
    "full": lambda: torch.full((2,), 0.5, device="meta"),
    "arange": lambda: torch.arange(3, device="meta"),
    "linspace": lambda: torch.linspace(0, 1, 5, device="meta"),
    "number": lambda: ON_META * 0.5 + 1,
    "slice": lambda: ON_META[:2, 1],
    "index of the device": lambda: ON_META[torch.zeros(2, dtype=torch.long, device="meta")],
    "dtype": lambda: ON_META.to(torch.bfloat16),
    "tensor of the host": lambda: torch.tensor([1.0, 2.0]),
    "as_tensor of the device's own": lambda: torch.as_tensor(ON_META),
    "matrix product": lambda: ON_META @ ON_META.T,
}


def _under_device(make):
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("call", WAITS)
def test_a_copy_from_the_host_counts_once(call, inference):
    with torch.inference_mode(inference), watching.Copies() as counter:
        WAITS[call]()
    assert counter.copies == 1


@pytest.mark.parametrize("call", FREE)
def test_what_stays_on_its_side_is_no_copy(call):
    with torch.inference_mode(), watching.Copies() as counter:
        FREE[call]()
    assert counter.copies == 0


def test_clauses_are_checked_under_the_precision_of_a_run(monkeypatch):
    seen = set()

    class Watched(Sound):
        fault = ""

        def generate(self, *inputs):
            seen.add(torch.backends.cudnn.allow_tf32)
            return super().generate(*inputs)

    for module in (families, conformance):
        monkeypatch.setattr(module, "skeleton", lambda card: Watched(card).to("meta"), raising=False)
    monkeypatch.setattr("bench.models.registry.family_class", lambda family: Watched)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        card = ModelCard("sound", "sound", "sound", 4, 3, (3, 4, 4), guidance=Guidance("classifier-free", 2.0))
        check_adapter(card)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert seen == {False}
