"""RAE's encoder: DINOv2 with registers (arXiv 2309.16588), whose patch tokens are the latents.

No card needs it: sampling starts from noise. It is here because the recordings of RAE's encoder are replayed on it
(parity adapter `rae-encoder`), which proves that what our decoders take is what the authors' encoder makes. Keys are
those of the hub's file (`facebook/dinov2-with-registers-base`), which Transformers 5 renames in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.rae_decoder import IMAGENET_MEAN, IMAGENET_STD, ViTAttention
from adapters.rae import STATISTICS_EPS, latent_statistics
from bench.contracts.adapter import load_strict
from bench.contracts.recording import Call, Case, Replay
from results.errors import unknown

UNUSED = ("layernorm.", "embeddings.mask_token")
"""What the published file holds beyond the network: the final norm's affine, discarded, and a training token."""


class LayerScale(nn.Module):
    """x * lambda1, a learned vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the last axis."""
        return x * self.lambda1


class DINOv2Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear: keys fc1 and fc2."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to the last axis."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class DINOv2Layer(nn.Module):
    """Pre-norm block whose branches are scaled by a learned vector."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = ViTAttention(width, heads, bias)
        self.layer_scale1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = DINOv2Mlp(width, hidden)
        self.layer_scale2 = LayerScale(width)

    def forward(self, z: Tensor) -> Tensor:
        """Transform the tokens z [B, N, D]."""
        z = z + self.layer_scale1(self.attention(self.norm1(z)))
        return z + self.layer_scale2(self.mlp(self.norm2(z)))


class DINOv2Embeddings(nn.Module):
    """Patches, class token and positions, then registers, which have no position, after the class token."""

    def __init__(self, width: int, patch_size: int, side: int, registers: int, channels: int) -> None:
        super().__init__()
        self.side = side
        projection = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)
        self.patch_embeddings = nn.ModuleDict({"projection": projection})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, side**2 + 1, width))

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels [B, 3, H, W] -> [B, 1 + registers + N, D]."""
        grid = self.patch_embeddings["projection"](pixels.to(self.cls_token.dtype))
        z = torch.cat([self.cls_token.expand(len(grid), -1, -1), grid.flatten(2).transpose(1, 2)], dim=1)
        z = z + self.positions(grid.shape[-2], grid.shape[-1])
        return torch.cat([z[:, :1], self.register_tokens.expand(len(z), -1, -1), z[:, 1:]], dim=1)

    def positions(self, height: int, width: int) -> Tensor:
        """Return the position table, [1, 1 + height*width, D], resized from the pretrained grid where it differs."""
        table = self.position_embeddings
        if (height, width) == (self.side, self.side):
            return table
        grid = table[:, 1:].float().transpose(1, 2).unflatten(-1, (self.side, self.side))
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class RAEEncoder(nn.Module):
    """DINOv2 with registers; its defaults are the base size, as RAE's published latents use it.

    `pretrained_image_size` fixes the stored position table, `encoder_input_size` the side that images are resized to
    (224 for latents of 16 x 16, 448 for 32 x 32).
    """

    def __init__(
        self,
        *,
        type: str = "dinov2-with-registers",
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        mlp_ratio: float = 4,
        patch_size: int = 14,
        pretrained_image_size: int = 518,
        encoder_input_size: int = 224,
        num_register_tokens: int = 4,
        layer_norm_eps: float = 1e-6,
        num_channels: int = 3,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        if type != "dinov2-with-registers":
            raise unknown("RAE encoder", type, ("dinov2-with-registers",))
        self.input_size = encoder_input_size
        self.prefix = 1 + num_register_tokens
        self.eps = layer_norm_eps
        self.embeddings = DINOv2Embeddings(
            hidden_size, patch_size, pretrained_image_size // patch_size, num_register_tokens, num_channels
        )
        hidden = int(hidden_size * mlp_ratio)
        layers = [
            DINOv2Layer(hidden_size, num_attention_heads, hidden, layer_norm_eps, qkv_bias)
            for _ in range(num_hidden_layers)
        ]
        self.encoder = nn.ModuleDict({"layer": nn.Sequential(*layers)})

    def forward(self, pixels: Tensor) -> Tensor:
        """Return patch tokens, float32 [B, N, D], of resized and normalised pixels float32 [B, 3, H, W].

        The last layer norm has no affine; class token and registers are dropped.
        """
        z = self.encoder["layer"](self.embeddings(pixels))
        return F.layer_norm(z, z.shape[-1:], eps=self.eps)[:, self.prefix :].float()

    def encode(
        self,
        images: Tensor,
        image_mean: Sequence[float] | Tensor = IMAGENET_MEAN,
        image_std: Sequence[float] | Tensor = IMAGENET_STD,
    ) -> Tensor:
        """Return encoder latents, float32 [B, D, h, w], not normalised, of images float32 [B, 3, H, W] in [0, 1].

        Images of another side are resized by bicubic interpolation without antialiasing; overshoots are kept.
        """
        size = (self.input_size, self.input_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bicubic", align_corners=False)
        mean, std = (
            torch.as_tensor(value, dtype=torch.float32, device=images.device).reshape(1, -1, 1, 1)
            for value in (image_mean, image_std)
        )
        tokens = self((images - mean) / std)
        side = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).unflatten(-1, (side, side))


def used_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the published state dict without what the latents do not depend on."""
    return {key: value for key, value in state.items() if not key.startswith(UNUSED)}


def replay_encoder(case: Case) -> Replay:
    """Return the function that replays one recorded call of an encoder case (parity adapter `rae-encoder`)."""
    architecture = dict(case.architecture)
    eps = architecture.pop("stat_eps", STATISTICS_EPS)
    encoder = RAEEncoder(**architecture).eval()
    load_strict(encoder, used_weights(case.weights), case.spec["name"])

    def run(call: Call) -> dict[str, Any]:
        inputs = {role: value for role, value in case.inputs(call).items() if value is not None}
        if call["kind"] == "network":
            return {"output": encoder(inputs["pixels"])}
        latents = encoder.encode(inputs["image"], inputs["image_mean"], inputs["image_std"])
        recorded = {"mean": inputs.get("stat_mean"), "var": inputs.get("stat_var")}
        if not call.get("options", {}).get("normalise", True) or recorded == {"mean": None, "var": None}:
            return {"output": latents}
        statistics = latent_statistics({key: value for key, value in recorded.items() if value is not None}, eps)
        return {"output": statistics.normalise(latents)}

    return run
