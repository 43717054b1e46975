"""From a card to a loaded adapter: families by entry point, weights strictly, device and dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard
from bench.models.compilation import compile_networks
from bench.models.files import autoencoder_sources
from bench.models.registry import family_class
from bench.weights.file import locate, read_state
from results.errors import BenchError, unknown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_adapter(
    card: ModelCard,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    weights: Path | None = None,
    random_weights: bool = False,
    compile: bool = False,
) -> Adapter:
    """Return the adapter of `card`, loaded and on `device`.

    Loaded are its network, its `extra_weights` and, for a latent model, its autoencoder with the latents' statistics.
    `weights` replaces the card's own file; `random_weights` fills the networks with seeded noise instead and needs no
    file at all. `compile` runs the networks through torch.compile. Raises BenchError when a file is absent, altered,
    damaged or of another variant, and when there is no compiler.
    """
    if card.members:
        names = ", ".join(member.model for member in card.members)
        raise BenchError(f"{card.name} stands for {names}; name one of them")
    adapter = family_class(card.family)(card)
    if random_weights:
        adapter.randomise()
    elif card.weights is not None:
        _load(adapter, card, weights or locate(card.weights, card.name))
    elif weights is not None:
        raise BenchError(f"{card.name} has no weights; leave out --weights")
    adapter.to(device, DTYPES[dtype])
    return compile_networks(adapter) if compile else adapter


def _load(adapter: Adapter, card: ModelCard, path: Path) -> None:
    assert card.weights is not None
    extra = {
        role: read_state(locate(source, card.name, role), source, card.name, role)
        for role, source in card.extra_weights.items()
    }
    state = read_state(path, card.weights, card.name)
    with naming_files(card, path):
        adapter.load(state, extra)
    if adapter.autoencoder is not None:
        sources = autoencoder_sources(card)
        paths = {role: locate(source, card.name, role) for role, source in sources.items()}
        states = {role: read_state(paths[role], source, card.name, role) for role, source in sources.items()}
        with naming_files(card, *paths.values()):
            adapter.autoencoder.load(states)


@contextmanager
def naming_files(card: ModelCard, *paths: Path) -> Iterator[None]:
    """Name the files in whatever a family says about them."""
    files = ", ".join(map(str, paths))
    try:
        yield
    except BenchError as error:
        raise BenchError(f"{error} ({files})") from error
    except Exception as error:  # a family's conversion meets the arrays of another variant in its own way
        reason = (str(error).strip().splitlines() or [""])[0]
        raise BenchError(
            f"weights of {card.name} do not fit ({type(error).__name__}: {reason}); is {files} the checkpoint of "
            "another variant?"
        ) from error


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
