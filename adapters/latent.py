"""Latent families: what the samples of a network become through the card's autoencoder."""

from __future__ import annotations

from adapters.autoencoders import Autoencoder, build_autoencoder
from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard


class LatentAdapter(Adapter):
    """An adapter whose samples are decoded by the autoencoder of its card (a card without one is of pixels)."""

    autoencoder: Autoencoder

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.autoencoder = build_autoencoder(card.autoencoder)
