"""Reference data sets as they lie on a disk: which files belong to them, in which order, and the class of each.

| kind           | layout                                                                                            |
|----------------|---------------------------------------------------------------------------------------------------|
| `imagenet-val` | synset folders (`n01440764/*.JPEG`), or one flat folder with a file of labels (see `label_file`)    |
| `imagenetv2`   | folders `0` .. `999`; variants matched-frequency, threshold-0.7, top-images                         |
| `relaionet`    | folders named by class or synset, below `reLAIONet-cleaned-v1/[images/]`                            |
| `cifar10`      | batches as downloaded, or class folders (see `cifar`)                                               |
| `folder`       | any images in a folder, .zip, .tar or .parquet, with or without class folders                      |

Images are ordered by class, then by file name: never by a folder name read as text where it is a number. Nothing is
left out silently: what is passed over is in `ImageSet.left_out` with its reason. Only names are read here, and the
classes that an archive states beside its images. Which level of folders holds the classes is decided in `classes`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from bench.contracts.plugins import Group
from bench.judges.pixels.images import SUFFIXES
from bench.references.classes import ClassNames, Sorted, check_first, sort_by_folder
from bench.references.containers import ARCHIVE_SUFFIXES, FORMS, Container, LeftOut, open_container
from bench.references.label_file import find_label_file, read_label_file
from protocols.imagenet import synset_labels
from results.errors import DatasetError
from results.numbers import counted

VALIDATION_FOLDERS = ("val", "imagenet_val", "ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "CLS-LOC/val")
V2_FOLDERS = {
    "matched-frequency": "imagenetv2-matched-frequency-format-val",
    "threshold-0.7": "imagenetv2-threshold0.7-format-val",
    "top-images": "imagenetv2-top-images-format-val",
}
RELAIONET_FOLDERS = ("reLAIONet-cleaned-v1/images", "reLAIONet-cleaned-v1", "images")
AMBIGUOUS = ("refuse", "skip")
SHOWN = 6
SYNSET_SHAPE = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ImageSet:
    """The images of a data set in order.

    Attributes:
        kind: name of the kind of data set.
        root: the folder or archive that holds the classes (or the images).
        files: their paths below `root`.
        labels: class of each, int64 [N]; None where the set has no classes.
        class_names: what the labels count, where the folders themselves say it; None where a protocol or ImageNet does.
        left_out: what lies there and is not part of the set.
        container: what reads them; None: they are files in a folder.
        above: the folders that hold class folders; several may be several sets.
    """

    kind: str
    root: Path
    files: tuple[PurePosixPath, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()
    container: Container | None = None
    above: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def by_path(self) -> ImageSet:
        """Return the same images in the order of their paths (or of an archive that is read front to back)."""
        if self.container is not None and self.container.sequential:
            return self
        order = sorted(range(len(self)), key=lambda index: self.files[index])
        labels = None if self.labels is None else self.labels[order]
        return replace(self, files=tuple(self.files[index] for index in order), labels=labels)


def describe(count: int, labels: np.ndarray | None, left_out: Sequence[LeftOut], above: Sequence[str] = ()) -> str:
    """Return one line: images, classes, whence where that is several folders, and what was passed over and why."""
    classes = 0 if labels is None else len(set(labels.tolist()))
    line = f"{counted(count, 'image')}, {'no' if not classes else f'{classes:,}'} class{'es' * (classes != 1)}"
    if len(above) > 1:
        more = f" and {len(above) - SHOWN} more" if len(above) > SHOWN else ""
        line += f", taken together from {len(above):,} folders ({', '.join(above[:SHOWN])}{more})"
    reasons: dict[str, list[str]] = {}
    for entry in left_out:
        reasons.setdefault(entry.reason, []).append(entry.name)
    for reason, names in reasons.items():
        if len(names) == 1:
            line += f"; passed over: {names[0]} {reason}"
            continue
        kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
        shown = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common(SHOWN))
        more = f" and {len(kinds) - SHOWN} more kinds" if len(kinds) > SHOWN else ""
        line += f"; passed over: {len(names):,} ({shown}{more}), each of which {reason}"
    return line


@dataclass(frozen=True)
class Wanted:
    """What a user or protocol says of a data set beside its folder.

    Attributes:
        variant: of `imagenetv2`: matched-frequency, threshold-0.7 or top-images; None where only one is there. Of
            `cifar10`: train or test; None is train.
        class_names: of `folder`: the classes that its folders must be named after (or numbered by).
        label_file: of a flat `imagenet-val`: the file with the class of each image; looked for nearby if None.
        ambiguous: `refuse` or `skip` folders that match no class or several.
        first_label: the number of the first class, where folders or a file number them: 0 or 1; None: 0, and refused
            where that looks wrong.
    """

    variant: str | None = None
    class_names: Sequence[str] = ()
    label_file: Path | None = None
    ambiguous: str = "refuse"
    first_label: int | None = None


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
    first_label: int | None = None,
) -> ImageSet:
    """List a data set of an installed `kind` in `root`, or in a folder below it where published so.

    `root` is a folder, or an archive for kinds that take one. The other arguments are those of `Wanted`.

    Raises:
        BenchError: the kind is not installed.
        DatasetError: the layout is another, a folder stands for no class or for several, or there are no images.
    """
    data_set = DATASETS.load(kind)
    if ambiguous not in AMBIGUOUS:
        raise DatasetError(f"--ambiguous must be {' or '.join(AMBIGUOUS)}, not '{ambiguous}'")
    if first_label not in (None, 0, 1):
        raise DatasetError(f"--first-label: {first_label} is neither 0 nor 1; use the number of the first class")
    if not root.exists() and not root.is_symlink():
        raise DatasetError(f"{root}: does not exist; name the data set's folder or archive")
    if label_file is not None and kind != "imagenet-val":
        raise DatasetError(
            f"--labels: only applies to a flat folder of kind imagenet-val, not to '{kind}'; leave it out"
        )
    found = data_set.list_images(root, Wanted(variant, class_names, label_file, ambiguous, first_label))
    if not found.files:
        raise DatasetError(_nothing(found))
    return found


def _nothing(found: ImageSet) -> str:
    """Say what lies where no image does."""
    packed = [entry.name for entry in found.left_out if entry.name.lower().endswith(ARCHIVE_SUFFIXES)]
    if packed:
        return (
            f"{found.root}: contains no images but {len(packed)} archive{'s' * (len(packed) > 1)} (the first "
            f"{packed[0]}); name one of them, or unpack them"
        )
    aside = describe(0, None, found.left_out).partition("; ")[2]
    more = f"; {aside}" if aside else ""
    return f"{found.root}: contains no images ({', '.join(SUFFIXES)}); name {FORMS}{more}"


def _imagenet_val(root: Path, wanted: Wanted) -> ImageSet:
    container = open_container(_descend(root, VALIDATION_FOLDERS))
    root = container.path
    if all(len(name.parts) == 1 for name in container.images):
        return _flat_validation(container, wanted.label_file, wanted.first_label)
    if wanted.label_file is not None:
        raise DatasetError(f"{root}: its folders already state the classes; leave out --labels")

    def synset(text: str) -> tuple[int, ...]:
        return (synset_labels()[text],) if text in synset_labels() else ()

    def fault(text: str) -> str | None:
        if synset(text):
            return None
        advice = "name the folder of synset folders, or the flat folder of validation images"
        if SYNSET_SHAPE.fullmatch(text):
            raise DatasetError(
                f"{root / text}: is not one of the 1000 synsets of ILSVRC 2012; move it out of the data set"
            )
        raise DatasetError(f"{root}: contains the folder '{text}', which is not a synset id; {advice}")

    found = sort_by_folder(root, container.images, synset, fault, advice="")
    if found.labels is None:
        fault(container.images[0].parent.name)
    return ordered("imagenet-val", container, found)


def _flat_validation(container: Container, label_file: Path | None, first_label: int | None) -> ImageSet:
    root, images, left_out = container.path, container.images, container.left_out
    file = label_file or (find_label_file(root) if root.is_dir() else None)
    if images and file is None:
        raise DatasetError(
            f"{root}: is a flat folder of images without a label file; put LOC_val_solution.csv or the development "
            "kit's data folder next to it, or name the file with --labels"
        )
    if not images or file is None:
        return ImageSet("imagenet-val", root, (), None, left_out=tuple(left_out))
    label_of = read_label_file(file, first_label)
    left_out = [entry for entry in left_out if root / entry.name != file]
    labels = [label_of(name.stem) for name in images]
    return ordered("imagenet-val", container, Sorted(images, labels, [], []), left_out)


def _imagenetv2(root: Path, asked: Wanted) -> ImageSet:
    variant = asked.variant
    if variant is not None and variant not in V2_FOLDERS:
        raise DatasetError(f"unknown variant of imagenetv2 '{variant}': known: {', '.join(V2_FOLDERS)}")
    wanted = V2_FOLDERS.values() if variant is None else [V2_FOLDERS[variant]]
    present = [name for name in wanted if (root / name).is_dir()]
    if len(present) > 1:
        raise DatasetError(f"{root}: contains {', '.join(present)}; choose one of them with --data")
    others = [name for name in V2_FOLDERS.values() if root.name == name and name not in wanted]
    if others:
        raise DatasetError(
            f"{root}: is not the variant '{variant}' that was asked for; name {V2_FOLDERS[variant or '']}"
        )
    container = open_container(root / present[0] if present else root)
    root = container.path

    def number(text: str) -> tuple[int, ...]:
        known = text.isascii() and text.isdigit() and int(text) < len(synset_labels())
        return (int(text),) if known else ()

    def fault(text: str) -> str | None:
        if not number(text):
            raise DatasetError(
                f"{root / text}: its name is not a class number in 0..999; name the folder that contains those"
            )
        return None

    found = sort_by_folder(root, container.images, number, fault, advice="")
    if container.images and found.labels is None:
        raise DatasetError(f"{root}: has no folders 0..999; name the folder that contains those")
    return ordered("imagenetv2", container, found)


def _relaionet(root: Path, wanted: Wanted) -> ImageSet:
    container = open_container(_descend(root, RELAIONET_FOLDERS))
    names = ClassNames(numbers=False, imagenet=True)
    return _by_names("relaionet", container, names, wanted.ambiguous)


def _folder(root: Path, wanted: Wanted) -> ImageSet:
    class_names, first_label = wanted.class_names, wanted.first_label
    container = open_container(root)
    if len(class_names) == 1:  # whatever the folders are called, they are of the one class
        return ordered("folder", container, Sorted(container.images, None, [], []))
    if not class_names:
        found = sort_by_folder(root, container.images, lambda text: (0,), lambda text: None, advice="")
        if found.labels is None:
            return ordered("folder", container, found)
        names = tuple(found.folders)
        labels = [names.index(name.parts[0]) for name in found.images]
        return replace(ordered("folder", container, found._replace(labels=labels)), class_names=names)
    names_of = ClassNames(class_names)
    if container.labels is not None:
        return _stated(container, names_of, first_label)
    numbers = {part: names_of.number(part) for name in container.images for part in name.parts[:-1]}
    counted = {n for part, n in numbers.items() if n is not None and not names_of.own.get(part)}
    if len(counted) > 1 and all(number is not None for number in numbers.values()):
        first_label = check_first(counted, names_of.count, first_label, str(root))
    return _by_names("folder", container, ClassNames(class_names, first=first_label or 0), wanted.ambiguous)


def _stated(container: Container, names: ClassNames, first_label: int | None) -> ImageSet:
    """Take the classes that an archive states beside its images."""
    stated = container.labels or []
    if set(stated) <= {-1, ""}:  # published test sets hide their labels so
        return ordered("folder", container, Sorted(container.images, None, [], []))
    numbers = [label for label in stated if isinstance(label, int)]
    first = check_first(numbers, names.count, first_label, str(container.path)) if numbers else 0
    labels = []
    for image, label in zip(container.images, stated, strict=True):
        if isinstance(label, int):
            fits = first <= label < first + names.count
            reason = None if fits else f"is beyond {first}..{first + names.count - 1}"
            found: tuple[int, ...] = (label - first,)
        else:
            found, reason = names.labels(label), names.fault(label)
        if reason:
            raise DatasetError(f"{container.path}: {image}: its label {label!r} {reason}; a class is {names.forms}")
        labels.append(found[0])
    return ordered("folder", container, Sorted(container.images, labels, [], []))


IMAGENET_VAL = DataSet(_imagenet_val)
IMAGENETV2 = DataSet(_imagenetv2)
RELAIONET = DataSet(_relaionet)
FOLDER = DataSet(_folder)


def _by_names(kind: str, container: Container, names: ClassNames, ambiguous: str) -> ImageSet:
    skip = "" if kind == "folder" else ", or leave it out with --ambiguous skip"
    found = sort_by_folder(
        container.path,
        container.images,
        names.labels,
        names.fault,
        advice=f"a class folder is named by {names.forms}; rename such a folder, or move it elsewhere{skip}",
        skip=ambiguous == "skip",
    )
    return ordered(kind, container, found)


def ordered(kind: str, container: Container, found: Sorted, left_out: Sequence[LeftOut] | None = None) -> ImageSet:
    """Return the images by label, then by path; those of an archive that is read front to back stay in its order."""
    aside = (*found.left_out, *(container.left_out if left_out is None else left_out))
    if found.labels is None:
        return ImageSet(kind, container.path, tuple(found.images), None, None, aside, container)
    labels = np.array(found.labels, dtype=np.int64)
    order = np.arange(len(labels)) if container.sequential else np.argsort(labels, kind="stable")
    files = tuple(found.images[index] for index in order)
    return ImageSet(kind, container.path, files, labels[order], None, aside, container, found.above)


def _descend(root: Path, names: Sequence[str]) -> Path:
    """Return the first of the folders `names` below `root`, or `root` itself."""
    return next((root / name for name in names if (root / name).is_dir()), root)
