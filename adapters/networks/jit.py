"""JiT, the pixel transformer (arXiv 2511.13720): LightningDiT's blocks on large patches, with tokens of the class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adapters.networks.imfdit import rotate
from adapters.networks.layers import Float32Buffers, LabelEmbedder, ScalarEmbedder, sincos_table, unpatchify
from adapters.networks.lightningdit import LightningBlock, LightningFinalLayer, feed_forward
from adapters.networks.pmfdit import BottleneckPatchEmbed, plane_rotation
from results.errors import BenchError


class JiTNetwork(Float32Buffers):
    """JiT: its output estimates the clean image.

    Before block `in_context_start`, `in_context_len` tokens of the label are put before the patches; rotary positions
    turn the patches only. `learned_pe` says whether the position table was trained (else it is the fixed one). The
    label table has num_classes + 1 rows, the last one null. Raises BenchError for `rope_2d` = false, which no
    published model has.
    """

    rotation: Tensor
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
        num_classes: int,
        bottleneck_dim: int,
        in_context_len: int = 32,
        in_context_start: int = 4,
        mlp_ratio: float = 4.0,
        rope_2d: bool = True,
        learned_pe: bool = True,
    ) -> None:
        super().__init__()
        if not rope_2d:
            raise BenchError("JiT: rope_2d = false is not supported (no published model has it); set it to true")
        side = input_size // patch_size
        self.patch_size, self.in_channels = patch_size, in_channels
        self.in_context_len, self.in_context_start = in_context_len, in_context_start
        self.x_embedder = BottleneckPatchEmbed(patch_size, in_channels, bottleneck_dim, hidden_size, bias=False)
        if learned_pe:
            self.pos_embed = nn.Parameter(torch.zeros(1, side**2, hidden_size))
        else:
            self.register_buffer("pos_embed", sincos_table(hidden_size, side))
        self.register_buffer("rotation", plane_rotation(side, hidden_size // num_heads), persistent=False)
        self.t_embedder = ScalarEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes + 1, hidden_size)
        self.in_context_posemb = nn.Parameter(torch.zeros(1, in_context_len, hidden_size)) if in_context_len else None
        self.blocks = nn.ModuleList(
            LightningBlock(hidden_size, num_heads, feed_forward(hidden_size, mlp_ratio), qk_norm=True)
            for _ in range(depth)
        )
        self.final_layer = LightningFinalLayer(hidden_size, patch_size**2 * in_channels)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x float32 [B, C, H, W], t float32 [B] (0 is noise), labels int64 [B] -> the clean image, shape of x."""
        y = self.y_embedder(labels)
        c = self.t_embedder(t) + y
        x = self.x_embedder(x)
        x = x + self.pos_embed.to(x.dtype)
        patches = x.shape[1]
        for index, block in enumerate(self.blocks):
            if index == self.in_context_start and self.in_context_posemb is not None:
                x = torch.cat([y[:, None] + self.in_context_posemb, x], dim=1)
            x = block(x, c, self._rotate)
        return unpatchify(self.final_layer(x, c)[:, -patches:], self.patch_size, self.in_channels).float()

    def _rotate(self, x: Tensor) -> Tensor:
        return rotate(x, self.rotation)
