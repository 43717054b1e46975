"""Step grids of least local error for Euler flows, by dynamic programming (BOSS, arXiv 2312.16414)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from bench.contracts.adapter import Adapter
from bench.contracts.noise import PhiloxNoise
from results.errors import BenchError

SEED = 2312
"""Seed of the noises that a grid is found with: no protocol's."""


@torch.inference_mode()
def step_grids(
    adapter: Adapter, steps: Sequence[int], cfg: float = 1.0, *, candidates: int = 64, samples: int = 64
) -> dict[int, list[float]]:
    """Return, for each of `steps`, the times from 1 (noise) to 0 (data) that setting `times` takes.

    They are chosen from `candidates` + 1 uniform times by the mean error over `samples` noises, labels in turn. Raises
    BenchError for a model that is not sampled by Euler's method along a flow, and for more steps than candidates.
    """
    if any(count > candidates for count in steps):
        raise BenchError(f"{max(steps)} steps cannot be chosen from {candidates} candidates; give --candidates")
    labels = torch.arange(samples, device=adapter.device) % max(adapter.num_classes, 1)
    velocity = adapter.euler_field(labels, cfg, adapter.resolve_settings(candidates))
    if velocity is None:
        raise BenchError(f"{adapter.card.name} is not sampled by Euler's method along a flow: it takes no step grid")
    z = PhiloxNoise(SEED, range(samples), adapter.device).normal(adapter.latent_shape)
    cost = jump_costs(velocity, z, [1 - i / candidates for i in range(candidates + 1)])
    return {count: bellman_grid(cost, count) for count in steps}


@torch.inference_mode()
def jump_costs(velocity: Callable[[Tensor, float], Tensor], z: Tensor, times: Sequence[float]) -> Tensor:
    """Return c [N + 1, N + 1], c[i, j] the squared error of one Euler jump from time i to time j > i, float64.

    What is right is the state of Euler's method over all of `times`, from the noises z, float32 [B, ...]; the error is
    a mean over the samples of the sum over a sample's values. `velocity(x, t)` is dx/dt.
    """
    states, velocities = [z], []
    for t, t_next in pairwise(times):
        velocities.append(velocity(states[-1], t))
        states.append(states[-1] + (t_next - t) * velocities[-1])
    cost = torch.full((len(times), len(times)), torch.inf, dtype=torch.float64)
    for i, (t, x, v) in enumerate(zip(times, states, velocities, strict=False)):
        errors = [(x + (s - t) * v - y).square().flatten(1).sum(1).mean() for s, y in zip(times, states, strict=True)]
        cost[i, i + 1 :] = torch.stack(errors[i + 1 :]).double()
    return cost


def bellman_grid(cost: Tensor, steps: int) -> list[float]:
    """Return the steps + 1 times from 1 to 0 of the cheapest path of `steps` jumps through the table `cost`."""
    count = len(cost)
    best = torch.full((count,), torch.inf, dtype=torch.float64)
    best[0], came = 0.0, []
    for _ in range(steps):
        best, previous = (best[:, None] + cost).min(0)
        came.append(previous)
    path: Sequence[int] = [count - 1]
    for previous in reversed(came):
        path = [int(previous[path[0]]), *path]
    return [1 - i / (count - 1) for i in path]
