"""Images that somebody else made: a folder of PNG and JPEG files or an ADM-style `.npz`, streamed in batches.

Decoding follows what published FID tools do, `Image.open(path).convert("RGB")`: grey and palette images are expanded,
CMYK is converted, an alpha channel is dropped (not composited), and an EXIF orientation tag is ignored.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from results.errors import BenchError

SUFFIXES = (".png", ".jpg", ".jpeg")
LABEL_KEYS = ("arr_1", "labels", "label")
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
WORKERS = 4


class ImageBatch(NamedTuple):
    """uint8 images [B, 3, H, W] in 0..255 and their int64 labels [B], or None where the source has none."""

    images: Tensor
    labels: Tensor | None


class ImageSource(ABC):
    """A fixed sequence of images that is read in batches; memory does not grow with its length.

    Attributes:
        path: the folder or archive.
        class_names: names that labels index, where the source has names (sorted folder names); else None.
        labels: int64 [N], or None.
    """

    path: Path
    class_names: tuple[str, ...] | None = None
    labels: Tensor | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[ImageBatch]:
        """Yield images `start` to `stop` in order; the last batch may be smaller.

        Raises BenchError naming the file that cannot be read or whose size differs from the first one's.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        ranges = [range(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)]
        for indices, images in zip(ranges, self._read(ranges), strict=True):
            labels = None if self.labels is None else self.labels[indices.start : indices.stop]
            yield ImageBatch(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)

    @abstractmethod
    def _read(self, ranges: list[range]) -> Iterator[np.ndarray]:
        """Yield uint8 [B, H, W, 3] for each range of indices."""


def open_images(path: Path) -> ImageSource:
    """Open a folder or an `.npz` of images. Raises BenchError when it is neither or holds no images."""
    if path.is_dir():
        return ImageFolder(path)
    if path.suffix.lower() == ".npz" and path.is_file():
        return ImageArchive(path)
    reason = "is neither a folder nor an .npz file" if path.exists() else "does not exist"
    raise BenchError(f"{path}: {reason}; give a folder of PNG/JPEG images or an .npz with arr_0")


def read_rgb(path: Path) -> np.ndarray:
    """Decode one image to uint8 [H, W, 3] by the module's rule. Raises BenchError naming the file."""
    try:
        with Image.open(path) as image:
            if image.mode in DEEP_MODES:
                raise BenchError(f"{path}: has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
            return np.array(image.convert("RGB"))
    except DECODE_ERRORS as error:
        reason = "is empty" if path.is_file() and path.stat().st_size == 0 else f"cannot be decoded ({error})"
        raise BenchError(f"{path}: {reason.splitlines()[0]}; replace or remove it") from error


class ImageFolder(ImageSource):
    """PNG and JPEG files below a folder, suffixes in any case, sorted by path; hidden files are passed over.

    The class of an image is the name of the folder it lies in, where that is not the top one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        self.files = sorted(file for file in found if not file.name.startswith("."))
        if not self.files:
            raise BenchError(f"{path}: holds no PNG or JPEG images; give the folder they are in")
        loose = [file for file in self.files if file.parent == path]
        if loose and len(loose) < len(self.files):
            raise BenchError(f"{loose[0]}: lies beside class folders; move it into one, or all images into one folder")
        if not loose:
            names = [file.parent.name for file in self.files]
            self.class_names = tuple(sorted(set(names)))
            index = {name: label for label, name in enumerate(self.class_names)}
            self.labels = torch.tensor([index[name] for name in names])

    def __len__(self) -> int:
        return len(self.files)

    def _read(self, ranges: list[range]) -> Iterator[np.ndarray]:
        shape = read_rgb(self.files[0]).shape
        with ThreadPoolExecutor(WORKERS) as pool:

            def submit(indices: range) -> list[Future[np.ndarray]]:
                return [pool.submit(read_rgb, self.files[index]) for index in indices]

            # One batch is decoded ahead while the consumer works on the last one.
            ahead = submit(ranges[0]) if ranges else []
            for number, indices in enumerate(ranges):
                waiting, ahead = ahead, submit(ranges[number + 1]) if number + 1 < len(ranges) else []
                images = [future.result() for future in waiting]
                for index, image in zip(indices, images, strict=True):
                    if image.shape != shape:
                        raise BenchError(
                            f"{self.files[index]}: is {image.shape[1]}x{image.shape[0]} pixels, the first image "
                            f"{shape[1]}x{shape[0]}; bring all images to one size"
                        )
                yield np.stack(images)


class ImageArchive(ImageSource):
    """An `.npz` with `arr_0`, uint8 [N, H, W, 3], and labels, int [N], as `arr_1` or `labels` if it has them.

    `arr_0` is read piece by piece out of the zip file; nothing pickled is ever loaded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _one_line(path), zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if "arr_0" not in names:
                raise BenchError(
                    f"{path}: has no arr_0 but {', '.join(sorted(names)) or 'nothing'}; images go under arr_0"
                )
            with archive.open("arr_0.npy") as stream:
                self.shape = self._read_header(stream)
        key = next((key for key in LABEL_KEYS if key in names), None)
        if key is not None:
            self.labels = self._read_labels(key)

    def __len__(self) -> int:
        return self.shape[0]

    def _read_header(self, stream: IO[bytes]) -> tuple[int, ...]:
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in reader:
            raise BenchError(f"{self.path}: arr_0 is in npy format {version}; save it with numpy.savez")
        shape, fortran, dtype = reader[version](stream)
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            kind = "pickled objects" if dtype.hasobject else f"{dtype} {list(shape)}"
            raise BenchError(f"{self.path}: arr_0 holds {kind}; it must be uint8 [N, H, W, 3]")
        if fortran:
            raise BenchError(f"{self.path}: arr_0 is in Fortran order; save numpy.ascontiguousarray of it")
        return shape

    def _read_labels(self, key: str) -> Tensor:
        with _one_line(self.path), np.load(self.path, allow_pickle=False) as archive:
            labels = archive[key]
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape != self.shape[:1] or labels.min() < 0:
            raise BenchError(
                f"{self.path}: {key} holds {labels.dtype} {list(labels.shape)}; "
                f"labels must be integers >= 0 of shape [{self.shape[0]}]"
            )
        return torch.from_numpy(labels.astype(np.int64))

    def _read(self, ranges: list[range]) -> Iterator[np.ndarray]:
        image_bytes = int(np.prod(self.shape[1:]))
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as stream:
            self._read_header(stream)
            if ranges:
                stream.seek(ranges[0].start * image_bytes, 1)
            for indices in ranges:
                with _one_line(self.path):
                    content = stream.read(len(indices) * image_bytes)
                if len(content) < len(indices) * image_bytes:
                    raise BenchError(f"{self.path}: ends before image {indices.stop}; it is truncated, copy it again")
                yield np.frombuffer(bytearray(content), np.uint8).reshape(len(indices), *self.shape[1:])


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn what zipfile and numpy raise on a bad archive into one line that names it."""
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BenchError(f"{path}: cannot be read as .npz ({reason}); save it again with numpy.savez") from error
