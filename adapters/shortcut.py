"""Shortcut models (arXiv 2410.12557): one velocity network conditioned on the time and on the size of its step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log2
from typing import Any

import torch
from torch import Tensor

from adapters.facm import consistency_sample
from adapters.flax_trees import Rule, convert, image_kernel, matrix, same, unbatched
from adapters.guidance import Guided
from adapters.latent import LatentAdapter
from adapters.networks.dit import DiT
from adapters.times import filled
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter
from bench.contracts.settings import SamplerSettings
from results.errors import unknown


def shortcut_sample(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, steps: int, step_index: float
) -> Tensor:
    """Take `steps` Euler steps from noise (t = 0) to data (t = 1), every one told its size by `step_index`.

    `velocity(x, t, d)` takes x float32 [B, ...], t = i/steps and d = `step_index`, both float32 [B]. For the published
    models the index is log2(steps): 0 is the jump in one step, 7 the flow-matching velocity.
    """
    d = filled(step_index, x)
    for i in range(steps):
        x = x + velocity(x, filled(i / steps, x), d) / steps
    return x


class Shortcut(LatentAdapter):
    """The shortcut repository's DiT; with `ignore_dt` its plain flow-matching baseline, blind to the step size."""

    network: DiT

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        architecture = card.architecture
        self.finest = int(architecture.get("denoise_timesteps", 128))
        self.ignore_step_size = bool(architecture.get("ignore_dt", False))
        self.null_label = int(architecture["num_classes"])
        self.network = DiT(
            input_size=architecture["latent_size"],
            patch_size=architecture["patch_size"],
            in_channels=architecture["in_channels"],
            hidden_size=architecture["hidden_size"],
            depth=architecture["depth"],
            num_heads=architecture["num_heads"],
            mlp_ratio=architecture.get("mlp_ratio", 4.0),
            label_rows=architecture["num_classes"] + 1,
            scalars=("t_embedder", "d_embedder"),
        )

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load the flax tree `params_ema` (or `params`) by its paths joined with `/`."""
        converted = convert_flax(state, self.card.architecture["num_heads"])
        load_strict(self.network, {"pos_embed": self.network.pos_embed, **converted}, self.card.name)

    def unsupported(self, steps: int, cfg: float, settings: SamplerSettings | None = None) -> str | None:
        """Refuse step sizes that were never trained, and guidance below the finest one, which would guide twice."""
        if not self.ignore_step_size:
            if steps > self.finest or steps & (steps - 1):
                return f"{self.card.name} takes powers of two up to {self.finest} steps only (its trained step sizes)"
            if cfg != 1.0 and steps < self.finest and self.guidance != "none":
                return (
                    f"{self.card.name} takes guidance at {self.finest} steps only: its larger steps have guidance "
                    "trained in and no trained null label (cfg must be 1)"
                )
        return super().unsupported(steps, cfg, settings)

    def velocity(self, x: Tensor, t: Tensor, d: Tensor, labels: Tensor) -> Tensor:
        """Return the velocity towards the data at (x, t) for the step index d, float32 like x."""
        return self.network(x, t, torch.zeros_like(d) if self.ignore_step_size else d.float(), labels)

    def guided(self, labels: Tensor, cfg: float) -> Guided:
        """Return the velocity as a function of (x, t, d), taking labels and guidance literally (0: null label only)."""
        null = torch.full_like(labels, self.null_label)
        return Guided(self.velocity, null if cfg == 0.0 else labels, null, cfg or 1.0)

    def integrate(self, x: Tensor, labels: Tensor, steps: int, cfg: float, step_index: float) -> Tensor:
        """Return samples from noise x, taking labels, steps and guidance literally."""
        return shortcut_sample(self.guided(labels, cfg), x, steps, step_index)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Return latents, float32 [B, *latent_shape]; an unconditional model takes the null label it was trained on."""
        if self.num_classes == 0:
            labels = torch.full_like(labels, self.null_label)
        return self.integrate(noise.normal(self.latent_shape), labels, steps, cfg, log2(steps))


BLOCK = r"DiTBlock_(\d+)"
FLAX_LAYERS = (
    (r"PatchEmbed_0/Conv_0", "x_embedder.proj"),
    (r"TimestepEmbedder_0/Dense_0", "t_embedder.mlp.0"),
    (r"TimestepEmbedder_0/Dense_1", "t_embedder.mlp.2"),
    (r"TimestepEmbedder_1/Dense_0", "d_embedder.mlp.0"),
    (r"TimestepEmbedder_1/Dense_1", "d_embedder.mlp.2"),
    (r"LabelEmbedder_0/Embed_0", "y_embedder.embedding_table"),
    (rf"{BLOCK}/Dense_0", r"blocks.\1.adaLN_modulation.1"),
    (rf"{BLOCK}/Dense_1", r"blocks.\1.attn.key"),
    (rf"{BLOCK}/Dense_2", r"blocks.\1.attn.query"),
    (rf"{BLOCK}/Dense_3", r"blocks.\1.attn.value"),
    (rf"{BLOCK}/Dense_4", r"blocks.\1.attn.proj"),
    (rf"{BLOCK}/MlpBlock_0/Dense_0", r"blocks.\1.mlp.fc1"),
    (rf"{BLOCK}/MlpBlock_0/Dense_1", r"blocks.\1.mlp.fc2"),
    (r"FinalLayer_0/Dense_0", "final_layer.adaLN_modulation.1"),
    (r"FinalLayer_0/Dense_1", "final_layer.linear"),
)
"""Flax layer -> torch layer. A block's second Dense is the key and its third the query."""
FLAX_RULES = [
    Rule(f"{layer}/{leaf}", f"{name}.{torch_leaf}", transform)
    for layer, name in FLAX_LAYERS
    for leaf, torch_leaf, transform in (
        ("kernel", "weight", image_kernel if "Conv" in layer else matrix),
        ("bias", "bias", same),
        ("embedding", "weight", same),
    )
]
TRAIN_TYPES = ("shortcut", "naive", "livereflow", "consistency")
"""What recordings call the objective that a network was trained with, which says how it is sampled."""
UNUSED = "Embed_0/embedding"
"""A table of the training loss; it does not influence the output."""


def convert_flax(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Return DiT weights from a flax tree (paths joined with `/`); arrays that no rule knows keep their names.

    Upstream divides attention logits by head_dim, DiT by its square root: the query takes the other square root.
    """
    state = {path: array for path, array in state.items() if path != UNUSED}
    if all(array.ndim > 0 and len(array) == 1 for array in state.values()):
        state = {path: unbatched(array) for path, array in state.items()}
    converted = convert(state, FLAX_RULES)
    for query in [name for name in converted if ".attn.query." in name]:
        parts = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in converted for part in parts):
            q, k, v = (converted.pop(part) for part in parts)
            head_dim = q.shape[0] // heads
            converted[query.replace(".query.", ".qkv.")] = torch.cat([q.float() * head_dim**-0.5, k, v])
    return converted


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a shortcut case."""
    adapter = recorded_adapter(case, Shortcut)

    def run(call: Call) -> dict[str, Any]:
        if call["kind"] == "network":
            inputs = case.arguments(call, "x", "t", "dt", "labels", null_label=adapter.null_label)
            return {"output": adapter.velocity(*inputs)}
        steps, options, noise = call["steps"], case.options(call), case.noise(call)
        kind = options.get("train_type", "shortcut")
        if kind not in TRAIN_TYPES:
            raise unknown(f"train_type of {case.name}", kind, TRAIN_TYPES)
        # Upstream truncates the index of a step count that is not a power of two; live reflow has two indices.
        coarse = 1 if kind == "livereflow" and steps < adapter.finest else steps
        step_index = options.get("dt_index", int(log2(adapter.finest if kind == "naive" else coarse)))
        x, labels = noise.normal(adapter.latent_shape), case.labels(call, adapter.null_label)
        cfg = call.get("guidance", 1.0)
        if kind != "consistency":
            return {"output": adapter.integrate(x, labels, steps, cfg, step_index)}
        velocity = adapter.guided(labels, cfg)
        field = lambda x, t: velocity(x, filled(t, x), filled(step_index, x))  # noqa: E731
        return {"output": consistency_sample(field, x, [i / steps for i in range(steps + 1)], noise)}

    return run
