"""The judge contract, and the loader that turns a protocol's `[judges.NAME]` table into a judge."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.contracts.precision import full_precision
from bench.judges.costs import JudgeCost
from bench.judges.files import PATH_OPTIONS, facts_digest, of_judge
from bench.judges.options import JUDGES, JudgeKind, check_judges
from bench.weights.cache import FileCache, cache_directory
from bench.weights.file import NeededFile, here
from protocols import Protocol as Definition
from results.errors import BenchError, BenchWarning, unknown

Prompt = str | Sequence[str]
HALF_TYPES = {"cuda": torch.float16}
"""What half precision is on each kind of device; elsewhere it is float32, which is no slower there."""


@dataclass(frozen=True)
class JudgeSpec:
    """A judge as a protocol states it; paths in `options` are relative to the protocol's directory."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    protocol: str = ""
    """What the command line calls the protocol, for messages."""

    def where(self, key: str) -> str:
        """Return how a message about one of its keys begins: the protocol and the key, where there is a protocol."""
        return f"protocol {self.protocol}: key 'judges.{self.name}.{key}': " if self.protocol else ""


class Judge(ABC):
    """A frozen network that reads each image once.

    Attributes:
        name: the protocol's name for it, recorded with every value.
        facts: what decides its outputs: digests of its files, preprocessing, library version, settings.
        device: where its network lives and where its outputs stay.
        batch_size: images per forward pass; None for all that it is given.
    """

    takes_half: bool = True
    """Whether it may compute in half precision; FID's own network may not, for published values are float32's."""
    half: torch.dtype | None = None
    """The type its network computes in where that is not float32."""
    needs_labels: bool = False
    """Whether its outputs are about the label asked for (prompt or class), and so say nothing of a reference."""

    reads_native: bool = False
    """Whether it sees samples at the size at which they were drawn, where that is not the protocol's."""

    def __init__(
        self, name: str, facts: Mapping[str, Any], device: torch.device, batch_size: int | None = None
    ) -> None:
        self.name = name
        self.facts = facts
        self.device = device
        self.batch_size = batch_size

    def in_half(self) -> Judge:
        """Return the judge as `precision = "half"` has it: float16 on an accelerator, float32 on a processor.

        Its digest is another: a row says which precision was asked for, and `bench.run.halves` shows what it moves.
        """
        found = copy.copy(self)
        found.facts = {**self.facts, "precision": "half"}
        found.half = HALF_TYPES.get(self.device.type)
        vars(found).pop("digest", None)
        return found

    def strict(self) -> Judge:
        """Return the judge in float32, with the same network and prompts."""
        if self.half is None and "precision" not in self.facts:
            return self
        found = copy.copy(self)
        found.facts = {key: value for key, value in self.facts.items() if key != "precision"}
        found.half = None
        vars(found).pop("digest", None)
        return found

    @cached_property
    def digest(self) -> str:
        """SHA-256 over `facts`: weights bytes, preprocessing, library version."""
        return facts_digest(self.facts)

    def prepare(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 - judges without text have nothing to prepare
        """Encode the prompt of each class once (index = label); prompts of one class are averaged as unit vectors."""

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Judge uint8 images [B, 3, H, W], 0..255 RGB, asked for with int64 labels [B].

        Returns float32 tensors with B rows on the judge's device: `features` [B, d] and `logits` [B, C] from
        classifiers (with `spatial` [B, 2023] if asked), `score` [B] from text judges, `features` from feature judges.
        Computed in float32 without TF32, whatever the caller's settings, but for a network in half precision. Raises
        BenchError on images or labels of another kind.
        """
        self._check(images, labels)
        while True:
            size = self.batch_size or max(len(images), 1)
            try:
                return self._judged(images, labels, size)
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise BenchError(
                        f"judge '{self.name}': {self.device} has too little memory for one image; free some of it, or "
                        "use another --device"
                    ) from error
                self.batch_size = (size + 1) // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # only now: the error held on to what was allocated
            line = f"judge '{self.name}': too little memory for {size} images at once; {self.batch_size} from here on"
            warnings.warn(line, BenchWarning, stacklevel=2)

    def _judged(self, images: Tensor, labels: Tensor, size: int) -> dict[str, Tensor]:
        """Return what `__call__` does, from `size` images at once."""
        with (
            torch.inference_mode(),
            full_precision(),
            torch.autocast(self.device.type, dtype=self.half or torch.float16, enabled=self.half is not None),
        ):
            batches = zip(images.split(size), labels.split(size), strict=True)
            parts = [
                self.judge(batch.to(self.device, non_blocking=True), label.to(self.device, non_blocking=True))
                for batch, label in batches
            ]
            return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    @abstractmethod
    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Judge one batch that is already checked and on the device."""

    def _check(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise BenchError(
                f"judge '{self.name}': images must be uint8 [B, 3, H, W], not {images.dtype} {list(images.shape)}"
            )
        if labels.shape != images.shape[:1]:
            raise BenchError(
                f"judge '{self.name}': {len(images)} images need as many labels, found {list(labels.shape)}"
            )


def judge_specs(protocol: Definition) -> list[JudgeSpec]:
    """Return the judges of a protocol; local paths are made absolute, each from the file that states it.

    Raises ProtocolError for an option whose value is wrong.
    """
    check_judges(protocol)
    specs = []
    for name, table in protocol.judges.items():
        options = protocol.judge_options(name)
        for key in PATH_OPTIONS:
            folder = protocol.folders.get(f"{name}.{key}")
            if folder is not None and isinstance(options.get(key), str):
                options[key] = str((folder / Path(options[key]).expanduser()).absolute())
        specs.append(JudgeSpec(name, str(table["kind"]), options, protocol.argument))
    return specs


def judge_kind(spec: JudgeSpec) -> JudgeKind:
    """Return the spec's kind, by entry point. Raises BenchError for one that is unknown or broken."""
    try:
        return JUDGES.load(spec.kind, f" of judge '{spec.name}'")
    except BenchError as error:
        raise BenchError(f"{spec.where('kind')}{error}") from error


def judge_cost(spec: JudgeSpec) -> JudgeCost | None:
    """Return what the judge of `spec` costs an image before it is loaded; None where nothing is known of it."""
    return judge_kind(spec).cost(spec)


def check_options(spec: JudgeSpec, known: Sequence[str]) -> None:
    """Raise BenchError for an option the judge's kind does not have; `precision` is every kind's."""
    for key in spec.options:
        if key == "precision":
            continue
        if key not in known:
            fault = unknown(f"option of judge '{spec.name}' ({spec.kind})", key, known)
            raise BenchError(f"{spec.where(key)}{fault}")


def judge_files(spec: JudgeSpec, *, root: Path) -> list[NeededFile]:
    """Return the files a judge needs, in the order its kind's `build` expects them."""
    return [of_judge(file, spec.name, spec.protocol) for file in judge_kind(spec).required_files(spec, root)]


def load_judge(spec: JudgeSpec, *, device: torch.device | str, root: Path) -> Judge:
    """Load a judge from files on this machine.

    Nothing is downloaded and torch's global random state is left as it was. Raises BenchError, one line, when a file is
    missing (naming it and the command that fetches it), altered or of another network, or an option is not known.
    """
    kind, cache = judge_kind(spec), FileCache(cache_directory())
    half = spec.options.get("precision") == "half"
    if half and not kind.judge.takes_half:
        raise BenchError(
            f"{spec.where('precision')}judge '{spec.name}': kind {spec.kind} computes in float32 alone; leave it out"
        )
    paths = []
    for file in judge_files(spec, root=root):
        paths.append(here(file, cache))
        cache.verify(file.title, paths[-1], file.key(cache), file.sha256)
    with torch.random.fork_rng(devices=[]):
        judge = kind.build(spec, root, paths, torch.device(device))
    return judge.in_half() if half else judge
