"""MeanFlow (Geng et al., "Mean Flows for One-step Generative Modeling", arXiv 2505.13447)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from adapters.flax_trees import Rule, convert, image_kernel, is_flax, matrix, same, without_prefix
from adapters.flow_maps import FlowMap, flow_map_sample, restart_sample
from adapters.guidance import Guided
from adapters.latent import LatentAdapter
from adapters.networks.dit import DiT
from adapters.networks.songunet import SongUNet
from adapters.times import filled
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number, SamplerSettings
from results.errors import BenchError, unknown

AverageVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u(z_t, t, h): the average velocity over [t - h, t]; t and h float32 [B] in [0, 1], t = 1 is noise."""


def uniform_times(steps: int) -> tuple[float, ...]:
    """Return steps + 1 equidistant times from 1 (noise) to 0 (data), both included."""
    return tuple(1.0 - i / steps for i in range(steps + 1))


def meanflow_sample(average_velocity: AverageVelocity, z: Tensor, times: Sequence[float]) -> Tensor:
    """Return z at the last of `times`, started from `z` float32 [B, ...] at the first (arXiv 2505.13447, eq. 12).

    `times` decrease from 1 (noise) to 0 (data), steps + 1 values; nothing is drawn on the way. This is not an Euler
    solver: the network is asked for the average over the whole step and sees its length h.
    """
    return flow_map_sample(as_flow_map(average_velocity), z, times)


def consistency_sample(
    average_velocity: AverageVelocity, z: Tensor, times: Sequence[float], noise: NoiseSource
) -> Tensor:
    """Return the data estimate of alpha-Flow's stochastic sampler (arXiv 2510.20771): jump to 0, noise again.

    `z` float32 [B, ...] at the first of `times`; draw k of `noise` is the noise after step k.
    """
    return restart_sample(as_flow_map(average_velocity), z, times, noise)


def as_flow_map(average_velocity: AverageVelocity) -> FlowMap:
    """Return the average velocity as a function of the two ends of its interval, given as numbers."""
    return lambda z, t, r: average_velocity(z, filled(t, z), filled(t - r, z))


class TimedSettings(SamplerSettings):
    """Samplers whose times can be given."""

    times: Sequence[Number] | None = Field(
        None, description="times from 1 (noise) to 0 (data), one more than there are steps; null: uniform"
    )

    @field_validator("times")
    @classmethod
    def _falling(cls, times: Sequence[Number] | None) -> Sequence[Number] | None:
        if times is not None and not (
            len(times) > 1 and times[0] == 1 and times[-1] == 0 and all(t > r for t, r in pairwise(times))
        ):
            raise ValueError("numbers that fall from 1 to 0")
        return times

    def grid(self, steps: int) -> tuple[float, ...]:
        """Return steps + 1 times from 1 to 0."""
        return uniform_times(steps) if self.times is None else tuple(map(float, self.times))

    def misfit(self, steps: int) -> str | None:
        """Return why the times do not fit `steps`, or None."""
        if self.times is None or len(self.times) == steps + 1:
            return None
        return f"times {list(self.times)} do not fit: {steps} steps need {steps + 1} values falling from 1 to 0"


class MeanFlowSettings(TimedSettings):
    """The rule of the paper or alpha-Flow's stochastic sampler."""

    mode: Literal["ode", "consistency"] = Field(
        "ode", description="ode: the rule of the paper; consistency: alpha-Flow's, jumps to data and noises again"
    )


DIT_RULES = (
    Rule(r"x_embedder/proj/kernel", "x_embedder.proj.weight", image_kernel),
    Rule(r"x_embedder/proj/bias", "x_embedder.proj.bias", same),
    Rule(r"t_embedder/mlp/layers_(\d)/_flax_linear/kernel", r"t_embedder.mlp.\1.weight", matrix),
    Rule(r"t_embedder/mlp/layers_(\d)/_flax_linear/bias", r"t_embedder.mlp.\1.bias", same),
    Rule(r"h_embedder/mlp/layers_(\d)/_flax_linear/kernel", r"r_embedder.mlp.\1.weight", matrix),
    Rule(r"h_embedder/mlp/layers_(\d)/_flax_linear/bias", r"r_embedder.mlp.\1.bias", same),
    Rule(r"y_embedder/embedding_table/_flax_embedding/embedding", "y_embedder.embedding_table.weight", same),
    Rule(r"blocks/layers_(\d+)/(attn|mlp)/(\w+)/_flax_linear/kernel", r"blocks.\1.\2.\3.weight", matrix),
    Rule(r"blocks/layers_(\d+)/(attn|mlp)/(\w+)/_flax_linear/bias", r"blocks.\1.\2.\3.bias", same),
    Rule(
        r"blocks/layers_(\d+)/adaLN_modulation/layers_1/_flax_linear/kernel",
        r"blocks.\1.adaLN_modulation.1.weight",
        matrix,
    ),
    Rule(
        r"blocks/layers_(\d+)/adaLN_modulation/layers_1/_flax_linear/bias", r"blocks.\1.adaLN_modulation.1.bias", same
    ),
    Rule(r"final_layer/adaLN_modulation/layers_1/_flax_linear/kernel", "final_layer.adaLN_modulation.1.weight", matrix),
    Rule(r"final_layer/adaLN_modulation/layers_1/_flax_linear/bias", "final_layer.adaLN_modulation.1.bias", same),
    Rule(r"final_layer/linear/_flax_linear/kernel", "final_layer.linear.weight", matrix),
    Rule(r"final_layer/linear/_flax_linear/bias", "final_layer.linear.bias", same),
)
"""The official flax tree below `net/`; qkv outputs are already blocks of q, k, v. The fixed table is not stored."""

BEST_COPY = "net_ema1."
"""The CIFAR-10 checkpoint holds four copies of the network (raw and three averages); the authors evaluate this one."""


def input_size(architecture: Mapping[str, Any]) -> int:
    """Return the spatial size of x, whatever the upstream constructor calls it."""
    return next(architecture[key] for key in ("latent_size", "input_size", "img_resolution") if key in architecture)


class MeanFlow(LatentAdapter):
    """Average-velocity models: u over [t - h, t] in one network pass a step (two with inference-time guidance)."""

    Settings = MeanFlowSettings

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.network = self.build_network(card.architecture)

    @staticmethod
    def build_network(architecture: Mapping[str, Any]) -> nn.Module:
        """Return the network of `architecture`: `dit` and `sit` (one function, two key layouts) or `songunet`.

        Raises BenchError for an unknown network, or a SongUNet variant that this family never published.
        """
        facts = dict(architecture)
        name = facts.pop("network")
        if name in ("dit", "sit"):
            return DiT(
                input_size=input_size(facts),
                patch_size=facts["patch_size"],
                in_channels=facts["in_channels"],
                hidden_size=facts["hidden_size"],
                depth=facts["depth"],
                num_heads=facts["num_heads"],
                mlp_ratio=facts["mlp_ratio"],
                label_rows=facts["num_classes"] + 1,
                scalars=("t_embedder", "r_embedder"),
            )
        if name == "songunet":
            fixed = {
                "encoder_type": "standard",
                "decoder_type": "standard",
                "embedding_type": "positional",
                "label_dim": 0,
            }
            for key, value in fixed.items():
                if facts.pop(key, value) != value:
                    raise BenchError(f"songunet of MeanFlow: {key} must be {value!r}, found {architecture[key]!r}")
            facts = {key: value for key, value in facts.items() if key not in ("dropout", "label_dropout")}
            return SongUNet(**facts)
        raise unknown("MeanFlow network", name, ("dit", "sit", "songunet"))

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from a flax tree ('/'-joined paths), a PyTorch state dict, or the CIFAR-10 wrapper's."""
        if is_flax(state):
            state = convert(without_prefix(state, "net/"), DIT_RULES)
            if isinstance(self.network, DiT):
                state = {"pos_embed": self.network.get_buffer("pos_embed")} | state
        elif any(key.startswith(BEST_COPY) for key in state):
            state = {key.removeprefix(BEST_COPY): value for key, value in state.items() if key.startswith(BEST_COPY)}
        else:
            state = without_prefix(state, "net.")
        load_strict(self.network, state, self.card.name)

    def unsupported(self, steps: int, cfg: float, settings: MeanFlowSettings | None = None) -> str | None:
        """Refuse times of another number of steps."""
        settings = settings or self.resolve_settings(steps)
        return settings.misfit(steps) or super().unsupported(steps, cfg, settings)

    def generate(
        self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: MeanFlowSettings
    ) -> Tensor:
        """Return samples float32 [B, *latent_shape].

        The published models had guidance trained in: cfg 1 is the model as its authors use it, more guides it twice.
        """
        z = noise.normal(self.latent_shape).to(self.device)
        average_velocity: AverageVelocity = self.network
        if self.num_classes:
            average_velocity = Guided(self.network, labels, torch.full_like(labels, self.num_classes), cfg)
        if settings.mode == "consistency":
            return consistency_sample(average_velocity, z, settings.grid(steps), noise)
        return meanflow_sample(average_velocity, z, settings.grid(steps))


def replay(case: Case) -> Replay:
    """Return the replay of a MeanFlow recording: calls of kind `network` and `sample`."""
    adapter = recorded_adapter(case, MeanFlow, "classifier-free")

    def network(call: Call) -> Tensor:
        inputs = case.arguments(call, "x", "t", "h", "labels", null_label=adapter.num_classes or None)
        output: Tensor = adapter.network(*(value for value in inputs if value is not None))
        return output

    def cfg(call: Call) -> float:
        scale = float(call.get("guidance", 1.0)) if case.options(call).get("guidance_mode") == "inference_cfg" else 1.0
        return max(scale, 1.0) if case.architecture["network"] == "sit" else scale  # the port guides only above 1

    def options(call: Call) -> dict[str, Any]:
        return {"times": case.options(call).get("timesteps")}

    return recorded_replay(case, adapter, network, options=options, cfg=cfg, null_label=adapter.num_classes)
