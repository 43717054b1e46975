"""LAION's aesthetic predictor V2: a head of linear layers on CLIP ViT-L/14 image features of unit length.

The head was fitted to ratings of images between 1 and 10 (github.com/christophschuhmann/improved-aesthetic-predictor,
`sac+logos+ava1-l14-linearMSE`); it reads no prompt. Options: those of an open_clip model (default OpenAI's ViT-L/14),
`head` (a local file; default the copy on the hub that TRL uses), `batch_size`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.contracts.card import WeightsSource
from bench.judges.base import JudgeKind, check_options
from bench.judges.costs import JudgeCost, score_cost
from bench.judges.files import file_sha256, option_path
from bench.judges.judge import Judge, JudgeSpec
from bench.judges.open_clip import MODEL_OPTIONS, load_towers, model_files
from bench.judges.pixels.preprocess import Preprocess
from bench.judges.towers import Towers, unit
from bench.weights.file import NeededFile, reading
from bench.weights.formats import read_file
from results.errors import BenchError

REPOSITORY = "trl-lib/ddpo-aesthetic-predictor"
HEAD = "aesthetic-model.pth"
DEFAULT = {"model": "ViT-L-14-quickgelu", "pretrained": "openai"}
LAYER = re.compile(r"layers\.([0-9]{1,9})\.(?:weight|bias)")


class AestheticJudge(Judge):
    """`score` [B]: the predicted mean rating of an image, about 1 to 10."""

    reads_native = True

    def __init__(
        self,
        name: str,
        towers: Towers,
        head: nn.Module,
        preprocess: Preprocess,
        facts: Mapping[str, Any],
        device: torch.device,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(name, facts, device, batch_size)
        self.towers, self.head, self.preprocess = towers, head, preprocess

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `score` [B] of a batch."""
        features = self.towers.image_features(self.preprocess(images)).to(torch.float32)
        return {"score": self.head(unit(features))[:, 0]}


def required_files(spec: JudgeSpec, root: Path) -> list[NeededFile]:
    """Return the head, then CLIP's files."""
    check_options(spec, (*MODEL_OPTIONS, "head"))
    head = option_path(spec.options, "head", root)
    needed = NeededFile("head", repo=REPOSITORY, names=(HEAD,)) if head is None else NeededFile("head", path=head)
    return [needed, *model_files(_with_clip(spec), root)]


def build(spec: JudgeSpec, root: Path, files: Sequence[Path], device: torch.device) -> Judge:
    """Return the judge, given the paths of its files."""
    towers, preprocess, facts = load_towers(_with_clip(spec), files[1:], device)
    head = load_head(files[0], spec.name).to(device)
    with torch.inference_mode():
        width = towers.text_features(towers.tokenize([""])["input_ids"].to(device)).shape[1]
    if head[0].in_features != width:
        raise BenchError(
            f"judge '{spec.name}': {files[0]} reads {head[0].in_features} features, its CLIP has {width}; choose the "
            "CLIP that the head was fitted to"
        )
    facts |= {"kind": spec.kind, "head": file_sha256(files[0])}
    return AestheticJudge(spec.name, towers, head, preprocess, facts, device, spec.options.get("batch_size"))


def load_head(path: Path, judge: str) -> nn.Sequential:
    """Return the head of a file of `layers.N.weight` and `layers.N.bias`; dropout between them acts in training only.

    Raises BenchError when it holds anything else.
    """
    with reading(f"judge '{judge}'", path, "torch"):
        state = read_file(path, WeightsSource("torch", path=path))
    indices = sorted({int(found[1]) for key in state if (found := LAYER.fullmatch(key))})
    names = {f"{n}.{part}": f"layers.{i}.{part}" for n, i in enumerate(indices) for part in ("weight", "bias")}
    sizes = [tuple(state[name].shape) for name in names.values() if name in state]
    weights, biases = sizes[::2], sizes[1::2]
    if (
        not indices
        or set(names.values()) != set(state)
        or any(len(size) != 2 for size in weights)
        or biases != [size[:1] for size in weights]
        or any(a[0] != b[1] for a, b in pairwise(weights))
        or weights[-1][0] != 1
    ):
        raise BenchError(
            f"judge '{judge}': {path} is no aesthetic head (linear layers down to one number); fetch it again"
        )
    head = nn.Sequential(*(nn.Linear(inputs, outputs) for outputs, inputs in weights))
    head.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})
    return head.float().eval().requires_grad_(False)


def _with_clip(spec: JudgeSpec) -> JudgeSpec:
    """Return the spec of its CLIP: OpenAI's where none is named."""
    options = {key: value for key, value in spec.options.items() if key != "head"}
    return replace(spec, options=options if {"model", "config"} & set(options) else {**DEFAULT, **options})


def _cost(spec: JudgeSpec) -> JudgeCost | None:
    """Return the cost of its CLIP; the head's is nothing beside it."""
    return score_cost(_with_clip(spec))


KIND = JudgeKind(AestheticJudge, required_files, build, _cost)
