"""FACM, flow-anchored consistency models (arXiv 2507.03738): LightningDiT, distilled to jump from noise to data.

Noise lies at t = 0 and data at t = 1; the network predicts F = data - noise. Guidance is trained in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from adapters.guidance import Guided
from adapters.integrators import SOLVER, FixedSolver, fixed_steps
from adapters.latent import LatentAdapter
from adapters.meanflow import TimedSettings
from adapters.networks.lightningdit import LightningDiT
from adapters.times import at_times
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number
from results.errors import BenchError

FlowField = Callable[[Tensor, float], Tensor]
"""F(x, t), [B, ...], at a time that is a number."""
SAMPLED_AVERAGE = "ema_models.1."
"""Of the two averages of a post-hoc EMA state, the one that the authors sample (sigma_rel 0.2)."""

RECORDED = {"mode": "sampler", "method": "sampler"}
"""What recordings may call a setting."""


class FACMSettings(TimedSettings):
    """Jumps to the data with fresh noise between them, or steps of a solver along the flow."""

    sampler: Literal["consistency"] | FixedSolver = Field(
        "consistency", description=f"consistency: jump to the data and add noise again; for the base model: {SOLVER}"
    )
    shift: Number = Field(1.0, gt=0, description="of the flow's times: s t / (1 + (s - 1) t); below 1 towards noise")
    interval: Sequence[Number] = Field(
        (0.125, 1.0), min_length=2, max_length=2, description="first and last time that are guided, both included"
    )

    @model_validator(mode="after")
    def _shifted(self) -> Self:
        if self.sampler == "consistency" and self.shift != 1:
            raise ValueError(
                "shift is for sampler euler and other solvers of the flow; the consistency sampler has uniform times"
            )
        if self.times is not None and (self.sampler == "consistency" or self.shift != 1):
            raise ValueError("times are for sampler euler and other solvers of the flow, in place of shift")
        return self

    def clock(self, steps: int) -> list[float]:
        """Return `steps` + 1 times from 0 (noise) to 1 (data)."""
        if self.times is not None:
            return [1 - t for t in self.grid(steps)]
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")
        times: list[float] = (self.shift * t / (1 + (self.shift - 1) * t)).tolist()
        return times


def consistency_sample(F: FlowField, x: Tensor, times: Sequence[float], noise: NoiseSource) -> Tensor:
    """Return x at the last of `times`, 1; draw k of `noise` is the noise after step k, none after the last."""
    for k, (t, t_next) in enumerate(pairwise(times), start=1):
        x_1 = x + (1 - t) * F(x, t)
        x = x_1 if t_next == 1.0 else t_next * x_1 + (1 - t_next) * noise.normal(x.shape[1:], draw=k).to(x)
    return x


class FACM(LatentAdapter):
    """FACM's students, and the flow model that they come from (`sampler` euler, heun2 ...)."""

    Settings = FACMSettings
    network: LightningDiT

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        facts = {"num_classes": card.num_classes, **card.architecture}
        if facts.pop("auxiliary_time_cond", False):
            raise BenchError(
                f"{card.name}: auxiliary_time_cond = true is not supported (no published FACM model has it)"
            )
        try:
            self.network = LightningDiT(**facts)
        except TypeError as error:
            raise BenchError(f"card {card.name}: architecture of LightningDiT: {error}") from error

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from a state dict, or from a training file's post-hoc EMA state (`emas`)."""
        load_strict(self.network, sampled_average(state), self.card.name)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: FACMSettings) -> Tensor:
        """Return normalised latents, float32 [B, C, H, W], by steps of a float64 state."""
        x, times = noise.normal(self.latent_shape).to(self.device).double(), settings.clock(steps)
        F = self.guided(labels, cfg, settings)
        if settings.sampler == "consistency":
            return consistency_sample(F, x, times, noise).float()
        return fixed_steps(F, x, times, settings.sampler).float()

    def unsupported(self, steps: int, cfg: float, settings: FACMSettings | None = None) -> str | None:
        """Refuse times of another number of steps."""
        misfit = (settings or self.resolve_settings(steps)).misfit(steps)
        return super().unsupported(steps, cfg, settings) if misfit is None else f"{self.card.name}: {misfit}"

    def euler_field(self, labels: Tensor, cfg: float, settings: FACMSettings) -> FlowField | None:
        """Return the guided flow; a consistency model has none."""
        F = self.guided(labels, cfg, settings)
        return None if settings.sampler == "consistency" else lambda x, t: -F(x, 1 - t)

    def guided(self, labels: Tensor, cfg: float, settings: FACMSettings) -> Guided:
        """Return F as a function of (x, t)."""
        return Guided(
            at_times(self.network),
            labels,
            null=torch.full_like(labels, int(self.card.architecture["num_classes"])),
            cfg=cfg,
            interval=(settings.interval[0], settings.interval[1]),
        )


def sampled_average(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sampled weights of a state dict, or of a post-hoc EMA state (arXiv 2312.02696)."""
    averages = {key.removeprefix("emas/"): value for key, value in state.items()}
    chosen = {key: value for key, value in averages.items() if key.startswith(SAMPLED_AVERAGE)}
    return {key.removeprefix(SAMPLED_AVERAGE): value for key, value in (chosen or dict(state)).items()}


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a FACM case."""
    adapter = recorded_adapter(case, FACM, "classifier-free")

    def options(call: Call) -> dict[str, Any]:
        found = {RECORDED.get(key, key): value for key, value in case.options(call).items()}
        if found.get("sampler", "consistency") == "consistency":
            found.pop("shift", None)  # upstream shifts the flow model's times only
        return found

    inputs = ("x", "time", "labels")
    return recorded_replay(case, adapter, inputs, options=options, null_label=adapter.num_classes)
