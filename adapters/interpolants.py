"""Stochastic interpolants (arXiv 2401.08740): x_t = alpha(t) data + sigma(t) noise, noise at t = 0, data at t = 1.

Every function of time takes t float32, broadcastable to x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from adapters.times import per_sample

Coefficient = Callable[[Tensor], Tensor]
Field = Callable[[Tensor, Tensor], Tensor]
"""f(x float32 [B, ...], t float32 [B]) -> float32 [B, ...]."""
PathName = Literal["Linear", "GVP", "VP"]
Prediction = Literal["velocity", "score", "noise"]
DiffusionForm = Literal["sigma", "linear", "decreasing", "increasing-decreasing", "constant", "SBDM"]
CUT = 1e-3
"""How far from a singular end of the path sampling stays."""


class Path(NamedTuple):
    """The two weights of x_t and what follows from them."""

    alpha: Coefficient
    sigma: Coefficient
    sigma_rate: Coefficient
    """sigma'."""
    log_alpha_rate: Coefficient
    """alpha' / alpha."""
    inverse_log_alpha_rate: Coefficient
    """alpha / alpha', finite at t = 0."""
    score_weight: Coefficient
    """G of v = (alpha'/alpha) x + G s."""
    starts_at_noise: bool
    """Whether alpha(0) = 0, so that alpha'/alpha and G are infinite there."""


def _score_weight(log_alpha_rate: Coefficient, sigma: Coefficient, sigma_rate: Coefficient) -> Coefficient:
    return lambda t: log_alpha_rate(t) * sigma(t) ** 2 - sigma(t) * sigma_rate(t)


def _linear() -> Path:
    def sigma(t: Tensor) -> Tensor:
        return 1 - t

    def sigma_rate(t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def log_alpha_rate(t: Tensor) -> Tensor:
        return 1 / t

    weight = _score_weight(log_alpha_rate, sigma, sigma_rate)
    return Path(lambda t: t, sigma, sigma_rate, log_alpha_rate, lambda t: t, weight, True)


def _generalised_variance_preserving() -> Path:
    half_pi = math.pi / 2

    def alpha(t: Tensor) -> Tensor:
        return torch.sin(half_pi * t)

    def sigma(t: Tensor) -> Tensor:
        return torch.cos(half_pi * t)

    def sigma_rate(t: Tensor) -> Tensor:
        return -half_pi * torch.sin(half_pi * t)

    def log_alpha_rate(t: Tensor) -> Tensor:
        return half_pi / torch.tan(half_pi * t)

    weight = _score_weight(log_alpha_rate, sigma, sigma_rate)
    return Path(alpha, sigma, sigma_rate, log_alpha_rate, lambda t: torch.tan(half_pi * t) / half_pi, weight, True)


def _variance_preserving(slowest: float = 0.1, fastest: float = 20.0) -> Path:
    span = fastest - slowest

    def log_alpha(t: Tensor) -> Tensor:
        return -((1 - t) ** 2) * span / 4 - (1 - t) * slowest / 2

    def log_alpha_rate(t: Tensor) -> Tensor:
        return (1 - t) * span / 2 + slowest / 2

    def alpha(t: Tensor) -> Tensor:
        return torch.exp(log_alpha(t))

    def sigma(t: Tensor) -> Tensor:
        return torch.sqrt(1 - torch.exp(2 * log_alpha(t)))

    def sigma_rate(t: Tensor) -> Tensor:
        return -torch.exp(2 * log_alpha(t)) * log_alpha_rate(t) / sigma(t)

    return Path(alpha, sigma, sigma_rate, log_alpha_rate, lambda t: 1 / log_alpha_rate(t), log_alpha_rate, False)


class Flow(NamedTuple):
    """Velocity and score at one (x, t), each float32 [B, ...], from one network evaluation."""

    velocity: Tensor
    score: Tensor


PATHS: dict[PathName, Path] = {
    "Linear": _linear(),
    "GVP": _generalised_variance_preserving(),
    "VP": _variance_preserving(),
}


@dataclass(frozen=True)
class Interpolant:
    """A path and what the network on it predicts: `velocity` (d x_t / dt), `score` (grad log p_t) or `noise`."""

    path_type: PathName = "Linear"
    prediction: Prediction = "velocity"

    @property
    def path(self) -> Path:
        """The weights of data and noise."""
        return PATHS[self.path_type]

    def velocity(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity that the network's prediction at (x, t) stands for."""
        if self.prediction == "velocity":
            return prediction
        return self.path.log_alpha_rate(t) * x + self.path.score_weight(t) * self.score(prediction, x, t)

    def score(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the score that the network's prediction at (x, t) stands for."""
        if self.prediction == "score":
            return prediction
        if self.prediction == "noise":
            return -prediction / self.path.sigma(t)
        r, sigma = self.path.inverse_log_alpha_rate(t), self.path.sigma(t)
        return (r * prediction - x) / (sigma**2 - r * self.path.sigma_rate(t) * sigma)

    def velocity_of(self, predict: Field) -> Field:
        """Return the velocity field of a network `predict(x, t)`."""
        return lambda x, t: self.velocity(predict(x, t), x, per_sample(t, x))

    def flow_of(self, predict: Field) -> Callable[[Tensor, Tensor], Flow]:
        """Return velocity and score of a network `predict(x, t)`, from one evaluation."""

        def flow(x: Tensor, t: Tensor) -> Flow:
            time, output = per_sample(t, x), predict(x, t)
            return Flow(self.velocity(output, x, time), self.score(output, x, time))

        return flow

    def diffusion(self, form: DiffusionForm, norm: float) -> Coefficient:
        """Return w(t) of the reverse SDE dx = (v + w s) dt + sqrt(2 w) dW by the paper's name of its form."""
        forms: dict[DiffusionForm, Coefficient] = {
            "sigma": lambda t: norm * self.path.sigma(t),
            "linear": lambda t: norm * (1 - t),
            "decreasing": lambda t: (norm * torch.cos(math.pi * t) + 1) ** 2 / 4,
            "increasing-decreasing": lambda t: norm * torch.sin(math.pi * t) ** 2,
            "constant": lambda t: norm * torch.ones_like(t),
            "SBDM": lambda t: norm * self.path.score_weight(t),
        }
        return forms[form]

    def interval(self, last_step_size: float = 0.0) -> tuple[float, float]:
        """Return (first, last) time; an SDE stops `last_step_size` short of the data for its last update."""
        regular = self.prediction == "velocity"
        start = CUT if self.path.starts_at_noise and not regular else 0.0
        end = 1.0 if self.path.starts_at_noise and regular else 1.0 - CUT
        return start, 1.0 - last_step_size if last_step_size else end
