"""Reference sets that were judged before: kept in the cache, found again by name, judge, crop and size.

    CACHE/references/NAME/DIGEST/facts.json        what it is made of, what was left out and why
                                 labels.npy        class of each image, int64 [n], where there are classes
                                 features.npy      float32 [n, d] (absent where only statistics are known)
                                 features.mu.npy   float64 [d], and features.sigma.npy [d, d], where they are full rank
                                 spatial.*         likewise, for sFID

One directory holds what one judge said of one data set cut in one way; DIGEST is over files, crop, judge and library.
A set whose images a function gives (`[reference] source`, the embedded digits) is judged when it is first needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.contracts.plugins import Group
from bench.judges.judge import Judge
from bench.metrics.measure import ReferenceFeatures
from bench.references.datasets import DATASETS
from bench.weights.cache import cache_directory
from protocols import Protocol
from protocols.schema import digest_of
from results.errors import BenchError, one_line, unknown
from results.files import disk_error, writing

BATCH = 64
OUTPUTS = ("features", "spatial")
"""What is kept of a judge's outputs: all that a metric reads of a reference."""
ARCHIVES = ("npz", "statistics", "none")
"""Kinds of references that are not a folder of images: an archive of them, exact statistics, or nothing at all."""
BUILT_FACTS: Mapping[str, type | tuple[type, ...]] = {
    "name": str, "kind": str, "n": int, "resize": str, "resolution": int, "data": str, "digest": str, "judge": str,
    "judge_digest": str, "outputs": list, "labels": (dict, type(None)),
}  # fmt: skip
"""Facts of a built reference that are read again, and their types."""
SOURCE_FACTS: Mapping[str, type | tuple[type, ...]] = {"name": str, "n": int, "judges_digest": str}
SOURCES: Group[Callable[..., Any]] = Group("bench.references", "source", "a function", callable)
"""Functions that give a reference's images or exact statistics: what `[reference] source` names."""


@dataclass(frozen=True)
class Reference:
    """A judged reference set on disk.

    Attributes:
        name: as the protocol calls it.
        digest: over everything its numbers depend on.
        facts: what is known of it.
        arrays: by array name (`inception.features`), the path of its files without their suffixes.
        labels_path: file of the labels, if it has any.
    """

    name: str
    digest: str
    facts: Mapping[str, Any]
    arrays: Mapping[str, Path]
    labels_path: Path | None = None

    @property
    def n(self) -> int:
        """Number of reference images; 0 where statistics do not say."""
        return int(self.facts["n"])

    @property
    def labels(self) -> np.ndarray | None:
        """Class of each reference image, int64 [n], where known."""
        if self.labels_path is None:
            return None
        labels = _read_array(self.labels_path, 1, mapped=False)
        if self.n and len(labels) != self.n:
            raise BenchError(
                f"{self.labels_path}: is damaged ({len(labels)} labels of {self.n} images); remove its folder, which "
                "'bench run' or 'bench reference build' creates again"
            )
        return labels

    def features(self) -> dict[str, ReferenceFeatures]:
        """Return what the judges said of the reference, features memory-mapped, by array name."""
        labels = self.labels
        found = {}
        for name, stem in self.arrays.items():
            features, mu, sigma = (_load(stem, part) for part in ("", ".mu", ".sigma"))
            n = (self.n or None) if features is None else len(features)
            found[name] = ReferenceFeatures(features, mu, sigma, labels, n)
        return found

    def row(self) -> dict[str, Any]:
        """Return the row of table `references`."""
        return {
            "name": self.name,
            "digest": self.digest,
            "n": self.n,
            "resize": str(self.facts.get("resize", "none")),
            "judge_digest": self.facts["judges_digest"],
            "facts": dict(self.facts),
        }


class BuiltReference(NamedTuple):
    """What one judge said of one data set cut in one way, as `bench reference build` left it."""

    directory: Path
    facts: Mapping[str, Any]

    @property
    def cut(self) -> str:
        """Crop and size, for messages."""
        return f"{self.facts['resize']} at {self.facts['resolution']} pixels"


def references_directory() -> Path:
    """Return where built references lie: in the cache directory."""
    return cache_directory() / "references"


def built_references(name: str | None = None) -> list[BuiltReference]:
    """Return the references that are built, or those called `name`, in the order of their paths."""
    found = []
    for path in sorted(references_directory().glob(f"{name or '*'}/*/facts.json")):
        if path.parent.suffix == ".tmp":
            continue
        try:
            found.append(BuiltReference(path.parent, read_facts(path, BUILT_FACTS)))
        except BenchError as error:
            raise BenchError(
                f"{error}; remove {path.parent} and build it again: bench reference build {path.parent.parent.name} "
                "--data DIR"
            ) from error
    return found


def read_facts(path: Path, wanted: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Return the facts of a stored reference. Raises BenchError naming the file for what is not what we write."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"{path}: is damaged ({one_line(str(error))})") from error
    if not isinstance(facts, dict):
        raise BenchError(f"{path}: is damaged (it does not contain a JSON object)")
    for key, kind in wanted.items():
        if not isinstance(facts.get(key), kind) or isinstance(facts.get(key), bool):
            raise BenchError(f"{path}: is damaged ('{key}' is missing or of a wrong type)")
    return facts


def _read_array(path: Path, dimensions: int, *, mapped: bool = True) -> np.ndarray:
    """Return a stored array. Raises BenchError naming the file for one that is damaged, pickled or of another shape."""
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.ndim != dimensions or array.dtype.kind not in "fiu":
            raise ValueError("it has no numbers of the expected shape")
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, MemoryError) as error:
        reason = "it is pickled" if "allow_pickle" in str(error) else one_line(str(error))
        raise BenchError(
            f"{path}: is damaged ({reason}); remove {path.parent}, which 'bench run' or 'bench reference build' "
            "creates again"
        ) from error
    return array


def feature_judges(judges: Mapping[str, Judge]) -> dict[str, Judge]:
    """Return the judges that say something of reference images: those that read no prompts, always in float32.

    A reference is judged once, and what half precision moves is measured on samples alone.
    """
    return {name: judge.strict() for name, judge in judges.items() if not judge.needs_labels}


def judges_digest(judges: Mapping[str, Judge]) -> str:
    """Return one digest over all judges of a protocol."""
    return digest_of({name: judge.digest for name, judge in judges.items()})


def conditions(judges: Mapping[str, Judge], reference: Reference) -> str:
    """Return the digest of what judges samples and of what they are held against: part of every cell's identity."""
    return digest_of([judges_digest(judges), reference.digest])


def build_command(protocol: Protocol) -> str:
    """Return the command that builds the protocol's reference."""
    data = "FILE.npz" if protocol.reference["kind"] in ("npz", "statistics") else "DIR"
    return f"bench reference build {protocol.reference['name']} --data {data} --protocol {protocol.argument}"


def prepare_reference(protocol: Protocol, judges: Mapping[str, Judge], runs: Path) -> Reference:
    """Return the protocol's judged reference.

    `[reference] kind` names a data set that `bench reference build` has judged. `source` names an entry point of the
    group `bench.references`: a function (of `part`, where that is set) that returns `images` uint8 [n, 3, H, W] and
    `labels` int64 [n], judged now unless that was done before, or exact statistics `mu` [d], `sigma` [d, d] and `n`
    (None: there are no images). Raises BenchError when it is not built, was built by another judge or with another
    crop, or does not hold what the protocol asks for.
    """
    if "source" in protocol.reference:
        return _prepare_source(protocol, feature_judges(judges), runs)
    if protocol.reference["kind"] == "none":
        name = str(protocol.reference["name"])
        facts = {"n": 0, "kind": "none", "judges_digest": judges_digest({})}
        return Reference(name, digest_of(["no reference", name]), facts, {})
    return _find(protocol, feature_judges(judges))


def _find(protocol: Protocol, judges: Mapping[str, Judge]) -> Reference:
    name = str(protocol.reference["name"])
    built = built_references(name)
    if not built:
        raise BenchError(
            f"reference '{name}' of protocol '{protocol.name}' is not built here: {build_command(protocol)}"
        )
    parts: dict[str, BuiltReference] = {}
    optional = protocol.reference["kind"] == "statistics"
    for key, judge in judges.items():
        fitting = _fitting(protocol, built, key, judge, required=not optional)
        if fitting is not None:
            parts[key] = fitting
    if not parts:
        raise BenchError(
            f"reference '{name}' was built with judges other than those of protocol '{protocol.name}': "
            f"{build_command(protocol)}"
        )
    if len({part.facts["data"] for part in parts.values()}) > 1:
        raise BenchError(
            f"reference '{name}': its judges saw different files; build it again for all of them: "
            f"{build_command(protocol)} --fresh"
        )
    first = next(iter(parts.values()))
    check_fit(protocol, first.facts)
    facts = {
        **first.facts,
        "judges_digest": judges_digest({key: judges[key] for key in parts}),
        "judges": {key: part.facts["digest"] for key, part in parts.items()},
    }
    arrays = {
        f"{key}.{output}": part.directory / output for key, part in parts.items() for output in part.facts["outputs"]
    }
    labels = first.directory / "labels.npy"
    labelled = len(protocol.class_names) > 1 and labels.exists()
    digest = digest_of({key: part.facts["digest"] for key, part in parts.items()})
    return Reference(name, digest, facts, arrays, labels if labelled else None)


def _fitting(
    protocol: Protocol, built: Sequence[BuiltReference], key: str, judge: Judge, *, required: bool
) -> BuiltReference | None:
    """Return the one reference that judge `key` made with the protocol's crop; where there is none, raise or None."""
    name = protocol.reference["name"]
    resize = protocol.reference.get("resize", "none")
    cut = [
        entry for entry in built if entry.facts["resize"] == resize and entry.facts["resolution"] == protocol.resolution
    ]
    fitting = [entry for entry in cut if entry.facts["judge_digest"] == judge.digest]
    if len(fitting) > 1:
        places = " and ".join(str(entry.directory) for entry in fitting)
        raise BenchError(f"reference '{name}' is built twice from different files: remove one of {places}")
    if fitting or not required:
        return fitting[0] if fitting else None
    if not cut:
        raise BenchError(
            f"reference '{name}' was cropped with {built[0].cut}, but protocol '{protocol.name}' uses {resize} at "
            f"{protocol.resolution} pixels: {build_command(protocol)}"
        )
    judged = ", ".join(sorted({str(entry.facts["judge"]) for entry in cut}))
    raise BenchError(
        f"reference '{name}' was not judged by '{key}' as protocol '{protocol.name}' defines it (weights, layers or "
        f"library differ; it was judged by {judged}): {build_command(protocol)}"
    )


def check_fit(protocol: Protocol, facts: Mapping[str, Any]) -> None:
    """Raise BenchError unless a set with these facts holds the images and classes that the protocol asks for.

    `facts`: `name`, `kind`, `n`, `labels` (images by label, as text), `names_digest` of the classes of a `folder`.
    """
    name, options = facts["name"], protocol.reference
    if facts["kind"] != "statistics" and facts["n"] < int(options.get("images", 2)):
        aside = len(facts.get("skipped", []))
        unreadable = f" ({aside} could not be read)" if aside else ""
        raise BenchError(
            f"reference '{name}' has {facts['n']:,} images{unreadable}, but protocol '{protocol.name}' needs "
            f"{int(options.get('images', 2)):,}; complete the data set and build it again"
        )
    classes = len(protocol.class_names)
    if classes == 1:
        return  # every image is of the one class, whatever the reference calls it
    present = {int(label) for label in facts["labels"] or {}}
    wanted = int(options.get("classes", 0))
    if not present:
        if wanted or protocol.label_plan == "reference":
            raise BenchError(
                f"reference '{name}' has no classes, but protocol '{protocol.name}' needs them; use class folders"
            )
        return
    if max(present) >= classes:
        raise BenchError(
            f"reference '{name}' has a class {max(present)}, protocol '{protocol.name}' has 0..{classes - 1}; choose "
            "another with --protocol"
        )
    if facts.get("names_digest") not in (None, digest_of(list(protocol.class_names))):
        raise BenchError(
            f"reference '{name}' was built for class names other than those of protocol '{protocol.name}': "
            f"{build_command(protocol)}"
        )
    if len(present) < wanted:
        missing = [f"{label} ({protocol.class_names[label]})" for label in range(classes) if label not in present]
        raise BenchError(
            f"reference '{name}' is missing {len(missing)} of {classes} classes, the first {', '.join(missing[:3])}; "
            "complete the data set and build it again"
        )


def _load(stem: Path, part: str) -> np.ndarray | None:
    path = stem.with_name(f"{stem.name}{part}.npy")
    dimensions = {"": 2, ".mu": 1, ".sigma": 2}[part]
    return _read_array(path, dimensions) if path.exists() else None


def _prepare_source(protocol: Protocol, judges: Mapping[str, Judge], runs: Path) -> Reference:
    facts = dict(protocol.reference)
    name = str(facts.get("name", protocol.name))
    digest = digest_of([facts, judges_digest(judges), protocol.resolution])
    directory = runs / "references" / digest[:20]
    if not (directory / "facts.json").exists():
        loaded = _load_source(protocol, facts)
        if hasattr(loaded, "mu"):
            parts = {f"{key}.features{part}": getattr(loaded, part[1:]) for key in judges for part in (".mu", ".sigma")}
            _write(directory, parts, {**facts, "n": loaded.n or 0, "judges_digest": judges_digest(judges)})
        else:
            parts = _judge_images(protocol, judges, loaded.images, loaded.labels)
            _write(directory, parts, {**facts, "n": len(loaded.images), "judges_digest": judges_digest(judges)})
    try:
        stored = read_facts(directory / "facts.json", SOURCE_FACTS)
    except BenchError as error:
        raise BenchError(f"{error}; remove {directory}, which the next run creates again") from error
    stems = (path.stem.removesuffix(".mu").removesuffix(".sigma") for path in sorted(directory.glob("*.npy")))
    arrays = {stem: directory / stem for stem in stems if stem != "labels"}
    labels = directory / "labels.npy"
    return Reference(name, digest, stored, arrays, labels if labels.exists() else None)


def _judge_images(
    protocol: Protocol, judges: Mapping[str, Judge], images: torch.Tensor, labels: torch.Tensor
) -> dict[str, np.ndarray]:
    expected = (3, protocol.resolution, protocol.resolution)
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
        raise BenchError(
            f"reference '{protocol.reference['name']}' contains {images.dtype} images of shape "
            f"{tuple(images.shape[1:])}, but protocol '{protocol.name}' needs uint8 {expected}"
        )
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(images), BATCH):
        batch, batch_labels = images[start : start + BATCH], labels[start : start + BATCH]
        for name, judge in judges.items():
            for key, values in judge(batch, batch_labels).items():
                if key in OUTPUTS:
                    parts.setdefault(f"{name}.{key}", []).append(values.cpu().numpy())
    return {key: np.concatenate(arrays) for key, arrays in parts.items()} | {"labels": labels.numpy()}


def _write(directory: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    try:
        with writing(directory) as temporary:
            temporary.mkdir()
            for key, array in arrays.items():
                np.save(temporary / f"{key}.npy", array)
            (temporary / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    except OSError as error:
        raise disk_error(directory, error) from error


def check_kind(protocol: Protocol) -> None:
    """Raise BenchError unless the `kind` of the protocol's reference is an installed data set or one of ARCHIVES."""
    kind = protocol.reference.get("kind")
    known = [*DATASETS.names(), *ARCHIVES]
    if kind is not None and kind not in known:
        raise unknown(f"kind of data set{_asked_by(protocol)}", str(kind), known)


def check_source(protocol: Protocol) -> None:
    """Raise BenchError, before any import, unless the protocol's `source` (if it has one) is an installed plug-in."""
    if "source" in protocol.reference:
        SOURCES.check(str(protocol.reference["source"]), _asked_by(protocol))


def source_images(protocol: Protocol) -> tuple[torch.Tensor, np.ndarray] | None:
    """Return the images uint8 [n, 3, h, w] and labels int64 [n] that the reference's `source` gives; None without."""
    facts = dict(protocol.reference)
    loaded = _load_source(protocol, facts) if "source" in facts else None
    return None if loaded is None or not hasattr(loaded, "images") else (loaded.images, loaded.labels.numpy())


def _load_source(protocol: Protocol, facts: Mapping[str, Any]) -> Any:
    source = str(facts["source"])
    function = SOURCES.load(source, _asked_by(protocol))
    try:
        loaded = function(facts["part"]) if "part" in facts else function()
    except Exception as error:
        raise BenchError(
            f"source '{source}'{_asked_by(protocol)} cannot be loaded ({one_line(str(error))}); check its 'part'"
        ) from error
    if not any(all(hasattr(loaded, key) for key in keys) for keys in (("images", "labels"), ("mu", "sigma", "n"))):
        raise BenchError(
            f"source '{source}'{_asked_by(protocol)} returned {type(loaded).__name__}, "
            "not images and labels, or mu, sigma and n"
        )
    return loaded


def _asked_by(protocol: Protocol) -> str:
    return f" of reference '{protocol.reference['name']}' in protocol '{protocol.name}'"
