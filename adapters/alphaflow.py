"""alpha-Flow (arXiv 2510.20771): MeanFlow's network under other names, its rule, and a stochastic sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from adapters.flow_maps import flow_map_sample, restart_sample
from adapters.guidance import Guided
from adapters.meanflow import MeanFlow, MeanFlowSettings, input_size
from adapters.networks.dit import DiT
from adapters.times import at_times
from bench.contracts.adapter import load_strict
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number
from results.errors import BenchError

NAMES = {"noise_labels_embedder": "t_embedder", "noise_labels_next_embedder": "r_embedder"}
"""What the authors call the embedders of t and of t - r."""
STATISTICS = ("autoencoder_mean", "autoencoder_var")
"""Of the raw latents, per position and channel, in the snapshot beside the network."""
STATISTICS_EPS = 1e-16


class AlphaFlowSettings(MeanFlowSettings):
    """MeanFlow's settings, and where guidance acts."""

    interval: Sequence[Number] = Field(
        (0.0, 1.0), min_length=2, max_length=2, description="first and last time that are guided, both included"
    )


class AlphaFlow(MeanFlow):
    """MeanFlow and alpha-Flow as snap-research trained them, on latents that the snapshot's statistics standardise.

    The label table has a null row only where labels were dropped in training (`label_dropout`).
    """

    Settings = AlphaFlowSettings

    @property
    def null_label(self) -> int:
        """The last row of the table: upstream's label of nothing, which without label dropout is a class."""
        return label_rows(self.card.architecture) - 1

    @staticmethod
    def build_network(architecture: Mapping[str, Any]) -> DiT:
        """Return the network of a card's or a recording's architecture. Raises BenchError for an unknown key."""
        facts = {key: value for key, value in architecture.items() if key not in ("network", "latent_size")}
        facts["input_size"] = input_size(architecture)
        facts["label_rows"] = label_rows(architecture)
        for key in ("num_classes", "label_dropout"):
            facts.pop(key, None)
        try:
            return DiT(scalars=("t_embedder", "r_embedder"), **facts)
        except TypeError as error:
            raise BenchError(f"architecture of alpha-Flow: {error}") from error

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from a snapshot, or from its network alone, and the latents' statistics from a snapshot.

        Raises BenchError for a file without the statistics where an autoencoder needs them.
        """
        if self.autoencoder.decoder is not None:
            missing = [name for name in STATISTICS if name not in state]
            if missing:
                raise BenchError(
                    f"weights of {self.card.name} lack the statistics of the latents ({', '.join(missing)}), without "
                    "which they cannot be decoded; give the whole published snapshot"
                )
            mean, variance = (state[name] for name in STATISTICS)
            self.autoencoder.use_statistics(mean, (variance + STATISTICS_EPS).sqrt())
        beside = ("autoencoder", "are_ldm_stats_inited")
        network = {key.removeprefix("model."): value for key, value in state.items() if not key.startswith(beside)}
        load_strict(self.network, {_named(key): value for key, value in network.items()}, self.card.name)

    def unsupported(self, steps: int, cfg: float, settings: MeanFlowSettings | None = None) -> str | None:
        """Refuse guidance of a model that was trained without a null label."""
        if cfg != 1.0 and not self.card.architecture.get("label_dropout", 0.1) > 0:
            return f"{self.card.name} was trained without a null label, which classifier-free guidance needs"
        return super().unsupported(steps, cfg, settings)

    def generate(
        self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: MeanFlowSettings
    ) -> Tensor:
        """Return latents float32 [B, *latent_shape], by steps of a float64 state.

        Guidance was trained in: cfg 1 is the model as its authors use it, more guides it twice.
        """
        assert isinstance(settings, AlphaFlowSettings)
        network = at_times(self.network)
        u = Guided(
            lambda z, t, r, y: network(z, t, t - r, y),
            labels,
            null=torch.full_like(labels, self.null_label),
            cfg=cfg,
            interval=(settings.interval[0], settings.interval[1]),
        )
        z, times = noise.normal(self.latent_shape).to(self.device).double(), settings.grid(steps)
        if settings.mode == "consistency":
            return restart_sample(u, z, times, noise).float()
        return flow_map_sample(u, z, times).float()


def label_rows(architecture: Mapping[str, Any]) -> int:
    """Return the rows of the label table: the classes, and null where labels were dropped in training."""
    return int(architecture["num_classes"]) + (architecture.get("label_dropout", 0.1) > 0)


def _named(key: str) -> str:
    """Return `key` with the first of its parts as MeanFlow's network calls it."""
    first, dot, rest = key.partition(".")
    return NAMES.get(first, first) + dot + rest


def replay(case: Case) -> Replay:
    """Return the replay of an alpha-Flow recording: calls of kind `network` and `sample`."""
    adapter = recorded_adapter(case, AlphaFlow, "classifier-free")
    last = adapter.null_label

    names = {"sampler": "mode", "timesteps": "times", "interval": "interval"}

    def network(call: Call) -> Tensor:
        x, t, r, labels = case.arguments(call, "x", "t", "r", "labels", null_label=last)
        # Upstream's labels are one-hot, and an all-zero one is the last row of the table, null or not.
        output: Tensor = adapter.network(x, t, t - r, labels.clamp(max=last))
        return output

    def options(call: Call) -> dict[str, Any]:
        return {names.get(key, key): value for key, value in case.options(call).items()}

    return recorded_replay(case, adapter, network, options=options, null_label=last)
