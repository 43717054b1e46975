"""CIFAR-10 as it is downloaded: the batches of its Python or binary version, which torchvision keeps, or image files.

| layout            | files                                                                                    |
|-------------------|------------------------------------------------------------------------------------------|
| Python version    | `data_batch_1` .. `data_batch_5`, `test_batch`, in the folder or its `cifar-10-batches-py` |
| binary version    | `data_batch_1.bin` .. `test_batch.bin`, in the folder or its `cifar-10-batches-bin`        |
| image files       | as kind `folder`, in the folder or, where it has one, its `train` or `test`                |

The part is `train` unless the variant says `test`. A batch of the Python version is a pickle: it is read as data, by
the reader that runs nothing of a file.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from bench.references.classes import Sorted
from bench.references.containers import Container
from bench.references.datasets import DATASETS, DataSet, ImageSet, Wanted, ordered
from results.errors import BenchError, DatasetError, unknown

FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
PARTS = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
SIDE = 32
PIXELS = 3 * SIDE * SIDE
PACKED = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")


class Batches(Container):
    """The images of some batches, called `data_batch_1/00000.ppm` and so on."""

    def __init__(self, path: Path, batches: dict[Path, tuple[np.ndarray, np.ndarray]]) -> None:
        self.path, self.left_out = path, []
        self.files = {file.name.removesuffix(".bin"): file for file in batches}
        self.pixels = {file.name.removesuffix(".bin"): pixels for file, (pixels, _) in batches.items()}
        self.images = [
            PurePosixPath(f"{name}/{index:05}.ppm")
            for name, pixels in self.pixels.items()
            for index in range(len(pixels))
        ]
        self.numbers = [int(label) for _, labels in batches.values() for label in labels]

    def read(self, name: PurePosixPath) -> bytes:
        """Return an image in the portable pixmap format, which holds its pixels as they are."""
        image = self.pixels[name.parent.name][int(name.stem)].reshape(3, SIDE, SIDE)
        return f"P6 {SIDE} {SIDE} 255\n".encode() + image.transpose(1, 2, 0).tobytes()

    def stamp(self, name: PurePosixPath) -> list[int]:
        """Return size and time of the batch."""
        stat = self.files[name.parent.name].stat()
        return [stat.st_size, stat.st_mtime_ns]


def _cifar10(root: Path, wanted: Wanted) -> ImageSet:
    part = wanted.variant or "train"
    if part not in PARTS:
        raise DatasetError(str(unknown("variant of cifar10", part, PARTS)))
    for folder in (root, *(root / name for name in FOLDERS)):
        for suffix in ("", ".bin"):
            files = [folder / f"{name}{suffix}" for name in PARTS[part]]
            missing = [file.name for file in files if not file.is_file()]
            if len(missing) == len(files):
                continue
            if missing:
                raise DatasetError(f"{folder}: lacks {', '.join(missing)} of CIFAR-10's {part} part; complete it")
            read = _read_binary if suffix else _read_python
            found = Batches(folder, {file: read(file) for file in files})
            return ordered("cifar10", found, Sorted(found.images, found.numbers, [], []))
    packed = next((name for name in PACKED if (root / name).is_file() or root.name == name), None)
    if packed is not None:
        raise DatasetError(f"{root}: holds {packed} alone; unpack it and name the folder")
    return DATASETS.load("folder").list_images(root / part if (root / part).is_dir() else root, wanted)


def _read_binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels, uint8 [N, 3072], and labels, [N], of a batch: records of a label and the pixels."""
    try:
        content = np.fromfile(file, np.uint8)
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror}); change its permissions") from error
    if len(content) == 0 or len(content) % (PIXELS + 1):
        raise DatasetError(
            f"{file}: {len(content):,} bytes are not a whole number of records of {PIXELS + 1}; copy the batch again"
        )
    records = content.reshape(-1, PIXELS + 1)
    return _checked(file, records[:, 1:], records[:, 0])


def _read_python(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels, uint8 [N, 3072], and labels, [N], of a batch: a pickled dictionary."""
    from bench.weights.safe_pickle import ArrayInFile, CodeRefused, load_arrays

    try:
        batch = load_arrays(file)
    except CodeRefused as error:
        raise DatasetError(f"{file}: names {error}, which is not data; nothing in it was run, do not use it") from error
    except BenchError as error:
        raise DatasetError(f"{file}: is not a batch of CIFAR-10: {error}") from error
    except Exception as error:  # the unpickler meets damaged bytes with exceptions of every kind
        raise DatasetError(
            f"{file}: cannot be read as a batch of CIFAR-10 ({type(error).__name__}); copy it again"
        ) from error
    if not isinstance(batch, dict):
        raise DatasetError(f"{file}: contains no dictionary; use the batches of CIFAR-10")
    entries = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    pixels, labels = (
        value.array if isinstance(value, ArrayInFile) else value
        for value in (entries.get("data"), entries.get("labels"))
    )
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXELS,):
        raise DatasetError(f"{file}: contains no 'data', bytes of [N, {PIXELS}]; use the batches of CIFAR-10")
    if not isinstance(labels, (list, np.ndarray)) or len(labels) != len(pixels):
        raise DatasetError(f"{file}: contains no 'labels' for its {len(pixels)} images; use the batches of CIFAR-10")
    return _checked(file, pixels, np.asarray(labels))


def _checked(file: Path, pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
        raise DatasetError(f"{file}: its labels are not 0 .. 9; use the batches of CIFAR-10")
    return pixels, labels


CIFAR10 = DataSet(_cifar10)
