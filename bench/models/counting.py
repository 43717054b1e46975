"""Network evaluations of a setting, counted before anything is sampled: on networks without memory."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.models.meter import Meter
from bench.models.registry import skeleton

CHEAP = 1_000_000
"""Parameters below which a network on the meta device is run as it is."""

MOST_STEPS = 1000
"""Of a sampler that is run to be counted: it takes seconds."""


class Count(NamedTuple):
    """Evaluations per image, as a run measures them."""

    nfe: float
    guide_nfe: float

    def __str__(self) -> str:
        return f"{self.nfe:g}" + (f" + {self.guide_nfe:g} of the guide" if self.guide_nfe else "")


class Counter:
    """Counts the evaluations of one card's settings by running its sampler on the meta device, where nothing is
    computed."""

    def __init__(self, card: ModelCard) -> None:
        self.adapter = skeleton(card).to("meta")
        if not self.adapter.evaluations_differ:
            for network in filter(None, (self.adapter.network, self.adapter.guide)):
                _shorten(network)

    def count(self, steps: int, cfg: float, settings: Any) -> Count | None:
        """Return the evaluations of `steps` at scale `cfg` with a record of the family's `Settings`.

        None where they depend on values, as those of a solver that chooses its own steps do: only a run tells.
        """
        return count_on_meta(self.adapter, steps, cfg, settings)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Let large networks, which return their input to be counted fast, compute as they are inside the block."""
        networks = [network for network in (self.adapter.network, self.adapter.guide) if network is not None]
        short = [vars(network).pop("forward", None) for network in networks]
        try:
            yield
        finally:
            for network, forward in zip(networks, short, strict=True):
                if forward is not None:
                    network.forward = forward


def count_on_meta(adapter: Adapter, steps: int, cfg: float, settings: Any) -> Count | None:
    """Return what `Counter.count` does, for an adapter on the meta device; None above MOST_STEPS too."""
    declared = adapter.declared_nfe(steps, cfg, settings)
    if declared is not None:
        return Count(declared, 0.0)
    if adapter.host or steps > MOST_STEPS:
        return None
    meter = Meter(adapter)
    labels = torch.zeros(1, dtype=torch.int64, device="meta")
    try:
        with torch.inference_mode(), meter.installed():
            adapter.generate(labels, steps, cfg, NoMemory(), settings)
    except Exception:  # whatever a sampler needs values for, it is not a fault of a plan that it has none
        return None
    return Count(meter.rows, meter.guide_rows)


def _shorten(network: torch.nn.Module) -> None:
    """Let a large network that computes one tensor of x's shape return x."""
    if sum(parameter.numel() for parameter in network.parameters()) < CHEAP:
        return  # cheap as it is, and its output need not be of x's shape
    if inspect.signature(network.forward).return_annotation == "Tensor":  # one of several parts computes
        network.forward = lambda x, *conditions, **named: x


class NoMemory(NoiseSource):
    """Noise without values, for networks on the meta device."""

    def normal(self, shape: Sequence[int], draw: int = 0) -> Tensor:
        """Return a tensor of that shape for one sample."""
        return torch.empty(1, *shape, device="meta")
