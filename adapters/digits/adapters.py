"""The digits generators as adapters: each family's own sampler around the one network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adapters.consistency import karras_sigmas, multistep_sample
from adapters.digits.network import NULL_LABEL, DigitsMixer
from adapters.digits.parametrisation import FINEST_LEVEL, LEVELS, consistency_function, denoise, step_code, velocity
from adapters.dmd import one_step_sample
from adapters.meanflow import meanflow_sample, uniform_times
from adapters.shortcut import shortcut_sample
from adapters.sit import ode_sample
from adapters.ucgm import uni_sample
from bench.contracts.adapter import Adapter, load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from results.errors import BenchError


class Digits(Adapter):
    """What all digits generators share: the network, its weights and the grey picture, float32 [B, 1, 8, 8]."""

    network: DigitsMixer

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.network = DigitsMixer(**card.architecture)

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from the trained state dict, strictly."""
        load_strict(self.network, state, self.card.name)

    def decode(self, latents: Tensor) -> Tensor:
        """Return float32 [B, 3, 8, 8]: the grey value in every channel, unclipped."""
        return latents.repeat(1, 3, 1, 1)


class DigitsFlow(Digits):
    """Rectified flow, the multi-step baseline, with classifier-free guidance."""

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, *, solver: str = "euler") -> Tensor:
        """Integrate the flow over `steps` equal steps of `solver` (`euler`: one evaluation each, two when guided)."""

        def towards_data(x: Tensor, t: Tensor) -> Tensor:
            # The sampler has noise at t = 0, the network at t = 1.
            level = 1 - t
            if cfg == 1.0:
                return -velocity(self.network, x, level, labels)
            both = torch.cat([labels, torch.full_like(labels, NULL_LABEL)])
            conditional, null = velocity(self.network, x.repeat(2, 1, 1, 1), level.repeat(2), both).chunk(2)
            return -(null + cfg * (conditional - null))

        times = [i / steps for i in range(steps + 1)]
        return ode_sample(towards_data, noise.normal(self.latent_shape), times, solver)


class DigitsUCGM(Digits):
    """UCGM, Linear transport, multi-step or few-step by its weights and settings."""

    def generate(
        self,
        labels: Tensor,
        steps: int,
        cfg: float,
        noise: NoiseSource,
        *,
        stochast_ratio: float = 0.0,
        extrapol_ratio: float = 0.0,
        sampling_order: int = 1,
        time_dist_ctrl: Sequence[float] = (1.0, 1.0, 1.0),
        rfba_gap_steps: Sequence[float] = (0.0, 0.0),
    ) -> Tensor:
        """Sample with UNI; gaps of 0 are the uniform times 1, 1 - 1/n, ..., 1/n."""
        return uni_sample(
            lambda x, t: velocity(self.network, x, t, labels), noise, self.latent_shape, steps, transport="Linear",
            stochast_ratio=stochast_ratio, extrapol_ratio=extrapol_ratio, sampling_order=sampling_order,
            time_dist_ctrl=time_dist_ctrl, rfba_gap_steps=rfba_gap_steps,
        )  # fmt: skip


class DigitsConsistency(Digits):
    """A consistency model sampled by denoising and adding noise again."""

    def generate(
        self,
        labels: Tensor,
        steps: int,
        cfg: float,
        noise: NoiseSource,
        *,
        sigmas: Sequence[float] | None = None,
        clamp: bool = True,
    ) -> Tensor:
        """Denoise at each of `sigmas`, one a step (default: equal steps on the Karras grid, sigma_max first)."""
        if sigmas is None:
            levels = karras_sigmas(steps + 1, LEVELS.minimum, LEVELS.maximum)
        elif len(sigmas) == steps:
            levels = [*sigmas, LEVELS.minimum]
        else:
            raise BenchError(f"{self.card.name}: sigmas needs one noise level a step, found {len(sigmas)} for {steps}")
        return multistep_sample(
            lambda x, sigma: consistency_function(self.network, x, sigma, labels), noise, self.latent_shape, levels,
            sigma_min=LEVELS.minimum, sigma_max=LEVELS.maximum, clamp=clamp,
        )  # fmt: skip


class DigitsMeanFlow(Digits):
    """MeanFlow: the network's second scalar is the interval h = t - r."""

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource) -> Tensor:
        """Jump along `steps` equal intervals by their average velocity."""
        return meanflow_sample(
            lambda z, t, h: self.network(z, t, h, labels), noise.normal(self.latent_shape), uniform_times(steps)
        )


class DigitsShortcut(Digits):
    """Shortcut model: the network's second scalar is the code of the step size, so steps are powers of two."""

    def unsupported(self, steps: int, cfg: float) -> str | None:
        """Refuse what is no power of two up to the finest trained step."""
        if steps.bit_count() != 1 or steps > 2**FINEST_LEVEL:
            return f"{self.card.name} takes powers of two up to {2**FINEST_LEVEL} steps only"
        return super().unsupported(steps, cfg)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource) -> Tensor:
        """Take `steps` equal steps, each told its size."""
        code = float(step_code(torch.tensor(steps.bit_length() - 1)))
        return shortcut_sample(
            lambda x, t, s: -self.network(x, 1 - t, s, labels), noise.normal(self.latent_shape), steps, code
        )


class DigitsDMD(Digits):
    """DMD: one evaluation at pure noise."""

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource) -> Tensor:
        """Return G(z), the denoised pure noise."""
        return one_step_sample(lambda x, t: denoise(self.network, x, t, labels), noise, self.latent_shape, level=1.0)
