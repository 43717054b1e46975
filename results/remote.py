"""Storage of other machines through fsspec: `s3://`, `gs://`, `hf://`, `memory://`, `file://` and what else it knows.

A folder is kept as a manifest and the files that it names by their SHA-256:

    URL/manifest.json     format, version, and by name the digest and bytes of every file; written last
    URL/<sha256>          one file

So a reader sees a folder as it was before a change or after it, never between, and holds every byte against its digest.
The packages that fsspec needs for a scheme are of the extra `remote`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from results.cells import RESULT
from results.errors import BenchError, StoreError, one_line
from results.files import FULL, is_full, write_atomically, writing
from results.records import parsed

MANIFEST, FORMAT, VERSION = "manifest.json", "fewstep-bench folder", 1
LARGEST_MANIFEST = 64 << 20
LARGEST_FILE = 1 << 40
CHUNK = 4 << 20
LAST = (RESULT, "facts.json")
"""Files whose presence makes a cell finished, or a reference built."""
WHOLE_WRITES = {"s3", "s3a", "gs", "gcs", "hf", "abfs", "abfss", "az", "adl", "memory"}
"""Schemes whose store shows an object when all of it is there; elsewhere a file is written beside and renamed."""
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
"""What fsspec needs for a scheme."""


class Entry(NamedTuple):
    """A file of a folder."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, facts: Any) -> Entry | None:
        """Return what a manifest says of a file; None where that is no digest and size."""
        digest, size = (facts.get("sha256"), facts.get("bytes")) if isinstance(facts, Mapping) else (None, None)
        if not isinstance(size, int) or not 0 <= size <= LARGEST_FILE:
            return None
        return cls(str(digest), size) if re.fullmatch(r"[0-9a-f]{64}", str(digest)) else None


def is_remote(place: str) -> bool:
    """Tell whether a place is an URL of some storage rather than a path here."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", place) is not None


def local_path(place: str) -> Path | None:
    """Return the path that a place stands for on this machine: a path, or a `file://` URL; None for any other."""
    if not is_remote(place):
        return Path(place)
    parts = urlsplit(place)
    if parts.scheme.lower() not in ("file", "local"):
        return None
    return Path(unquote(parts.netloc + parts.path))


class Storage:
    """One place of a storage: a file, or the prefix of files.

    Every method raises BenchError in one line, which names the place and what to do, for whatever goes wrong there.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.scheme = urlsplit(url).scheme.lower()
        if not url.strip():
            raise BenchError("the URL of the storage is empty; write for example s3://BUCKET/NAME")
        if re.match(r"[A-Za-z]://", url) and os.name == "posix":  # a drive of Windows
            raise BenchError(f"{url}: no storage has the scheme '{self.scheme}'; write for example s3://BUCKET/NAME")
        with self._faults("opened"):
            try:
                from fsspec.core import url_to_fs
            except ImportError as error:
                raise BenchError(f"{url}: needs fsspec; install it with pip install 'fewstep-bench[remote]'") from error
            # Listings that are kept would hide what others write.
            options = {"use_listings_cache": False} if self.scheme not in ("memory", "hf") else {}
            self.system, self.path = url_to_fs(self.url, **options)
            self.path = self.path.rstrip("/")

    def __truediv__(self, name: str) -> Storage:
        child = object.__new__(Storage)
        child.url, child.scheme, child.system = f"{self.url}/{name}", self.scheme, self.system
        child.path = f"{self.path}/{name}"
        return child

    def exists(self) -> bool:
        """Tell whether there is a file."""
        with self._faults("read"):
            self._forget()
            return bool(self.system.isfile(self.path))

    def read(self, limit: int) -> bytes:
        """Return all bytes of a file of at most `limit`."""
        with self._faults("read"):
            self._forget()
            with self.system.open(self.path, "rb") as file:
                data: bytes = file.read(limit + 1)
        if len(data) > limit:
            raise StoreError(f"{self.url}: larger than {limit >> 20} MiB, which nothing of ours is")
        return data

    def write(self, data: bytes) -> None:
        """Put a file there, whole or not at all, and hold it against what was written."""
        self._put(lambda path: self.system.pipe_file(path, data))
        if self.read(len(data)) != data:
            raise BenchError(f"{self.url}: what is there now is not what was written; try again")

    def upload(self, path: Path) -> None:
        """Put a file of this machine there, whole or not at all."""
        self._put(lambda target: self.system.put_file(str(path), target))

    def download(self, path: Path, entry: Entry) -> None:
        """Fetch the file to `path`, whole or not at all, held against its digest. OSError is of this machine's disk."""
        digest, size = hashlib.sha256(), 0
        with writing(path) as temporary, temporary.open("wb") as output:
            for data in self._chunks(entry.bytes + 1):
                size += len(data)
                digest.update(data)
                output.write(data)
            if size != entry.bytes or digest.hexdigest() != entry.sha256:
                raise StoreError(
                    f"{self.url}: does not have the digest that its manifest states; nothing of it was taken"
                )

    def _chunks(self, most: int) -> Iterator[bytes]:
        with self._faults("read"), self.system.open(self.path, "rb") as file:
            while most > 0 and (data := file.read(min(CHUNK, most))):
                most -= len(data)
                yield data

    def folders(self) -> list[str]:
        """Return the names of the folders in this one; none where there is none."""
        with self._faults("listed"):
            self._forget()
            try:
                found = self.system.ls(self.path, detail=True)
            except FileNotFoundError:
                self._check_root()
                return []
        names = {str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "directory"}
        return sorted(names)

    def remove(self) -> None:
        """Remove a file that is there."""
        with self._faults("changed"), suppress(FileNotFoundError):
            self.system.rm_file(self.path)

    def _check_root(self) -> None:
        """Raise FileNotFoundError where not even the bucket is there."""
        bucket = self.path.lstrip("/").partition("/")[0]
        if self.scheme in ("s3", "s3a", "gs", "gcs") and not self.system.exists(bucket):
            raise FileNotFoundError(bucket)

    def _put(self, put: Callable[[str], Any]) -> None:
        with self._faults("written"):
            if self.scheme in WHOLE_WRITES:
                put(self.path)
                return
            self.system.makedirs(self.path.rpartition("/")[0], exist_ok=True)
            beside = f"{self.path}.{hashlib.sha256(self.url.encode()).hexdigest()[:8]}.tmp"
            put(beside)
            self.system.mv(beside, self.path)

    def _forget(self) -> None:
        with suppress(Exception):
            self.system.invalidate_cache()

    @contextmanager
    def _faults(self, done: str) -> Iterator[None]:
        try:
            yield
        except BenchError:
            raise
        except ImportError as error:
            package = PACKAGES.get(self.scheme)
            what = f"needs the package {package}" if package else f"needs a package ({one_line(str(error), 120)})"
            raise BenchError(f"{self.url}: {what}; pip install 'fewstep-bench[remote]' has it") from error
        except PermissionError as error:
            raise BenchError(
                f"{self.url}: access denied; check the credentials of this machine and the rights that they have there"
            ) from error
        except FileNotFoundError as error:
            raise BenchError(f"{self.url}: not found, or its bucket does not exist; check the name") from error
        except Exception as error:  # every scheme has errors of its own
            if isinstance(error, OSError) and is_full(error):
                raise BenchError(f"{self.url}: {FULL}") from error
            if "Protocol not known" in str(error):
                raise BenchError(
                    f"{self.url}: no storage has the scheme '{self.scheme}'; use s3://, gs://, hf:// or file://"
                ) from error
            denied = re.search(r"credential|forbidden|access denied|unauthori[sz]ed|401|403", str(error), re.IGNORECASE)
            what = "the credentials of this machine" if denied else "the name and the network, then try again"
            reason = one_line(f"{type(error).__name__}: {error}", 120)
            raise BenchError(f"{self.url}: cannot be {done} ({reason}); check {what}") from error


def read_manifest(folder: Storage) -> dict[str, Entry] | None:
    """Return the files of a kept folder, None where there is none. Raises StoreError for a foreign manifest."""
    place = folder / MANIFEST
    if not place.exists():
        return None
    manifest = parsed(place.read(LARGEST_MANIFEST))
    if not isinstance(manifest, Mapping) or manifest.get("format") != FORMAT:
        raise StoreError(f"{place.url}: of another format than '{FORMAT}'; name a folder that this program wrote")
    if manifest.get("version") != VERSION:
        version = one_line(str(manifest.get("version")), 20)
        raise StoreError(f"{place.url}: of version {version}, this program knows {VERSION}; upgrade fewstep-bench")
    files = manifest.get("files")
    found = {}
    for name, facts in files.items() if isinstance(files, Mapping) else [("", None)]:
        entry = Entry.of(facts)
        if entry is None or not is_file_name(name):
            raise StoreError(f"{place.url}: lists '{one_line(str(name), 60)}', which no folder has")
        found[name] = entry
    return found


def is_file_name(name: str) -> bool:
    """Tell whether a name is that of a file of ours: nothing of a path, nothing hidden or temporary."""
    plain = re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name) is not None
    return plain and len(name) < 128 and not name.endswith((".tmp", ".lock"))


def push(path: Path, folder: Storage, *, keep: Callable[[str], bool] = lambda name: False) -> int:
    """Bring a kept folder up to the files of `path`, and return how many were uploaded.

    A file that is not here any more leaves the manifest, unless `keep` says of its name that it stays; its bytes are
    removed once no manifest names them.
    """
    before = read_manifest(folder) or {}
    files = {entry.name: entry for entry in sorted(path.iterdir()) if entry.is_file() and is_file_name(entry.name)}
    now = {name: entry for name, entry in before.items() if name not in files and keep(name)}
    uploaded = 0
    for name, file in files.items():
        now[name] = entry = entry_of(file)
        if entry not in before.values():
            (folder / entry.sha256).upload(file)
            uploaded += 1
    if now == before:
        return uploaded
    listed = {name: entry._asdict() for name, entry in sorted(now.items())}
    manifest = {"format": FORMAT, "version": VERSION, "files": listed}
    (folder / MANIFEST).write(json.dumps(manifest, indent=1, sort_keys=True).encode())
    for digest in {entry.sha256 for entry in before.values()} - {entry.sha256 for entry in now.values()}:
        (folder / digest).remove()
    return uploaded


def pull(
    folder: Storage,
    path: Path,
    *,
    wanted: Callable[[str, Mapping[str, Entry]], bool] = lambda name, manifest: True,
    manifest: Mapping[str, Entry] | None = None,
) -> int:
    """Fetch the files of a kept folder that `path` lacks and that are `wanted`; return how many those are.

    A file that makes a folder whole (LAST) is written last. What another machine changes meanwhile is read again.

    Args:
        folder: the kept folder.
        path: a directory of this machine.
        wanted: tells by a file's name and the folder's manifest whether to fetch it.
        manifest: the folder's manifest where it was read before.

    Raises:
        BenchError: there is no folder, or a file in it cannot be read or is another than the manifest says.
        OSError: a file cannot be written here.
    """
    manifest = read_manifest(folder) if manifest is None else manifest
    if manifest is None:
        raise BenchError(f"{folder.url}: there is no {MANIFEST}; name a folder that this program wrote")
    lacking = [name for name in manifest if wanted(name, manifest) and not (path / name).exists()]
    for count, name in enumerate(sorted(lacking, key=lambda name: (name in LAST, name))):
        try:
            (folder / manifest[name].sha256).download(path / name, manifest[name])
        except BenchError:
            if (now := read_manifest(folder)) == manifest:
                raise
            return count + pull(folder, path, wanted=wanted, manifest=now)
    return len(lacking)


def entry_of(path: Path) -> Entry:
    """Return what a manifest says of a file."""
    with path.open("rb") as file:
        return Entry(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def write_to(place: str, data: bytes, option: str) -> None:
    """Put bytes at a path or URL, whole or not at all; `option` chooses another place."""
    path = local_path(place)
    if path is not None:
        write_atomically(path, data, option)
    else:
        Storage(place).write(data)
