"""GMFlow (arXiv 2504.05304): a flow model of Gaussian mixtures, sampled by GM-ODE with probabilistic guidance.

Noise lies at t = 1 and data at t = 0. The paper's guidance scale w in [0, 1) is `cfg` - 1, so that cfg 1 is unguided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from adapters.latent import LatentAdapter
from adapters.mixtures import Mixture, Policy, average, predicted
from adapters.networks.gmdit import FusedGMDiT, MixtureOutput
from adapters.piflow import PARTS
from adapters.times import at_times
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number, SamplerSettings
from results.errors import BenchError

EPS = 1e-6
"""Smallest noise level, divisor and remaining share of a variance."""
EXTRA_VARIANCE = 0.005
"""What the second order adds to w^2 when it estimates how reliable the previous step is."""


class GMFlowSettings(SamplerSettings):
    """Order and substeps of GM-ODE."""

    order: int = Field(2, ge=1, le=2, description="order of the solver; 2 also uses the previous step's mixture")
    substeps: int = Field(16, ge=1, description="substeps of each step; they cost no network evaluation")
    orthogonal: Number = Field(
        1.0, ge=0, le=1, description="share of guidance along the mean that is taken out; 1: all of it"
    )


class Moments(NamedTuple):
    """Mean of a mixture, [B, C, H, W], and its average variance, [B, 1, 1, 1]."""

    mu: Tensor
    u: Tensor


def shifted(mixture: Mixture, moments: Moments, bias: Tensor, remaining: Tensor | float) -> Mixture:
    """Return mixture N(mu + bias, u remaining) / N(mu, u), normalised; `remaining` is a share of the variance."""
    mu, u = moments
    zeta = (1 / remaining - 1) / u
    return mixture.tilted(bias / (u * remaining) + mu * zeta, zeta[:, None], EPS)


def guidance_bias(moments: Moments, null: Mixture, w: float, orthogonal: float) -> Tensor:
    """Return b: the direction away from the null mixture's mean, of mean square w^2 u, [B, C, H, W]."""
    mu, u = moments
    b = mu - null.mean
    b = b - orthogonal * average(b * mu) / average(mu.square()) * mu
    return b * w * (u / average(b.square())).sqrt()


class GMFlow(LatentAdapter):
    """GMFlow's class-conditional models: a mixture a step (two evaluations with guidance)."""

    Settings = GMFlowSettings
    network: FusedGMDiT

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        try:
            self.network = FusedGMDiT(**{"num_classes": card.num_classes, **card.architecture})
        except TypeError as error:
            raise BenchError(f"card {card.name}: architecture of GMFlow: {error}") from error

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from the published state dict; its spectrum network serves another sampler."""
        state = {key: value for key, value in state.items() if not key.startswith("spectrum_net.")}
        load_strict(self.network, state, self.card.name)

    def unsupported(self, steps: int, cfg: float, settings: GMFlowSettings | None = None) -> str | None:
        """Refuse guidance outside [1, 2): w = cfg - 1 lies in [0, 1)."""
        if not 1.0 <= cfg < 2.0:
            return f"{self.card.name} takes guidance from 1 (none) to below 2: the paper's w is cfg - 1, got {cfg:g}"
        return super().unsupported(steps, cfg, settings)

    def substeps(self, steps: int, settings: GMFlowSettings) -> int:
        """Return how many substeps a sample takes."""
        return steps * settings.substeps

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: GMFlowSettings) -> Tensor:
        """Return latents, float32 [B, C, H, W]."""
        x = noise.normal(self.latent_shape).to(self.device)
        return self.gm_ode(labels, steps, cfg - 1.0, x, settings)

    def gm_ode(self, labels: Tensor, steps: int, w: float, x: Tensor, settings: GMFlowSettings) -> Tensor:
        """Return x [B, C, H, W] at the data; without guidance the second order is its own limit for w to 0."""
        total, previous = steps * settings.substeps, None
        h = 1 / steps
        for step in range(steps):
            sigmas = [1 - i / total for i in range(step * settings.substeps, (step + 1) * settings.substeps + 1)]
            sigma = sigmas[0]
            mixture, null = self.mixtures(x, sigma, labels, w)
            moments = Moments(mixture.mean, mixture.spread)
            b = torch.zeros_like(x) if null is None else guidance_bias(moments, null, w, settings.orthogonal)
            guided = mixture if null is None else shifted(mixture, moments, b, 1 - w**2)
            final = guided
            if settings.order == 2 and previous is not None:
                trust = (1 - moments.u * (w**2 + EXTRA_VARIANCE) / h**2).clamp(min=0).sqrt()
                B = b + (guided.mean - previous.estimate(x, sigma)) * trust / 2
                share = average(B.square()) / moments.u
                B = B * (1 / share.clamp(min=1)).sqrt()
                final = shifted(mixture, moments, B, (1 - share).clamp(min=EPS))
            previous = Policy(guided, x, sigma, EPS)
            x = Policy(final, x, sigma, EPS).follow(sigmas)
        return x

    def mixtures(self, x: Tensor, sigma: float, labels: Tensor, w: float) -> tuple[Mixture, Mixture | None]:
        """Return the conditional mixture at (x, sigma) and, under guidance, the unconditional one."""
        network = at_times(self.network)
        if w == 0:
            return predicted(network(x, sigma, labels), x, sigma), None
        both = network(torch.cat([x, x]), sigma, torch.cat([labels, torch.full_like(labels, self.num_classes)]))
        cond, null = zip(*(part.chunk(2) for part in both), strict=True)
        return predicted(MixtureOutput(*cond), x, sigma), predicted(MixtureOutput(*null), x, sigma)


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a GMFlow case."""
    adapter = recorded_adapter(case, GMFlow, "classifier-free")

    def network(call: Call) -> Tensor:
        inputs = case.arguments(call, "x", "t", "labels", null_label=adapter.num_classes)
        output: MixtureOutput = adapter.network(*inputs)
        return output[PARTS.index(case.options(call)["part"])]

    def cfg(call: Call) -> float:
        return 1.0 + float(call.get("guidance", 0.0))  # recorded is the paper's w

    return recorded_replay(case, adapter, network, cfg=cfg, null_label=adapter.num_classes)
