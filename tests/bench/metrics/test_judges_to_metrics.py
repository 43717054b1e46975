"""From images through a judge to the value: what every metric that reads features gives for two sets of pictures.

Networks are small and random; the values are computed here anew, by the textbook, from features that transformers and
torch-fidelity's own extractor give of the same images.
"""

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.transforms.v2 import functional

from bench.judges.base import load_judge
from bench.judges.judge import JudgeSpec
from bench.metrics.measure import ReferenceFeatures, measure
from results.catalog import VALIDATION_DISTANCES
from results.errors import BenchError

N, M = 60, 50


@pytest.fixture(scope="module")
def pictures():
    """uint8 [110, 3, 28, 28]: smooth noise, the first 60 darker than the rest."""
    random = np.random.RandomState(0)
    small = torch.from_numpy(random.randint(0, 256, (N + M, 3, 7, 7)).astype(np.uint8))
    images = functional.resize(small, [28, 28], interpolation=functional.InterpolationMode.BICUBIC)
    images[:N] = (images[:N] * 0.8).to(torch.uint8)
    return images


def judged(images, name, kind, root, **options):
    judge = load_judge(JudgeSpec(name, kind, options), device="cpu", root=root)
    return {f"{name}.{key}": value.numpy() for key, value in judge(images, torch.zeros(len(images), dtype=int)).items()}


def value_of(metric, arrays, **options):
    generated = {name: array[:N] for name, array in arrays.items()}
    real = {name: ReferenceFeatures.of(array[N:]) for name, array in arrays.items()}
    result = measure(generated, real, [metric], options=options)
    assert not result.skipped
    return result.values[0].value


def frechet(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(sqrtm(s @ t)).real


def test_fd_dinov2_is_the_frechet_distance_of_class_tokens(pictures, tmp_path):
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dino")
    arrays = judged(pictures, "dinov2", "dinov2", tmp_path, path="dino", size=28)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        tokens = model((pictures / 255 - mean[:, None, None]) / std[:, None, None]).last_hidden_state[:, 0].numpy()
    assert value_of("fd_dinov2", arrays) == pytest.approx(frechet(tokens[:N], tokens[N:]), rel=1e-3)


def timm_weights(name, root):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000).eval()
    save_file(model.state_dict(), root / f"{name}.safetensors")
    return model


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("test_vit.r160_in1k", lambda model, found: found[:, 0]),
     ("test_vit3.r160_in1k", lambda model, found: model.pool(found)),
     ("test_convnext.r160_in1k", lambda model, found: found.mean(dim=(2, 3)))],
)  # fmt: skip
def test_fd_in_a_space_of_timms_is_the_frechet_distance_of_what_its_network_gives(pictures, tmp_path, name, tokens):
    model = timm_weights(name, tmp_path)
    arrays = judged(pictures, "mae", "timm", tmp_path, model=name, weights=f"{name}.safetensors", size=40)
    known = timm.get_pretrained_cfg(name)
    resized = torch.nn.functional.interpolate(
        pictures.float() / 255, size=40, mode="bicubic", align_corners=False, antialias=True
    )
    pixels = (resized - torch.tensor(known.mean)[:, None, None]) / torch.tensor(known.std)[:, None, None]
    kinds = {} if "convnext" in name else {"dynamic_img_size": True, "dynamic_img_pad": True}
    same = timm.create_model(name, num_classes=0, **kinds).eval()
    same.load_state_dict({key: value for key, value in model.state_dict().items() if key in same.state_dict()})
    with torch.no_grad():
        features = tokens(same, same.forward_features(pixels)).numpy()
    assert arrays["mae.features"] == pytest.approx(features, abs=1e-4)
    assert value_of("fd_mae", arrays) == pytest.approx(frechet(features[:N], features[N:]), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"model": "vit_larg_patch16_224.mae"}, "unknown timm model"),
     ({}, "set 'model'"),
     ({"model": "test_vit.r160_in1k", "weights": "w.bin"}, "not a .safetensors file"),
     ({"model": "test_vit.r160_in1k", "weights": "test_convnext.r160_in1k.safetensors"}, "does not fit")],
)  # fmt: skip
def test_a_judge_of_timms_refuses_in_one_line(tmp_path, options, reason):
    timm_weights("test_convnext.r160_in1k", tmp_path)
    with pytest.raises(BenchError, match=reason) as caught:
        load_judge(JudgeSpec("mae", "timm", options), device="cpu", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_fdr6_is_the_mean_of_six_distances_as_multiples_of_the_validation_images():
    random = np.random.default_rng(0)
    arrays = {f"{judge}.features": random.normal(size=(N + M, 4)) for judge in VALIDATION_DISTANCES}
    expected = np.mean([
        frechet(arrays[f"{judge}.features"][:N], arrays[f"{judge}.features"][N:]) / distance
        for judge, distance in VALIDATION_DISTANCES.items()
    ])  # fmt: skip
    assert value_of("fdr6", arrays) == pytest.approx(expected, rel=1e-6)
    halved = value_of("fdr6", arrays, **{f"fdr6_{judge}": 2 * value for judge, value in VALIDATION_DISTANCES.items()})
    assert halved == pytest.approx(expected / 2, rel=1e-6)


def test_fdr6_has_a_paired_jackknife_and_names_the_judge_that_is_missing():
    random = np.random.default_rng(0)
    generated = {f"{judge}.features": random.normal(size=(200, 3)) for judge in VALIDATION_DISTANCES}
    real = {name: ReferenceFeatures.of(random.normal(size=(300, 3))) for name in generated}
    (value,) = measure(generated, real, ["fdr6"], blocks=10).values
    assert len(value.jackknife) == 10 and value.low < value.value < value.high and value.corrected < value.value
    del generated["mae.features"]
    (skipped,) = measure(generated, real, ["fdr6"], blocks=10).skipped
    assert skipped.reason == "no judge produced 'mae.features'; add its judge to the protocol"


def test_cmmd_is_the_discrepancy_of_embeddings_of_unit_length(pictures, tmp_path):
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        projection_dim=12, text_config=tower, vision_config={**tower, "image_size": 28, "patch_size": 14}
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "clip")
    arrays = judged(pictures, "clip_l14_336", "clip-features", tmp_path, path="clip")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    with torch.no_grad():
        pooled = model.vision_model((pictures / 255 - mean[:, None, None]) / std[:, None, None]).pooler_output
        e = torch.nn.functional.normalize(model.visual_projection(pooled).double(), dim=1).numpy()
    k = np.exp(-cdist(e, e, "sqeuclidean") / 200)
    expected = 1000 * (k[:N, :N].mean() + k[N:, N:].mean() - 2 * k[:N, N:].mean())
    assert value_of("cmmd", arrays) == pytest.approx(expected, rel=1e-3)


@pytest.fixture(scope="module")
def inception(pictures, tmp_path_factory):
    """What the judge gives, and the pool and seven channels of the 17x17 map of torch-fidelity's extractor."""
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), path)
    maps = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: maps.append(output[:, :7]))
    few = torch.cat([pictures[:12], pictures[-12:]])
    arrays = judged(few, "inception", "torch-fidelity", path.parent, weights=str(path), spatial=True)
    with torch.no_grad():
        (pool,) = network(few)
    return arrays, pool.double().numpy(), torch.cat(maps).double().flatten(1).numpy()


def small_value(metric, arrays, **options):
    generated = {name: array[:12] for name, array in arrays.items()}
    real = {name: ReferenceFeatures.of(array[12:]) for name, array in arrays.items()}
    return measure(generated, real, [metric], options=options).values[0].value


def nuclear(x, y):
    """The Frechet distance of few samples in many dimensions: the nuclear norm of the centred products."""
    a, b = x - x.mean(0), y - y.mean(0)
    scale = np.sqrt((len(x) - 1) * (len(y) - 1))
    traces = (a**2).sum() / (len(x) - 1) + (b**2).sum() / (len(y) - 1)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + traces - 2 * np.linalg.norm(a @ b.T, "nuc") / scale


def test_fid_and_sfid_are_frechet_distances_of_the_pool_and_of_seven_channels_of_the_map(inception):
    arrays, pool, spatial = inception
    assert small_value("fid", arrays) == pytest.approx(nuclear(pool[:12], pool[12:]), rel=1e-3)
    assert small_value("sfid", arrays) == pytest.approx(nuclear(spatial[:12], spatial[12:]), rel=1e-3)


def test_kid_is_the_unbiased_cubic_discrepancy_of_the_pool(inception):
    arrays, pool, _ = inception
    k = (pool @ pool.T / pool.shape[1] + 1) ** 3
    x, y = k[:12, :12], k[12:, 12:]
    expected = sum((own.sum() - np.trace(own)) / (12 * 11) for own in (x, y)) - 2 * k[:12, 12:].mean()
    assert small_value("kid", arrays) == pytest.approx(expected, rel=2e-3, abs=1e-9)


def test_precision_and_recall_are_shares_inside_balls_of_the_pool(inception):
    arrays, pool, _ = inception
    fake, real = pool[:12], pool[12:]
    cross = cdist(fake, real)
    radius = {side: np.sort(cdist(x, x), axis=1)[:, 3] for side, x in (("fake", fake), ("real", real))}
    assert small_value("precision", arrays) == pytest.approx((cross <= radius["real"]).any(1).mean())
    assert small_value("recall", arrays) == pytest.approx((cross <= radius["fake"][:, None]).any(0).mean())
