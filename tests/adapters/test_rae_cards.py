"""RAE's cards: published files, sizes, settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import adapters.cards
from adapters.networks.rae_decoder import RAEDecoder
from adapters.rae import RAE
from bench.contracts.card import ModelCard
from bench.models.cards import load_card

CARDS = {path.stem: load_card(path) for path in Path(adapters.cards.__path__[0]).glob("rae-*.toml")}


@pytest.mark.parametrize("name", ["rae-xl-256", "rae-xl-512", "rae-s-256", "rae-s-512"])
def test_card_names_the_published_files_and_sizes(name: str) -> None:
    card = CARDS[name]
    with torch.device("meta"):
        adapter = RAE(card)
    networks = {"rae-xl": (838_380_628, 382), "rae-s": (196_357_204, 190)}
    size, tensors = networks[name.rpartition("-")[0]]
    assert sum(parameter.numel() for parameter in adapter.network.parameters()) == size == card.parameters
    assert len(adapter.network.state_dict()) == tensors
    assert set(card.extra_weights) == ({"guide", "statistics"} if "xl" in name else {"statistics"})
    weights: list[Any] = [card.weights, *card.extra_weights.values()]
    assert all(source and source.repo == "nyu-visionx/RAE-collections" for source in weights)
    assert weights[0].file.startswith("DiTs/Dinov2/")  # upstream's case, which differs between the folders
    assert weights[-1].file.startswith("stats/dinov2/")
    assert weights[0].file.split("/")[3] == f"ImageNet{card.resolution}"
    assert weights[-1].file.split("/")[3] == {256: "imagenet1k", 512: "imagenet1k_512"}[card.resolution]
    if adapter.guide is not None:
        assert sum(parameter.numel() for parameter in adapter.guide.parameters()) == networks["rae-s"][0]
        weak = CARDS[name.replace("xl", "s")]
        assert card.extra_weights["guide"] == weak.weights
        assert card.architecture["guide"] == weak.architecture
    decoder = adapter.autoencoder.decoder
    assert isinstance(decoder, RAEDecoder)
    assert decoder.side * decoder.patch_size == card.resolution
    assert decoder.side == card.latent_shape[1] == card.architecture["input_size"]


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_native_sampling_is_shifted_by_the_latents_size_and_plain_is_not(card: ModelCard) -> None:
    c, h, w = card.latent_shape
    for steps in (1, 2, 25, 49):
        native = card.settings(steps)
        assert native["time_dist_shift_dim"] == c * h * w
        assert native["time_dist_shift_base"] == 4096
    assert "time_dist_shift_dim" not in card.settings(49, "plain")


def test_natural_settings_are_autoguidance_as_published() -> None:
    assert {card.name for card in CARDS.values()} == {"rae-xl-256", "rae-xl-512", "rae-s-256", "rae-s-512"}
    assert CARDS["rae-xl-256"].guidance.natural == 1.42
    assert CARDS["rae-xl-512"].guidance.natural == 1.5
    for card in CARDS.values():
        assert card.sampler["method"] == card.guidance.kind
        assert all(figure.steps == figure.nfe == card.natural_steps == 49 for figure in card.published)
