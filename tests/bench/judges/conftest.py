"""Images, labels and small random judges, written as the files that published ones come in."""

import gzip
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from safetensors.torch import save_file

IMAGE_SIZE = 16
OPEN_CLIP_CONFIG = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": 4, "layers": 2, "width": 24, "head_width": 12},
    "text_cfg": {"context_length": 12, "vocab_size": 516, "width": 16, "heads": 2, "layers": 2},
}
MERGES = "#version: 0.2\nt h\nth e</w>"


@pytest.fixture
def images() -> torch.Tensor:
    """uint8 [6, 3, 21, 30], noise."""
    return torch.from_numpy(np.random.RandomState(3).randint(0, 256, (6, 3, 21, 30)).astype(np.uint8))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 2, 1, 0, 2, 1])


@pytest.fixture(scope="session")
def judge_files(tmp_path_factory) -> Path:
    """A protocol directory with `clip/` (open_clip), `preference/` (transformers), `dino/` and `classifier/`."""
    root = tmp_path_factory.mktemp("protocol")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        write_open_clip(root / "clip")
        write_preference(root / "preference")
        config = transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14
        )
        transformers.Dinov2Model(config).save_pretrained(root / "dino")
        write_classifier(root / "classifier")
    return root


def write_classifier(directory: Path) -> None:
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**tower, image_size=IMAGE_SIZE, patch_size=4, num_labels=3)
    model = transformers.ViTForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=3.0)
    model.save_pretrained(directory)
    transformers.ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(directory)


def write_open_clip(directory: Path) -> None:
    directory.mkdir()
    model = open_clip.CLIP(**OPEN_CLIP_CONFIG)
    save_file(model.state_dict(), directory / "model.safetensors")
    (directory / "model.json").write_text(json.dumps(OPEN_CLIP_CONFIG))
    (directory / "merges.txt.gz").write_bytes(gzip.compress(MERGES.encode()))


def write_preference(directory: Path) -> None:
    directory.mkdir()
    (directory / "merges.txt").write_text(MERGES)
    alphabet = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = transformers.CLIPConfig(
        projection_dim=12,
        text_config={**tower, **ends, "vocab_size": len(words), "max_position_embeddings": 20},
        vision_config={**tower, "image_size": IMAGE_SIZE, "patch_size": 4},
    )
    transformers.CLIPModel(config).save_pretrained(directory)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    processor.save_pretrained(directory)
