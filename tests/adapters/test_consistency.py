"""Consistency models and DMD: scalings, noise grids and samplers, against diffusers' scheduler and by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler
from torch import Tensor

from adapters.consistency import boundary_scalings, edm_scalings, karras_sigmas, multistep_sample
from adapters.dmd import one_step_sample
from bench.contracts.noise import PhiloxNoise, RecordedNoise

SHAPE = (1, 4, 4)


def raw_network(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.sin(3 * x) + 0.1 * torch.log(sigma)[:, None, None, None]


def consistency(x: Tensor, sigma: Tensor) -> Tensor:
    c_skip, c_out, c_in = (c[:, None, None, None] for c in boundary_scalings(sigma, 0.5, 0.002))
    return c_skip * x + c_out * raw_network(c_in * x, sigma)


def test_the_boundary_condition_holds_at_sigma_min_only_for_the_consistency_scalings() -> None:
    at_minimum = torch.tensor(0.002, dtype=torch.float64)
    assert boundary_scalings(at_minimum, 0.5, 0.002)[:2] == (1.0, 0.0)
    assert edm_scalings(at_minimum, 0.5).c_out > 0.0019


def test_sigma_min_enters_neither_c_in_nor_the_root_of_c_out() -> None:
    sigma = torch.tensor(1.0, dtype=torch.float64)
    consistent, diffusion = boundary_scalings(sigma, 0.5, 0.25), edm_scalings(sigma, 0.5)
    assert consistent.c_in == diffusion.c_in
    assert consistent.c_out.item() == pytest.approx(0.75 * diffusion.c_out.item())


@pytest.mark.parametrize(
    ("points", "index", "sigma"),
    [(40, 22, 1.3824), (201, 106, 1.9128), (40, 17, 4.3656), (40, 18, 3.5197), (151, 67, 3.9912), (151, 62, 5.2485)],
)
def test_the_grid_gives_the_published_second_levels(points: int, index: int, sigma: float) -> None:
    assert karras_sigmas(points)[index] == pytest.approx(sigma, abs=5e-5)


def test_the_grid_runs_from_sigma_max_to_sigma_min() -> None:
    sigmas = karras_sigmas(5, 0.01, 10.0)
    assert sigmas == sorted(sigmas, reverse=True)
    assert (sigmas[0], sigmas[-1]) == (10.0, 0.01)


@pytest.mark.parametrize("indices", [(0,), (0, 22), (0, 10, 20, 30)])
def test_multistep_sampling_agrees_with_diffusers(indices: tuple[int, ...]) -> None:
    initial = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40)
    scheduler.set_timesteps(timesteps=sorted(indices, reverse=True))
    generator, x = torch.Generator().manual_seed(1), initial * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        sigma = scheduler.sigmas[scheduler.index_for_timestep(t)]
        output = raw_network(scheduler.scale_model_input(x, t), sigma.expand(3))
        x = scheduler.step(output, t, x, generator=generator).prev_sample

    draws = torch.Generator().manual_seed(1)
    injected = torch.stack([torch.randn(3, *SHAPE, generator=draws) for _ in indices])
    grid = karras_sigmas(40)
    sigmas = [*(grid[index] for index in indices), grid[-1]]
    ours = multistep_sample(consistency, RecordedNoise(initial, injected), SHAPE, sigmas)
    torch.testing.assert_close(ours, x.clamp(-1, 1), atol=2e-5, rtol=0)


def test_every_prediction_is_clamped_before_noise_is_added() -> None:
    seen = []

    def too_bright(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x)
        return torch.full_like(x, 5.0)

    noise = PhiloxNoise(0, range(2))
    multistep_sample(too_bright, noise, SHAPE, [80.0, 1.0, 0.002])
    torch.testing.assert_close(seen[1], 1 + (1 - 0.002**2) ** 0.5 * noise.normal(SHAPE, 1))
    free = multistep_sample(too_bright, noise, SHAPE, [80.0, 0.002], clamp=False)
    assert free.eq(5.0).all()


def test_noise_added_back_has_the_variance_above_sigma_min() -> None:
    noise = RecordedNoise(torch.zeros(1, *SHAPE), torch.ones(1, 1, *SHAPE))
    x = multistep_sample(lambda x, sigma: x * 0, noise, SHAPE, [1.0, 0.5], sigma_min=0.3, sigma_max=1.0)
    assert x.mean().item() == pytest.approx(0.4)


def test_the_last_level_costs_no_evaluation_and_no_noise() -> None:
    levels = []

    def record(x: Tensor, sigma: Tensor) -> Tensor:
        levels.append(sigma.tolist())
        return x * 0

    one_draw = RecordedNoise(torch.zeros(2, *SHAPE), torch.zeros(1, 2, *SHAPE))
    multistep_sample(record, one_draw, SHAPE, [80.0, 2.0, 0.002])
    assert levels == [[80.0, 80.0], [2.0, 2.0]]


@pytest.mark.parametrize("level", [80.0, 1.0])
def test_dmd_scales_its_noise_by_the_level_that_it_conditions_on(level: float) -> None:
    noise = PhiloxNoise(3, range(2))
    image = one_step_sample(lambda x, t: x + t[:, None, None, None], noise, SHAPE, level)
    torch.testing.assert_close(image, level * noise.normal(SHAPE) + level)
