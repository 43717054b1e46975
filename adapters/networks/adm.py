"""The ADM U-Net (arXiv 2105.05233) of consistency models, CTM and CAF, made of the blocks of diffusers' `UNet2DModel`.

Diffusers' class gives the same numbers as the authors' network (to 3e-6), so the blocks and the names of their weights
are its own. CTM adds a second time, which has an embedding of its own in every residual block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.contracts.adapter import stripped
from results.errors import BenchError


class ADMUNet(nn.Module):
    """The raw network F on an input that is already scaled; keys as in diffusers' `UNet2DModel`.

    Level l has the width `model_channels` * `channel_mult`[l] and a 2^l-th of the side; those whose 2^l is one of
    `attention_downsample_factors` attend with heads of `num_head_channels`. The time scales and shifts the features of
    a block (`use_scale_shift_norm`) or is added to them. Raises BenchError for what the published networks never have.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_res_blocks: int = 3,
        attention_downsample_factors: Sequence[int] = (2, 4, 8),
        num_head_channels: int = 64,
        num_classes: int | None = None,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        norm_groups: int = 32,
        second_time: bool = False,
    ) -> None:
        from diffusers import UNet2DModel
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        super().__init__()
        if not resblock_updown:
            raise BenchError("ADM U-Net: resblock_updown must be true, as in every published network, found false")
        attends = [2**level in attention_downsample_factors for level in range(len(channel_mult))]
        unet: Any = UNet2DModel(
            sample_size=image_size,
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=tuple(model_channels * multiplier for multiplier in channel_mult),
            layers_per_block=num_res_blocks,
            down_block_types=tuple("AttnDownBlock2D" if one else "ResnetDownsampleBlock2D" for one in attends),
            up_block_types=tuple("AttnUpBlock2D" if one else "ResnetUpsampleBlock2D" for one in reversed(attends)),
            attention_head_dim=num_head_channels,
            num_class_embeds=num_classes or None,
            resnet_time_scale_shift="scale_shift" if use_scale_shift_norm else "default",
            downsample_type="resnet",
            upsample_type="resnet",
            norm_num_groups=norm_groups,
            attn_norm_num_groups=norm_groups if use_scale_shift_norm else None,
        )
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.class_embedding: nn.Module | None = unet.class_embedding
        self.conv_in: nn.Conv2d = unet.conv_in
        self.down_blocks: nn.ModuleList = unet.down_blocks
        self.mid_block = unet.mid_block
        self.up_blocks: nn.ModuleList = unet.up_blocks
        self.conv_norm_out, self.conv_act, self.conv_out = unet.conv_norm_out, unet.conv_act, unet.conv_out
        blocks: list[Any] = [module for module in self.modules() if hasattr(module, "time_emb_proj")]
        if channel_mult[0] != 1:  # diffusers embeds the time in the width of the first level, the authors in C
            self.time_proj = Timesteps(model_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
            self.time_embedding = TimestepEmbedding(model_channels, 4 * model_channels)
            self.class_embedding = nn.Embedding(num_classes, 4 * model_channels) if num_classes else None
            for block in blocks:
                block.time_emb_proj = nn.Linear(4 * model_channels, block.time_emb_proj.out_features)
        if second_time:
            self.time_embedding_s = TimestepEmbedding(model_channels, 4 * model_channels)
            for block in blocks:
                block.time_emb_proj = TwoTimes(block.time_emb_proj)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None, *, time_s: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        x float32 [B, in_channels, H, W]; time float32 [B], as it is embedded; labels int64 [B], which a network without
        classes does not read; time_s float32 [B], the second time, without which its branch is left out, biases and
        all. Returns float32 [B, out_channels, H, W].
        """
        dtype = self.conv_in.weight.dtype
        embedding = self.time_embedding(self.time_proj(time).to(dtype))
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(labels)
        if time_s is not None:
            embedding = torch.cat([embedding, self.time_embedding_s(self.time_proj(time_s).to(dtype))], dim=1)
        h = self.conv_in(x.to(dtype))
        skips = [h]
        for block in self.down_blocks:
            h, outputs = block(h, embedding)
            skips += outputs
        h = self.mid_block(h, embedding)
        for block in self.up_blocks:
            count = len(block.resnets)  # type: ignore[arg-type]
            h = block(h, tuple(skips[-count:]), embedding)
            del skips[-count:]
        output: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(h)))
        return output.float()


class TwoTimes(nn.Module):
    """A block's layer of the time embedding, and beside it one of the second time's."""

    def __init__(self, t: nn.Linear) -> None:
        super().__init__()
        self.t, self.s = t, nn.Linear(t.in_features, t.out_features)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return [B, out] of the activated embeddings side by side, [B, 2 E], or of the first one alone, [B, E]."""
        width = self.t.in_features
        e: Tensor = self.t(embedding[:, :width])
        return e if embedding.shape[1] == width else e + self.s(embedding[:, width:])


# ----------------------------------------------------------------------------
# The authors' names of the weights.

OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "time_embed_s.0": "time_embedding_s.linear_1", "time_embed_s.2": "time_embedding_s.linear_2",
    "label_emb": "class_embedding", "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip
INSIDE = {
    "in_layers.0": "norm1", "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj", "emb_layers_s.1": "time_emb_proj.s",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
    "norm": "group_norm", "qkv": "qkv", "proj_out": "to_out.0",
}  # fmt: skip


def from_upstream(state: Mapping[str, Tensor], levels: int, num_res_blocks: int) -> Mapping[str, Tensor]:
    """Return a state dict under the names of `ADMUNet`: of the authors' names the new ones, of diffusers' themselves.

    `levels` and `num_res_blocks` say how the authors' running numbers of blocks are to be read. Layers of attention
    are split into queries, keys and values.
    """
    state = stripped(state)
    if "input_blocks.0.0.weight" not in state:
        return state
    places, second = _places(state, levels, num_res_blocks), any(".emb_layers_s." in key for key in state)
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        block = re.match(r"(middle_block\.\d+|(?:in|out)put_blocks\.\d+\.\d+)\.(.+)", layer)
        if layer in OUTSIDE:
            named[f"{OUTSIDE[layer]}.{kind}"] = value
        elif block is None or block[1] not in places or block[2] not in INSIDE:
            named[key] = value  # strict loading names it
        else:
            place, own = places[block[1]], INSIDE[block[2]]
            if own == "qkv":
                rows = value.reshape(len(value), -1) if kind == "weight" else value
                for part, third in zip(("to_q", "to_k", "to_v"), rows.chunk(3), strict=True):
                    named[f"{place}.{part}.{kind}"] = third
                continue
            if own == "to_out.0" and kind == "weight":
                value = value.reshape(len(value), -1)
            if own == "time_emb_proj" and second:
                own += ".t"
            named[f"{place}.{own}.{kind}"] = value
    return named


def _places(state: Mapping[str, Tensor], levels: int, count: int) -> dict[str, str]:
    """Return where each of the authors' blocks is: `input_blocks.4.0` is `down_blocks.0.downsamplers.0`, say."""
    places = {
        "middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
    }  # fmt: skip
    index = 1
    for level in range(levels):
        for block in range(count):
            places[f"input_blocks.{index}.0"] = f"down_blocks.{level}.resnets.{block}"
            places[f"input_blocks.{index}.1"] = f"down_blocks.{level}.attentions.{block}"
            index += 1
        places[f"input_blocks.{index}.0"] = f"down_blocks.{level}.downsamplers.0"
        index += 1
    for index in range(levels * (count + 1)):
        level, block = divmod(index, count + 1)
        places[f"output_blocks.{index}.0"] = f"up_blocks.{level}.resnets.{block}"
        attends = f"output_blocks.{index}.1.qkv.weight" in state
        upsampler = f"up_blocks.{level}.upsamplers.0"
        places[f"output_blocks.{index}.1"] = f"up_blocks.{level}.attentions.{block}" if attends else upsampler
        places[f"output_blocks.{index}.2"] = upsampler
    return places
