"""From a card to a loaded adapter: families by entry point, weights strictly, device and dtype."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import torch

from bench.adapter import Adapter
from bench.card import ModelCard
from bench.errors import BenchError, unknown
from bench.weights import locate, read_state

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def family_class(family: str) -> type[Adapter]:
    """Return the adapter class of `family` (entry point group `bench.adapters`)."""
    points = {point.name: point for point in entry_points(group="bench.adapters")}
    if family not in points:
        raise unknown("adapter family", family, points)
    loaded = points[family].load()
    if not (isinstance(loaded, type) and issubclass(loaded, Adapter)):
        raise BenchError(
            f"adapter family '{family}': {points[family].value} is not a subclass of bench.adapter.Adapter"
        )
    return loaded


def build_adapter(
    card: ModelCard,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    weights: Path | None = None,
    random_weights: bool = False,
) -> Adapter:
    """Return the adapter of `card`, loaded and on `device`.

    `weights` replaces the card's own file; `random_weights` fills the networks with seeded noise instead. Raises
    BenchError when the weights are absent, damaged or of another variant.
    """
    if card.members:
        names = ", ".join(member.model for member in card.members)
        raise BenchError(f"{card.name} stands for {names}; name one of them")
    adapter = family_class(card.family)(card)
    if random_weights:
        adapter.randomise()
    elif card.weights is not None:
        path = weights or locate(card.weights, card.name)
        extra = {
            role: read_state(locate(source, card.name), source, card.name)
            for role, source in card.extra_weights.items()
        }
        adapter.load(read_state(path, card.weights, card.name), extra)
    return adapter.to(device, DTYPES[dtype])


def parse_dtype(name: str) -> str:
    """Return the canonical name of a dtype (`bf16`, `fp16`, `fp32` are known). Raises BenchError otherwise."""
    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    name = short.get(name, name)
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return name


def parse_device(name: str) -> str:
    """Return a usable device name; `auto` takes the first accelerator. Raises BenchError when it is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:0")) from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise BenchError(f"device '{name}' is not available here; use --device cpu")
    return name
