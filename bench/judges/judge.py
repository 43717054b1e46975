"""The judge contract: what every judge does, and what a protocol states of one."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.contracts.precision import full_precision
from bench.judges.files import facts_digest
from results.errors import BenchError, BenchWarning

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
