"""Families of generators: found by entry point, instantiated for a card."""

from __future__ import annotations

import inspect

import torch

from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard
from bench.contracts.plugins import Group
from results.errors import BenchError

ADAPTERS: Group[type[Adapter]] = Group(
    "bench.adapters",
    "adapter family",
    "a subclass of bench.contracts.adapter.Adapter",
    lambda found: isinstance(found, type) and issubclass(found, Adapter),
)


def family_class(family: str) -> type[Adapter]:
    """Return the adapter class of `family` (entry point group `bench.adapters`).

    Raises BenchError for an unknown family, and for one written for the contract before `Adapter.Settings`.
    """
    found = ADAPTERS.load(family)
    for method, arguments in (
        ("generate", "self labels steps cfg noise settings"),
        ("unsupported", "self steps cfg s"),
    ):
        try:
            inspect.signature(getattr(found, method)).bind(*arguments.split())
        except TypeError:
            raise BenchError(
                f"adapter family '{family}': {found.__module__}.{found.__qualname__}.{method} takes no 'settings': it "
                "was written for an earlier contract; declare its sampler settings in a record `Settings` and take it "
                "as the last argument (docs/adding-an-adapter.md), or install the harness version that it was written "
                "for"
            ) from None
    return found


def skeleton(card: ModelCard) -> Adapter:
    """Return the adapter of `card` with its networks on the meta device: facts without memory."""
    with torch.device("meta"):
        return family_class(card.family)(card)


_outlines: dict[int, tuple[ModelCard, Adapter]] = {}


def outline(card: ModelCard) -> Adapter:
    """Return what `skeleton` does, made once in this process: for its facts alone, never to be given weights."""
    if id(card) not in _outlines:
        _outlines[id(card)] = (card, skeleton(card))  # the card is kept, so that its id stays its own
    return _outlines[id(card)][1]
