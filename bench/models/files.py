"""The files that a model needs: which, where, fetched, verified, added by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.contracts.card import ModelCard, WeightsSource
from bench.models.cards import cards, find_card
from bench.weights.cache import FileCache, cache_directory
from bench.weights.file import NETWORK, FileState, NeededFile, fetch_files, here, model_file, verify_file
from bench.weights.sniff import kind_of
from results.errors import BenchError


def model_files(card: ModelCard) -> list[NeededFile]:
    """Return every file that `card` needs: network, `extra_weights`, autoencoder, latent statistics; a pair's too."""
    if card.members:
        return [file for member in card.members for file in model_files(find_card(member.model))]
    if card.weights is None:
        return []
    own = {NETWORK: card.weights, **card.extra_weights}
    sources = {**own, **autoencoder_sources(card)}
    called = card.path if card.path is not None and card.name not in cards() else card.name
    network_bytes = None if card.parameters is None else 4 * card.parameters
    return [
        model_file(
            card.name,
            role,
            source,
            command=f"bench fetch --model {called}",
            size=network_bytes if role == NETWORK else None,
            licence=card.licence if card.non_commercial and role in own else "",
        )
        for role, source in sources.items()
    ]


_autoencoders: dict[str, dict[str, WeightsSource]] = {}


def autoencoder_sources(card: ModelCard) -> dict[str, WeightsSource]:
    """Return the files of the card's autoencoder by role; its family knows them, so the family is asked.

    A `path` that a card gives for one is relative to the card.
    """
    if card.autoencoder is None:
        return {}
    key = json.dumps([card.family, card.autoencoder], sort_keys=True, default=str)
    if key not in _autoencoders:
        from bench.models.registry import outline

        decoder = outline(card).autoencoder
        _autoencoders[key] = {} if decoder is None else dict(decoder.sources())
    folder = card.path.parent if card.path is not None else Path()
    return {
        role: source if source.path is None else replace(source, path=folder / source.path)
        for role, source in _autoencoders[key].items()
    }


def check_given(path: Path) -> None:
    """Raise BenchError for a path of `--weights` where no checkpoint can be, by its first bytes."""
    if not path.exists():
        raise BenchError(f"--weights: {path} does not exist; correct the path")
    fault = None if path.is_dir() else kind_of(path).fault
    if fault is not None:
        raise BenchError(f"--weights: {path} {fault}")


def weights_digests(card: ModelCard, override: Path | None = None) -> dict[str, str]:
    """Return the sha256 of every file that `card` would load, by role; `override` stands for the network's own.

    Published and pinned digests are taken at their word: loading verifies them. Raises BenchError for a missing file.
    """
    cache = FileCache(cache_directory())
    digests = {}
    for file in model_files(card):
        if file.role == NETWORK and override is not None:
            check_given(override)
            digests[file.role] = cache.digest(override)
        else:
            path = here(file, cache)
            known = file.sha256 or cache.pinned(file.key(cache)).get("sha256")
            digests[file.role] = known or cache.digest(path)
    return digests


def weights_digest(card: ModelCard, override: Path | None = None) -> str | None:
    """Return one sha256 of all that `card` (with the file `override`) would load, None for a model without weights.

    Of a single file it is the file's own; of several (an autoencoder, statistics) that of their digests by role.
    """
    digests = weights_digests(card, override)
    if set(digests) <= {NETWORK}:
        return digests.get(NETWORK)
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def fetch_model(card: ModelCard, told: Callable[[FileState], None] = lambda state: None) -> list[FileState]:
    """Fetch every file of `card` that a client can fetch, telling each.

    Raises BenchError for the first that cannot be had, after all others are here.
    """
    return fetch_files(model_files(card), told)


def verify_model(card: ModelCard) -> list[FileState]:
    """Hash every file of `card` anew and tell which are missing or altered."""
    return [verify_file(file) for file in model_files(card)]
