"""Other ways to sample the flow networks: autoguidance, given time grids, and Bellman's optimal ones (BOSS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from adapters.digits.adapters import DigitsFlow, FlowSettings, velocity_of
from adapters.digits.network import build_network
from adapters.digits.parametrisation import Network, velocity
from adapters.guidance import Guided
from adapters.meanflow import TimedSettings
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard


class DigitsAutoguided(DigitsFlow):
    """Rectified flow under autoguidance (arXiv 2406.02507): v_guide + w (v - v_guide), both with the label."""

    guide: nn.Module

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.guide = build_network(card.architecture["guide"])

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network and, from `extra`, the weaker one called `guide`."""
        super().load(state, extra)
        if "guide" in extra:
            load_strict(self.guide, extra["guide"], f"{self.card.name} (guide)")

    def guided(self, labels: Tensor, cfg: float) -> Guided:
        """Return the velocity as a function of (x, t), away from the guide's."""
        return Guided(velocity_of(self.network), labels, None, cfg, weak=velocity_of(self.guide))


class GridSettings(FlowSettings, TimedSettings):
    """A solver on a given grid."""


class DigitsFlowGrid(DigitsFlow):
    """Rectified flow over given times."""

    Settings = GridSettings

    def times(self, steps: int, settings: FlowSettings) -> Sequence[float]:
        """Return the given times, in the sampler's direction."""
        assert isinstance(settings, GridSettings)
        return [1 - t for t in settings.grid(steps)]

    def unsupported(self, steps: int, cfg: float, settings: GridSettings | None = None) -> str | None:
        """Refuse times of another number of steps."""
        misfit = (settings or self.resolve_settings(steps)).misfit(steps)
        return super().unsupported(steps, cfg, settings) if misfit is None else f"{self.card.name}: {misfit}"


# --- BOSS (arXiv 2312.16414): the grid of least local error, by dynamic programming -----------------------------------


@torch.no_grad()
def jump_costs(network: Network, z: Tensor, labels: Tensor, candidates: int) -> Tensor:
    """Return c [candidates + 1, candidates + 1], c[i, j] the squared error of one Euler jump from time i to time j > i.

    The times are 1 - i / candidates. What is right is the state of Euler's method over all of them, from the noises z,
    float32 [B, 1, 8, 8], with `labels`; the error is a mean over the images of the sum over pixels.
    """
    times = torch.linspace(1, 0, candidates + 1)
    states, velocities = [z], []
    for i in range(candidates):
        velocities.append(velocity(network, states[-1], times[i].expand(len(z)), labels))
        states.append(states[-1] - velocities[-1] / candidates)
    cost = torch.full((candidates + 1, candidates + 1), torch.inf, dtype=torch.float64)
    for i in range(candidates):
        for j in range(i + 1, candidates + 1):
            jump = states[i] - (times[i] - times[j]) * velocities[i]
            cost[i, j] = (jump - states[j]).square().sum((1, 2, 3)).mean()
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
