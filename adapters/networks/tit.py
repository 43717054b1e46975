"""TiT, the transformer that UCGM (arXiv 2505.07447) trains: RMS norms, rotary positions, SwiGLU, q/k norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adapters.networks.layers import (
    Float32Buffers,
    FusedQKV,
    LabelEmbedder,
    PatchEmbed,
    RMSNorm,
    ScalarEmbedder,
    SwiGLU,
    adaln,
    attention,
    modulate,
    sincos_table,
    turned,
    unpatchify,
)


class Rope(Float32Buffers):
    """Two-dimensional rotary positions: the first half of a head turns with the row, the second with the column."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head_dim: int, side: int) -> None:
        super().__init__()
        half = head_dim // 2
        frequencies = 10000.0 ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)
        angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies.repeat_interleave(2)
        rows = angles[:, None, :].expand(side, side, half)
        columns = angles[None, :, :].expand(side, side, half)
        table = torch.cat([rows, columns], dim=-1).reshape(side * side, head_dim)
        self.register_buffer("freqs_cos", table.cos().float())
        self.register_buffer("freqs_sin", table.sin().float())

    def forward(self, x: Tensor) -> Tensor:
        """Turn the neighbouring pairs of x [B, heads, N, head_dim]."""
        # The published tables hold each pair's angle twice.
        return turned(x, self.freqs_cos[..., ::2], self.freqs_sin[..., ::2])


class RopeAttention(FusedQKV):
    """Self-attention with weightless RMS norms of q and k, then rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.q_norm = self.k_norm = RMSNorm(width // heads, affine=False)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        """Attend over the tokens of x [B, N, D]."""
        q, k, v = self.split(x)
        return self.merge(attention(rope(self.q_norm(q)), rope(self.k_norm(k)), v))


class TiTBlock(nn.Module):
    """adaLN block: shift, scale, gate for attention, then for the MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, affine=False)
        self.attn = RopeAttention(width, heads)
        self.norm2 = RMSNorm(width, affine=False)
        self.mlp = SwiGLU(width, 8 * width // 3)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, rope: Rope) -> Tensor:
        """Tokens x [B, N, D] under the condition c [B, D]."""
        attend = (self.norm1, lambda y: self.attn(y, rope))
        return adaln(x, self.adaLN_modulation(c), attend, (self.norm2, self.mlp))


class TiTFinalLayer(nn.Module):
    """Modulated RMS norm and a linear map to patch pixels."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width, affine=False)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens x [B, N, D] under the condition c [B, D] -> [B, N, outputs]."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class TiT(nn.Module):
    """TiT. Time enters unscaled, in [0, 1]; the label table has num_classes + 1 rows, the last one null.

    With fewer than two classes there is no label table and labels are ignored.
    """

    pos_embed: Tensor

    def __init__(
        self,
        *,
        input_size: int,
        patch_size: int,
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        side = input_size // patch_size
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.register_buffer("pos_embed", sincos_table(hidden_size, side))
        self.t_embedder = ScalarEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes + 1, hidden_size) if num_classes > 1 else None
        self.feat_rope = Rope(hidden_size // num_heads, side)
        self.blocks = nn.ModuleList(TiTBlock(hidden_size, num_heads) for _ in range(depth))
        self.final_layer = TiTFinalLayer(hidden_size, patch_size**2 * in_channels)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x float32 [B, C, H, W], t float32 [B], labels int64 [B] -> float32, shape of x."""
        c = self.t_embedder(t)
        if self.y_embedder is not None:
            c = c + self.y_embedder(labels)
        x = self.x_embedder(x)
        x = x + self.pos_embed.to(x.dtype)
        for block in self.blocks:
            x = block(x, c, self.feat_rope)
        return unpatchify(self.final_layer(x, c), self.patch_size, self.in_channels).float()
