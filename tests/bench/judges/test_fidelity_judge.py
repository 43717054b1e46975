import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import register_feature_extractor

from bench.judges.base import load_judge
from bench.judges.judge import JudgeSpec
from results.errors import BenchError

EXTRACTOR = "small-extractor"


class SmallExtractor(FeatureExtractorBase):
    """Two layers behind torch-fidelity's interface, with weights of its own or from a file."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__(name, features_list)
        self.pool = torch.nn.Linear(3, 4)
        self.head = torch.nn.Linear(4, 2)
        torch.nn.init.ones_(self.pool.weight)
        if feature_extractor_weights_path is not None:
            from safetensors.torch import load_file

            self.load_state_dict(load_file(feature_extractor_weights_path))

    def forward(self, images):
        pool = self.pool(images.float().mean(dim=(2, 3)))
        outputs = {"pool": pool, "logits": self.head(pool)}
        return tuple(outputs[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "pool", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "pool"


register_feature_extractor(EXTRACTOR, SmallExtractor)


def spec(**options):
    return JudgeSpec("classifier", "torch-fidelity", options)


def test_any_extractor_class_can_judge(images, labels, tmp_path):
    save_file(SmallExtractor("a", ["pool"]).state_dict(), tmp_path / "weights.safetensors")
    judge = load_judge(spec(extractor=EXTRACTOR, weights="weights.safetensors"), device="cpu", root=tmp_path)
    judged = judge(images, labels)
    assert {key: value.shape for key, value in judged.items()} == {"features": (6, 4), "logits": (6, 2)}
    assert torch.equal(judge.extractor.head(judged["features"]), judged["logits"])


def test_digest_of_built_in_weights_follows_their_values(tmp_path):
    def digest(seed):
        torch.manual_seed(seed)
        return load_judge(spec(extractor=EXTRACTOR), device="cpu", root=tmp_path).digest

    assert digest(0) == digest(0) != digest(1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"extractor": "inception-v3"}, "did you mean inception-v3-compat"),
        ({"extractor": "bench.nowhere:Extractor"}, "unknown extractor of judge 'classifier' 'bench.nowhere:Extractor'"),
        (
            {"extractor": "results.errors:BenchError"},
            "unknown extractor of judge 'classifier' 'results.errors:BenchError'",
        ),
        ({"extractor": EXTRACTOR, "features_layer": "2048"}, "unknown layer of judge 'classifier' '2048'"),
        ({"extractor": EXTRACTOR, "spatial": True}, "exist for inception-v3-compat only"),
    ],
)
def test_wrong_extractor_is_one_clear_line(tmp_path, options, reason):
    with pytest.raises(BenchError, match=reason):
        load_judge(spec(**options), device="cpu", root=tmp_path)


def test_pickled_code_in_weights_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("executed",))

    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(BenchError, match="is not a plain file of tensors"):
        load_judge(spec(weights="weights.pth"), device="cpu", root=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_altered_published_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE_DIR", str(tmp_path))
    downloads = tmp_path / "judges" / "downloads"
    downloads.mkdir(parents=True)
    torch.save({}, downloads / "weights-inception-2015-12-05-6726825d.pth")
    with pytest.raises(BenchError, match="is not the file that was published"):
        load_judge(spec(), device="cpu", root=tmp_path)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """The published architecture with random weights, as the `.pth` that torch-fidelity reads."""
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), path)
    return path


def test_inception_is_torch_fidelitys_in_one_pass(images, labels, inception_weights):
    judge = load_judge(spec(weights=str(inception_weights), spatial=True), device="cpu", root=inception_weights.parent)
    passes, maps = [], []
    judge.extractor.Conv2d_1a_3x3.register_forward_hook(lambda *_: passes.append(1))
    judge.extractor.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: maps.append(output))
    judged = judge(images[:2], labels[:2])
    assert len(passes) == 1
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    )
    pool, logits = network(images[:2])
    assert torch.equal(judged["features"], pool)
    assert torch.equal(judged["logits"], logits)
    assert judged["spatial"].shape == (2, 7 * 17 * 17)
    assert torch.equal(judged["spatial"][1, 7 * 18 + 2], maps[0][1, 2, 1, 1])
