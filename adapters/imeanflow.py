"""Improved MeanFlow, iMF (Geng et al., arXiv 2512.02012): guidance scale and interval are inputs of the network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from adapters.flax_trees import Rule, convert, image_kernel, is_flax, matrix, same, without_prefix
from adapters.latent import LatentAdapter
from adapters.meanflow import AverageVelocity, TimedSettings, input_size, meanflow_sample
from adapters.networks.imfdit import ImfDiT, mlp_width
from adapters.times import filled
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number
from results.errors import BenchError

BLOCK = r"(shared_blocks|u_heads|v_heads)_(\d+)"
RULES = (
    Rule(r"x_embedder/(proj\d?)/kernel", r"x_embedder.\1.weight", image_kernel),
    Rule(r"x_embedder/(proj\d?)/bias", r"x_embedder.\1.bias", same),
    Rule(r"(\w+_embedder)/mlp/layers_(\d)/_flax_linear/kernel", r"\1.mlp.\2.weight", matrix),
    Rule(r"(\w+_embedder)/mlp/layers_(\d)/_flax_linear/bias", r"\1.mlp.\2.bias", same),
    Rule(r"y_embedder/embedding_table/_flax_embedding/embedding", "y_embedder.embedding_table.weight", same),
    Rule(rf"{BLOCK}/(attn|mlp)/(\w+_proj|w\d)/_flax_linear/kernel", r"\1.\2.\3.\4.weight", matrix),
    Rule(rf"{BLOCK}/attn/([qk]_norm)/kernel", r"\1.\2.attn.\3.weight", same),
    Rule(rf"{BLOCK}/(norm[12])/kernel", r"\1.\2.\3.weight", same),
    Rule(rf"{BLOCK}/(attn_scale|mlp_scale)", r"\1.\2.\3", same),
    Rule(r"([uv]_final_layer)/norm/kernel", r"\1.norm.weight", same),
    Rule(r"([uv]_final_layer)/linear/_flax_linear/kernel", r"\1.linear.weight", matrix),
    Rule(r"([uv]_final_layer)/linear/_flax_linear/bias", r"\1.linear.bias", same),
)
"""The flax tree below `net/` of iMF and pMF. A two-dimensional `kernel` is transposed, an RMS norm's is a vector."""
LAYER_WRAPPERS = re.compile(
    r"\._flax_(?:linear|embedding)"  # the authors'
    r"|(?<!final_layer)\.linear(?=\.(?:weight|bias)$)|(?<=embedding_table)\.embedding(?=\.)"  # FD-Loss's
)
"""What linear layers and embeddings are called inside their wrappers in PyTorch files."""


class EmbeddedSettings(TimedSettings):
    """The guidance interval that the network is told, and the times."""

    t_min: Number = Field(0.0, ge=0, le=1, description="first time of the guidance interval told to the network")
    t_max: Number = Field(1.0, ge=0, le=1, description="last time of the guidance interval told to the network")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.t_min > self.t_max:
            raise ValueError(f"guidance interval {self.t_min}..{self.t_max} must lie in order within 0..1")
        return self


def embedded(network: nn.Module, labels: Tensor, cfg: float, t_min: float, t_max: float) -> AverageVelocity:
    """Return u(z, t, h) under guidance `cfg` on [t_min, t_max], the same at every step, in one pass.

    The interval is a condition that the network learnt; nothing here gates on t. cfg 1 is the unguided model.
    """

    def average_velocity(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        return network(z, t, h, filled(cfg, z), filled(t_min, z), filled(t_max, z), labels)

    return average_velocity


def transformer_facts(architecture: Mapping[str, Any], hidden: int) -> dict[str, Any]:
    """Return the arguments that the transformers of iMF and pMF share; `hidden` is the MLP width."""
    return {
        "input_size": input_size(architecture),
        "patch_size": architecture["patch_size"],
        "in_channels": architecture["in_channels"],
        "hidden_size": architecture["hidden_size"],
        "depth": architecture["depth"],
        "num_heads": architecture["num_heads"],
        "head_depth": architecture["aux_head_depth"],
        "hidden": hidden,
        "label_rows": architecture["num_classes"] + 1,
        "tokens": {
            "class_tokens": architecture["num_class_tokens"],
            "omega_tokens": architecture["num_cfg_tokens"],
            "t_min_tokens": architecture["num_interval_tokens"],
            "t_max_tokens": architecture["num_interval_tokens"],
            "time_tokens": architecture["num_time_tokens"],
        },
    }


class ImprovedMeanFlow(LatentAdapter):
    """iMF on latents: `cfg` (the paper's omega) is a network input, so that a guided step costs one pass."""

    Settings = EmbeddedSettings
    noise_scale = 1.0
    """Standard deviation of the noise at t = 1."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.network = self.build_network(card.architecture)

    @staticmethod
    def build_network(architecture: Mapping[str, Any]) -> nn.Module:
        """Return the network of a card's or a recording's architecture."""
        hidden = mlp_width(architecture["hidden_size"], architecture["mlp_ratio"])
        return ImfDiT(v_heads=architecture.get("v_heads", False), **transformer_facts(architecture, hidden))

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from the published PyTorch state dict or a flax tree ('/'-joined paths).

        The auxiliary head of a full training state is left out unless the network was built with it.
        """
        state = without_prefix(state, "net/" if is_flax(state) else "net.")
        load_strict(self.network, self.converted(state), self.card.name)

    def converted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state under the network's own names; FD-Loss's files lack the final layer that nothing uses."""
        state = published_names(state, RULES)
        if self.card.architecture.get("v_heads", False):
            return dict(state)
        unused = {key: value for key, value in self.network.state_dict().items() if key.startswith("v_final_layer.")}
        return unused | {key: value for key, value in state.items() if not key.startswith("v_heads.")}

    def unsupported(self, steps: int, cfg: float, settings: EmbeddedSettings | None = None) -> str | None:
        """Refuse guidance below 1, which was never trained, and times of another number of steps."""
        settings = settings or self.resolve_settings(steps)
        if cfg < 1.0:
            return f"{self.card.name} takes guidance from 1 (unguided) upwards: its network never saw less, got {cfg:g}"
        return settings.misfit(steps) or super().unsupported(steps, cfg, settings)

    def generate(
        self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: EmbeddedSettings
    ) -> Tensor:
        """Return samples float32 [B, *latent_shape]."""
        z = self.noise_scale * noise.normal(self.latent_shape).to(self.device)
        average_velocity = embedded(self.network, labels, cfg, settings.t_min, settings.t_max)
        return meanflow_sample(average_velocity, z, settings.grid(steps))


def published_names(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Return the state under PyTorch names, without the wrappers of layers in the authors' and in FD-Loss's files."""
    if is_flax(state):
        return convert(state, rules)
    return {LAYER_WRAPPERS.sub("", key): value for key, value in state.items()}


def replay(case: Case) -> Replay:
    """Return the replay of an iMF recording: calls of kind `network` (either head) and `sample`."""
    return replay_embedded(case, ImprovedMeanFlow)


def replay_embedded(case: Case, family: type[ImprovedMeanFlow]) -> Replay:
    """Return the replay of `case` on iMF or pMF."""
    adapter = recorded_adapter(case, family, "embedded")

    names = {"t_min": "t_min", "t_max": "t_max", "timesteps": "times"}

    def network(call: Call) -> Tensor:
        roles = ("x", "t", "h", "omega", "t_min", "t_max", "labels")
        inputs = case.arguments(call, *roles, null_label=adapter.num_classes)
        if call.get("head", "u") == "u":
            output: Tensor = adapter.network(*inputs)
            return output
        if not isinstance(adapter.network, ImfDiT):
            raise BenchError(f"{case.name}: only iMF's network has the head '{call['head']}'")
        return adapter.network.velocities(*inputs).instantaneous

    def options(call: Call) -> dict[str, Any]:
        found = case.options(call)
        return {ours: found[theirs] for theirs, ours in names.items() if theirs in found}

    def refused(steps: int, cfg: float, settings: EmbeddedSettings) -> str | None:
        # The network takes any scale but 0, whose reciprocal it is told; that it saw none below 1 is advice.
        return settings.misfit(steps) or (f"{case.name}: guidance 0 has no reciprocal" if cfg == 0 else None)

    return recorded_replay(case, adapter, network, options=options, null_label=adapter.num_classes, refused=refused)
