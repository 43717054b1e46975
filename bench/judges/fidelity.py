"""Classifiers behind torch-fidelity's feature-extractor interface: Inception, and any class of the same shape.

Options: `extractor` (a name registered with torch-fidelity, or an entry point of the group `bench.extractors`; never
a module to import), `weights` (a local file), `features_layer`, `logits_layer` (default: the extractor's own for FID
and Inception Score), `spatial` (sFID), `batch_size`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.contracts.plugins import Group
from bench.judges.base import JudgeKind, check_options
from bench.judges.costs import JudgeCost
from bench.judges.files import file_sha256, library_version, option_path
from bench.judges.judge import Judge, JudgeSpec
from bench.weights.file import NeededFile
from results.errors import BenchError, unknown

OPTIONS = ("extractor", "weights", "features_layer", "logits_layer", "spatial", "batch_size")
INCEPTION = "inception-v3-compat"
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d"
INCEPTION_BYTES = 95_628_000
SPATIAL_CHANNELS = 7


def _is_extractor(found: Any) -> bool:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    return isinstance(found, type) and issubclass(found, FeatureExtractorBase)


EXTRACTORS: Group[type] = Group(
    "bench.extractors", "extractor", "a subclass of torch_fidelity's FeatureExtractorBase", _is_extractor
)


def required_files(spec: JudgeSpec, root: Path) -> list[NeededFile]:
    """Return the weights: the local file the protocol names, or the published one for Inception, or none."""
    check_options(spec, OPTIONS)
    if _extractor_name(spec) != INCEPTION:  # which is there: importing the library takes seconds
        _extractor_class(spec)
    weights = option_path(spec.options, "weights", root)
    if weights is not None:
        return [NeededFile("weights", path=weights)]
    if _extractor_name(spec) == INCEPTION:
        names = (INCEPTION_URL.rsplit("/", 1)[1],)
        return [NeededFile("weights", url=INCEPTION_URL, names=names, sha256=INCEPTION_SHA256, size=INCEPTION_BYTES)]
    return []


def build(spec: JudgeSpec, root: Path, files: Sequence[Path], device: torch.device) -> Judge:
    """Return the judge, given the path of its weights (or none where the class carries its own)."""
    extractor_class = _extractor_class(spec)
    layers = _layers(spec, extractor_class)
    extractor = _instantiate(spec, extractor_class, list(layers.values()), files)
    extractor = extractor.to(device).eval().requires_grad_(False)
    spatial = bool(spec.options.get("spatial", False))
    if spatial and not hasattr(extractor, "Mixed_6d"):
        raise BenchError(f"judge '{spec.name}': spatial features (sFID) exist for {INCEPTION} only; remove 'spatial'")
    facts = {
        "kind": spec.kind,
        "extractor": _extractor_name(spec),
        "library": library_version("torch-fidelity"),
        "weights": file_sha256(files[0]) if files else _state_sha256(extractor),
        "layers": dict(layers),
        "spatial": spatial,
    }
    return FidelityJudge(spec.name, extractor, layers, spatial, facts, device, spec.options.get("batch_size"))


class FidelityJudge(Judge):
    """`features` [B, d] and `logits` [B, C] of a torch-fidelity extractor; preprocessing is the extractor's own."""

    takes_half = False

    def __init__(
        self,
        name: str,
        extractor: Any,
        layers: Mapping[str, str],
        spatial: bool,
        facts: Mapping[str, Any],
        device: torch.device,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(name, facts, device, batch_size)
        self.extractor = extractor
        self.layers = layers
        self.spatial: Tensor | None = None
        if spatial:
            # Graph block mixed_6 is Mixed_6d here; mixed_6/conv is its 1x1 branch after batch norm and ReLU.
            extractor.get_submodule("Mixed_6d.branch1x1").register_forward_hook(self._keep_spatial)

    def _keep_spatial(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Keep the first 7 channels of the 17x17 map, flattened in NHWC order: [B, 2023] (sFID, arXiv 2103.03841)."""
        self.spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `features`, `logits` and, if asked for, `spatial` of a batch."""
        outputs = self.extractor.convert_features_tuple_to_dict(self.extractor(images))
        judged = {key: outputs[layer].to(torch.float32) for key, layer in self.layers.items()}
        if self.spatial is not None:
            judged["spatial"], self.spatial = self.spatial, None
        return judged


def _extractor_name(spec: JudgeSpec) -> str:
    return str(spec.options.get("extractor", INCEPTION))


def _extractor_class(spec: JudgeSpec) -> type:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    name = _extractor_name(spec)
    if name in FEATURE_EXTRACTORS_REGISTRY:
        return FEATURE_EXTRACTORS_REGISTRY[name]
    if name not in EXTRACTORS.names():
        raise unknown(f"extractor of judge '{spec.name}'", name, [*FEATURE_EXTRACTORS_REGISTRY, *EXTRACTORS.names()])
    return EXTRACTORS.load(name, f" of judge '{spec.name}'")


def _layers(spec: JudgeSpec, extractor_class: Any) -> dict[str, str]:
    provided = extractor_class.get_provided_features_list()
    layers = {
        "features": spec.options.get("features_layer") or extractor_class.get_default_feature_layer_for_metric("fid"),
        "logits": spec.options.get("logits_layer") or extractor_class.get_default_feature_layer_for_metric("isc"),
    }
    for layer in layers.values():
        if layer not in provided:
            raise unknown(f"layer of judge '{spec.name}'", layer, provided)
    if layers["features"] == layers["logits"]:
        del layers["logits"]
    return layers


def _instantiate(spec: JudgeSpec, extractor_class: Any, layers: list[str], files: Sequence[Path]) -> Any:
    options: dict[str, Any] = {}
    if files:
        if files[0].suffix != ".safetensors":
            _check_plain_tensors(spec, files[0])
        options["feature_extractor_weights_path"] = str(files[0])
    try:
        return extractor_class(_extractor_name(spec), layers, **options)
    except (OSError, RuntimeError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BenchError(f"judge '{spec.name}': cannot build '{_extractor_name(spec)}' ({reason})") from error


def _check_plain_tensors(spec: JudgeSpec, path: Path) -> None:
    """Refuse a file that holds anything but tensors: torch-fidelity itself unpickles without that restriction."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BenchError(
            f"judge '{spec.name}': {path} is not a plain file of tensors; fetch the published weights"
        ) from error


def _state_sha256(extractor: nn.Module) -> str:
    """Return the SHA-256 of the tensors of an extractor that brings its own weights."""
    import hashlib

    digest = hashlib.sha256()
    for key, value in sorted(extractor.state_dict().items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


FEATURES, LOGITS, SPATIAL = 2048, 1008, SPATIAL_CHANNELS * 17 * 17
"""Numbers that Inception gives of an image."""


def _cost(spec: JudgeSpec) -> JudgeCost | None:
    """Return the cost of Inception: 5.7e9 multiply-adds of an image of 299 x 299 pixels (arXiv 1512.00567)."""
    if _extractor_name(spec) != INCEPTION:
        return None
    return JudgeCost(11.4e9, FEATURES + LOGITS + SPATIAL * bool(spec.options.get("spatial")))


KIND = JudgeKind(FidelityJudge, required_files, build, _cost)
