"""The network of Transition Models, TiM (arXiv 2509.04394): attention and modulation know the length of the step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.dit import plain_norm
from adapters.networks.layers import (
    Float32Buffers,
    FusedQKV,
    LabelEmbedder,
    PatchEmbed,
    ScalarEmbedder,
    adaln,
    attention,
    modulate,
    turned,
    unpatchify,
)
from adapters.networks.pmfdit import plane_rotation


class GatedLinear(nn.Module):
    """fc2(SiLU(fc1_g x) fc1_x x): SwiGLU with biases."""

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1_g, self.fc1_x = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to the last axis."""
        return self.fc2(F.silu(self.fc1_g(x)) * self.fc1_x(x))


class DistanceAttention(FusedQKV):
    """Rotary self-attention with layer norms of q and k, whose qkv also depend on the vector of the step's length."""

    def __init__(self, width: int, heads: int, qk_norm: bool, distance_aware: bool) -> None:
        super().__init__(width, heads)
        self.qkv_d = nn.Linear(width, 3 * width, bias=False) if distance_aware else None
        head_dim = width // heads
        self.q_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, d: Tensor, rotation: Tensor) -> Tensor:
        """Attend over the tokens of x [B, N, D]; d [B, D], `rotation` [2, N, head_dim / 2]."""
        q, k, v = self.split(x)
        if self.qkv_d is not None:
            of_d = self.qkv_d(d).unflatten(-1, (3, self.heads, -1))[:, :, :, None]
            q, k, v = q + of_d[:, 0], k + of_d[:, 1], v + of_d[:, 2]
        q, k = (turned(norm(part), *rotation) for norm, part in ((self.q_norm, q), (self.k_norm, k)))
        return self.merge(attention(q, k, v))


class TransitionBlock(nn.Module):
    """adaLN block with a gated modulation."""

    def __init__(self, width: int, heads: int, hidden: int, inner: int, qk_norm: bool, distance_aware: bool) -> None:
        super().__init__()
        self.attn = DistanceAttention(width, heads, qk_norm, distance_aware)
        self.mlp = GatedLinear(width, hidden, width)
        self.adaLN_modulation = GatedLinear(width, inner, 6 * width)

    def forward(self, x: Tensor, c: Tensor, d: Tensor, rotation: Tensor) -> Tensor:
        """Tokens x [B, N, D] under the conditions c and d [B, D]."""
        attend = lambda x: self.attn(x, d, rotation)  # noqa: E731
        return adaln(x, self.adaLN_modulation(c), (plain_norm, attend), (plain_norm, self.mlp))


class TransitionFinalLayer(nn.Module):
    """Layer norm under a gated modulation, and a linear map to patch pixels."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = GatedLinear(width, width // 2, 2 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens x [B, N, D] under the condition c [B, D] -> [B, N, outputs]."""
        return self.linear(modulate(plain_norm(x), *self.adaLN_modulation(c).chunk(2, dim=-1)))


class TransitionDiT(Float32Buffers):
    """F(x, t, r): conditions t, the length t - r and a label; keys as in the published files.

    Positions are rotary only: the first half of a head turns with the column, the second with the row.
    `lora_hidden_size` is the inner width of the blocks' modulation. The label table has num_classes + 1 rows, the last
    one null.
    """

    rotation: Tensor

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
        lora_hidden_size: int = 384,
        qk_norm: bool = True,
        distance_aware: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size, self.in_channels = patch_size, in_channels
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        rows, columns = plane_rotation(input_size // patch_size, hidden_size // num_heads).chunk(2, dim=-1)
        self.register_buffer("rotation", torch.cat([columns, rows], dim=-1), persistent=False)
        self.t_embedder, self.delta_embedder = ScalarEmbedder(hidden_size), ScalarEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes + 1, hidden_size)
        hidden = int(2 * int(hidden_size * mlp_ratio) / 3)
        self.blocks = nn.ModuleList(
            TransitionBlock(hidden_size, num_heads, hidden, lora_hidden_size, qk_norm, distance_aware)
            for _ in range(depth)
        )
        self.final_layer = TransitionFinalLayer(hidden_size, patch_size**2 * in_channels)

    def forward(self, x: Tensor, t: Tensor, r: Tensor, labels: Tensor) -> Tensor:
        """x float32 [B, C, H, W], t and r float32 [B], labels int64 [B] -> F float32 [B, C, H, W]."""
        d = self.delta_embedder(t - r)
        c = self.t_embedder(t) + d + self.y_embedder(labels)
        x = self.x_embedder(x)
        for block in self.blocks:
            x = block(x, c, d, self.rotation)
        return unpatchify(self.final_layer(x, c), self.patch_size, self.in_channels).float()
