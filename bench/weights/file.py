"""One file that a model or a judge needs: where it lies, what its digest is, how it gets here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import urlsplit

from bench.contracts.card import WeightsSource
from bench.weights import folder as folders
from bench.weights.cache import FileCache, cache_directory
from bench.weights.download import Progress, Remote, Unreachable, quiet
from bench.weights.fetch import NotOnHub, ask_hub, ask_server, fetch_hub, fetch_url, find_hub, hub_key, hub_path
from results.errors import BenchError

if TYPE_CHECKING:
    from torch import Tensor

Found = TypeVar("Found")
NETWORK = "weights"
"""The role of the sampled network's own file; further roles are the card's `extra_weights` and the autoencoder's."""


@dataclass(frozen=True)
class NeededFile:
    """One file that a model or a judge needs; `path`, `repo` or `url` says where it comes from.

    Attributes:
        role: what it is to its owner: `weights`, `autoencoder`, `tokenizer` ...
        path: a local file, already resolved: shipped with a package, or named by a protocol.
        repo: Hugging Face hub id.
        names: the file's name in the repository or the download; of alternatives the first that there is.
        revision: commit, tag or branch of the repository.
        url: the file itself where it ends in the name, else the page where a person finds it.
        sha256: expected digest or its beginning.
        size: bytes, about, for a machine that cannot ask.
        owner: whose it is: a model's name, or `judge 'NAME'`.
        command: what fetches it.
        folder: where in the cache it lies when it does not come from the hub.
        elsewhere: folders in which other programs keep the same download.
        addition: what takes a file that a person got; empty where nothing does.
        source: what the card says of it; None for files that are no weights of a model.
        licence: terms to be accepted before the file is fetched; empty where there are none to accept.
    """

    role: str
    path: Path | None = None
    repo: str | None = None
    names: tuple[str, ...] = ()
    revision: str | None = None
    url: str | None = None
    sha256: str | None = None
    size: int | None = None
    owner: str = ""
    command: str = ""
    folder: tuple[str, ...] = ()
    elsewhere: tuple[Path, ...] = ()
    addition: str = ""
    source: WeightsSource | None = None
    licence: str = ""

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        return f"{self.repo}/{' or '.join(self.names)}" if self.repo is not None else self.url or self.name

    @property
    def title(self) -> str:
        """What the file is called in messages."""
        return f"{self.role} of {self.owner}" if self.owner else self.role

    @property
    def name(self) -> str:
        """The file's first name, the role where it has none."""
        return self.names[0] if self.names else self.role

    @property
    def direct(self) -> bool:
        """Whether `url` is the file itself, rather than a page on which a person finds it."""
        return bool(self.names) and urlsplit(self.url or "").path.rpartition("/")[2] == self.name

    @property
    def by_hand(self) -> bool:
        """Whether only a person can get the file."""
        return self.path is not None or (self.repo is None and not self.direct)

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        return f"hub {self.repo}" if self.repo is not None else str(self)

    @property
    def is_folder(self) -> bool:
        """Whether it is the folder of a pipeline on the hub, which its name stands for."""
        return self.repo is not None and self.source is not None and self.source.format == folders.FORMAT

    def key(self, cache: FileCache) -> str:
        """Return the name under which the file is pinned; a file of the hub has one, whoever needs it."""
        if self.repo is not None:
            keys = [hub_key(self.repo, name, self.revision) for name in self.names]
            return next((key for key in keys if cache.pinned(key)), keys[0])
        return self.url if self.direct and self.url is not None else f"{self.owner}:{self.role}"

    def place(self, cache: FileCache) -> Path:
        """Return where the file belongs, whether or not it is there; of the hub's files, where a person's copy does."""
        if self.path is not None:
            return self.path
        if self.is_folder:
            return folders.added_folder(cache, str(self.repo), self.revision)
        if self.repo is not None:
            return hub_path(cache, self.repo, self.name, self.revision)
        return cache.place(*self.folder, self.name)

    def find(self, cache: FileCache) -> Path | None:
        """Return the file's path when it is on this machine. Never downloads."""
        if self.is_folder:
            return folders.find_folder(cache, str(self.repo), self.revision)
        if self.path is None and self.repo is not None:
            found = (find_hub(cache, self.repo, name, self.revision) for name in self.names)
            return next((path for path in found if path is not None), None)
        places = [self.place(cache), *(folder / self.name for folder in self.elsewhere)]
        return next((path for path in places if path.exists()), None)

    def remedy(self) -> str:
        """Return what gets the file here."""
        if self.path is not None:
            return self.addition or "reinstall the package or give --weights PATH"
        if not self.by_hand:
            return f"fetch with '{self.command}'"
        local = " (or give --weights PATH)" if self.role == NETWORK else ""
        return f"download {self.name} from {self.url} by hand, then run '{self.addition}'{local}"


def model_file(
    model: str, role: str, source: WeightsSource, *, command: str = "", size: int | None = None, licence: str = ""
) -> NeededFile:
    """Return the file `source` of a model, in its role."""
    return NeededFile(
        role,
        path=source.path,
        repo=source.repo,
        names=(source.file,) if source.file else (),
        revision=source.revision,
        url=source.url,
        sha256=source.sha256,
        size=source.size or size,
        owner=model,
        command=command or f"bench fetch --model {model}",
        folder=("weights", model),
        source=source,
        licence=licence,
        addition=""
        if source.path is not None
        else f"bench weights add {model} PATH" + ("" if role == NETWORK else f" --role {role}"),
    )


def size_text(count: int | None) -> str:
    """Return a number of bytes for people."""
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


class FileState(NamedTuple):
    """What was found or done about one file."""

    file: NeededFile
    state: str
    """`shipped`, `here`, `fetched`, `missing` or `altered`."""
    path: Path
    detail: str = ""


def here(file: NeededFile, cache: FileCache) -> Path:
    """Return the path of a file on this machine. Raises BenchError, with the remedy, when it is missing."""
    path = file.find(cache)
    if path is None:
        where = f" ({file.path})" if file.path is not None else ""
        raise BenchError(f"{file.title}: not on this machine{where}; {file.remedy()}")
    return path


def locate(source: WeightsSource, model: str, role: str = NETWORK) -> Path:
    """Return the local path of `source`, which `read_state` verifies.

    Raises BenchError with the command or address that gets it.
    """
    return here(model_file(model, role, source), FileCache(cache_directory()))


def read_state(path: Path, source: WeightsSource, model: str, role: str = NETWORK) -> dict[str, Tensor]:
    """Return the state dict that `source` names inside the file at `path`, on the CPU in the file's own dtypes.

    The card's own file must have its published or pinned digest; a file that a person gave may be any. Of a pickled
    network the safetensors form is read that fetching made. Raises BenchError naming the file when it is altered,
    damaged, lacks the tree or holds code.
    """
    from bench.weights.conversion import converted
    from bench.weights.formats import read_file

    file = model_file(model, role, source)
    cache = FileCache(cache_directory())
    if not path.exists():
        raise BenchError(f"{file.title}: {path} does not exist; correct the path")
    if path == file.find(cache):
        digest = cache.verify(file.title, path, file.key(cache), source.sha256)
        form = converted(source, cache, digest)
        if form.exists():
            cache.verify(file.title, form, f"converted:{form.name}", None)
            path = form
    with reading(file.title, path, source.format):
        return read_file(path, source)


@contextmanager
def reading(title: str, path: Path, format: str) -> Iterator[None]:
    """Turn whatever reading the checkpoint at `path` runs into to one line that names it."""
    from bench.weights.formats import NotACheckpoint
    from bench.weights.opcodes import CodeRefused

    named = f"{title}: " if title else ""
    try:
        yield
    except CodeRefused as error:
        raise BenchError(
            f"{named}{path} is a pickle that names {error}, which is not data; nothing in it was run, do not use it"
        ) from error
    except NotACheckpoint as error:
        raise BenchError(f"{named}{path} {error}") from error
    except BenchError as error:
        raise BenchError(f"{named}{path}: {error}") from error
    except Exception as error:  # the readers meet damaged bytes with exceptions of every kind
        raise BenchError(
            f"{named}{path} cannot be read as {format} (damaged: {type(error).__name__}); fetch the file again"
        ) from error


def ask(file: NeededFile) -> Remote:
    """Return what the server of a file says of it, first of all its size. Raises BenchError when it does not answer."""
    repo = file.repo
    if file.is_folder:
        return Remote(f"{repo}", file.size, None)
    if repo is None:
        return ask_server(file.url or "", file.title)
    return _first_name(file.names, lambda name: ask_hub(repo, name, file.revision, file.title))


def fetch_file(file: NeededFile, cache: FileCache | None = None, progress: Progress = quiet) -> FileState:
    """Bring one file here, verified. Raises BenchError, with the address where only a person can get it."""
    cache = cache or FileCache(cache_directory())
    before = file.find(cache)
    if file.by_hand:
        path = here(file, cache)
        cache.verify(file.title, path, file.key(cache), file.sha256)
        return FileState(file, "shipped" if file.path is not None else "here", path, convert_network(file, path, cache))
    try:
        if file.is_folder:
            path = folders.fetch_folder(cache, str(file.repo), file.revision, file.title)
        elif file.repo is not None:
            path = _fetch_alternative(file, cache, progress)
        else:
            path = fetch_url(cache, str(file.url), before or file.place(cache), file.sha256, file.title, progress)
    except Unreachable as error:
        way = f", or add the file from elsewhere with '{file.addition}'" if file.addition else ""
        raise BenchError(f"{error}{way}") from error
    return FileState(file, "fetched" if before is None else "here", path, convert_network(file, path, cache))


def convert_network(file: NeededFile, path: Path, cache: FileCache) -> str:
    """Convert a pickled network that is here to safetensors, once, and return what was done; nothing for other files.

    What is loaded from then on is the converted form; the published file stays beside it, for its digest. Raises
    BenchError for a file that cannot be read.
    """
    from bench.weights.conversion import convert, converted, is_pickled_network

    if file.source is None:
        return ""
    with reading(file.title, path, file.source.format):
        if not is_pickled_network(path):
            return ""
    form = converted(file.source, cache, cache.digest(path))
    with cache.lock(f"converted:{form.name}"):
        if form.exists():
            return ""
        with reading(file.title, path, file.source.format):
            found = convert(path, form, file.source)
        cache.pin(f"converted:{form.name}", form, converted=path.name)
    return f"a pickled network, converted to safetensors: {found}"


def fetch_files(
    files: Iterable[NeededFile],
    told: Callable[[FileState], None] = lambda state: None,
    progress: Callable[[NeededFile], Progress] = lambda file: quiet,
) -> list[FileState]:
    """Fetch every file that a client can fetch, telling each.

    Raises BenchError for the first that cannot be had, after all others are here.
    """
    states, faults = [], []
    for file in files:
        try:
            states.append(fetch_file(file, progress=progress(file)))
            told(states[-1])
        except BenchError as error:
            faults.append(error)
    if len(faults) > 1:
        raise BenchError(f"{faults[0]} ({len(faults) - 1} more failed)")
    if faults:
        raise faults[0]
    return states


def _fetch_alternative(file: NeededFile, cache: FileCache, progress: Progress) -> Path:
    """Fetch a file of the hub by the first of its names that the hub has, one that is here already before others."""
    repo = str(file.repo)
    names = sorted(file.names, key=lambda name: find_hub(cache, repo, name, file.revision) is None)
    return _first_name(
        names, lambda name: fetch_hub(cache, repo, name, file.revision, file.sha256, file.title, progress)
    )


def _first_name(names: Sequence[str], act: Callable[[str], Found]) -> Found:
    """Return what `act` returns for the first name that the hub has. Raises its NotOnHub when it has none."""
    for name in names[:-1]:
        try:
            return act(name)
        except NotOnHub:
            continue
    return act(names[-1])


def verify_file(file: NeededFile, cache: FileCache | None = None) -> FileState:
    """Hash a file anew and tell whether it is missing or altered."""
    cache = cache or FileCache(cache_directory())
    path = file.find(cache)
    if path is None:
        return FileState(file, "missing", file.place(cache), file.remedy())
    key = file.key(cache)
    try:
        digest = cache.verify(file.title, path, key, file.sha256, fresh=True)
    except BenchError as error:
        return FileState(file, "altered", path, str(error))
    known = file.sha256 or cache.pinned(key)
    detail = f"sha256 {digest[:12]}" + ("" if known else ", not pinned: it was not fetched by this program")
    return FileState(file, "shipped" if file.path is not None else "here", path, detail)
