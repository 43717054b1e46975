"""Where a judge's files are: a local path, the Hugging Face cache, or a download kept in the cache directory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.weights.cache import FileCache, cache_directory
from bench.weights.fetch import NotOnHub, fetch_hub, fetch_url, find_hub, hub_key
from results.errors import BenchError


@dataclass(frozen=True)
class JudgeFile:
    """One file a judge needs; exactly one of `path`, `repository` and `url` says where it comes from.

    Attributes:
        title: what it is called in messages, e.g. `weights`.
        path: a local file, already resolved.
        repository: Hugging Face repository, with the file's name under `names` (the first one found is taken).
        names: alternative file names inside the repository, or the file name of the download.
        revision: commit, tag or branch of the repository.
        url: a direct download.
        sha256: expected digest or its beginning; empty when unknown.
    """

    title: str
    path: Path | None = None
    repository: str = ""
    names: tuple[str, ...] = ()
    revision: str | None = None
    url: str = ""
    sha256: str = ""

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        return self.url or f"{self.repository}/{' or '.join(self.names)}"

    def locate(self, cache_dir: Path | None) -> Path | None:
        """Return the file's path, or None while it is not on this machine. Never downloads."""
        if self.path is not None:
            return self.path if self.path.is_file() else None
        if self.url:
            places = [directory / self.names[0] for directory in _download_directories(cache_dir)]
            return next((place for place in places if place.is_file()), None)
        cache = _cache(cache_dir)
        found = (find_hub(cache, self.repository, name, self.revision) for name in self.names)
        return next((path for path in found if path is not None), None)

    def fetch(self, cache_dir: Path | None) -> Path:
        """Return the file's path, downloading it into the cache first if need be. Raises BenchError."""
        if self.path is not None:
            if not self.path.is_file():
                raise BenchError(f"{self.title}: {self.path} does not exist; correct the path in the protocol")
            _cache(cache_dir).verify(self.title, self.path, "", self.sha256)
            return self.path
        cache, published = _cache(cache_dir), self.sha256 or None
        if self.url:
            target = self.locate(cache_dir) or _download_directories(cache_dir)[0] / self.names[0]
            return fetch_url(cache, self.url, target, published, self.title)
        last: BenchError | None = None
        for name in self._found_first(cache):
            try:
                return fetch_hub(cache, self.repository, name, self.revision, published, self.title)
            except NotOnHub as error:
                last = error
        raise last or BenchError(f"{self.title}: {self.repository} has no file to fetch; name one in the protocol")

    def verify(self, cache_dir: Path | None) -> Path | None:
        """Hash the file anew and return its path, None while it is missing. Raises BenchError when it is altered."""
        path, cache = self.locate(cache_dir), _cache(cache_dir)
        if path is not None:
            key = self.url or next((self._key(name) for name in self.names if cache.pinned(self._key(name))), "")
            cache.verify(self.title, path, key, self.sha256, fresh=True)
        return path

    def _key(self, name: str) -> str:
        return hub_key(self.repository, name, self.revision)

    def _found_first(self, cache: FileCache) -> list[str]:
        """Return the alternative names, those that are on this machine first."""
        return sorted(self.names, key=lambda name: find_hub(cache, self.repository, name, self.revision) is None)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _cache(cache_dir: Path | None) -> FileCache:
    return FileCache(cache_dir or cache_directory() / "judges")


def _download_directories(cache_dir: Path | None) -> list[Path]:
    torch_home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
    ours = [] if cache_dir is None else [cache_dir / "downloads"]
    return [*ours, torch_home / "hub" / "checkpoints"]


PATH_OPTIONS = ("path", "weights", "config", "merges", "processor_path")
"""Options of judges that are local paths."""


def option_path(options: Mapping[str, Any], key: str, root: Path) -> Path | None:
    """Return the local path an option names, relative to the protocol's directory; None where it is not set."""
    value = options.get(key)
    return None if value is None else root / Path(value).expanduser()


def located(name: str, files: Sequence[JudgeFile], cache_dir: Path | None) -> list[Path]:
    """Return the paths of all `files` of judge `name`. Raises BenchError for the first that is missing or altered."""
    paths = []
    for file in files:
        path = file.locate(cache_dir)
        if path is None:
            remedy = "correct the path in the protocol" if file.path is not None else "run 'bench weights fetch judges'"
            raise BenchError(f"judge '{name}': {file.title} {file} is not on this machine; {remedy}")
        if file.sha256 and not file_sha256(path).startswith(file.sha256):
            raise BenchError(
                f"judge '{name}': {path} is not the published file (sha256 differs); delete it and fetch again"
            )
        paths.append(path)
    return paths


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file; a large one is read once while its size and time stand."""
    return FileCache(cache_directory()).digest(path)


def library_version(distribution: str) -> str:
    """Return `distribution version` of an installed distribution, for a judge's facts."""
    return f"{distribution} {version(distribution)}"


def facts_digest(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of facts as canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raises BenchError naming the file when it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: cannot be read as JSON ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise BenchError(f"{path}: holds no JSON object")
    return content
