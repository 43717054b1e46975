"""From a card to a loaded adapter: families by entry point, weights strictly, device and dtype."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard
from bench.contracts.out_of_process import WorkerAdapter
from bench.models.compilation import compile_networks
from bench.models.environments import environment_python
from bench.models.files import autoencoder_sources
from bench.models.registry import empty, skeleton
from bench.weights.cache import FileCache, cache_directory
from bench.weights.file import NETWORK, here, locate, model_file, read_state
from bench.weights.folder import FORMAT as FOLDER
from bench.weights.folder import INDEX
from bench.weights.holders import NetworkState
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
    if card.weights is not None and card.weights.format == FOLDER and not random_weights:
        adapter = skeleton(card)
        load_pipeline(adapter, card, weights)
        adapter.to(device, DTYPES[dtype])
        return compile_networks(adapter) if compile else adapter
    adapter = empty(card, filled=not random_weights and card.weights is None)
    if isinstance(adapter, WorkerAdapter):
        _place(adapter, card, weights, random_weights)
    elif random_weights:
        adapter.randomise()
    elif card.weights is not None:
        _load(adapter, card, weights or locate(card.weights, card.name))
    elif weights is not None:
        raise BenchError(f"{card.name} has no weights; leave out --weights")
    adapter.to(device, DTYPES[dtype])
    if compile and adapter.out_of_process:
        raise BenchError(f"{card.name} is sampled by a worker, which is not compiled here; leave out --compile")
    return ready(adapter, compile=compile)


def ready(adapter: Adapter, *, compile: bool) -> Adapter:
    """Return an adapter, loaded and on its device, in the layout that the device is fast in, compiled if asked."""
    if adapter.device.type == "cuda" and isinstance(adapter.autoencoder, nn.Module):
        adapter.autoencoder.to(memory_format=torch.channels_last)  # convolutions on tensor cores take no other
    return compile_networks(adapter) if compile else adapter


def _place(adapter: WorkerAdapter, card: ModelCard, weights: Path | None, random_weights: bool) -> None:
    """Tell a worker its interpreter and where its verified files lie."""
    adapter.python = environment_python(card)
    if random_weights:
        adapter.randomise()
    elif card.weights is not None:
        sources = {NETWORK: card.weights, **card.extra_weights}
        found = {role: locate(source, card.name, role) for role, source in sources.items() if role != NETWORK}
        adapter.files = {NETWORK: weights or locate(card.weights, card.name), **found}
    elif weights is not None:
        raise BenchError(f"{card.name} has no weights; leave out --weights")


def _load(adapter: Adapter, card: ModelCard, path: Path) -> None:
    assert card.weights is not None
    extra = {
        role: read_state(locate(source, card.name, role), source, card.name, role)
        for role, source in card.extra_weights.items()
    }
    state = read_state(path, card.weights, card.name)
    with naming_files(card, path):
        check_facts(card, state, extra)
        adapter.load(state, extra)
    if adapter.autoencoder is not None:
        sources = autoencoder_sources(card)
        paths = {role: locate(source, card.name, role) for role, source in sources.items()}
        states = {role: read_state(paths[role], source, card.name, role) for role, source in sources.items()}
        with naming_files(card, *paths.values()):
            adapter.autoencoder.load(states)


def load_pipeline(adapter: Adapter, card: ModelCard, folder: Path | None) -> None:
    """Fill `adapter` from the folder of a pipeline, verified, and from the card's `extra_weights`.

    `folder` replaces the card's own. Raises BenchError likewise.
    """
    assert card.weights is not None
    cache = FileCache(cache_directory())
    if folder is None:
        file = model_file(card.name, NETWORK, card.weights)
        folder = here(file, cache)
        cache.verify(file.title, folder, file.key(cache), card.weights.sha256)
    if not folder.is_dir():
        raise BenchError(f"--weights: {folder} is not the folder of a pipeline; give the folder that holds {INDEX}")
    extra = {
        role: read_state(locate(source, card.name, role), source, card.name, role)
        for role, source in card.extra_weights.items()
    }
    adapter.load_folder(folder, extra)


def check_facts(
    card: ModelCard, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]] | None = None
) -> None:
    """Raise BenchError where a pickled network was built with other words than the card's architecture says.

    Shapes tell most variants apart; a flag such as TVM's `do_scale_param` or IMM's `temb_type` changes none. A word
    fits when one of the two begins with the other (`SongUNet`, `SongUNet_EncoderDecoder`).
    """
    architecture = card.architecture
    parts: list[tuple[str, Mapping[str, Tensor], Any]] = [("", state, architecture)]
    parts += [(f" ({role})", found, architecture.get(role)) for role, found in (extra or {}).items()]
    for part, found, words in parts:
        if not isinstance(found, NetworkState) or not isinstance(words, Mapping):
            continue
        facts = {**found.facts, "class_name": found.class_name}
        differing = [
            f"{key} {facts[key]!r} where the card says {value!r}"
            for key, value in words.items()
            if key in facts and value is not None and not _same_fact(facts[key], value)
        ]
        if differing:
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise BenchError(
                f"weights of {card.name}{part} do not fit: the network in the file was built with "
                f"{', '.join(differing[:5])}{more}; is it the checkpoint of another variant?"
            )


def _same_fact(found: Any, stated: Any) -> bool:
    if isinstance(found, str) and isinstance(stated, str):
        return found.startswith(stated) or stated.startswith(found)
    if isinstance(found, list) and isinstance(stated, (list, tuple)):
        return found == list(stated)
    return bool(found == stated) or not isinstance(found, (bool, int, float, list)) or isinstance(stated, Mapping)


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


def parse_device(name: str, *, elsewhere: bool = False) -> str:
    """Return a usable device name; `auto` takes the first accelerator. Raises BenchError when it is not there.

    `elsewhere`: the name is for another machine, where it will be read again.
    """
    if name == "auto" and elsewhere:
        return name
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:0")) from error
    if device.type not in ("cpu", "cuda"):
        raise BenchError(f"device '{name}': models and judges run on cpu and cuda alone; use --device cpu")
    if (
        not elsewhere
        and device.type == "cuda"
        and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count())
    ):
        raise BenchError(f"device '{name}' is not available here; use --device cpu")
    return name
