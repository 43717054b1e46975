"""Gaussian mixtures of each position, as pi-Flow and GMFlow predict them (arXiv 2510.14974, 2504.05304)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from adapters.networks.gmdit import MixtureOutput


@dataclass(frozen=True)
class Mixture:
    """A mixture of K isotropic Gaussians of the clean latent at every position."""

    means: Tensor
    """float32 [B, K, C, H, W]."""
    log_weights: Tensor
    """float32 [B, K, 1, H, W], normalised over K."""
    variance: Tensor
    """float32 [B, 1, 1, 1, 1], the same for every component and position."""

    @property
    def mean(self) -> Tensor:
        """Mean, [B, C, H, W]."""
        return (self.log_weights.exp() * self.means).sum(1)

    @property
    def spread(self) -> Tensor:
        """Variance of a channel, averaged over channels and positions, [B, 1, 1, 1]."""
        between = (self.log_weights.exp() * (self.means - self.mean[:, None]).square()).sum(1)
        return average(between) + self.variance[:, 0]

    def tilted(self, nu: Tensor, zeta: Tensor | float, eps: float) -> Mixture:
        """Return the mixture times exp(<nu, x> - zeta |x|^2 / 2), normalised.

        `nu` [B, C, H, W]. A quotient of two Gaussians has this form: what is learnt of x from another noise level, and
        what guidance does. The divisor v zeta + 1 is kept at `eps` or above.
        """
        nu = nu[:, None]
        divisor = (self.variance * zeta + 1).clamp(min=eps)
        gain = (self.means * (nu - zeta * self.means / 2)).sum(2, keepdim=True) / divisor
        return Mixture(
            (self.variance * nu + self.means) / divisor,
            (self.log_weights + gain).log_softmax(1),
            self.variance / divisor,
        )

    def cooled(self, temperature: float) -> Mixture:
        """Return the mixture at a temperature: sharper weights and narrower components below 1."""
        weights = (self.log_weights / temperature).log_softmax(1)
        return Mixture(self.means, weights, self.variance * temperature)


@dataclass(frozen=True)
class Policy:
    """The velocity of the noisy latent that a mixture predicted at (x_s, sigma_s) implies at later states."""

    mixture: Mixture
    x_s: Tensor
    sigma_s: float
    eps: float
    """Smallest noise level and divisor."""

    def estimate(self, x: Tensor, sigma: float) -> Tensor:
        """Return E[x_0 | x at noise level sigma] under the mixture, [B, C, H, W]."""
        now, then = max(sigma, self.eps), max(self.sigma_s, self.eps)
        zeta = ((1 - now) / now) ** 2 - ((1 - then) / then) ** 2
        nu = (1 - now) / now**2 * x - (1 - then) / then**2 * self.x_s
        return self.mixture.tilted(nu, zeta, self.eps).mean

    def follow(self, sigmas: list[float]) -> Tensor:
        """Return x at the last of `sigmas`, started from x_s at the first, by Euler substeps without the network."""
        x = self.x_s
        for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            x_0 = self.estimate(x, sigma) if index else self.mixture.mean
            x = x + (x - x_0) / max(sigma, self.eps) * (sigma_next - sigma)
        return x


def predicted(output: MixtureOutput, x: Tensor, sigma: float) -> Mixture:
    """Return the mixture of clean latents that the network predicts, as velocities, at x with noise level sigma."""
    return Mixture(x[:, None] - sigma * output.means, output.log_weights, (sigma * output.log_stds.exp()).square())


def average(x: Tensor) -> Tensor:
    """Return the mean over all axes of x [B, C, H, W] but the first, kept as [B, 1, 1, 1]."""
    return torch.mean(x, dim=(1, 2, 3), keepdim=True)
