"""MeanFlow: recorded behaviour, the average-velocity rule, guidance on top of trained guidance, the CIFAR-10 U-Net."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.meanflow import MeanFlow, consistency_sample, meanflow_sample, replay, uniform_times
from adapters.networks.songunet import SongBlock
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.noise import PhiloxNoise, RecordedNoise
from bench.contracts.recording import Case, load_case
from bench.recordings.replay import replay_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("meanflow-dit-a", "meanflow-unet-a")
DIT = {
    "network": "sit", "latent_size": 4, "patch_size": 2, "in_channels": 4, "hidden_size": 16, "depth": 1,
    "num_heads": 2, "mlp_ratio": 2.0, "num_classes": 3,
}  # fmt: skip
UNET = {
    "network": "songunet", "img_resolution": 8, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1,
    "attn_resolutions": [4],
}  # fmt: skip
LABELS = torch.tensor([0, 1, 2])


def tiny(architecture: dict[str, object] = DIT) -> MeanFlow:
    classes = architecture.get("num_classes", 0)
    shape, kind = ((4, 4, 4), "classifier-free") if classes else ((3, 8, 8), "none")
    card = ModelCard("tiny", "meanflow", "tiny", 8, classes, shape, architecture, guidance=Guidance(kind))
    return MeanFlow(card).randomise().to("cpu")  # type: ignore[return-value]


def sample(adapter: MeanFlow, steps: int, cfg: float = 1.0, indices: range = range(3), **settings: object) -> Tensor:
    with torch.inference_mode():
        labels = adapter.own_labels(LABELS[list(indices)])
        return adapter.sample_latents(labels, steps, cfg, noise=PhiloxNoise(0, indices), **settings)


def watch(adapter: MeanFlow) -> list[tuple[Tensor, ...]]:
    calls: list[tuple[Tensor, ...]] = []
    adapter.network.register_forward_hook(lambda module, inputs, output: calls.append(inputs))
    return calls


@pytest.mark.parametrize("name", CASES)
def test_recorded_calls_hold(name: str) -> None:
    case = load_case(GOLDEN / name)
    results = replay_case(case, replay(case))
    assert len(results) == len(json.loads((GOLDEN / name / "case.json").read_text())["calls"])
    assert [result for result in results if not result.ok] == []


def test_rule_subtracts_the_average_velocity_over_each_interval() -> None:
    seen = []

    def average_velocity(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        seen.append((t.tolist(), h.tolist()))
        return torch.full_like(z, 10.0) * t[:, None]

    z = meanflow_sample(average_velocity, torch.zeros(2, 1), (1.0, 0.25, 0.0))
    assert seen == [([1.0, 1.0], [0.75, 0.75]), ([0.25, 0.25], [0.25, 0.25])]
    assert torch.allclose(z, torch.tensor(-(0.75 * 10 + 0.25 * 2.5)))


def test_exact_average_velocity_gives_the_same_result_at_any_step_count() -> None:
    """For dz/dt = -z the average over [t - h, t] is z (1 - e^h) / h, so that one step is exact."""

    def average_velocity(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        return z * ((1 - h.double().exp()) / h.double())[:, None]

    start = torch.ones(1, 1, dtype=torch.float64)
    for steps in (1, 2, 7):
        end = meanflow_sample(average_velocity, start, uniform_times(steps)).item()
        assert end == pytest.approx(2.718281828459045, rel=1e-6)


def test_uniform_times_have_both_ends() -> None:
    assert uniform_times(1) == (1.0, 0.0)
    assert uniform_times(4) == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_two_steps_differ_from_one_and_the_network_sees_half_the_interval() -> None:
    adapter = tiny()
    calls = watch(adapter)
    one, two = sample(adapter, 1), sample(adapter, 2)
    assert not torch.allclose(one, two, atol=1e-3)
    assert [(t[0].item(), h[0].item()) for _, t, h, _ in calls] == [(1.0, 1.0), (1.0, 0.5), (0.5, 0.5)]


def test_cfg_one_is_the_trained_model_in_one_pass_and_more_costs_two() -> None:
    adapter = tiny()
    calls = watch(adapter)
    sample(adapter, 2, 1.0)
    assert sum(len(inputs[0]) for inputs in calls) == 2 * 3
    calls.clear()
    sample(adapter, 2, 3.0)
    assert sum(len(inputs[0]) for inputs in calls) == 2 * 2 * 3


def test_guidance_mixes_the_null_label_from_outside() -> None:
    adapter = tiny()
    z, one = PhiloxNoise(0, range(3)).normal((4, 4, 4)), torch.ones(3)
    with torch.inference_mode():
        u_y = adapter.network(z, one, one, LABELS)
        u_null = adapter.network(z, one, one, torch.full_like(LABELS, 3))
    assert torch.allclose(sample(adapter, 1, 1.0), z - u_y, atol=1e-6)
    assert torch.allclose(sample(adapter, 1, 2.5), z - (u_null + 2.5 * (u_y - u_null)), atol=1e-5)


def swapped(case: Case) -> Case:
    exchange = {"net/t_embedder": "net/h_embedder", "net/h_embedder": "net/t_embedder"}
    weights = {}
    for key, value in case.weights.items():
        head = "/".join(key.split("/")[:2])
        weights[exchange.get(head, head) + key[len(head) :]] = value
    return Case(case.directory, case.spec, weights, case.tensors)


def test_swapped_time_and_interval_embedders_show_only_where_h_is_below_t() -> None:
    case = swapped(load_case(GOLDEN / "meanflow-dit-a"))
    results = {result.call: result.ok for result in replay_case(case, replay(case))}
    assert results["s1_0"], "at t = h = 1 the two embedders cannot be told apart"
    assert not results["u"]
    assert not results["s2_1"]


def test_unet_reads_qkv_as_three_blocks() -> None:
    """EDM's interleaved order loads the same weights without a fault and gives wrong images."""
    case = load_case(GOLDEN / "meanflow-unet-a")
    adapter = MeanFlow(ModelCard("a", "meanflow", "a", 16, 0, (3, 16, 16), case.architecture))
    adapter.load(case.weights, {})
    call = case.spec["calls"][0]
    inputs = [case.tensors[call["inputs"][role]] for role in ("x", "t", "h")]
    with torch.inference_mode():
        right = adapter.network.eval()(*inputs)
        for block in adapter.network.modules():
            if isinstance(block, SongBlock):
                block.interleaved_qkv = True
        wrong = adapter.network(*inputs)
    expected = case.tensors[call["output"]]
    assert torch.allclose(right, expected, atol=call["atol"])
    assert not torch.allclose(wrong, expected, atol=100 * call["atol"])


def test_cifar_checkpoint_gives_its_best_average() -> None:
    adapter, source = tiny(UNET), tiny(UNET)
    state = source.network.state_dict()
    copies = {
        f"{copy}.{key}": value + shift
        for shift, copy in enumerate(("net_ema1", "net", "net_ema", "net_ema2"))
        for key, value in state.items()
    }
    adapter.load({"num_updates": torch.tensor(7), **copies}, {})
    assert all(torch.equal(value, state[key]) for key, value in adapter.network.state_dict().items())


def test_unconditional_model_takes_no_guidance() -> None:
    adapter = tiny(UNET)
    assert sample(adapter, 2).shape == (3, 3, 8, 8)
    with pytest.raises(BenchError, match="takes no guidance"):
        adapter.sample(0 * LABELS, 1, 2.0, noise=PhiloxNoise(0, range(3)))


@pytest.mark.parametrize("architecture", [DIT, UNET], ids=["dit", "unet"])
def test_samples_do_not_depend_on_the_batch(architecture: dict[str, object]) -> None:
    adapter = tiny(architecture)
    cfg = 2.0 if "num_classes" in architecture else 1.0
    whole = sample(adapter, 2, cfg)
    parts = torch.cat([sample(adapter, 2, cfg, range(1)), sample(adapter, 2, cfg, range(1, 3))])
    assert torch.allclose(whole, parts, atol=1e-5)


def test_sixteen_bit_network_stays_close() -> None:
    exact, rounded = sample(tiny(), 2), sample(tiny().to("cpu", torch.bfloat16), 2)
    assert rounded.dtype == torch.float32
    assert (exact - rounded).abs().max() < 0.1 * exact.std()


@pytest.mark.parametrize("times", [(1.0, 0.0), (1.0, 0.5, 0.1), (0.9, 0.5, 0.0), (1.0, 1.0, 0.0), (0.0, 0.5, 1.0)])
def test_times_that_do_not_fall_from_one_to_zero_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(
        BenchError, match=r"2 steps need 3 values falling from 1 to 0|times must be numbers that fall from 1 to 0"
    ):
        sample(tiny(), 2, times=times)


def test_given_times_replace_the_uniform_grid() -> None:
    adapter = tiny()
    assert torch.equal(sample(adapter, 2, times=[1.0, 0.5, 0.0]), sample(adapter, 2))
    assert not torch.allclose(sample(adapter, 2, times=[1.0, 0.9, 0.0]), sample(adapter, 2), atol=1e-4)


def test_consistency_sampler_jumps_to_the_data_and_adds_fresh_noise() -> None:
    seen = []

    def average_velocity(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        seen.append((t.item(), h.item()))
        return z

    z = consistency_sample(
        average_velocity,
        torch.full((1, 1), 3.0),
        (1.0, 0.5, 0.0),
        RecordedNoise(torch.zeros(1, 1), torch.ones(1, 1, 1)),
    )
    assert seen == [(1.0, 1.0), (0.5, 0.5)]
    assert z.item() == pytest.approx(0.5 * 0.5 * 1.0)


def test_flax_array_that_no_rule_knows_is_listed() -> None:
    case = load_case(GOLDEN / "meanflow-dit-a")
    adapter = MeanFlow(ModelCard("mine", "meanflow", "a", 64, 10, (4, 8, 8), case.architecture))
    weights = {key: value for key, value in case.weights.items() if not key.endswith("x_embedder/proj/bias")}
    with pytest.raises(BenchError, match=r"mine do not fit: missing: x_embedder.proj.bias; unexpected: extra/kernel"):
        adapter.load({**weights, "net/extra/kernel": torch.zeros(1)}, {})


def test_unknown_network_and_unpublished_unet_variant_are_refused() -> None:
    with pytest.raises(BenchError, match="unknown MeanFlow network 'uvit'"):
        tiny({**DIT, "network": "uvit"})
    with pytest.raises(BenchError, match="encoder_type must be 'standard', found 'residual'"):
        tiny({**UNET, "encoder_type": "residual"})
    with pytest.raises(BenchError, match="sampler setting mode must be one of ode, consistency, found 'sde'"):
        sample(tiny(), 1, mode="sde")
