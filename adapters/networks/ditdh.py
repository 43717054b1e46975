"""DiT-DH, RAE's transformer (arXiv 2510.11690): a trunk whose output conditions a shallow, wide head per token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.layers import Float32Buffers, LabelEmbedder, PatchEmbed, sincos_table, unpatchify
from adapters.networks.lightningdit import LightningBlock, LightningFinalLayer, Rope, feed_forward
from results.errors import BenchError

FREQUENCIES = 256


class FourierEmbedder(Float32Buffers):
    """linear(SiLU(linear([sin 2 pi t W, cos 2 pi t W]))) with random fixed frequencies W that the checkpoint holds."""

    W: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(0)
        self.register_buffer("W", torch.randn(FREQUENCIES, generator=generator, device="cpu"))
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times [B] -> [B, width]."""
        # Multiplied in the published order: the angles are large, and float32 rounds each product.
        angles = t.float()[:, None] * self.W * 2 * math.pi
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        embedding: Tensor = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        return embedding


class DiTDH(nn.Module):
    """DiT-DH. `hidden_size`, `depth` and `num_heads` are pairs (trunk, head); one number stands for both.

    The trunk sees time and label; the head sees the same noisy input again, and of the label only what the trunk makes
    of it. A block applies SiLU to a condition that has been through SiLU already, as published. `scalars` names the
    embedders of times in argument order (MF-RAE has `r_embedder` too, which embeds t - r). With `class_dropout_prob`
    above 0 the label table has a last row for the null label, num_classes. Raises BenchError for options that no
    published model has and that cannot be run (`wo_shift`, unequal patches).
    """

    pos_embed: Tensor

    def __init__(
        self,
        *,
        input_size: int,
        in_channels: int,
        hidden_size: Sequence[int] | int,
        depth: Sequence[int],
        num_heads: Sequence[int] | int,
        num_classes: int,
        patch_size: Sequence[int] | int = 1,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        use_qknorm: bool = False,
        use_swiglu: bool = True,
        use_rope: bool = True,
        use_rmsnorm: bool = True,
        wo_shift: bool = False,
        use_pos_embed: bool = True,
        scalars: Sequence[str] = ("t_embedder",),
    ) -> None:
        super().__init__()
        if wo_shift:
            raise BenchError("DiT-DH: wo_shift = true is not supported (no published model has it); set it to false")
        (trunk, head), (trunk_heads, head_heads) = _pair(hidden_size), _pair(num_heads)
        trunk_patch, patch = _pair(patch_size)
        if trunk_patch != patch:
            raise BenchError(f"DiT-DH: patch_size must be the same for trunk and head, found {list(_pair(patch_size))}")
        side = input_size // patch
        self.patch_size = patch
        self.in_channels = in_channels
        self.trunk_depth = depth[0]
        self.s_embedder = PatchEmbed(patch, in_channels, trunk)
        self.x_embedder = PatchEmbed(patch, in_channels, head)
        self.s_projector = nn.Linear(trunk, head) if trunk != head else nn.Identity()
        self.scalars = tuple(scalars)
        for name in self.scalars:
            self.add_module(name, FourierEmbedder(trunk))
        self.y_embedder = LabelEmbedder(num_classes + (class_dropout_prob > 0), trunk)
        if use_pos_embed:
            self.register_buffer("pos_embed", sincos_table(trunk, side))
        else:
            self.register_buffer("pos_embed", torch.zeros(1, 1, trunk), persistent=False)
        self.enc_feat_rope = Rope(trunk // trunk_heads, side) if use_rope else nn.Identity()
        self.dec_feat_rope = Rope(head // head_heads, side) if use_rope else nn.Identity()
        shapes = [(trunk, trunk_heads)] * depth[0] + [(head, head_heads)] * depth[1]
        self.blocks = nn.ModuleList(
            LightningBlock(
                width, heads, feed_forward(width, mlp_ratio, use_swiglu), rms_norm=use_rmsnorm, qk_norm=use_qknorm
            )
            for width, heads in shapes
        )
        self.final_layer = LightningFinalLayer(head, patch**2 * in_channels, use_rmsnorm)

    def forward(self, x: Tensor, *conditions: Tensor) -> Tensor:
        """x float32 [B, C, H, W]; `conditions`: times float32 [B] in [0, 1], then labels int64 [B] -> shape of x."""
        *times, labels = conditions
        vectors = [self.get_submodule(name)(t) for name, t in zip(self.scalars, times, strict=True)]
        time = sum(vectors[1:], vectors[0])[:, None]
        c = F.silu(time + self.y_embedder(labels)[:, None])

        s = self.s_embedder(x)
        s = s + self.pos_embed.to(s.dtype)
        for block in self.blocks[: self.trunk_depth]:
            s = block(s, c, self.enc_feat_rope)
        s = self.s_projector(F.silu(time + s))

        h = self.x_embedder(x)
        for block in self.blocks[self.trunk_depth :]:
            h = block(h, s, self.dec_feat_rope)
        return unpatchify(self.final_layer(h, s), self.patch_size, self.in_channels).float()


def _pair(value: Sequence[int] | int) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second
