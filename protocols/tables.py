"""The protocol file: its keys and what each may hold, checked by pydantic.

What only the harness knows (metrics and their options, kinds of judges and their options) is plain data here and
checked by it before the first sample.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    create_model,
    model_validator,
)

from results.catalog import MMHM_METRICS
from results.documents import (
    Choice,
    Distinct,
    Name,
    Samples,
    Seed,
    Settings,
    Table,
    found,
    is_integer,
    plain,
    refused,
)

LABEL_PLANS = ("balanced", "reference", "uniform")
QUANTISERS = ("round", "trunc128", "trunc255")
SAMPLERS = ("native", "plain")

Text = Annotated[str, StringConstraints(min_length=1)]


def _alone(table: Table, key: str, others: tuple[str, ...]) -> None:
    """Refuse `others` beside `key`."""
    for other in others:
        if {key, other} <= table.model_fields_set:
            raise refused(f"cannot be used together with {key}; keep one of them", (other,))


def _judge_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", value):
        raise refused("must be a name of letters, digits, _ and -")
    return value


def _templates(value: Any) -> Any:
    templates = value if isinstance(value, list) else [value]
    if not templates or not all(isinstance(template, str) for template in templates):
        raise refused(f"must be text or a list of texts, found {found(value)}")
    if not all("{name}" in template for template in templates):
        raise refused(f"must hold {{name}}, where the name of the class is put, found {found(value)}")
    return templates


def _step_counts(value: Any) -> Any:
    if not isinstance(value, list) or not value:
        raise refused(f"must be a list of positive integers, found {found(value)}")
    for index, count in enumerate(value):
        if not is_integer(count, 1, 1_000_000):
            raise refused(f"must be an integer in 1 to 1000000, found {found(count)}", (index,))
    return value


class LabelsTable(Table):
    """`[labels]`: the classes, their prompts and which class each sample is asked for."""

    names: Annotated[list[Text], Field(min_length=1, description="Class names in label order.")] | None = None
    names_file: Annotated[Text | None, Field(description="A file of class names: one per line, or a .csv.")] = None
    names_column: Annotated[Text, Field(description="Column of the .csv.")] = "name"
    template: Annotated[
        list[str],
        BeforeValidator(_templates),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
        Field(description="The prompt of a class, with {name} in it; a list of several is averaged."),
    ]
    plan: Annotated[str, Choice(LABEL_PLANS)]

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        _alone(self, "names", ("names_file", "names_column"))
        if self.names is None and self.names_file is None:
            raise refused("is missing; add it, or names_file", ("names",))
        return self


class SweepTable(Table):
    """`[[sampling.sweeps]]`: cells of every model x steps x guidance."""

    models: Annotated[list[Name], Field(min_length=1), Distinct]
    steps: Annotated[
        list[int],
        BeforeValidator(_step_counts),
        Distinct,
        WithJsonSchema(
            {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 1_000_000}, "minItems": 1}
        ),
    ]
    cfg: Annotated[list[float], Field(min_length=1, description="Guidance scales; 1.0 is none."), Distinct] = [1.0]
    options: Annotated[Settings, Field(description="Sampler settings, as --option gives them.")] = {}


class SamplingTable(Table):
    """`[sampling]`."""

    num_samples: Annotated[Samples, Field(description="Samples per setting.")]
    seed: Seed
    sweeps: list[SweepTable] = []
    sampler: Annotated[str, Choice(SAMPLERS)] = "native"
    quantise: Annotated[str, Choice(QUANTISERS)] = "round"
    levels: Annotated[int, Field(ge=2, le=256, description="Grey levels that the quantiser keeps.")] = 256
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    thumbnails: Annotated[int, Field(ge=0, le=10_000, description="First samples kept as pictures.")] = 20


class ReferenceTable(Table):
    """`[reference]`: a data set by `kind`, or images that a registered `source` gives."""

    name: Name
    kind: str | None = None
    source: str | None = None
    part: Text | None = None
    variant: str = ""
    resize: Annotated[str, Field(description="How images are cut to the protocol's size.")] = "none"
    images: Samples | None = None
    classes: Annotated[int, Field(ge=0, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        _alone(self, "source", ("kind", "variant", "images", "classes"))
        if self.kind is None and self.source is None:
            raise refused("is missing; add it", ("kind",))
        if self.part is not None and self.source is None:
            raise refused("needs a source; name one", ("part",))
        return self


class JudgeTable(Table):
    """`[judges.NAME]`: a frozen network; its other keys are options of its kind."""

    model_config = ConfigDict(extra="allow")

    kind: str

    @model_validator(mode="after")
    def _plain_options(self) -> Self:
        plain(self.model_extra or {})
        return self


class MetricsTable(Table):
    """`[metrics]`."""

    names: Annotated[list[Text], Field(min_length=1), Distinct]
    blocks: Annotated[int, Field(ge=2, le=1_000_000, description="Blocks of the delete-block jackknife.")] = 20
    options: Settings = {}


def _bounds(value: list[float]) -> list[float]:
    if len(value) != 2 or not value[0] < value[1]:
        raise refused(f"must be two numbers [low, high], low < high, found {found(value)}")
    return value


Bounds = Annotated[list[float], AfterValidator(_bounds)]


_BOUNDS: dict[str, Any] = dict.fromkeys(MMHM_METRICS, (Bounds, ...))
BoundsTable = create_model(
    "BoundsTable",
    __base__=Table,
    __doc__="`composite.bounds`: the frozen [low, high] of each metric of MMHM.",
    **_BOUNDS,
)


class CompositeTable(Table):
    """`[composite]`: MMHM."""

    version: Annotated[int, Field(ge=0, le=2**31 - 1)] = 1
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-3
    clip: Annotated[bool | None, Field(description="Clip to the bounds [where there are bounds].")] = None
    fid: Annotated[
        Literal["raw", "corrected"], Field(description="FID as it is at N, or less its bias of order 1/N.")
    ] = "raw"
    source: str = ""
    bounds: BoundsTable | None = None


class ProtocolTable(Table):
    """A protocol of fewstep-bench: everything that a number depends on. With `extends` only what differs is stated."""

    name: Annotated[Name, Field(description="The name that people type.")]
    title: Annotated[Text, Field(description="One line for people.")]
    resolution: Annotated[int, Field(ge=1, le=65536, description="Side of the square images that are judged.")]
    notes: str = ""
    smoke: Annotated[bool, Field(description="A small subset that only shows that everything runs.")] = False
    labels: LabelsTable
    sampling: SamplingTable
    reference: ReferenceTable
    judges: dict[Annotated[str, AfterValidator(_judge_name)], JudgeTable]
    metrics: MetricsTable
    composite: CompositeTable = CompositeTable()
