"""The analytic generator: an exact flow to a Gaussian, whose distribution is known in closed form at any step count.

Data of class y is N(c_y e, s^2 I) with |e| = 1 and c_y = -delta, +delta. On the straight path x_t = (1 - t) noise +
t data the velocity is linear in x, so N Euler steps give a Gaussian whose mean and standard deviation `moments` says,
and with them every FID is an arithmetic fact. It tests the whole pipeline, not a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod, sqrt

import torch
from torch import Tensor, nn

from adapters.guidance import Guided
from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.settings import SamplerSettings


class Velocity(nn.Module):
    """v(x, t, y) = c_y e + a(t) (x - t c_y e); the null label (2) has mean zero."""

    def __init__(self, shape: tuple[int, ...], deviation: float, offset: float) -> None:
        super().__init__()
        self.deviation, self.offset = deviation, offset
        direction = torch.full(shape, prod(shape) ** -0.5)
        self.register_buffer("means", torch.stack([-offset * direction, offset * direction, 0.0 * direction]))
        self.means: Tensor

    def forward(self, x: Tensor, t: float, labels: Tensor) -> Tensor:
        """Float x [B, C, H, W] at time t (noise at 0, data at 1), labels int64 [B] -> velocity of x."""
        mean = self.means[labels]
        return mean + slope(t, self.deviation) * (x - t * mean)


class Gaussian(Adapter):
    """Euler steps along the exact velocity, with classifier-free guidance."""

    network: Velocity

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.network = Velocity(card.latent_shape, **card.architecture)

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """There are no weights."""

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Return samples [B, 3, H, W] after `steps` Euler steps."""
        v = Guided(self.network, labels, torch.full_like(labels, self.num_classes), cfg, doubled=False)
        x = noise.normal(self.latent_shape)
        for i in range(steps):
            x = x + v(x, i / steps) / steps
        return x


def slope(t: float, deviation: float) -> float:
    """Return a(t) = (s^2 t - (1 - t)) / ((1 - t)^2 + s^2 t^2), the velocity's derivative in x."""
    return (deviation**2 * t - (1 - t)) / ((1 - t) ** 2 + deviation**2 * t**2)


def moments(steps: int, cfg: float, deviation: float, offset: float) -> tuple[float, float]:
    """Return (offset of the class means, standard deviation) of the samples after `steps` Euler steps, exactly."""
    mean, rho = 0.0, 1.0
    for i in range(steps):
        t = i / steps
        a = slope(t, deviation)
        mean += (a * mean + cfg * offset * (1 - a * t)) / steps
        rho *= 1 + a / steps
    return mean, abs(rho)


def fid_of(mean: float, rho: float, deviation: float, offset: float, dimensions: int) -> float:
    """Return the FID of samples with these `moments` against the data, both with balanced labels, in pixel space.

    Both covariances are s^2 I + c^2 e e^T, so they commute: FID is the sum of squared differences of deviations.
    """
    along = sqrt(rho**2 + mean**2) - sqrt(deviation**2 + offset**2)
    return (dimensions - 1) * (rho - deviation) ** 2 + along**2
