"""Files that a person got: held against the card, looked into, copied into the cache and pinned."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from bench.contracts.card import ModelCard
from bench.models.files import autoencoder_sources, model_files
from bench.models.loading import check_facts, naming_files
from bench.models.registry import ADAPTERS, skeleton
from bench.weights.cache import FileCache, cache_directory
from bench.weights.file import NETWORK, FileState, convert_network, model_file, read_state
from bench.weights.folder import FORMAT as FOLDER
from results.errors import BenchError, one_line, unknown
from results.files import writing


def add_file(card: ModelCard, path: Path, role: str = NETWORK, *, another: bool = False) -> FileState:
    """Copy a file that a person got into the cache, pinned; `another` takes another one than was pinned before.

    Raises BenchError when it is not the published file, not the one pinned before, or does not fit the card's network.
    """
    if card.members:
        names = ", ".join(member.model for member in card.members)
        raise BenchError(f"{card.name} stands for {names}; name one of them")
    files = {file.role: file for file in model_files(card)}
    if role not in files:
        raise unknown(f"file of {card.name}", role, files)
    file, cache = files[role], FileCache(cache_directory())
    if file.path is not None:
        raise BenchError(f"{file.title}: shipped with the package ({file.path}), so there is nothing to add")
    if not path.exists():
        raise BenchError(f"{path} does not exist; correct the path")
    if not another or file.sha256:
        try:
            cache.verify(file.title, path, file.key(cache), file.sha256)
        except BenchError as error:
            way = "" if file.sha256 else "; use --replace to add it anyway"
            raise BenchError(f"{path} is not the file known as {file.title} (its sha256 differs){way}") from error
    check_fits(card, role, path)
    place = file.place(cache)
    try:
        with cache.lock(file.key(cache)), writing(place) as temporary:
            if path.is_dir():
                shutil.copytree(path, temporary)
            else:
                shutil.copyfile(path, temporary)
        cache.pin(file.key(cache), place, added=path.name, url=file.url)
    except OSError as error:
        reason = error.strerror or one_line(str(error), 100)
        raise BenchError(f"{place}: cannot be written ({reason}); check BENCH_CACHE_DIR") from error
    done = convert_network(file, place, cache)
    return FileState(file, "here", place, f"sha256 {cache.digest(place)[:12]}" + (f", {done}" if done else ""))


def check_fits(card: ModelCard, role: str, path: Path) -> None:
    """Raise BenchError unless the names and shapes in the file at `path` are those of the card's network.

    The network is built without memory. Files that are loaded together (a guide, statistics) are looked at together:
    nothing is said while another of them is not here, nor where the family is not installed.
    """
    if card.family not in ADAPTERS.names() or card.weights is None or card.weights.format == FOLDER:
        return
    decoding = autoencoder_sources(card)
    together = decoding if role in decoding else {NETWORK: card.weights, **card.extra_weights}
    cache = FileCache(cache_directory())
    paths = {other: model_file(card.name, other, source).find(cache) for other, source in together.items()} | {
        role: path
    }
    present = {other: found for other, found in paths.items() if found is not None}
    if len(present) < len(paths):
        return
    states = {other: read_state(found, together[other], card.name, other) for other, found in present.items()}
    adapter = skeleton(card)
    with naming_files(card, path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says of each tensor that nothing is copied
        if role in decoding:
            assert adapter.autoencoder is not None
            adapter.autoencoder.load(states)
        else:
            state = states.pop(NETWORK)
            check_facts(card, state, states)
            adapter.load(state, states)
