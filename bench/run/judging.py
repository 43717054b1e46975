"""What judging a set of images would take, said before the first of them: `bench score` and `bench reference build`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bench.judges.base import judge_cost, judge_kind, judge_specs
from bench.judges.judge import JudgeSpec
from bench.run.forecast import Hardware, assumed_peaks, judging_seconds
from bench.run.needs import Needs, joined, needs_of_judging
from bench.run.provenance import device_name
from protocols import Protocol
from results.files import free_bytes


class Judging(NamedTuple):
    """What judging `images` images takes.

    Attributes:
        images: how many.
        judges: names of the judges that see them.
        seconds: on `device`, by counted operations.
        bytes: what is kept of the judges' outputs.
        free: bytes free where they are kept.
        uncounted: judges of which neither time nor size is known.
        device: name of the device.
        assumed: what `seconds` goes by.
        lacking: files, and for a score the reference, that this machine lacks.
    """

    images: int
    judges: list[str]
    seconds: float
    bytes: int
    free: int
    uncounted: list[str]
    device: str
    assumed: str
    lacking: Needs


def judging(
    protocols: Sequence[Protocol], images: int, device: str, place: Path, *, of_reference: bool = False
) -> Judging:
    """Return what the judges of `protocols` take for so many images on `device`, outputs being kept at `place`.

    A reference is seen by the judges that read no prompts, in full precision, and needs no other reference. No judge is
    loaded.
    """
    specs: dict[str, JudgeSpec] = {}
    for protocol in protocols:
        for spec in judge_specs(protocol):
            if not (of_reference and judge_kind(spec).judge.needs_labels):
                specs.setdefault(f"{spec.kind} {sorted(spec.options.items())}", spec)
    costs = {key: judge_cost(spec) for key, spec in specs.items()}
    known = [
        (cost, not of_reference and spec.options.get("precision") == "half")
        for key, spec in specs.items()
        if (cost := costs[key]) is not None
    ]
    kind, hardware = "cuda" if device.startswith("cuda") else "cpu", Hardware()
    lacking = joined([needs_of_judging(protocol) for protocol in protocols]).lacking()
    if of_reference:
        lacking = replace(lacking, references=())
    return Judging(
        images=images,
        judges=list(dict.fromkeys(spec.name for spec in specs.values())),
        seconds=images * judging_seconds(known, kind, hardware),
        bytes=sum(4 * cost.numbers for cost, _ in known) * images,
        free=free_bytes(place),
        uncounted=[specs[key].name for key, cost in costs.items() if cost is None],
        device=device_name(device),
        assumed=assumed_peaks(kind, ["float16" if half else "float32" for _, half in known], hardware),
        lacking=lacking,
    )
