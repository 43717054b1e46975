"""`bench reference build`: a data set judged once, in a stream that can be stopped at any moment.

While it runs, CACHE/references/NAME/KEY.partial holds the rows judged so far and `progress.json`, which is replaced
after every batch; KEY is over the files, the crop and the judges, so a build continues only where nothing has changed.
Memory does not grow with the number of images: features go to a memory map, moments are taken from it in blocks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout

from bench.judges.judge import Judge
from bench.judges.pixels.npz import npz_keys
from bench.judges.pixels.sanity import Pixels
from bench.metrics.frechet import FrechetReference, row_blocks
from bench.metrics.frechet import Moments as Sums
from bench.references.datasets import open_image_set
from bench.references.source import ArchiveSource, Fault, FileSource, ImageSource, check_policy
from bench.references.statistics import Moments, Statistics, read_statistics
from bench.references.stored import OUTPUTS, BuiltReference, built_references, check_fit, references_directory
from protocols import Protocol as BenchProtocol
from protocols.schema import digest_of
from results.database import now
from results.errors import BenchError
from results.files import abandoned, disk_error, remove, write_atomically, writing

BATCH = 64
FORMAT = 1


class Progress(Protocol):
    """Told how far a build is; the command line draws it."""

    def begin(self, total: int, done: int) -> None:
        """Images in all, and those judged by an earlier, interrupted build."""

    def advance(self, count: int) -> None:
        """So many more images are judged (or skipped)."""

    def say(self, text: str) -> None:
        """One line for the reader."""


@dataclass(frozen=True)
class BuildRequest:
    """What to build; None leaves a choice to the protocol's `[reference]`."""

    name: str
    data: Path
    protocol: BenchProtocol
    kind: str | None = None
    resize: str | None = None
    variant: str | None = None
    label_file: Path | None = None
    ambiguous: str = "refuse"
    first_label: int | None = None
    skip_unreadable: bool = False
    workers: int = 0
    fresh: bool = False

    @property
    def chosen_kind(self) -> str:
        """Kind of data set."""
        return self.kind or str(self.protocol.reference.get("kind", "folder"))

    @property
    def chosen_resize(self) -> str:
        """Name of the crop or resize policy."""
        return self.resize or str(self.protocol.reference.get("resize", "none"))


class BuildResult(NamedTuple):
    """The references that are there now, and which of them were there before."""

    references: list[BuiltReference]
    reused: int


def build_reference(request: BuildRequest, judges: Sequence[Judge], progress: Progress) -> BuildResult:
    """Judge a data set, one directory per judge.

    Judges that read prompts are passed over. Raises BenchError for a data set that does not fit the protocol (before
    anything is judged), an unreadable image (unless they are to be skipped), and a full disk; what was judged stays.
    """
    strict = [judge.strict() for judge in judges if not judge.needs_labels]
    judges = list({judge.digest: judge for judge in strict}.values())
    if not judges:
        raise BenchError(f"protocol '{request.protocol.name}' has no judge that reads a reference")
    source = open_source(request)
    if source is None:
        return _from_statistics(request, judges, progress)
    statistics = read_statistics(request.data) if request.chosen_kind == "npz" else None
    return _Build(request, source, judges, statistics, progress).run()


def open_source(request: BuildRequest) -> ImageSource | None:
    """Return the images of a data set, listed but not decoded; None where it is statistics alone.

    Raises BenchError for a data set that is not there or does not fit the protocol.
    """
    if request.chosen_kind == "none":
        raise BenchError(f"protocol '{request.protocol.name}' has no reference, so there is nothing to build")
    if request.chosen_kind == "statistics":
        return None
    if request.chosen_kind == "npz" and "arr_0" not in npz_keys(request.data):
        raise BenchError(f"{request.data}: has no images (arr_0); build it with --kind statistics")
    source = _open(request)
    labels = _counts(source.labels, np.arange(len(source)))
    names = digest_of(list(request.protocol.class_names)) if source.kind == "folder" and labels else None
    check_fit(
        request.protocol,
        {"name": request.name, "kind": source.kind, "n": len(source), "labels": labels, "names_digest": names},
    )
    return source


def _open(request: BuildRequest) -> ImageSource:
    size, policy = request.protocol.resolution, request.chosen_resize
    check_policy(policy)
    if request.chosen_kind == "npz":
        return ArchiveSource(request.data, size, policy)
    images = open_image_set(
        request.chosen_kind,
        request.data,
        variant=request.variant or request.protocol.reference.get("variant"),
        class_names=request.protocol.class_names,
        label_file=request.label_file,
        ambiguous=request.ambiguous,
        first_label=request.first_label,
    )
    return FileSource(images, size, policy, request.workers or os.cpu_count() or 1)


def _counts(labels: np.ndarray | None, kept: np.ndarray) -> dict[str, int] | None:
    return (
        None
        if labels is None
        else {str(label): count for label, count in sorted(Counter(labels[kept].tolist()).items())}
    )


class _Build:
    """One build in progress."""

    def __init__(
        self,
        request: BuildRequest,
        source: ImageSource,
        judges: Sequence[Judge],
        statistics: Statistics | None,
        progress: Progress,
    ) -> None:
        self.request, self.source, self.statistics, self.progress = request, source, statistics, progress
        self.settings = [source.kind, request.chosen_resize, request.protocol.resolution, source.decoder, FORMAT]
        self.home = references_directory() / request.name
        key = digest_of([source.listing, self.settings, sorted(judge.digest for judge in judges)])
        self.partial = self.home / f"{key[:20]}.partial"
        self.judges = list(judges)
        self.faults: list[Fault] = []
        self.pixels = Pixels()
        self.data = ""

    def run(self) -> BuildResult:
        """Judge what is not judged yet and store it."""
        built = built_references(self.request.name)
        there = {} if self.request.fresh else {e.facts["judge_digest"]: e for e in built if self._same(e)}
        missing = [judge for judge in self.judges if judge.digest not in there]
        with _disk(self.home), _alone(self.home):
            for left in {*self.home.glob("*.partial"), *self.home.glob("*.tmp")} - {self.partial}:
                if abandoned(left):  # of other images or settings, and a day old: nobody continues it
                    shutil.rmtree(left, ignore_errors=True)
            if self.request.fresh:
                shutil.rmtree(self.partial, ignore_errors=True)
            if missing:
                self._judge(missing)
                there |= {judge.digest: self._store(judge) for judge in missing}
            shutil.rmtree(self.partial, ignore_errors=True)
        return BuildResult([there[judge.digest] for judge in self.judges], len(self.judges) - len(missing))

    def _same(self, entry: BuiltReference) -> bool:
        facts = entry.facts
        return facts.get("listing") == self.source.listing and facts.get("settings") == self.settings

    def _judge(self, judges: Sequence[Judge]) -> None:
        """Judge every image that is not judged yet, batch by batch; whatever batch was finished stays on disk."""
        self.partial.mkdir(parents=True, exist_ok=True)
        state = _read_json(self.partial / "progress.json")
        complete = all(self._outputs_path(judge).exists() for judge in judges)
        done = int(state.get("done", 0)) if complete else 0
        self.faults = self._checked([Fault(*fault) for fault in state.get("faults", [])]) if done else []
        self.pixels = Pixels.of(state["pixels"]) if done else Pixels()
        self.progress.begin(len(self.source), done)
        if done:
            self.progress.say(f"continuing after {done:,} of {len(self.source):,} images")
        arrays: dict[str, np.memmap] = {}

        def array(stem: str, shape: tuple[int, ...], dtype: type) -> np.memmap:
            if stem not in arrays:
                arrays[stem] = self._array(stem, shape, np.dtype(dtype), continued=done > 0)
            return arrays[stem]

        for batch in self.source.batches(done, BATCH):
            self.faults += self._checked(batch.faults)
            array("hashes", (32,), np.uint8)[batch.start : batch.stop] = batch.sha256
            array("equal", (), np.uint64)[batch.places] = self.pixels.add(batch.images.numpy(), batch.notes)
            labels = torch.zeros(len(batch.places), dtype=torch.int64)
            for judge in judges if len(batch.places) else []:
                outputs = {key: values for key, values in judge(batch.images, labels).items() if key in OUTPUTS}
                for output, values in outputs.items():
                    rows = array(f"{judge.digest[:20]}.{output}", tuple(values.shape[1:]), np.float32)
                    rows[batch.places] = values.cpu().numpy()
                if not self._outputs_path(judge).exists():
                    _write_json(self._outputs_path(judge), sorted(outputs))
            for rows in arrays.values():
                rows.flush()
            _write_json(
                self.partial / "progress.json",
                {"done": batch.stop, "faults": self.faults, "pixels": self.pixels.counts()},
            )
            self.progress.advance(batch.stop - batch.start)
        if len(self.source) - len(self.faults) < 2:
            raise BenchError(f"{self.request.data}: {len(self.faults)} of {len(self.source)} images cannot be read")

    def _checked(self, faults: list[Fault]) -> list[Fault]:
        """Return unreadable images that may be left out, telling each; raise for the first that may not."""
        for fault in faults:
            if not self.request.skip_unreadable:
                raise BenchError(
                    f"{self.source.root / fault.name}: {fault.reason}; replace it, or leave such files out with "
                    "--skip-unreadable"
                )
            self.progress.say(f"left out: {fault.name}: {fault.reason}")
        return faults

    def _outputs_path(self, judge: Judge) -> Path:
        """Return the file that lists what a judge gives; it is there once the judge's first batch is."""
        return self.partial / f"{judge.digest[:20]}.json"

    def _array(self, stem: str, shape: tuple[int, ...], dtype: np.dtype, continued: bool) -> np.memmap:
        path = self.partial / f"{stem}.npy"
        if continued and path.exists():
            return np.lib.format.open_memmap(path, mode="r+")
        return _reserved(path, dtype, (len(self.source), *shape))

    def _store(self, judge: Judge) -> BuiltReference:
        """Move what one judge said to its place, without the rows of unreadable images, and add its moments."""
        faulty = {fault.place for fault in self.faults}
        kept = np.array([place for place in range(len(self.source)) if place not in faulty], dtype=np.int64)
        outputs = json.loads(self._outputs_path(judge).read_text(encoding="utf-8"))
        hashes = np.load(self.partial / "hashes.npy", mmap_mode="r", allow_pickle=False)
        data = self._content(hashes)
        rows = {
            output: np.load(self.partial / f"{judge.digest[:20]}.{output}.npy", mmap_mode="r", allow_pickle=False)
            for output in outputs
        }
        known = {output: self._known(judge, output, rows[output].shape[1]) for output in outputs}
        taken_over = sorted(output for output, statistics in known.items() if statistics is not None)
        facts = {
            **_facts(self.request, judge, self.source.kind, data, len(kept), outputs),
            "labels": _counts(self.source.labels, kept),
            "listing": self.source.listing,
            "settings": self.settings,
            "statistics": {},
            "skipped": [{"file": fault.name, "reason": fault.reason} for fault in self.faults],
            "left_out": [entry._asdict() for entry in self.source.left_out],
            "described": self.source.describe(),
            "pixels": self._pixels(kept),
        }
        if self.source.kind == "folder" and self.source.labels is not None:
            facts["names_digest"] = digest_of(list(self.request.protocol.class_names))
        facts["digest"] = digest_of([data, self.settings, judge.digest, sorted(faulty), taken_over])
        with _publishing(self.home, facts) as temporary:
            for output in outputs:
                features = _keep_rows(rows[output], kept, temporary / f"{output}.npy")
                moments = known[output]
                if moments is None:
                    moments = _moments(features)
                else:
                    distance = self._distance(judge, moments, features)
                    facts["statistics"][output] = {"distance_to_own_images": distance}
                if moments is not None:
                    _save_moments(temporary, output, moments)
            if self.source.labels is not None:
                np.save(temporary / "labels.npy", self.source.labels[kept])
        return BuiltReference(_place(self.home, facts), facts)

    def _content(self, hashes: np.ndarray) -> str:
        """Return the digest of the set's content, read once for all judges."""
        if not self.data:
            self.data = self.source.content(hashes)
        return self.data

    def _pixels(self, kept: np.ndarray) -> dict[str, Any]:
        """Return what the images look like; the hashes of all, also of those an interrupted build saw, lie on disk."""
        hashes = np.load(self.partial / "equal.npy", mmap_mode="r", allow_pickle=False)
        return replace(self.pixels, hashes=[np.asarray(hashes[kept])]).facts()

    def _known(self, judge: Judge, output: str, width: int) -> Moments | None:
        """Return the archive's own statistics of a judge's output, where it has some of the same width.

        They (ADM: of the whole training set) are preferred to those of the images beside them (a subset, for precision
        and recall).
        """
        if self.statistics is None or judge.facts.get("kind") != "torch-fidelity":
            return None
        known = self.statistics.spatial if output == "spatial" else self.statistics.pooled
        return None if known is None or known.mu.size != width else known

    def _distance(self, judge: Judge, known: Moments, features: np.ndarray) -> float:
        """Return how far an archive's statistics are from its own images.

        They can come from the same network only, so a distance beyond the set's total variance is refused.
        """
        distance = FrechetReference(known.mu, known.sigma).distance_from_features(features)
        if distance > float(np.trace(known.sigma)):
            raise BenchError(
                f"{self.request.data}: its statistics lie {distance:.4g} from its own images as '{judge.name}' sees "
                "them, so they come from another network; use that network, or --kind statistics"
            )
        self.progress.say(
            f"the archive's own statistics are used; their Frechet distance from its images is {distance:.4g}"
        )
        return distance


def _from_statistics(request: BuildRequest, judges: Sequence[Judge], progress: Progress) -> BuildResult:
    """Store statistics that others computed, for the judges of torch-fidelity that give as many features."""
    statistics = read_statistics(request.data)
    if statistics is None:
        keys = ", ".join(npz_keys(request.data)) or "nothing"
        raise BenchError(
            f"{request.data}: has no mu and sigma (or ref_mu and ref_sigma), only {keys}; use another file"
        )
    data = digest_of([array.tobytes().hex() for pair in statistics if pair is not None for array in pair])
    size = request.protocol.resolution
    blank, label = torch.zeros((1, 3, size, size), dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    built, home = [], references_directory() / request.name
    for judge in judges:
        if judge.facts.get("kind") != "torch-fidelity":
            continue
        known = {"features": statistics.pooled, "spatial": statistics.spatial}
        widths = {key: value.shape[1] for key, value in judge(blank, label).items() if key in OUTPUTS}
        fitting = {key: pair for key in widths if (pair := known[key]) is not None and pair.mu.size == widths[key]}
        if "features" not in fitting:
            progress.say(
                f"{judge.name} gives {widths['features']} features, but the file describes {statistics.pooled.mu.size}"
            )
            continue
        facts = {
            **_facts(request, judge, "statistics", data, 0, sorted(fitting)),
            "labels": None,
            "skipped": [],
            "left_out": [],
            "digest": digest_of([data, "statistics", judge.digest]),
        }
        with _disk(references_directory()), _publishing(home, facts) as temporary:
            for key, pair in fitting.items():
                _save_moments(temporary, key, pair)
            built.append(BuiltReference(_place(home, facts), facts))
    if not built:
        raise BenchError(
            f"{request.data}: its statistics of {statistics.pooled.mu.size} features do not fit any judge of protocol "
            f"'{request.protocol.name}'; choose another with --protocol"
        )
    return BuildResult(built, 0)


def _facts(request: BuildRequest, judge: Judge, kind: str, data: str, n: int, outputs: Sequence[str]) -> dict[str, Any]:
    return {
        "name": request.name,
        "kind": kind,
        "n": n,
        "data": data,
        "source": request.data.name,
        "resize": request.chosen_resize,
        "resolution": request.protocol.resolution,
        "judge": judge.name,
        "judge_digest": judge.digest,
        "judge_facts": dict(judge.facts),
        "outputs": list(outputs),
        "built": now().isoformat(timespec="seconds"),
    }


def _reserved(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Return a new array on the disk, with room for all of it: without, a full disk ends the process by a signal."""
    array: np.memmap = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _keep_rows(rows: np.ndarray, kept: np.ndarray, path: Path) -> np.ndarray:
    """Write the rows `kept` to `path`, block by block, and return them memory-mapped."""
    target = _reserved(path, rows.dtype, (len(kept), *rows.shape[1:]))
    start = 0
    for block in np.array_split(kept, max(1, -(-len(kept) // 4096))):
        target[start : start + len(block)] = rows[block]
        start += len(block)
    target.flush()
    for number, block in enumerate(row_blocks(target)):
        if not np.isfinite(block).all():
            raise BenchError(f"{path}: features of block {number} are not finite; the judge's weights are broken")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _moments(features: np.ndarray) -> Moments | None:
    """Return mean and covariance to store; None for sets of fewer images than dimensions.

    Those have no covariance of full rank: their distances are taken from the features.
    """
    n, d = features.shape
    if n <= d:
        return None
    sums = Sums.of(features, shift=np.asarray(features[0], dtype=np.float64))
    return Moments(sums.mean, sums.covariance)


def _save_moments(directory: Path, output: str, moments: Moments) -> None:
    np.save(directory / f"{output}.mu.npy", moments.mu)
    np.save(directory / f"{output}.sigma.npy", moments.sigma)


def _place(home: Path, facts: Mapping[str, Any]) -> Path:
    return home / str(facts["digest"])[:20]


@contextmanager
def _publishing(home: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a directory to fill, which with its facts becomes the reference.

    What the same judge made of other files with the same crop goes.
    """
    place = _place(home, facts)
    with writing(place) as temporary:
        temporary.mkdir()
        yield temporary
        _write_json(temporary / "facts.json", dict(facts))
    for entry in built_references(str(facts["name"])):
        same = all(entry.facts[key] == facts[key] for key in ("judge_digest", "resize", "resolution"))
        if same and entry.directory != place:
            remove(entry.directory)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1).encode(), "BENCH_CACHE_DIR")


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Keep other processes from building the same reference at the same time."""
    home.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home / "build.lock", timeout=0):
            yield
    except Timeout as error:
        raise BenchError(f"reference '{home.name}' is being built by another process; wait for it") from error


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    """Turn a disk that refuses into one line."""
    try:
        yield
    except OSError as error:
        raise disk_error(place, error, "BENCH_CACHE_DIR") from error
