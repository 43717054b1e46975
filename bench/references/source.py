"""The images of a reference set, decoded by several threads, cut to the protocol's size and streamed in batches.

Policies, by which an image of any shape becomes a square one. Pillow itself resizes here, in the threads that decode:
images come in all sizes, and `bench.judges.pixels.resize`, whose results are equal, is made for batches of one size.

| name              | what it does                                                                               |
|-------------------|--------------------------------------------------------------------------------------------|
| `none`            | nothing: images must have the protocol's size already                                        |
| `adm-center-crop` | ADM: halve by box while twice too large, bicubic to the shorter side, centre crop            |
| `bicubic-crop`    | one antialiased bicubic resize to the shorter side, centre crop                              |
| `squash`          | antialiased bicubic to a square, aspect ratio lost (the fair benchmark's references)         |
| `lanczos`         | the same with Lanczos' filter                                                                |

Files are decoded as published FID tools do, `convert("RGB")`: see `bench.judges.pixels.images`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from bench.judges.files import library_version
from bench.judges.pixels.images import ImageArchive, read_rgb
from bench.judges.pixels.resize import shortest_edge_size
from bench.references.datasets import ImageSet, LeftOut
from protocols.schema import digest_of
from results.errors import BenchError, unknown

PNG_TEXT_BYTES = 100 * 2**20
"""Some reLAIONet files carry colour profiles larger than the megabyte that Pillow allows."""


def _stretch(image: Image.Image, size: int, kernel: Image.Resampling) -> Image.Image:
    return image.resize((size, size), kernel)


def _crop(image: Image.Image, size: int) -> Image.Image:
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _bicubic_crop(image: Image.Image, size: int) -> Image.Image:
    height, width = shortest_edge_size(image.height, image.width, size)
    return _crop(image.resize((width, height), Image.Resampling.BICUBIC), size)


def _adm_center_crop(image: Image.Image, size: int) -> Image.Image:
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _crop(image, size)


POLICIES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "none": lambda image, size: image,
    "adm-center-crop": _adm_center_crop,
    "bicubic-crop": _bicubic_crop,
    "squash": lambda image, size: _stretch(image, size, Image.Resampling.BICUBIC),
    "lanczos": lambda image, size: _stretch(image, size, Image.Resampling.LANCZOS),
}


def check_policy(policy: str) -> None:
    """Raise BenchError unless `policy` is a known way to cut images."""
    if policy not in POLICIES:
        raise unknown("resize policy", policy, POLICIES)


def cut(pixels: np.ndarray, size: int, policy: str) -> np.ndarray:
    """Return uint8 [H, W, 3] as uint8 [size, size, 3]; with policy `none` as it is."""
    return np.asarray(POLICIES[policy](Image.fromarray(pixels), size))


class Fault(NamedTuple):
    """An image that could not be read: its place in the set, its name and why."""

    place: int
    name: str
    reason: str


class Batch(NamedTuple):
    """Images uint8 [B, 3, S, S], their places in the set int64 [B], and the faults and file digests met on the way.

    `sha256` is uint8 [places, 32] for all places from `start` to `stop`, faulty ones included.
    """

    start: int
    stop: int
    images: Tensor
    places: np.ndarray
    sha256: np.ndarray
    faults: list[Fault]


class ReferenceSource(ABC):
    """A fixed sequence of images of one size.

    Attributes:
        kind: kind of data set.
        root: the folder or archive.
        labels: int64 [N] or None.
        listing: digest of names, sizes and times of the files: tells whether an interrupted build still fits.
        decoder: what turned files into pixels, for the record.
        left_out: what lies beside the images and is no part of the set.
    """

    kind: str
    root: Path
    labels: np.ndarray | None
    listing: str
    decoder: str
    left_out: tuple[LeftOut, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images, readable or not."""

    @abstractmethod
    def batches(self, start: int, batch_size: int) -> Iterator[Batch]:
        """Yield the images from `start` on."""

    @abstractmethod
    def content(self, sha256: np.ndarray) -> str:
        """Return the digest of the set's content, given the digests of its files, uint8 [N, 32]."""


class FolderSource(ReferenceSource):
    """The files of an ImageSet."""

    def __init__(self, images: ImageSet, size: int, policy: str, workers: int) -> None:
        self.images, self.size, self.policy, self.workers = images, size, policy, workers
        self.kind, self.root, self.labels, self.left_out = images.kind, images.root, images.labels, images.left_out
        self.decoder = library_version("pillow")
        entries = [(file.as_posix(), _size_and_time(images.root / file)) for file in images.files]
        self.listing = digest_of([images.kind, entries, None if self.labels is None else self.labels.tolist()])
        PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, PNG_TEXT_BYTES)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, start: int, batch_size: int) -> Iterator[Batch]:
        """Yield the images from `start` on; the next batch is decoded while the caller works on the last one."""
        ranges = [range(first, min(first + batch_size, len(self))) for first in range(start, len(self), batch_size)]
        pool = ThreadPoolExecutor(self.workers)
        try:
            ahead = self._submit(pool, ranges[0]) if ranges else []
            for number, indices in enumerate(ranges):
                waiting, ahead = ahead, self._submit(pool, ranges[number + 1]) if number + 1 < len(ranges) else []
                yield self._collect(indices, waiting)
        finally:
            pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, indices: range) -> list[Future[tuple[bytes, np.ndarray | str]]]:
        return [pool.submit(self._read, self.images.files[index]) for index in indices]

    def _read(self, file: Path) -> tuple[bytes, np.ndarray | str]:
        """Return the file's sha256 and its image uint8 [S, S, 3], or why it cannot be read."""
        path = self.images.root / file
        sha256 = bytes(32)
        try:
            with path.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").digest()
            pixels = read_rgb(path)
        except BenchError as error:
            reason = str(error).removeprefix(f"{path}: ").partition("; ")[0]
            return sha256, reason.replace(str(path), file.name)
        except OSError as error:
            return sha256, f"cannot be read ({error.strerror})"
        image = cut(pixels, self.size, self.policy)
        if image.shape[:2] != (self.size, self.size):
            raise BenchError(
                f"{path}: is {pixels.shape[1]}x{pixels.shape[0]} pixels and must be {self.size}x{self.size} as it is; "
                "choose how to cut it with --resize"
            )
        return sha256, image

    def _collect(self, indices: range, waiting: list[Future[tuple[bytes, np.ndarray | str]]]) -> Batch:
        results = [future.result() for future in waiting]
        sha256 = np.frombuffer(b"".join(digest for digest, _ in results), np.uint8).reshape(-1, 32)
        images, places, faults = [], [], []
        for index, (_, result) in zip(indices, results, strict=True):
            if isinstance(result, str):
                faults.append(Fault(index, self.images.files[index].as_posix(), result))
            else:
                images.append(result)
                places.append(index)
        pixels = np.stack(images) if images else np.empty((0, self.size, self.size, 3), np.uint8)
        return Batch(indices.start, indices.stop, _channels_first(pixels), np.array(places, np.int64), sha256, faults)

    def content(self, sha256: np.ndarray) -> str:
        """Return the digest over name, class and bytes of every file."""
        whole = hashlib.sha256()
        for index, file in enumerate(self.images.files):
            label = -1 if self.labels is None else int(self.labels[index])
            whole.update(f"{file.as_posix()} {label} {sha256[index].tobytes().hex()}\n".encode())
        return whole.hexdigest()


class ArchiveSource(ReferenceSource):
    """The images of an `.npz` (`arr_0`), read piece by piece."""

    def __init__(self, path: Path, size: int, policy: str) -> None:
        self.kind, self.root, self.size, self.policy = "npz", path, size, policy
        self.archive = ImageArchive(path)
        height, width = self.archive.shape[1:3]
        if policy == "none" and (height, width) != (size, size):
            raise BenchError(
                f"{path}: holds images of {width}x{height} pixels, {size}x{size} are needed; choose how to cut them "
                "with --resize"
            )
        self.decoder = "arr_0" if policy == "none" else f"arr_0, {library_version('pillow')}"
        self.labels = None if self.archive.labels is None else self.archive.labels.numpy()
        self.listing = digest_of(["npz", path.name, _size_and_time(path)])

    def __len__(self) -> int:
        return len(self.archive)

    def batches(self, start: int, batch_size: int) -> Iterator[Batch]:
        """Yield the images from `start` on."""
        for images, _ in self.archive.batches(batch_size, start):
            stop = start + len(images)
            if self.policy != "none":
                pixels = [cut(image, self.size, self.policy) for image in images.permute(0, 2, 3, 1).numpy()]
                images = _channels_first(np.stack(pixels))
            yield Batch(start, stop, images, np.arange(start, stop), np.zeros((len(images), 32), np.uint8), [])
            start = stop

    def content(self, sha256: np.ndarray) -> str:
        """Return the sha256 of the archive."""
        with self.root.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _size_and_time(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
