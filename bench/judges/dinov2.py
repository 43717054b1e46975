"""DINOv2 class-token features for FD-DINOv2 (arXiv 2306.04675).

Options: `hub` (default `facebook/dinov2-large`, with `revision`) or `path` (a transformers directory); `size` (default
224); `resize`: `pillow` (default, bicubic on uint8, as published) or `torch-float` (EDM2's fast path); `batch_size`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from bench.judges.base import JudgeKind, check_options
from bench.judges.costs import tower_cost
from bench.judges.files import file_sha256, library_version
from bench.judges.judge import Judge, JudgeSpec
from bench.judges.pixels.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from bench.judges.towers import ImageFeatureJudge
from bench.judges.transformers_clip import MODEL_OPTIONS, load_model, model_files
from bench.weights.file import NeededFile
from results.errors import BenchError

REPOSITORY = "facebook/dinov2-large"
POSITION_OFFSET = 0.1


def required_files(spec: JudgeSpec, root: Path) -> list[NeededFile]:
    """Return weights and configuration."""
    check_options(spec, (*MODEL_OPTIONS, "size", "resize"))
    options: Mapping[str, Any] = spec.options
    if not {"path", "hub"} & set(options):
        options = {"hub": REPOSITORY, **options}
    return model_files(replace(spec, options=options), root)


def build(spec: JudgeSpec, root: Path, files: Sequence[Path], device: torch.device) -> Judge:
    """Return the feature judge, given the paths of its files."""
    import transformers

    weights, config = files
    model = load_model(spec, transformers.Dinov2Model, config)
    size = int(spec.options.get("size", 224))
    if size % model.config.patch_size:
        raise BenchError(
            f"judge '{spec.name}': size {size} is not a multiple of its patch of {model.config.patch_size} pixels"
        )
    set_positions(model, size // model.config.patch_size)
    model = model.to(device)
    preprocess = Preprocess(
        size=size,
        geometry="squash",
        backend=spec.options.get("resize", "pillow"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    facts = {
        "kind": spec.kind,
        "library": library_version("transformers"),
        "weights": file_sha256(weights),
        "config": file_sha256(config),
        "preprocess": asdict(preprocess),
        "position_offset": POSITION_OFFSET,
    }

    def class_token(pixels: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=pixels).pooler_output

    return ImageFeatureJudge(spec.name, class_token, preprocess, facts, device, spec.options.get("batch_size"))


def set_positions(model: Any, grid: int) -> None:
    """Resample the position table of a Dinov2Model to `grid` x `grid` patches as the published code does.

    That code interpolates by the factor (grid + 0.1) / trained grid and not to the exact size, which shifts
    the sampling points by up to a fifth of a patch; transformers interpolates to the size. Published features need
    the former.
    """
    table = model.embeddings.position_embeddings.data
    trained = round((table.shape[1] - 1) ** 0.5)
    if grid != trained:
        patches = table[:, 1:].reshape(1, trained, trained, -1).permute(0, 3, 1, 2)
        factor = (grid + POSITION_OFFSET) / trained
        resampled = functional.interpolate(
            patches, scale_factor=(factor, factor), mode="bicubic", align_corners=False, recompute_scale_factor=False
        )
        patches = resampled.permute(0, 2, 3, 1).flatten(1, 2)
        model.embeddings.position_embeddings = torch.nn.Parameter(
            torch.cat([table[:, :1], patches], dim=1), requires_grad=False
        )
    model.config.image_size = grid * model.config.patch_size


KIND = JudgeKind(ImageFeatureJudge, required_files, build, partial(tower_cost, default=REPOSITORY))
