"""MF-RAE (arXiv 2511.13019): MeanFlow on RAE's latents, DiT-DH with a second embedder, of t - r."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adapters.latent import LatentAdapter
from adapters.meanflow import meanflow_sample, uniform_times
from adapters.networks.ditdh import DiTDH
from adapters.rae import RAE
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter
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

    def run(call: Call) -> dict[str, Any]:
        if call["kind"] == "network":
            x, t, r, labels = case.arguments(call, "x", "t", "r", "labels")
            return {"output": adapter.network(x, t, t - r, labels)}
        settings, labels = SamplerSettings.checked(case.options(call), case.name), case.labels(call)
        return {"output": adapter.generate(labels, call["steps"], 1.0, case.noise(call), settings)}

    return run
