"""Decoder of the latent-diffusion KL autoencoder (arXiv 2112.10752) in its original key names (VA-VAE, E2E-VA-VAE)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.group_norm import GroupNorm
from adapters.networks.layers import attention


def group_norm(width: int) -> nn.GroupNorm:
    """Return the normalisation of every block: 32 groups, eps 1e-6."""
    return GroupNorm(32, width, eps=1e-6)


class ResidualBlock(nn.Module):
    """norm, swish, 3x3, norm, swish, 3x3, plus x (through a 1x1 convolution where the widths differ)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = group_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """One-headed self-attention over the pixels, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> same shape."""
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        mixed = attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(mixed)


class Upsample(nn.Module):
    """Nearest neighbour times two, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width)
        self.attn_1 = AttentionBlock(width)
        self.block_2 = ResidualBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class UpLevel(nn.Module):
    """Residual blocks (each followed by attention where the level has it), then a doubling of the resolution."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attend: bool, upsample: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(outputs if index else inputs, outputs) for index in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(outputs) for _ in range(blocks if attend else 0))
        self.upsample = Upsample(outputs) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H', W']."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return x if self.upsample is None else self.upsample(x)


class Decoder(nn.Module):
    """The decoder half; level L has width base_channels * channel_mult[L], level 0 the full resolution."""

    def __init__(
        self, latent_channels: int, base_channels: int, channel_mult: Sequence[int], blocks: int,
        attended: Sequence[bool], out_channels: int,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [base_channels * multiplier for multiplier in channel_mult]
        inputs = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            UpLevel(inputs[level], widths[level], blocks, attended[level], upsample=level > 0)
            for level in range(len(widths))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z [B, latent_channels, h, w] -> [B, out_channels, H, W]."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class KLDecoder(nn.Module):
    """post_quant_conv and decoder. A level has attention if nominal_resolution / 2^level is in `attn_resolutions`.

    `num_res_blocks` counts the encoder's blocks per level; the decoder has one more. The nominal resolution is a
    fact of construction and has nothing to do with the size of the latents.
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        base_channels: int = 128,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        nominal_resolution: int = 256,
        attn_resolutions: Sequence[int] = (16,),
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        attended = [nominal_resolution >> level in attn_resolutions for level in range(len(channel_mult))]
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.decoder = Decoder(
            latent_channels, base_channels, channel_mult, num_res_blocks + 1, attended, out_channels
        )  # fmt: skip

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, latent_channels, h, w] -> images [B, out_channels, H, W], unclamped."""
        return self.decoder(self.post_quant_conv(latents))
