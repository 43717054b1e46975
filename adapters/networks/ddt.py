"""DDT, the decoupled diffusion transformer (arXiv 2504.05741): an encoder that conditions a decoder per token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.layers import (
    Float32Buffers,
    FusedQKV,
    GatedMlp,
    LabelEmbedder,
    RMSNorm,
    ScalarEmbedder,
    adaln,
    attention,
    modulate,
    turned,
)

ROPE_EXTENT = 16.0


class InterleavedRope(Float32Buffers):
    """Rotary positions in which even pairs turn with the column and odd pairs with the row.

    Positions run from 0 to 16 along each axis whatever the number of tokens.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, head_dim: int, side: int) -> None:
        super().__init__()
        quarter = head_dim // 4
        frequencies = 10000.0 ** (-4 * torch.arange(quarter, dtype=torch.float64) / head_dim)
        angles = torch.linspace(0, ROPE_EXTENT, side, dtype=torch.float64)[:, None] * frequencies
        rows = angles[:, None, :].expand(side, side, quarter)
        columns = angles[None, :, :].expand(side, side, quarter)
        pairs = torch.stack([columns, rows], dim=-1).reshape(side * side, head_dim // 2)
        self.register_buffer("cosine", pairs.cos().float(), persistent=False)
        self.register_buffer("sine", pairs.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turn the neighbouring pairs of x [B, heads, N, head_dim]."""
        return turned(x, self.cosine, self.sine)


class DDTAttention(FusedQKV):
    """Self-attention without qkv biases, with weighted RMS norms of q and k before the rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, bias=False)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)

    def forward(self, x: Tensor, rope: InterleavedRope) -> Tensor:
        """Attend over the tokens of x [B, N, D]."""
        q, k, v = self.split(x)
        return self.merge(attention(rope(self.q_norm(q)), rope(self.k_norm(k)), v))


class DDTBlock(nn.Module):
    """adaLN block; the condition [B, 1 or N, D] comes already through SiLU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = DDTAttention(width, heads)
        self.norm2 = RMSNorm(width)
        self.mlp = GatedMlp(width, 8 * width // 3)
        self.adaLN_modulation = nn.Sequential(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, rope: InterleavedRope) -> Tensor:
        """Tokens x [B, N, D] under the condition c."""
        attend = (self.norm1, lambda y: self.attn(y, rope))
        return adaln(x, self.adaLN_modulation(c), attend, (self.norm2, self.mlp))


class DDTFinalLayer(nn.Module):
    """Layer norm modulated per token and a linear map to patch pixels."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """Tokens x [B, N, D] under the condition s [B, N, D] -> [B, N, outputs]."""
        shift, scale = self.adaLN_modulation(s).chunk(2, dim=-1)
        return self.linear(modulate(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale))


class PatchLinear(nn.Module):
    """A linear map of patches; [B, N, C*p*p] (channel, row, column) -> [B, N, D]."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, width)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed the patches."""
        return self.proj(patches.to(self.proj.weight.dtype))


class DDT(nn.Module):
    """DDT: of `num_blocks` blocks the first `num_encoder_blocks` make the condition of the others.

    The label reaches the decoder only through the encoder. `num_groups` is the number of heads. The label table has
    num_classes + 1 rows, the last one null.
    """

    def __init__(
        self,
        *,
        input_size: int,
        patch_size: int,
        in_channels: int,
        hidden_size: int,
        num_blocks: int,
        num_encoder_blocks: int,
        num_groups: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.num_encoder_blocks = num_encoder_blocks
        inputs = in_channels * patch_size**2
        self.x_embedder = PatchLinear(inputs, hidden_size)
        self.s_embedder = PatchLinear(inputs, hidden_size)
        self.t_embedder = ScalarEmbedder(hidden_size, max_period=10.0)
        self.y_embedder = LabelEmbedder(num_classes + 1, hidden_size)
        self.rope = InterleavedRope(hidden_size // num_groups, input_size // patch_size)
        self.blocks = nn.ModuleList(DDTBlock(hidden_size, num_groups) for _ in range(num_blocks))
        self.final_layer = DDTFinalLayer(hidden_size, inputs)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x float32 [B, C, H, W], t float32 [B], labels int64 [B] -> float32, shape of x."""
        folded = F.pixel_unshuffle(x, self.patch_size)
        patches = folded.flatten(2).transpose(1, 2).contiguous()
        time = self.t_embedder(t)[:, None]
        c = F.silu(time + self.y_embedder(labels)[:, None])

        s = self.s_embedder(patches)
        for block in self.blocks[: self.num_encoder_blocks]:
            s = block(s, c, self.rope)
        s = F.silu(time + s)

        h = self.x_embedder(patches)
        for block in self.blocks[self.num_encoder_blocks :]:
            h = block(h, s, self.rope)
        out = self.final_layer(h, s).transpose(1, 2).reshape(folded.shape)
        return F.pixel_shuffle(out, self.patch_size).float()
