"""How each family reads the one network: what objectives (training) and adapters (sampling) must agree on.

Unless said otherwise x_t = (1 - t) x + t z and the network predicts the velocity z - x, so x_hat = x_t - t F.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adapters.consistency import Scalings, boundary_scalings, edm_scalings

FINEST_LEVEL = 5
"""The shortcut model's smallest step is 2^-5."""


def wide(value: Tensor) -> Tensor:
    """Return [B] as [B, 1, 1, 1]."""
    return value[:, None, None, None]


def velocity(network: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return F(x, t), towards the noise, with the second scalar 0."""
    predicted: Tensor = network(x, t, torch.zeros_like(t), y)
    return predicted


def denoise(network: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return x_hat = x_t - t F; at t = 1 this is DMD's one-step generator."""
    return x - wide(t) * velocity(network, x, t, y)


def step_code(level: Tensor) -> Tensor:
    """Return the second scalar of a shortcut step of size 2^-level: 1 for the single step, 0 for the finest."""
    return 1 - level.float() / FINEST_LEVEL


class NoiseLevels(NamedTuple):
    """The consistency family's x_sigma = x + sigma z: the data's scale and the range of sigma."""

    data: float = 0.8
    minimum: float = 0.002
    maximum: float = 80.0

    def code(self, sigma: Tensor) -> Tensor:
        """Return the network's time: ln sigma mapped to [0, 1]."""
        return torch.log(sigma / self.minimum) / math.log(self.maximum / self.minimum)


LEVELS = NoiseLevels()


def edm_denoise(network: nn.Module, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
    """Return D(x, sigma) = c_skip x + c_out F(c_in x), the diffusion model that consistency tuning starts from."""
    return _preconditioned(network, edm_scalings(sigma, LEVELS.data), x, sigma, y)


def consistency_function(network: nn.Module, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
    """Return f(x, sigma), the same with the boundary condition f(x, sigma_min) = x."""
    return _preconditioned(network, boundary_scalings(sigma, LEVELS.data, LEVELS.minimum), x, sigma, y)


def _preconditioned(network: nn.Module, scalings: Scalings, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
    c_skip, c_out, c_in = (wide(c) for c in scalings)
    return c_skip * x + c_out * velocity(network, c_in * x, LEVELS.code(sigma), y)
