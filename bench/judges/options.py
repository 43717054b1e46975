"""The options of judges, as `[judges.NAME]` of a protocol gives them: their types and ranges.

An option means the same for every kind that has it; which ones a kind has, its module says.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from protocols import Protocol
from results.documents import Choice, Table, shown, validated
from results.errors import ProtocolError

GEOMETRIES = ("shortest-edge", "crop-square", "squash", "longest")
"""How an image gets a judge's shape."""
BACKENDS = ("pillow", "torchvision", "torch-float")
"""What resizes it."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class JudgeOptions(Table):
    """Every option of the kinds of judges that come with the package."""

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


def check_judges(protocol: Protocol) -> None:
    """Raise ProtocolError for the first option of a judge whose value is wrong; unknown ones are left to its kind."""
    for name in protocol.judges:
        known = {key: value for key, value in protocol.judge_options(name).items() if key in JudgeOptions.model_fields}
        validated(JudgeOptions, known, f"protocol {shown(protocol.path)}", ProtocolError, ("judges", name))
