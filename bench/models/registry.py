"""Families of generators: found by entry point, instantiated for a card."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode
from torch.torch_version import TorchVersion

from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard
from bench.contracts.out_of_process import most_memory
from bench.contracts.plugins import Group
from results.errors import BenchError, one_line

ADAPTERS: Group[type[Adapter]] = Group(
    "bench.adapters",
    "adapter family",
    "a subclass of bench.contracts.adapter.Adapter",
    lambda found: isinstance(found, type) and issubclass(found, Adapter),
)


MOST_PARTS = 30_000
"""Modules and parameters of a model together, several times those of the largest known."""


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
    """Return the adapter of `card` with its networks on the meta device: facts without memory.

    Raises BenchError when the family cannot be built from what the card says.
    """
    if TorchVersion(torch.__version__) < "2.9":
        importlib.import_module("torch._dynamo")  # diffusers does, and that torch cannot under a device
    with torch.device("meta"):
        return _built(card)


_outlines: dict[int, tuple[ModelCard, Adapter]] = {}


def outline(card: ModelCard) -> Adapter:
    """Return what `skeleton` does, made once in this process: for its facts alone, never to be given weights."""
    if id(card) not in _outlines:
        _outlines[id(card)] = (card, skeleton(card))  # the card is kept, so that its id stays its own
    return _outlines[id(card)][1]


class _Unfilled(TorchFunctionMode):
    """Leaves parameters as they are where a constructor would draw them at random: 7 s of a transformer of 675M."""

    def __torch_function__(
        self, function: Any, types: Any, inputs: tuple[Any, ...] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = named or {}
        drawn = inputs[0] if inputs else named.get("tensor")
        if function in DRAWS and isinstance(drawn, nn.Parameter):
            return drawn
        return function(*inputs, **named)


DRAWS = {
    torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_,
    nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.xavier_uniform_,
}  # fmt: skip


def empty(card: ModelCard, *, filled: bool = True) -> Adapter:
    """Return the adapter of `card` with its networks on the CPU, not yet loaded.

    Their parameters are as the constructors fill them or, unless `filled`, partly not filled at all, for whoever writes
    every one of them anyway. Raises BenchError as `skeleton` does, and when they are larger than the machine's memory.
    """
    drawn = outline(card)
    networks = (drawn.network, drawn.guide, drawn.autoencoder)
    size = sum(
        value.numel() * value.element_size()
        for network in networks
        if isinstance(network, nn.Module)
        for value in (*network.parameters(), *network.buffers())
    )
    if not drawn.out_of_process and size > most_memory():
        raise BenchError(
            f"{card.name} takes {size >> 30:,} GiB, more than this machine's memory; take a larger machine, or "
            f"{_remedy(card)}"
        )
    with nullcontext() if filled else _Unfilled():
        return _built(card)


def _built(card: ModelCard) -> Adapter:
    family, count = family_class(card.family), 0

    def counted(module: nn.Module, name: str, part: Any) -> None:
        nonlocal count
        count += 1
        if count > MOST_PARTS:
            raise BenchError(f"{card.name} has more than {MOST_PARTS:,} parts; {_remedy(card)}")

    handles = [register_module_module_registration_hook(counted), register_module_parameter_registration_hook(counted)]
    try:
        return family(card)
    except BenchError:
        raise
    except Exception as error:  # a family meets words that are missing or of another kind in its own way
        raise BenchError(
            f"{card.name}: its family '{card.family}' cannot be built from its card "
            f"({one_line(f'{type(error).__name__}: {error}', 120)}); {_remedy(card)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _remedy(card: ModelCard) -> str:
    return f"correct architecture{f' in {card.path}' if card.path else ''}"
