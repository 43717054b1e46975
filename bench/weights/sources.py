"""The files of a model: where each lies, what its digest is, how it gets here."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from bench.contracts.card import ModelCard, WeightsSource, find_card
from bench.weights.cache import FileCache, cache_directory, remove, writing
from bench.weights.fetch import Unreachable, fetch_hub, fetch_url, find_hub, hub_key, hub_path
from results.errors import BenchError, unknown

if TYPE_CHECKING:
    from torch import Tensor

NETWORK = "weights"
"""The role of the sampled network's own file; further roles are the card's `extra_weights` and the autoencoder's."""


@dataclass(frozen=True)
class ModelFile:
    """One file that a model needs, in its role."""

    model: str
    role: str
    source: WeightsSource

    @property
    def title(self) -> str:
        """What the file is called in messages."""
        return f"{self.role} of {self.model}"

    @property
    def key(self) -> str:
        """The name under which the file is pinned; a file of the hub has one, whichever models use it."""
        if self.source.repo is not None:
            return hub_key(self.source.repo, self.source.file or "", self.source.revision)
        if self.direct and self.source.url is not None:
            return self.source.url
        return f"{self.model}:{self.role}"

    @property
    def direct(self) -> bool:
        """Whether `url` is the file itself, rather than a page on which a person finds it."""
        url = self.source.url or ""
        return bool(self.source.file) and urlsplit(url).path.rpartition("/")[2] == self.source.file

    @property
    def by_hand(self) -> bool:
        """Whether only a person can get the file."""
        return self.source.path is None and self.source.repo is None and not self.direct

    def place(self, cache: FileCache) -> Path:
        """Return where the file belongs, whether or not it is there."""
        if self.source.path is not None:
            return self.source.path
        if self.source.repo is not None:
            return hub_path(cache, self.source.repo, self.source.file or "", self.source.revision)
        return cache.place("weights", self.model, self.source.file or self.role)

    def find(self, cache: FileCache) -> Path | None:
        """Return the file's path when it is on this machine."""
        if self.source.repo is not None:
            return find_hub(cache, self.source.repo, self.source.file or "", self.source.revision)
        path = self.place(cache)
        return path if path.exists() else None

    def remedy(self) -> str:
        """Return what gets the file here."""
        if self.source.path is not None:
            return "reinstall the package or give --weights PATH"
        if not self.by_hand:
            return f"fetch with 'bench weights fetch {self.model}'"
        local = " (or give --weights PATH)" if self.role == NETWORK else ""
        return (
            f"download {self.source.file or 'the file'} from {self.source.url} by hand, then run "
            f"'{self.addition}'{local}"
        )

    @property
    def addition(self) -> str:
        """The command that takes a file which a person got."""
        return f"bench weights add {self.model} PATH" + ("" if self.role == NETWORK else f" --role {self.role}")


class FileState(NamedTuple):
    """What was found or done about one file."""

    file: ModelFile
    state: str
    """`shipped`, `here`, `fetched`, `missing` or `altered`."""
    path: Path
    detail: str = ""


def locate(source: WeightsSource, model: str, role: str = NETWORK) -> Path:
    """Return the local path of `source`. Raises BenchError with the command or address that gets it."""
    file = ModelFile(model, role, source)
    path = file.find(FileCache(cache_directory()))
    if path is None:
        where = f" ({source.path})" if source.path is not None else ""
        raise BenchError(f"{file.title}: not on this machine{where}; {file.remedy()}")
    return path


def model_files(card: ModelCard) -> list[ModelFile]:
    """Return every file that `card` needs: network, `extra_weights`, autoencoder, latent statistics; a pair's too."""
    if card.members:
        return [file for member in card.members for file in model_files(find_card(member.model))]
    if card.weights is None:
        return []
    sources = {NETWORK: card.weights, **card.extra_weights, **autoencoder_sources(card)}
    return [ModelFile(card.name, role, source) for role, source in sources.items()]


_autoencoders: dict[str, dict[str, WeightsSource]] = {}


def autoencoder_sources(card: ModelCard) -> dict[str, WeightsSource]:
    """Return the files of the card's autoencoder by role; its family knows them, so the family is asked.

    A `path` that a card gives for one is relative to the card.
    """
    if card.autoencoder is None:
        return {}
    key = json.dumps([card.family, card.autoencoder], sort_keys=True, default=str)
    if key not in _autoencoders:
        from bench.models.registry import decoder_of, skeleton

        decoder = decoder_of(skeleton(card))
        _autoencoders[key] = {} if decoder is None else dict(decoder.sources())
    folder = card.path.parent if card.path is not None else Path()
    return {
        role: source if source.path is None else replace(source, path=folder / source.path)
        for role, source in _autoencoders[key].items()
    }


def read_state(path: Path, source: WeightsSource, model: str, role: str = NETWORK) -> dict[str, Tensor]:
    """Return the state dict that `source` names inside the file at `path`, on the CPU in the file's own dtypes.

    The card's own file must have its published or pinned digest; a file that a person gave may be any. Raises
    BenchError naming the file when it is altered, damaged, lacks the tree or holds code.
    """
    from bench.weights.formats import read_file
    from bench.weights.safe_pickle import CodeRefused

    file = ModelFile(model, role, source)
    cache = FileCache(cache_directory())
    if not path.exists():
        raise BenchError(f"{file.title}: {path} does not exist; correct the path")
    if path == file.find(cache):
        cache.verify(file.title, path, file.key, source.sha256)
    try:
        return read_file(path, source)
    except CodeRefused as error:
        raise BenchError(
            f"{file.title}: {path} is a pickle that names {error}, which is no data; nothing of it was "
            "run, do not use it"
        ) from error
    except BenchError as error:
        raise BenchError(f"{file.title}: {path}: {error}") from error
    except Exception as error:  # the readers meet damaged bytes with exceptions of every kind
        reason = (str(error).strip().splitlines() or [""])[0]
        raise BenchError(
            f"{file.title}: {path} cannot be read as {source.format} ({type(error).__name__}: {reason}); "
            "fetch the file again"
        ) from error


def weights_digests(card: ModelCard, override: Path | None = None) -> dict[str, str]:
    """Return the sha256 of every file that `card` would load, by role; `override` stands for the network's own.

    Published and pinned digests are taken at their word: loading verifies them. Raises BenchError for a missing file.
    """
    cache = FileCache(cache_directory())
    digests = {}
    for file in model_files(card):
        if file.role == NETWORK and override is not None:
            if not override.exists():
                raise BenchError(f"--weights: {override} does not exist; correct the path")
            digests[file.role] = cache.digest(override)
        else:
            path = locate(file.source, file.model, file.role)
            known = file.source.sha256 or cache.pinned(file.key).get("sha256")
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


def fetch_file(file: ModelFile) -> FileState:
    """Bring one file here, verified. Raises BenchError, with the address where only a person can get it."""
    cache = FileCache(cache_directory())
    source, place = file.source, file.place(cache)
    here = file.find(cache)
    if here is not None and (source.path is not None or file.by_hand):
        cache.verify(file.title, here, file.key, source.sha256)
        return FileState(file, "shipped" if source.path is not None else "here", here)
    try:
        if source.repo is not None:
            path = fetch_hub(cache, source.repo, source.file or "", source.revision, source.sha256, file.title)
        elif file.direct and source.url is not None:
            path = fetch_url(cache, source.url, place, source.sha256, file.title)
        else:
            raise BenchError(f"{file.title}: {file.remedy()}")
    except Unreachable as error:
        raise BenchError(f"{error}, or add the file from elsewhere with '{file.addition}'") from error
    return FileState(file, "fetched" if here is None else "here", path)


def fetch_model(card: ModelCard, told: Callable[[FileState], None] = lambda state: None) -> list[FileState]:
    """Fetch every file of `card` that a client can fetch, telling each.

    Raises BenchError for the first that cannot be had, after all others are here.
    """
    states, faults = [], []
    for file in model_files(card):
        try:
            states.append(fetch_file(file))
            told(states[-1])
        except BenchError as error:
            faults.append(error)
    if len(faults) > 1:
        raise BenchError(f"{faults[0]} ({len(faults) - 1} more of {card.name} failed)")
    if faults:
        raise faults[0]
    return states


def verify_model(card: ModelCard) -> list[FileState]:
    """Hash every file of `card` anew and tell which are missing or altered."""
    cache = FileCache(cache_directory())
    return [_verified(file, cache) for file in model_files(card)]


def _verified(file: ModelFile, cache: FileCache) -> FileState:
    path = file.find(cache)
    if path is None:
        return FileState(file, "missing", file.place(cache), file.remedy())
    try:
        digest = cache.verify(file.title, path, file.key, file.source.sha256, fresh=True)
    except BenchError as error:
        return FileState(file, "altered", path, str(error))
    known = file.source.sha256 or cache.pinned(file.key)
    detail = f"sha256 {digest[:12]}" + ("" if known else ", not pinned: it was not fetched by this program")
    return FileState(file, "shipped" if file.source.path is not None else "here", path, detail)


def add_file(card: ModelCard, path: Path, role: str = NETWORK, *, another: bool = False) -> FileState:
    """Copy a file that a person got into the cache, pinned; `another` takes another one than was pinned before.

    Raises BenchError when it is not the published file, or not the one pinned before.
    """
    if card.members:
        names = ", ".join(member.model for member in card.members)
        raise BenchError(f"{card.name} stands for {names}; name one of them")
    files = {file.role: file for file in model_files(card)}
    if role not in files:
        raise unknown(f"file of {card.name}", role, files)
    file, cache = files[role], FileCache(cache_directory())
    if file.source.path is not None:
        raise BenchError(f"{file.title}: shipped with the package ({file.source.path}); nothing to add")
    if not path.exists():
        raise BenchError(f"{path} does not exist; correct the path")
    if not another or file.source.sha256:
        try:
            cache.verify(file.title, path, file.key, file.source.sha256)
        except BenchError as error:
            way = "" if file.source.sha256 else "; --replace takes it all the same"
            raise BenchError(f"{path} is not the file known as {file.title} (sha256 differs){way}") from error
    place = file.place(cache)
    try:
        with cache.lock(file.key), writing(place) as temporary:
            if path.is_dir():
                shutil.copytree(path, temporary)
                remove(place)  # a directory cannot be replaced by renaming
            else:
                shutil.copyfile(path, temporary)
        cache.pin(file.key, place, added=path.name, url=file.source.url)
    except OSError as error:
        raise BenchError(f"{place}: cannot be written ({error.strerror}); check BENCH_CACHE_DIR") from error
    return FileState(file, "here", place, f"sha256 {cache.digest(place)[:12]}")
