"""Decoupled MeanFlow, DMF (arXiv 2510.24474): a flow model whose last blocks are told where to, r, instead of when, t.

Noise lies at t = 1 and data at t = 0. Guidance is trained in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from adapters.flow_maps import flow_map_sample, restart_sample
from adapters.guidance import Guided
from adapters.latent import LatentAdapter
from adapters.networks.dit import DecoupledDiT
from adapters.times import at_times
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number, SamplerSettings
from results.errors import BenchError

UNUSED = "logvar_linear."
"""A head of the training, in the published files."""

RECORDED = {"mode": "sampler", "method": "sampler"}
"""What recordings may call a setting."""


class DMFSettings(SamplerSettings):
    """Jumps along the flow, or to the data with fresh noise between them."""

    sampler: Literal["euler", "restart"] = Field(
        "euler", description="euler: from time to time; restart: to the data at every step, then add noise again"
    )
    shift: Number = Field(1.0, gt=0, description="times are s t / (1 + (s - 1) t); above 1 towards noise")
    interval: Sequence[Number] = Field(
        (0.0, 1.0), min_length=2, max_length=2, description="first and last time that are guided, both included"
    )

    def times(self, steps: int) -> list[float]:
        """Return `steps` + 1 times from 1 (noise) to 0 (data)."""
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")
        times: list[float] = (self.shift * t / (1 + (self.shift - 1) * t)).tolist()
        return times


class DecoupledMeanFlow(LatentAdapter):
    """SiT with decoupled times: u(x, t, r) in one pass a step (two with inference-time guidance)."""

    Settings = DMFSettings
    network: DecoupledDiT

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        facts = dict(card.architecture)
        self.null_label = int(facts.pop("num_classes"))
        try:
            self.network = DecoupledDiT(label_rows=self.null_label + 1, **facts)
        except TypeError as error:
            raise BenchError(f"card {card.name}: architecture of Decoupled MeanFlow: {error}") from error

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from a published state dict, whose norms of q and k call their weight `scale`."""
        renamed = {
            key.replace("_norm.scale", "_norm.weight"): value
            for key, value in state.items()
            if not key.startswith(UNUSED)
        }
        load_strict(self.network, renamed, self.card.name)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: DMFSettings) -> Tensor:
        """Return latents, float32 [B, C, H, W], by steps of a float64 state."""
        u = Guided(
            at_times(self.network),
            labels,
            null=torch.full_like(labels, self.null_label),
            cfg=cfg,
            interval=(settings.interval[0], settings.interval[1]),
        )
        x, times = noise.normal(self.latent_shape).to(self.device).double(), settings.times(steps)
        if settings.sampler == "restart":
            return restart_sample(u, x, times, noise).float()
        return flow_map_sample(u, x, times).float()


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a DMF case."""
    adapter = recorded_adapter(case, DecoupledMeanFlow, "classifier-free")

    def options(call: Call) -> dict[str, Any]:
        found = {RECORDED.get(key, key): value for key, value in case.options(call).items()}
        if call.get("injected") is not None:
            found.setdefault("sampler", "restart")  # only that one draws on the way
        return found

    inputs = ("x", "t", "r", "labels")
    return recorded_replay(case, adapter, inputs, options=options, null_label=adapter.null_label)
