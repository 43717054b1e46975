"""The DiT of GMFlow and pi-Flow (arXiv 2504.05304, 2510.14974): it predicts a Gaussian mixture of velocities."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.layers import (
    Float32Buffers,
    LabelEmbedder,
    PatchEmbed,
    adaln,
    attention,
    modulate,
    sincos_table,
    sinusoid,
    unpatchify,
)


class MixtureOutput(NamedTuple):
    """Velocities at each position as a mixture of K Gaussians."""

    means: Tensor
    """float32 [B, K, C, H, W]."""
    log_weights: Tensor
    """float32 [B, K, 1, H, W], normalised over K."""
    log_stds: Tensor
    """float32 [B, 1, 1, 1, 1]: log of the standard deviation of a channel, the same everywhere."""


def first_norm(x: Tensor) -> Tensor:
    """Return the layer norm before attention and before the head."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def second_norm(x: Tensor) -> Tensor:
    """Return the layer norm before the feed-forward layers."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)


class TimestepEmbedder(nn.Module):
    """A time to a vector; keys linear_1 and linear_2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(256, width), nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """Embed t [B] -> [B, width]."""
        return self.linear_2(F.silu(self.linear_1(sinusoid(t).to(self.linear_1.weight.dtype))))


class CombinedEmbedder(nn.Module):
    """Sum of the time's vector and the label's."""

    def __init__(self, label_rows: int, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(width)
        self.class_embedder = LabelEmbedder(label_rows, width)

    def forward(self, t: Tensor, labels: Tensor) -> Tensor:
        """Embed t and labels [B] -> [B, width]."""
        return self.timestep_embedder(t) + self.class_embedder(labels)


class SplitAttention(nn.Module):
    """Plain self-attention with one linear map each for q, k and v: keys to_q, to_k, to_v and to_out.0."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the tokens of x [B, N, D]."""
        q, k, v = (to(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](attention(q, k, v).transpose(1, 2).flatten(2))


class Projection(nn.Module):
    """A linear map and tanh GELU; key proj."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to the last axis."""
        return F.gelu(self.proj(x), approximate="tanh")


class GMBlock(nn.Module):
    """adaLN block: keys norm1.linear, attn1, ff.net.0.proj and ff.net.2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({"linear": nn.Linear(width, 6 * width)})
        self.attn1 = SplitAttention(width, heads)
        net = [Projection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]
        self.ff = nn.ModuleDict({"net": nn.Sequential(*net)})

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens x [B, N, D] under the condition c [B, D] after its SiLU."""
        modulation = self.norm1["linear"](c)
        return adaln(x, modulation, (first_norm, self.attn1), (second_norm, self.ff["net"]))


class GMDiT(Float32Buffers):
    """The trunk, with pi-Flow's head: a linear map each for means and weights.

    `time_scale` is the factor of the times (1000 or 1). The label table has num_classes + 1 rows, the last one null.
    """

    positions: Tensor

    def __init__(
        self,
        *,
        input_size: int,
        patch_size: int,
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        num_classes: int,
        num_gaussians: int,
        logstd_inner_dim: int = 1024,
        logstd_layers: int = 2,
        time_scale: float = 1000,
    ) -> None:
        super().__init__()
        self.patch_size, self.channels, self.components = patch_size, in_channels, num_gaussians
        self.time_scale = time_scale
        self.pos_embed = PatchEmbed(patch_size, in_channels, hidden_size)
        self.register_buffer("positions", sincos_table(hidden_size, input_size // patch_size), persistent=False)
        self.emb = CombinedEmbedder(num_classes + 1, hidden_size)
        self.transformer_blocks = nn.ModuleList(GMBlock(hidden_size, num_heads) for _ in range(depth))
        self.proj_out_1 = nn.Linear(hidden_size, 2 * hidden_size)
        widths = [hidden_size, *[logstd_inner_dim] * (logstd_layers - 1), 1]
        layers = [(nn.SiLU(), nn.Linear(*pair)) for pair in pairwise(widths)]
        self._add_head(hidden_size, nn.Sequential(*(part for layer in layers for part in layer)))

    def _add_head(self, width: int, log_stds: nn.Module) -> None:
        cells = self.patch_size**2 * self.components
        self.proj_out_means = nn.Linear(width, cells * self.channels)
        self.proj_out_logweights = nn.Linear(width, cells)
        self.proj_out_logstds = log_stds

    def _head(self, tokens: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return means [B, K C, H, W], log-weights [B, K, H, W], before normalisation, and log-std [B, 1]."""
        means = unpatchify(self.proj_out_means(tokens), self.patch_size, self.components * self.channels)
        weights = unpatchify(self.proj_out_logweights(tokens), self.patch_size, self.components)
        return means, weights, self.proj_out_logstds(c)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> MixtureOutput:
        """x float32 [B, C, H, W], t float32 [B] in [0, 1], labels int64 [B] -> a mixture of velocities, float32."""
        c = self.emb(self.time_scale * t, labels)
        tokens = self.pos_embed(x)
        tokens = tokens + self.positions.to(tokens.dtype)
        for block in self.transformer_blocks:
            tokens = block(tokens, F.silu(c))
        shift, scale = self.proj_out_1(F.silu(c)).chunk(2, dim=-1)
        means, weights, log_std = self._head(modulate(first_norm(tokens), shift, scale), c)
        return MixtureOutput(
            means.float().unflatten(1, (self.components, self.channels)),
            weights.float()[:, :, None].log_softmax(1),
            log_std.float()[:, :, None, None, None],
        )


class FusedGMDiT(GMDiT):
    """The trunk with GMFlow's head: one linear map for all means, then all weights."""

    def _add_head(self, width: int, log_stds: nn.Module) -> None:
        self.proj_out_2 = nn.Linear(width, self.patch_size**2 * self.components * (self.channels + 1))
        self.gm_out = nn.ModuleDict({"logstd_layers": log_stds})

    def _head(self, tokens: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = self.components * self.channels
        both = unpatchify(self.proj_out_2(tokens), self.patch_size, count + self.components)
        return both[:, :count], both[:, count:], self.gm_out["logstd_layers"](c)
