"""Pixel MeanFlow, pMF (Lu et al., arXiv 2601.22158): improved MeanFlow on pixels, no autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from adapters.flax_trees import Rule, same, unbatched
from adapters.imeanflow import (
    RULES,
    ImprovedMeanFlow,
    published_names,
    replay_embedded,
    transformer_facts,
)
from adapters.networks.imfdit import GROUPS, mlp_width
from adapters.networks.pmfdit import PmfDiT
from bench.contracts.card import ModelCard
from bench.contracts.recording import Case, Replay

PIXEL_RULES = (
    Rule(r"y_embedder/embedding_table/embedding", "y_embedder.embedding_table.weight", unbatched),
    Rule(r"pos_embed", "pos_embed", same),
    *RULES,
)
"""iMF's table and what differs; the leading axis of the token groups goes for either layout."""

LEFT_OUT = ("v_heads.", "v_final_layer.", "rope_freqs")
"""The training state's auxiliary head, and a buffer that is computed anew."""


def pixel_mlp_width(width: int, ratio: float | str) -> int:
    """Return the hidden width, truncated, and above D = 1024 rounded up to a multiple of 8 (1280: 3413 -> 3416)."""
    hidden = mlp_width(width, ratio)
    return -(-hidden // 8) * 8 if width > 1024 else hidden


class PixelMeanFlow(ImprovedMeanFlow):
    """pMF: iMF's sampler from noise of the card's `noise_scale`, on pixels."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.noise_scale = float(card.architecture["noise_scale"])

    @staticmethod
    def build_network(architecture: Mapping[str, Any]) -> nn.Module:
        """Return the network of a card's or a recording's architecture."""
        return PmfDiT(
            bottleneck_channels=architecture["bottleneck_channels"],
            **transformer_facts(architecture, pixel_mlp_width(architecture["hidden_size"], architecture["mlp_ratio"])),
        )

    def converted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state under the network's own names."""
        state = published_names(state, PIXEL_RULES)
        return {
            key: value.reshape(value.shape[-2:]) if key in GROUPS else value
            for key, value in state.items()
            if not key.startswith(LEFT_OUT)
        }


def replay(case: Case) -> Replay:
    """Return the replay of a pMF recording: calls of kind `network` and `sample`."""
    return replay_embedded(case, PixelMeanFlow)
