"""The files of a model: where each lies, what its digest is, how it gets here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from bench.contracts.card import WeightsSource
from bench.weights.cache import FileCache, cache_directory
from bench.weights.fetch import Unreachable, fetch_hub, fetch_url, find_hub, hub_key, hub_path
from results.errors import BenchError

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


def read_state(path: Path, source: WeightsSource, model: str, role: str = NETWORK) -> dict[str, Tensor]:
    """Return the state dict that `source` names inside the file at `path`, on the CPU in the file's own dtypes.

    The card's own file must have its published or pinned digest; a file that a person gave may be any. Raises
    BenchError naming the file when it is altered, damaged, lacks the tree or holds code.
    """
    from bench.weights.formats import NotACheckpoint, read_file
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
    except NotACheckpoint as error:
        raise BenchError(f"{file.title}: {path} {error}") from error
    except BenchError as error:
        raise BenchError(f"{file.title}: {path}: {error}") from error
    except Exception as error:  # the readers meet damaged bytes with exceptions of every kind
        raise BenchError(
            f"{file.title}: {path} cannot be read as {source.format} (damaged: {type(error).__name__}); fetch the file "
            "again"
        ) from error


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
