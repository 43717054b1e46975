"""The pixel-space transformer of pMF (arXiv 2601.22158): iMF's trunk, a clean-image reading and 2D positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adapters.networks.imfdit import InContextTransformer

SMALLEST_TIME = 0.05
"""Below this time the clean-image reading stops dividing by t."""


def plane_rotation(side: int, head_dim: int) -> Tensor:
    """Return cos and sin for side*side patches, row-major, float32 [2, side*side, head_dim/2].

    The first half of the pairs turns by row f_i, the second by column f_i, f_i = 10000^(-2i/d), d = head_dim/2.
    """
    width = head_dim // 2
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    axis = torch.arange(side, dtype=torch.float32)[:, None] * frequencies
    rows = axis[:, None].expand(side, side, -1)
    columns = axis[None, :].expand(side, side, -1)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return torch.stack([angles.cos(), angles.sin()])


class BottleneckPatchEmbed(nn.Module):
    """Two linear convolutions: patches to a narrow width, then to tokens; [B, C, H, W] -> [B, N, D], row-major."""

    def __init__(self, patch: int, channels: int, bottleneck: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(channels, bottleneck, kernel_size=patch, stride=patch, bias=bias)
        self.proj2 = nn.Conv2d(bottleneck, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Embed the patches of x."""
        return self.proj2(self.proj1(x.to(self.proj1.weight.dtype))).flatten(2).transpose(1, 2).contiguous()


class PmfDiT(InContextTransformer):
    """pMF's network: its output F estimates the clean image, u = (x - F) / max(t, 0.05).

    A learnt table is added to the whole sequence; the rotation acts on the patches only.
    """

    def __init__(self, *, bottleneck_channels: int, **facts: Any) -> None:
        super().__init__(**facts)
        self.x_embedder = BottleneckPatchEmbed(
            self.patch_size, self.in_channels, bottleneck_channels, facts["hidden_size"]
        )
        self.register_buffer("rotation", plane_rotation(self.side, self.head_dim), persistent=False)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + self.side**2, facts["hidden_size"]))

    def forward(
        self, x: Tensor, t: Tensor, h: Tensor, omega: Tensor, t_min: Tensor, t_max: Tensor, labels: Tensor
    ) -> Tensor:
        """x float32 [B, C, H, W], scalars float32 [B], labels int64 [B] -> u float32 [B, C, H, W]."""
        prefix = self.condition_tokens(h, omega, t_min, t_max, labels)
        sequence = torch.cat([prefix, self.x_embedder(x)], dim=1) + self.pos_embed
        sequence = self.u_heads(self.shared_blocks(sequence, self.rotation), self.rotation)
        return (x - self.image(self.u_final_layer, sequence)) / t.clamp(min=SMALLEST_TIME)[:, None, None, None]
