"""The diffusion transformer (DiT, arXiv 2212.09748) as SiT, MeanFlow, SoFlow and UCGM's SiT use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.layers import (
    Attention,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    RMSNorm,
    ScalarEmbedder,
    adaln,
    modulate,
    sincos_table,
    unpatchify,
)
from results.errors import BenchError

EPS = 1e-6
Normalise = Callable[[Tensor], Tensor]


class NormedAttention(Attention):
    """Self-attention whose q and k have RMS norms with weights, one for all heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v of x [B, N, D], each [B, heads, N, head_dim], q and k normalised."""
        q, k, v = super().split(x)
        return self.q_norm(q), self.k_norm(k), v


class DiTBlock(nn.Module):
    """adaLN block: six modulations of the condition, in the order shift, scale, gate for attention, then MLP."""

    def __init__(
        self, width: int, heads: int, hidden: int, qk_norm: bool, norm: Normalise, modulation_norm: Normalise
    ) -> None:
        super().__init__()
        self.attn = NormedAttention(width, heads) if qk_norm else Attention(width, heads)
        self.mlp = Mlp(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.norm, self.modulation_norm = norm, modulation_norm

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens x [B, N, D] under the condition c [B, D]."""
        modulation = self.modulation_norm(self.adaLN_modulation(c).unflatten(-1, (6, -1))).flatten(-2)
        return adaln(x, modulation, (self.norm, self.attn), (self.norm, self.mlp))


def plain_norm(x: Tensor) -> Tensor:
    """Return the layer norm of x without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def plain_rms(x: Tensor) -> Tensor:
    """Return the RMS norm of x without weights, computed in float32."""
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


def as_is(x: Tensor) -> Tensor:
    """Return x: no norm."""
    return x


class FinalLayer(nn.Module):
    """Modulated norm and a linear map to patch pixels."""

    def __init__(self, width: int, outputs: int, norm: Normalise, modulation_norm: Normalise) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.norm, self.modulation_norm = norm, modulation_norm

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens x [B, N, D] under the condition c [B, D] -> [B, N, outputs]."""
        shift, scale = self.modulation_norm(self.adaLN_modulation(c).unflatten(-1, (2, -1))).unbind(-2)
        return self.linear(modulate(self.norm(x), shift, scale))


class DiT(nn.Module):
    """A DiT conditioned on one or more scalars and a label; keys as in the published SiT checkpoints.

    `scalars` names the scalar embedders in argument order (`t_embedder`, and for MeanFlow `r_embedder`, which embeds
    t - r). `label_rows` counts the rows of the label table, null row included; without rows there is no table and
    labels are ignored. `out_channels` defaults to the input's. `qk_norm` adds RMS norms of q and k, with weights.
    `rms_norm` puts RMS norms in place of the layer norms, `modulation_norm` one on each part of a modulation;
    `precision` is that of the scalars' angles.
    """

    pos_embed: Tensor

    def __init__(
        self,
        *,
        input_size: int,
        patch_size: int,
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        label_rows: int,
        mlp_ratio: float = 4.0,
        out_channels: int | None = None,
        scalars: Sequence[str] = ("t_embedder",),
        qk_norm: bool = False,
        rms_norm: bool = False,
        modulation_norm: bool = False,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.out_channels = out_channels or in_channels
        self.scalars = tuple(scalars)
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.register_buffer("pos_embed", sincos_table(hidden_size, input_size // patch_size))
        for name in self.scalars:
            self.add_module(name, ScalarEmbedder(hidden_size, precision=precision))
        self.y_embedder = LabelEmbedder(label_rows, hidden_size) if label_rows else None
        hidden = int(hidden_size * mlp_ratio)
        norms = (plain_rms if rms_norm else plain_norm, plain_rms if modulation_norm else as_is)
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads, hidden, qk_norm, *norms) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * self.out_channels, *norms)

    def forward(self, x: Tensor, *conditions: Tensor) -> Tensor:
        """x float32 [B, C, H, W]; `conditions`: the scalars [B] in order, then labels int64 [B] -> float32."""
        *values, labels = conditions
        vectors = [self.get_submodule(name)(value) for name, value in zip(self.scalars, values, strict=True)]
        c = sum(vectors) if self.y_embedder is None else sum(vectors, self.y_embedder(labels))
        return self.conditioned(x, [c] * len(self.blocks), c)

    def conditioned(self, x: Tensor, conditions: Sequence[Tensor], last: Tensor) -> Tensor:
        """Return the output for x [B, C, H, W] under each block's condition and the final layer's, all [B, D]."""
        x = self.x_embedder(x)
        x = x + self.pos_embed.to(x.dtype)
        for block, c in zip(self.blocks, conditions, strict=True):
            x = block(x, c)
        return unpatchify(self.final_layer(x, last), self.patch_size, self.out_channels).float()


class DecoupledDiT(DiT):
    """Decoupled MeanFlow's DiT (arXiv 2510.24474): the first `dmf_depth` blocks see t, the others and the end see r.

    Both times go through the one embedder. Raises BenchError for a `dmf_depth` of more blocks than there are.
    """

    t_embedder: ScalarEmbedder

    def __init__(self, *, dmf_depth: int, **facts: Any) -> None:
        super().__init__(**facts)
        if not 0 <= dmf_depth <= len(self.blocks):
            raise BenchError(f"DecoupledDiT: dmf_depth must lie in 0..{len(self.blocks)}, found {dmf_depth}")
        self.dmf_depth = dmf_depth

    def forward(self, x: Tensor, *conditions: Tensor) -> Tensor:
        """x float32 [B, C, H, W], t and r float32 [B], labels int64 [B] -> u(x, t, r) float32 [B, C, H, W]."""
        t, r, labels = conditions
        assert self.y_embedder is not None
        y = self.y_embedder(labels)
        encoder, decoder = self.t_embedder(t) + y, self.t_embedder(r) + y
        depth = len(self.blocks) - self.dmf_depth
        return self.conditioned(x, [encoder] * self.dmf_depth + [decoder] * depth, decoder)
