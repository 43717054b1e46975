"""Consistency models, CTM and CAF on the ADM U-Net: what their recordings do not hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from adapters.caf import CAF, published_times
from adapters.consistency_models import ConsistencyModel, ConsistencySettings
from adapters.ctm import CTM, CTMSettings
from adapters.networks.adm import ADMUNet, from_upstream
from bench.contracts.adapter import Adapter
from bench.contracts.evaluations import Evaluations
from bench.contracts.noise import PhiloxNoise
from bench.contracts.recording import load_case, recorded_adapter
from bench.models.cards import cards, find_card
from bench.models.registry import skeleton
from bench.recordings.replay import run_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("consistency-lsun256-tiny", "ctm-tiny", "caf-uncond-a")
CARDS = sorted(name for name, card in cards().items() if card.family in ("consistency", "ctm", "caf"))
SMALL: Mapping[str, Any] = {
    "image_size": 8, "model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1, "num_head_channels": 16,
    "attention_downsample_factors": [2],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_recorded_call_is_reproduced(name: str) -> None:
    results = run_case(GOLDEN / name)
    assert results and [result for result in results if not result.ok] == []


@pytest.mark.parametrize("name", CARDS)
def test_a_card_states_the_parameters_of_its_networks_and_a_teacher_that_there_is(name: str) -> None:
    card = find_card(name)
    assert sum(parameter.numel() for parameter in skeleton(card).network.parameters()) == card.parameters
    assert card.teacher is None or card.teacher in cards()
    assert (card.teacher is not None) == (name.startswith("cd-") or card.family == "ctm")


@pytest.mark.parametrize("facts", [{"num_classes": 10}, {"use_scale_shift_norm": False}])
def test_the_network_is_diffusers_own(facts: dict[str, Any]) -> None:
    theirs = UNet2DModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=16, downsample_type="resnet",
        upsample_type="resnet", down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), num_class_embeds=facts.get("num_classes"),
        resnet_time_scale_shift="scale_shift" if facts.get("use_scale_shift_norm", True) else "default",
        attn_norm_num_groups=32 if facts.get("use_scale_shift_norm", True) else None,
    ).eval()  # fmt: skip
    ours = ADMUNet(**{**SMALL, **facts}).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(3, 3, 8, 8, generator=generator), torch.tensor([-1500.0, 3.5, 1095.0])
    labels = torch.tensor([0, 4, 9]) if "num_classes" in facts else None
    with torch.inference_mode():
        torch.testing.assert_close(ours(x, t, labels), theirs(x, t, class_labels=labels).sample, atol=0, rtol=0)


def test_the_time_is_embedded_in_the_networks_width_whatever_that_of_its_first_level() -> None:
    network = ADMUNet(**{**SMALL, "channel_mult": [2, 1], "num_classes": 10}, second_time=True).eval()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["conv_in.weight"] == (64, 3, 3, 3) and shapes["time_embedding.linear_1.weight"] == (128, 32)
    assert shapes["class_embedding.weight"] == (10, 128)
    assert {shape[1] for name, shape in shapes.items() if name.endswith(("proj.t.weight", "proj.s.weight"))} == {128}
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([-3.0, 800.0])
    with torch.inference_mode():
        out = [network(x, t + 100 * k, torch.tensor([1, 2]), time_s=t) for k in range(2)]
    assert out[0].shape == x.shape and not torch.allclose(*out)


def test_the_hubs_first_upload_without_the_norm_of_the_middle_is_refused() -> None:
    card = replace(find_card("ct-imagenet-64"), architecture={**SMALL, "num_classes": 10}, latent_shape=(3, 8, 8))
    adapter = ConsistencyModel(card)
    state = dict(adapter.network.state_dict())
    adapter.load(state, {})
    del state["mid_block.attentions.0.group_norm.weight"]
    with pytest.raises(BenchError, match=r"missing: mid_block\.attentions\.0\.group_norm\.weight"):
        adapter.load(state, {})


def test_names_that_no_block_has_are_left_to_strict_loading() -> None:
    state = load_case(GOLDEN / "consistency-lsun256-tiny").weights
    state = {f"module.{key}": value for key, value in state.items()}
    network = ADMUNet(**SMALL, use_scale_shift_norm=False)
    assert set(from_upstream(state, 2, 1)) == set(network.state_dict())
    strange = {**state, "module.input_blocks.9.0.in_layers.0.weight": torch.zeros(1)}
    assert "input_blocks.9.0.in_layers.0.weight" in from_upstream(strange, 2, 1)


@pytest.mark.parametrize(
    ("name", "steps", "settings", "message"),
    [
        ("cd-imagenet-64-lpips", 40, {}, "takes 1 to 39 steps on its noise grid of 40 points"),
        ("cd-imagenet-64-lpips", 3, {"ts": [0, 22, 39]}, "takes 2 steps with ts [0, 22, 39], found 3: give 4 indices"),
        ("cd-imagenet-64-lpips", 2, {"ts": [0, 106, 200]}, "has a noise grid of 40 points, 0 to 39"),
        ("cd-imagenet-64-lpips", 2, {"sampler": "heun"}, "takes ts with sampler multistep only"),
        ("cm-edm-imagenet-64", 1, {}, "takes 2 or more steps"),
        ("ctm-imagenet-64", 3, {"sampler": "gamma"}, "takes 2 steps with sampler gamma, found 3"),
        ("ctm-imagenet-64", 2, {"sampler": "gamma", "ind_1": 3}, "needs ind_2 <= ind_1 < grid"),
        ("ctm-imagenet-64", 2, {"ts": [0, 39]}, "takes 1 step with ts [0, 39], found 2"),
        ("ctm-imagenet-64", 1, {"sampler": "heun"}, "takes 2 or more steps with sampler heun"),
    ],
)
def test_steps_that_the_time_indices_do_not_have_are_refused_with_those_they_have(
    name: str, steps: int, settings: dict[str, Any], message: str
) -> None:
    adapter = skeleton(find_card(name))
    reason = adapter.unsupported(steps, 1.0, adapter.resolve_settings(steps, overrides=settings))
    assert message in str(reason) and "\n" not in str(reason)


@pytest.mark.parametrize("name", ["ct-cat-256", "ctm-imagenet-64", "caf-imagenet-64"])
def test_guidance_is_refused(name: str) -> None:
    assert "takes no guidance" in str(skeleton(find_card(name)).unsupported(1, 1.5))


def test_indices_that_were_not_published_are_equally_far_apart() -> None:
    assert ConsistencySettings(scales=201).indices(4) == [0, 50, 100, 150, 200]
    assert find_card("ct-imagenet-64").settings(2)["ts"] == [0, 106, 200]
    for steps in range(1, 40):
        ts = ConsistencySettings().indices(steps)
        assert (ts[0], ts[-1], len(set(ts))) == (0, 39, steps + 1)


@pytest.mark.parametrize("ts", [(0,), (0, 5, 5), (3, 1), (-1, 4)])
def test_indices_that_do_not_rise_are_refused(ts: tuple[int, ...]) -> None:
    with pytest.raises(BenchError, match="sampler setting ts must be"):
        CTMSettings.checked({"ts": ts}, "mine")


def evaluations(adapter: Adapter, steps: int, **settings: Any) -> float:
    with Evaluations(adapter.network) as counted:
        adapter.sample_latents(torch.tensor([0]), steps, 1.0, noise=PhiloxNoise(1, [0]), **settings)
    return counted.rows


def test_a_consistency_models_steps_are_evaluations_and_heuns_are_two() -> None:
    adapter = recorded_adapter(load_case(GOLDEN / "consistency-lsun256-tiny"), ConsistencyModel)
    assert [evaluations(adapter, steps) for steps in (1, 2, 5)] == [1, 2, 5]
    assert evaluations(adapter, 4, sampler="heun") == 7


def test_gamma_leads_from_the_deterministic_jumps_to_a_consistency_models() -> None:
    adapter = recorded_adapter(load_case(GOLDEN / "ctm-tiny"), CTM)

    def sample(**settings: Any) -> torch.Tensor:
        return adapter.sample_latents(torch.tensor([1, 2]), 3, 1.0, noise=PhiloxNoise(1, [0, 1]), **settings)

    exact, cm = sample(), sample(sampler="cm_multistep")
    assert torch.equal(sample(sampler="gamma_multistep", gamma=0), exact)
    assert torch.equal(sample(sampler="gamma_multistep", gamma=1), cm)
    assert not torch.allclose(exact, cm, atol=1e-3)


def test_caf_costs_one_evaluation_more_than_it_has_steps_and_needs_both_networks() -> None:
    case = load_case(GOLDEN / "caf-uncond-a")
    adapter = recorded_adapter(case, CAF, channels=3, roles=("velocity",))
    assert [evaluations(adapter, steps) for steps in (1, 4)] == [2, 5]
    assert published_times(7)[:3] == [0.0, 0.142, 0.285]
    with pytest.raises(BenchError, match=r"extra_weights\.velocity"):
        adapter.load(case.weights, {})


@pytest.mark.parametrize(
    ("name", "facts", "message"),
    [
        ("cd-cat-256-l2", {"depth": 3}, "architecture: .*depth"),
        ("cd-cat-256-l2", {"resblock_updown": False}, "resblock_updown must be true"),
        ("ctm-imagenet-64", {"outer_parametrization": "variance"}, "outer_parametrization must be 'euler'"),
        ("caf-imagenet-64", {"in_channels": 3}, "in_channels must be twice out_channels"),
    ],
)
def test_an_architecture_that_is_not_known_is_refused_in_one_line(
    name: str, facts: dict[str, Any], message: str
) -> None:
    card = find_card(name)
    with pytest.raises(BenchError, match=message) as refused, torch.device("meta"):
        skeleton(replace(card, architecture={**card.architecture, **facts}))
    assert "\n" not in str(refused.value)


def test_channels_that_a_card_leaves_out_are_the_networks_own() -> None:
    card = find_card("caf-imagenet-64")
    facts = {key: value for key, value in card.architecture.items() if key != "in_channels"}
    with pytest.raises(BenchError, match=r"twice out_channels, .* found 3 and 3"), torch.device("meta"):
        skeleton(replace(card, architecture=facts))
