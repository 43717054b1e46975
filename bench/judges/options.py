"""Kinds of judges, and their options as `[judges.NAME]` of a protocol gives them: names, types and ranges.

All of it is known without loading a judge's libraries. An option means the same for every kind that has it; which ones
a kind has, its module says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, StringConstraints

from bench.contracts.plugins import Group
from bench.judges.costs import JudgeCost, unknown_cost
from protocols import Protocol
from results.documents import Choice, Table, shown, validated
from results.errors import BenchError, ProtocolError

if TYPE_CHECKING:
    import torch

    from bench.judges.judge import Judge, JudgeSpec
    from bench.weights.file import NeededFile

GEOMETRIES = ("shortest-edge", "crop-square", "squash", "longest")
"""How an image gets a judge's shape."""
BACKENDS = ("pillow", "torchvision", "torch-float")
"""What resizes it."""
PRECISIONS = ("float32", "half")
"""What a judge's network computes in."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class JudgeOptions(Table):
    """Every option of the kinds of judges that come with the package."""

    precision: Annotated[str, Choice(PRECISIONS)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    model: Text | None = None
    pretrained: Text | None = None
    config: Text | None = None
    weights: Text | None = None
    merges: Text | None = None
    geometry: Annotated[str, Choice(GEOMETRIES)] | None = None
    scale: Annotated[float, Field(gt=0, le=1e6)] | None = None
    path: Text | None = None
    hub: Text | None = None
    revision: Text | None = None
    processor_path: Text | None = None
    processor_hub: Text | None = None
    processor_revision: Text | None = None
    backend: Annotated[str, Choice(BACKENDS)] | None = None
    resize: Annotated[str, Choice(BACKENDS)] | None = None
    size: Annotated[int, Field(ge=1, le=65536)] | None = None
    extractor: Text | None = None
    features_layer: Text | None = None
    logits_layer: Text | None = None
    spatial: bool | None = None


@dataclass(frozen=True)
class JudgeKind:
    """A kind of judge, as an entry point of the group `bench.judges` gives it.

    Attributes:
        judge: the class that `build` returns; its `needs_labels` is read before anything is loaded.
        required_files: `(spec, root)` to the files it needs, in the order `build` expects them; refuses bad options.
        build: `(spec, root, files, device)` to the judge, given the paths of its files.
        cost: `(spec)` to what an image costs before anything is loaded; None where that is not known.
    """

    judge: type[Judge]
    required_files: Callable[[JudgeSpec, Path], list[NeededFile]]
    build: Callable[[JudgeSpec, Path, Sequence[Path], torch.device], Judge]
    cost: Callable[[JudgeSpec], JudgeCost | None] = unknown_cost


JUDGES: Group[JudgeKind] = Group(
    "bench.judges", "kind", "a bench.judges.base.JudgeKind", lambda found: isinstance(found, JudgeKind)
)


def check_judges(protocol: Protocol) -> None:
    """Raise ProtocolError for the first judge of an unknown kind or option of a wrong value.

    Unknown options are left to the kind.
    """
    for name, table in protocol.judges.items():
        try:
            JUDGES.check(str(table["kind"]), f" of judge '{name}'")
        except BenchError as error:
            subject = f"protocol {shown(protocol.path)}: key 'judges.{name}.kind'"
            raise ProtocolError(f"{subject}: {error}") from error
        known = {key: value for key, value in protocol.judge_options(name).items() if key in JudgeOptions.model_fields}
        validated(JudgeOptions, known, f"protocol {shown(protocol.path)}", ProtocolError, ("judges", name))
