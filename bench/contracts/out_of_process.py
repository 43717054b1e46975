"""An adapter whose samples are drawn by another program, in an environment of its own: for pins that exclude ours.

The family is a subclass that names its script; the harness keeps everything else (labels, noise, quantising, judging).
The program speaks the protocol of `bench_worker.py`, which is copied beside it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bench.contracts import bench_worker
from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.worker_process import Limits, Worker
from results.errors import BenchError, one_line

SCRIPT = "BENCH_WORKER_SCRIPT"
"""Environment variable of the script that a user typed (`--worker`)."""
NOISE_VALUES = 2**26
"""Most values of one draw of one sample that a worker may ask for."""
ROWS = 10**9


class Remote(nn.Module):
    """Stands for a network in another process: it is called with as many rows as were evaluated there."""

    def forward(self, rows: Tensor) -> Tensor:
        """rows [R, 0] -> the same."""
        return rows


class WorkerAdapter(Adapter):
    """Samples through a worker process, which is started by the first batch and again after a failure."""

    script: ClassVar[Path]
    """The worker's program, beside the module that defines the family."""
    out_of_process = True
    network: Remote

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.program = self.program_of(card)
        self.network = Remote()
        if self.guidance == "autoguidance":
            self.guide = Remote()
        self.host = f"worker {_digest(card, self.program)}"
        self.python: Path | None = None
        """The interpreter of its environment, given by the harness."""
        self.files: Mapping[str, Path] = {}
        """The card's verified files by role, given by the harness."""
        self.random_seed: int | None = None
        self.prompts: Sequence[str] | None = None
        self.peak_memory = 0
        """The most bytes that the worker said it took."""
        self._worker: Worker | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes; of a model that takes prompts their number, for they are its labels."""
        return len(self.prompts or ()) if self.takes_prompts else super().num_classes

    @property
    def unconditional(self) -> bool:
        """Whether every label is the same to the model: never where labels are prompts."""
        return not self.takes_prompts and super().unconditional

    def program_of(self, card: ModelCard) -> Path:
        """Return the worker's program."""
        return self.script

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Refuse: a worker is given paths and reads its files itself."""
        raise BenchError(f"{self.card.name}: a worker reads its own files; they are not loaded here")

    def randomise(self, seed: int = 0) -> Adapter:
        """Let the worker fill its network with values of its own from `seed`."""
        self.random_seed = seed
        return self

    def prepare(self, prompts: Sequence[str], store: Path | None = None) -> None:
        """Keep the prompts of a text model, in label order; a batch is sent with those of its labels."""
        if self.takes_prompts:
            self.prompts = list(prompts)

    def modules(self) -> list[nn.Module]:
        """Return nothing to move: the networks are elsewhere."""
        return []

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Adapter:
        """Note where the worker is to compute, and in which precision; a running one is replaced."""
        if (torch.device(device), dtype) != (self.device, self.dtype):
            self.close()
        return super().to(device, dtype)

    def close(self) -> None:
        """End the worker; the next batch starts another."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: Any) -> Tensor:
        """Return the worker's images, float32 [B, 3, H, W]."""
        if self.device.type == "meta":
            raise BenchError(f"{self.card.name}: a worker cannot be counted without running it")
        worker = self._running()
        seconds = worker.limits.batch_seconds
        began, size = time.monotonic(), 4 * len(labels) * 3 * self.card.resolution**2
        words: dict[str, Any] = {"steps": steps, "cfg": cfg, "settings": dict(settings)}
        if self.prompts is not None:
            words["prompts"] = [self.prompts[label] for label in labels.tolist()]
        kind, arrays = "sample", {"labels": labels.cpu().numpy()}
        while True:
            answer, found = worker.ask(kind, arrays, seconds=seconds, size=size, began=began, **words)
            if answer["kind"] == "noise":
                kind, arrays, words = self._noise(answer, noise)
            elif answer["kind"] == "error":
                raise BenchError(one_line(f"worker {self.card.name}: {answer.get('reason')}; its output: {worker.log}"))
            elif answer["kind"] == "images":
                return self._images(worker, answer, found, len(labels))
            else:
                raise worker.refuse(f"answered a batch with '{answer['kind']}'")

    def _running(self) -> Worker:
        if self._worker is not None and self._worker.running:
            return self._worker
        needs, name = self.card.worker, self.card.name
        if self.python is None:
            raise BenchError(f"{name} has no environment; make one with: bench worker setup {name}")
        memory = int(needs.memory_gib * 2**30) if needs.memory_gib else most_memory()
        limits = Limits(needs.start_seconds, needs.batch_seconds, memory)
        worker = Worker(name, self.python, self.program, limits, self.device.type)
        card = self.card
        facts = {
            "name": name, "family": card.family, "resolution": card.resolution, "num_classes": card.num_classes,
            "latent_shape": list(card.latent_shape), "architecture": card.architecture, "guidance": self.guidance,
        }  # fmt: skip
        answer, _ = worker.ask(
            "hello", seconds=limits.start_seconds, size=0, protocol=bench_worker.PROTOCOL, card=facts,
            files={role: str(path) for role, path in self.files.items()}, random_seed=self.random_seed,
            device=str(self.device), dtype=str(self.dtype).removeprefix("torch."),
        )  # fmt: skip
        if answer["kind"] == "error":
            raise worker.refuse(f"could not start ({answer.get('reason')})")
        if answer["kind"] != "ready" or answer.get("protocol") != bench_worker.PROTOCOL:
            raise worker.refuse(
                f"speaks protocol {answer.get('protocol')}, not {bench_worker.PROTOCOL}; copy bench_worker.py again"
            )
        for fact in ("latent_shape", "resolution", "num_classes", "guidance"):
            if answer.get(fact) != facts[fact]:
                raise worker.refuse(f"says {fact} {answer.get(fact)!r} where the card says {facts[fact]!r}")
        if not answer.get("counted"):
            raise worker.refuse("does not say how it counts evaluations (`counted`)")
        parameters = answer.get("parameters")
        if isinstance(parameters, int) and 0 < parameters < 2**50:
            self.network.register_parameter("elsewhere", nn.Parameter(torch.empty(parameters, device="meta")))
        self._worker = worker
        return worker

    def _noise(
        self, answer: Mapping[str, Any], noise: NoiseSource
    ) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
        """Return the reply to a request for noise, an error where it asks for what cannot be."""
        shape, draw, of = answer.get("shape"), answer.get("draw"), answer.get("of")
        whole = isinstance(shape, list) and len(shape) <= 6 and all(type(n) is int and 0 < n < 2**31 for n in shape)
        if not whole or not isinstance(draw, int) or not 0 <= draw < 2**31 or of not in ("normal", "uniform"):
            return "error", {}, {"reason": f"no noise {of!r} of shape {shape!r}, draw {draw!r}"}
        assert isinstance(shape, list)
        if np.prod([float(n) for n in shape]) > NOISE_VALUES:
            return "error", {}, {"reason": f"noise of shape {shape} is too large"}
        drawn = (noise.normal if of == "normal" else noise.uniform)(shape, draw)
        return "noise", {"noise": drawn.cpu().numpy()}, {}

    def _images(self, worker: Worker, answer: Mapping[str, Any], found: Mapping[str, np.ndarray], count: int) -> Tensor:
        """Return the images of an answer and count its evaluations."""
        expected = (count, 3, self.card.resolution, self.card.resolution)
        if set(found) != {"images"}:
            raise worker.refuse(f"answered arrays {', '.join(sorted(found)) or 'none'}, expected images")
        images = found["images"]
        if images.shape != expected or images.dtype != np.float32:
            raise worker.refuse(f"answered images {images.dtype} {images.shape}, expected float32 {expected}")
        rows, guide_rows = answer.get("rows"), answer.get("guide_rows")
        if not (type(rows) is int and 0 < rows <= ROWS and type(guide_rows) is int and 0 <= guide_rows <= ROWS):
            raise worker.refuse(f"counted {rows!r} evaluations of the network and {guide_rows!r} of the guide")
        if guide_rows and self.guide is None:
            raise worker.refuse(f"counted {guide_rows} evaluations of a guide that the card does not have")
        peak = answer.get("peak_memory")
        if type(peak) is int and peak > 0:
            self.peak_memory = max(self.peak_memory, peak)
        self.network(torch.empty(rows, 0))
        if guide_rows and self.guide is not None:
            self.guide(torch.empty(guide_rows, 0))
        return torch.from_numpy(images.copy()).to(self.device)


class ScriptWorker(WorkerAdapter):
    """The family `worker`: the script is the one that the user typed (`--worker`); no file can name it."""

    def program_of(self, card: ModelCard) -> Path:
        """Return the script that was typed. Raises BenchError when there is none."""
        typed = os.environ.get(SCRIPT)
        if not typed:
            raise BenchError(f"{card.name} is sampled by a script of yours; give it with --worker SCRIPT.py")
        return Path(typed)


def _digest(card: ModelCard, program: Path) -> str:
    try:
        return hashlib.sha256(program.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise BenchError(f"{card.name}: worker script {program} cannot be read ({error.strerror})") from error


def most_memory() -> int:
    """Return nine tenths of the machine's memory, so that the system never has to end the run for want of it."""
    if not hasattr(os, "sysconf"):  # not a Unix
        return 2**62
    return int(0.9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
