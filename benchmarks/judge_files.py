"""Judges with random weights, written as files that every evaluation under test loads: ours and the others'."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

TOKENIZER = Path(__file__).parent.parent / "protocols" / "digits" / "preference"
PROJECTION = 128


class Tower(NamedTuple):
    """Width, depth, heads and patch of an image tower, and width, depth and heads of its text tower."""

    width: int
    depth: int
    heads: int
    patch: int
    text_width: int
    text_depth: int
    text_heads: int


class JudgeSet(NamedTuple):
    """One classifier and two CLIP-like models (alignment and preference)."""

    classifier: str
    alignment: Tower
    preference: Tower
    facts: str


VIT_S_32 = Tower(384, 6, 6, 32, 256, 4, 4)
VIT_B_16 = Tower(768, 12, 12, 16, 512, 12, 8)
VIT_H_14 = Tower(1280, 32, 16, 14, 1024, 24, 16)
SETS = {
    "small": JudgeSet("small", VIT_S_32, VIT_S_32, "a convolutional classifier (256 features), two 6-layer ViTs /32"),
    "full": JudgeSet("inception-v3-compat", VIT_B_16, VIT_B_16, "Inception v3 (2048 features), two ViT-B/16"),
    "published": JudgeSet("inception-v3-compat", VIT_B_16, VIT_H_14, "Inception v3, ViT-B/16 and ViT-H/14"),
}


class SmallClassifier(FeatureExtractorBase):
    """A convolutional classifier in the shape of torch-fidelity's Inception: 256 features, 100 unbiased logits."""

    def __init__(self, name: str, features_list: list[str], **options: Any) -> None:
        super().__init__(name, features_list)
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 128, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(128, 128, 3, 2, 1), nn.ReLU(), nn.Conv2d(128, 256, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(256, 100, bias=False)
        path = options.get("feature_extractor_weights_path")
        if path is not None:
            self.load_state_dict(torch.load(path, weights_only=True))
        self.requires_grad_(False)
        self.eval()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the layers on offer."""
        return ("pool", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the layer that torch-fidelity reads for `metric`."""
        return "logits" if metric == "isc" else "pool"

    @staticmethod
    def can_be_compiled() -> bool:
        """Compilation is not tried here."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """Return an input of the right kind."""
        return torch.zeros(4, 3, 64, 64, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the asked-for features of uint8 images [B, 3, H, W]."""
        pool = self.trunk((images.float() - 128) / 128)
        return tuple({"pool": pool, "logits": self.head(pool)}[layer] for layer in self.features_list)


class Layer(nn.Module):
    """One layer of a torch-fidelity extractor as a module, which is how torchmetrics takes a network of one's own."""

    def __init__(self, extractor: FeatureExtractorBase, num_features: int) -> None:
        super().__init__()
        self.extractor = extractor
        self.num_features = num_features

    def forward(self, images: Tensor) -> Tensor:
        """Return the features [B, num_features] of uint8 images."""
        return self.extractor(images)[0]


def write_classifier(name: str, path: Path) -> None:
    """Write random weights of the extractor called `name`, scaled so that activations neither vanish nor explode."""
    if name == "small":
        network: nn.Module = SmallClassifier(name, ["pool", "logits"])
    else:
        network = _empty_inception()
    generator = torch.Generator().manual_seed(1)
    state = {}
    for key, value in network.state_dict().items():
        if key.endswith(("running_var", "bn.weight")):
            state[key] = torch.ones_like(value)
        elif value.ndim >= 2:
            scale = (2.0 / value[0].numel()) ** 0.5
            state[key] = torch.randn(value.shape, generator=generator) * scale
        else:
            state[key] = torch.zeros_like(value)
    torch.save(state, path)


def _empty_inception() -> nn.Module:
    """Return torch-fidelity's Inception without weights: its constructor insists on a file, so it is given its own."""
    from unittest import mock

    from torch_fidelity import feature_extractor_inceptionv3 as module

    with (
        mock.patch.object(module, "load_state_dict_from_url", return_value={}),
        mock.patch.object(nn.Module, "load_state_dict"),
    ):
        return module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])


def write_clip(tower: Tower, directory: Path) -> None:
    """Write a random CLIPModel with the embedded default's tokenizer and the processor of CLIP."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(2)
    text = {
        "vocab_size": 581, "bos_token_id": 579, "eos_token_id": 580, "pad_token_id": 580,
        "max_position_embeddings": 77, "hidden_size": tower.text_width, "intermediate_size": 4 * tower.text_width,
        "num_hidden_layers": tower.text_depth, "num_attention_heads": tower.text_heads,
    }  # fmt: skip
    vision = {
        "image_size": 224, "patch_size": tower.patch, "hidden_size": tower.width,
        "intermediate_size": 4 * tower.width, "num_hidden_layers": tower.depth, "num_attention_heads": tower.heads,
    }  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION)
    CLIPModel(config).save_pretrained(directory)
    CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=224).save_pretrained(directory)
    for part in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / part, directory / part)


class Images(NamedTuple):
    """uint8 images [n, 3, H, W] and int64 labels [n]."""

    images: Tensor
    labels: Tensor


def stored_images(path: str) -> Images:
    """Return the images of an `.npz`, in the form in which a protocol's reference takes them."""
    with np.load(path, allow_pickle=False) as archive:
        return Images(
            torch.from_numpy(archive["arr_0"]).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(archive["arr_1"])
        )


def write_images(path: Path, count: int, resolution: int, classes: int, seed: int) -> None:
    """Write `count` smooth coloured patterns, no two alike, as an ADM-style `.npz` (uncompressed)."""
    generator = torch.Generator().manual_seed(seed)
    images = np.empty((count, resolution, resolution, 3), np.uint8)
    for start in range(0, count, 256):
        size = min(256, count - start)
        pixels = torch.zeros(size, 3, resolution, resolution)
        for side in (2, 5, 11, 23):
            coarse = torch.randn(size, 3, side, side, generator=generator)
            pixels += nn.functional.interpolate(coarse, (resolution, resolution), mode="bicubic")
        images[start : start + size] = (pixels * 40 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    np.savez(path, arr_0=images, arr_1=np.arange(count) % classes)
