"""MF-RAE (arXiv 2511.13019): MeanFlow on RAE's latents, DiT-DH with a second embedder, of t - r."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adapters.latent import LatentAdapter
from adapters.meanflow import meanflow_sample, uniform_times
from adapters.networks.ditdh import DiTDH
from adapters.rae import RAE
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import SamplerSettings


class MeanFlowRAE(RAE):
    """MeanFlow's rule at uniform times with RAE's decoder and statistics; no guidance and no shift."""

    Settings = SamplerSettings

    @staticmethod
    def build_network(**facts: Any) -> DiTDH:
        """Return DiT-DH with embedders of t and of t - r."""
        return DiTDH(scalars=("t_embedder", "r_embedder"), **facts)

    def unsupported(self, steps: int, cfg: float, settings: Any = None) -> str | None:
        """Refuse guidance: there is none in training or at sampling."""
        return LatentAdapter.unsupported(self, steps, cfg, settings)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Return latents in model space, float32 [B, C, h, w]."""
        z = noise.normal(self.latent_shape).to(self.device)
        return meanflow_sample(lambda z, t, h: self.network(z, t, h, labels), z, uniform_times(steps))


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of an MF-RAE case."""
    adapter = recorded_adapter(case, MeanFlowRAE)
    null = adapter.num_classes

    def network(call: Call) -> Tensor:
        x, t, r, labels = case.arguments(call, "x", "t", "r", "labels", null_label=null)
        output: Tensor = adapter.network(x, t, t - r, labels)
        return output

    return recorded_replay(case, adapter, network, cfg=lambda call: 1.0, null_label=null)
