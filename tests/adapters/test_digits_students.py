"""The systems without public weights: their samplers, paths and networks beside their papers' equations."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import pi
from pathlib import Path

import pytest
import torch
from torch import Tensor

import adapters.digits.cards
from adapters.digits import distillation
from adapters.digits.grids import DigitsFlowGrid
from adapters.digits.network import DigitsMixer, build_network
from adapters.digits.parametrisation import (
    cosine_path,
    denoise,
    from_bits,
    to_bits,
    trigflow_consistency,
    wide,
)
from adapters.digits.students import accelerated_sample, trigflow_sample
from bench.cli import main
from bench.contracts.noise import PhiloxNoise
from bench.models.cards import find_card, load_card
from bench.models.conformance import check_adapter
from bench.models.loading import build_adapter
from bench.models.meter import Meter
from bench.models.registry import family_class
from bench.models.step_grids import bellman_grid, jump_costs
from protocols.digits.data import load_split
from results.errors import BenchError

CARDS = {card.name: card for card in map(load_card, sorted(Path(adapters.digits.cards.__path__[0]).glob("*.toml")))}

FIELD = [
    "digits-scm", "digits-ism", "digits-progressive", "digits-caf", "digits-multi-student", "digits-analog-bits",
    "digits-autoguidance-small", "digits-flow-boss", "digits-flow-heun", "digits-flow-heun2",
    "digits-low-diff",
]  # fmt: skip


def loaded(name: str):
    return build_adapter(CARDS[name])


def noise(count: int) -> PhiloxNoise:
    return PhiloxNoise(0, range(count))


def sample(adapter, count: int, steps: int, cfg: float = 1.0) -> Tensor:
    return adapter.sample(torch.arange(count) % 10, steps, cfg, noise=noise(count))


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", FIELD)
def test_the_card_keeps_the_contract(name: str) -> None:
    failed = [finding for finding in check_adapter(CARDS[name]) if not finding.ok]
    assert not failed


# --- sCM -------------------------------------------------------------------------------------------------------------


def test_a_flow_network_is_a_trigflow_network_up_to_pi_half() -> None:
    """At the time t the linear path's state is x / k, k = cos t + sigma_d sin t, and its time sigma_d sin t / k."""
    network, y, sigma_d = loaded("digits-flow").network, torch.arange(4), 0.8
    for t in (0.01, 0.7, pi / 2):
        x, time = torch.randn(4, 1, 8, 8, generator=draws()), torch.full((4,), t)
        k = time.cos() + sigma_d * time.sin()
        expected = denoise(network, x / wide(k), sigma_d * time.sin() / k, y)
        torch.testing.assert_close(trigflow_consistency(network, x, time, y), expected, atol=1e-5, rtol=1e-5)


def test_the_trigflow_sampler_noises_again_to_each_time() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def consistency(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return torch.ones_like(x)

    trigflow_sample(consistency, noise(2), (1, 8, 8), [pi / 2, 1.1], 0.8)
    (first, start), (second, middle) = seen
    torch.testing.assert_close(first, 0.8 * noise(2).normal((1, 8, 8), 0))
    expected = torch.cos(torch.tensor(1.1)) + torch.sin(torch.tensor(1.1)) * 0.8 * noise(2).normal((1, 8, 8), 1)
    torch.testing.assert_close(second, expected)
    assert start.tolist() == pytest.approx([pi / 2] * 2) and middle.tolist() == pytest.approx([1.1] * 2)


def test_trigflow_times_must_be_one_a_step() -> None:
    with pytest.raises(BenchError, match="one time per step, found 2 for 3"):
        loaded("digits-scm").sample(torch.zeros(1, dtype=torch.int64), 3, 1.0, noise=noise(1), times=[1.5, 1.0])


# --- CAF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_constant_acceleration_reaches_the_data_in_any_number_of_steps(steps: int) -> None:
    z, x = torch.randn(2, 3, 1, 8, 8, generator=draws())
    v_0 = 1.5 * (x - z)

    def acceleration(x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        torch.testing.assert_close(x_t, distillation.accelerated(z, x, v_0, t), atol=1e-5, rtol=0)
        return 2 * (x - z) - 2 * v

    times = [i / steps for i in range(steps)]
    reached = accelerated_sample(
        lambda noise: v_0, lambda x, t, v: acceleration(x, torch.full((len(x),), t), v), z, times
    )
    torch.testing.assert_close(reached, x, atol=1e-5, rtol=0)


def test_the_exact_motion_is_a_zero_of_both_objectives() -> None:
    z = torch.randn(8, 1, 8, 8, generator=draws())
    pairs = distillation.Pairs(z, torch.full_like(z, 0.5), torch.arange(8))

    def network(factor: float, shift: float = 0.0):
        # The networks are the linear path's, towards the noise.
        return lambda x, t, s, y, hint: -factor * (pairs.x - z) + shift

    assert float(distillation.initial_velocity(network(1.5), pairs, draws())) < 1e-6
    assert float(distillation.constant_acceleration(network(-1.0), network(1.5), pairs, draws())) < 1e-6
    assert float(distillation.constant_acceleration(network(-1.0, 0.3), network(1.5), pairs, draws())) > 0.05


# --- LowDiff ---------------------------------------------------------------------------------------------------------


def test_a_cascade_starts_as_the_flow_and_splits_its_steps_between_the_resolutions() -> None:
    flow, cascade = loaded("digits-flow").network, DigitsMixer(cascade=True)
    cascade.start_from(flow.state_dict())
    x, t, labels = noise(3).normal((1, 8, 8)), torch.full((3,), 0.4), torch.arange(3)
    low = cascade(x[:, :, :4, :4], t, t, labels)
    assert low.shape == (3, 1, 4, 4) and not low.any()
    torch.testing.assert_close(cascade(x, t, 0 * t, labels, hint=x[:, :, :4, :4]), flow(x, t, 0 * t, labels))

    adapter, sides = loaded("digits-low-diff"), []
    adapter.network.register_forward_pre_hook(lambda module, inputs: sides.append(inputs[0].shape[-1]))
    adapter.sample(torch.arange(2), 5, 1.0, noise=noise(2), low_steps=2)
    assert sides == [4, 4, 8, 8, 8]
    for steps, settings in ((1, {}), (3, {"low_steps": 3}), (4, {"solver": "dopri5"})):
        with pytest.raises(BenchError, match=r"takes 2 or more steps|takes solvers of fixed steps"):
            adapter.sample(torch.arange(2), steps, 1.0, noise=noise(2), **settings)


# --- BiFM ------------------------------------------------------------------------------------------------------------


def test_a_network_of_both_directions_finds_the_noise_of_an_image_and_the_image_again() -> None:
    held_out = load_split("test")
    x = (held_out.images[:200, :1].float() * 16 / 255).round() / 8 - 1
    none, one, labels, errors = torch.zeros(200), torch.ones(200), held_out.labels[:200], {}
    for name in ("digits-bifm", "digits-meanflow"):
        network = loaded(name).network
        with torch.inference_mode():
            z = x + network(x, none, -one, labels)
            errors[name] = float((z - network(z, one, one, labels) - x).square().mean().sqrt())
    assert errors["digits-bifm"] < 0.25 and errors["digits-meanflow"] > 0.35


# --- Several networks ------------------------------------------------------------------------------------------------


def test_each_image_meets_the_student_of_its_label() -> None:
    adapter = loaded("digits-multi-student")
    labels, z = torch.tensor([4, 5, 0, 9]), noise(4).normal((1, 8, 8))
    one = torch.ones(4)
    low, high = (denoise(student, z, one, labels) for student in adapter.network.members.values())
    expected = torch.where(wide(labels < 5), low, high)
    found = adapter.sample(labels, 1, 1.0, noise=noise(4))[:, :1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_each_step_count_has_its_own_student() -> None:
    adapter, asked = loaded("digits-progressive"), []
    adapter.network.register_forward_hook(lambda module, inputs, output: asked.append(inputs[0]))
    sample(adapter, 2, 4)
    assert asked == ["4"] * 4


@pytest.mark.parametrize("fact", ["guided", "hinted"])
def test_further_inputs_start_without_effect_and_the_weights_of_a_network_without_them_fit(fact: str) -> None:
    flow = loaded("digits-flow").network
    network = build_network({"width": 64, "blocks": 3, fact: True})
    assert isinstance(network, DigitsMixer)
    network.start_from(flow.state_dict())
    x, t, y = torch.randn(2, 1, 8, 8, generator=draws()), torch.tensor([0.2, 0.9]), torch.arange(2)
    assert torch.equal(network(x, t, 0 * t, y, guide=t, hint=x), flow(x, t, 0 * t, y))
    with pytest.raises(BenchError, match="do not fit"):
        network.start_from({key: value for key, value in flow.state_dict().items() if key != "output.bias"})


# --- Analog bits -----------------------------------------------------------------------------------------------------


def test_every_grey_level_survives_its_bits_and_codes_of_no_level_are_the_highest() -> None:
    levels = torch.arange(17).float() / 8 - 1
    images = levels[:, None, None, None].expand(-1, 1, 8, 8)
    bits = to_bits(images)
    assert bits.shape == (17, 5, 8, 8) and set(bits.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(from_bits(0.01 * bits), images)
    assert torch.equal(from_bits(torch.ones(1, 5, 8, 8)), torch.ones(1, 1, 8, 8))


def test_self_conditioning_hands_each_estimate_to_the_next_step() -> None:
    adapter, inputs, outputs = loaded("digits-analog-bits"), [], []

    def keep(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(args[0])
        outputs.append(output)

    adapter.network.register_forward_hook(keep)
    sample(adapter, 2, 3)
    assert not inputs[0][:, 5:].any()
    assert torch.equal(inputs[1][:, 5:], outputs[0].clamp(-1, 1))
    plain = adapter.sample(torch.arange(2), 3, 1.0, noise=noise(2), self_conditioning=False)
    assert not inputs[-1][:, 5:].any() and plain.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("draw", [None, 1])
def test_bit_steps_keep_the_noise_level_of_an_exact_estimate(draw: int | None) -> None:
    adapter = loaded("digits-analog-bits")
    given, z = PhiloxNoise(0, range(200)), torch.randn(200, 5, 8, 8, generator=draws())
    estimate = torch.ones_like(z)
    alpha_t, sigma_t = cosine_path(torch.tensor(0.8))
    x = adapter.next_state(alpha_t * estimate + sigma_t * z, estimate, 0.8, 0.4, given, draw)
    alpha_s, sigma_s = cosine_path(torch.tensor(0.4))
    assert float((x - alpha_s * estimate).std()) == pytest.approx(float(sigma_s), abs=0.01)


# --- Guides and grids ------------------------------------------------------------------------------------------------


def test_autoguidance_moves_away_from_the_guide_and_counts_it_apart() -> None:
    adapter = loaded("digits-autoguidance-small")
    labels, z, t = torch.arange(5), noise(5).normal((1, 8, 8)), torch.ones(5)
    with Meter(adapter).installed() as meter:
        guided = sample(adapter, 5, 1, cfg=1.5)
    assert (meter.rows, meter.guide_rows) == (5, 5)
    main, weak = adapter.network(z, t, 0 * t, labels), adapter.guide(z, t, 0 * t, labels)
    torch.testing.assert_close(guided[:, :1], z - (weak + 1.5 * (main - weak)), atol=1e-5, rtol=0)


def test_the_cheapest_path_is_taken() -> None:
    cost = torch.full((4, 4), torch.inf, dtype=torch.float64)
    for (i, j), value in {(0, 1): 1, (0, 2): 1, (1, 3): 5, (2, 3): 1, (0, 3): 9, (1, 2): 1}.items():
        cost[i, j] = value
    assert bellman_grid(cost, 1) == [1.0, 0.0]
    assert bellman_grid(cost, 2) == [1.0, pytest.approx(1 / 3), 0.0]
    assert len(bellman_grid(cost, 3)) == 4


def test_the_grids_of_the_card_are_those_of_the_shipped_flow() -> None:
    z, flow = PhiloxNoise(2312, range(300)).normal((1, 8, 8)), loaded("digits-flow")
    velocity = flow.euler_field(torch.arange(300) % 10, 1.0, flow.resolve_settings(64))
    cost = jump_costs(velocity, z, [1 - i / 64 for i in range(65)])
    presets = {preset.steps[0]: preset.settings["times"] for preset in CARDS["digits-flow-boss"].presets}
    assert set(presets) == {2, 4, 8, 16}
    for steps, times in presets.items():
        assert list(times) == pytest.approx(bellman_grid(cost, steps))


def test_the_command_finds_the_grids_that_the_option_takes(capsys) -> None:
    arguments = ["adapter", "grid", "digits-flow", "--candidates", "16", "--samples", "20", "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--steps", "2,4"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" --option times=")[0] for line in lines] == ["--steps 2", "--steps 4"]
    times = [float(t) for t in lines[1].partition("times=")[2].split(",")]
    assert times == sorted(times, reverse=True) and (times[0], times[-1], len(times)) == (1, 0, 5)
    for name, count, message in (("digits-dmd", "2", "not sampled by Euler's method"), ("digits-flow", "17", "--cand")):
        with pytest.raises(SystemExit) as stop:
            main(["adapter", "grid", name, *arguments[3:], "--steps", count])
        assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(("name", "settings"), [
    ("sit-xl", {}), ("jit-b-16", {}), ("rae-xl-256", {}), ("facm-xl-flow", {"sampler": "euler", "shift": 1.0}),
])  # fmt: skip
def test_every_euler_flow_takes_a_grid_and_is_the_sum_of_its_jumps(name: str, settings: dict) -> None:
    adapter, times = small_adapter(name), (1.0, 0.7, 0.2, 0.0)
    labels, z = torch.tensor([0, 1]), noise(2).normal(adapter.latent_shape)
    chosen = adapter.resolve_settings(3, overrides={**settings, "times": times})
    x = getattr(adapter, "noise_scale", 1.0) * z
    with torch.inference_mode():
        field = adapter.euler_field(labels, 1.0, chosen)
        for t, t_next in pairwise(times):
            x = x + (t_next - t) * field(x, t)
        sampled = adapter.generate(labels, 3, 1.0, noise(2), chosen)
    torch.testing.assert_close(sampled, x.to(sampled), atol=1e-4, rtol=1e-4)
    with pytest.raises(BenchError, match="4 steps need 5 values"):
        adapter.sample(labels, 4, 1.0, noise=noise(2), **settings, times=times)


def small_adapter(name: str):
    size = {"patch_size": 2, "hidden_size": 64, "depth": 2, "num_heads": 2, "num_classes": 10, "bottleneck_dim": 8}
    size |= {"in_context_len": 2, "in_context_start": 1}
    card = find_card(name)
    facts = {key: size.get(key, value) for key, value in card.architecture.items()}
    if name.startswith("rae"):
        facts |= {"hidden_size": [48, 64], "depth": [2, 1], "num_heads": [2, 2]}
    facts |= {key: 8 for key in ("input_size", "latent_size", "img_resolution") if key in facts}
    facts |= {"in_channels": 4}
    card = replace(
        card, architecture=facts, latent_shape=(4, 8, 8), autoencoder=None, num_classes=10, resolution=8, presets=(),
        supported_steps=None,
    )  # fmt: skip
    return family_class(card.family)(card).randomise().to("cpu")


def test_a_grid_of_another_length_is_refused() -> None:
    adapter = loaded("digits-flow-boss")
    assert isinstance(adapter, DigitsFlowGrid)
    with pytest.raises(BenchError, match="3 steps need 4 values"):
        adapter.sample(torch.zeros(1, dtype=torch.int64), 3, 1.0, noise=noise(1), times=[1.0, 0.5, 0.0])
