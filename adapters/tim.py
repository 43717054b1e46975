"""Transition Models, TiM (arXiv 2509.04394): one network for jumps of any length, with or without fresh noise.

Noise lies at t = 1 and data at t = 0; F = noise - data over the jump from t to r.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor

from adapters.flow_maps import FlowMap
from adapters.guidance import Guided
from adapters.latent import LatentAdapter
from adapters.networks.timdit import TransitionDiT
from adapters.times import at_times
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number, SamplerSettings
from results.errors import BenchError

TRAINING = ("encoder_depth", "class_dropout_prob", "z_dim", "projector_dim")
"""Facts of the projector and of the training, which sampling does not see."""
PUBLISHED = {"new_condition": "t-r", "use_new_embed": True}
"""How every published network is told where to jump."""


class TiMSettings(SamplerSettings):
    """Fresh noise in the jumps, and where guidance acts."""

    stochasticity_ratio: Number = Field(
        0.0, ge=0, description="share of fresh noise in every jump but the first and the last"
    )
    interval: Sequence[Number] = Field(
        (0.0, 1.0), min_length=2, max_length=2, description="times between which guidance acts, both excluded"
    )


def transition_sample(F: FlowMap, x: Tensor, times: Sequence[float], s: float, noise: NoiseSource) -> Tensor:
    """Return x at the last of `times`, 0, started from `x` [B, ...] at the first, 1.

    Draw k of `noise` is the noise of jump k, counted from 0; the first and the last draw none.
    """
    for k, (t, r) in enumerate(pairwise(times)):
        f = F(x, t, r).to(x)
        x_r = x - (t - r) * f
        if s > 0 and t < 1 and r > 0:
            z = x + (1 - t) * f
            x_r = x_r - s * (t - r) * z + (2 * s * t * (t - r)) ** 0.5 * noise.normal(x.shape[1:], draw=k).to(x)
        x = x_r
    return x


class TiM(LatentAdapter):
    """Class-conditional Transition Models: one pass a step, two where guidance acts."""

    Settings = TiMSettings
    network: TransitionDiT

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        facts = {key: value for key, value in card.architecture.items() if key not in TRAINING}
        for key, value in PUBLISHED.items():
            if facts.pop(key, value) != value:
                raise BenchError(f"card {card.name}: {key} must be {value!r}: no other published network is known")
        try:
            self.network = TransitionDiT(**{"num_classes": card.num_classes, **facts})
        except TypeError as error:
            raise BenchError(f"card {card.name}: architecture of TiM: {error}") from error

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from the published state dict, with or without the projector of the training."""
        state = {key: value for key, value in state.items() if not key.startswith("projector.")}
        load_strict(self.network, state, self.card.name)

    def unsupported(self, steps: int, cfg: float, settings: TiMSettings | None = None) -> str | None:
        """Refuse guidance below 1, which the authors' sampler ignores."""
        if cfg < 1.0:
            return f"{self.card.name} takes guidance from 1 (none) upwards, got {cfg:g}"
        return super().unsupported(steps, cfg, settings)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: TiMSettings) -> Tensor:
        """Return latents, float32 [B, C, H, W], by jumps of a float64 state on uniform times, rounded to float32."""
        F = Guided(
            at_times(self.network),
            labels,
            null=torch.full_like(labels, self.num_classes),
            cfg=cfg,
            interval=(settings.interval[0], settings.interval[1]),
            closed=False,
        )
        times: list[float] = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu").float().tolist()
        x = noise.normal(self.latent_shape).to(self.device).double()
        return transition_sample(F, x, times, settings.stochasticity_ratio, noise).float()


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a TiM case."""
    adapter = recorded_adapter(case, TiM, "classifier-free")

    return recorded_replay(
        case,
        adapter,
        ("x", "t", "r", "labels"),
        cfg=lambda call: max(1.0, call.get("guidance", 1.0)),
        null_label=adapter.num_classes,
    )
