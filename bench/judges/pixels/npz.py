"""Arrays in `.npz` files, read without unpickling anything and never larger than the file says and holds."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from bench.judges.pixels.images import MAX_PIXELS
from results.errors import BenchError

LABEL_KEYS = ("arr_1", "labels", "label")
HEADER_BYTES = 65536
DENSEST = 1100
"""More than deflate ever makes of one byte: what states more than this holds less than it states."""
MOST_IMAGES = 50_000_000
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
ERRORS = (
    OSError, ValueError, EOFError, KeyError, TypeError, IndexError, SyntaxError, OverflowError, RecursionError,
    NotImplementedError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip


class Header(NamedTuple):
    """What an array's header declares."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    def __str__(self) -> str:
        return "pickled objects" if self.dtype.hasobject else f"{self.dtype} {list(self.shape)}"


def npz_keys(path: Path) -> tuple[str, ...]:
    """Return the names of the arrays in an `.npz`. Raises BenchError when it is none."""
    with _one_line(path), zipfile.ZipFile(path) as archive:
        return tuple(sorted(name.removesuffix(".npy") for name in archive.namelist()))


def npz_header(path: Path, key: str) -> Header:
    """Return what the array `key` declares. Raises BenchError when the file holds more or less than it declares."""
    with _one_line(path), zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as stream:
        header, entry = _read_header(path, key, stream), archive.getinfo(f"{key}.npy")
        declared, held = _declared(header), entry.file_size - stream.tell()
        if entry.file_size > DENSEST * min(entry.compress_size, path.stat().st_size):
            raise BenchError(f"{path}: {key} declares {header}, more than the file can hold; copy it again")
    if not header.dtype.hasobject and declared != held:
        raise BenchError(
            f"{path}: {key} declares {header}, {declared:,} bytes but has {held:,}; it is damaged, copy it again"
        )
    return header


def npz_array(path: Path, key: str) -> np.ndarray:
    """Return the array `key`; look at its `npz_header` first: this allocates what that declares."""
    with _one_line(path), np.load(path, allow_pickle=False) as archive:
        array: np.ndarray = archive[key]
        return array


def _declared(header: Header) -> int:
    total = header.dtype.itemsize
    for side in header.shape:
        total *= int(side)
    return total


def _read_header(path: Path, key: str, stream: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(stream)
    if version not in READERS:
        raise BenchError(f"{path}: {key} is in npy format {version}; save it with numpy.savez")
    header = Header(*READERS[version](stream, max_header_size=HEADER_BYTES))
    if any(side < 0 for side in header.shape):
        raise BenchError(f"{path}: {key} declares {header}; it is damaged, copy it again")
    return header


class ImageArchive:
    """An `.npz` with `arr_0`, uint8 [N, H, W, 3], and labels, int [N], as `arr_1` or `labels` if it has them.

    `arr_0` is read piece by piece out of the zip file; nothing pickled is ever loaded.

    Attributes:
        path: the file.
        shape: [N, H, W, 3].
        labels: int64 [N], or None.
        others: names of the arrays that are neither images nor labels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        names = npz_keys(path)
        if "arr_0" not in names:
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise BenchError(f"{path}: has no arr_0 (it has {shown or 'nothing'}); images go under arr_0")
        self.shape = self._image_shape()
        key = next((key for key in LABEL_KEYS if key in names), None)
        self.labels = None if key is None else self._read_labels(key)
        self.others = tuple(name for name in names if name not in ("arr_0", key))

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, batch_size: int, start: int = 0) -> Iterator[np.ndarray]:
        """Yield uint8 [B, H, W, 3] from image `start` on; the last batch may be smaller.

        Raises BenchError when the file is damaged or breaks off.
        """
        image_bytes = int(np.prod(self.shape[1:]))
        with _one_line(self.path), zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as stream:
            _read_header(self.path, "arr_0", stream)
            stream.seek(start * image_bytes, 1)
            for first in range(start, len(self), batch_size):
                count = min(batch_size, len(self) - first)
                content = stream.read(count * image_bytes)
                if len(content) < count * image_bytes:
                    raise BenchError(f"{self.path}: ends before image {first + count}; it is truncated, copy it again")
                yield np.frombuffer(bytearray(content), np.uint8).reshape(count, *self.shape[1:])

    def _image_shape(self) -> tuple[int, ...]:
        header = npz_header(self.path, "arr_0")
        if header.dtype != np.uint8 or len(header.shape) != 4 or header.shape[-1] != 3 or 0 in header.shape:
            raise BenchError(f"{self.path}: arr_0 contains {header}; it must be uint8 [N, H, W, 3]")
        if header.shape[1] * header.shape[2] > MAX_PIXELS:
            raise BenchError(
                f"{self.path}: arr_0 contains {header}; images of more than {MAX_PIXELS:,} pixels are not read"
            )
        if header.shape[0] > MOST_IMAGES:
            raise BenchError(f"{self.path}: arr_0 contains {header}; more than {MOST_IMAGES:,} images are not read")
        if header.fortran:
            raise BenchError(f"{self.path}: arr_0 is in Fortran order; save numpy.ascontiguousarray of it")
        return header.shape

    def _read_labels(self, key: str) -> np.ndarray:
        header = npz_header(self.path, key)
        fits = np.issubdtype(header.dtype, np.integer) and header.shape == self.shape[:1]
        labels = npz_array(self.path, key) if fits or header.dtype.hasobject else None
        if labels is None or labels.min() < 0 or labels.max() >= 2**31:
            raise BenchError(
                f"{self.path}: {key} contains {header}; labels must be integers >= 0 of shape [{self.shape[0]}]"
            )
        return labels.astype(np.int64)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn what zipfile and numpy raise on a bad archive into one line that names it."""
    try:
        yield
    except ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if path.is_file() and path.stat().st_size == 0:
            reason = "it is empty"
        raise BenchError(f"{path}: cannot be read as .npz ({reason}); save it again with numpy.savez") from error
