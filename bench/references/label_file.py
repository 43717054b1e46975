"""Files that say the class of each ImageNet validation image, for the flat folder the images are published in.

Accepted, told apart by their content:

* `LOC_val_solution.csv`: a header, then `ILSVRC2012_val_00000001,n01751748 ...`: the first synset counts;
* `NAME CLASS` a line, with a synset id or a label 0..999 in the order of synset ids (`val.txt` of Caffe);
* one synset id a line, line k for image number k;
* one number 1..1000 a line (`ILSVRC2012_validation_ground_truth.txt`), line k for image number k: these count
  synsets in the development kit's own order, so its `meta.mat` (or a `map_clsloc.txt`: synset, number, name) must lie
  in the same folder. Without one of them the numbers are refused: read as labels they would be wrong and look right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from protocols.imagenet import synset_labels
from results.errors import DatasetError

NAMES = (
    "LOC_val_solution.csv",
    "ILSVRC2012_validation_ground_truth.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "synset_labels.txt",
    "val.txt",
)
FOLDERS = ("", "data", "ILSVRC2012_devkit_t12/data")
IMAGE_NUMBER = re.compile(r"_val_(\d+)$")
SYNSET = re.compile(r"n\d{8}")


def find_label_file(root: Path) -> Path | None:
    """Return the file of labels in `root` or in one of the four folders above it (and their `data`), if any."""
    places = [root, *root.resolve().parents[:4]]
    files = (place / folder / name for place in places for folder in FOLDERS for name in NAMES)
    return next((file for file in files if file.is_file()), None)


def read_label_file(file: Path) -> Callable[[str], int]:
    """Return the function from an image's name (without suffix) to its label 0..999.

    Raises DatasetError when the file is of no known form; the function raises it for an image it does not know.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{file}: cannot be read as a file of labels ({error}); give another with --labels"
        ) from error
    if not lines:
        raise DatasetError(f"{file}: is empty; give another with --labels")
    if lines[0].lower().startswith("imageid,"):
        return _by_name(file, {_stem(line.split(",")[0]): _synset(file, line.split(",")[1]) for line in lines[1:]})
    if len(lines[0].split()) == 2:
        pairs = (line.split() for line in lines)
        return _by_name(file, {_stem(pair[0]): _class(file, pair) for pair in pairs})
    if SYNSET.fullmatch(lines[0]):
        return _by_number(file, [_synset(file, line) for line in lines])
    if all(line.isdigit() for line in lines):
        return _by_number(file, _development_kit_labels(file, [int(line) for line in lines]))
    raise DatasetError(
        f"{file}: is no known file of labels (its first line is '{lines[0][:40]}'); docs/references.md shows the forms"
    )


def _stem(name: str) -> str:
    return Path(name).stem


def _synset(file: Path, text: str) -> int:
    synset = (text.split() or [""])[0]
    if synset not in synset_labels():
        raise DatasetError(f"{file}: '{synset}' is none of the 1000 synsets of ILSVRC 2012; give another with --labels")
    return synset_labels()[synset]


def _class(file: Path, pair: Sequence[str]) -> int:
    if len(pair) == 2 and pair[1].isdigit() and int(pair[1]) < len(synset_labels()):
        return int(pair[1])
    return _synset(file, pair[1] if len(pair) == 2 else "")


def _by_name(file: Path, labels: Mapping[str, int]) -> Callable[[str], int]:
    def label_of(name: str) -> int:
        if name not in labels:
            raise DatasetError(f"{file}: says nothing of image '{name}'; give the file that belongs to these images")
        return labels[name]

    return label_of


def _by_number(file: Path, labels: Sequence[int]) -> Callable[[str], int]:
    def label_of(name: str) -> int:
        match = IMAGE_NUMBER.search(name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(labels):
            raise DatasetError(
                f"{file}: has {len(labels)} lines and none for image '{name}' (ILSVRC2012_val_NUMBER is expected)"
            )
        return labels[number - 1]

    return label_of


def _development_kit_labels(file: Path, numbers: Sequence[int]) -> list[int]:
    order = _development_kit_order(file)
    for number in numbers:
        if number not in order:
            raise DatasetError(f"{file}: holds the number {number}; the development kit counts classes from 1 to 1000")
    return [order[number] for number in numbers]


def _development_kit_order(file: Path) -> dict[int, int]:
    """Return the label 0..999 of each class number 1..1000 of the development kit."""
    listing, meta = file.parent / "map_clsloc.txt", file.parent / "meta.mat"
    if listing.is_file():
        rows = (line.split() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip())
        synsets = {int(row[1]): row[0] for row in rows if len(row) >= 2 and row[1].isdigit()}
    elif meta.is_file():
        synsets = _meta_synsets(meta)
    else:
        raise DatasetError(
            f"{file}: counts classes in the development kit's own order; put its meta.mat (or map_clsloc.txt) beside it"
        )
    order = {number: _synset(file, synset) for number, synset in synsets.items() if synset in synset_labels()}
    if len(set(order.values())) != len(synset_labels()):
        raise DatasetError(f"{file}: the class list beside it has {len(order)} of the 1000 synsets; copy it again")
    return order


def _meta_synsets(meta: Path) -> dict[int, str]:
    from scipy.io import loadmat

    try:
        table = loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        pairs = zip(table["ILSVRC2012_ID"].tolist(), table["WNID"].tolist(), strict=True)
        return {int(number): str(synset) for number, synset in pairs}
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise DatasetError(f"{meta}: cannot be read ({error}); take it from the development kit again") from error
