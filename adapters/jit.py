"""JiT, the pixel transformer that predicts clean images (arXiv 2511.13720): multi-step, or one step after FD-Loss.

Noise lies at t = 1 and data at t = 0; the network is told 1 - t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from adapters.flax_trees import without_prefix
from adapters.guidance import Guided
from adapters.meanflow import TimedSettings
from adapters.networks.jit import JiTNetwork
from adapters.times import filled
from bench.contracts.adapter import Adapter, load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number
from results.errors import BenchError

Velocity = Callable[[Tensor, float], Tensor]
"""v(z, t), [B, ...], at a time that is a number."""
COMPUTED = ("feat_rope", "rope_freqs")
"""Tables of rotary positions that a file may hold; they are computed anew."""


class JiTSettings(TimedSettings):
    """The solver, and where guidance acts."""

    method: Literal["euler", "heun"] = Field(
        "euler", description="heun costs two evaluations per step but the last, which is an Euler step"
    )
    interval: Sequence[Number] = Field(
        (0.0, 1.0),
        min_length=2,
        max_length=2,
        description="guided times as the network is told them (0 is noise), both ends excluded except 1",
    )

    def guides(self, t: float) -> bool:
        """Tell whether the noise time `t` is guided."""
        lower, upper = 1 - self.interval[1], 1 - self.interval[0]
        return t < upper and (lower == 0 or t > lower)


def jit_sample(v: Velocity, z: Tensor, times: Sequence[float], method: str = "euler") -> Tensor:
    """Return the images, [B, ...], by steps between `times` from noise `z` at t = 1 to t = 0."""
    for t, t_next in pairwise(times):
        d = v(z, t)
        if method == "heun" and t_next > 0:
            d = (d + v(z + (t_next - t) * d, t_next)) / 2
        z = z + (t_next - t) * d
    return z


class JiT(Adapter):
    """JiT on pixels: v = (z - x) / max(t, t_eps) of the predicted clean image x."""

    Settings = JiTSettings
    network: JiTNetwork

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        facts = {"num_classes": card.num_classes, **card.architecture}
        self.t_eps, self.noise_scale = float(facts.pop("t_eps", 0.05)), float(facts.pop("noise_scale", 1.0))
        self.null_label = facts["num_classes"]
        try:
            self.network = JiTNetwork(**facts)
        except TypeError as error:
            raise BenchError(f"card {card.name}: architecture of JiT: {error}") from error

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from a published state dict; a position table that is not learnt need not be in it."""
        state = {k: value for k, value in without_prefix(state, "net.").items() if not k.startswith(COMPUTED)}
        fixed = {key: value for key, value in self.network.named_buffers() if key == "pos_embed"}
        load_strict(self.network, fixed | state, self.card.name)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: JiTSettings) -> Tensor:
        """Return pixels, float32 [B, C, H, W], unclamped."""
        z = self.noise_scale * noise.normal(self.latent_shape).to(self.device)
        return jit_sample(self.euler_field(labels, cfg, settings), z, settings.grid(steps), settings.method)

    def unsupported(self, steps: int, cfg: float, settings: JiTSettings | None = None) -> str | None:
        """Refuse times of another number of steps."""
        misfit = (settings or self.resolve_settings(steps)).misfit(steps)
        return super().unsupported(steps, cfg, settings) if misfit is None else f"{self.card.name}: {misfit}"

    def euler_field(self, labels: Tensor, cfg: float, settings: JiTSettings) -> Velocity:
        """Return the guided flow."""
        # The two predictions are two evaluations, as published; outside the interval the second is left out.
        guided = Guided(self.velocity, labels, torch.full_like(labels, self.null_label), cfg, doubled=False)
        plain = replace(guided, cfg=1.0)
        return lambda z, t: (guided if settings.guides(t) else plain)(z, t)

    def velocity(self, z: Tensor, t: float, labels: Tensor) -> Tensor:
        """Return v at the noise time `t`, float32 like z."""
        return (z - self.network(z, filled(1 - t, z), labels)) / max(t, self.t_eps)


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a JiT case."""
    adapter = recorded_adapter(case, JiT, "classifier-free")

    return recorded_replay(case, adapter, ("x", "time", "labels"), null_label=adapter.null_label)
