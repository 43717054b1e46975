"""FACM, Decoupled MeanFlow, MF-RAE and alpha-Flow: recordings, step rules, files as people save them, refusals."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.alphaflow import AlphaFlow
from adapters.dmf import DecoupledMeanFlow, DMFSettings
from adapters.facm import FACM, FACMSettings
from adapters.facm import consistency_sample as facm_consistency
from adapters.flow_maps import flow_map_sample, restart_sample
from adapters.mf_rae import MeanFlowRAE
from adapters.networks.lightningdit import LightningDiT
from bench.contracts.adapter import Adapter
from bench.contracts.card import Guidance, ModelCard, WeightsSource
from bench.contracts.evaluations import Evaluations
from bench.contracts.noise import PhiloxNoise, RecordedNoise
from bench.contracts.recording import load_case
from bench.models.cards import cards
from bench.models.registry import skeleton
from bench.recordings.replay import run_case
from bench.weights.file import read_state
from results.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {"facm-a": FACM, "dmf-a": DecoupledMeanFlow, "mf-rae-a": MeanFlowRAE, "alphaflow-a": AlphaFlow}
NEW = [card for card in cards().values() if card.family in ("facm", "dmf", "mf-rae")]


def adapter(name: str, guidance: str = "classifier-free", **changes: Any) -> Adapter:
    """Return the adapter of a recording's architecture, with `changes`, and seeded weights."""
    facts = {**load_case(GOLDEN / name).architecture, **changes}
    shape, family = (facts["in_channels"], facts["input_size"], facts["input_size"]), CASES[name]
    card = ModelCard(name, name, name, 16, facts["num_classes"], shape, facts, guidance=Guidance(guidance))
    return family(card).randomise().to("cpu")


def nfe(model: Adapter, steps: int, cfg: float, **settings: Any) -> float:
    with Evaluations(model.network) as evaluations:
        model.sample_latents(torch.tensor([1, 2]), steps, cfg, noise=PhiloxNoise(0, range(2)), **settings)
    return evaluations.rows / 2


@pytest.mark.parametrize("name", CASES)
def test_recorded_calls_hold(name: str) -> None:
    results = run_case(GOLDEN / name)
    assert len(results) == len(load_case(GOLDEN / name).spec["calls"])
    assert [result for result in results if not result.ok] == []


def test_a_flow_map_jumps_and_a_restart_noises_again() -> None:
    seen = []

    def u(x: Tensor, t: float, r: float) -> Tensor:
        seen.append((t, r))
        return torch.full_like(x, 2.0)

    x = flow_map_sample(u, torch.full((1, 1), 3.0), (1.0, 0.25, 0.0))
    assert seen == [(1.0, 0.25), (0.25, 0.0)] and x.item() == pytest.approx(3.0 - 2.0)
    noise = RecordedNoise(torch.zeros(1, 1), torch.ones(1, 1, 1))
    x = restart_sample(u, torch.full((1, 1), 3.0), (1.0, 0.25, 0.0), noise)
    assert seen[2:] == [(1.0, 0.0), (0.25, 0.0)] and x.item() == pytest.approx(0.75 * (3 - 2) + 0.25 - 0.25 * 2)


def test_facm_is_the_same_rule_with_time_turned_round() -> None:
    def F(x: Tensor, t: float) -> Tensor:
        return t + x / 2

    noise = RecordedNoise(torch.zeros(1, 1), torch.full((3, 1, 1), 0.7))
    start = torch.full((1, 1), 3.0, dtype=torch.float64)
    found = facm_consistency(F, start, FACMSettings().clock(4), noise)
    turned = restart_sample(lambda x, t, r: -F(x, 1 - t), start, [1, 0.75, 0.5, 0.25, 0.0], noise)
    assert torch.allclose(found, turned)


def test_times_are_shifted_towards_noise() -> None:
    assert DMFSettings(shift=1.5).times(2) == [1.0, pytest.approx(0.6), 0.0]
    assert FACMSettings(sampler="euler", shift=0.5).clock(2) == [0.0, pytest.approx(1 / 3), 1.0]
    with pytest.raises(BenchError, match="shift is for sampler euler"):
        FACMSettings.checked({"shift": 0.5}, "facm")


@pytest.mark.parametrize(("name", "settings", "cost"), [
    ("facm-a", {}, 7),  # of the times 0, 1/4, 1/2 and 3/4 the first lies outside
    ("facm-a", {"interval": [0.25, 0.5]}, 6),
    ("dmf-a", {}, 8),
    ("dmf-a", {"interval": [0.0, 0.5]}, 6),
    ("dmf-a", {"sampler": "restart"}, 8),
    ("alphaflow-a", {"interval": [0.25, 0.75]}, 7),
])  # fmt: skip
def test_guidance_costs_a_second_evaluation_inside_its_interval(name: str, settings: Any, cost: int) -> None:
    model = adapter(name)
    assert nfe(model, 4, 2.0, **settings) == cost
    assert nfe(model, 4, 1.0, **settings) == 4


def test_a_solver_of_second_order_asks_the_flow_twice_a_step() -> None:
    assert nfe(adapter("facm-a"), 4, 1.0, sampler="heun2") == 8


def test_the_ends_of_an_interval_belong_to_it() -> None:
    assert nfe(adapter("dmf-a"), 10, 2.0, interval=[0.3, 0.7]) == 15


@pytest.mark.parametrize(("name", "changes", "reason"), [
    ("facm-a", {"wo_shift": True}, "wo_shift"),
    ("facm-a", {"auxiliary_time_cond": True}, "auxiliary_time_cond"),
    ("facm-a", {"use_resnet": True}, "use_resnet"),
    ("dmf-a", {"dmf_depth": 5}, r"dmf_depth must lie in 0\.\.4, found 5"),
    ("dmf-a", {"use_rope": True}, "use_rope"),
    ("mf-rae-a", {"use_conv": True}, "use_conv"),
    ("alphaflow-a", {"use_rope": True}, "use_rope"),
])  # fmt: skip
def test_an_architecture_that_cannot_be_built_is_refused_in_one_line(name: str, changes: Any, reason: str) -> None:
    with pytest.raises(BenchError, match=reason) as error:
        adapter(name, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("options", "key", "shape"), [
    ({"use_qknorm": False}, "blocks.0.attn.q_norm.weight", None),
    ({"use_qknorm": True, "use_rmsnorm": False}, "blocks.0.attn.k_norm.bias", (12,)),
    ({"use_swiglu": False, "mlp_ratio": 3.0}, "blocks.0.mlp.fc1.weight", (144, 48)),
    ({"use_rmsnorm": False}, "final_layer.norm_final.weight", None),
    ({"use_rope": False}, "feat_rope.freqs_cos", None),
    ({"learn_sigma": True}, "final_layer.linear.weight", (16, 48)),
    ({"class_dropout_prob": 0.0, "num_classes": 7}, "y_embedder.embedding_table.weight", (7, 48)),
    ({"num_classes": 0}, "y_embedder.embedding_table.weight", None),
])  # fmt: skip
def test_lightningdit_has_the_tensors_of_its_options(options: Any, key: str, shape: Any) -> None:
    facts = {"input_size": 4, "patch_size": 1, "in_channels": 8, "hidden_size": 48, "depth": 1, "num_heads": 4}
    network = LightningDiT(**({"num_classes": 10} | facts | options))
    found = network.state_dict().get(key)
    assert (None if found is None else tuple(found.shape)) == shape
    x = torch.zeros(2, 8, 4, 4)
    assert network(x, torch.tensor([0.1, 0.9]), torch.tensor([0, 1])).shape == x.shape


def test_facm_reads_the_average_that_its_authors_sample(tmp_path: Path) -> None:
    model, state = adapter("facm-a"), adapter("facm-a").network.state_dict()
    averages = {
        f"ema_models.{i}.{key}": value
        for i in (0, 1)
        for key, value in {
            **{f"ema_model.{key}": value + i for key, value in state.items()},
            "initted": torch.tensor(True), "step": torch.tensor(7),
        }.items()
    }  # fmt: skip
    file = tmp_path / "100ep-stg2.pt"
    torch.save({"emas": averages, "model": state, "args": argparse.Namespace(epochs=100), "step": 3}, file)
    with pytest.warns(match="left out"):
        model.load(read_state(file, WeightsSource("torch", path=file, tree="ema?"), "facm"), {})
    key = "blocks.1.attn.k_norm.weight"
    assert torch.equal(model.network.state_dict()[key], state[key] + 1)
    torch.save({"ema": state, "args": argparse.Namespace(epochs=100)}, file)
    model.load(read_state(file, WeightsSource("torch", path=file, tree="ema?"), "facm"), {})
    assert torch.equal(model.network.state_dict()[key], state[key])


def test_dmf_reads_its_norms_and_leaves_the_heads_of_the_training_out() -> None:
    model, state = adapter("dmf-a", qk_norm=True), adapter("dmf-a", qk_norm=True).network.state_dict()
    published = {key.replace("_norm.weight", "_norm.scale"): value + 1 for key, value in state.items()}
    assert "blocks.0.attn.q_norm.scale" in published
    model.load({**published, "logvar_linear.weight": torch.ones(1, 48)}, {})
    assert torch.equal(
        model.network.state_dict()["blocks.0.attn.q_norm.weight"], published["blocks.0.attn.q_norm.scale"]
    )
    with pytest.raises(BenchError, match="unexpected: other"):
        model.load({**published, "other": torch.ones(1)}, {})


def test_the_first_blocks_of_dmf_see_t_and_the_others_r() -> None:
    network = adapter("dmf-a").network
    seen: list[Tensor] = []
    for part in (*network.blocks, network.final_layer):
        part.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    network(torch.zeros(1, 4, 8, 8), torch.tensor([0.8]), torch.tensor([0.2]), torch.tensor([3]))
    t, r = (network.t_embedder(torch.tensor([value])) + network.y_embedder(torch.tensor([3])) for value in (0.8, 0.2))
    assert [torch.equal(c, t) for c in seen] == [True] * 3 + [False] * 2
    assert all(torch.equal(c, r) for c in seen[3:])


def test_mf_rae_takes_no_guidance_and_needs_the_statistics_that_its_card_names() -> None:
    model = adapter("mf-rae-a", "none")
    assert model.unsupported(4, 1.0) is None and "no guidance" in str(model.unsupported(2, 1.5))
    named = {"statistics": WeightsSource("torch", repo="a/b", file="stat.pt")}
    needy = MeanFlowRAE(replace(model.card, extra_weights=named))
    with pytest.raises(BenchError, match="no state was given for 'statistics'"):
        needy.load(model.network.state_dict(), {})
    state, shape = model.network.state_dict(), model.latent_shape
    needy.load({"ema": state}, {"statistics": {"mean": torch.full(shape, 2.0), "var": torch.full(shape, 9.0)}})
    assert torch.allclose(needy.decode(torch.ones(1, *shape)), torch.tensor(5.0), atol=1e-5)


def snapshot(model: Adapter) -> dict[str, Tensor]:
    names = {"t_embedder": "noise_labels_embedder", "r_embedder": "noise_labels_next_embedder"}
    state = {}
    for key, value in model.network.state_dict().items():
        first, _, rest = key.partition(".")
        state[f"model.{names.get(first, first)}" + (f".{rest}" if rest else "")] = value
    shape = (1, *model.latent_shape)
    statistics = {
        "autoencoder_mean": torch.full(shape, 2.0).double(),
        "autoencoder_var": torch.full(shape, 9.0).double(),
    }
    return {**state, **statistics, "are_ldm_stats_inited": torch.tensor(True), "autoencoder.decoder.w": torch.ones(1)}


def test_alphaflow_takes_network_and_statistics_from_the_snapshot() -> None:
    source = adapter("alphaflow-a")
    config = {"latent_channels": 4, "base_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1}
    facts = {"kind": "kl", "multiplier": 1.0, "config": {**config, "attn_resolutions": ()}}
    model = AlphaFlow(replace(source.card, autoencoder=facts))
    model.load(snapshot(source), {})
    key = "r_embedder.mlp.0.weight"
    assert torch.equal(model.network.state_dict()[key], source.network.state_dict()[key])
    assert torch.allclose(model.autoencoder.mean, torch.tensor(2.0))
    assert torch.allclose(model.autoencoder.std, torch.tensor(3.0))
    bare = {key: value for key, value in snapshot(source).items() if not key.startswith("autoencoder_")}
    with pytest.raises(BenchError, match="lack the statistics of the latents"):
        model.load(bare, {})


def test_alphaflow_without_label_dropout_takes_no_guidance() -> None:
    model = adapter("alphaflow-a", label_dropout=0.0)
    assert model.network.y_embedder.embedding_table.num_embeddings == 10
    assert "without a null label" in str(model.unsupported(1, 2.0)) and model.unsupported(1, 1.0) is None


@pytest.mark.parametrize("card", NEW, ids=[card.name for card in NEW])
def test_cards_state_the_size_of_their_networks(card: ModelCard) -> None:
    model = skeleton(card)
    assert sum(parameter.numel() for parameter in model.network.parameters()) == card.parameters
    assert card.latent_shape[-1] * model.autoencoder.downsample == card.resolution
    for steps in (1, 2, 4, card.natural_steps):
        model.resolve_settings(steps)
