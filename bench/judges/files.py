"""Where a judge's files are: a local path, the Hugging Face cache, or a download kept in the cache directory."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.errors import BenchError


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
        from huggingface_hub import try_to_load_from_cache

        for directory in (_hub_directory(cache_dir), None):
            for name in self.names:
                found = try_to_load_from_cache(self.repository, name, cache_dir=directory, revision=self.revision)
                if isinstance(found, str):
                    return Path(found)
        return None

    def fetch(self, cache_dir: Path | None) -> Path:
        """Return the file's path, downloading it into the cache first if need be. Raises BenchError."""
        found = self.locate(cache_dir)
        if found is None and self.path is not None:
            raise BenchError(f"{self.title}: {self.path} does not exist; correct the path in the protocol")
        if found is None:
            found = self._download(cache_dir)
        if self.sha256 and not file_sha256(found).startswith(self.sha256):
            raise BenchError(
                f"{self.title}: {found} is not the published file (sha256 differs); delete it and fetch again"
            )
        return found

    def _download(self, cache_dir: Path | None) -> Path:
        if self.url:
            import torch

            target = _download_directories(cache_dir)[0] / self.names[0]
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(
                    self.url, str(target), hash_prefix=self.sha256 or None, progress=sys.stderr.isatty()
                )
            except (OSError, RuntimeError) as error:
                raise BenchError(f"{self.title}: cannot download {self.url} ({_first_line(error)})") from error
            return target
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        for name in self.names:
            try:
                return Path(
                    hf_hub_download(self.repository, name, revision=self.revision, cache_dir=_hub_directory(cache_dir))
                )
            except Exception as error:
                last = error
                # Without a connection every further name would wait for its own time-outs.
                if isinstance(error, LocalEntryNotFoundError) or not isinstance(error, EntryNotFoundError):
                    break
        raise BenchError(f"{self.title}: cannot download {self} ({_first_line(last)})") from last


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _hub_directory(cache_dir: Path | None) -> Path | None:
    return None if cache_dir is None else cache_dir / "huggingface"


def _download_directories(cache_dir: Path | None) -> list[Path]:
    torch_home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
    ours = [] if cache_dir is None else [cache_dir / "downloads"]
    return [*ours, torch_home / "hub" / "checkpoints"]


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


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file; read once per process while its size and time stand."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


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
