"""The card file: its keys and what each may hold, checked by pydantic, converted to a ModelCard."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from bench.contracts.card import (
    GUIDANCE_KINDS,
    WEIGHT_FORMATS,
    Guidance,
    Member,
    ModelCard,
    Preset,
    Published,
    WeightsSource,
    WorkerNeeds,
)
from results.catalog import CATALOG
from results.documents import MAX_INT, Choice, Count, Distinct, Name, Settings, Table, found, is_integer, refused
from results.files import real_path

ANY_STEPS = 1_000_000
"""The last step count of a range without an end, `[first]`, and the largest step count of all."""


def _span(value: Any) -> Any:
    """Check the step counts of a setting: `n`, `[first]` (and all above) or `[first, last]`."""
    counts = value if isinstance(value, list) else [value]
    if not 1 <= len(counts) <= 2 or not all(is_integer(count, 1, ANY_STEPS) for count in counts):
        raise refused(
            f"must be a step count, [first] or [first, last] in 1 to {ANY_STEPS}, found {found(value)}",
        )
    if counts[0] > counts[-1]:
        raise refused(f"must be [first, last] with first <= last, found {found(value)}")
    return [counts[0], ANY_STEPS] if isinstance(value, list) and len(counts) == 1 else [counts[0], counts[-1]]


def _scales(value: list[float]) -> list[float]:
    if len(value) != 2 or value[0] > value[1]:
        raise refused(f"must be two numbers [low, high], low <= high, found {found(value)}")
    return value


_STEP_COUNT = {"type": "integer", "minimum": 1, "maximum": ANY_STEPS}
Span = Annotated[
    list[int],
    BeforeValidator(_span),
    WithJsonSchema({"anyOf": [_STEP_COUNT, {"type": "array", "items": _STEP_COUNT, "minItems": 1, "maxItems": 2}]}),
]
"""Step counts, as (first, last)."""
Text = Annotated[str, StringConstraints(min_length=1)]
MOST_NOISE = 2**30
"""Values of one sample's noise: more than any model has, and few enough to be counted."""


def _digest(value: str) -> str:
    if len(value) != 64 or set(value.lower()) - set("0123456789abcdef"):
        raise refused(f"must be the 64 hexadecimal digits of a SHA-256, found {found(value)}")
    return value.lower()


def _address(value: str) -> str:
    if not value.startswith(("https://", "http://")) or not value.isprintable():
        raise refused(f"must be an address that starts with https://, found {found(value)}")
    return value


def _two(span: list[int]) -> tuple[int, int]:
    return span[0], span[1]


def _noise(value: list[int]) -> list[int]:
    if math.prod(value) > MOST_NOISE:
        raise refused(f"must hold at most {MOST_NOISE:,} values together, found {found(value)}")
    return value


class WeightsTable(Table):
    """`[weights]`, and each of `[extra_weights]`: one file and which tree inside it is sampled."""

    format: Annotated[str, Choice(WEIGHT_FORMATS), Field(description="Format of the file.")]
    path: Annotated[Text | None, Field(description="A file shipped beside the card.")] = None
    repo: Annotated[Text | None, Field(description="Hugging Face hub id.")] = None
    file: Annotated[Text | None, Field(description="File or folder inside the repository or the download.")] = None
    revision: Annotated[Text | None, Field(description="Commit, tag or branch of the repository.")] = None
    sha256: Annotated[str, AfterValidator(_digest)] | None = None
    size: Annotated[int | None, Field(ge=1, description="Bytes, about; the server is asked first.")] = None
    url: Annotated[str, AfterValidator(_address)] | None = None
    tree: Annotated[Text | None, Field(description="Path of the sampled subtree inside the file.")] = None
    prefix: Annotated[str, Field(description="Prefix that is stripped from every key.")] = ""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        given = [key for key in ("path", "repo", "url") if getattr(self, key) is not None]
        if len(given) != 1:
            raise refused(f"must have one of path, repo and url, found {' and '.join(given) or 'none'}")
        if self.repo is not None and self.file is None:
            raise refused("is missing; name the file inside the repository", ("file",))
        return self

    def source(self, folder: Path) -> WeightsSource:
        """Return the contract's form; `path` is relative to `folder`."""
        values = self.model_dump()
        if self.path is not None:
            values["path"] = real_path(folder / self.path)
        return WeightsSource(**values)


class GuidanceTable(Table):
    """`[guidance]`."""

    kind: Annotated[str, Choice(GUIDANCE_KINDS)]
    natural: Annotated[float, Field(description="The authors' scale; 1.0 is no guidance.")] = 1.0
    range: Annotated[list[float], AfterValidator(_scales)] = [1.0, 1.0]


class PresetTable(Table):
    """`[[presets]]`: settings tuned for step counts."""

    steps: Span
    settings: Settings = {}
    source: str = ""


class MemberTable(Table):
    """`[[members]]`: the model of some step counts when the card names several."""

    model: Name
    steps: Span


class PublishedTable(Table):
    """`[[published]]`: a figure that the authors published."""

    metric: Annotated[str, Choice(lambda: CATALOG)]
    value: float
    steps: Count
    cfg: float | None = None
    source: Text
    nfe: Annotated[float, Field(gt=0)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1000, description="Runs of which it is the best.")] = 1


def _requirement(value: str) -> str:
    """Check one requirement: a name with versions, or a commit of a git repository; nothing pip takes as a flag."""
    if not REQUIREMENT.fullmatch(value):
        raise refused(
            "must be a package as 'numpy', 'torch==2.2.0', 'name[extra]>=1,<2' or "
            f"'name @ git+https://...@COMMIT', found {found(value)}"
        )
    return value


REQUIREMENT = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._,-]+\])?"
    r"(([=<>!~]=?=?[A-Za-z0-9.*+!-]+)(,[=<>!~]=?=?[A-Za-z0-9.*+!-]+)*| @ git\+https://[\w.:/~-]+@[0-9a-f]{7,40})?"
)


class WorkerTable(Table):
    """`[worker]`: the environment of a model that is sampled out of process."""

    environment: Annotated[Name | None, Field(description="Its name, where several cards share one.")] = None
    python: Annotated[str, StringConstraints(pattern=r"^3\.\d{1,2}$")] | None = None
    requirements: Annotated[
        list[Annotated[str, AfterValidator(_requirement)]],
        Field(description="Packages that `bench worker setup` installs, when the user asks for it."),
        Distinct,
    ] = []
    start_seconds: Annotated[float, Field(gt=0, le=86400, description="What it may take to start.")] = 1800.0
    batch_seconds: Annotated[float, Field(gt=0, le=604800, description="What it may take for a batch.")] = 3600.0
    memory_gib: Annotated[float | None, Field(gt=0, le=65536, description="What memory it may take.")] = None

    def needs(self) -> WorkerNeeds:
        """Return the contract's form."""
        return WorkerNeeds(
            self.environment or "",
            self.python or "",
            tuple(self.requirements),
            self.start_seconds,
            self.batch_seconds,
            self.memory_gib,
        )


class CardTable(Table):
    """A card of fewstep-bench: what a checkpoint is, where it lies and how its authors sample it."""

    name: Annotated[Name, Field(description="The name that people type; that of the file.")]
    family: Annotated[Name, Field(description="The adapter: an entry point of bench.adapters.")]
    title: Annotated[Text, Field(description="One line for people.")]
    resolution: Annotated[int, Field(ge=1, le=65536, description="Side of the images in pixels.")]
    num_classes: Annotated[int, Field(ge=0, le=1_000_000, description="Classes; 0 for an unconditional model.")]
    home: Annotated[
        Text | None, Field(description="The protocol that a run without --protocol takes: its name, or a .toml file.")
    ] = None
    teacher: Annotated[Name | None, Field(description="The card of the model that a student was made from.")] = None
    latent_shape: Annotated[
        list[Annotated[int, Field(ge=1, le=1_000_000)]],
        Field(min_length=1, max_length=4, description="Shape of one sample's noise."),
        AfterValidator(_noise),
    ]
    architecture: Annotated[Settings, Field(description="What the family's network is built from.")] = {}
    weights: WeightsTable | None = None
    extra_weights: Annotated[dict[Name, WeightsTable], Field(description="Further files by role.")] = {}
    autoencoder: Annotated[Settings | None, Field(description="What decodes the latents.")] = None
    guidance: GuidanceTable = GuidanceTable(kind="none")
    natural_steps: Annotated[Count, Field(description="The authors' step count.")] = 1
    sampler: Annotated[Settings, Field(description="Settings of the checkpoint at any step count.")] = {}
    presets: list[PresetTable] = []
    supported_steps: Annotated[list[Count], Field(min_length=1), Distinct] | None = None
    trained_steps: Span | None = None
    members: list[MemberTable] = []
    parameters: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    paper: str = ""
    licence: str = "unknown"
    differs: Annotated[str, Field(description="What sets the network apart from the one it is built on.")] = ""
    trained_on: Annotated[
        list[Name],
        Field(description="Feature spaces of metrics that training optimised a distance in, e.g. inception."),
        Distinct,
    ] = []
    published: list[PublishedTable] = []
    verified: str = ""
    notes: str = ""
    waive: Annotated[
        dict[Text, Text],
        Field(description="Clauses of the adapter contract that cannot be kept, each with the reason."),
    ] = {}
    worker: WorkerTable = WorkerTable()

    @model_validator(mode="after")
    def _models(self) -> Self:
        if self.members and (self.weights is not None or self.extra_weights):
            raise refused(
                "cannot be used together with weights; a card that stands for several models has none", ("members",)
            )
        if self.teacher == self.name:
            raise refused("must name another card, found this card", ("teacher",))
        taken: list[MemberTable] = []
        for index, member in enumerate(self.members):
            at = ("members", index)
            if member.model == self.name:
                raise refused("must name another card, found this card", (*at, "model"))
            for other in taken:
                if member.steps[0] <= other.steps[1] and other.steps[0] <= member.steps[1]:
                    raise refused(f"must not overlap with those of {other.model}, found {member.steps}", (*at, "steps"))
            taken.append(member)
        return self

    def card(self, path: Path) -> ModelCard:
        """Return the contract's form of the card read from `path`."""
        guidance = self.guidance
        return ModelCard(
            name=self.name,
            family=self.family,
            title=self.title,
            resolution=self.resolution,
            num_classes=self.num_classes,
            latent_shape=tuple(self.latent_shape),
            architecture=self.architecture,
            weights=None if self.weights is None else self.weights.source(path.parent),
            extra_weights={role: table.source(path.parent) for role, table in self.extra_weights.items()},
            autoencoder=self.autoencoder,
            guidance=Guidance(guidance.kind, guidance.natural, (guidance.range[0], guidance.range[1])),
            natural_steps=self.natural_steps,
            sampler=self.sampler,
            presets=tuple(Preset(_two(preset.steps), preset.settings, preset.source) for preset in self.presets),
            supported_steps=None if self.supported_steps is None else tuple(self.supported_steps),
            trained_steps=None if self.trained_steps is None else _two(self.trained_steps),
            members=tuple(Member(member.model, _two(member.steps)) for member in self.members),
            parameters=self.parameters,
            paper=self.paper,
            licence=self.licence,
            differs=self.differs,
            trained_on=tuple(self.trained_on),
            published=tuple(Published(**figure.model_dump()) for figure in self.published),
            verified=self.verified,
            notes=self.notes,
            waive=self.waive,
            home=self.home,
            teacher=self.teacher,
            worker=self.worker.needs(),
            path=path,
        )
