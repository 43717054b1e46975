"""iMF and pMF: recorded behaviour, guidance as a network input, and what differs between latents and pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters import imeanflow, pixel_meanflow
from adapters.imeanflow import ImprovedMeanFlow
from adapters.networks.imfdit import ImfDiT, line_rotation, mlp_width, rotate
from adapters.networks.pmfdit import plane_rotation
from adapters.pixel_meanflow import PixelMeanFlow, pixel_mlp_width
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.noise import PhiloxNoise, RecordedNoise
from bench.contracts.recording import load_case
from bench.recordings.replay import replay_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden"
REPLAYS = {
    "imf-torch-a": imeanflow.replay,
    "imf-flax-a": imeanflow.replay,
    "pmf-torch-a": pixel_meanflow.replay,
    "pmf-flax-a": pixel_meanflow.replay,
}
TRUNK = {
    "input_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 2, "num_heads": 2,
    "aux_head_depth": 1, "mlp_ratio": "8/3", "num_classes": 3, "num_class_tokens": 2, "num_time_tokens": 1,
    "num_cfg_tokens": 1, "num_interval_tokens": 1,
}  # fmt: skip
PIXELS = {**TRUNK, "bottleneck_channels": 6, "noise_scale": 2.0}
LABELS = torch.tensor([0, 1, 2])
FAMILIES = pytest.mark.parametrize("family", [ImprovedMeanFlow, PixelMeanFlow])


def tiny(family: type[ImprovedMeanFlow] = ImprovedMeanFlow, **facts: object) -> ImprovedMeanFlow:
    architecture = (PIXELS if family is PixelMeanFlow else TRUNK) | facts
    adapter = family(ModelCard("tiny", "f", "tiny", 4, 3, (3, 4, 4), architecture, guidance=Guidance("embedded")))
    return adapter.randomise().to("cpu")  # type: ignore[return-value]


def sample(adapter: ImprovedMeanFlow, steps: int, cfg: float, indices: range = range(3), **settings: object) -> Tensor:
    with torch.inference_mode():
        return adapter.sample_latents(LABELS[list(indices)], steps, cfg, noise=PhiloxNoise(0, indices), **settings)


def inputs(count: int = 3) -> list[Tensor]:
    """Return x, t, h, omega, t_min, t_max, labels."""
    scalars = [torch.full((count,), value) for value in (0.8, 0.3, 4.0, 0.2, 0.7)]
    return [PhiloxNoise(1, range(count)).normal((3, 4, 4)), *scalars, LABELS[:count]]


def changed(values: list[Tensor], index: int, value: Tensor | float) -> list[Tensor]:
    new = value if isinstance(value, Tensor) else torch.full_like(values[index], value)
    return [*values[:index], new, *values[index + 1 :]]


@pytest.mark.parametrize("name", REPLAYS)
def test_recorded_calls_hold(name: str) -> None:
    case = load_case(GOLDEN / name)
    results = replay_case(case, REPLAYS[name](case))
    assert len(results) == len(case.spec["calls"])
    assert [result for result in results if not result.ok] == []


@FAMILIES
def test_every_condition_but_imf_time_changes_the_output(family: type[ImprovedMeanFlow]) -> None:
    network = tiny(family).network
    with torch.inference_mode():
        base = network(*inputs())
        for index, value in ((2, 0.6), (3, 1.0), (4, 0.0), (5, 1.0), (6, torch.tensor([2, 2, 0]))):
            other = network(*changed(inputs(), index, value))
            assert not torch.allclose(base, other, atol=1e-5), f"input {index} does nothing"
        other_time = network(*changed(inputs(), 1, 0.4))
    assert torch.equal(base, other_time) == (family is ImprovedMeanFlow)


def test_omega_enters_as_one_minus_its_inverse() -> None:
    network = tiny().network
    network.omega_embedder = torch.nn.Identity()
    network.omega_embedder.forward = lambda value: value[:, None].expand(-1, 16)
    tokens = network.condition_tokens(*inputs()[2:])
    assert torch.allclose(tokens[:, 2] - network.omega_tokens, torch.tensor(0.75))


@FAMILIES
def test_guided_steps_cost_one_pass_and_see_the_same_scale_and_interval(family: type[ImprovedMeanFlow]) -> None:
    adapter = tiny(family)
    calls: list[tuple[Tensor, ...]] = []
    adapter.network.register_forward_hook(lambda module, inputs, output: calls.append(inputs))
    sample(adapter, 4, 6.0, t_min=0.3, t_max=0.6)
    assert sum(len(call[0]) for call in calls) == 4 * 3
    assert [[round(value[0].item(), 4) for value in call[1:6]] for call in calls] == [
        [1.0, 0.25, 6.0, 0.3, 0.6],
        [0.75, 0.25, 6.0, 0.3, 0.6],
        [0.5, 0.25, 6.0, 0.3, 0.6],
        [0.25, 0.25, 6.0, 0.3, 0.6],
    ]


def test_unguided_is_omega_one_on_the_whole_interval() -> None:
    adapter = tiny()
    z, one = PhiloxNoise(0, range(3)).normal((3, 4, 4)), torch.ones(3)
    with torch.inference_mode():
        u = adapter.network(z, one, one, one, torch.zeros(3), one, LABELS)
    assert torch.allclose(sample(adapter, 1, 1.0), z - u, atol=1e-6)


@pytest.mark.parametrize("cfg", [0.0, 0.5, -1.0])
def test_scale_below_one_is_refused(cfg: float) -> None:
    with pytest.raises(BenchError, match="takes guidance from 1"):
        tiny().sample(LABELS, 1, cfg, noise=PhiloxNoise(0, range(3)))


@pytest.mark.parametrize("interval", [(0.6, 0.4), (-0.1, 0.5), (0.2, 1.1)])
def test_interval_out_of_order_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(BenchError, match=r"guidance interval|t_m(in|ax) must be a number in \[0, 1\]"):
        sample(tiny(), 1, 2.0, t_min=interval[0], t_max=interval[1])


@FAMILIES
def test_samples_do_not_depend_on_the_batch(family: type[ImprovedMeanFlow]) -> None:
    adapter = tiny(family)
    whole = sample(adapter, 3, 4.0)
    parts = torch.cat([sample(adapter, 3, 4.0, range(2)), sample(adapter, 3, 4.0, range(2, 3))])
    assert torch.allclose(whole, parts, atol=1e-5)


@FAMILIES
def test_sixteen_bits_keep_the_rotation_exact(family: type[ImprovedMeanFlow]) -> None:
    adapter = tiny(family)
    with torch.inference_mode():
        exact = adapter.network(*inputs())
        adapter.to("cpu", torch.bfloat16)
        rounded = adapter.network(*inputs())
    assert adapter.network.rotation.dtype == torch.float32
    assert rounded.dtype == torch.float32
    assert (exact - rounded).abs().max() < 0.1 * exact.std()


def test_mlp_width_is_truncated_and_rounded_up_only_for_the_widest_pixel_model() -> None:
    assert [mlp_width(width, "8/3") for width in (768, 1024)] == [2048, 2730]
    assert mlp_width(1024, 8 / 3) == 2730
    assert [pixel_mlp_width(width, "8/3") for width in (768, 1024, 1280)] == [2048, 2730, 3416]


def test_rotation_turns_adjacent_pairs_of_the_last_tokens() -> None:
    x = torch.tensor([[1.0, 0.0, 0.0, 2.0]]).expand(1, 1, 3, 4)
    quarter = torch.tensor([[0.0, 1.0], [1.0, 0.0]])[:, None].expand(2, 1, 2)
    turned = rotate(x, quarter)[0, 0]
    assert turned[:2].tolist() == x[0, 0, :2].tolist(), "tokens before the rotated ones stay"
    assert turned[2].tolist() == [0.0, 1.0, 0.0, 2.0]


def test_positions_count_the_prefix_for_latents_and_rows_then_columns_for_pixels() -> None:
    cos, sin = line_rotation(5, 4)
    assert torch.allclose(torch.atan2(sin, cos)[3], torch.tensor([3.0, 0.03]))
    cos, sin = plane_rotation(3, 8)
    assert torch.allclose(torch.atan2(sin, cos)[1 * 3 + 2], torch.tensor([1.0, 0.01, 2.0, 0.02]))
    assert tiny().network.rotation.shape[1] == 6 + 4
    assert tiny(PixelMeanFlow).network.rotation.shape[1] == 4


def test_auxiliary_head_of_a_training_state_is_left_out_unless_asked_for() -> None:
    case = load_case(GOLDEN / "imf-flax-a")
    facts = {**case.architecture, "v_heads": False}
    adapter = ImprovedMeanFlow(ModelCard("a", "imeanflow", "a", 8, 10, (4, 8, 8), facts))
    adapter.load(case.weights, {})
    assert isinstance(adapter.network, ImfDiT)
    with pytest.raises(BenchError, match="no auxiliary head"):
        adapter.network.velocities(*inputs())


def test_pixel_state_may_hold_the_rotation_buffer_and_the_auxiliary_head() -> None:
    case = load_case(GOLDEN / "pmf-torch-a")
    extra = {
        "net.rope_freqs": torch.zeros(16, 8, dtype=torch.complex64),
        "net.v_heads.0.attn_scale": torch.zeros(48),
        "net.v_final_layer.norm.weight": torch.zeros(48),
    }
    adapter = PixelMeanFlow(ModelCard("a", "pixel_meanflow", "a", 32, 10, (3, 32, 32), case.architecture))
    adapter.load({**case.weights, **extra}, {})


def test_state_of_another_variant_is_listed() -> None:
    state = {f"net.{key}": value for key, value in tiny().network.state_dict().items()}
    with pytest.raises(BenchError, match=r"tiny do not fit: missing: shared_blocks\.1"):
        tiny(depth=3).load(state, {})
    with pytest.raises(BenchError, match="unexpected: surprise"):
        tiny().load({**state, "surprise": torch.zeros(1)}, {})


def test_pixel_noise_is_scaled() -> None:
    adapter = tiny(PixelMeanFlow)
    seen: list[Tensor] = []
    adapter.network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    noise = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
    with torch.inference_mode():
        adapter.sample_latents(LABELS[:1], 1, 1.0, noise=RecordedNoise(noise))
    assert torch.equal(seen[0], 2.0 * noise)


def test_pixel_network_reads_its_output_as_the_clean_image() -> None:
    """u = (x - F) / max(t, 0.05): with F independent of t, u t is constant down to 0.05 and u below it."""
    network = tiny(PixelMeanFlow).network
    with torch.inference_mode():
        u = {t: network(*changed(inputs(), 1, t)) for t in (1.0, 0.5, 0.05, 0.01, 0.0)}
    assert torch.allclose(u[0.5], 2 * u[1.0], rtol=1e-4)
    assert torch.allclose(u[0.05], 20 * u[1.0], rtol=1e-4)
    assert torch.equal(u[0.05], u[0.01])
    assert torch.equal(u[0.05], u[0.0])
