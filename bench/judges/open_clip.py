"""CLIP by open_clip.

Options: either `model` and `pretrained` (an open_clip name and tag, fetched from the hub), or `model` and `weights` (a
local file), or `config` (a JSON of open_clip's model configuration), `weights` and `merges` (its byte-pair merges,
gzipped) for a model of one's own; `geometry` (default: the tag's), `scale` (default 100), `batch_size`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.judges.base import JudgeKind, check_options
from bench.judges.costs import score_cost
from bench.judges.files import file_sha256, library_version, option_path
from bench.judges.judge import Judge, JudgeSpec
from bench.judges.pixels.preprocess import Preprocess
from bench.judges.towers import AlignmentJudge, Towers
from bench.weights.file import NeededFile
from results.documents import read_object
from results.errors import BenchError, unknown

MODEL_OPTIONS = ("model", "pretrained", "config", "weights", "merges", "geometry", "batch_size")
OPTIONS = (*MODEL_OPTIONS, "scale")
WEIGHT_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
GEOMETRY_OF_RESIZE_MODE = {"shortest": "shortest-edge", "squash": "squash", "longest": "longest"}


class OpenClipTowers(Towers):
    """An open_clip model with its tokenizer."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer

    def image_features(self, pixels: Tensor) -> Tensor:
        """Encode float32 [B, 3, S, S] to [B, d]."""
        return self.model.encode_image(pixels)

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return `input_ids`, padded with 0 and cut to the context length."""
        return {"input_ids": self.tokenizer(list(prompts))}

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encode int64 [B, T] to [B, d]; a mask is not needed, as attention is causal."""
        return self.model.encode_text(input_ids)

    def temperature(self) -> Tensor:
        """Return exp(logit_scale)."""
        return self.model.logit_scale.detach().exp()


def required_files(spec: JudgeSpec, root: Path) -> list[NeededFile]:
    """Return weights, then the configuration and the merges where they are local files."""
    check_options(spec, OPTIONS)
    return model_files(spec, root)


def build(spec: JudgeSpec, root: Path, files: Sequence[Path], device: torch.device) -> Judge:
    """Return the CLIP score judge, given the paths of its files."""
    towers, preprocess, facts = load_towers(spec, files, device)
    scale = float(spec.options.get("scale", 100.0))
    facts |= {"kind": spec.kind, "scale": scale}
    return AlignmentJudge(spec.name, towers, preprocess, scale, facts, device, spec.options.get("batch_size"))


def model_files(spec: JudgeSpec, root: Path) -> list[NeededFile]:
    """Return the files of an open_clip model: weights, and the local configuration and merges if set."""
    options = spec.options
    local = {key: option_path(options, key, root) for key in ("config", "weights", "merges")}
    if (local["config"] is None) == ("model" not in options):
        raise BenchError(f"judge '{spec.name}': give either 'model' (an open_clip name) or 'config' (a JSON file)")
    extras = [NeededFile(key, path=path) for key in ("config", "merges") if (path := local[key]) is not None]
    if local["weights"] is not None:
        return [NeededFile("weights", path=local["weights"]), *extras]
    repository, _, name = _pretrained(spec)["hf_hub"].rpartition("/")
    return [NeededFile("weights", repo=repository, names=(name,) if name else WEIGHT_NAMES), *extras]


def load_towers(
    spec: JudgeSpec, files: Sequence[Path], device: torch.device
) -> tuple[OpenClipTowers, Preprocess, dict[str, Any]]:
    """Return an open_clip model in float32 and eval mode, its preprocessing and the facts that identify both."""
    import open_clip

    extras = dict(zip([key for key in ("config", "merges") if key in spec.options], files[1:], strict=True))
    config, preprocess_config = _model_config(spec, extras.get("config"))
    model = build_model(config)
    try:
        open_clip.load_checkpoint(model, str(files[0]), strict=True, weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise BenchError(f"judge '{spec.name}': {files[0]} does not fit the model ({reason})") from error
    context = config["text_cfg"].get("context_length", 77)
    tokenizer = _tokenizer(spec, extras.get("merges"), context)
    vocabulary = config["text_cfg"].get("vocab_size", 49408)
    if getattr(tokenizer, "vocab_size", 0) > vocabulary:
        raise BenchError(
            f"judge '{spec.name}': its tokenizer knows {tokenizer.vocab_size} tokens, the model {vocabulary}; "
            "set 'merges' to the model's own"
        )
    preprocess = _preprocess(spec, config, preprocess_config)
    facts = {
        "library": library_version("open_clip_torch"),
        "model": spec.options.get("model", config),
        "weights": file_sha256(files[0]),
        "merges": file_sha256(extras["merges"]) if "merges" in extras else None,
        "preprocess": asdict(preprocess),
    }
    model = model.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
    return OpenClipTowers(model, tokenizer), preprocess, facts


def build_model(config: dict[str, Any]) -> nn.Module:
    """Return an untrained open_clip model of a configuration (`embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`)."""
    import open_clip

    arguments = deepcopy(config)
    custom = arguments.pop("custom_text", False)
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**arguments)


def _tokenizer(spec: JudgeSpec, merges: Path | None, context_length: int) -> Any:
    import open_clip

    if merges is None:
        return open_clip.get_tokenizer(spec.options.get("model", ""), context_length=context_length)
    try:
        return open_clip.SimpleTokenizer(bpe_path=str(merges), context_length=context_length)
    except (OSError, EOFError, ValueError) as error:
        raise BenchError(f"judge '{spec.name}': {merges} is not a gzipped list of merges ({error})") from error


def _pretrained(spec: JudgeSpec) -> dict[str, Any]:
    """Return open_clip's facts on a published tag. Raises BenchError for an unknown or mismatched one."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    model, tag = str(spec.options.get("model", "")), spec.options.get("pretrained")
    if tag is None:
        raise BenchError(f"judge '{spec.name}': set 'weights' (a local file) or 'pretrained' (an open_clip tag)")
    found = get_pretrained_cfg(model, tag)
    if not found:
        raise unknown(f"pretrained tag of judge '{spec.name}' ({model})", tag, list_pretrained_tags_by_model(model))
    if bool(found.get("quick_gelu", False)) != model.endswith("-quickgelu"):
        right = f"{model}-quickgelu" if found.get("quick_gelu") else model.removesuffix("-quickgelu")
        raise BenchError(f"judge '{spec.name}': '{tag}' weights need another activation; set model = \"{right}\"")
    if not found.get("hf_hub"):
        raise BenchError(f"judge '{spec.name}': '{model}' '{tag}' is not on the hub; set 'weights' to a local file")
    return found


def _model_config(spec: JudgeSpec, config_path: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return open_clip's model configuration and what is known of its preprocessing."""
    from open_clip.factory import get_model_config, list_models

    if config_path is not None:
        content = read_object(config_path, f"judge '{spec.name}': configuration")
        config = content.get("model_cfg", content)
        for key in ("embed_dim", "vision_cfg", "text_cfg"):
            if key not in config:
                raise BenchError(
                    f"judge '{spec.name}': {config_path} has no '{key}'; it is not an open_clip configuration"
                )
        return config, content.get("preprocess_cfg", {})
    config = get_model_config(spec.options["model"])
    if config is None:
        raise unknown(f"open_clip model of judge '{spec.name}'", spec.options["model"], list_models())
    return config, _pretrained(spec) if "pretrained" in spec.options else {}


def _preprocess(spec: JudgeSpec, config: dict[str, Any], known: dict[str, Any]) -> Preprocess:
    settings: dict[str, Any] = {key: tuple(known[key]) for key in ("mean", "std") if key in known}
    if "interpolation" in known:
        settings["kernel"] = known["interpolation"]
    geometry = spec.options.get("geometry") or GEOMETRY_OF_RESIZE_MODE[known.get("resize_mode", "shortest")]
    size = config["vision_cfg"].get("image_size", 224)
    return Preprocess(size=size, geometry=geometry, crop_rounding="even", **settings)


KIND = JudgeKind(AlignmentJudge, required_files, build, score_cost)
