"""Files that say the class of each ImageNet validation image, for the flat folder the images are published in.

Accepted, told apart by their content:

* `LOC_val_solution.csv`: a header, then `ILSVRC2012_val_00000001,n01751748 ...`: the first synset counts;
* `NAME CLASS` a line, separated by blanks, a tab, a comma or a semicolon, quoted or not, with or without a header;
  CLASS is a synset id or a label 0..999 in the order of synset ids (`val.txt` of Caffe);
* one synset id a line, line k for image number k;
* one number 1..1000 a line (`ILSVRC2012_validation_ground_truth.txt`), line k for image number k: these count
  synsets in the development kit's own order, so its `meta.mat` (or a `map_clsloc.txt`: synset, number, name) must lie
  in the same folder. Without one of them the numbers are refused: read as labels they would be wrong and look right.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from bench.references.classes import check_first
from protocols.imagenet import synset_labels
from results.errors import DatasetError, one_line
from results.files import read_regular, real_path

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
INTEGER = re.compile(r"[+-]?\d{1,12}", re.ASCII)
FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|[+-]?inf", re.ASCII)
LINE_ENDS = re.compile(r"\r\n|\r|\n")
HEADERS = {"imageid", "image_id", "image", "filename", "file_name", "file", "path", "name", "id", "img"}
LARGEST = 2**26


def find_label_file(root: Path) -> Path | None:
    """Return the file of labels in `root` or in one of the four folders above it (and their `data`), if any."""
    places = [root, *real_path(root).parents[:4]]
    files = (place / folder / name for place in places for folder in FOLDERS for name in NAMES)
    return next((file for file in files if file.is_file()), None)


def read_label_file(file: Path, first_label: int | None = None) -> Callable[[str], int]:
    """Return the function from an image's name (without suffix) to its label 0..999.

    `first_label` is the number that the first class has in the file, 0 or 1; None: 0, and refused where that looks
    wrong.
    Raises DatasetError when the file is of no known form; the function raises it for an image it does not know.
    """
    lines = _lines(file)
    rows = [(number, _cells(file, number, line)) for number, line in enumerate(lines, start=1)]
    filled = [(number, cells) for number, cells in rows if cells]
    if not filled:
        raise DatasetError(f"{file}: is empty; choose another with --labels")
    headed = _is_header(filled[0][1])
    filled = filled[1:] if headed else filled
    width = 2 if headed else len(filled[0][1])
    for number, cells in filled:
        if len(cells) != width or width > 2:
            fields = "1 field" if len(cells) == 1 else f"{len(cells)} fields"
            raise DatasetError(f"{file}: line {number} has {fields} instead of {min(width, 2)}; correct the line")
    if width == 2:
        return _by_name(file, _named(file, filled, first_label))
    if width == 1:
        for number, cells in rows[: filled[-1][0]]:
            if not cells and number > filled[0][0]:
                raise DatasetError(f"{file}: line {number} is blank, but line k is for image k; remove or fill it")
        texts = [(number, cells[0]) for number, cells in filled]
        if SYNSET.fullmatch(texts[0][1]):
            return _by_number(file, [_synset(file, number, text) for number, text in texts])
        if INTEGER.fullmatch(texts[0][1]):
            return _by_number(file, _development_kit_labels(file, texts))
    shown = lines[0].strip()[:40]
    raise DatasetError(
        f"{file}: is not a label file of a known form (its first line is {shown!r}); docs/references.md shows the forms"
    )


def _lines(file: Path) -> list[str]:
    """Return the lines of a text, whoever wrote it: with or without BOM, any line ends."""
    try:
        content = read_regular(file, LARGEST)
    except OSError as error:
        raise DatasetError(
            f"{file}: cannot be read as a label file ({error.strerror or error}); choose another with --labels"
        ) from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DatasetError(f"{file}: is in UTF-16; save it in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + len(LINE_ENDS.findall(content[: error.start].decode("latin-1")))
        raise DatasetError(
            f"{file}: line {line} is not UTF-8 (byte 0x{content[error.start]:02x}); save it in UTF-8"
        ) from error
    if "\0" in text:
        raise DatasetError(f"{file}: is not text (it contains zero bytes); choose another with --labels")
    return LINE_ENDS.split(text)


def _cells(file: Path, number: int, line: str) -> list[str]:
    """Return the cells of a line, none if it is blank: separated by a comma, a semicolon, a tab, or blanks."""
    line = line.strip()
    separator = next((mark for mark in ",;\t" if mark in line), " ")
    try:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise DatasetError(f"{file}: line {number} cannot be read ({error}); check its quotes") from error
    cells = [cell.strip() for cell in cells]
    if separator == " ":
        return [cell for cell in cells if cell]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _is_header(cells: Sequence[str]) -> bool:
    return len(cells) > 1 and cells[0].lower() in HEADERS and not INTEGER.fullmatch(cells[1])


def _named(file: Path, rows: Sequence[tuple[int, list[str]]], first_label: int | None) -> dict[str, int]:
    """Return the label of each image name. Raises DatasetError for one that has two."""
    numbers = {int(cells[1]) for _, cells in rows if INTEGER.fullmatch(cells[1])}
    first = check_first(numbers, len(synset_labels()), first_label, str(file)) if numbers else 0
    found: dict[str, tuple[int, int]] = {}
    for number, cells in rows:
        stem = _stem(cells[0])
        label = _class(file, number, cells[1], first)
        if stem in found and found[stem][1] != label:
            raise DatasetError(
                f"{file}: lines {found[stem][0]} and {number} give image '{stem}' two classes, {found[stem][1]} and "
                f"{label}; remove one"
            )
        found.setdefault(stem, (number, label))
    return {stem: label for stem, (_, label) in found.items()}


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem


def _synset(file: Path, number: int, text: str) -> int:
    synset = (text.split() or [""])[0]
    if synset not in synset_labels():
        raise DatasetError(
            f"{file}: line {number}: '{synset}' is not one of the 1000 synsets of ILSVRC; choose another with --labels"
        )
    return synset_labels()[synset]


def _class(file: Path, number: int, text: str, first: int) -> int:
    if INTEGER.fullmatch(text):
        label, last = int(text) - first, len(synset_labels()) - 1
        if 0 <= label <= last:
            return label
        raise DatasetError(
            f"{file}: line {number}: {text} is not one of the 1000 synsets' numbers {first}..{last + first}; correct it"
        )
    if FLOAT.fullmatch(text):
        raise DatasetError(f"{file}: line {number}: {text} is not a whole number; correct it")
    return _synset(file, number, text)


def _by_name(file: Path, labels: Mapping[str, int]) -> Callable[[str], int]:
    def label_of(name: str) -> int:
        if name not in labels:
            raise DatasetError(f"{file}: does not list image '{name}'; use the file that belongs to these images")
        return labels[name]

    return label_of


def _by_number(file: Path, labels: Sequence[int]) -> Callable[[str], int]:
    def label_of(name: str) -> int:
        match = IMAGE_NUMBER.search(name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(labels):
            raise DatasetError(
                f"{file}: has {len(labels)} lines but none for image '{name}' (ILSVRC2012_val_NUMBER is expected)"
            )
        return labels[number - 1]

    return label_of


def _development_kit_labels(file: Path, texts: Sequence[tuple[int, str]]) -> list[int]:
    order = _development_kit_order(file)
    for line, text in texts:
        if not INTEGER.fullmatch(text) or int(text) not in order:
            raise DatasetError(f"{file}: line {line} holds '{text}'; the development kit counts classes from 1 to 1000")
    return [order[int(text)] for _, text in texts]


def _development_kit_order(file: Path) -> dict[int, int]:
    """Return the label 0..999 of each class number 1..1000 of the development kit."""
    listing, meta = file.parent / "map_clsloc.txt", file.parent / "meta.mat"
    if listing.is_file():
        rows = (line.split() for line in _lines(listing) if line.strip())
        synsets = {int(row[1]): row[0] for row in rows if len(row) >= 2 and INTEGER.fullmatch(row[1])}
    elif meta.is_file():
        synsets = _meta_synsets(meta)
    else:
        raise DatasetError(
            f"{file}: counts classes in the development kit's own order; put its meta.mat (or map_clsloc.txt) next to "
            "it"
        )
    order = {number: synset_labels()[synset] for number, synset in synsets.items() if synset in synset_labels()}
    if len(set(order.values())) != len(synset_labels()):
        raise DatasetError(f"{file}: the class list next to it has {len(order)} of the 1000 synsets; copy it again")
    return order


def _meta_synsets(meta: Path) -> dict[int, str]:
    from scipy.io import loadmat

    try:
        read_regular(meta, LARGEST)
        table = loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        pairs = zip(table["ILSVRC2012_ID"].tolist(), table["WNID"].tolist(), strict=True)
        return {int(number): str(synset) for number, synset in pairs}
    except Exception as error:  # scipy meets damaged bytes with exceptions of every kind
        raise DatasetError(
            f"{meta}: cannot be read ({one_line(str(error), 100)}); copy it from the development kit again"
        ) from error
