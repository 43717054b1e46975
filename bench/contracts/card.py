"""Model cards: what a checkpoint is, where it comes from and how its authors sample it (TOML, data only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results.licences import forbids_commercial_use

GUIDANCE_KINDS = ("none", "classifier-free", "embedded", "autoguidance")
SAMPLERS = ("native", "plain")
"""Sampler settings that every card has: its own presets, and none."""
WEIGHT_FORMATS = ("safetensors", "torch", "flax-msgpack", "orbax", "pickle", "diffusers")


@dataclass(frozen=True)
class WeightsSource:
    """Where one file of weights lies and which tree inside it is sampled."""

    format: str
    """One of WEIGHT_FORMATS; `diffusers` is the folder of a pipeline, `file` its model_index.json."""
    path: Path | None = None
    """A file shipped beside the card (the digits models)."""
    repo: str | None = None
    """Hugging Face hub id."""
    file: str | None = None
    """File (or folder) name inside the repository or the download; may be a zip archive of the one checkpoint."""
    revision: str | None = None
    sha256: str | None = None
    """Digest when it is known; else it is pinned on the first download and verified ever after."""
    size: int | None = None
    """Bytes, about, where the card knows: the server is asked first."""
    url: str | None = None
    """A file outside the hub: fetched where the address ends in `file`, else the page where a person finds it."""
    tree: str | None = None
    """Path of the subtree that holds the sampled weights, e.g. `train_state/params_ema`; `ema?` is `ema` where the file
    has it and else the whole file."""
    prefix: str = ""
    """Prefix that is stripped from every key."""


@dataclass(frozen=True)
class Guidance:
    """How guidance acts on a model. `cfg` 1.0 means no inference-time guidance for every model."""

    kind: str
    """One of GUIDANCE_KINDS."""
    natural: float = 1.0
    """The authors' scale at the natural setting."""
    range: tuple[float, float] = (1.0, 1.0)
    """The scales that it makes sense to sweep."""


@dataclass(frozen=True)
class Preset:
    """Sampler settings as published for the step counts `steps` = (first, last), both included."""

    steps: tuple[int, int]
    settings: Mapping[str, Any]
    source: str = ""


@dataclass(frozen=True)
class Member:
    """The model that answers for step counts `steps` = (first, last) when a card names a pair."""

    model: str
    steps: tuple[int, int]


@dataclass(frozen=True)
class Published:
    """A figure that the authors published for this checkpoint."""

    metric: str
    value: float
    steps: int
    cfg: float | None
    source: str
    nfe: float | None = None
    best_of: int = 1
    """The number of runs, on a seed each, of which it is the best."""


@dataclass(frozen=True)
class WorkerNeeds:
    """What a model that is sampled in an environment of its own needs there. No part of a cell's id."""

    environment: str = ""
    """The environment's name, where several cards share one; by default the card's own."""
    python: str = ""
    """Version of Python, as `3.10`; by default that of the harness."""
    requirements: tuple[str, ...] = ()
    """Packages that `bench worker setup` installs, as pip takes them."""
    start_seconds: float = 1800.0
    """What it may take to start."""
    batch_seconds: float = 3600.0
    """What it may take for a batch; `--timeout` is shorter where it is given."""
    memory_gib: float | None = None
    """What it may take of the machine's memory; by default nine tenths."""


@dataclass(frozen=True)
class ModelCard:
    """One published (or embedded) checkpoint. A card with `members` stands for a pair and has no weights."""

    name: str
    family: str
    title: str
    resolution: int
    num_classes: int
    latent_shape: tuple[int, ...]
    """Shape of the noise and of the sampled latents (or pixels), without the batch axis."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    weights: WeightsSource | None = None
    extra_weights: Mapping[str, WeightsSource] = field(default_factory=dict)
    """Further files by role, e.g. `guide` (the weak network of autoguidance) or `statistics`."""
    autoencoder: Mapping[str, Any] | None = None
    guidance: Guidance = Guidance("none")
    natural_steps: int = 1
    sampler: Mapping[str, Any] = field(default_factory=dict)
    """Settings that belong to the checkpoint at any step count (transport, grid ...): the `plain` sampler."""
    presets: tuple[Preset, ...] = ()
    """Settings tuned for step counts, on top of `sampler`: the `native` sampler."""
    supported_steps: tuple[int, ...] | None = None
    trained_steps: tuple[int, int] | None = None
    """(first, last) step counts the checkpoint was trained for; rows outside are marked off-regime."""
    members: tuple[Member, ...] = ()
    parameters: int | None = None
    paper: str = ""
    licence: str = "unknown"
    """In words, code and weights; one that forbids commercial use is accepted by the user before the first fetch."""
    differs: str = ""
    """What sets the network apart from the published one that it is built on, in a few words."""
    trained_on: tuple[str, ...] = ()
    """Feature spaces of metrics (`inception`, `siglip`, `mae` ...) that training optimised a distance in: a metric in
    one of them measures what was trained. No part of a cell's id."""
    published: tuple[Published, ...] = ()
    verified: str = ""
    """What has been checked of this model here (recorded parity cases, trained here ...)."""
    notes: str = ""
    waive: Mapping[str, str] = field(default_factory=dict)
    """Clauses of the adapter contract that the model cannot keep, each with its reason."""
    home: str | None = None
    """The protocol that fits the model's images and classes: `bench run` without --protocol takes it. No part of a
    cell's id."""
    teacher: str | None = None
    """The card of the model that this one was distilled from or tuned from. No part of a cell's id."""
    worker: WorkerNeeds = WorkerNeeds()
    """The environment of a family that is sampled out of process. No part of a cell's id."""
    path: Path | None = field(default=None, compare=False)

    @property
    def non_commercial(self) -> bool:
        """Whether the licence, by its own words, keeps the weights from commercial use."""
        return forbids_commercial_use(self.licence)

    def settings(self, steps: int, sampler: str = "native") -> dict[str, Any]:
        """Return the sampler settings for `steps`: `plain` without, `native` with the matching preset."""
        settings = dict(self.sampler)
        if sampler == "native":
            for preset in self.presets:
                if preset.steps[0] <= steps <= preset.steps[1]:
                    settings |= preset.settings
                    break
        return settings

    def member(self, steps: int) -> str:
        """Return the name of the model that answers for `steps` (its own name unless the card is a pair)."""
        for member in self.members:
            if member.steps[0] <= steps <= member.steps[1]:
                return member.model
        return self.name

    def off_regime(self, steps: int) -> bool:
        """Tell whether `steps` lies outside the step counts that the checkpoint was trained for."""
        return self.trained_steps is not None and not self.trained_steps[0] <= steps <= self.trained_steps[1]
