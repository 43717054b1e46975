"""ImageReward (arXiv 2304.05977), through its authors' package, which is an optional extra.

Options: `model` (default `ImageReward-v1.0`), `batch_size`. The package loads its own weights; it scores one image
at a time and pins an old transformers, so it belongs into an environment of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bench.judges.base import JudgeKind, check_options
from bench.judges.files import library_version
from bench.judges.judge import Judge, JudgeSpec, Prompt
from bench.weights.file import NeededFile
from results.errors import BenchError

MODEL = "ImageReward-v1.0"


def required_files(spec: JudgeSpec, root: Path) -> list[NeededFile]:
    """Return nothing: the package keeps its own weights."""
    check_options(spec, ("model", "batch_size"))
    return []


def build(spec: JudgeSpec, root: Path, files: Sequence[Path], device: torch.device) -> Judge:
    """Return the judge. Raises BenchError naming the extra if the package is not installed."""
    try:
        import ImageReward
    except ImportError as error:
        raise BenchError(
            f"judge '{spec.name}': the package image-reward is not installed; run pip install "
            "'fewstep-bench[image-reward]' in an environment of its own, or remove the judge"
        ) from error
    model_name = spec.options.get("model", MODEL)
    facts = {"kind": spec.kind, "library": library_version("image-reward"), "model": model_name}
    return ImageRewardJudge(spec.name, ImageReward.load(model_name, device=str(device)), facts, device)


class ImageRewardJudge(Judge):
    """`score` [B]: the package's reward, roughly standard normal over its training images."""

    takes_half = False
    needs_labels = True
    reads_native = True

    def __init__(self, name: str, model: Any, facts: Mapping[str, Any], device: torch.device) -> None:
        super().__init__(name, facts, device)
        self.model = model
        self.prompts: list[str] = []

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Keep the prompts: the model reads text and image together."""
        self.prompts = [prompt if isinstance(prompt, str) else prompt[0] for prompt in prompts]

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `score` [B] of a batch."""
        pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]
        pairs = zip(labels.tolist(), pictures, strict=True)
        scores = [self.model.score(self.prompts[label], picture) for label, picture in pairs]
        return {"score": torch.tensor(scores, dtype=torch.float32, device=self.device)}


KIND = JudgeKind(ImageRewardJudge, required_files, build)
