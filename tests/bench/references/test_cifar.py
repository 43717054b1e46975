"""CIFAR-10 as it is downloaded: every layout is the same images, and a run is measured against them."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

from bench.cli import main
from bench.references.datasets import open_image_set
from bench.references.source import FileSource
from protocols import find_protocol
from results.errors import DatasetError

NAMES = find_protocol("cifar10").class_names
TRAIN = [f"data_batch_{number}" for number in range(1, 6)]


class Means(FeatureExtractorBase):
    """Means of the channels in the four quarters of an image: 12 features."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        self.scale = torch.nn.Parameter(torch.tensor(1 / 255))

    def forward(self, images):
        pool = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1) * self.scale
        return tuple({"pool": pool, "logits": pool[:, :10]}[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "pool", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "pool"


register_feature_extractor("Means32", Means)


def bench(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0


def images_of(batch, count):
    generator = np.random.default_rng(batch)
    pixels = generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return pixels, [(batch + index) % 10 for index in range(count)]


def write(root, layout, count=20):
    """Write `count` images a batch, in one of the layouts, and return the folder."""
    for number, name in enumerate([*TRAIN, "test_batch"]):
        pixels, labels = images_of(number, count)
        flat = pixels.reshape(count, -1)
        if layout == "images":
            part = "test" if name == "test_batch" else "train"
            for index, label in enumerate(labels):
                path = root / part / NAMES[label] / f"{name}-{index:05}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[index].transpose(1, 2, 0)).save(path)
            continue
        folder = root / ("cifar-10-batches-bin" if layout == "binary" else "cifar-10-batches-py")
        folder.mkdir(parents=True, exist_ok=True)
        if layout == "binary":
            records = np.concatenate([np.array(labels, np.uint8)[:, None], flat], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            keys = ("data", "labels") if layout == "text keys" else (b"data", b"labels")
            content = {b"batch_label": b"training batch", keys[0]: flat, keys[1]: labels}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2 if layout == "text keys" else 4))
    return root


def pixels_by_label(root, variant=None):
    found = open_image_set("cifar10", root, variant=variant, class_names=NAMES)
    (batch,) = FileSource(found, 32, "none", 2).batches(0, 1000)
    return sorted(
        (int(label), image.numpy().tobytes()) for label, image in zip(found.labels, batch.images, strict=True)
    )


@pytest.mark.parametrize("layout", ["text keys", "byte keys", "binary", "images"])
def test_every_layout_holds_the_same_images_under_the_same_labels(tmp_path, layout):
    expected = [
        sorted((label, image.tobytes()) for n in batches for image, label in zip(*images_of(n, 20), strict=True))
        for batches in (range(5), [5])
    ]
    root = write(tmp_path, layout)
    assert pixels_by_label(root) == pixels_by_label(root, "train") == expected[0]
    assert pixels_by_label(root, "test") == expected[1]
    if layout != "images":  # the folder of the batches itself may be given
        assert pixels_by_label(next(root.iterdir())) == expected[0]


def test_a_missing_batch_another_variant_and_packed_archives_are_told(tmp_path):
    root = write(tmp_path / "data", "binary")
    with pytest.raises(DatasetError, match="unknown variant of cifar10 'val'"):
        open_image_set("cifar10", root, variant="val")
    (root / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(DatasetError, match=r"lacks data_batch_3\.bin of CIFAR-10's train part"):
        open_image_set("cifar10", root)
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(DatasetError, match="unpack it and name the folder"):
        open_image_set("cifar10", packed)


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({"data": Hostile()}), "names builtins.exec"),
        (b"\x80\x02}q", "is not a batch of CIFAR-10|cannot be read"),
        (pickle.dumps([1, 2]), "contains no dictionary"),
        (pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}), r"contains no 'data'"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}), "contains no 'labels' for its 2 images"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 77]}), "its labels are not 0 .. 9"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": ["a", "b"]}), "its labels are not 0 .. 9"),
    ],
)
def test_a_batch_that_is_none_is_refused_in_one_line_and_runs_nothing(tmp_path, content, reason):
    folder = write(tmp_path, "text keys") / "cifar-10-batches-py"
    (folder / "data_batch_2").write_bytes(content)
    with pytest.raises(DatasetError, match=reason) as refused:
        open_image_set("cifar10", tmp_path)
    assert "data_batch_2" in str(refused.value) and "\n" not in str(refused.value)


def test_a_damaged_binary_batch_is_refused(tmp_path):
    folder = write(tmp_path, "binary") / "cifar-10-batches-bin"
    (folder / "data_batch_1.bin").write_bytes(b"12345")
    with pytest.raises(DatasetError, match="not a whole number of records of 3073"):
        open_image_set("cifar10", tmp_path)


CARD = """
name = "small-{classes}"
family = "consistency"
title = "Small"
resolution = 32
num_classes = {classes}
latent_shape = [3, 32, 32]
natural_steps = 1
[architecture]
image_size = 32
model_channels = 32
channel_mult = [1]
num_res_blocks = 1
attention_downsample_factors = []
num_head_channels = 16
num_classes = {classes}
[guidance]
kind = "none"
"""


@pytest.mark.parametrize("name", ["cifar10-smoke", "cifar10-uncond-smoke"])
def test_a_run_is_measured_against_the_batches_with_classes_and_without(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("BENCH_CACHE_DIR", str(tmp_path / "cache"))
    write(tmp_path / "data", "binary")
    file, classes = tmp_path / "mine.toml", 0 if "uncond" in name else 10
    file.write_text(
        f'extends = "{name}"\nname = "mine"\ntitle = "Mine"\n[judges.inception]\nextractor = "Means32"\n'
        'spatial = false\n[metrics]\nnames = ["fid", "kid", "precision"]\n[sampling]\nnum_samples = 50\n'
    )
    (tmp_path / "card.toml").write_text(CARD.format(classes=classes))
    # Built once, with its classes, for both protocols.
    build = ["reference", "build", "cifar10-train-smoke", "--data", str(tmp_path / "data"), "--device", "cpu"]
    other = tmp_path / "labelled.toml"
    other.write_text(file.read_text().replace("-uncond", ""))
    bench(*build, "--protocol", str(other))
    runs = ("--runs-dir", str(tmp_path / "runs"))
    bench("run", "--model", str(tmp_path / "card.toml"), "--steps", "1,2", "--random-weights", "--device", "cpu",
          "--workers", "1", "--protocol", str(file), *runs)  # fmt: skip
    capsys.readouterr()
    bench("export", "metrics", "--format", "json", "--output", "-", *runs)
    found = {(row["cell_id"], row["metric"]): row["value"] for row in json.loads(capsys.readouterr().out)}
    values = [value for (_, metric), value in found.items() if metric == "fid"]
    assert len(values) == 2 and all(value > 0 for value in values)
