"""SongUNet, the DDPM++ and NCSN++ networks of EDM (arXiv 2206.00364), and their use by MeanFlow and SoFlow."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.layers import Float32Buffers, attention

EPS = 1e-6


def endpoint_sinusoid(value: Tensor, width: int) -> Tensor:
    """Return [sin(v f_i), cos(v f_i)], f_i = 10000^(-i / (width/2 - 1)), both ends included; [B] -> [B, width]."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=value.device) / (half - 1)
    angles = value.float()[:, None] * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def group_norm(channels: int, eps: float = EPS) -> nn.GroupNorm:
    """Return the group norm of `channels`: at most 32 groups of at least four channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


def label_rows(labels: Tensor, label_dim: int) -> Tensor:
    """Return one-hot rows [B, label_dim] of class indices int64 [B]; rows pass as they are."""
    return labels if labels.is_floating_point() else F.one_hot(labels.long(), label_dim)


def split_interleaved(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v, [B, heads, H W, d], of channels [B, heads * d * 3, H, W] with q, k, v as fastest index."""
    batch, triple, height, width = qkv.shape
    q, k, v = qkv.reshape(batch, heads, triple // (3 * heads), 3, height * width).permute(3, 0, 1, 4, 2)
    return q, k, v


def outer_filter(taps: Sequence[float]) -> Tensor:
    """Return the resampling filter [1, 1, k, k] of the line `taps`, its sum 1."""
    line = torch.as_tensor(taps, dtype=torch.float32)
    return (line.outer(line) / line.sum() ** 2)[None, None]


def resampled(x: Tensor, resample_filter: Tensor, *, up: bool, padding: int) -> Tensor:
    """Return x [B, C, H, W] at twice (`up`) or half its resolution."""
    channels = x.shape[1]
    weight = resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
    if up:
        return F.conv_transpose2d(x, 4 * weight, groups=channels, stride=2, padding=padding)
    return F.conv2d(x, weight, groups=channels, stride=2, padding=padding)


class Resample(nn.Module):
    """A change of resolution by 2 with a fixed depthwise filter and no weights."""

    resample_filter: Tensor

    def __init__(self, taps: Sequence[float], *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.register_buffer("resample_filter", outer_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        """Resample x [B, C, H, W]."""
        return resampled(x, self.resample_filter, up=self.up, padding=(self.resample_filter.shape[-1] - 1) // 2)


class ResamplingConv(nn.Conv2d):
    """A convolution after an optional change of resolution by 2 with a fixed depthwise filter."""

    resample_filter: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel: int, taps: Sequence[float], *, up: bool = False, down: bool = False
    ) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.up, self.down = up, down
        if up or down:
            self.register_buffer("resample_filter", outer_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        """Resample x [B, C, H, W], then convolve it."""
        if self.up or self.down:
            x = resampled(x, self.resample_filter, up=self.up, padding=(self.resample_filter.shape[-1] - 1) // 2)
        return super().forward(x)


class AuxiliaryDown(nn.Conv2d):
    """NCSN++'s residual input at the next resolution: convolution, then the depthwise filter, then the bias."""

    resample_filter: Tensor

    def __init__(self, inputs: int, outputs: int, taps: Sequence[float]) -> None:
        super().__init__(inputs, outputs, 3, padding=1 + (len(taps) - 1) // 2)
        self.register_buffer("resample_filter", outer_filter(taps))

    def forward(self, aux: Tensor) -> Tensor:
        """Map aux [B, C, H, W] to half its resolution."""
        aux = F.conv2d(aux, self.weight, padding=self.padding)
        aux = resampled(aux, self.resample_filter, up=False, padding=0)
        return aux if self.bias is None else aux + self.bias[:, None, None]


class FourierFeatures(Float32Buffers):
    """[sin, cos] of 2 pi freqs times a value; the frequencies are stored with a checkpoint."""

    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        # Versions of torch differ in whether get_default_device() sees `with torch.device(..)`.
        generator, device = torch.Generator("cpu").manual_seed(0), torch.empty(()).device
        self.register_buffer("freqs", (16 * torch.randn(width // 2, generator=generator, device="cpu")).to(device))

    def forward(self, value: Tensor) -> Tensor:
        """Embed values [B] -> float32 [B, width]."""
        # Angles reach hundreds: in this order float32 rounds them as in training.
        angles = value.float()[:, None] * (2 * pi * self.freqs)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


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
            q, k, v = split_interleaved(qkv, heads=1)
        else:
            q, k, v = qkv.reshape(batch, 3, triple // 3, height * width).permute(1, 0, 3, 2)[:, :, None]
        return attention(q, k, v)[:, 0].transpose(1, 2).reshape(batch, triple // 3, height, width)


class SongUNet(nn.Module):
    """A U-Net conditioned on `scalar_inputs` raw scalars and a label; keys as in the published checkpoints.

    MeanFlow's u(x, t, h) has two scalars; EDM's network one, ln(sigma) / 4, its keys without the `model.` prefix.
    Entry names carry the resolution of their level (`img_resolution` at the top, halved per level). With `second_time`
    the last scalar has layers of its own, whose output is added to the others' condition. The augmentation
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
        label_dim: int = 0,
        embedding_type: Literal["positional", "fourier"] = "positional",
        encoder_type: Literal["standard", "residual"] = "standard",
        second_time: bool = False,
    ) -> None:
        super().__init__()
        self.label_dim = label_dim
        self.scalar_width = model_channels * channel_mult_noise
        features = self.scalar_width * scalar_inputs
        condition = model_channels * channel_mult_emb
        self.map_noise = FourierFeatures(self.scalar_width) if embedding_type == "fourier" else None
        self.map_label = nn.Linear(label_dim, features) if label_dim else None
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, features, bias=False)
        self.map_layer0 = nn.Linear(features, condition)
        self.map_layer1 = nn.Linear(condition, condition)
        self.second_time = second_time
        if second_time:
            self.map_layer0_s = nn.Linear(self.scalar_width, condition)
            self.map_layer1_s = nn.Linear(condition, condition)

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
        width, aux = model_channels, in_channels
        skips = [width]
        for level, (resolution, multiplier) in enumerate(zip(resolutions, channel_mult, strict=True)):
            name = f"{resolution}x{resolution}"
            if level > 0:
                self.enc[f"{name}_down"] = block(width, width, down=True)
                skips.append(width)
                if encoder_type == "residual":
                    self.enc[f"{name}_aux_residual"] = AuxiliaryDown(aux, width, resample_filter)
                    aux = width
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

    def forward(self, x: Tensor, *scalars: Tensor, labels: Tensor | None = None) -> Tensor:
        """x float32 [B, C, H, W] and the scalars [B] (MeanFlow: t, h) -> float32 [B, C, H, W].

        labels int64 [B], or rows float32 [B, label_dim], or None for all-zero rows.
        """
        dtype = self.map_layer0.weight.dtype
        features = [self.embedded(value).to(dtype) for value in scalars]
        second = features.pop() if self.second_time else None
        e = torch.cat(features, dim=-1)
        if self.map_label is not None:
            if labels is None:
                labels = torch.zeros(len(x), self.label_dim, device=x.device)
            e = e + self.map_label(label_rows(labels, self.label_dim).to(dtype) * sqrt(self.label_dim))
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        if second is not None:
            e = e + self.map_layer1_s(F.silu(self.map_layer0_s(second)))
        e = F.silu(e)
        x = aux = x.to(dtype)
        skips: list[Tensor] = []
        for entry in self.enc.values():
            if isinstance(entry, AuxiliaryDown):
                x = skips[-1] = aux = (x + entry(aux)) * sqrt(0.5)
                continue
            x = entry(x, e) if isinstance(entry, SongBlock) else entry(x)
            skips.append(x)
        for entry in self.dec.values():
            if isinstance(entry, SongBlock):
                x = entry(x if entry.inputs == x.shape[1] else torch.cat([x, skips.pop()], dim=1), e)
        x = self.dec[f"{self.top}_aux_norm"](x)
        return self.dec[f"{self.top}_aux_conv"](F.silu(x)).float()

    def embedded(self, value: Tensor) -> Tensor:
        """Return the features, float32 [B, width], of one scalar [B]."""
        return endpoint_sinusoid(value, self.scalar_width) if self.map_noise is None else self.map_noise(value)
