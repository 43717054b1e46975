"""DhariwalUNet (the ADM layout of EDM, arXiv 2105.05233 and 2206.00364), without preconditioning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.layers import attention, sinusoid
from adapters.networks.songunet import Resample, ResamplingConv, group_norm, label_rows, split_interleaved

EPS = 1e-5
TAPS = (1, 1)
"""Resampling filter: the mean of 2 x 2 pixels downwards, the nearest pixel upwards."""


class DhariwalBlock(nn.Module):
    """Residual block: the condition scales and shifts between the convolutions; optional attention."""

    def __init__(
        self, inputs: int, outputs: int, condition: int, *, up: bool = False, down: bool = False, heads: int = 0
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.heads = heads
        self.norm0 = group_norm(inputs, EPS)
        self.conv0 = ResamplingConv(inputs, outputs, 3, TAPS, up=up, down=down)
        self.affine = nn.Linear(condition, 2 * outputs)
        self.norm1 = group_norm(outputs, EPS)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip: nn.Module | None = None
        if inputs != outputs:
            self.skip = ResamplingConv(inputs, outputs, 1, TAPS, up=up, down=down)
        elif up or down:
            self.skip = Resample(TAPS, up=up)
        self.norm2 = group_norm(outputs, EPS) if heads else None
        if heads:
            self.qkv = nn.Conv2d(outputs, 3 * outputs, 1)
            self.proj = nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x [B, C, H, W] under the condition e [B, condition]."""
        a = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.affine(e)[:, :, None, None].chunk(2, dim=1)
        a = F.silu(shift + self.norm1(a) * (scale + 1))
        a = self.conv1(a) + (x if self.skip is None else self.skip(x))
        if self.norm2 is not None:
            q, k, v = split_interleaved(self.qkv(self.norm2(a)), self.heads)
            a = self.proj(attention(q, k, v).transpose(2, 3).reshape(a.shape)) + a
        return a


class DhariwalUNet(nn.Module):
    """EDM's ADM network; keys as in the published checkpoints without their `model.` prefix.

    Level l has resolution `img_resolution` / 2^l, written into the names of its entries. The augmentation embedding,
    where there is one, is loaded and never used: augmentation labels exist in training only.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        in_channels: int = 3,
        out_channels: int = 3,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        channels_per_head: int = 64,
    ) -> None:
        super().__init__()
        self.label_dim = label_dim
        self.noise_width = model_channels
        condition = model_channels * channel_mult_emb
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, model_channels, bias=False)
        self.map_layer0 = nn.Linear(model_channels, condition)
        self.map_layer1 = nn.Linear(condition, condition)
        self.map_label = nn.Linear(label_dim, condition, bias=False) if label_dim else None

        def block(
            inputs: int, outputs: int, *, up: bool = False, down: bool = False, attend: bool = False
        ) -> DhariwalBlock:
            heads = outputs // channels_per_head if attend else 0
            return DhariwalBlock(inputs, outputs, condition, up=up, down=down, heads=heads)

        widths = [model_channels * multiplier for multiplier in channel_mult]
        self.enc = nn.ModuleDict()
        skips: list[int] = []
        width = in_channels
        for level, outputs in enumerate(widths):
            side = img_resolution >> level
            if level == 0:
                self.enc[f"{side}x{side}_conv"] = nn.Conv2d(width, outputs, 3, padding=1)
                width = outputs
            else:
                self.enc[f"{side}x{side}_down"] = block(width, width, down=True)
            skips.append(width)
            for index in range(num_blocks):
                self.enc[f"{side}x{side}_block{index}"] = block(width, outputs, attend=side in attn_resolutions)
                width = outputs
                skips.append(width)

        self.dec = nn.ModuleDict()
        for level, outputs in reversed(list(enumerate(widths))):
            side = img_resolution >> level
            if level == len(widths) - 1:
                self.dec[f"{side}x{side}_in0"] = block(width, width, attend=True)
                self.dec[f"{side}x{side}_in1"] = block(width, width)
            else:
                self.dec[f"{side}x{side}_up"] = block(width, width, up=True)
            for index in range(num_blocks + 1):
                attend = side in attn_resolutions
                self.dec[f"{side}x{side}_block{index}"] = block(width + skips.pop(), outputs, attend=attend)
                width = outputs
        self.out_norm = group_norm(width, EPS)
        self.out_conv = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor, noise_label: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate the network on an input that is already scaled.

        x float32 [B, C, H, W]; noise_label = ln(sigma) / 4, float32 [B]; labels int64 [B], or rows float32
        [B, label_dim], or None for all-zero rows. Returns float32 [B, C, H, W].
        """
        dtype = self.map_layer0.weight.dtype
        e = F.silu(self.map_layer0(sinusoid(noise_label, self.noise_width).to(dtype)))
        e = self.map_layer1(e)
        if self.map_label is not None and labels is not None:
            e = e + self.map_label(label_rows(labels, self.label_dim).to(dtype))
        e = F.silu(e)
        x = x.to(dtype)
        skips = []
        for entry in self.enc.values():
            x = entry(x, e) if isinstance(entry, DhariwalBlock) else entry(x)
            skips.append(x)
        for name, entry in self.dec.items():
            x = entry(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, e)
        return self.out_conv(F.silu(self.out_norm(x))).float()
