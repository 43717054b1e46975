"""CLIP-like preference models by transformers: PickScore (arXiv 2305.01569) and any CLIPModel directory.

Options: `path` (a local directory) or `hub` (a repository, with `revision`); `processor_path` or `processor_hub` (with
`processor_revision`) where tokenizer and image processor lie elsewhere; `backend` (`pillow`, default, as published
scores; or `torchvision`); `scale` (default: the model's exp(logit_scale)); `batch_size`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.judges.base import JudgeKind, check_options
from bench.judges.costs import score_cost
from bench.judges.files import file_sha256, library_version, option_path
from bench.judges.judge import Judge, JudgeSpec
from bench.judges.pixels.preprocess import from_processor_config
from bench.judges.towers import AlignmentJudge, Towers
from bench.weights.file import NeededFile
from results.documents import read_object
from results.errors import BenchError

MODEL_OPTIONS = ("path", "hub", "revision", "batch_size")
OPTIONS = (*MODEL_OPTIONS, "processor_path", "processor_hub", "processor_revision", "backend", "scale")
TOKENIZER_NAMES = ("tokenizer.json", "vocab.json")
TOKENIZER_PARTS = (*TOKENIZER_NAMES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


class TransformersTowers(Towers):
    """A transformers CLIPModel with its tokenizer."""

    def __init__(self, model: nn.Module, tokenizer: Any = None) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer

    def image_features(self, pixels: Tensor) -> Tensor:
        """Encode float32 [B, 3, S, S] to [B, d]."""
        return _pooled(self.model.get_image_features(pixel_values=pixels))

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, padded to the longest prompt and cut to the context length."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return {key: tokens[key] for key in ("input_ids", "attention_mask")}

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encode int64 [B, T] to [B, d]."""
        return _pooled(self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask))

    def temperature(self) -> Tensor:
        """Return exp(logit_scale)."""
        return self.model.logit_scale.detach().exp()


def _pooled(output: Any) -> Tensor:
    """Return the projected features: since transformers 5 they come inside an output object."""
    return getattr(output, "pooler_output", output)


def required_files(spec: JudgeSpec, root: Path) -> list[NeededFile]:
    """Return weights, configuration, image processor and tokenizer."""
    check_options(spec, OPTIONS)
    separate = {"processor_path", "processor_hub"} & set(spec.options)
    processor = directory_files(
        spec, root, {"image processor": ("preprocessor_config.json",), "tokenizer": TOKENIZER_NAMES},
        prefix="processor_" if separate else "",
    )  # fmt: skip
    return [*model_files(spec, root), *processor]


def build(spec: JudgeSpec, root: Path, files: Sequence[Path], device: torch.device) -> Judge:
    """Return the preference judge, given the paths of its files."""
    import transformers

    weights, config, processor, tokenizer_file = files
    model = load_model(spec, transformers.CLIPModel, config)
    parts = tokenizer_parts(spec, tokenizer_file)
    with tempfile.TemporaryDirectory(prefix="bench-tokenizer-") as alone, _quietly(spec, tokenizer_file.parent):
        for part in parts:
            (Path(alone) / part.name).symlink_to(part.absolute())
        tokenizer = transformers.CLIPTokenizer.from_pretrained(alone, local_files_only=True)
    settings = read_object(processor, f"judge '{spec.name}': image processor")
    preprocess = from_processor_config(settings, spec.options.get("backend", "pillow"))
    if model.config.vision_config.image_size != preprocess.size:
        raise BenchError(
            f"judge '{spec.name}': its image processor gives {preprocess.size} pixels, "
            f"the model takes {model.config.vision_config.image_size}; set 'processor_path' or 'processor_hub'"
        )
    scale = spec.options.get("scale")
    facts = {
        "kind": spec.kind,
        "library": library_version("transformers"),
        "weights": file_sha256(weights),
        "config": file_sha256(config),
        "tokenizer": {part.name: file_sha256(part) for part in parts},
        "preprocess": asdict(preprocess),
        "scale": "exp(logit_scale)" if scale is None else float(scale),
    }
    towers = TransformersTowers(model.to(device), tokenizer)
    return AlignmentJudge(spec.name, towers, preprocess, scale, facts, device, spec.options.get("batch_size"))


def tokenizer_parts(spec: JudgeSpec, file: Path) -> list[Path]:
    """Return the files that make the tokenizer: those of a local directory, or of a hub's the one that was fetched.

    Any program may add files to the hub's cache; were they read, one judge would differ between machines.
    """
    prefix = "processor_" if {"processor_path", "processor_hub"} & set(spec.options) else ""
    fetched = f"{prefix}path" not in spec.options
    names = (file.name, "merges.txt") if file.name == "vocab.json" else (file.name,)
    return [file.parent / name for name in (names if fetched else TOKENIZER_PARTS) if (file.parent / name).is_file()]


def model_files(spec: JudgeSpec, root: Path) -> list[NeededFile]:
    """Return `model.safetensors` and `config.json` of a transformers model."""
    return directory_files(spec, root, {"weights": ("model.safetensors",), "configuration": ("config.json",)})


def directory_files(
    spec: JudgeSpec, root: Path, wanted: dict[str, tuple[str, ...]], prefix: str = ""
) -> list[NeededFile]:
    """Return files of the local directory or hub repository that `{prefix}path` or `{prefix}hub` names."""
    directory = option_path(spec.options, f"{prefix}path", root)
    if directory is not None:
        present = {
            title: next((name for name in names if (directory / name).is_file()), names[0])
            for title, names in wanted.items()
        }
        return [NeededFile(title, path=directory / name) for title, name in present.items()]
    repository = spec.options.get(f"{prefix}hub")
    if repository is None:
        raise BenchError(f"judge '{spec.name}': set '{prefix}path' (a directory) or '{prefix}hub' (a repository)")
    revision = spec.options.get(f"{prefix}revision")
    return [NeededFile(title, repo=repository, names=names, revision=revision) for title, names in wanted.items()]


def load_model(spec: JudgeSpec, model_class: Any, config: Path) -> Any:
    """Return a transformers model of `model_class` from the directory of its `config.json`: float32, eval mode, frozen.

    Only safetensors are read. Raises BenchError for another type of model, and when a weight is absent (transformers
    itself would go on with random numbers).
    """
    settings = read_object(config, f"judge '{spec.name}': configuration")
    expected, found = model_class.config_class.model_type, settings.get("model_type")
    if found != expected:
        raise BenchError(f"judge '{spec.name}': {config} is of type '{found}'; this judge takes '{expected}'")
    with _quietly(spec, config.parent):
        model, report = model_class.from_pretrained(
            config.parent, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    absent = sorted(str(key) for key in report["missing_keys"])
    if absent:
        raise BenchError(
            f"judge '{spec.name}': {config.parent} is missing {len(absent)} of the model's weights, the first "
            f"{absent[0]}"
        )
    return model.eval().requires_grad_(False)


@contextmanager
def _quietly(spec: JudgeSpec, directory: Path) -> Iterator[None]:
    """Load without transformers' progress bar and reports, and turn its failures into one line."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BenchError(f"judge '{spec.name}': {directory} cannot be loaded by transformers ({reason})") from error
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


KIND = JudgeKind(AlignmentJudge, required_files, build, score_cost)
