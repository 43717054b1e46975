"""Image features of timm's networks, as FD-Loss takes them for distances in several feature spaces (arXiv 2604.28190).

Options: `model` (a name of timm's with its tag, as `vit_large_patch16_224.mae`; the weights come from its repository on
the hub, with `revision`) and, instead of the hub, `weights` (a local safetensors file); `size` (default: the size it
was trained at); `batch_size`.

Features are the class token; where there is none, what attention pools; of a convolutional network, the mean over the
map. Images are resized as floats by torch's antialiased bicubic filter, not rounded. The authors run the networks in
bfloat16, this judge in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.judges.base import JudgeKind, check_options
from bench.judges.costs import feature_cost
from bench.judges.files import file_sha256, library_version, option_path
from bench.judges.judge import Judge, JudgeSpec
from bench.judges.pixels.preprocess import Preprocess
from bench.judges.towers import ImageFeatureJudge
from bench.weights.file import NeededFile
from results.errors import BenchError, one_line, unknown

OPTIONS = ("model", "weights", "revision", "size", "batch_size")


def required_files(spec: JudgeSpec, root: Path) -> list[NeededFile]:
    """Return the weights: the local file that the protocol names, or the one in timm's repository."""
    check_options(spec, OPTIONS)
    known = _facts(spec)
    weights = option_path(spec.options, "weights", root)
    if weights is not None:
        if weights.suffix != ".safetensors":
            raise BenchError(
                f"judge '{spec.name}': {weights} is not a .safetensors file; convert it, others may hold code"
            )
        return [NeededFile("weights", path=weights)]
    if not known.hf_hub_id:
        raise BenchError(f"judge '{spec.name}': the weights of '{_model(spec)}' are not on the hub; set 'weights'")
    return [
        NeededFile("weights", repo=known.hf_hub_id, names=("model.safetensors",), revision=spec.options.get("revision"))
    ]


def build(spec: JudgeSpec, root: Path, files: Sequence[Path], device: torch.device) -> Judge:
    """Return the feature judge, given the path of its weights."""
    known = _facts(spec)
    size = int(spec.options.get("size", known.input_size[-1]))
    model = _load(spec, files[0])
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    preprocess = Preprocess(
        size=size,
        geometry="squash",
        backend="torch-float",
        mean=tuple(map(float, known.mean)),
        std=tuple(map(float, known.std)),
    )
    facts = {
        "kind": spec.kind,
        "library": library_version("timm"),
        "model": _model(spec),
        "weights": file_sha256(files[0]),
        "preprocess": asdict(preprocess),
    }
    model = model.to(device=device, dtype=torch.float32).eval().requires_grad_(False)

    def features(pixels: torch.Tensor) -> torch.Tensor:
        found = model.forward_features(pixels)
        if found.ndim == 4:
            return found.mean(dim=(2, 3))
        if getattr(model, "cls_token", None) is not None:
            return found[:, 0]
        return model.pool(found) if getattr(model, "attn_pool", None) is not None else found[:, prefix:].mean(dim=1)

    return ImageFeatureJudge(spec.name, features, preprocess, facts, device, spec.options.get("batch_size"))


def _model(spec: JudgeSpec) -> str:
    if "model" not in spec.options:
        raise BenchError(f"judge '{spec.name}': set 'model', a name of timm's with its tag")
    return str(spec.options["model"])


def _facts(spec: JudgeSpec) -> Any:
    """Return what timm knows of the weights: repository, size, mean, standard deviation."""
    import timm

    name = _model(spec)
    if not timm.is_model(name):
        raise unknown(f"timm model of judge '{spec.name}'", name, timm.list_models())
    found = timm.get_pretrained_cfg(name)
    if found is None:
        raise BenchError(f"judge '{spec.name}': timm knows no weights of '{name}'; give the name with its tag")
    return found


def _load(spec: JudgeSpec, weights: Path) -> Any:
    """Return the network without its classifier, strictly filled: timm itself would go on with random numbers.

    Transformers take any size, padded to whole patches.
    """
    import timm
    from safetensors.torch import load_file

    name = _model(spec)
    try:
        model = timm.create_model(name, num_classes=0, dynamic_img_size=True, dynamic_img_pad=True)
    except TypeError:
        model = timm.create_model(name, num_classes=0)
    try:
        absent = model.load_state_dict(load_file(weights), strict=False).missing_keys
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}", 160)
        raise BenchError(f"judge '{spec.name}': {weights} does not fit '{name}' ({reason})") from error
    if absent:
        raise BenchError(
            f"judge '{spec.name}': {weights} does not fit '{name}': it is missing {len(absent)} of the model's "
            f"weights, the first {absent[0]}"
        )
    return model


KIND = JudgeKind(ImageFeatureJudge, required_files, build, feature_cost)
