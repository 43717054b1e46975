"""Families of generators: found by entry point, instantiated for a card."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard, WeightsSource
from results.errors import BenchError, unknown


@runtime_checkable
class Decoder(Protocol):
    """What the `autoencoder` of a latent family's adapter offers, so that the harness can load it."""

    def sources(self) -> Mapping[str, WeightsSource]:
        """Return the files it needs, by role."""

    def load(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the state dicts of `sources()`, by role."""


def family_class(family: str) -> type[Adapter]:
    """Return the adapter class of `family` (entry point group `bench.adapters`)."""
    points = {point.name: point for point in entry_points(group="bench.adapters")}
    if family not in points:
        raise unknown("adapter family", family, points)
    loaded = points[family].load()
    if not (isinstance(loaded, type) and issubclass(loaded, Adapter)):
        raise BenchError(
            f"adapter family '{family}': {points[family].value} is not a subclass of bench.contracts.adapter.Adapter"
        )
    return loaded


def skeleton(card: ModelCard) -> Adapter:
    """Return the adapter of `card` with its networks on the meta device: facts without memory."""
    with torch.device("meta"):
        return family_class(card.family)(card)


def decoder_of(adapter: Adapter) -> Decoder | None:
    """Return the adapter's autoencoder, None for a model of pixels."""
    found = getattr(adapter, "autoencoder", None)
    return found if isinstance(found, Decoder) else None
