"""JiT and the models that FD-Loss trained: recordings, guidance that one step never meets, files, cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.imeanflow import ImprovedMeanFlow
from adapters.jit import JiT, JiTSettings, jit_sample
from adapters.pixel_meanflow import PixelMeanFlow
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.evaluations import Evaluations
from bench.contracts.noise import PhiloxNoise
from bench.contracts.recording import load_case
from bench.models.cards import cards
from bench.models.registry import skeleton
from bench.recordings.replay import run_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden"
CARDS = {name: card for name, card in cards().items() if card.family == "jit" or name.startswith("fd-loss-")}


def tiny(**changes: Any) -> JiT:
    facts = {**load_case(GOLDEN / "jit-a").architecture, **changes}
    card = ModelCard("jit", "jit", "jit", 16, 10, (3, 16, 16), facts, guidance=Guidance("classifier-free"))
    return JiT(card).randomise().to("cpu")  # type: ignore[return-value]


def sample(model: JiT, steps: int, cfg: float, **settings: Any) -> tuple[Tensor, float]:
    with Evaluations(model.network) as evaluations:
        images = model.sample(torch.tensor([1, 2]), steps, cfg, noise=PhiloxNoise(0, range(2)), **settings)
    return images, evaluations.rows / 2


def test_recorded_calls_hold() -> None:
    assert [result for result in run_case(GOLDEN / "jit-a") if not result.ok] == []


def test_at_one_step_guidance_on_the_published_interval_is_off_and_costs_nothing() -> None:
    model, interval = tiny(), [0.1, 1.0]
    plain, guided = sample(model, 1, 1.0), sample(model, 1, 3.0, interval=interval)
    assert torch.equal(plain[0], guided[0]) and plain[1] == guided[1] == 1
    assert sample(model, 1, 3.0)[1] == 1, "an interval that begins at 0 leaves the first time out too"


@pytest.mark.parametrize(("settings", "cfg", "cost"), [
    ({"method": "heun"}, 1.0, 7),
    ({"method": "heun", "interval": [0.1, 1.0]}, 2.0, 13),  # the first of the seven times is noise, outside
    ({"interval": [0.25, 0.75]}, 2.0, 5),  # both ends are excluded
    ({"interval": [0.2, 0.8]}, 2.0, 7),
])  # fmt: skip
def test_evaluations_of_four_steps(settings: Any, cfg: float, cost: int) -> None:
    assert sample(tiny(), 4, cfg, **settings)[1] == cost


def test_heuns_last_step_is_eulers() -> None:
    times = []

    def v(z: Tensor, t: float) -> Tensor:
        times.append(t)
        return z

    z = jit_sample(v, torch.ones(1, 1), (1.0, 0.5, 0.0), "heun")
    assert times == [1.0, 0.5, 0.5]
    assert z.item() == pytest.approx((1 - 0.5 * (1 + 0.5) / 2) * 0.5)


def test_the_interval_is_in_the_networks_time() -> None:
    settings = JiTSettings(interval=(0.1, 0.65))
    assert [settings.guides(t) for t in (1.0, 0.95, 0.89, 0.36, 0.35, 0.2)] == [False, False, True, True, False, False]
    assert JiTSettings(interval=(0.1, 1.0)).guides(0.0)


def test_tokens_of_the_label_stand_before_the_patches_from_their_block_on() -> None:
    network, seen = tiny().network, []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    network(torch.zeros(1, 3, 16, 16), torch.tensor([0.5]), torch.tensor([0]))
    assert seen == [16, 16, 20, 20]


def test_a_fixed_position_table_need_not_be_in_the_file() -> None:
    model, source = tiny(learned_pe=False), tiny(learned_pe=False).network.state_dict()
    state = {f"net.{key}": value for key, value in source.items() if key != "pos_embed"}
    model.load({**state, "net.feat_rope.freqs_cos": torch.zeros(1)}, {})
    with pytest.raises(BenchError, match="missing: pos_embed"):
        tiny().load(state, {})


@pytest.mark.parametrize("changes", [{"rope_2d": False}, {"use_conv": True}])
def test_what_no_published_model_has_is_refused_in_one_line(changes: Any) -> None:
    with pytest.raises(BenchError, match=next(iter(changes))) as error:
        tiny(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "family"), [("imf-torch-a", ImprovedMeanFlow), ("pmf-torch-a", PixelMeanFlow)])
def test_fd_losss_names_of_layers_are_understood(name: str, family: type[ImprovedMeanFlow]) -> None:
    case = load_case(GOLDEN / name)
    size = next(case.architecture[key] for key in ("latent_size", "input_size") if key in case.architecture)
    shape = (case.architecture["in_channels"], size, size)
    card = ModelCard(name, name, name, 16, case.architecture["num_classes"], shape, case.architecture)
    renamed = {
        key.removeprefix("net.").replace("_flax_linear", "linear").replace("_flax_embedding", "embedding"): value
        for key, value in case.weights.items()
        if "v_final_layer" not in key
    }
    assert any(key.startswith("u_final_layer.linear.linear.") for key in renamed)
    theirs, ours = family(card), family(card)
    theirs.load(renamed, {})
    ours.load(case.weights, {})
    for key, value in ours.network.state_dict().items():
        assert key.startswith("v_final_layer") or torch.equal(theirs.network.state_dict()[key], value), key


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_cards_state_the_size_of_their_networks_and_what_they_were_trained_on(card: ModelCard) -> None:
    model = skeleton(card)
    assert sum(parameter.numel() for parameter in model.network.parameters()) == card.parameters
    for steps in (1, 2, 4, card.natural_steps):
        model.resolve_settings(steps)
    trained = ("inception",) if card.name.endswith("-inception") else ("siglip", "inception", "mae")
    assert card.trained_on == (trained if card.name.startswith("fd-loss-") else ())


def test_every_released_network_of_fd_loss_has_a_card_for_each_loss() -> None:
    names = {name for name in CARDS if name.startswith("fd-loss-")}
    assert len(names) == 18 and len({CARDS[name].weights.file for name in names}) == 18
