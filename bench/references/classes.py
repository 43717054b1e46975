"""Which class a folder stands for, and which level of folders holds the classes: one rule for every set of images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from bench.references.containers import LeftOut
from protocols.imagenet import imagenet_classes, labels_of_name, spelling, synset_labels
from results.errors import DatasetError, nearest

NUMBER = re.compile(r"(?:(?:class|label)_?)?(\d{1,9})")
SYNSET = re.compile(r"(n\d{8})(?:_.*)?")
PARTS_OF_A_SET = {"train", "training", "val", "valid", "validation", "test", "testing"}
SHOWN = 4


class ClassNames:
    """What may name a class: its name, its number, its synset.

    Args:
        names: the protocol's class names in label order; a name that several share stands for all of them.
        numbers: whether a number (`3`, `003`, `class_3`) names a class.
        first: the number of the first class: 0, or 1 where somebody counted from one.
        imagenet: whether the classes are ImageNet's, known by synsets and other spellings too; None: if the names are.
    """

    def __init__(
        self, names: Sequence[str] = (), *, numbers: bool = True, first: int = 0, imagenet: bool | None = None
    ) -> None:
        classes = imagenet_classes()
        if imagenet is None:
            imagenet = list(names) in ([c.name for c in classes], [c.published_name for c in classes])
        self.count = len(names) or (len(classes) if imagenet else 0)
        self.first, self.numbers, self.imagenet = first, numbers, imagenet
        self.own: dict[str, tuple[int, ...]] = {}
        for label, name in enumerate(names):
            self.own[spelling(name)] = (*self.own.get(spelling(name), ()), label)
        self.others: Mapping[str, tuple[int, ...]] = labels_of_name() if imagenet else {}

    def labels(self, text: str) -> tuple[int, ...]:
        """Return the labels that `text` may stand for: none, one, or several."""
        name = spelling(text)
        found = set(self.own.get(name, ()) or self.others.get(name, ()))
        number = self.number(text)
        if number is not None and self.first <= number < self.first + self.count:
            found.add(number - self.first)
        if self.imagenet and (synset := SYNSET.fullmatch(name)) and synset[1] in synset_labels():
            found.add(synset_labels()[synset[1]])
        if not found and "," in text:  # `tench, Tinca tinca`: the first of the synonyms
            return self.labels(text.split(",")[0])
        return tuple(sorted(found))

    def number(self, text: str) -> int | None:
        """Return the number that `text` is, where numbers name classes."""
        match = NUMBER.fullmatch(spelling(text)) if self.numbers else None
        return int(match[1]) if match else None

    @property
    def forms(self) -> str:
        """What is accepted, for messages."""
        numbers = f"its number {self.first}..{self.first + self.count - 1} (leading zeros allowed)"
        forms = ["its class's name", *[numbers] * self.numbers, *["its synset id"] * self.imagenet]
        return " or ".join([", ".join(forms[:-1]), forms[-1]]) if len(forms) > 1 else forms[0]

    def fault(self, text: str) -> str | None:
        """Return why `text` names no one class, None where it does."""
        labels = self.labels(text)
        if len(labels) == 1:
            return None
        if labels:
            return f"matches both {' and '.join(map(self.title, labels))}"
        if self.number(text) is not None:
            return f"does not match any class (they are numbered {self.first}..{self.first + self.count - 1})"
        near = nearest(spelling(text), [*self.own, *self.others], 1)
        return "does not match any class" + (f" (close to: {near[0]})" if near else "")

    def title(self, label: int) -> str:
        """Return a class for messages."""
        if not self.imagenet:
            return f"class {label}"
        entry = imagenet_classes()[label]
        return f"class {label} ({entry.name}, {entry.synset})"


def check_first(numbers: Iterable[int], count: int, given: int | None, source: str) -> int:
    """Return the number of the first class: what was given, else 0 where the numbers leave no doubt.

    Raises DatasetError where they look counted from 1: number `count` is there, or every one from 1 on but no 0.
    """
    if given is not None:
        return given
    found = set(numbers)
    if len(found) < 2 or min(found) < 1:
        return 0
    top = max(found)
    if top == count or (1 in found and len(found) >= 3 and len(found) >= 0.9 * min(top, count)):
        why = f"{count} is present" if top == count else f"1..{top} are present"
        raise DatasetError(
            f"{source}: its classes seem to be numbered from 1 ({why}, 0 is not), but here they are numbered from 0; "
            "state which with --first-label 1 or --first-label 0"
        )
    return 0


class Sorted(NamedTuple):
    """Images with the label of each, or None without classes, the folders that say them, and those left out."""

    images: list[PurePosixPath]
    labels: list[int] | None
    folders: list[str]
    left_out: list[LeftOut]
    above: tuple[str, ...] = ()


def sort_by_folder(
    root: object,
    images: Sequence[PurePosixPath],
    labels_of: Callable[[str], tuple[int, ...]],
    fault_of: Callable[[str], str | None],
    *,
    advice: str,
    skip: bool = False,
) -> Sorted:
    """Take each image's class from the one level of folders at which every folder names a class.

    Images in no folder, or all in one matching no class, have no classes. Raises DatasetError where images lie beside
    class folders, two levels give different classes, or no level fits (with `skip`, folders that name no class, or
    several, are left out).
    """
    loose = [name for name in images if len(name.parts) == 1]
    if loose and len(loose) < len(images):
        raise _mixed(root, images, loose)
    chains = {name.parent for name in images}
    if loose or not images:
        return Sorted(list(images), None, [], [])
    depth = min(len(name.parts) - 1 for name in images)
    named = {part: labels_of(part) for name in images for part in name.parts[:depth]}
    fitting = [level for level in range(depth) if all(named[name.parts[level]] for name in images)]
    if not fitting and len(chains) == 1:
        return Sorted(list(images), None, [], [])
    _check_parts(root, images, depth)
    if fitting:
        level = fitting[0]
        for other in fitting[1:]:
            for name in images:
                if named[name.parts[level]] != named[name.parts[other]]:
                    one, two = "/".join(name.parts[: level + 1]), "/".join(name.parts[: other + 1])
                    raise DatasetError(
                        f"{root}: two levels of folders name classes ('{one}' and, below it, '{two}'); name the folder "
                        "that contains the classes, or rename the other level"
                    )
    else:
        level = max(range(depth), key=lambda level: sum(bool(named[name.parts[level]]) for name in images))
    folders = sorted({name.parts[level] for name in images})
    faults = {folder: reason for folder in folders if (reason := fault_of(folder))}
    if faults and not skip:
        listed = "; ".join(f"'{name}' {reason}" for name, reason in list(faults.items())[:SHOWN])
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DatasetError(f"{root}: {listed}{more}; {advice}")
    kept = [name for name in images if name.parts[level] not in faults]
    left_out = [LeftOut(name, reason) for name, reason in faults.items()]
    labels = [named[name.parts[level]][0] for name in kept]
    above = sorted({"/".join(name.parts[:level]) for name in kept})
    return Sorted(kept, labels, [folder for folder in folders if folder not in faults], left_out, tuple(above))


def _check_parts(root: object, images: Sequence[PurePosixPath], depth: int) -> None:
    """Refuse a set that is several: training and validation images side by side."""
    for level in range(depth):
        folders = {name.parts[level] for name in images}
        if len(folders) > 1 and {folder.lower() for folder in folders} <= PARTS_OF_A_SET:
            raise DatasetError(
                f"{root}: contains the parts {' and '.join(sorted(folders))}; name the folder of one of them"
            )


def _mixed(root: object, images: Sequence[PurePosixPath], loose: Sequence[PurePosixPath]) -> DatasetError:
    """Name what there is less of: a grid beside class folders, or a folder beside the images."""
    rest = [name for name in images if len(name.parts) > 1]
    if len(loose) <= len(rest):
        more = f" (as do {len(loose) - 1} more)" if len(loose) > 1 else ""
        return DatasetError(
            f"{root}/{loose[0]}: lies next to class folders{more}; move it into one of them or elsewhere"
        )
    inside = "1 image" if len(rest) == 1 else f"{len(rest)} images"
    return DatasetError(
        f"{root}/{rest[0].parts[0]}: is a folder with {inside} next to {len(loose)} loose ones; move it "
        "elsewhere, or put all images into one folder"
    )
