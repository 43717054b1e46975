"""The digits generators as adapters: each family's own sampler around the one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from adapters.consistency import karras_sigmas, multistep_sample
from adapters.digits.network import NULL_LABEL, build_network
from adapters.digits.parametrisation import (
    FINEST_LEVEL,
    LEVELS,
    Network,
    consistency_function,
    denoise,
    step_code,
    velocity,
)
from adapters.dmd import one_step_sample
from adapters.guidance import Guided
from adapters.integrators import AdaptiveSolver, FixedSolver, ode_sample
from adapters.meanflow import meanflow_sample, uniform_times
from adapters.shortcut import shortcut_sample
from adapters.times import filled
from adapters.ucgm import UNI, uni_sample
from bench.contracts.adapter import Adapter, load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.settings import Number, SamplerSettings


class Digits(Adapter):
    """What all digits generators share: the network, its weights and the grey picture, float32 [B, 1, 8, 8]."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.network = build_network(card.architecture)

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from the trained state dict, strictly."""
        load_strict(self.network, state, self.card.name)

    def decode(self, latents: Tensor) -> Tensor:
        """Return float32 [B, 3, 8, 8]: the grey value in every channel, unclipped."""
        return latents.repeat(1, 3, 1, 1)


class FlowSettings(SamplerSettings):
    """How the flow is integrated."""

    solver: FixedSolver | AdaptiveSolver = Field("euler", description="ODE solver; euler costs one evaluation per step")


class DigitsFlow(Digits):
    """Rectified flow, the multi-step baseline, with classifier-free guidance."""

    Settings = FlowSettings

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: FlowSettings) -> Tensor:
        """Integrate the flow over `steps` steps."""
        model, times = self.guided(labels, cfg), self.times(steps, settings)
        # The sampler has noise at t = 0, the network at t = 1.
        return ode_sample(lambda x, t: -model(x, 1 - t), noise.normal(self.latent_shape), times, settings.solver)

    def euler_field(self, labels: Tensor, cfg: float, settings: FlowSettings) -> Callable[[Tensor, float], Tensor]:
        """Return the velocity as a function of (x, t)."""
        model = self.guided(labels, cfg)
        return lambda x, t: model(x, filled(t, x))

    def guided(self, labels: Tensor, cfg: float) -> Guided:
        """Return the velocity towards the noise as a function of (x, t)."""
        return Guided(velocity_of(self.network), labels, torch.full_like(labels, NULL_LABEL), cfg)

    def times(self, steps: int, settings: FlowSettings) -> Sequence[float]:
        """Return the steps + 1 times from noise (0) to data (1), equally far apart."""
        return uniform(steps)


def uniform(steps: int) -> list[float]:
    """Return steps + 1 equally spaced times from 0 to 1."""
    return [i / steps for i in range(steps + 1)]


def velocity_of(network: Network) -> Network:
    """Return a flow network as a function of (x, t, labels)."""
    return lambda x, t, labels: velocity(network, x, t, labels)


class DigitsUNI(UNI):
    """UNI with uniform times 1, 1 - 1/n, ..., 1/n unless gaps are given."""

    rfba_gap_steps: Sequence[Annotated[Number, Field(ge=0, lt=1)]] = Field(
        (0.0, 0.0), min_length=2, max_length=2, description="gaps at the two ends of the time grid"
    )


class DigitsUCGM(Digits):
    """UCGM, Linear transport, multi-step or few-step by its weights and settings."""

    Settings = DigitsUNI

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: DigitsUNI) -> Tensor:
        """Sample with UNI."""
        return uni_sample(lambda x, t: velocity(self.network, x, t, labels), noise, self.latent_shape, steps, settings)


class ConsistencySettings(SamplerSettings):
    """The noise levels of a consistency model."""

    sigmas: Sequence[Annotated[Number, Field(gt=0)]] | None = Field(
        None, description="one noise level per step, from the highest down; null: equal steps on the Karras grid"
    )
    clamp: bool = Field(True, description="whether each prediction is clamped to [-1, 1]")


class DigitsConsistency(Digits):
    """A consistency model sampled by denoising and adding noise again."""

    Settings = ConsistencySettings

    def unsupported(self, steps: int, cfg: float, settings: ConsistencySettings | None = None) -> str | None:
        """Refuse levels of another number of steps."""
        sigmas = (settings or self.resolve_settings(steps)).sigmas
        if sigmas is not None and len(sigmas) != steps:
            return f"{self.card.name}: sigmas needs one noise level per step, found {len(sigmas)} for {steps}"
        return super().unsupported(steps, cfg, settings)

    def generate(
        self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: ConsistencySettings
    ) -> Tensor:
        """Denoise at each of the levels, one a step."""
        levels = karras_sigmas(steps + 1, LEVELS.minimum, LEVELS.maximum)
        if settings.sigmas is not None:
            levels = [*settings.sigmas, LEVELS.minimum]
        return multistep_sample(
            lambda x, sigma: consistency_function(self.network, x, sigma, labels), noise, self.latent_shape, levels,
            sigma_min=LEVELS.minimum, sigma_max=LEVELS.maximum, clamp=settings.clamp,
        )  # fmt: skip


class DigitsMeanFlow(Digits):
    """MeanFlow: the network's second scalar is the interval h = t - r."""

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Jump along `steps` equal intervals by their average velocity."""
        return meanflow_sample(
            lambda z, t, h: self.network(z, t, h, labels), noise.normal(self.latent_shape), uniform_times(steps)
        )


class DigitsShortcut(Digits):
    """Shortcut model: the network's second scalar is the code of the step size, so steps are powers of two."""

    def unsupported(self, steps: int, cfg: float, settings: SamplerSettings | None = None) -> str | None:
        """Refuse what is not a power of two up to the finest trained step."""
        if steps.bit_count() != 1 or steps > 2**FINEST_LEVEL:
            return f"{self.card.name} takes powers of two up to {2**FINEST_LEVEL} steps only"
        return super().unsupported(steps, cfg, settings)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Take `steps` equal steps, each told its size."""
        code = float(step_code(torch.tensor(steps.bit_length() - 1)))
        return shortcut_sample(
            lambda x, t, s: -self.network(x, 1 - t, s, labels), noise.normal(self.latent_shape), steps, code
        )


class DigitsDMD(Digits):
    """DMD: one evaluation at pure noise."""

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Return G(z), the denoised pure noise."""
        return one_step_sample(lambda x, t: denoise(self.network, x, t, labels), noise, self.latent_shape, level=1.0)
