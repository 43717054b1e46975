"""A card whose architecture cannot be built, or is larger than the machine, is one line, and nothing is allocated."""

import pytest
import torch
from torch import nn

from bench.contracts.adapter import Adapter, load_strict
from bench.models import registry
from bench.models.cards import find_card, load_card
from bench.models.loading import build_adapter
from bench.models.registry import skeleton
from results.errors import BenchError

CARD = """
name = "odd"
family = "{family}"
title = "Odd"
resolution = 8
num_classes = 10
latent_shape = [1, 8, 8]
[architecture]
{architecture}
"""


class Deep(Adapter):
    """A family that takes its sizes from the card, as all do."""

    def __init__(self, card):
        super().__init__(card)
        width = card.architecture["width"]
        self.network = nn.ModuleList([nn.Linear(width, width) for _ in range(card.architecture["depth"])])

    def generate(self, labels, steps, cfg, noise, settings):
        return noise.normal(self.latent_shape)

    def load(self, state, extra):
        load_strict(self.network, state, self.card.name)


@pytest.fixture
def card(tmp_path, monkeypatch):
    known = registry.family_class
    monkeypatch.setattr(registry, "family_class", lambda name: Deep if name == "deep" else known(name))

    def write(family, architecture):
        path = tmp_path / "odd.toml"
        path.write_text(CARD.format(family=family, architecture=architecture))
        return load_card(path)

    return write


@pytest.mark.parametrize(
    ("family", "architecture", "reason"),
    [
        ("deep", "depth = 2", "KeyError: 'width'"),
        ("deep", 'depth = "x"\nwidth = 1', "TypeError"),
        ("deep", "depth = 1\nwidth = -1", "RuntimeError"),
        ("deep", "depth = 2000000000\nwidth = 1", "has more than 30,000 parts"),
        ("sit", "depth = 2", "cannot be built from its card"),
    ],
)
def test_what_cannot_be_built_names_the_card_and_the_reason(card, family, architecture, reason):
    odd = card(family, architecture)
    for build in (skeleton, lambda odd: build_adapter(odd, random_weights=True)):
        with pytest.raises(BenchError) as stop:
            build(odd)
        assert reason in str(stop.value) and "correct architecture in " in str(stop.value)
        assert "\n" not in str(stop.value)


def test_what_is_larger_than_the_machine_is_not_allocated(card):
    with pytest.raises(BenchError, match="more than this machine's memory"):
        build_adapter(card("deep", "depth = 10\nwidth = 1000000"), random_weights=True)


def test_the_count_of_modules_ends_with_the_building():
    skeleton(find_card("digits-dmd"))
    assert not torch.nn.modules.module._global_module_registration_hooks
    assert not torch.nn.modules.module._global_parameter_registration_hooks


def test_a_network_that_is_filled_anyway_is_not_drawn_first_and_has_the_same_weights():
    before = torch.get_rng_state()
    with registry._Unfilled():
        nn.Linear(4, 4), nn.Conv2d(4, 4, 3), nn.Embedding(4, 4)
        nn.init.normal_(nn.Parameter(torch.empty(4, 4)), std=0.02)
    assert torch.equal(torch.get_rng_state(), before)
    card = find_card("digits-flow-small")
    quick = build_adapter(card, random_weights=True).network.state_dict()
    for name, value in registry.empty(card).randomise().network.state_dict().items():
        assert torch.equal(quick[name], value), name
