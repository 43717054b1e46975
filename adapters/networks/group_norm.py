"""Group normalisation that stays in channels-last layout: torch's own on CUDA turns such images round, and back after.

In a decoder those two passes over every image cost more than its convolutions (45% of a VA-VAE's time on an H200).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """torch's group norm; of images in 16 bits in channels-last layout on CUDA it returns the same in that layout."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, ...]."""
        return self.channels_last(x) if stays(x) else super().forward(x)

    def channels_last(self, x: Tensor) -> Tensor:
        """Return x [B, C, H, W] normalised, from sums in float32 over contiguous channels."""
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        compiling = torch.compiler.is_compiling()  # which fuses each line below into one pass, in float32
        total = rows.sum(1, dtype=torch.float32)
        if compiling:
            squares = rows.float().square().sum(1)
        else:
            squares = torch.linalg.vector_norm(rows, 2, 1, dtype=torch.float32).square()
        count = height * width * (channels // self.num_groups)
        mean, square = (
            part.unflatten(1, (self.num_groups, -1)).sum(-1, keepdim=True) / count for part in (total, squares)
        )
        inverse = torch.rsqrt((square - mean * mean).clamp_min(0) + self.eps)
        weight, bias = (part.float().unflatten(0, (self.num_groups, -1)) for part in (self.weight, self.bias))
        scale, shift = inverse * weight, bias - mean * inverse * weight
        scale, shift = (part.flatten(1)[:, None] for part in (scale, shift))
        if compiling:
            normalised = (rows.float() * scale + shift).to(x.dtype)
        else:
            normalised = torch.addcmul(shift.to(x.dtype), rows, scale.to(x.dtype))
        return normalised.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def stays(x: Tensor) -> bool:
    """Tell whether x is in 16 bits, on CUDA and in channels-last layout."""
    layout = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return layout and x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)


def keep_layout(module: nn.Module) -> nn.Module:
    """Give every group norm of a library's `module` the `forward` of this file's, and return it."""
    for part in module.modules():
        if type(part) is nn.GroupNorm and part.affine:
            part.__class__ = GroupNorm
    return module
