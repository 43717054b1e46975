"""The 1000 classes of ImageNet (ILSVRC 2012) in the order of their synset ids, with a readable name for each.

`classes.csv` holds, for every label, the WordNet synset, `name` (the first lemma, readable, unique: the two cranes, the
two maillots and the two cardigans are told apart) and `published_name`, the spelling of the fair benchmark's class file
(underscores, the six clashing names left as they are).
"""

from __future__ import annotations

import csv
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import NamedTuple

SEPARATORS = re.compile(r"[-'\u2019\s_]+")
CLASSES_FILE = Path(__file__).parent / "classes.csv"


class ImageNetClass(NamedTuple):
    """One class: `label` 0..999 counts the synsets in the order of their ids."""

    label: int
    synset: str
    name: str
    published_name: str


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Return the 1000 classes in label order."""
    with CLASSES_FILE.open(encoding="utf-8", newline="") as file:
        return tuple(
            ImageNetClass(int(row["label"]), row["synset"], row["name"], row["published_name"])
            for row in csv.DictReader(file)
        )


@cache
def synset_labels() -> dict[str, int]:
    """Return the label of each synset id."""
    return {entry.synset: entry.label for entry in imagenet_classes()}


@cache
def labels_of_name() -> dict[str, tuple[int, ...]]:
    """Return the labels that a folder name may stand for, by its `spelling`; several where names clash."""
    found: dict[str, set[int]] = {}
    for entry in imagenet_classes():
        for name in (entry.name, entry.published_name):
            found.setdefault(spelling(name), set()).add(entry.label)
    return {name: tuple(sorted(labels)) for name, labels in found.items()}


def spelling(name: str) -> str:
    """Return a name as folders are compared: lower case, an underscore for each run of hyphens, apostrophes and blanks.

    Blanks at the ends do not count, nor does how an accent is composed.
    """
    return SEPARATORS.sub("_", unicodedata.normalize("NFC", name).casefold().strip())
