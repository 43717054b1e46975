"""Consistency trajectory models, CTM (arXiv 2310.02279): G(x, t, s) jumps from the noise level t to any lower s.

Pixels plus noise, x_t = x + t z. There is no guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import sqrt
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from adapters.consistency import edm_scalings
from adapters.consistency_models import GridSettings, PixelModel, embedded, recorded_options
from adapters.edm import heun_sample
from adapters.times import filled, per_sample
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number
from results.errors import BenchError, unknown

PARAMETRIZATIONS = {"inner_parametrization": "edm", "outer_parametrization": "euler"}
"""The published forms: EDM's scalings inside, the step of Euler's method outside."""
Jump = Callable[[Tensor, float, float], Tensor]
"""G(x, t, s) of x float32 [B, ...] and two noise levels."""


class CTMSettings(GridSettings):
    """The gamma sampler between deterministic jumps (gamma 0) and a consistency model's (gamma 1), and others."""

    sampler: Literal["exact", "gamma_multistep", "cm_multistep", "gamma", "heun"] = Field(
        "exact", description="exact: jumps along the grid without noise, as published; gamma_multistep: below each "
        "level and up again by fresh noise; cm_multistep: gamma 1, to the data and up again; gamma: two jumps between "
        "ind_1 and ind_2; heun: EDM's on the denoiser"
    )  # fmt: skip
    gamma: Number = Field(0.5, ge=0, le=1, description="gamma_multistep: 0 adds no noise, 1 replaces all of it")
    grid: int = Field(40, ge=2, description="points of the noise grid that ts, ind_1 and ind_2 count in")
    ind_1: int = Field(36, ge=0, description="gamma: index of the level that the first jump ends at")
    ind_2: int = Field(20, ge=0, description="gamma: index of the level that the second jump starts from, up to ind_1")

    def levels(self, steps: int) -> list[float]:
        """Return steps + 1 noise levels: of ts, or the grid of that many points from sigma_max to sigma_min."""
        if self.ts is None:
            return self.karras(steps + 1)
        grid = self.karras(self.grid)
        return [grid[index] for index in self.ts]

    def misfit(self, steps: int) -> str | None:
        """Return why `steps` cannot be sampled, and which step counts can, or None."""
        if self.sampler in ("gamma", "heun") and self.ts is not None:
            return f"takes no ts with sampler {self.sampler}: ts is for exact, gamma_multistep and cm_multistep"
        if self.sampler == "heun" and steps < 2:
            return "takes 2 or more steps with sampler heun (EDM's grid is not defined for one)"
        if self.sampler == "gamma":
            if steps != 2:
                return f"takes 2 steps with sampler gamma, found {steps}"
            if not self.ind_2 <= self.ind_1 < self.grid:
                return (
                    f"needs ind_2 <= ind_1 < grid with sampler gamma, found ind_2 {self.ind_2}, ind_1 {self.ind_1}, "
                    f"grid {self.grid}"
                )
        return self.misfit_of(self.grid, steps)


def gamma_sample(
    G: Jump, x: Tensor, levels: Sequence[float], draw: Callable[[int], Tensor], gamma: float, sigma_min: float
) -> Tensor:
    """Return x at the last of `levels`: algorithm 3, from each level a jump to below the next and noise up to it.

    `gamma` 0 jumps straight to the next level and 1 to sigma_min. `draw(k)` is the noise of step k = 1, 2 ...; the
    last step adds none.
    """
    steps = len(levels) - 1
    for k, (t, t_next) in enumerate(pairwise(levels), start=1):
        s = sqrt(1 - gamma**2) * (t_next - sigma_min) + sigma_min if gamma > 0 else t_next
        x = G(x, t, s)
        if gamma > 0 and k < steps:
            x = x + sqrt(t_next**2 - s**2) * draw(k)
    return x


class CTM(PixelModel):
    """CTM on the ADM U-Net with two times."""

    Settings: ClassVar[type[CTMSettings]] = CTMSettings
    second_time = True
    own_words = tuple(PARAMETRIZATIONS)

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        for word, value in PARAMETRIZATIONS.items():
            found = card.architecture.get(word, value)
            if found != value:
                raise BenchError(f"card {card.name}: architecture.{word} must be '{value}', found {found!r}")

    def unsupported(self, steps: int, cfg: float, settings: CTMSettings | None = None) -> str | None:
        """Refuse a step count that the sampler or the time indices do not have."""
        misfit = (settings or self.resolve_settings(steps)).misfit(steps)
        return f"{self.card.name} {misfit}" if misfit else super().unsupported(steps, cfg, settings)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: CTMSettings) -> Tensor:
        """Return pixels, float32 [B, 3, H, W] in [-1, 1]: `steps` evaluations, or 2 steps - 1 of Heun's method."""
        s, shape = settings, self.latent_shape
        x = noise.normal(shape) * s.sigma_max

        def draw(k: int) -> Tensor:
            return noise.normal(shape, k)

        def G(x: Tensor, t: float, s: float) -> Tensor:
            return self.jump(x, filled(t, x), filled(s, x), labels)

        match s.sampler:
            case "heun":
                sigmas = [*s.karras(steps), 0.0]
                x = heun_sample(
                    lambda x, sigma: self.denoise(x, filled(sigma, x), filled(sigma, x), labels), x, sigmas, draw, s
                )
            case "gamma":
                grid = s.karras(s.grid)
                t_a, t_b = grid[s.ind_1], grid[s.ind_2]
                x = G(x, grid[0], t_a)
                x = G(x + sqrt(t_b**2 - t_a**2) * draw(1), t_b, grid[-1])
            case _:
                gamma = {"exact": 0.0, "cm_multistep": 1.0}.get(s.sampler, float(s.gamma))
                x = gamma_sample(G, x, s.levels(steps), draw, gamma, float(s.sigma_min))
        return x.clamp(-1, 1)

    def denoise(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """Return g(x, t, s) = c_skip(t) x + c_out(t) F(c_in(t) x, t, s), float32 [B, ...]; t and s float32 [B]."""
        c_skip, c_out, c_in = (per_sample(c, x) for c in edm_scalings(t, self.sigma_data))
        F = self.network(c_in * x, embedded(t), labels, time_s=embedded(s))
        return c_skip * x + c_out * F

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """Return G(x, t, s) = (s / t) x + (1 - s / t) g(x, t, s)."""
        ratio = per_sample(s / t, x)
        return ratio * x + (1 - ratio) * self.denoise(x, t, s, labels)


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a CTM case."""
    adapter = recorded_adapter(case, CTM)

    def network_call(call: Call) -> Tensor:
        x, time, time_s, t, s, labels = case.arguments(call, "x", "time", "time_s", "t", "s", "labels")
        match call["function"]:
            case "raw" | "raw_no_s":
                output: Tensor = adapter.network(x, time, labels, time_s=time_s)
                return output
            case "jump":
                return adapter.jump(x, t, s, labels)
            case "denoiser":
                return adapter.denoise(x, t, s, labels)
        known = ("raw", "raw_no_s", "jump", "denoiser")
        raise unknown(f"network function of {case.name}", call["function"], known)

    return recorded_replay(case, adapter, network_call, options=lambda call: recorded_options(case, call))
