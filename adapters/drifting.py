"""Drifting models (arXiv 2602.04770): one evaluation from noise to image, without a time.

Beside the Gaussian an image depends on `noise_coords` noise labels, uniform integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters.flax_trees import Rule, convert, image_kernel, matrix, same, without_prefix
from adapters.latent import LatentAdapter
from adapters.networks.driftdit import DriftDiT
from adapters.networks.layers import Float32Buffers
from adapters.times import filled
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource, inverse_normal
from bench.contracts.recording import Call, Case, Replay, recorded_adapter
from bench.contracts.settings import SamplerSettings
from results.errors import BenchError

PRECISION = ("use_bf16", "attn_fp32")
"""Constructor facts about the precision of the authors' run; here networks compute in the dtype of their parameters."""
TRUNK = "LightningDiT_0"


def layer(path: str, name: str) -> tuple[Rule, Rule]:
    """Return the rules of one linear layer."""
    return (
        Rule(f"{path}/Dense_0/kernel", f"{name}.weight", matrix),
        Rule(f"{path}/Dense_0/bias", f"{name}.bias", same),
    )


def rules(patch: int, channels: int) -> tuple[Rule, ...]:
    """Return the table from the published flax tree, for patches of (row, column, channel)."""

    def patch_kernel(kernel: Tensor) -> Tensor:
        return image_kernel(kernel.reshape(patch, patch, channels, -1))

    block = rf"{TRUNK}/blocks_(\d+)"
    return (
        Rule("Embed_0/embedding", "y_embedder.embedding_table.weight", same),
        Rule(r"noise_embeds_(\d+)/embedding", r"noise_embedders.\1.weight", same),
        *layer("TimestepEmbedder_0/TorchLinear_0", "cfg_embedder.mlp.0"),
        *layer("TimestepEmbedder_0/TorchLinear_1", "cfg_embedder.mlp.2"),
        Rule("RMSNorm_0/weight", "cfg_norm.weight", same),
        Rule(f"{TRUNK}/TorchLinear_0/Dense_0/kernel", "x_embedder.proj.weight", patch_kernel),
        Rule(f"{TRUNK}/TorchLinear_0/Dense_0/bias", "x_embedder.proj.bias", same),
        *layer(f"{TRUNK}/TorchLinear_1", "cls_proj"),
        Rule(f"{TRUNK}/(pos_embed|cls_embed)", r"\1", same),
        *layer(f"{block}/TorchLinear_0", r"blocks.\1.adaLN_modulation.1"),
        Rule(f"{block}/RMSNorm_0/weight", r"blocks.\1.norm1.weight", same),
        Rule(f"{block}/RMSNorm_1/weight", r"blocks.\1.norm2.weight", same),
        *layer(f"{block}/Attention_0/TorchLinear_0", r"blocks.\1.attn.qkv"),
        *layer(f"{block}/Attention_0/TorchLinear_1", r"blocks.\1.attn.proj"),
        Rule(f"{block}/Attention_0/([qk]_norm)/weight", r"blocks.\1.attn.\2.weight", same),
        *layer(f"{block}/SwiGLUFFN_0/TorchLinear_0", r"blocks.\1.mlp.w1"),
        *layer(f"{block}/SwiGLUFFN_0/TorchLinear_1", r"blocks.\1.mlp.w3"),
        *layer(f"{block}/SwiGLUFFN_0/TorchLinear_2", r"blocks.\1.mlp.w2"),
        Rule(f"{TRUNK}/FinalLayer_0/RMSNorm_0/weight", "final_layer.norm_final.weight", same),
        *layer(f"{TRUNK}/FinalLayer_0/TorchLinear_0", "final_layer.adaLN_modulation.1"),
        *layer(f"{TRUNK}/FinalLayer_0/TorchLinear_1", "final_layer.linear"),
    )


class Drifting(LatentAdapter):
    """The generator of latents or of pixels; `cfg` is a network input, so that guidance costs nothing."""

    network: DriftDiT

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        facts = {key: value for key, value in card.architecture.items() if key not in PRECISION}
        try:
            self.network = DriftDiT(**facts)
        except TypeError as error:
            raise BenchError(f"card {card.name}: architecture of drifting: {error}") from error
        self.quantiles = Quantiles(int(facts.get("noise_classes", 64)))
        self.noise_coords = int(facts.get("noise_coords", 32))

    def modules(self) -> list[torch.nn.Module]:
        """Return what `to` moves, the quantiles too."""
        return [*super().modules(), self.quantiles]

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from the published flax tree ('/'-joined paths)."""
        facts = self.card.architecture
        table = rules(int(facts["patch_size"]), int(facts["in_channels"]))
        load_strict(self.network, convert(without_prefix(state, "params/"), table), self.card.name)

    def unsupported(self, steps: int, cfg: float, settings: SamplerSettings | None = None) -> str | None:
        """Refuse any step count but one, and guidance below 1, which was never trained."""
        if steps != 1:
            return f"{self.card.name} takes 1 step only: its network has no time"
        if cfg < 1.0:
            return f"{self.card.name} takes guidance from 1 upwards: its network never saw less, got {cfg:g}"
        return super().unsupported(steps, cfg, settings)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Return latents or pixels, float32 [B, *latent_shape]; draw 1 of `noise` gives the noise labels."""
        z = noise.normal(self.latent_shape).to(self.device)
        return self.network(z, labels, filled(cfg, z), self.quantiles(noise.normal((self.noise_coords,), 1)))


class Quantiles(Float32Buffers):
    """Uniform integers from unit normal noise: between which of the quantiles k / count a value lies."""

    bounds: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        p = torch.arange(1, count, dtype=torch.float64, device="cpu") / count
        self.register_buffer("bounds", inverse_normal(p).float(), persistent=False)

    def forward(self, normal: Tensor) -> Tensor:
        """Return int64 in 0 .. count - 1, the shape of `normal`, the same on every device."""
        return torch.bucketize(normal.to(self.bounds.device), self.bounds)


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a drifting case."""
    adapter = recorded_adapter(case, Drifting, "embedded")
    null = adapter.num_classes - 1  # upstream counts the null class, the last row of the table, among the classes

    def run(call: Call) -> dict[str, Any]:
        if call["kind"] == "network":
            roles = ("x", "labels", "cfg", "noise_labels")
            return {"output": adapter.network(*case.arguments(call, *roles, null_label=null))}
        SamplerSettings.checked(case.options(call), case.name)
        z, labels, cfg = case.noise(call).initial, case.labels(call, null), call.get("guidance", 1.0)
        # The recording holds the noise labels themselves, which upstream draws as integers.
        return {"output": adapter.network(z, labels, filled(cfg, z), case.tensor(call["injected"]))}

    return run
