"""The transformer of VAR (arXiv 2404.02905) and its residual quantiser, under the authors' names.

A sample is a token map at each of several scales; the transformer reads every scale so far and predicts the next one
whole. Scale s has side `patch_nums[s]`, tokens run row by row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.layers import Mlp, attention

LN_EPS = 1e-6
LARGEST_SCALE = math.log(100.0)
"""Bound of the learnt logarithm of the attention's scale."""

Cache = list[tuple[Tensor, Tensor] | None]
"""Keys and values of the scales so far, a pair a block."""


class Attention(nn.Module):
    """Self-attention with bias on q and v alone; q and k are normalised and scaled by a learnt factor a head."""

    def __init__(self, width: int, heads: int, l2_norm: bool) -> None:
        super().__init__()
        self.heads, self.l2_norm = heads, l2_norm
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, known: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, N, C] after the keys and values `known` -> [B, N, C], and the keys and values of all."""
        batch, count, width = x.shape
        bias = torch.cat([self.q_bias, self.get_buffer("zero_k_bias"), self.v_bias])
        qkv = F.linear(x, self.mat_qkv.weight, bias).reshape(batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scale = 0.25 / math.sqrt(width // self.heads)
        if self.l2_norm:
            q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(LARGEST_SCALE).exp()
            k, scale = F.normalize(k, dim=-1), 1.0
        if known is not None:
            k, v = torch.cat([known[0], k], dim=2), torch.cat([known[1], v], dim=2)
        if mask is None:
            heads = attention(q, k, v, scale)
        else:
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return self.proj(heads.transpose(1, 2).flatten(2)), (k, v)


class Block(nn.Module):
    """Attention and feed-forward, each with a scale and shift before and a gate after it, from the label's vector."""

    def __init__(self, width: int, heads: int, hidden: int, *, shared: bool, l2_norm: bool) -> None:
        super().__init__()
        self.attn = Attention(width, heads, l2_norm)
        self.ffn = Mlp(width, hidden)
        if shared:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: Tensor, condition: Tensor, known: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, N, C] under `condition` ([B, C], or [B, 1, 6, C] of the shared layer) -> [B, N, C], keys and values."""
        six = self.ada_gss + condition if condition.ndim == 4 else _modulation(self.ada_lin, condition, 6)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = six.unbind(2)
        mixed, seen = self.attn(_norm(x) * (1 + scale1) + shift1, known, mask)
        x = x + gamma1 * mixed
        return x + gamma2 * self.ffn(_norm(x) * (1 + scale2) + shift2), seen


class HeadNorm(nn.Module):
    """The last normalisation, scaled and shifted by the label's vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, N, C], condition [B, C] -> [B, N, C]."""
        scale, shift = _modulation(self.ada_lin, condition, 2).unbind(2)
        return _norm(x) * (1 + scale) + shift


class VARTransformer(nn.Module):
    """Logits of the tokens of one scale, or of several at once, given the codes of the scales before."""

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        num_heads: int,
        num_classes: int,
        vocabulary: int,
        code_channels: int,
        patch_nums: Sequence[int],
        mlp_ratio: float = 4.0,
        shared_adaln: bool = False,
        attn_l2_norm: bool = True,
    ) -> None:
        super().__init__()
        self.patch_nums, self.code_channels = tuple(patch_nums), code_channels
        ends = list(accumulate(side * side for side in self.patch_nums))
        self.spans = list(pairwise([0, *ends]))
        length = ends[-1]
        self.word_embed = nn.Linear(code_channels, width)
        self.class_emb = nn.Embedding(num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, length, width))
        self.lvl_embed = nn.Embedding(len(self.patch_nums), width)
        levels = torch.cat([torch.full((stop - start,), level) for level, (start, stop) in enumerate(self.spans)])
        self.register_buffer("lvl_1L", levels[None])
        if shared_adaln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.shared = shared_adaln
        hidden = round(width * mlp_ratio)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, hidden, shared=shared_adaln, l2_norm=attn_l2_norm) for _ in range(depth)
        )
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, codes: Tensor, labels: Tensor, first: int = 0, cache: Cache | None = None) -> Tensor:
        """Return float32 logits [B, N, vocabulary] of the scales from `first` on.

        `codes` float32 [B, M, code_channels] are the inputs of their tokens; scale 0 has none, its input is the label.
        Without a `cache` all scales come at once and none sees a later one; with one they come one a call.
        """
        dtype = self.head.weight.dtype
        condition = self.class_emb(labels)
        x = self.word_embed(codes.to(dtype))
        if first == 0:
            x = torch.cat([condition[:, None] + self.pos_start, x], dim=1)
        start = self.spans[first][0]
        levels = self.get_buffer("lvl_1L")[:, start : start + x.shape[1]]
        x = x + self.lvl_embed(levels) + self.pos_1LC[:, start : start + x.shape[1]]
        mask = None if cache is not None else (levels[0][:, None] >= levels[0][None, :])
        modulation = _modulation(self.shared_ada_lin, condition, 6) if self.shared else condition
        for index, block in enumerate(self.blocks):
            x, seen = block(x, modulation, None if cache is None else cache[index], mask)
            if cache is not None:
                cache[index] = seen
        return self.head(self.head_nm(x, condition)).float()


class ResidualConvolution(nn.Conv2d):
    """(1 - ratio) h + ratio conv(h), 3x3."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.ratio = ratio

    def forward(self, h: Tensor) -> Tensor:
        """h [B, C, H, W] -> same shape."""
        return (1 - self.ratio) * h + self.ratio * super().forward(h)


class ResidualQuantiser(nn.Module):
    """From tokens to codes: every scale adds its upsampled, smoothed embedding to the code map."""

    def __init__(
        self,
        *,
        vocabulary: int,
        code_channels: int,
        patch_nums: Sequence[int],
        share_quant_resi: int = 4,
        quant_resi: float = 0.5,
    ) -> None:
        super().__init__()
        self.patch_nums = tuple(patch_nums)
        self.embedding = nn.Embedding(vocabulary, code_channels)
        scales = len(self.patch_nums)
        count = share_quant_resi or scales
        smooth = [
            ResidualConvolution(code_channels, abs(quant_resi)) if abs(quant_resi) > 1e-6 else nn.Identity()
            for _ in range(count)
        ]
        self.quant_resi: nn.Module = nn.Module()
        if share_quant_resi == 0:
            self.quant_resi = nn.ModuleList(smooth)
        elif share_quant_resi == 1:
            self.quant_resi.qresi = smooth[0]
        else:
            self.quant_resi.qresi_ls = nn.ModuleList(smooth)
        # In float64: of ten scales two lie exactly between two ticks.
        parts = 3 if count == 4 else 2
        ticks = np.linspace(1 / parts / count, 1 - 1 / parts / count, count)
        self.nearest = [int(np.argmin(np.abs(ticks - s / max(scales - 1, 1)))) for s in range(scales)]
        self._smooth = [smooth[index] for index in self.nearest]  # a list, so that keys stay the authors'

    def add(self, codes: Tensor, tokens: Tensor, scale: int) -> Tensor:
        """Return the code map [B, C, H, W] with the tokens [B, side * side] of `scale` added, float32."""
        side, last = self.patch_nums[scale], self.patch_nums[-1]
        weight = self.embedding.weight
        h = self.embedding(tokens).transpose(1, 2).reshape(len(tokens), weight.shape[1], side, side)
        if scale != len(self.patch_nums) - 1:
            h = F.interpolate(h.float(), size=(last, last), mode="bicubic").to(weight.dtype)
        return codes + self._smooth[scale](h).float()

    def next_input(self, codes: Tensor, scale: int) -> Tensor:
        """Return the code map seen at the side of the next scale, as its tokens' inputs [B, side * side, C]."""
        side = self.patch_nums[scale + 1]
        return F.interpolate(codes, size=(side, side), mode="area").flatten(2).transpose(1, 2)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=LN_EPS)


def _modulation(layer: nn.Module, condition: Tensor, parts: int) -> Tensor:
    """Return [B, 1, parts, C] of a condition [B, C]."""
    found: Tensor = layer(condition)
    return found.reshape(len(condition), 1, parts, condition.shape[-1])
