"""The cache directory: files, their pinned digests, and the digests of files that were read before."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from results.documents import read_object
from results.errors import BenchError, one_line
from results.files import real_path, write_atomically

FACTS = ("sha256", "commit", "accepted")
"""What an entry of a table may tell, as text."""
QUICK_BYTES = 2**24
"""What is smaller is hashed whenever it is asked for."""


def cache_directory() -> Path:
    """Return where downloads and reference statistics lie: BENCH_CACHE_DIR, else the platform's cache directory."""
    return Path(os.environ.get("BENCH_CACHE_DIR") or platformdirs.user_cache_dir("fewstep-bench"))


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes; of a directory, that of its files' relative paths and digests.

    Raises BenchError for anything else, which may have no end.
    """
    if path.is_dir():
        lines = [f"{file.relative_to(path).as_posix()} {sha256_of(file)}\n" for file in _files(path)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    if not path.is_file():
        raise BenchError(f"{path}: is a device or not there, so it cannot be read; correct the path")
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror or error}); correct the path") from error


class FileCache:
    """A cache directory with small tables: `pins.json`, `digests.json` and `licences.json` (what the user accepted).

    A pin records where a file came from and its sha256; it outlives the file, so that a file fetched again must be the
    same. `digests.json` remembers digests by path, size and time, so that gigabytes are not hashed at every start.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def digest(self, path: Path, *, fresh: bool = False) -> str:
        """Return the sha256 of `path`; a large one is hashed again only if its size or time changed, or if `fresh`."""
        key, stamp = str(real_path(path)), _stamp(path)
        if stamp[1] < QUICK_BYTES:
            return sha256_of(path)
        known = self._read("digests.json").get(key)
        if not fresh and known is not None and known.get("stamp") == stamp and "sha256" in known:
            return str(known["sha256"])
        found = sha256_of(path)
        with contextlib.suppress(BenchError):  # a read-only cache costs time, nothing else
            self._write("digests.json", key, {"stamp": stamp, "sha256": found})
        return found

    def pin(self, key: str, path: Path, **facts: Any) -> str:
        """Record the digest of `path` under `key` with where it came from, and return the digest."""
        found = self.digest(path)
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        self._write("pins.json", key, {**facts, "sha256": found, "pinned": moment})
        return found

    def pinned(self, key: str) -> dict[str, Any]:
        """Return what was recorded under `key`, empty when nothing was."""
        tables = ("pins.json", "judges/pins.json")  # judges' files once had a table of their own
        return dict(next((pin for name in tables if (pin := self._read(name).get(key))), {}))

    def accepted(self, licence: str) -> str | None:
        """Return when the user accepted the licence of these words (ISO 8601), None if never."""
        found = self._read("licences.json").get(licence)
        return str(found.get("accepted")) if isinstance(found, dict) else None

    def accept(self, licence: str, models: Sequence[str]) -> None:
        """Record that the user accepts a licence, asked for `models`."""
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        self._write("licences.json", licence, {"accepted": moment, "asked_for": list(models)})

    def verify(self, title: str, path: Path, key: str, published: str | None, *, fresh: bool = False) -> str:
        """Return the digest of `path`. Raises BenchError unless it is `published` (a prefix is enough) or pinned.

        A file that neither the card nor a pin knows passes.
        """
        expected = published or self.pinned(key).get("sha256", "")
        found = self.digest(path, fresh=fresh)
        if not found.startswith(expected):
            origin = "published" if published else "first downloaded"
            raise BenchError(
                f"{title}: {path} is not the file that was {origin} (sha256 {found[:12]}..., expected "
                f"{expected[:12]}...); delete it and fetch it again"
            )
        return found

    def lock(self, key: str) -> FileLock:
        """Return the lock under which one process at a time works on `key`. Raises BenchError in a read-only cache."""
        path = self.root / "locks" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise BenchError(
                f"{self.root} cannot be written ({error.strerror}); choose another cache with BENCH_CACHE_DIR"
            ) from error
        return FileLock(path)

    def place(self, *parts: str) -> Path:
        """Return a path below the cache directory. Raises BenchError for names that would lead out of it."""
        path = self.root.joinpath(*parts)
        if ".." in path.parts[len(self.root.parts) :] or not path.is_relative_to(self.root):
            raise BenchError(f"'{'/'.join(parts)}' is not the name of a file to fetch; correct the card")
        return path

    def _read(self, name: str) -> dict[str, Any]:
        path = self.root / name
        if not os.path.lexists(path):
            return {}
        table = read_object(path, "cache table")
        for key, entry in table.items():
            if not isinstance(entry, dict) or not all(isinstance(entry.get(fact, ""), str) for fact in FACTS):
                raise BenchError(f"{path}: the entry of '{one_line(key, 60)}' is damaged; fix or delete it")
        return table

    def _write(self, name: str, key: str, value: Mapping[str, Any]) -> None:
        with self.lock(name):
            text = json.dumps(self._read(name) | {key: dict(value)}, indent=1, sort_keys=True)
            write_atomically(self.root / name, text.encode(), "BENCH_CACHE_DIR")


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def _stamp(path: Path) -> list[int]:
    """Return count, size and latest modification of the files of `path`."""
    found = [file.stat() for file in (_files(path) if path.is_dir() else [path])]
    return [len(found), sum(stat.st_size for stat in found), max((stat.st_mtime_ns for stat in found), default=0)]
