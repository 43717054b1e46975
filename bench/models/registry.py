"""Families of generators: found by entry point, instantiated for a card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard, WeightsSource
from bench.contracts.plugins import Group

ADAPTERS: Group[type[Adapter]] = Group(
    "bench.adapters",
    "adapter family",
    "a subclass of bench.contracts.adapter.Adapter",
    lambda found: isinstance(found, type) and issubclass(found, Adapter),
)


@runtime_checkable
class Decoder(Protocol):
    """What the `autoencoder` of a latent family's adapter offers, so that the harness can load it."""

    def sources(self) -> Mapping[str, WeightsSource]:
        """Return the files it needs, by role."""

    def load(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the state dicts of `sources()`, by role."""


def family_class(family: str) -> type[Adapter]:
    """Return the adapter class of `family` (entry point group `bench.adapters`)."""
    return ADAPTERS.load(family)


def skeleton(card: ModelCard) -> Adapter:
    """Return the adapter of `card` with its networks on the meta device: facts without memory."""
    with torch.device("meta"):
        return family_class(card.family)(card)


def decoder_of(adapter: Adapter) -> Decoder | None:
    """Return the adapter's autoencoder, None for a model of pixels."""
    found = getattr(adapter, "autoencoder", None)
    return found if isinstance(found, Decoder) else None
