"""Samplers of the systems without public weights, trained on the digits with their papers' objectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import pi
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from adapters.caf import accelerated_sample
from adapters.digits.adapters import Digits, FlowSettings, uniform
from adapters.digits.network import Choice, Experts
from adapters.digits.parametrisation import (
    FINEST_LEVEL,
    GUIDED_SCALE,
    INTRINSIC_SCALE,
    LEVELS,
    constant_motion,
    cosine_path,
    denoise,
    from_bits,
    guide_code,
    guided_velocity,
    predict_bits,
    trigflow_consistency,
    wide,
)
from adapters.dmd import one_step_sample
from adapters.integrators import ADAPTIVE, ode_sample
from adapters.shortcut import shortcut_sample
from adapters.times import filled
from bench.contracts.noise import NoiseSource
from bench.contracts.settings import Number, SamplerSettings

# --- sCM -------------------------------------------------------------------------------------------------------------


class TrigFlowSettings(SamplerSettings):
    """The times of a TrigFlow consistency model."""

    times: Sequence[Annotated[Number, Field(gt=0, le=pi / 2)]] | None = Field(
        None, description="one time per step in (0, pi/2], from the highest down; null: equal steps from pi/2"
    )


def trigflow_sample(
    consistency: Callable[[Tensor, Tensor], Tensor],
    noise: NoiseSource,
    shape: Sequence[int],
    times: Sequence[float],
    sigma_data: float,
) -> Tensor:
    """Return samples, float32 [B, *shape]: jump to data at each of `times`, noise again to the next.

    `consistency(x, t)` takes x float32 [B, *shape] and t [B]. The k-th noise is draw k of `noise`, of deviation
    `sigma_data` (arXiv 2410.11081).
    """
    t = torch.tensor([*times, 0.0], dtype=torch.float64, device="cpu")
    cos, sin = torch.cos(t).tolist(), torch.sin(t).tolist()
    x = sigma_data * noise.normal(shape, 0)
    x_0 = consistency(x, filled(times[0], x))
    for k in range(1, len(times)):
        x = cos[k] * x_0 + sin[k] * sigma_data * noise.normal(shape, k)
        x_0 = consistency(x, filled(times[k], x))
    return x_0


class DigitsSCM(Digits):
    """sCM: a continuous-time consistency model on TrigFlow."""

    Settings = TrigFlowSettings

    def unsupported(self, steps: int, cfg: float, settings: TrigFlowSettings | None = None) -> str | None:
        """Refuse times of another number of steps."""
        times = (settings or self.resolve_settings(steps)).times
        if times is not None and len(times) != steps:
            return f"{self.card.name}: times needs one time per step, found {len(times)} for {steps}"
        return super().unsupported(steps, cfg, settings)

    def generate(
        self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: TrigFlowSettings
    ) -> Tensor:
        """Jump to data from each of the times."""
        times = settings.times or [pi / 2 * (1 - i / steps) for i in range(steps)]
        return trigflow_sample(
            lambda x, t: trigflow_consistency(self.network, x, t, labels), noise, self.latent_shape, times, LEVELS.data
        )


# --- Guidance as an input of the network -----------------------------------------------------------------------------


class ScaleAsInput(Digits):
    """A network that is told the guidance scale: one evaluation a step at any scale it was trained for."""

    largest: float

    def unsupported(self, steps: int, cfg: float, settings: SamplerSettings | None = None) -> str | None:
        """Refuse scales beyond the trained ones."""
        if not 1.0 <= cfg <= self.largest:
            return f"{self.card.name} was trained for guidance scales from 1 to {self.largest:g}"
        return super().unsupported(steps, cfg, settings)


class DigitsISM(ScaleAsInput):
    """iSM: a shortcut model with intrinsic guidance."""

    largest = INTRINSIC_SCALE

    def unsupported(self, steps: int, cfg: float, settings: SamplerSettings | None = None) -> str | None:
        """Refuse what is not a power of two up to the finest trained step."""
        if steps.bit_count() != 1 or steps > 2**FINEST_LEVEL:
            return f"{self.card.name} takes powers of two up to {2**FINEST_LEVEL} steps only"
        return super().unsupported(steps, cfg, settings)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Take `steps` equal steps, each told its size and the scale."""
        x = noise.normal(self.latent_shape)
        guide = guide_code(filled(cfg, x), self.largest)
        code = 1 - (steps.bit_length() - 1) / FINEST_LEVEL
        return shortcut_sample(lambda x, t, s: -self.network(x, 1 - t, s, labels, guide), x, steps, code)


class DigitsGuided(ScaleAsInput):
    """Guided distillation, stage 1: the flow with the guidance scale as an input, by Euler's method."""

    largest = GUIDED_SCALE

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Integrate the guided flow over `steps` equal steps."""
        return self.integrate(self.network, labels, steps, cfg, noise)

    def integrate(
        self, network: Callable[..., Tensor], labels: Tensor, steps: int, cfg: float, noise: NoiseSource
    ) -> Tensor:
        """Return `steps` Euler steps of `network` from noise."""
        x = noise.normal(self.latent_shape)
        w = filled(cfg, x)
        return ode_sample(lambda x, t: -guided_velocity(network, x, 1 - t, labels, w), x, uniform(steps))


class DigitsProgressive(DigitsGuided):
    """Guided distillation, stage 2: a student for each step count, named by it."""

    network: Choice

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Integrate with the student of `steps` steps."""
        return self.integrate(lambda *inputs: self.network(str(steps), *inputs), labels, steps, cfg, noise)


# --- CAF -------------------------------------------------------------------------------------------------------------


class DigitsCAF(Digits):
    """CAF: a velocity network and an acceleration network."""

    network: Choice

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Ask for the velocity once and for the acceleration at each of `steps` equal steps."""

        def velocity(z: Tensor) -> Tensor:
            return constant_motion(self.member("velocity"), z, filled(0.0, z), torch.zeros_like(z), labels)

        def acceleration(x: Tensor, t: float, v_0: Tensor) -> Tensor:
            return constant_motion(self.member("acceleration"), x, filled(t, x), v_0, labels)

        times = [i / steps for i in range(steps)]  # the published code cuts them to thousandths
        return accelerated_sample(velocity, acceleration, noise.normal(self.latent_shape), times)

    def member(self, name: str) -> Callable[..., Tensor]:
        """Return the network `name` as a function."""
        return lambda *inputs, **named: self.network(name, *inputs, **named)


# --- Multi-student distillation --------------------------------------------------------------------------------------


class DigitsMultiStudent(Digits):
    """Multi-student distillation: the label picks the one-step student, the first one for 0 to 4."""

    network: Experts

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Return G(z) of each label's student."""
        student = (labels >= self.num_classes // 2).long()
        return one_step_sample(
            lambda x, t: denoise(lambda *inputs: self.network(student, *inputs), x, t, labels),
            noise, self.latent_shape, level=1.0,
        )  # fmt: skip


# --- LowDiff ---------------------------------------------------------------------------------------------------------


class CascadeSettings(FlowSettings):
    """How many of the steps are taken at 4x4."""

    low_steps: int | None = Field(None, ge=1, description="steps at 4x4, the others at 8x8; null: half of them")

    def split(self, steps: int) -> tuple[int, int]:
        """Return the steps at 4x4 and at 8x8."""
        low = steps // 2 if self.low_steps is None else self.low_steps
        return low, steps - low


class DigitsLowDiff(Digits):
    """LowDiff: a flow of 4x4 images, then one of 8x8 images given the first one's, by one network."""

    Settings = CascadeSettings

    def unsupported(self, steps: int, cfg: float, settings: CascadeSettings | None = None) -> str | None:
        """Refuse a resolution without a step."""
        settings = settings or self.resolve_settings(steps)
        if min(settings.split(steps)) < 1:
            return f"{self.card.name} takes 2 or more steps, at least one at 4x4 and one at 8x8"
        if settings.solver in ADAPTIVE:
            return f"{self.card.name} takes solvers of fixed steps only, not {settings.solver}"
        return super().unsupported(steps, cfg, settings)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: CascadeSettings) -> Tensor:
        """Integrate both flows over equal steps; draw 1 of `noise` is that of the 4x4 image."""
        channels, side = self.latent_shape[0], self.latent_shape[1] // 2
        low, high = settings.split(steps)

        def flow(code: float, hint: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda x, t: -self.network(x, 1 - t, torch.full_like(t, code), labels, hint=hint)

        x_4 = ode_sample(flow(1.0, None), noise.normal((channels, side, side), 1), uniform(low), settings.solver)
        return ode_sample(flow(0.0, x_4), noise.normal(self.latent_shape), uniform(high), settings.solver)


# --- Analog bits -----------------------------------------------------------------------------------------------------


class BitSettings(SamplerSettings):
    """How analog bits are sampled."""

    stochastic: bool = Field(True, description="DDPM's ancestral steps, with fresh noise each; else DDIM's")
    self_conditioning: bool = Field(True, description="whether each step is given the estimate of the one before")
    time_difference: Number = Field(
        0.0,
        ge=0,
        lt=1,
        description="by how much each step, the last one aside, ends nearer to the data than the next one takes it to",
    )


class DigitsAnalogBits(Digits):
    """Bit Diffusion: five analog bits a pixel, with self-conditioning. The state is the bits and their estimate."""

    Settings = BitSettings

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: BitSettings) -> Tensor:
        """Denoise the bits over `steps` equal steps from t = 1 to 0 and read the last estimate by its sign."""
        x = noise.normal(self.latent_shape)
        estimate = torch.zeros_like(x)
        times = [1 - i / steps for i in range(steps + 1)]
        for k, (t, s) in enumerate(pairwise(times), start=1):
            s = max(s - settings.time_difference, 0.0) if k < steps else 0.0
            given = estimate if settings.self_conditioning else torch.zeros_like(x)
            estimate = predict_bits(self.network, x, given, filled(t, x), labels).clamp(-1, 1)
            if s > 0:
                x = self.next_state(x, estimate, t, s, noise, k if settings.stochastic else None)
        return estimate

    def next_state(
        self, x: Tensor, estimate: Tensor, t: float, s: float, noise: NoiseSource, draw: int | None
    ) -> Tensor:
        """Return the bits at time s < t: DDPM's step with the noise of `draw`, DDIM's without one."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (cosine_path(wide(filled(time, x))) for time in (t, s))
        epsilon = (x - alpha_t * estimate) / sigma_t
        if draw is None:
            return alpha_s * estimate + sigma_s * epsilon
        variance = (sigma_s / sigma_t) ** 2 * (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2)
        kept = (sigma_s**2 - variance).clamp(min=0).sqrt()
        return alpha_s * estimate + kept * epsilon + variance.sqrt() * noise.normal(self.latent_shape, draw)

    def decode(self, latents: Tensor) -> Tensor:
        """Return float32 [B, 3, 8, 8]: the grey level of the bits in every channel."""
        return super().decode(from_bits(latents))
