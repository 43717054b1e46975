"""Terminal velocity matching, TVM (arXiv 2511.19797): one network pass a step, guided through its input and output.

Noise lies at t = 1 and data at t = 0. The network is told 1/w, the reciprocal of the guidance scale, and the velocity
is its output times w where the checkpoint was trained so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters.flow_maps import FlowMap, flow_map_sample
from adapters.latent import LatentAdapter
from adapters.meanflow import uniform_times
from adapters.networks.dit import DiT
from adapters.times import at_times
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import SamplerSettings
from results.errors import BenchError


class TVMNetwork(DiT):
    """TVM's DiT: RMS norms, also of q and k and of the modulations, and embedders of t, t - s and 1/w."""

    def __init__(
        self,
        *,
        num_classes: int,
        do_mod_norm: bool = True,
        learn_guidance: bool = True,
        qk_norm: bool = True,
        **facts: Any,
    ) -> None:
        scalars = ("t_embedder", "s_embedder") + (("guidance_embedder",) if learn_guidance else ())
        super().__init__(
            label_rows=num_classes + 1,
            scalars=scalars,
            qk_norm=qk_norm,
            rms_norm=True,
            modulation_norm=do_mod_norm,
            precision=torch.float64,
            **facts,
        )

    def forward(self, x: Tensor, *conditions: Tensor) -> Tensor:
        """x float32 [B, C, H, W], t, s and 1/w [B], labels int64 [B] (null: the last row) -> F float32 [B, C, H, W]."""
        t, s, beta, labels = conditions
        return super().forward(x, *(t, t - s, beta)[: len(self.scalars)], labels)


class TVM(LatentAdapter):
    """TVM's students: x_s = x_t - (t - s) w F(x_t, t, t - s, 1/w)."""

    network: TVMNetwork

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        facts = {"num_classes": card.num_classes, **card.architecture}
        self.output_scaled = bool(facts.pop("do_scale_param", True))
        try:
            self.network = TVMNetwork(**facts)
        except TypeError as error:
            raise BenchError(f"card {card.name}: architecture of TVM: {error}") from error

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from the published wrapper's state dict."""
        load_strict(self.network, state, self.card.name)

    def unsupported(self, steps: int, cfg: float, settings: SamplerSettings | None = None) -> str | None:
        """Refuse a guidance scale that has no reciprocal."""
        if cfg <= 0.0:
            return f"{self.card.name} takes guidance above 0: its network is told the reciprocal, got {cfg:g}"
        return super().unsupported(steps, cfg, settings)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Return standardised latents, float32 [B, C, H, W], by jumps of a float64 state on uniform times."""
        x = noise.normal(self.latent_shape).to(self.device).double()
        return flow_map_sample(self.velocity(labels, cfg), x, uniform_times(steps)).float()

    def velocity(self, labels: Tensor, w: float) -> FlowMap:
        """Return u(x, t, s), the average velocity under guidance `w`."""
        F = at_times(self.network, torch.float64)
        scale = w if self.output_scaled else 1.0
        return lambda x, t, s: scale * F(x, t, s, 1 / w, labels).double()


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a TVM case."""
    adapter = recorded_adapter(case, TVM, "embedded")

    return recorded_replay(case, adapter, ("x", "t", "s", "beta", "labels"), null_label=adapter.num_classes)
