"""What the published transformers truly share: patches, fixed position tables, scalar and label embedders, norms.

Every network takes float32 inputs, computes in the dtype of its parameters and returns float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoid(
    value: Tensor, width: int = 256, max_period: float = 10000.0, precision: torch.dtype = torch.float32
) -> Tensor:
    """Return [cos(v f_i), sin(v f_i)] with f_i = max_period^(-i / (width/2)); [B] -> float32 [B, width].

    `precision` is that of the frequencies and of the angles.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=precision, device=value.device) / half)
    angles = value.to(precision)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def sincos_table(width: int, side: int) -> Tensor:
    """Return the fixed position table, float32 [1, side*side, width]: first half the column, second half the row.

    Each half holds [sin(m w_j), cos(m w_j)], w_j = 10000^(-j/(width/4)) (the masked-autoencoder table of DiT).
    """
    quarter = width // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * omega
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = axis[:, None, :].expand(side, side, width // 2)
    columns = axis[None, :, :].expand(side, side, width // 2)
    return torch.cat([columns, rows], dim=-1).reshape(1, side * side, width).float()


class Float32Buffers(nn.Module):
    """A module whose buffers follow its device but stay float32: fixed tables of angles lose too much in 16 bits."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32Buffers:
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, table in exact.items():
            setattr(self, name, table.to(getattr(self, name).device))
        return self


class PatchEmbed(nn.Module):
    """Convolution with kernel = stride = patch; [B, C, H, W] -> tokens [B, N, D], row-major."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Embed the patches of x."""
        # Row by row in memory: sums keep the layout of their first operand, and every norm of every block would copy.
        return self.proj(x.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2).contiguous()


def unpatchify(tokens: Tensor, patch: int, channels: int) -> Tensor:
    """Return [B, C, H, W] from [B, N, patch*patch*C] ordered (row in patch, column in patch, channel)."""
    batch, count, _ = tokens.shape
    side = round(count**0.5)
    x = tokens.reshape(batch, side, side, patch, patch, channels)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(batch, channels, side * patch, side * patch)


class ScalarEmbedder(nn.Module):
    """sinusoid -> linear -> SiLU -> linear: a scalar (time, step size, guidance) to a vector of `width`."""

    def __init__(
        self,
        width: int,
        frequencies: int = 256,
        max_period: float = 10000.0,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.max_period = max_period
        self.precision = precision
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, value: Tensor) -> Tensor:
        """Embed values [B] -> [B, width]."""
        features = sinusoid(value, self.frequencies, self.max_period, self.precision)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """A table of label vectors; the null label, where there is one, is the last row."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, labels: Tensor) -> Tensor:
        """Look labels [B] up -> [B, width]."""
        return self.embedding_table(labels)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), computed in float32, times a weight if `affine`."""

    def __init__(self, width: int, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (1 + scale) + shift; shift and scale [B, D] act on every token, [B, N, D] per token."""
    if shift.ndim == 2:
        shift, scale = shift[:, None], scale[:, None]
    return torch.addcmul(shift, x, 1 + scale)


def adaln(
    x: Tensor,
    modulation: Tensor,
    attention: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    mlp: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
) -> Tensor:
    """Return tokens x [B, N, D] after an adaLN block (arXiv 2212.09748): two gated residual branches (norm, function).

    `modulation` [B, 6 D], or per token [B, 1 or N, 6 D], holds shift, scale and gate of attention, then of the MLP.
    """
    if modulation.ndim == 2:
        modulation = modulation[:, None]
    parts = modulation.chunk(6, dim=-1)
    for (norm, branch), (shift, scale, gate) in zip((attention, mlp), (parts[:3], parts[3:]), strict=True):
        x = torch.addcmul(x, gate, branch(modulate(norm(x), shift, scale)))
    return x


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return rotary positions applied: the adjacent pairs (2i, 2i + 1) of x [..., N, d] turned, in float32.

    `cosine` and `sine` of the pairs' angles, float32 [N, d / 2].
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # which fuses these, and knows no complex numbers
        even, odd = pairs.unbind(-1)
        rotated = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
    else:  # one product in place of seven passes over memory
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cosine, sine))
    return rotated.flatten(-2).to(x.dtype)


class Mlp(nn.Module):
    """Linear, GELU (tanh approximation), linear: keys fc1 and fc2."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to the last axis."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def filling(hidden: int, x: Tensor) -> int:
    """Return how many zeros fill a hidden width up to whole vectors of 8, which products in 16 bits need on CUDA.

    Products of other widths run on kernels of older cards, at a third of the speed.
    """
    return -hidden % 8 if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) else 0


def filled_rows(layer: nn.Linear, zeros: int, halves: int = 1) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of `layer` with `zeros` more outputs at the end of each of its `halves`, all 0."""
    weight = F.pad(layer.weight.unflatten(0, (halves, -1)), (0, 0, 0, zeros)).flatten(0, 1)
    return weight, None if layer.bias is None else F.pad(layer.bias.unflatten(0, (halves, -1)), (0, zeros)).flatten()


class SwiGLU(nn.Module):
    """w3(SiLU(a) b) with a, b the halves of w12(x): keys w12 and w3."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the gated MLP to the last axis."""
        zeros = filling(self.w3.in_features, x)
        joined = F.linear(x, *filled_rows(self.w12, zeros, 2)) if zeros else self.w12(x)
        a, b = joined.chunk(2, dim=-1)
        h = F.silu(a) * b
        return F.linear(h, F.pad(self.w3.weight, (0, zeros)), self.w3.bias) if zeros else self.w3(h)


class GatedMlp(nn.Module):
    """w2(SiLU(w1 x) w3 x): keys w1, w2 and w3, SwiGLU's halves as two layers."""

    def __init__(self, width: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=bias)
        self.w2 = nn.Linear(hidden, width, bias=bias)
        self.w3 = nn.Linear(width, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the gated MLP to the last axis."""
        zeros = filling(self.w2.in_features, x)
        if not zeros:
            return self.w2(F.silu(self.w1(x)) * self.w3(x))
        a, b = (F.linear(x, *filled_rows(layer, zeros)) for layer in (self.w1, self.w3))
        return F.linear(F.silu(a) * b, F.pad(self.w2.weight, (0, zeros)), self.w2.bias)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Return softmax(q k^T scale) v by PyTorch's fused kernel; [B, heads, N, head_dim], scale head_dim^-1/2."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


class FusedQKV(nn.Module):
    """The linear maps of self-attention: one fused qkv, outputs laid out (q, k, v) x heads x head_dim, and proj."""

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v of x [B, N, D], each [B, heads, N, head_dim]."""
        batch, count, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v

    def merge(self, heads: Tensor) -> Tensor:
        """Join the heads [B, heads, N, head_dim] and project to [B, N, D]."""
        return self.proj(heads.transpose(1, 2).flatten(2))


class Attention(FusedQKV):
    """Plain self-attention."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the tokens of x [B, N, D]."""
        return self.merge(attention(*self.split(x)))
