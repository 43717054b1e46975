"""Reference data sets as they lie on a disk: which files belong to them, in which order, and the class of each.

| kind           | layout                                                                                            |
|----------------|---------------------------------------------------------------------------------------------------|
| `imagenet-val` | synset folders (`n01440764/*.JPEG`), or one flat folder with a file of labels (see `label_file`)    |
| `imagenetv2`   | folders `0` .. `999`; variants matched-frequency, threshold-0.7, top-images                         |
| `relaionet`    | folders named by class or synset, below `reLAIONet-cleaned-v1/[images/]`                            |
| `folder`       | any folder of images, with or without class folders                                                |

Images are ordered by class, then by file name: never by a folder name read as text where it is a number. Nothing is
left out silently: what is passed over is in `ImageSet.left_out` with its reason. Only names are read here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.contracts.plugins import Group
from bench.references.label_file import find_label_file, read_label_file
from protocols.imagenet import imagenet_classes, labels_of_name, spelling, synset_labels
from results.errors import DatasetError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tiff", ".webp")
VALIDATION_FOLDERS = ("val", "imagenet_val", "ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "CLS-LOC/val")
V2_FOLDERS = {
    "matched-frequency": "imagenetv2-matched-frequency-format-val",
    "threshold-0.7": "imagenetv2-threshold0.7-format-val",
    "top-images": "imagenetv2-top-images-format-val",
}
RELAIONET_FOLDERS = ("reLAIONet-cleaned-v1/images", "reLAIONet-cleaned-v1", "images")
AMBIGUOUS = ("refuse", "skip")
SYNSET = re.compile(r"n\d{8}")


class LeftOut(NamedTuple):
    """A file or folder that is no part of the set, by its path below the root, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """The files of a data set in order.

    Attributes:
        kind: name of the kind of data set.
        root: the folder that holds the classes (or the images).
        files: paths below `root`.
        labels: class of each file, int64 [N]; None where the set has no classes.
        class_names: what the labels count, where the folders themselves say it; None where a protocol or ImageNet does.
        left_out: what lies there and is not part of the set.
    """

    kind: str
    root: Path
    files: tuple[Path, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class Wanted:
    """What a user or protocol says of a data set beside its folder.

    Attributes:
        variant: of `imagenetv2`: matched-frequency, threshold-0.7 or top-images; None where only one is there.
        class_names: of `folder`: the classes that its folders must be named after (or numbered by).
        label_file: of a flat `imagenet-val`: the file with the class of each image; looked for nearby if None.
        ambiguous: `refuse` or `skip` folders that several classes or none answer to.
    """

    variant: str | None = None
    class_names: Sequence[str] = ()
    label_file: Path | None = None
    ambiguous: str = "refuse"


@dataclass(frozen=True)
class DataSet:
    """A kind of data set, as an entry point of the group `bench.datasets` gives it.

    Attributes:
        list_images: `(root, wanted)` to the images that lie below a folder, in order, with their classes; only names
            are read. Raises DatasetError where the layout is another or a folder stands for no class or for several.
    """

    list_images: Callable[[Path, Wanted], ImageSet]


DATASETS: Group[DataSet] = Group(
    "bench.datasets",
    "kind of data set",
    "a bench.references.datasets.DataSet",
    lambda found: isinstance(found, DataSet),
)


def open_image_set(
    kind: str,
    root: Path,
    *,
    variant: str | None = None,
    class_names: Sequence[str] = (),
    label_file: Path | None = None,
    ambiguous: str = "refuse",
) -> ImageSet:
    """List a data set of an installed `kind` in the folder `root`, or in one below it where published so.

    The other arguments are those of `Wanted`.

    Raises:
        BenchError: the kind is not installed.
        DatasetError: the layout is another, a folder stands for no class or for several, or there are no images.
    """
    data_set = DATASETS.load(kind)
    if not root.is_dir():
        raise DatasetError(
            f"{root}: {'is no folder' if root.exists() else 'does not exist'}; give the data set's folder"
        )
    found = data_set.list_images(root, Wanted(variant, class_names, label_file, ambiguous))
    if not found.files:
        raise DatasetError(f"{found.root}: holds no images ({', '.join(SUFFIXES)}); give the folder they are in")
    return found


def _imagenet_val(root: Path, wanted: Wanted) -> ImageSet:
    root = _descend(root, VALIDATION_FOLDERS)
    folders = _folders(root)
    if any(SYNSET.fullmatch(folder.name) for folder in folders):
        return _class_folders("imagenet-val", root, _synset_label)
    if folders:
        raise DatasetError(
            f"{root}: holds the folder '{folders[0].name}', which is no synset id; give the folder of synset folders, "
            "or the flat one of validation images"
        )
    files, left_out = _images(root, root.iterdir())
    file = wanted.label_file or find_label_file(root)
    if files and file is None:
        raise DatasetError(
            f"{root}: is a flat folder of images without a file that says their classes; put LOC_val_solution.csv or "
            "the development kit's data folder beside it, or name the file with --labels"
        )
    if not files or file is None:
        return ImageSet("imagenet-val", root, (), None)
    label_of = read_label_file(file)
    if file.parent == root:
        left_out = [entry for entry in left_out if entry.name != file.name]
    labels = np.array([label_of(path.stem) for path in files], dtype=np.int64)
    order = np.argsort(labels, kind="stable")
    ordered = tuple(files[index] for index in order)
    return ImageSet("imagenet-val", root, ordered, labels[order], left_out=tuple(left_out))


def _imagenetv2(root: Path, asked: Wanted) -> ImageSet:
    variant = asked.variant
    if variant is not None and variant not in V2_FOLDERS:
        raise DatasetError(f"unknown variant of imagenetv2 '{variant}': known: {', '.join(V2_FOLDERS)}")
    wanted = V2_FOLDERS.values() if variant is None else [V2_FOLDERS[variant]]
    present = [name for name in wanted if (root / name).is_dir()]
    if len(present) > 1:
        raise DatasetError(f"{root}: holds {', '.join(present)}; give one of them with --data")
    others = [name for name in V2_FOLDERS.values() if root.name == name and name not in wanted]
    if others:
        raise DatasetError(
            f"{root}: is not the variant '{variant}' that was asked for; give {V2_FOLDERS[variant or '']}"
        )
    root = root / present[0] if present else root
    return _class_folders("imagenetv2", root, _number_label)


def _relaionet(root: Path, wanted: Wanted) -> ImageSet:
    root = _descend(root, RELAIONET_FOLDERS)
    return _named_folders("relaionet", root, labels_of_name() | _synset_names(), wanted.ambiguous)


def _folder(root: Path, wanted: Wanted) -> ImageSet:
    class_names = wanted.class_names
    folders = _folders(root)
    if not folders:
        files, left_out = _images(root, root.iterdir())
        return ImageSet("folder", root, tuple(files), None, left_out=tuple(left_out))
    if not class_names:
        names = tuple(sorted(folder.name for folder in folders))
        found = _class_folders("folder", root, lambda path: names.index(path.name))
        return ImageSet("folder", root, found.files, found.labels, names, found.left_out)
    known: dict[str, tuple[int, ...]] = {str(label): (label,) for label in range(len(class_names))}
    for label, name in enumerate(class_names):
        known[spelling(name)] = (*known.get(spelling(name), ()), label)
    if list(class_names) in ([c.name for c in imagenet_classes()], [c.published_name for c in imagenet_classes()]):
        known |= labels_of_name() | _synset_names()
    return _named_folders("folder", root, known, wanted.ambiguous)


IMAGENET_VAL = DataSet(_imagenet_val)
IMAGENETV2 = DataSet(_imagenetv2)
RELAIONET = DataSet(_relaionet)
FOLDER = DataSet(_folder)


def _synset_label(folder: Path) -> int:
    if folder.name not in synset_labels():
        raise DatasetError(f"{folder}: is none of the 1000 synsets of ILSVRC 2012; move it out of the data set")
    return synset_labels()[folder.name]


def _number_label(folder: Path) -> int:
    if not folder.name.isascii() or not folder.name.isdigit() or int(folder.name) >= len(imagenet_classes()):
        raise DatasetError(f"{folder}: its name is no class number 0 .. 999; give the folder that holds those")
    return int(folder.name)


def _synset_names() -> dict[str, tuple[int, ...]]:
    return {synset: (label,) for synset, label in synset_labels().items()}


def _named_folders(kind: str, root: Path, known: Mapping[str, tuple[int, ...]], ambiguous: str) -> ImageSet:
    """List class folders by name; those that stand for several classes or for none are refused or left out."""
    if ambiguous not in AMBIGUOUS:
        raise DatasetError(f"ambiguous folders can be {' or '.join(AMBIGUOUS)}, not '{ambiguous}'")
    faults: dict[str, str] = {}
    for folder in _folders(root):
        labels = known.get(spelling(folder.name), ())
        if len(labels) > 1:
            faults[folder.name] = f"stands for {_titles(labels)}"
        elif not labels:
            near = difflib.get_close_matches(spelling(folder.name), known, n=1, cutoff=0.7)
            faults[folder.name] = "names no class" + (f" (near: {near[0]})" if near else "")
    if faults and ambiguous == "refuse":
        listed = "; ".join(f"'{name}' {reason}" for name, reason in list(faults.items())[:4])
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise DatasetError(
            f"{root}: {listed}{more}; rename such a folder to its class or synset id, or leave them out with "
            "--ambiguous skip"
        )
    skipped = [LeftOut(name, reason) for name, reason in faults.items()]
    return _class_folders(kind, root, lambda folder: known[spelling(folder.name)][0], skipped)


def _titles(labels: Sequence[int]) -> str:
    classes = imagenet_classes()
    return " and ".join(
        f"class {label}" + (f" ({classes[label].name}, {classes[label].synset})" if label < len(classes) else "")
        for label in labels
    )


def _class_folders(
    kind: str, root: Path, label_of: Callable[[Path], int], left_out: Sequence[LeftOut] = ()
) -> ImageSet:
    """List the images of every folder below `root` that is not left out, sorted by label, then by name."""
    skipped = {entry.name for entry in left_out}
    by_label: dict[int, list[Path]] = {}
    aside = list(left_out)
    for folder in _folders(root):
        if folder.name not in skipped:
            by_label.setdefault(label_of(folder), []).append(folder)
    files: list[Path] = []
    labels: list[int] = []
    for label in sorted(by_label):
        for folder in by_label[label]:
            found, others = _images(root, folder.rglob("*"))
            files += found
            labels += [label] * len(found)
            aside += others
    loose, others = _images(root, root.iterdir())
    if loose:
        raise DatasetError(f"{root / loose[0]}: lies beside class folders; move it into one of them or away")
    return ImageSet(kind, root, tuple(files), np.array(labels, dtype=np.int64), left_out=tuple(aside + others))


def _images(root: Path, paths: Iterable[Path]) -> tuple[list[Path], list[LeftOut]]:
    """Return the images among `paths`, sorted, and the other files; hidden files are no part of anything."""
    files = sorted(path for path in paths if not path.name.startswith(".") and path.is_file())
    images = [path.relative_to(root) for path in files if path.suffix.lower() in SUFFIXES]
    others = [path.relative_to(root).as_posix() for path in files if path.suffix.lower() not in SUFFIXES]
    return images, [LeftOut(name, "is no image file") for name in others]


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _descend(root: Path, names: Sequence[str]) -> Path:
    """Return the first of the folders `names` below `root`, or `root` itself."""
    return next((root / name for name in names if (root / name).is_dir()), root)
