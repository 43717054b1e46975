"""RAE's decoder (arXiv 2510.11690): a masked-autoencoder ViT from representation tokens to pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.layers import Float32Buffers, attention, sincos_table, unpatchify
from results.errors import unknown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class SeparateQKV(nn.Module):
    """Self-attention with q, k and v of their own; the outer projection is the caller's."""

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the tokens of x [B, N, D], heads joined again."""
        q, k, v = (m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.query, self.key, self.value))
        return attention(q, k, v).transpose(1, 2).flatten(2)


class ViTAttention(nn.Module):
    """Self-attention; keys as in Transformers' ViT: attention.query, attention.key, attention.value, output.dense."""

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.attention = SeparateQKV(width, heads, bias)
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the tokens of x [B, N, D]."""
        joined: Tensor = self.output["dense"](self.attention(x))
        return joined


class ViTLayer(nn.Module):
    """Pre-norm block: attention and an MLP with the exact (erf) GELU."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.attention = ViTAttention(width, heads, bias)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = nn.ModuleDict({"dense": nn.Linear(hidden, width)})
        self.layernorm_before = nn.LayerNorm(width, eps=eps)
        self.layernorm_after = nn.LayerNorm(width, eps=eps)

    def forward(self, z: Tensor) -> Tensor:
        """Transform the tokens z [B, N, D]."""
        z = z + self.attention(self.layernorm_before(z))
        return z + self.output["dense"](F.gelu(self.intermediate["dense"](self.layernorm_after(z))))


class RAEDecoder(Float32Buffers):
    """ViT decoder; keys as in the published files, whose sizes (ViT-XL) are the defaults.

    The image has `patch_size` * sqrt(`num_patches`) pixels a side whatever the latent's grid, which is resized to fit.
    `image_mean` and `image_std` are those of the encoder's image processor: the decoder's pixels are normalised.
    """

    decoder_pos_embed: Tensor
    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        *,
        latent_dim: int = 768,
        num_patches: int = 256,
        patch_size: int = 16,
        decoder_hidden_size: int = 1152,
        decoder_intermediate_size: int = 4096,
        decoder_num_attention_heads: int = 16,
        decoder_num_hidden_layers: int = 28,
        num_channels: int = 3,
        layer_norm_eps: float = 1e-12,
        hidden_act: str = "gelu",
        qkv_bias: bool = True,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if hidden_act != "gelu":
            raise unknown("activation of the RAE decoder", hidden_act, ("gelu",))
        width, self.side = decoder_hidden_size, isqrt(num_patches)
        self.patch_size = patch_size
        self.channels = num_channels
        self.decoder_embed = nn.Linear(latent_dim, width)
        self.trainable_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        positions = torch.cat([torch.zeros(1, 1, width), sincos_table(width, self.side)], dim=1)
        self.register_buffer("decoder_pos_embed", positions)
        self.decoder_layers = nn.ModuleList(
            ViTLayer(width, decoder_num_attention_heads, decoder_intermediate_size, layer_norm_eps, qkv_bias)
            for _ in range(decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.decoder_pred = nn.Linear(width, patch_size**2 * num_channels)
        self.use_image_statistics(torch.tensor(image_mean), torch.tensor(image_std))

    def use_image_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and standard deviation, [3], that the decoder's pixels are normalised with."""
        device = self.decoder_pos_embed.device
        self.register_buffer("image_mean", mean.float().reshape(1, -1, 1, 1).to(device), persistent=False)
        self.register_buffer("image_std", std.float().reshape(1, -1, 1, 1).to(device), persistent=False)

    def with_positions(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a published state dict with the position table, a formula, where the file leaves it out."""
        return {"decoder_pos_embed": self.decoder_pos_embed, **state}

    def patches(self, tokens: Tensor) -> Tensor:
        """Return normalised pixels by patch, float32 [B, P, patch*patch*3], of tokens float32 [B, L, C]."""
        z = self.decoder_embed(tokens.to(self.decoder_embed.weight.dtype))
        if z.shape[1] != self.side**2:
            grid = z.transpose(1, 2).unflatten(-1, (isqrt(z.shape[1]), -1))
            grid = F.interpolate(grid, size=(self.side, self.side), mode="bilinear", align_corners=False)
            z = grid.flatten(2).transpose(1, 2)
        z = torch.cat([self.trainable_cls_token.expand(len(z), -1, -1), z], dim=1)
        z = z + self.decoder_pos_embed.to(z.dtype)
        for layer in self.decoder_layers:
            z = layer(z)
        out: Tensor = self.decoder_pred(self.decoder_norm(z))[:, 1:].float()
        return out

    def forward(self, latents: Tensor) -> Tensor:
        """Return images, float32 [B, 3, H, W] in [0, 1] but unclamped, of encoder latents [B, C, h, w]."""
        patches = self.patches(latents.flatten(2).transpose(1, 2))
        return unpatchify(patches, self.patch_size, self.channels) * self.image_std + self.image_mean
