"""The images of a set, decoded by several threads, cut to the protocol's size and streamed in batches.

References and images to be scored come the same way, so that both see the same pixels of the same files.

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
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.judges.files import library_version
from bench.judges.pixels.images import Notes, Unreadable, WrongSize, decode
from bench.judges.pixels.npz import LABEL_KEYS, ImageArchive
from bench.judges.pixels.resize import shortest_edge_size
from bench.references.classes import check_first
from bench.references.containers import Files
from bench.references.datasets import ImageSet, LeftOut, describe, open_image_set
from protocols.schema import digest_of
from results.errors import BenchError, DatasetError, unknown

WORKERS = 4
CUT_THEM = "choose how to crop them with --resize"


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

    `sha256` is uint8 [places, 32] for all places from `start` to `stop`, faulty ones included; `notes` say of each
    image what its file says and its pixels do not (empty where there are no files).
    """

    start: int
    stop: int
    images: Tensor
    places: np.ndarray
    sha256: np.ndarray
    faults: list[Fault]
    notes: Sequence[Notes] = ()


class Decoded(NamedTuple):
    """One file: its digest, and its image uint8 [S, S, 3] with its notes, or why it cannot be read."""

    sha256: bytes
    image: np.ndarray | None
    notes: Notes | None
    reason: str = ""


class ImageSource(ABC):
    """A fixed sequence of images of one size; memory does not grow with its length.

    Attributes:
        kind: kind of data set.
        root: the folder or archive.
        labels: int64 [N] or None.
        class_names: what the labels count, where the folders themselves say it; else None.
        unlabelled: why there are no labels, where there are none.
        listing: digest of names, sizes and times of the files: tells whether an interrupted build still fits.
        decoder: what turned files into pixels, for the record.
        left_out: what lies beside the images and is no part of the set.
        above: the folders that hold class folders.
    """

    kind: str
    root: Path
    labels: np.ndarray | None
    listing: str
    decoder: str
    class_names: tuple[str, ...] | None = None
    unlabelled = ""
    left_out: tuple[LeftOut, ...] = ()
    above: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images, readable or not."""

    @abstractmethod
    def batches(self, start: int, batch_size: int) -> Iterator[Batch]:
        """Yield the images from `start` on."""

    @abstractmethod
    def content(self, sha256: np.ndarray) -> str:
        """Return the digest of the set's content, given the digests of its files, uint8 [N, 32]."""

    def describe(self) -> str:
        """Return one line: images, classes, and what was passed over and why."""
        return describe(len(self), self.labels, self.left_out, self.above)


def open_images(
    path: Path, size: int, class_names: Sequence[str], first_label: int | None = None, advice: str = CUT_THEM
) -> ImageSource:
    """Open images to be scored, of [size, size] pixels as they are: a folder, an archive of files, or an `.npz`.

    Labels are those of a protocol with these class names; `advice` is what to do with images of another size. Raises
    BenchError for fewer than two images, and for labels that are none of the protocol's.
    """
    if path.is_file() and _holds_arrays(path):
        source: ImageSource = ArchiveSource(path, size, "none", len(class_names), first_label, advice)
    else:
        found = open_image_set("folder", path, class_names=class_names, first_label=first_label)
        source = FileSource(found.by_path(), size, "none", WORKERS, advice)
    if len(source) < 2:
        raise BenchError(f"{path}: contains {len(source)} image; a score needs at least 2")
    return source


def _holds_arrays(path: Path) -> bool:
    """Tell an `.npz` from a zip of images by its members, whatever it is called."""
    if not zipfile.is_zipfile(path):
        return path.suffix.lower() == ".npz"
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return path.suffix.lower() == ".npz"


class FileSource(ImageSource):
    """The files of an ImageSet."""

    def __init__(self, images: ImageSet, size: int, policy: str, workers: int, advice: str = CUT_THEM) -> None:
        self.advice = advice
        self.images, self.size, self.policy, self.workers = images, size, policy, workers
        self.container = images.container or Files(images.root)
        self.kind, self.root, self.labels, self.left_out = images.kind, images.root, images.labels, images.left_out
        self.class_names, self.above = images.class_names, images.above
        self.decoder = library_version("pillow")
        around = images.files[0].parent.name
        where = f"'{around}' does not match any class" if around else "class folders, or labels inside the archive"
        self.unlabelled = f"no labels ({where})"
        entries = [(_printable(file), self.container.stamp(file)) for file in images.files]
        self.listing = digest_of([images.kind, entries, None if self.labels is None else self.labels.tolist()])

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

    def _submit(self, pool: ThreadPoolExecutor, indices: range) -> list[Future[Decoded]]:
        waiting = []
        for index in indices:
            name = self.images.files[index]
            load: Callable[[], bytes] = partial(self.container.read, name)
            if self.container.sequential:  # threads would ask in another order
                load = _loaded(load)
            waiting.append(pool.submit(self._read, name, load))
        return waiting

    def _read(self, name: PurePosixPath, load: Callable[[], bytes]) -> Decoded:
        sha256 = bytes(32)
        try:
            content = load()
            sha256 = hashlib.sha256(content).digest()
            pixels, notes = decode(content, self.size if self.policy == "none" else None)
        except WrongSize as error:
            raise BenchError(f"{self.root / name}: {error}; {self.advice}") from error
        except Unreadable as error:
            return Decoded(sha256, None, None, str(error))
        return Decoded(sha256, cut(pixels, self.size, self.policy), notes)

    def _collect(self, indices: range, waiting: list[Future[Decoded]]) -> Batch:
        results = [future.result() for future in waiting]
        sha256 = np.frombuffer(b"".join(result.sha256 for result in results), np.uint8).reshape(-1, 32)
        images, places, faults, notes = [], [], [], []
        for index, result in zip(indices, results, strict=True):
            if result.image is None or result.notes is None:
                faults.append(Fault(index, self.images.files[index].as_posix(), result.reason))
            else:
                images.append(result.image)
                places.append(index)
                notes.append(result.notes)
        pixels = np.stack(images) if images else np.empty((0, self.size, self.size, 3), np.uint8)
        return Batch(
            indices.start, indices.stop, _channels_first(pixels), np.array(places, np.int64), sha256, faults, notes
        )

    def content(self, sha256: np.ndarray) -> str:
        """Return the digest over name, class and bytes of every file."""
        whole = hashlib.sha256()
        for index, file in enumerate(self.images.files):
            label = -1 if self.labels is None else int(self.labels[index])
            name = os.fsencode(file.as_posix())
            whole.update(name + f" {label} {sha256[index].tobytes().hex()}\n".encode())
        return whole.hexdigest()


def _printable(name: PurePosixPath) -> str:
    """Return a path as text that any encoding takes."""
    return os.fsencode(name.as_posix()).decode("utf-8", "backslashreplace")


def _loaded(load: Callable[[], bytes]) -> Callable[[], bytes]:
    """Return a function that gives what `load` gives now, or raises what it raises."""
    try:
        content = load()
    except Unreadable as error:
        reason = str(error)

        def fail() -> bytes:
            raise Unreadable(reason)

        return fail
    return lambda: content


class ArchiveSource(ImageSource):
    """The images of an `.npz` (`arr_0`), read piece by piece; `classes`: how many its labels may count, 0 if any."""

    def __init__(
        self,
        path: Path,
        size: int,
        policy: str,
        classes: int = 0,
        first_label: int | None = None,
        advice: str = CUT_THEM,
    ) -> None:
        self.kind, self.root, self.size, self.policy = "npz", path, size, policy
        self.archive = ImageArchive(path)
        height, width = self.archive.shape[1:3]
        if policy == "none" and (height, width) != (size, size):
            raise BenchError(
                f"{path}: contains images of {width}x{height} pixels, but {size}x{size} is required; {advice}"
            )
        self.decoder = "arr_0" if policy == "none" else f"arr_0, {library_version('pillow')}"
        self.labels = self.archive.labels
        if self.labels is not None and classes:
            first = check_first(self.labels.tolist(), classes, first_label, str(path))
            self.labels = self.labels - first
            worst = int(self.labels.max() if self.labels.max() >= classes else self.labels.min())
            if not 0 <= worst < classes:
                raise DatasetError(
                    f"{path}: label {worst + first} is beyond the protocol's ({first}..{classes - 1 + first}); "
                    "choose another with --protocol"
                )
        also = f"; the file also contains: {', '.join(self.archive.others)}" if self.archive.others else ""
        self.unlabelled = f"no labels ({', '.join(LABEL_KEYS[:-1])} or {LABEL_KEYS[-1]}){also}"
        self.listing = digest_of(["npz", path.name, _size_and_time(path)])

    def __len__(self) -> int:
        return len(self.archive)

    def batches(self, start: int, batch_size: int) -> Iterator[Batch]:
        """Yield the images from `start` on."""
        for pixels in self.archive.batches(batch_size, start):
            stop = start + len(pixels)
            if self.policy != "none":
                pixels = np.stack([cut(image, self.size, self.policy) for image in pixels])
            unknown_files = np.zeros((len(pixels), 32), np.uint8)
            yield Batch(start, stop, _channels_first(pixels), np.arange(start, stop), unknown_files, [])
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
