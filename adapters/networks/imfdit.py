"""The in-context transformer of improved MeanFlow (arXiv 2512.02012): every condition is a group of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adapters.networks.layers import (
    Float32Buffers,
    GatedMlp,
    LabelEmbedder,
    PatchEmbed,
    RMSNorm,
    ScalarEmbedder,
    attention,
    turned,
    unpatchify,
)
from results.errors import BenchError

GROUPS = ("class_tokens", "omega_tokens", "t_min_tokens", "t_max_tokens", "time_tokens")
"""The prefix in sequence order; patches follow."""


def mlp_width(width: int, ratio: float | str) -> int:
    """Return the hidden width, truncated: 8/3 of 1024 gives 2730. A ratio may be written as a fraction ("8/3")."""
    return int(width * (Fraction(ratio) if isinstance(ratio, str) else ratio))


def line_rotation(count: int, head_dim: int) -> Tensor:
    """Return cos and sin of p theta^(-2i/head_dim), theta 10000, p = 0..count-1; float32 [2, count, head_dim/2]."""
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.arange(count, dtype=torch.float32)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the adjacent pairs (2i, 2i+1) of x [B, heads, N, d] by `rotation` [2, M, d/2]: its last M tokens only."""
    if x.shape[2] == rotation.shape[1]:
        return turned(x, *rotation)
    prefix, tail = x[:, :, : x.shape[2] - rotation.shape[1]], x[:, :, x.shape[2] - rotation.shape[1] :]
    return torch.cat([prefix, turned(tail, *rotation)], dim=2)


class RotaryAttention(nn.Module):
    """Self-attention without biases, RMS norms on each head's q and k, then the rotation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Attend over the tokens of x [B, N, D]."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(self.q_norm(q), rotation), rotate(self.k_norm(k), rotation)
        return self.out_proj(attention(q, k, v).transpose(1, 2).flatten(2))


class InContextBlock(nn.Module):
    """Pre-norm transformer block with learnt residual scales and no modulation."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attn = RotaryAttention(width, heads)
        self.mlp = GatedMlp(width, hidden)
        self.attn_scale = nn.Parameter(torch.ones(width))
        self.mlp_scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Tokens x [B, N, D]."""
        x = torch.addcmul(x, self.attn(self.norm1(x), rotation), self.attn_scale)
        return torch.addcmul(x, self.mlp(self.norm2(x)), self.mlp_scale)


class Blocks(nn.ModuleList):
    """A stack of blocks."""

    def __init__(self, count: int, width: int, heads: int, hidden: int) -> None:
        super().__init__(InContextBlock(width, heads, hidden) for _ in range(count))

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Tokens x [B, N, D] through every block."""
        for block in self:
            x = block(x, rotation)
        return x


class PatchHead(nn.Module):
    """RMS norm and a linear map to patch values."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens x [B, N, D] -> [B, N, outputs]."""
        return self.linear(self.norm(x))


class InContextTransformer(Float32Buffers):
    """The trunk that iMF and pMF share: prefix tokens, shared blocks, then the blocks of the u head.

    `tokens` gives the size of each group of GROUPS. `depth` counts the shared blocks and one head of `head_depth`;
    `hidden` is the MLP width. The interval's length h is embedded, the time t is not. A subclass embeds the patches
    (`x_embedder`) and tells positions (`rotation`).
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
        head_depth: int,
        hidden: int,
        label_rows: int,
        tokens: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.patch_size, self.in_channels = patch_size, in_channels
        self.head_dim = hidden_size // num_heads
        self.side = input_size // patch_size
        self.prefix = sum(tokens[group] for group in GROUPS)
        self.h_embedder, self.omega_embedder = ScalarEmbedder(hidden_size), ScalarEmbedder(hidden_size)
        self.cfg_t_start_embedder, self.cfg_t_end_embedder = ScalarEmbedder(hidden_size), ScalarEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(label_rows, hidden_size)
        for group in GROUPS:
            self.register_parameter(group, nn.Parameter(torch.zeros(tokens[group], hidden_size)))
        self.shared_blocks = Blocks(depth - head_depth, hidden_size, num_heads, hidden)
        self.u_heads = Blocks(head_depth, hidden_size, num_heads, hidden)
        self.u_final_layer = PatchHead(hidden_size, patch_size**2 * in_channels)

    def condition_tokens(self, h: Tensor, omega: Tensor, t_min: Tensor, t_max: Tensor, labels: Tensor) -> Tensor:
        """Return the prefix [B, prefix, D]; scalars float32 [B] as they are, omega as 1 - 1/omega."""
        vectors = (
            self.y_embedder(labels),
            self.omega_embedder(1 - 1 / omega),
            self.cfg_t_start_embedder(t_min),
            self.cfg_t_end_embedder(t_max),
            self.h_embedder(h),
        )
        groups = [self.get_parameter(name) + e[:, None] for name, e in zip(GROUPS, vectors, strict=True)]
        return torch.cat(groups, dim=1)

    def image(self, head: PatchHead, tokens: Tensor) -> Tensor:
        """Return `head` of the patch tokens, float32 [B, C, H, W]."""
        return unpatchify(head(tokens[:, self.prefix :]), self.patch_size, self.in_channels).float()


class Velocities(NamedTuple):
    """The outputs of the two heads, float32 [B, C, H, W]."""

    average: Tensor
    instantaneous: Tensor


class ImfDiT(InContextTransformer):
    """iMF's network: u(x, h, omega, [t_min, t_max], y); one sequence of rotary positions, prefix included.

    `v_heads` builds the auxiliary head of the training state. Without it `v_final_layer` still exists: the published
    files hold it, nothing uses it.
    """

    def __init__(self, *, v_heads: bool = False, **facts: Any) -> None:
        super().__init__(**facts)
        width, patch, channels = facts["hidden_size"], facts["patch_size"], facts["in_channels"]
        self.x_embedder = PatchEmbed(patch, channels, width)
        positions = self.prefix + self.side**2
        self.register_buffer("rotation", line_rotation(positions, self.head_dim), persistent=False)
        self.v_heads = Blocks(facts["head_depth"], width, facts["num_heads"], facts["hidden"]) if v_heads else None
        self.v_final_layer = PatchHead(width, patch**2 * channels)

    def forward(
        self, x: Tensor, t: Tensor, h: Tensor, omega: Tensor, t_min: Tensor, t_max: Tensor, labels: Tensor
    ) -> Tensor:
        """x float32 [B, C, H, W], scalars float32 [B], labels int64 [B] -> u float32 [B, C, H, W]. t is ignored."""
        sequence = self._shared(x, h, omega, t_min, t_max, labels)
        return self.image(self.u_final_layer, self.u_heads(sequence, self.rotation))

    def velocities(
        self, x: Tensor, t: Tensor, h: Tensor, omega: Tensor, t_min: Tensor, t_max: Tensor, labels: Tensor
    ) -> Velocities:
        """Return both heads' outputs; the network must have been built with `v_heads`."""
        if self.v_heads is None:
            raise BenchError("this iMF network has no auxiliary head; load a full training state (v_heads = true)")
        sequence = self._shared(x, h, omega, t_min, t_max, labels)
        return Velocities(
            self.image(self.u_final_layer, self.u_heads(sequence, self.rotation)),
            self.image(self.v_final_layer, self.v_heads(sequence, self.rotation)),
        )

    def _shared(self, x: Tensor, *conditions: Tensor) -> Tensor:
        sequence = torch.cat([self.condition_tokens(*conditions), self.x_embedder(x)], dim=1)
        shared: Tensor = self.shared_blocks(sequence, self.rotation)
        return shared
