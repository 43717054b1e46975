"""Where images lie: a folder, a .zip, a .tar (plain or compressed) or a .parquet, all listed and read in one way.

Nothing is unpacked: members are read one at a time, their paths are names and never lead anywhere. Links of a folder
are followed, into other folders too, but never into one above them.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import os
import tarfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

from bench.judges.pixels.images import MAX_FILE_BYTES, SUFFIXES, Unreadable, read_file
from results.errors import DatasetError
from results.files import real_path

JUNK = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "$recycle.bin", "lost+found",
    "__pycache__", "system volume information",
}  # fmt: skip
"""What systems leave beside files. With it goes every name that starts with a dot."""
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")
ARCHIVE_SUFFIXES = (*TAR_SUFFIXES, ".zip", ".npz", ".parquet")
UNREAD_ARCHIVES = (
    ".rar",
    ".7z",
    ".tar.xz",
    ".txz",
    ".tar.zst",
    ".zst",
    ".xz",
    ".gz",
    ".bz2",
    ".lmdb",
    ".arrow",
    ".tfrecord",
)
UNREAD_IMAGES = {
    ".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".exr", ".hdr", ".tga", ".dds", ".psd", ".svg", ".qoi",
    ".apng", ".mpo", ".ico", ".pbm", ".pfm", ".dng", ".npy",
}  # fmt: skip
FORMS = "a folder of images, a .zip, .tar, .tar.gz or .parquet of them, or an .npz with arr_0"
ERRORS = (
    OSError, EOFError, ValueError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error,
    tarfile.TarError,
)  # fmt: skip
LABEL_BYTES = 64
DEEPEST, MOST_WAYS = 100, 100
"""Folders above a folder of a set, and the ways that may lead to one: with more, a few links make an endless walk."""
LONGEST_NAME = 1 << 20
"""Bytes of what a tar says beside a member's header (its long name, its attributes), which is read at once."""
BLOATED = (1 << 27, 20)
"""Bytes, and times its own size, beyond which a compressed archive is no set of images."""
FEW_ROWS, ROW_BYTES = 1_000_000, 16
"""Rows that a table may have whatever its size, and the bytes of the file that each has where there are more."""
LABEL_COLUMNS, LABEL_LETTERS = ("label", "labels", "class", "cls"), 300


class LeftOut(NamedTuple):
    """A file or folder that is no part of a set, by its path below the root, and why."""

    name: str
    reason: str


class Container(ABC):
    """Files below one place.

    Attributes:
        path: the folder or archive.
        images: paths of the images, sorted, or in the order of an archive that is best read front to back.
        left_out: what is passed over, and why; hidden files and what systems leave behind are not even named.
        sequential: reading is slow in another order than that of `images`.
        labels: the class of each image where the archive itself says it, by number or name; else None.
    """

    path: Path
    images: list[PurePosixPath]
    left_out: list[LeftOut]
    sequential = False
    labels: list[int | str] | None = None

    @abstractmethod
    def read(self, name: PurePosixPath) -> bytes:
        """Return the bytes of an image. Raises Unreadable with the reason. May be called from several threads."""

    def stamp(self, name: PurePosixPath) -> list[int]:
        """Return size and time of what holds an image: tells whether an interrupted build still fits."""
        stat = self.path.stat()
        return [stat.st_size, stat.st_mtime_ns]


def open_container(path: Path) -> Container:
    """Open a folder or an archive by what it holds, not by its name. Raises DatasetError for anything else."""
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        reason = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise DatasetError(f"{path}: {reason}; name {FORMS}")
    if not path.is_file():
        raise DatasetError(f"{path}: is not a regular file; name {FORMS}")
    with _one_line(path):
        with path.open("rb") as stream:
            start = stream.read(512)
        if not start:
            raise DatasetError(f"{path}: is empty; name {FORMS}")
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return Zip(path)
        if start.startswith(b"PAR1"):
            return Parquet(path)
        if start.startswith(b"\x93NUMPY"):
            raise DatasetError(f"{path}: is a single numpy array; save it as arr_0 of an .npz with numpy.savez")
        if start[257:262] == b"ustar" or path.name.lower().endswith(TAR_SUFFIXES):
            return Tar(path)
        if start.startswith((b"\x1f\x8b", b"BZh")) and tarfile.is_tarfile(path):
            return Tar(path)
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        raise DatasetError(f"{path}: is a single image; name {FORMS}")
    if suffix in (".zip", ".npz", ".parquet"):
        raise DatasetError(f"{path}: is not a {suffix} file, whatever its name says; copy it again, or name {FORMS}")
    advice = "unpack it and name the folder" if path.name.lower().endswith(UNREAD_ARCHIVES) else f"give {FORMS}"
    raise DatasetError(f"{path}: is neither a folder nor a supported archive; {advice}")


class Files(Container):
    """Files below a folder that somebody else lists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images, self.left_out = [], []

    def read(self, name: PurePosixPath) -> bytes:
        """Return the bytes of an image."""
        return read_file(self.path / name)

    def stamp(self, name: PurePosixPath) -> list[int]:
        """Return size and time of the file."""
        try:
            stat = (self.path / name).stat()
        except OSError:  # a link to nothing: its turn to be named comes when it is read
            return [-1, -1]
        return [stat.st_size, stat.st_mtime_ns]


class Folder(Files):
    """A folder of the file system, hidden parts passed over, links followed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ways: Counter[Path] = Counter()
        self.images = _sort_out(self._walk(path, PurePosixPath(), (real_path(path),)), self.left_out)

    def _walk(self, folder: Path, below: PurePosixPath, above: tuple[Path, ...]) -> Iterator[str]:
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise DatasetError(
                f"{folder}: cannot be listed ({error.strerror}); change its permissions or move it elsewhere"
            ) from error
        for entry in entries:
            name = below / entry.name
            if _is_junk(entry.name):
                continue
            if entry.is_dir():
                real = real_path(Path(entry.path)) if entry.is_symlink() else above[-1] / entry.name
                if real in above:
                    self.left_out.append(LeftOut(name.as_posix(), "is a link to a folder above it"))
                    continue
                self.ways[real] += 1
                if len(above) > DEEPEST or self.ways[real] > MOST_WAYS:
                    what = "lies too deep" if len(above) > DEEPEST else f"is reached by more than {MOST_WAYS} ways"
                    raise DatasetError(f"{entry.path}: {what}; name a folder below it, or remove links")
                yield from self._walk(Path(entry.path), name, (*above, real))
            elif entry.is_file() or (entry.name.lower().endswith(SUFFIXES) and _is_dangling(entry)):
                yield name.as_posix()
            else:
                reason = "is a link to nothing" if _is_dangling(entry) else "is not a regular file"
                self.left_out.append(LeftOut(name.as_posix(), reason))


class Zip(Container):
    """A zip archive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left_out = []
        with _one_line(path):
            self.archive = zipfile.ZipFile(path)
        self.members: dict[PurePosixPath, zipfile.ZipInfo] = {}
        names = []
        for member in self.archive.infolist():
            if not member.is_dir():
                name = _member_name(member.filename.replace("\\", "/"))
                _keep_once(path, self.members, name, member)
                names.append(name.as_posix())
        self.images = _sort_out(names, self.left_out)

    def read(self, name: PurePosixPath) -> bytes:
        """Return the bytes of a member: no more than it declares."""
        member = self.members[name]
        if member.file_size > MAX_FILE_BYTES:
            raise Unreadable(f"declares {member.file_size:,} bytes, too large for an image")
        if member.flag_bits & 1:
            raise Unreadable("is encrypted; unpack the archive")
        return _read_member(lambda: self.archive.open(member), member.file_size)


class _Member(tarfile.TarInfo):
    """A member of a tar, whose name and attributes are no larger than those of files are."""

    @classmethod
    def frombuf(cls, *arguments: Any, **keywords: Any) -> Self:
        """Return the header in the bytes of a block, as tarfile asks for it."""
        member = super().frombuf(*arguments, **keywords)
        if member.type in _BESIDE and member.size > LONGEST_NAME:
            raise tarfile.ReadError(f"a name or attributes of {member.size:,} bytes")
        return member


_BESIDE = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE
)  # fmt: skip


class Tar(Container):
    """A tar archive. A compressed one is read front to back, so its images stay in its own order.

    A set in the webdataset form (`KEY.png` beside `KEY.cls`) says its labels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left_out = []
        self.lock = threading.Lock()
        self.members: dict[PurePosixPath, tarfile.TarInfo] = {}
        classes: dict[PurePosixPath, str] = {}
        names = []
        with _one_line(path):
            # Read from for as long as the set is.
            self.archive = tarfile.open(path, "r:*", tarinfo=_Member)  # noqa: SIM115
            self.sequential = isinstance(self.archive.fileobj, (gzip.GzipFile, bz2.BZ2File))
            most = max(BLOATED[0], BLOATED[1] * path.stat().st_size)
            for member in self.archive:
                if member.offset > most:
                    raise DatasetError(
                        f"{path}: unpacks to over {most:,} bytes, as a decompression bomb does; unpack it yourself"
                    )
                name = _member_name(member.name)
                if self.sequential and member.size > MAX_FILE_BYTES:
                    raise DatasetError(f"{path}: {name} declares {member.size:,} bytes; unpack it and name the folder")
                if member.issym() or member.islnk():
                    if not _is_hidden(name):
                        self.left_out.append(LeftOut(name.as_posix(), "is a link inside the archive; unpack it"))
                elif not member.isdir():
                    _keep_once(path, self.members, name, member)
                    names.append(name.as_posix())
                    if name.suffix.lower() == ".cls" and member.size <= LABEL_BYTES:
                        classes[_key(name)] = self._text(member)
        self.images = _sort_out(names, self.left_out, keep_order=self.sequential)
        if classes:
            self._take_classes(classes)

    def _text(self, member: tarfile.TarInfo) -> str:
        stream = self.archive.extractfile(member)
        return "" if stream is None else stream.read(LABEL_BYTES).decode("utf-8", "replace").strip()

    def _take_classes(self, classes: dict[PurePosixPath, str]) -> None:
        lacking = [name for name in self.images if _key(name) not in classes]
        if lacking:
            raise DatasetError(
                f"{self.path}: {len(lacking)} of {len(self.images)} images have no .cls, the first {lacking[0]}; add "
                "them, or leave all out"
            )
        self.labels = [_number_or_name(classes[_key(name)]) for name in self.images]
        self.left_out = [entry for entry in self.left_out if not entry.name.lower().endswith(".cls")]

    def read(self, name: PurePosixPath) -> bytes:
        """Return the bytes of a member."""
        member = self.members[name]
        if member.size > MAX_FILE_BYTES:
            raise Unreadable(f"declares {member.size:,} bytes, too large for an image")
        if not member.isreg():
            raise Unreadable("is not a regular file")

        def start() -> Any:
            return self.archive.extractfile(member)

        with self.lock:
            return _read_member(start, member.size)


class Parquet(Container):
    """A parquet table with one column of encoded images (bytes, or a struct with `bytes`), read row by row by DuckDB.

    A column `label`, `labels`, `class` or `cls` gives the classes, by number or name.
    """

    sequential = True

    def __init__(self, path: Path) -> None:
        import duckdb

        self.path = path
        self.left_out = []
        self.lock = threading.Lock()
        self.table = "read_parquet(?)"
        self.source = [glob.escape(str(path))]
        self.errors = (duckdb.Error,)
        try:
            self.connection = duckdb.connect(config={"memory_limit": "1GB", "threads": 1})
            columns = self.connection.execute(f"DESCRIBE SELECT * FROM {self.table}", self.source).fetchall()
            found = [(name, kind) for name, kind, *_ in columns if _holds_bytes(kind)]
            named = [entry for entry in found if entry[0].lower() in ("image", "img", "images")]
            if len(found) != 1 and len(named) != 1:
                shown = ", ".join(f"{name} ({kind})" for name, kind, *_ in columns[:8])
                raise DatasetError(f"{path}: needs one column of image bytes but has {shown}; name that column 'image'")
            name, kind = found[0] if len(found) == 1 else named[0]
            self.column = _identifier(name) + (".bytes" if kind.upper().startswith("STRUCT") else "")
            count = self.connection.execute(f"SELECT count(*) FROM {self.table}", self.source).fetchone()
            rows_stated = int(count[0]) if count else 0
            if rows_stated > max(FEW_ROWS, path.stat().st_size // ROW_BYTES):
                raise DatasetError(f"{path}: states {rows_stated:,} rows, more than images fit into it")
            self.images = [PurePosixPath(f"row {row}") for row in range(rows_stated)]
            beside = [(name, kind) for name, kind, *_ in columns if name.lower() in LABEL_COLUMNS]
            if beside:
                label = _identifier(beside[0][0])
                if "INT" not in beside[0][1]:
                    label = f"left(CAST({label} AS VARCHAR), {LABEL_LETTERS})"
                rows = self.connection.execute(f"SELECT {label} FROM {self.table}", self.source)
                self.labels = [_number_or_name(value) for (value,) in rows.fetchall()]
        except duckdb.Error as error:
            raise DatasetError(f"{path}: cannot be read as parquet ({str(error).splitlines()[0]})") from error
        self.next = -1

    def read(self, name: PurePosixPath) -> bytes:
        """Return the image of a row."""
        row = int(name.name.removeprefix("row "))
        with self.lock:
            try:
                if row != self.next:
                    small = f"CASE WHEN octet_length({self.column}) <= {MAX_FILE_BYTES} THEN {self.column} END"
                    query = f"SELECT {small}, octet_length({self.column}) FROM {self.table} OFFSET {row}"
                    self.rows = self.connection.execute(query, self.source)
                found = self.rows.fetchone()
            except self.errors as error:
                raise Unreadable(f"cannot be read ({str(error).splitlines()[0]})") from error
            self.next = row + 1
        if found is None or found[1] is None:
            raise Unreadable("is empty")
        if found[0] is None:
            raise Unreadable(f"is larger than {MAX_FILE_BYTES >> 20} MiB, too large for an image")
        return bytes(found[0])


def _sort_out(
    names: Iterator[str] | Sequence[str], left_out: list[LeftOut], keep_order: bool = False
) -> list[PurePosixPath]:
    """Return the images among files, sorted; name the others; say nothing of hidden ones."""
    images = []
    for text in names:
        name = PurePosixPath(text)
        if ".." in name.parts:
            left_out.append(LeftOut(text, "points outside the archive"))
        elif _is_hidden(name):
            continue
        elif name.suffix.lower() in SUFFIXES:
            images.append(name)
        else:
            unread = name.suffix.lower() in UNREAD_IMAGES
            left_out.append(
                LeftOut(text, "is of a format that is not read; use PNG" if unread else "is not an image file")
            )
    return images if keep_order else sorted(images)


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


def _is_hidden(name: PurePosixPath) -> bool:
    return any(_is_junk(part) for part in name.parts)


def _is_dangling(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not Path(entry.path).exists()


def _member_name(text: str) -> PurePosixPath:
    """Return a member's path as a name: without a leading slash, drive or dot."""
    return PurePosixPath(text.lstrip("/") or "_")


def _keep_once(path: Path, members: dict[PurePosixPath, Any], name: PurePosixPath, member: Any) -> None:
    if name in members and name.suffix.lower() in SUFFIXES and not _is_hidden(name):
        raise DatasetError(f"{path}: contains '{name}' twice; pack it again, or unpack it and name the folder")
    members[name] = member


def _read_member(start: Callable[[], Any], size: int) -> bytes:
    try:
        with start() as stream:
            content: bytes = stream.read(size + 1)
    except ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"cannot be read from the archive ({reason})") from error
    if len(content) != size:
        raise Unreadable(f"declares {size:,} bytes but has {'more' if len(content) > size else len(content)}")
    return content


def _key(name: PurePosixPath) -> PurePosixPath:
    """Return what the files of one webdataset sample share: the path up to the first dot of its name."""
    return name.with_name(name.name.split(".")[0] or name.name)


def _number_or_name(value: Any) -> int | str:
    """Return a class as the archive states it; a float or nothing is not a class and stays readable text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = "" if value is None else str(value).strip()
    return int(text) if text.isascii() and text.isdigit() else text


def _holds_bytes(kind: str) -> bool:
    return kind == "BLOB" or (kind.upper().startswith("STRUCT") and "BYTES BLOB" in kind.upper())


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except (*ERRORS, gzip.BadGzipFile) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DatasetError(f"{path}: cannot be read ({reason}); copy it again, or unpack it") from error
