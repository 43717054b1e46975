"""LightningDiT (arXiv 2501.01423), whose block DiT-DH, JiT and the drifting models share: each part is an option."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adapters.networks.layers import (
    Float32Buffers,
    FusedQKV,
    LabelEmbedder,
    Mlp,
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
from results.errors import BenchError

Rotation = Callable[[Tensor], Tensor]
"""Rotary positions of queries and of keys, [B, heads, N, head_dim]."""


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


def token_norm(width: int, rms_norm: bool, weights: bool = True) -> nn.Module:
    """Return the norm of tokens: RMS, with or without a weight, or a layer norm without."""
    return RMSNorm(width, affine=weights) if rms_norm else nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def feed_forward(width: int, mlp_ratio: float = 4.0, swiglu: bool = True) -> nn.Module:
    """Return the MLP: SwiGLU with two thirds of the hidden width, or the plain one."""
    hidden = int(width * mlp_ratio)
    return SwiGLU(width, int(2 / 3 * hidden)) if swiglu else Mlp(width, hidden)


class LightningAttention(FusedQKV):
    """Self-attention with optional norms of q and k, RMS with or without a weight, then rotary positions."""

    def __init__(self, width: int, heads: int, qk_norm: bool, rms_norm: bool, weights: bool = True) -> None:
        super().__init__(width, heads)
        head = width // heads

        def norm() -> nn.Module:
            return RMSNorm(head, affine=weights) if rms_norm else nn.LayerNorm(head)

        self.q_norm = norm() if qk_norm else nn.Identity()
        self.k_norm = norm() if qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: Rotation) -> Tensor:
        """Attend over the tokens of x [B, N, D]."""
        q, k, v = self.split(x)
        return self.merge(attention(rope(self.q_norm(q)), rope(self.k_norm(k)), v))


class LightningBlock(nn.Module):
    """adaLN block: shift, scale, gate for attention, then for the MLP.

    `condition` is the width of the condition (None: that of the tokens); `norm_weights` says whether RMS norms have
    weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp: nn.Module,
        *,
        rms_norm: bool = True,
        qk_norm: bool = False,
        condition: int | None = None,
        norm_weights: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = token_norm(width, rms_norm, norm_weights)
        self.attn = LightningAttention(width, heads, qk_norm, rms_norm, norm_weights)
        self.norm2 = token_norm(width, rms_norm, norm_weights)
        self.mlp = mlp
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(condition or width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, rope: Rotation) -> Tensor:
        """Tokens x [B, N, D] under the condition c [B, D], or per token [B, 1 or N, D]."""
        attend = (self.norm1, lambda y: self.attn(y, rope))
        return adaln(x, self.adaLN_modulation(c), attend, (self.norm2, self.mlp))


class LightningFinalLayer(nn.Module):
    """Modulated norm and a linear map to patch pixels."""

    def __init__(
        self,
        width: int,
        outputs: int,
        rms_norm: bool = True,
        condition: int | None = None,
        norm_weights: bool = True,
    ) -> None:
        super().__init__()
        self.norm_final = token_norm(width, rms_norm, norm_weights)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(condition or width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens x [B, N, D] under the condition c [B, D], or per token [B, N, D] -> [B, N, outputs]."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        out: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return out


class LightningDiT(nn.Module):
    """LightningDiT; keys as in the published checkpoints.

    Time enters unscaled, in [0, 1]. The label table has a last row for the null label, num_classes, unless
    `class_dropout_prob` is 0; with fewer than two classes there is no table and labels are ignored. With `learn_sigma`
    the network emits twice the channels and the second half is unused. `norm_weights` = false leaves the RMS norms
    without weights, as those of UCGM's TiT are. Raises BenchError for `wo_shift`, which no published model has.
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
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        learn_sigma: bool = False,
        use_qknorm: bool = False,
        use_swiglu: bool = True,
        use_rope: bool = True,
        use_rmsnorm: bool = True,
        norm_weights: bool = True,
        wo_shift: bool = False,
    ) -> None:
        super().__init__()
        if wo_shift:
            raise BenchError("LightningDiT: wo_shift = true is not supported (no published model has it); set it false")
        side = input_size // patch_size
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.out_channels = 2 * in_channels if learn_sigma else in_channels
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.register_buffer("pos_embed", sincos_table(hidden_size, side))
        self.t_embedder = ScalarEmbedder(hidden_size)
        rows = num_classes + (class_dropout_prob > 0)
        self.y_embedder = LabelEmbedder(rows, hidden_size) if num_classes > 1 else None
        self.feat_rope = Rope(hidden_size // num_heads, side) if use_rope else nn.Identity()
        self.blocks = nn.ModuleList(
            LightningBlock(
                hidden_size, num_heads, feed_forward(hidden_size, mlp_ratio, use_swiglu), rms_norm=use_rmsnorm,
                qk_norm=use_qknorm, norm_weights=norm_weights,
            )
            for _ in range(depth)
        )  # fmt: skip
        outputs = patch_size**2 * self.out_channels
        self.final_layer = LightningFinalLayer(hidden_size, outputs, use_rmsnorm, norm_weights=norm_weights)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x float32 [B, C, H, W], t float32 [B], labels int64 [B] -> float32, shape of x."""
        c = self.t_embedder(t)
        if self.y_embedder is not None:
            c = c + self.y_embedder(labels)
        x = self.x_embedder(x)
        x = x + self.pos_embed.to(x.dtype)
        for block in self.blocks:
            x = block(x, c, self.feat_rope)
        x = unpatchify(self.final_layer(x, c), self.patch_size, self.out_channels)
        return x[:, : self.in_channels].float()
