"""The cards of the MeanFlow families: sizes on the meta device, presets that the sampler takes, published figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import adapters.cards
from adapters.alphaflow import AlphaFlow
from adapters.autoencoders import KINDS
from adapters.imeanflow import ImprovedMeanFlow
from adapters.meanflow import MeanFlow
from adapters.pixel_meanflow import PixelMeanFlow
from bench.contracts.card import ModelCard
from bench.models.cards import load_card

FAMILIES = {
    "alphaflow": AlphaFlow,
    "meanflow": MeanFlow,
    "imeanflow": ImprovedMeanFlow,
    "pixel_meanflow": PixelMeanFlow,
}
PATTERNS = ("meanflow-*.toml", "alphaflow-*.toml", "imf-*.toml", "pmf-*.toml")
CARDS = {path.stem: load_card(path) for pattern in PATTERNS for path in Path(adapters.cards.__path__[0]).glob(pattern)}
B_2, XL_2 = 131_091_472, 676_440_592
SIZES = {
    "meanflow-b-4": 131_165_248,
    "meanflow-sit-b-4": 131_165_248,
    "meanflow-sit-b-2": B_2,
    "meanflow-sit-l-2": 459_137_040,
    "meanflow-sit-xl-2": XL_2,
    "meanflow-cifar10": 55_932_419,
    "alphaflow-meanflow-b-2": B_2 - 768,
    "alphaflow-b-2": B_2 - 768,
    "alphaflow-b-2-cfg": B_2,
    "alphaflow-meanflow-xl-2-cfg": XL_2,
    "alphaflow-xl-2-cfg": XL_2,
    "alphaflow-xl-2-plus-cfg": XL_2,
    "imf-b": 88_948_256,
    "imf-m": 173_921_312,
    "imf-l": 409_071_648,
    "imf-xl": 610_433_056,
    "pmf-b-16": 118_234_240,
    "pmf-l-16": 410_320_768,
    "pmf-h-16": 955_508_992,
    "pmf-b-32": 120_300_928,
    "pmf-l-32": 412_977_280,
    "pmf-h-32": 959_050_240,
}
"""Numbers of parameters as the authors' networks have them, fixed tables not counted.

Without label dropout alpha-Flow's label tables have no null row.
"""


def test_every_published_checkpoint_has_its_card() -> None:
    assert set(CARDS) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_network_has_the_published_size(name: str) -> None:
    card = CARDS[name]
    with torch.device("meta"):
        network = FAMILIES[card.family].build_network(card.architecture)
    assert sum(parameter.numel() for parameter in network.parameters()) == SIZES[name] == card.parameters


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_card_is_complete(card: ModelCard) -> None:
    assert card.name == card.path.stem
    assert card.weights is not None
    assert card.weights.repo or card.weights.url
    assert card.licence != "unknown"
    assert "published figures" in card.notes
    assert card.latent_shape[1] * (8 if card.autoencoder else 1) == card.resolution
    assert card.autoencoder is None or card.autoencoder["kind"] in KINDS
    assert card.guidance.range[0] <= card.guidance.natural <= card.guidance.range[1]
    assert all(figure.nfe == figure.steps for figure in card.published)
    assert all(figure.metric in ("fid", "is") for figure in card.published)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_sampler_takes_the_settings_of_every_step_count(card: ModelCard) -> None:
    for steps in (1, 2, 4, 40):
        settings = FAMILIES[card.family].Settings.checked(card.settings(steps), card.name)
        assert dict(settings).items() >= card.settings(steps).items()


def test_settings_are_the_published_ones() -> None:
    assert CARDS["imf-xl"].settings(1) == {"t_min": 0.42, "t_max": 0.62}
    assert CARDS["imf-xl"].settings(2) == CARDS["imf-xl"].settings(25) == {"t_min": 0.36, "t_max": 0.64}
    assert CARDS["imf-m"].guidance.natural == 10.5
    assert CARDS["pmf-b-16"].settings(1) == {"t_min": 0.1, "t_max": 0.8}
    assert CARDS["imf-xl"].settings(1, "plain") == {}
    assert CARDS["alphaflow-xl-2-cfg"].settings(2) == {"mode": "consistency", "times": [1.0, 0.55, 0.0]}
    assert CARDS["alphaflow-xl-2-cfg"].settings(1) == {}


def test_official_models_are_natural_without_further_guidance() -> None:
    for card in CARDS.values():
        if card.family in ("alphaflow", "meanflow"):
            assert card.guidance.natural == 1.0
            assert all(figure.cfg == 1.0 for figure in card.published)


def test_latents_of_improved_meanflow_are_standardised_by_channel() -> None:
    facts = CARDS["imf-l"].autoencoder
    assert facts["multiplier"] == 1.0
    assert facts["std"] == [4.85503674, 5.31922414, 3.93725398, 3.9870003]
    assert "multiplier" not in CARDS["meanflow-b-4"].autoencoder
