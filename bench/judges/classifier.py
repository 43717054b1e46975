"""An image classifier by transformers, for top-1 agreement with the label asked for, apart from FID's network.

Options: `hub` (a repository, with `revision`) or `path` (a local directory) of an image classification model whose
class order is the protocol's; `backend` (`pillow`, default, or `torchvision`); `batch_size`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.judges.base import JudgeKind, check_options
from bench.judges.costs import tower_cost
from bench.judges.files import file_sha256, library_version
from bench.judges.judge import Judge, JudgeSpec, Prompt
from bench.judges.pixels.preprocess import Preprocess, from_processor_config
from bench.judges.transformers_clip import MODEL_OPTIONS, directory_files, load_model, model_files
from bench.weights.file import NeededFile
from results.documents import read_object
from results.errors import BenchError, unknown


def required_files(spec: JudgeSpec, root: Path) -> list[NeededFile]:
    """Return weights, configuration and image processor."""
    check_options(spec, (*MODEL_OPTIONS, "backend"))
    processor = directory_files(spec, root, {"image processor": ("preprocessor_config.json",)})
    return [*model_files(spec, root), *processor]


def build(spec: JudgeSpec, root: Path, files: Sequence[Path], device: torch.device) -> Judge:
    """Return the classifier, given the paths of its files."""
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    weights, config, processor = files
    kind = str(read_object(config, f"judge '{spec.name}': configuration").get("model_type"))
    if kind not in KNOWN:
        raise unknown(f"model type of judge '{spec.name}' ({spec.kind})", kind, KNOWN)
    facts = AutoConfig.from_pretrained(config.parent, local_files_only=True)
    model = load_model(spec, AutoModelForImageClassification._model_mapping[type(facts)], config)
    settings = read_object(processor, f"judge '{spec.name}': image processor")
    preprocess = from_processor_config(settings, spec.options.get("backend", "pillow"))
    wanted = getattr(model.config, "image_size", preprocess.size)
    if wanted != preprocess.size:
        raise BenchError(
            f"judge '{spec.name}': its image processor gives {preprocess.size} pixels, the model takes {wanted}; "
            "choose files that match"
        )
    return ClassifierJudge(
        spec.name,
        model.to(device),
        preprocess,
        {
            "kind": spec.kind,
            "library": library_version("transformers"),
            "weights": file_sha256(weights),
            "config": file_sha256(config),
            "preprocess": asdict(preprocess),
        },
        device,
        spec.options.get("batch_size"),
    )


class ClassifierJudge(Judge):
    """Returns the `logits` [B, classes] of one network."""

    needs_labels = True

    def __init__(
        self,
        name: str,
        model: nn.Module,
        preprocess: Preprocess,
        facts: Mapping[str, Any],
        device: torch.device,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(name, facts, device, batch_size)
        self.model: Any = model
        self.preprocess = preprocess

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Check that there are as many prompts as classes. Raises BenchError: labels would name other classes."""
        if len(prompts) != self.model.config.num_labels:
            raise BenchError(
                f"judge '{self.name}': its network distinguishes {self.model.config.num_labels} classes, the protocol "
                f"has {len(prompts)}; choose a classifier of the protocol's classes"
            )

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `logits` of a batch."""
        return {"logits": self.model(pixel_values=self.preprocess(images)).logits.to(torch.float32)}


CLASSES = 1000
"""Logits of the networks whose cost is known."""
KIND = JudgeKind(ClassifierJudge, required_files, build, partial(tower_cost, numbers=CLASSES))
