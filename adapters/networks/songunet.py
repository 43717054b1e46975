"""SongUNet (DDPM++ layout of EDM, arXiv 2206.00364) conditioned on scalars: MeanFlow and SoFlow on CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.layers import attention

EPS = 1e-6


def endpoint_sinusoid(value: Tensor, width: int) -> Tensor:
    """Return [sin(v f_i), cos(v f_i)], f_i = 10000^(-i / (width/2 - 1)), both ends included; [B] -> [B, width]."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=value.device) / (half - 1)
    angles = value.float()[:, None] * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return the group norm of `channels`: at most 32 groups of at least four channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=EPS)


class ResamplingConv(nn.Conv2d):
    """A convolution after an optional change of resolution by 2 with a fixed depthwise filter."""

    resample_filter: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel: int, taps: Sequence[float], *, up: bool = False, down: bool = False
    ) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.up, self.down = up, down
        if up or down:
            line = torch.as_tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", (line.outer(line) / line.sum() ** 2)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Resample x [B, C, H, W], then convolve it."""
        if self.up or self.down:
            channels = x.shape[1]
            weight = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
            padding = (weight.shape[-1] - 1) // 2
            if self.up:
                x = F.conv_transpose2d(x, 4 * weight, groups=channels, stride=2, padding=padding)
            else:
                x = F.conv2d(x, weight, groups=channels, stride=2, padding=padding)
        return super().forward(x)


class SongBlock(nn.Module):
    """Residual block: the condition is added between the convolutions; optional attention with one head.

    `interleaved_qkv` says how the 3C channels of `qkv` are read: q, k, v as three blocks of C (MeanFlow), or
    channel 3 c + (0, 1, 2) as EDM and SoFlow do. Both load the same shapes: the wrong one gives wrong images.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        condition: int,
        taps: Sequence[float],
        *,
        up: bool = False,
        down: bool = False,
        attend: bool = False,
        interleaved_qkv: bool = False,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.interleaved_qkv = interleaved_qkv
        self.norm0 = group_norm(inputs)
        self.conv0 = ResamplingConv(inputs, outputs, 3, taps, up=up, down=down)
        self.affine = nn.Linear(condition, outputs)
        self.norm1 = group_norm(outputs)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        changes = inputs != outputs or up or down
        self.skip = ResamplingConv(inputs, outputs, 1, taps, up=up, down=down) if changes else None
        self.norm2 = group_norm(outputs) if attend else None
        if attend:
            self.qkv = nn.Conv2d(outputs, 3 * outputs, 1)
            self.proj = nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x [B, C, H, W] under the condition e [B, condition]."""
        a = self.conv0(F.silu(self.norm0(x)))
        a = F.silu(self.norm1(a + self.affine(e)[:, :, None, None]))
        a = self.conv1(a)
        a = (a + (x if self.skip is None else self.skip(x))) * sqrt(0.5)
        if self.norm2 is not None:
            a = (self.proj(self._attend(self.qkv(self.norm2(a)))) + a) * sqrt(0.5)
        return a

    def _attend(self, qkv: Tensor) -> Tensor:
        batch, triple, height, width = qkv.shape
        if self.interleaved_qkv:
            heads = qkv.reshape(batch, triple // 3, 3, height * width).permute(2, 0, 3, 1)
        else:
            heads = qkv.reshape(batch, 3, triple // 3, height * width).permute(1, 0, 3, 2)
        q, k, v = heads[:, :, None]
        return attention(q, k, v)[:, 0].transpose(1, 2).reshape(batch, triple // 3, height, width)


class SongUNet(nn.Module):
    """u(x, t, h): a U-Net conditioned on `scalar_inputs` raw scalars; keys as in the published checkpoints.

    Entry names carry the resolution of their level (`img_resolution` at the top, halved per level). The augmentation
    embedding is loaded and never used: augmentation labels exist in training only.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        channel_mult_emb: int = 4,
        channel_mult_noise: int = 2,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        augment_dim: int = 6,
        scalar_inputs: int = 2,
        interleaved_qkv: bool = False,
    ) -> None:
        super().__init__()
        self.scalar_width = model_channels * channel_mult_noise
        features = self.scalar_width * scalar_inputs
        condition = model_channels * channel_mult_emb
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, features, bias=False)
        self.map_layer0 = nn.Linear(features, condition)
        self.map_layer1 = nn.Linear(condition, condition)

        def block(
            inputs: int, outputs: int, *, up: bool = False, down: bool = False, attend: bool = False
        ) -> SongBlock:
            return SongBlock(
                inputs, outputs, condition, resample_filter,
                up=up, down=down, attend=attend, interleaved_qkv=interleaved_qkv,
            )  # fmt: skip

        self.top = f"{img_resolution}x{img_resolution}"
        resolutions = [img_resolution >> level for level in range(len(channel_mult))]
        self.enc = nn.ModuleDict({f"{self.top}_conv": nn.Conv2d(in_channels, model_channels, 3, padding=1)})
        width = model_channels
        skips = [width]
        for level, (resolution, multiplier) in enumerate(zip(resolutions, channel_mult, strict=True)):
            name = f"{resolution}x{resolution}"
            if level > 0:
                self.enc[f"{name}_down"] = block(width, width, down=True)
                skips.append(width)
            for index in range(num_blocks):
                outputs = model_channels * multiplier
                self.enc[f"{name}_block{index}"] = block(width, outputs, attend=resolution in attn_resolutions)
                width = outputs
                skips.append(width)

        self.dec = nn.ModuleDict()
        for level, (resolution, multiplier) in reversed(list(enumerate(zip(resolutions, channel_mult, strict=True)))):
            name = f"{resolution}x{resolution}"
            if level == len(channel_mult) - 1:
                self.dec[f"{name}_in0"] = block(width, width, attend=True)
                self.dec[f"{name}_in1"] = block(width, width)
            else:
                self.dec[f"{name}_up"] = block(width, width, up=True)
            for index in range(num_blocks + 1):
                outputs = model_channels * multiplier
                attend = index == num_blocks and resolution in attn_resolutions
                self.dec[f"{name}_block{index}"] = block(width + skips.pop(), outputs, attend=attend)
                width = outputs
        self.dec[f"{self.top}_aux_norm"] = group_norm(width)
        self.dec[f"{self.top}_aux_conv"] = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor, *scalars: Tensor) -> Tensor:
        """x float32 [B, C, H, W] and the scalars [B] (MeanFlow: t, h) -> float32 [B, C, H, W]."""
        dtype = self.map_layer0.weight.dtype
        e = torch.cat([endpoint_sinusoid(value, self.scalar_width) for value in scalars], dim=-1).to(dtype)
        e = F.silu(self.map_layer0(e))
        e = F.silu(self.map_layer1(e))
        x = x.to(dtype)
        skips = []
        for entry in self.enc.values():
            x = entry(x, e) if isinstance(entry, SongBlock) else entry(x)
            skips.append(x)
        for entry in self.dec.values():
            if isinstance(entry, SongBlock):
                x = entry(x if entry.inputs == x.shape[1] else torch.cat([x, skips.pop()], dim=1), e)
        x = self.dec[f"{self.top}_aux_norm"](x)
        return self.dec[f"{self.top}_aux_conv"](F.silu(x)).float()
