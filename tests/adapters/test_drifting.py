"""Drifting models: the recording, noise labels from the harness's noise, one step, cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.drifting import Drifting, Quantiles
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.noise import PhiloxNoise
from bench.contracts.recording import load_case
from bench.models.cards import cards
from bench.models.registry import skeleton
from bench.recordings.replay import run_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden"
CARDS = {name: card for name, card in cards().items() if card.family == "drifting"}


def tiny(**changes: Any) -> Drifting:
    facts = {**load_case(GOLDEN / "drift-latent-a").architecture, **changes}
    shape = (facts["in_channels"], facts["input_size"], facts["input_size"])
    card = ModelCard("drift", "drifting", "drift", 8, 10, shape, facts, guidance=Guidance("embedded"))
    return Drifting(card).randomise().to("cpu")  # type: ignore[return-value]


def test_recorded_calls_hold() -> None:
    results = run_case(GOLDEN / "drift-latent-a")
    assert len(results) == 2 and all(result.ok for result in results)


def test_noise_labels_are_uniform_and_the_same_whenever_they_are_asked_for() -> None:
    noise, quantiles = PhiloxNoise(3, range(2000)), Quantiles(8)
    labels = quantiles(noise.normal((4,), 1))
    assert labels.dtype == torch.int64 and labels.min() == 0 and labels.max() == 7
    counts = labels.flatten().bincount().double()
    assert ((counts - 1000) ** 2 / 1000).sum() < 24.3  # chi squared of 7 degrees of freedom, one in a thousand
    assert torch.equal(labels, quantiles(noise.normal((4,), 1)))
    assert torch.equal(Quantiles(8).to(torch.bfloat16)(noise.normal((4,), 1)), labels)


def test_noise_labels_move_the_image() -> None:
    model = tiny()
    x, labels, cfg = torch.zeros(1, 4, 8, 8), torch.tensor([1]), torch.ones(1)
    first, second = (model.network(x, labels, cfg, torch.full((1, 4), value)) for value in (0, 1))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(("steps", "cfg", "reason"), [(2, 1.0, "takes 1 step only"), (1, 0.5, "from 1 upwards")])
def test_other_steps_and_untrained_guidance_are_refused(steps: int, cfg: float, reason: str) -> None:
    assert reason in str(tiny().unsupported(steps, cfg))
    assert tiny().unsupported(1, 4.0) is None


@pytest.mark.parametrize("changes", [{"use_rmsnorm": False}, {"use_swiglu": False}, {"use_conv": True}])
def test_what_no_published_model_has_is_refused_in_one_line(changes: Any) -> None:
    with pytest.raises(BenchError, match=next(iter(changes))) as error:
        tiny(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [
    {"use_rope": False}, {"use_qknorm": False}, {"n_cls_tokens": 0}, {"cond_dim": 32}, {"patch_size": 4},
    {"in_channels": 3, "out_channels": 3},
])  # fmt: skip
def test_options_sample(changes: Any) -> None:
    model = tiny(**changes)
    assert model.sample(torch.tensor([1, 2]), 1, 2.0, noise=PhiloxNoise(0, range(2))).isfinite().all()


def test_a_file_with_the_tree_under_params_and_one_without_a_layer() -> None:
    case = load_case(GOLDEN / "drift-latent-a")
    tiny().load({f"params/{path}": value for path, value in case.weights.items()}, {})
    less = {path: value for path, value in case.weights.items() if path != "noise_embeds_2/embedding"}
    with pytest.raises(BenchError, match=r"missing: noise_embedders\.2\.weight"):
        tiny().load(less, {})


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_cards_state_the_size_of_their_networks(card: ModelCard) -> None:
    model = skeleton(card)
    assert sum(parameter.numel() for parameter in model.network.parameters()) == card.parameters
    assert card.supported_steps == (1,) and card.natural_steps == 1
    assert card.latent_shape[-1] * model.autoencoder.downsample == card.resolution
