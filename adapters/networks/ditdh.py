"""DiT-DH, RAE's transformer (arXiv 2510.11690): a trunk whose output conditions a shallow, wide head per token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.layers import (
    Float32Buffers,
    FusedQKV,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    RMSNorm,
    SwiGLU,
    adaln,
    attention,
    modulate,
    sincos_table,
    unpatchify,
)
from adapters.networks.tit import Rope
from results.errors import BenchError

FREQUENCIES = 256


class FourierEmbedder(Float32Buffers):
    """linear(SiLU(linear([sin 2 pi t W, cos 2 pi t W]))) with random fixed frequencies W that the checkpoint holds."""

    W: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(0)
        self.register_buffer("W", torch.randn(FREQUENCIES, generator=generator, device="cpu"))
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times [B] -> [B, width]."""
        # Multiplied in the published order: the angles are large, and float32 rounds each product.
        angles = t.float()[:, None] * self.W * 2 * math.pi
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        embedding: Tensor = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        return embedding


class DiTDHAttention(FusedQKV):
    """Self-attention with optional norms of q and k, then optional rotary positions."""

    def __init__(self, width: int, heads: int, qk_norm: bool, rms_norm: bool) -> None:
        super().__init__(width, heads)
        head = width // heads

        def norm() -> nn.Module:
            return RMSNorm(head) if rms_norm else nn.LayerNorm(head)

        self.q_norm = norm() if qk_norm else nn.Identity()
        self.k_norm = norm() if qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: nn.Module) -> Tensor:
        """Attend over the tokens of x [B, N, D]."""
        q, k, v = self.split(x)
        return self.merge(attention(rope(self.q_norm(q)), rope(self.k_norm(k)), v))


def token_norm(width: int, rms_norm: bool) -> nn.Module:
    """Return the norm of tokens: RMS with a weight, or a layer norm without."""
    return RMSNorm(width) if rms_norm else nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class DiTDHBlock(nn.Module):
    """adaLN block under a condition per token: shift, scale, gate for attention, then for the MLP.

    The modulation applies SiLU to a condition that has been through SiLU already, as published.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, *, swiglu: bool, rms_norm: bool, qk_norm: bool
    ) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = token_norm(width, rms_norm)
        self.attn = DiTDHAttention(width, heads, qk_norm, rms_norm)
        self.norm2 = token_norm(width, rms_norm)
        self.mlp = SwiGLU(width, int(2 / 3 * hidden)) if swiglu else Mlp(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, rope: nn.Module) -> Tensor:
        """Tokens x [B, N, D] under the condition c [B, 1 or N, D]."""
        attend = (self.norm1, lambda y: self.attn(y, rope))
        return adaln(x, self.adaLN_modulation(c), attend, (self.norm2, self.mlp))


class DiTDHFinalLayer(nn.Module):
    """Norm modulated per token and a linear map to patch pixels."""

    def __init__(self, width: int, outputs: int, rms_norm: bool) -> None:
        super().__init__()
        self.norm_final = token_norm(width, rms_norm)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """Tokens x [B, N, D] under the condition s [B, N, D] -> [B, N, outputs]."""
        shift, scale = self.adaLN_modulation(s).chunk(2, dim=-1)
        out: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return out


class DiTDH(nn.Module):
    """DiT-DH. `hidden_size`, `depth` and `num_heads` are pairs (trunk, head); one number stands for both.

    The trunk sees time and label; the head sees the same noisy input again, and of the label only what the trunk makes
    of it. With `class_dropout_prob` above 0 the label table has a last row for the null label, num_classes. Raises
    BenchError for options that no published model has and that cannot be run (`wo_shift`, unequal patches).
    """

    pos_embed: Tensor

    def __init__(
        self,
        *,
        input_size: int,
        in_channels: int,
        hidden_size: Sequence[int] | int,
        depth: Sequence[int],
        num_heads: Sequence[int] | int,
        num_classes: int,
        patch_size: Sequence[int] | int = 1,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        use_qknorm: bool = False,
        use_swiglu: bool = True,
        use_rope: bool = True,
        use_rmsnorm: bool = True,
        wo_shift: bool = False,
        use_pos_embed: bool = True,
    ) -> None:
        super().__init__()
        if wo_shift:
            raise BenchError("DiT-DH: wo_shift = true is not supported (no published model has it); set it to false")
        (trunk, head), (trunk_heads, head_heads) = _pair(hidden_size), _pair(num_heads)
        trunk_patch, patch = _pair(patch_size)
        if trunk_patch != patch:
            raise BenchError(f"DiT-DH: patch_size must be the same for trunk and head, found {list(_pair(patch_size))}")
        side = input_size // patch
        self.patch_size = patch
        self.in_channels = in_channels
        self.trunk_depth = depth[0]
        self.s_embedder = PatchEmbed(patch, in_channels, trunk)
        self.x_embedder = PatchEmbed(patch, in_channels, head)
        self.s_projector = nn.Linear(trunk, head) if trunk != head else nn.Identity()
        self.t_embedder = FourierEmbedder(trunk)
        self.y_embedder = LabelEmbedder(num_classes + (class_dropout_prob > 0), trunk)
        if use_pos_embed:
            self.register_buffer("pos_embed", sincos_table(trunk, side))
        else:
            self.register_buffer("pos_embed", torch.zeros(1, 1, trunk), persistent=False)
        self.enc_feat_rope = Rope(trunk // trunk_heads, side) if use_rope else nn.Identity()
        self.dec_feat_rope = Rope(head // head_heads, side) if use_rope else nn.Identity()
        shapes = [(trunk, trunk_heads)] * depth[0] + [(head, head_heads)] * depth[1]
        self.blocks = nn.ModuleList(
            DiTDHBlock(width, heads, mlp_ratio, swiglu=use_swiglu, rms_norm=use_rmsnorm, qk_norm=use_qknorm)
            for width, heads in shapes
        )
        self.final_layer = DiTDHFinalLayer(head, patch**2 * in_channels, use_rmsnorm)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x float32 [B, C, H, W], t float32 [B] in [0, 1], labels int64 [B] -> float32, shape of x."""
        time = self.t_embedder(t)[:, None]
        c = F.silu(time + self.y_embedder(labels)[:, None])

        s = self.s_embedder(x)
        s = s + self.pos_embed.to(s.dtype)
        for block in self.blocks[: self.trunk_depth]:
            s = block(s, c, self.enc_feat_rope)
        s = self.s_projector(F.silu(time + s))

        h = self.x_embedder(x)
        for block in self.blocks[self.trunk_depth :]:
            h = block(h, s, self.dec_feat_rope)
        return unpatchify(self.final_layer(h, s), self.patch_size, self.in_channels).float()


def _pair(value: Sequence[int] | int) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second
