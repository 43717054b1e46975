from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import adapters.cards
from adapters.autoencoders import build_autoencoder
from adapters.ucgm import UCGM
from bench.contracts.card import ModelCard
from bench.contracts.noise import PhiloxNoise
from bench.models.cards import load_card

PATHS = sorted(Path(adapters.cards.__path__[0]).glob("ucgm-*.toml"))
CARDS = {path.stem: load_card(path) for path in PATHS}
MODELS = [name for name, card in CARDS.items() if not card.members]
TRANSFORMER = {"input_size": 2, "patch_size": 1, "in_channels": 4, "hidden_size": 8}
TINY = {
    "TiT": {**TRANSFORMER, "depth": 1, "num_heads": 2},
    "SiT": {**TRANSFORMER, "depth": 1, "num_heads": 2},
    "LightningDiT": {**TRANSFORMER, "depth": 1, "num_heads": 2},
    "DDT": {**TRANSFORMER, "num_blocks": 2, "num_encoder_blocks": 1, "num_groups": 2},
    "EDM2": {
        "input_size": 2, "in_channels": 4, "model_channels": 8, "channel_mult": [1], "num_blocks": 1,
        "attn_resolutions": [], "channels_per_head": 8,
    },
}  # fmt: skip


def shrunk(card: ModelCard) -> UCGM:
    """The card's sampler and guidance on a network small enough to run its published step count."""
    network = card.architecture["network"]
    return UCGM(
        replace(card, architecture={"network": network, **TINY[network]}, latent_shape=(4, 2, 2), autoencoder=None)
    )


def cost(card: ModelCard, steps: int, cfg: float) -> float:
    adapter = shrunk(card)
    rows = 0

    def count(_: object, arguments: tuple[Tensor, ...]) -> None:
        nonlocal rows
        rows += len(arguments[0])

    adapter.network.register_forward_pre_hook(count)
    adapter.sample(torch.tensor([1, 2]), steps, cfg, noise=PhiloxNoise(0, [0, 1]))
    return rows / 2


def test_every_published_configuration_has_a_card() -> None:
    assert len(MODELS) == 23
    files = {card.weights.file for card in CARDS.values() if card.weights}
    assert len(files) == 23
    groups = [str(file).split("/")[1] for file in files]
    counts = {group: groups.count(group) for group in set(groups)}
    assert counts == {
        "training_few_steps": 7, "training_multi_steps": 5, "tuning_few_steps": 4, "sampling_multi_steps": 7,
    }  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_card_builds_the_network_and_autoencoder_it_describes(name: str) -> None:
    card = CARDS[name]
    with torch.device("meta"):
        adapter = UCGM(card)
        latents = torch.zeros(1, *card.latent_shape)
        output = adapter.evaluate(latents, 0.5, torch.zeros(1, dtype=torch.int64))
    assert output.shape == latents.shape
    assert sum(p.numel() for p in adapter.network.parameters()) == card.parameters
    assert card.latent_shape[-1] * adapter.autoencoder.downsample == card.resolution
    assert card.name == name


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("ucgm-xl-few", 675.2),
        ("ucgm-s-sit-xl-repae-256", 675.1),
        ("ucgm-s-lightningdit-xl-256", 675.3),
        ("ucgm-s-ddt-xl-256", 674.6),
        ("ucgm-s-edm2-s-512", 280.2),
        ("ucgm-s-edm2-l-512", 777.5),
        ("ucgm-s-edm2-xxl-512", 1523.2),
    ],
)
def test_networks_are_of_the_published_size(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = UCGM(CARDS[name]).network
    tables = sum(buffer.numel() for key, buffer in network.named_buffers() if key == "pos_embed")
    total = sum(parameter.numel() for parameter in network.parameters()) + tables
    assert total / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(
    ("name", "steps", "nfe"),
    [(name, figure.steps, figure.nfe) for name in MODELS for figure in CARDS[name].published],
)
def test_published_settings_cost_what_the_card_says(name: str, steps: int, nfe: float) -> None:
    card = CARDS[name]
    cfg = next(figure.cfg for figure in card.published if figure.steps == steps)
    assert cfg is not None
    assert cost(card, steps, cfg) == nfe


def test_the_80_evaluations_of_repae_are_61() -> None:
    card = CARDS["ucgm-s-sit-xl-repae-256"]
    assert (card.natural_steps, card.guidance.natural) == (40, 2.5)
    assert cost(card, 40, 2.5) == 61
    assert cost(card, 40, 1.0) == 40


def test_natural_settings_are_within_the_regime_and_have_a_preset() -> None:
    for name in MODELS:
        card = CARDS[name]
        assert not card.off_regime(card.natural_steps), name
        assert card.settings(card.natural_steps) != card.settings(card.natural_steps, "plain"), name


def test_the_plain_sampler_has_no_tuned_constant() -> None:
    for name in MODELS:
        card = CARDS[name]
        plain = card.settings(card.natural_steps, "plain")
        assert set(plain) <= {"transport", "stochast_ratio", "rfba_gap_steps", "guided_channels"}, name
        assert plain.get("rfba_gap_steps", [0.001, 0.0]) == [0.001, 0.0], name


def test_the_pair_hands_few_steps_to_the_few_step_checkpoint() -> None:
    pair = CARDS["ucgm-xl"]
    assert {pair.member(steps) for steps in range(1, 9)} == {"ucgm-xl-few"}
    assert {pair.member(steps) for steps in (9, 30, 40, 1000)} == {"ucgm-xl-multi"}
    few, multi = CARDS["ucgm-xl-few"], CARDS["ucgm-xl-multi"]
    assert few.settings(2)["rfba_gap_steps"] == [0.001, 0.3]
    assert multi.settings(30)["extrapol_ratio"] == 0.5
    assert few.settings(5) == few.settings(2)
    assert multi.settings(12) == multi.settings(30)
    assert few.off_regime(9)
    assert not few.off_regime(8)
    assert multi.off_regime(2)
    assert pair.latent_shape == few.latent_shape == multi.latent_shape


def test_decoders_see_the_statistics_that_belong_to_them() -> None:
    for name in MODELS:
        facts = CARDS[name].autoencoder
        assert facts is not None
        with torch.device("meta"):
            autoencoder = build_autoencoder(facts)
        measured = facts["kind"] in ("va-vae", "e2e-va-vae", "dc-ae-f32c32")
        assert ("statistics" in autoencoder.sources()) == measured
        assert autoencoder.multiplier == (0.18215 if facts["kind"] == "sd-vae-ema" else 1.0)
