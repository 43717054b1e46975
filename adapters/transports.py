"""The transports of UCGM (arXiv 2505.07447) and the time grid of its sampler.

A transport says how data x and noise z mix, x_t = alpha(t) z + gamma(t) x, and what the network is trained towards,
F = alpha_hat(t) z + gamma_hat(t) x, with t in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

QUARTER_TURN = 1.57  # literally: the published checkpoints were trained with it, not with pi/2


class Coefficients(NamedTuple):
    """The four functions of a transport at one time, evaluated in float32."""

    alpha: float
    gamma: float
    alpha_hat: float
    gamma_hat: float

    def estimates(self, x: Tensor, F: Tensor) -> tuple[Tensor, Tensor]:
        """Return the data and the noise, (x_hat, z_hat), that the network's output F implies at state x, in float32."""
        determinant = self.alpha * self.gamma_hat - self.gamma * self.alpha_hat
        x_hat = (F * self.alpha - x * self.alpha_hat) / determinant
        z_hat = (x * self.gamma_hat - F * self.gamma) / determinant
        return x_hat, z_hat


@dataclass(frozen=True)
class Transport:
    """One of the six published transports."""

    name: str
    noise_at_zero: bool = False
    """Noise lies at t = 0 (ReLinear) rather than at t = 1; guidance intervals are in the same time."""

    def at(self, t: float) -> Coefficients:
        """Return the coefficients at time `t`."""
        time = torch.tensor(t, dtype=torch.float32)
        return Coefficients(*(float(value) for value in _FORMULAS[self.name](time)))


def _linear(t: Tensor) -> tuple[Tensor | float, ...]:
    return t, 1 - t, 1.0, -1.0


def _relinear(t: Tensor) -> tuple[Tensor | float, ...]:
    return 1 - t, t, -1.0, 1.0


def _trigflow(t: Tensor) -> tuple[Tensor | float, ...]:
    sine, cosine = torch.sin(QUARTER_TURN * t), torch.cos(QUARTER_TURN * t)
    return sine, cosine, cosine, -sine


def _triglinear(t: Tensor) -> tuple[Tensor | float, ...]:
    return torch.sin(QUARTER_TURN * t), torch.cos(QUARTER_TURN * t), 1.0, -1.0


def _random(t: Tensor) -> tuple[Tensor | float, ...]:
    return torch.sin(QUARTER_TURN * t), 1 - t, 1.0, -1 - torch.exp(-5 * t)


def _edm(t: Tensor) -> tuple[Tensor | float, ...]:
    sigma = torch.exp(4 * edm_noise_label(t))
    norm = torch.sqrt(sigma**2 + 0.25)
    return sigma / norm, 1 / norm, -0.5 / norm, 2 * sigma / norm


def edm_noise_label(t: Tensor) -> Tensor:
    """Return ln(sigma) / 4 of EDM's noise level at time `t`, what its networks take as time."""
    return 2.68 * t - 1.59


_FORMULAS = {
    "Linear": _linear,
    "ReLinear": _relinear,
    "TrigFlow": _trigflow,
    "TrigLinear": _triglinear,
    "Random": _random,
    "EDM": _edm,
}
TransportName = Literal["Linear", "ReLinear", "TrigFlow", "TrigLinear", "Random", "EDM"]
TRANSPORTS = {name: Transport(name, noise_at_zero=name == "ReLinear") for name in _FORMULAS}


def spread(count: int, first: float, last: float) -> Tensor:
    """Return `count` evenly spaced points, float64 rounded to float32: the precision the published grids have."""
    return torch.linspace(first, last, count, dtype=torch.float64).float()


def kumaraswamy(u: Tensor, warp: Sequence[float]) -> Tensor:
    """Return the warp (1 - (1 - u^a)^b)^c of u in [0, 1]; a = b = c = 1 leaves u as it is."""
    a, b, c = warp
    return (1 - (1 - u**a) ** b) ** c


def time_grid(
    transport: Transport, count: int, gaps: Sequence[float], warp: Sequence[float] = (1.0, 1.0, 1.0)
) -> list[float]:
    """Return the `count` times of UNI from noise to data, float32 values.

    `gaps` keep the first and the last point off the ends of [0, 1] (before the warp); an end gap of exactly 0 means
    that the grid heads for 1 and leaves that point out.
    """
    first, last = gaps
    u = spread(count + 1, first, 1.0)[:-1] if last == 0 else spread(count, first, 1 - last)
    u = kumaraswamy(u, warp)
    t = u if transport.noise_at_zero else 1 - u
    times: list[float] = t.tolist()
    return times
