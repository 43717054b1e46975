"""Projected CLIP image features for CMMD (arXiv 2401.09603): ViT-L/14-336, centre crop to a square, then bicubic.

Options: those of an open_clip model (`model`, `pretrained`, `weights`, `config`), or `path` / `hub` of a transformers
CLIP; `geometry` (default `crop-square`), `batch_size`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.judges.base import JudgeKind, check_options
from bench.judges.costs import feature_cost
from bench.judges.files import file_sha256, library_version
from bench.judges.judge import Judge, JudgeSpec
from bench.judges.open_clip import MODEL_OPTIONS as OPEN_CLIP_OPTIONS
from bench.judges.open_clip import load_towers
from bench.judges.open_clip import model_files as open_clip_files
from bench.judges.pixels.preprocess import Preprocess
from bench.judges.towers import ImageFeatureJudge
from bench.judges.transformers_clip import MODEL_OPTIONS as TRANSFORMERS_OPTIONS
from bench.judges.transformers_clip import TransformersTowers, load_model
from bench.judges.transformers_clip import model_files as transformers_files
from bench.weights.file import NeededFile

GEOMETRY = "crop-square"


def required_files(spec: JudgeSpec, root: Path) -> list[NeededFile]:
    """Return the model's files."""
    if _is_transformers(spec):
        check_options(spec, (*TRANSFORMERS_OPTIONS, "geometry"))
        return transformers_files(spec, root)
    check_options(spec, OPEN_CLIP_OPTIONS)
    return open_clip_files(spec, root)


def build(spec: JudgeSpec, root: Path, files: Sequence[Path], device: torch.device) -> Judge:
    """Return the feature judge, given the paths of its files."""
    geometry = spec.options.get("geometry", GEOMETRY)
    if _is_transformers(spec):
        encode, preprocess, facts = _load_transformers(spec, files, geometry, device)
    else:
        towers, known, facts = load_towers(spec, files, device)
        encode = towers.image_features
        preprocess = replace(known, geometry=geometry, crop_rounding="down")
    facts |= {"kind": spec.kind, "preprocess": asdict(preprocess)}
    return ImageFeatureJudge(spec.name, encode, preprocess, facts, device, spec.options.get("batch_size"))


def _is_transformers(spec: JudgeSpec) -> bool:
    return "path" in spec.options or "hub" in spec.options


def _load_transformers(
    spec: JudgeSpec, files: Sequence[Path], geometry: str, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], Preprocess, dict[str, Any]]:
    import transformers

    weights, config = files
    model = load_model(spec, transformers.CLIPModel, config).to(device)
    facts = {
        "library": library_version("transformers"),
        "weights": file_sha256(weights),
        "config": file_sha256(config),
    }
    preprocess = Preprocess(size=model.config.vision_config.image_size, geometry=geometry)
    return TransformersTowers(model).image_features, preprocess, facts


KIND = JudgeKind(ImageFeatureJudge, required_files, build, feature_cost)
