"""The generator of drifting models (arXiv 2602.04770): LightningDiT's blocks without time, with class tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adapters.networks.layers import (
    Float32Buffers,
    GatedMlp,
    LabelEmbedder,
    PatchEmbed,
    RMSNorm,
    ScalarEmbedder,
    sincos_table,
    unpatchify,
)
from adapters.networks.lightningdit import LightningBlock, LightningFinalLayer
from results.errors import BenchError

GUIDANCE_WEIGHT = 0.02
"""Of the normalised embedding of the guidance scale, beside label and noise labels."""


class LineRope(Float32Buffers):
    """Rotary positions along the sequence: entry i of a head turns with entry i + head_dim / 2."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, head_dim: int, count: int) -> None:
        super().__init__()
        half = head_dim // 2
        frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.arange(count, dtype=torch.float32)[:, None] * frequencies
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turn x [B, heads, N, head_dim]."""
        a, b = x.float().chunk(2, dim=-1)
        return torch.cat([a * self.cosine - b * self.sine, b * self.cosine + a * self.sine], dim=-1).to(x.dtype)


class DriftDiT(nn.Module):
    """The drifting generator: an image from noise, label, guidance scale and `noise_coords` noise labels.

    `n_cls_tokens` tokens made of the condition stand before the patches. `num_classes` counts the rows of the label
    table. Raises BenchError for variants without RMS norms or SwiGLU, which no published model has.
    """

    def __init__(
        self,
        *,
        input_size: int,
        patch_size: int,
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        num_classes: int = 1001,
        out_channels: int | None = None,
        cond_dim: int | None = None,
        noise_classes: int = 64,
        noise_coords: int = 32,
        n_cls_tokens: int = 16,
        mlp_ratio: float = 4.0,
        use_qknorm: bool = True,
        use_swiglu: bool = True,
        use_rope: bool = True,
        use_rmsnorm: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("use_swiglu", use_swiglu), ("use_rmsnorm", use_rmsnorm)):
            if not value:
                raise BenchError(f"drifting: {name} = false is not supported (no published model has it)")
        side = input_size // patch_size
        condition = cond_dim or hidden_size
        self.patch_size, self.out_channels = patch_size, out_channels or in_channels
        self.n_cls_tokens = n_cls_tokens
        self.y_embedder = LabelEmbedder(num_classes, condition)
        self.noise_embedders = nn.ModuleList(nn.Embedding(noise_classes, condition) for _ in range(noise_coords))
        self.cfg_embedder = ScalarEmbedder(condition)
        self.cfg_norm = RMSNorm(condition)
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.pos_embed = nn.Parameter(sincos_table(hidden_size, side))
        if n_cls_tokens:
            self.cls_proj = nn.Linear(condition, hidden_size)
            self.cls_embed = nn.Parameter(torch.zeros(1, n_cls_tokens, hidden_size))
        heads = hidden_size // num_heads
        self.rope = LineRope(heads, n_cls_tokens + side**2) if use_rope else nn.Identity()
        self.blocks = nn.ModuleList(
            LightningBlock(
                hidden_size, num_heads, GatedMlp(hidden_size, mlp_width(hidden_size, mlp_ratio), bias=True),
                qk_norm=use_qknorm, condition=condition,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.final_layer = LightningFinalLayer(hidden_size, patch_size**2 * self.out_channels, condition=condition)

    def forward(self, x: Tensor, labels: Tensor, cfg: Tensor, noise_labels: Tensor) -> Tensor:
        """x float32 [B, C, H, W], labels int64 [B], cfg float32 [B], noise labels int64 [B, coords] -> float32."""
        c = self.y_embedder(labels)
        for embed, column in zip(self.noise_embedders, noise_labels.unbind(1), strict=True):
            c = c + embed(column)
        c = c + GUIDANCE_WEIGHT * self.cfg_norm(self.cfg_embedder(cfg))
        x = self.x_embedder(x)
        x = x + self.pos_embed
        if self.n_cls_tokens:
            x = torch.cat([self.cls_proj(c)[:, None] + self.cls_embed, x], dim=1)
        for block in self.blocks:
            x = block(x, c, self.rope)
        tokens = self.final_layer(x, c)[:, self.n_cls_tokens :]
        return unpatchify(tokens, self.patch_size, self.out_channels).float()


def mlp_width(width: int, ratio: float) -> int:
    """Return the hidden width of the SwiGLU: two thirds, truncated, then rounded up to a multiple of 32."""
    return -(-int(2 / 3 * int(width * ratio)) // 32) * 32
