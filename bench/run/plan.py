"""The plan: which cells a command measures, each with its complete settings and its identity."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard
from bench.models.cards import find_card, sampled_card
from bench.models.files import weights_digest
from bench.models.registry import family_class, outline
from protocols import Protocol, Sweep, find_protocol
from protocols.schema import digest_of
from results.errors import BenchError
from results.numbers import counted


@dataclass(frozen=True)
class Request:
    """What the command line asked for; None leaves a choice to the protocol."""

    protocol: Protocol
    models: tuple[str, ...] | None = None
    steps: tuple[int, ...] | None = None
    cfg: tuple[float, ...] | None = None
    num_samples: int | None = None
    seed: int | None = None
    seeds: tuple[int, ...] = ()
    """Every cell is measured on each of them, in place of the one `seed`."""
    batch_size: int | None = None
    sampler: str | None = None
    select_on: int | None = None
    """A second seed: every cell is measured on it too, and it alone decides which setting of a model is shown."""
    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    random_weights: bool = False


@dataclass(frozen=True)
class Cell:
    """One setting to measure: model x steps x guidance under a protocol."""

    model: str
    """The name of `card`: a card that stands for others is measured under the name of the one that answers."""
    card: ModelCard
    steps: int
    cfg: float
    sampler: str
    settings: Mapping[str, Any]
    options: Mapping[str, Any]
    dtype: str
    seed: int
    num_samples: int
    batch_size: int
    random_weights: bool
    weights: Path | None
    weights_sha256: str | None
    judged_under: str
    """Digest of what turned samples into numbers: the protocol's measurement, and the judges and reference found."""
    unsupported: str | None = None
    """Why the model cannot take this setting; such a cell becomes a row and is not sampled."""
    selection: bool = False
    """Measured only to choose among settings."""
    repeated: bool = False
    """One of several seeds of its setting."""
    compile: bool = False
    """Whether torch.compile prepares the network; its kernels round differently."""
    host: str = ""
    """The library and version whose loop samples, where it is not the family's own."""

    @property
    def cell_id(self) -> str:
        """Digest of everything that the numbers depend on; batch size, device and workers are not part of it."""
        card = self.card
        identity = {
            "checkpoint": card.name,
            "family": card.family,
            "architecture": card.architecture,
            "latent_shape": card.latent_shape,
            "autoencoder": card.autoencoder,
            "weights": "random" if self.random_weights else self.weights_sha256,
            "steps": self.steps,
            "cfg": self.cfg,
            "settings": self.settings,
            "dtype": self.dtype,
            "seed": self.seed,
            "num_samples": self.num_samples,
            "measurement": self.judged_under,
            "model": self.model,
            "sampler": self.sampler,
        }
        if self.compile:
            identity["compile"] = True
        if self.host:
            identity["host"] = self.host
        return digest_of(identity)[:20]

    @property
    def label(self) -> str:
        """Short name for progress and messages."""
        guidance = f", cfg {self.cfg:g}" if self.cfg != 1.0 else ""
        selection = f", seed {self.seed}" if self.selection or self.repeated else ""
        return f"{self.model} {counted(self.steps, 'step')}{guidance}{selection}"

    def command(self, protocol: str) -> str:
        """Return the command line that repeats this cell."""
        words = ["bench", "run", "--protocol", protocol, "--model", self.model, "--steps", str(self.steps)]
        words += ["--cfg", f"{self.cfg:g}", "--num-samples", str(self.num_samples), "--seed", str(self.seed)]
        words += ["--sampler", self.sampler, "--dtype", self.dtype, "--batch-size", str(self.batch_size)]
        for name, value in self.options.items():
            words += ["--option", f"{name}={format_option(value)}"]
        if self.weights is not None:
            words += ["--weights", str(self.weights)]
        if self.random_weights:
            words.append("--random-weights")
        if self.compile:
            words.append("--compile")
        return shlex.join([*words, "--fresh"])


def judged_under(protocol: Protocol, conditions: str) -> str:
    """Return the digest of a protocol's measurement under `conditions`, the digest of judges and reference."""
    return digest_of([protocol.measurement_digest, conditions])


DEFAULT_PROTOCOL = "digits"
MOST_CELLS = 10_000
"""Rows that one run may plan: each is worked out before the first sample."""


def home_protocol(model: str) -> str:
    """Return what `--protocol` takes for the protocol that a model's card calls its home.

    A `.toml` file is relative to the card. Raises BenchError for a card without one, unless the embedded default fits.
    """
    home = stated_home(model)
    if home is None:
        raise BenchError(
            f"model '{model}' makes {find_card(model).resolution} pixel images and its card names no home protocol; "
            "choose one with --protocol"
        )
    return home


def stated_home(model: str) -> str | None:
    """Return what `home_protocol` does, or None for a card without a home."""
    card = find_card(model)
    named = [card, *(find_card(member.model) for member in card.members)]
    home = next((found.home for found in named if found.home is not None), None)
    if home is None:
        return DEFAULT_PROTOCOL if card.resolution == find_protocol(DEFAULT_PROTOCOL).resolution else None
    return str(card.path.parent / home) if home.endswith(".toml") and card.path is not None else home


def by_home(models: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the models of each home protocol, in the order asked for."""
    homes: dict[str, tuple[str, ...]] = {}
    for model in models:
        home = home_protocol(model)
        homes[home] = (*homes.get(home, ()), model)
    return homes


def make_plan(request: Request, conditions: str) -> list[Cell]:
    """Return the cells of a request in the order they run, without repetitions.

    `conditions` is the digest of judges and reference (`bench.references.stored.conditions`).

    Raises BenchError for unknown models, step counts, scales and settings before anything is sampled.
    """
    protocol = request.protocol
    judged = judged_under(protocol, conditions)
    seeds = _seeds(request)
    cells: dict[str, Cell] = {}
    adapters: dict[str, Adapter] = {}
    sweeps = list(_sweeps(request))
    asked_for = len(seeds) * sum(len(sweep.models) * len(sweep.steps) * len(sweep.cfg) for sweep in sweeps)
    if asked_for > MOST_CELLS:
        raise BenchError(
            f"{asked_for:,} rows are asked for, a run takes at most {MOST_CELLS:,}; name fewer models, step counts, "
            "scales or seeds"
        )
    for sweep in sweeps:
        for name in sweep.models:
            asked = find_card(name)
            if asked.resolution != protocol.resolution and not family_class(asked.family).takes_prompts:
                raise BenchError(
                    f"model '{name}' makes {asked.resolution}-pixel images, protocol '{protocol.name}' judges "
                    f"{protocol.resolution}; choose another with --protocol"
                )
            for steps in sweep.steps:
                card = sampled_card(asked, steps)
                if card.name not in adapters:
                    adapters[card.name] = outline(card)
                scales = sweep.cfg
                if card.guidance.kind == "none" and (request.cfg is None or 1.0 in request.cfg):
                    scales = (1.0,)  # scales that only a command line asks for become rows that say why not
                options = {**sweep.options, **request.options}
                for cfg, seed in product(scales, seeds):
                    cell = _cell(request, card, adapters[card.name], steps, cfg, seed, options, judged)
                    cells.setdefault(cell.cell_id, cell)
    if not cells:
        raise BenchError(f"protocol '{protocol.name}' names no models; choose some with --model")
    return list(cells.values())


def _seeds(request: Request) -> tuple[int, ...]:
    """Return the seeds that are reported and, where there is one, the seed that settings are chosen on."""
    reported = request.seeds or (request.protocol.seed if request.seed is None else request.seed,)
    if request.select_on is None:
        return reported
    if request.select_on in reported:
        raise BenchError(
            f"--select-on: {request.select_on} is a seed that results are reported on; choose another number"
        )
    return *reported, request.select_on


def _sweeps(request: Request) -> Iterable[Sweep]:
    """Return the protocol's sweeps, narrowed or replaced by what the command line says."""
    protocol = request.protocol
    if request.models is None:
        for sweep in protocol.sweeps:
            yield replace(sweep, steps=request.steps or sweep.steps, cfg=request.cfg or sweep.cfg)
        return
    for model in request.models:
        mine = [sweep for sweep in protocol.sweeps if model in sweep.models]
        if request.steps is not None:
            cfg = request.cfg or _natural_scales(model)
            yield Sweep((model,), request.steps, cfg, mine[0].options if mine else {})
        elif mine:
            for sweep in mine:
                yield replace(sweep, models=(model,), cfg=request.cfg or sweep.cfg)
        else:
            yield Sweep((model,), _default_steps(model, protocol), request.cfg or _natural_scales(model))


def _default_steps(model: str, protocol: Protocol) -> tuple[int, ...]:
    """Return the step counts of a model that the protocol does not name: those of its first sweep that the model can
    take, and the authors' own."""
    asked = find_card(model)
    swept = protocol.sweeps[0].steps if protocol.sweeps else ()
    taken = [steps for steps in swept if _takes(sampled_card(asked, steps), steps)]
    return tuple(sorted({*taken, asked.natural_steps}))


def _takes(card: ModelCard, steps: int) -> bool:
    adapter = outline(card)
    return adapter.unsupported(steps, card.guidance.natural, adapter.resolve_settings(steps)) is None


def _natural_scales(model: str) -> tuple[float, ...]:
    return (find_card(model).guidance.natural,)


def _cell(
    request: Request,
    card: ModelCard,
    adapter: Adapter,
    steps: int,
    cfg: float,
    seed: int,
    options: Mapping[str, Any],
    judged: str,
) -> Cell:
    protocol = request.protocol
    sampler = request.sampler or protocol.sampler
    settings = adapter.resolve_settings(steps, sampler, options)
    return Cell(
        model=card.name,
        card=card,
        steps=steps,
        cfg=cfg,
        sampler=sampler,
        settings=dict(settings),
        options=dict(options),
        dtype=request.dtype,
        seed=seed,
        num_samples=request.num_samples or protocol.num_samples,
        batch_size=request.batch_size or protocol.batch_size,
        random_weights=request.random_weights,
        weights=request.weights,
        weights_sha256=None if request.random_weights else weights_digest(card, request.weights),
        judged_under=judged,
        unsupported=adapter.unsupported(steps, cfg, settings),
        selection=seed == request.select_on,
        repeated=len(request.seeds) > 1,
        compile=request.compile,
        host=adapter.host,
    )


def format_option(value: Any) -> str:
    """Return the text that `parse_option` reads back as `value`."""
    if isinstance(value, (list, tuple)):
        return ",".join(format_option(item) for item in value)
    return "null" if value is None else str(value)
