"""How each family reads the one network: what objectives (training) and adapters (sampling) must agree on.

Unless said otherwise x_t = (1 - t) x + t z and the network predicts the velocity z - x, so x_hat = x_t - t F.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.consistency import Scalings, boundary_scalings, edm_scalings

Network = Callable[..., Tensor]
"""What is called as a `DigitsMixer` is."""
FINEST_LEVEL = 5
"""The shortcut model's smallest step is 2^-5."""


def wide(value: Tensor) -> Tensor:
    """Return [B] as [B, 1, 1, 1]."""
    return value[:, None, None, None]


def velocity(network: Network, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return F(x, t), towards the noise, with the second scalar 0."""
    predicted: Tensor = network(x, t, torch.zeros_like(t), y)
    return predicted


def denoise(network: Network, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return x_hat = x_t - t F; at t = 1 this is DMD's one-step generator."""
    return x - wide(t) * velocity(network, x, t, y)


def step_code(level: Tensor) -> Tensor:
    """Return the second scalar of a shortcut step of size 2^-level: 1 for the single step, 0 for the finest."""
    return 1 - level.float() / FINEST_LEVEL


GUIDED_SCALE = 2.0
"""The largest guidance scale that guided distillation is trained for."""
INTRINSIC_SCALE = 3.0
"""The same of the shortcut model with intrinsic guidance."""


def guide_code(w: Tensor, largest: float) -> Tensor:
    """Return the network's third scalar for the guidance scale w: 0 for none (w = 1), 1 for the largest."""
    return (w - 1) / (largest - 1)


def guided_velocity(network: Network, x: Tensor, t: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Return F(x, t, w) of a network that guided distillation taught the guidance scale w in [1, 2]."""
    predicted: Tensor = network(x, t, torch.zeros_like(t), y, guide_code(w, GUIDED_SCALE))
    return predicted


def constant_motion(network: Network, x: Tensor, t: Tensor, v_0: Tensor, y: Tensor) -> Tensor:
    """Return what CAF's networks predict, towards the data, with noise at t = 0: V (v_0 is zero) or A."""
    predicted: Tensor = -network(x, 1 - t, torch.zeros_like(t), y, hint=v_0)
    return predicted


class NoiseLevels(NamedTuple):
    """The consistency family's x_sigma = x + sigma z: the data's scale and the range of sigma."""

    data: float = 0.8
    minimum: float = 0.002
    maximum: float = 80.0

    def code(self, sigma: Tensor) -> Tensor:
        """Return the network's time: ln sigma mapped to [0, 1]."""
        return torch.log(sigma / self.minimum) / math.log(self.maximum / self.minimum)


LEVELS = NoiseLevels()


def edm_denoise(network: Network, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
    """Return D(x, sigma) = c_skip x + c_out F(c_in x), the diffusion model that consistency tuning starts from."""
    return _preconditioned(network, edm_scalings(sigma, LEVELS.data), x, sigma, y)


def consistency_function(network: Network, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
    """Return f(x, sigma), the same with the boundary condition f(x, sigma_min) = x."""
    return _preconditioned(network, boundary_scalings(sigma, LEVELS.data, LEVELS.minimum), x, sigma, y)


def _preconditioned(network: Network, scalings: Scalings, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
    c_skip, c_out, c_in = (wide(c) for c in scalings)
    return c_skip * x + c_out * velocity(network, c_in * x, LEVELS.code(sigma), y)


# --- TrigFlow (arXiv 2410.11081): x_t = cos t x + sin t z, z ~ N(0, sigma_data^2), t in [0, pi/2] ---------------------


def trigflow(network: Network, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return F(x, t), whose sigma_data F is dx/dt of TrigFlow's ODE, from a network on the linear path.

    The two paths are one up to scale and time, so a flow network is a TrigFlow network as it is. Nothing is divided by
    cos t or sin t, so the derivative along the path is finite up to pi/2, where the network's time is 1.
    """
    sigma_d = LEVELS.data
    cos, sin = torch.cos(t), torch.sin(t)
    k = cos + sigma_d * sin
    a = (sigma_d * cos - sin) / (sigma_d * k)
    u = velocity(network, x / wide(k), sigma_d * sin / k, y)
    return wide(a) * x + u / wide(k)


def trigflow_consistency(network: Network, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return f(x, t) = cos t x - sin t sigma_data F(x, t): the jump to data, the identity at t = 0."""
    return wide(torch.cos(t)) * x - LEVELS.data * wide(torch.sin(t)) * trigflow(network, x, t, y)


# --- Analog bits (arXiv 2208.04202): x_t = cos(pi t / 2) x + sin(pi t / 2) z of bits x in {-1, 1} ---------------------

BITS = 5
"""The 17 grey levels are numbers of five bits."""


def to_bits(x: Tensor) -> Tensor:
    """Return images [B, 1, 8, 8] in [-1, 1] as bits [B, 5, 8, 8] in {-1, 1}, the lowest bit first."""
    level = (8 * (x + 1)).round().long()
    return 2.0 * (level >> torch.arange(BITS, device=x.device)[:, None, None] & 1) - 1


def from_bits(bits: Tensor) -> Tensor:
    """Return the images of bits [B, 5, 8, 8], read by their sign; levels above 16, which no image has, are 16."""
    powers = 2 ** torch.arange(BITS, device=bits.device)[:, None, None]
    level = ((bits > 0) * powers).sum(1, keepdim=True).clamp(max=16)
    return level / 8 - 1


def cosine_path(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (alpha, sigma) = (cos, sin)(pi t / 2)."""
    return torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)


def predict_bits(network: Network, x: Tensor, estimate: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return the network's estimate of the bits, given its estimate of the step before (zeros at first)."""
    predicted: Tensor = network(torch.cat([x, estimate], dim=1), t, torch.zeros_like(t), y)
    return predicted
