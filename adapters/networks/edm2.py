"""The magnitude-preserving U-Net of EDM2 (arXiv 2312.02696), without preconditioning.

Every weight is normalised at every forward, also when sampling: the published averages of weights are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.layers import Float32Buffers, attention
from adapters.networks.songunet import endpoint_sinusoid, label_rows


def normalise(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return x / (1e-4 + root mean square of x over `dims`), computed in float32."""
    rms = x.float().square().mean(tuple(dims), keepdim=True).sqrt()
    return (x.float() / (1e-4 + rms)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """Return SiLU(x) / 0.596, unit variance in, unit variance out."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """Return ((1 - r) a + r b) / sqrt((1 - r)^2 + r^2) with r = balance."""
    return ((1 - balance) * a + balance * b) / ((1 - balance) ** 2 + balance**2) ** 0.5


def mp_cat(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """Concatenate channels so that both parts contribute by `balance` whatever their widths."""
    width_a, width_b = a.shape[1], b.shape[1]
    scale = ((width_a + width_b) / ((1 - balance) ** 2 + balance**2)) ** 0.5
    return torch.cat([a * (scale * (1 - balance) / width_a**0.5), b * (scale * balance / width_b**0.5)], dim=1)


class MPLayer(nn.Module):
    """A linear map (no `kernel`) or a convolution (`kernel` 1 or 3), without bias, its weight normalised per output."""

    def __init__(self, inputs: int, outputs: int, kernel: int | None = None) -> None:
        super().__init__()
        shape = (outputs, inputs) if kernel is None else (outputs, inputs, kernel, kernel)
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Map x [B, inputs] or [B, inputs, H, W], in x's dtype."""
        fan_in = self.weight[0].numel()
        weight = normalise(self.weight.float(), tuple(range(1, self.weight.ndim)))
        weight = (weight * (gain / fan_in**0.5)).to(x.dtype)
        if weight.ndim == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class MPFourier(Float32Buffers):
    """sqrt(2) cos(value * freqs + phases); the factor 2 pi is inside the stored buffers, which a checkpoint holds."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        # Versions of torch differ in whether get_default_device() sees `with torch.device(..)`.
        generator, device = torch.Generator("cpu").manual_seed(0), torch.empty(()).device
        freqs = torch.randn(width, generator=generator, device="cpu")
        phases = torch.rand(width, generator=generator, device="cpu")
        self.register_buffer("freqs", (2 * torch.pi * freqs).to(device))
        self.register_buffer("phases", (2 * torch.pi * phases).to(device))

    def forward(self, value: Tensor) -> Tensor:
        """Embed values [B] -> float32 [B, width]."""
        return 2**0.5 * torch.cos(value.float()[:, None] * self.freqs + self.phases)


class PositionalFeatures(nn.Module):
    """[cos, sin] of values times fixed frequencies, both ends included: FastGen's alternative to `MPFourier`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, value: Tensor) -> Tensor:
        """Embed values [B] -> float32 [B, width]."""
        sine, cosine = endpoint_sinusoid(value, self.width).chunk(2, dim=-1)
        return torch.cat([cosine, sine], dim=-1)


class LogVariance(nn.Module):
    """EDM2's estimate of the loss at a noise level: a training-only head beside the network in its files."""

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.logvar_fourier = MPFourier(channels)
        self.logvar_linear = MPLayer(channels, 1)

    def forward(self, noise_label: Tensor) -> Tensor:
        """Noise labels float32 [B] -> float32 [B, 1, 1, 1]."""
        return self.logvar_linear(self.logvar_fourier(noise_label))[:, :, None, None]


class EDM2Block(nn.Module):
    """Residual block: encoder flavour normalises pixels first, decoder flavour has its skip convolution on x only."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        condition: int,
        *,
        decoder: bool = False,
        resample: str = "keep",
        heads: int = 0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256.0,
    ) -> None:
        super().__init__()
        self.res_balance, self.attn_balance, self.clip_act = res_balance, attn_balance, clip_act
        self.decoder = decoder
        self.resample = resample
        self.heads = heads
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_skip = MPLayer(inputs, outputs, 1) if inputs != outputs else None
        self.conv_res0 = MPLayer(inputs if decoder else outputs, outputs, 3)
        self.emb_linear = MPLayer(condition, outputs)
        self.conv_res1 = MPLayer(outputs, outputs, 3)
        self.attn_qkv = MPLayer(outputs, 3 * outputs, 1) if heads else None
        self.attn_proj = MPLayer(outputs, outputs, 1) if heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [B, inputs, H, W] under the embedding [B, condition] -> [B, outputs, H', W']."""
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if not self.decoder:
            x = normalise(x if self.conv_skip is None else self.conv_skip(x), [1])
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = self.conv_res1(mp_silu(y * scale[:, :, None, None]))
        if self.decoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            x = mp_sum(x, self.attn_proj(self.attend(self.attn_qkv(x))), self.attn_balance)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)

    def attend(self, qkv: Tensor) -> Tensor:
        """Attend over the pixels; channels [B, heads * head_dim * 3, H, W] have q, k, v as their fastest index."""
        batch, channels, height, width = qkv.shape
        parts = qkv.reshape(batch, self.heads, channels // (3 * self.heads), 3, height * width)
        q, k, v = normalise(parts, [2]).permute(3, 0, 1, 4, 2)
        return attention(q, k, v).transpose(2, 3).reshape(batch, channels // 3, height, width)


class EDM2UNet(nn.Module):
    """EDM2's inner U-Net; keys as in the published checkpoints without their `unet.` prefix.

    `label_dim` 0 builds a network without label branch. Level l has resolution `img_resolution` / 2^l and width
    `model_channels` * `channel_mult[l]`, and attention in its blocks if that resolution is in `attn_resolutions`.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_channels: int,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        channels_per_head: int = 64,
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        embedding_type: Literal["mp_fourier", "positional"] = "mp_fourier",
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256.0,
    ) -> None:
        super().__init__()
        widths = [model_channels * multiplier for multiplier in channel_mult]
        noise = widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        condition = max(widths) if channel_mult_emb is None else model_channels * channel_mult_emb
        self.label_dim = label_dim
        self.label_balance, self.concat_balance = label_balance, concat_balance
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise) if embedding_type == "mp_fourier" else PositionalFeatures(noise)
        self.emb_noise = MPLayer(noise, condition)
        self.emb_label = MPLayer(label_dim, condition) if label_dim else None

        def block(
            inputs: int, outputs: int, *, decoder: bool, resample: str = "keep", attend: bool = False
        ) -> EDM2Block:
            heads = outputs // channels_per_head if attend else 0
            return EDM2Block(
                inputs, outputs, condition, decoder=decoder, resample=resample, heads=heads,
                res_balance=res_balance, attn_balance=attn_balance, clip_act=clip_act,
            )  # fmt: skip

        self.enc = nn.ModuleDict()
        skips: list[int] = []
        width = img_channels + 1
        for level, outputs in enumerate(widths):
            side = img_resolution >> level
            if level == 0:
                self.enc[f"{side}x{side}_conv"] = MPLayer(width, outputs, 3)
                width = outputs
            else:
                self.enc[f"{side}x{side}_down"] = block(width, width, decoder=False, resample="down")
            skips.append(width)
            for index in range(num_blocks):
                self.enc[f"{side}x{side}_block{index}"] = block(
                    width, outputs, decoder=False, attend=side in attn_resolutions
                )
                width = outputs
                skips.append(width)

        self.dec = nn.ModuleDict()
        for level, outputs in reversed(list(enumerate(widths))):
            side = img_resolution >> level
            if level == len(widths) - 1:
                self.dec[f"{side}x{side}_in0"] = block(width, width, decoder=True, attend=True)
                self.dec[f"{side}x{side}_in1"] = block(width, width, decoder=True)
            else:
                self.dec[f"{side}x{side}_up"] = block(width, width, decoder=True, resample="up")
            for index in range(num_blocks + 1):
                self.dec[f"{side}x{side}_block{index}"] = block(
                    width + skips.pop(), outputs, decoder=True, attend=side in attn_resolutions
                )
                width = outputs
        self.out_conv = MPLayer(width, img_channels, 3)

    def forward(self, x: Tensor, noise_label: Tensor, labels: Tensor | None) -> Tensor:
        """Evaluate the U-Net on an input that is already scaled to unit variance.

        x float32 [B, C, H, W]; noise_label = ln(sigma) / 4, float32 [B]; labels int64 [B], or label rows
        float32 [B, label_dim] (an all-zero row is an unlabelled sample), or None to skip the label branch.
        Returns float32, shape of x.
        """
        dtype = self.out_conv.weight.dtype
        emb = self.emb_noise(self.emb_fourier(noise_label).to(dtype))
        if labels is not None and self.emb_label is not None:
            rows = label_rows(labels, self.label_dim).to(dtype)
            emb = mp_sum(emb, self.emb_label(rows * self.label_dim**0.5), self.label_balance)
        emb = mp_silu(emb)

        x = torch.cat([x.to(dtype), torch.ones_like(x[:, :1], dtype=dtype)], dim=1)
        skips = []
        for name, module in self.enc.items():
            x = module(x) if name.endswith("_conv") else module(x, emb)
            skips.append(x)
        for name, module in self.dec.items():
            if "_block" in name:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = module(x, emb)
        return self.out_conv(x, gain=self.out_gain).float()
