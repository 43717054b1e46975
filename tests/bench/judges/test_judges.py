import json
import shutil
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file

from bench.judges.base import judge_files as judge_files_of
from bench.judges.base import load_judge
from bench.judges.dinov2 import set_positions
from bench.judges.judge import JudgeSpec
from bench.metrics.measure import ReferenceFeatures, measure
from bench.weights.cache import FileCache, cache_directory
from bench.weights.file import fetch_files
from results.catalog import CATALOG
from results.errors import BenchError

IMAGE_SIZE = 16
PROMPTS = ["a photo of the cat", "a photo of the dog", "an it's the_bird, 2"]
CLIP = JudgeSpec(
    "clip",
    "open-clip",
    {"config": "clip/model.json", "weights": "clip/model.safetensors", "merges": "clip/merges.txt.gz"},
)
PICK = JudgeSpec("pick", "transformers-clip", {"path": "preference"})
CMMD = JudgeSpec("cmmd", "clip-features", dict(CLIP.options))
DINO = JudgeSpec("dinov2", "dinov2", {"path": "dino", "size": 56})
CLASSIFIER = JudgeSpec("classifier", "classifier", {"path": "classifier"})
ALL = [CLIP, PICK, CMMD, DINO, CLASSIFIER]


def loaded(spec, root, prompts=PROMPTS):
    judge = load_judge(spec, device="cpu", root=root)
    judge.prepare(prompts)
    return judge


def with_options(spec, **options):
    return replace(spec, options={**spec.options, **options})


def open_clip_model(directory):
    model = open_clip.CLIP(**json.loads((directory / "model.json").read_text())).eval()
    model.load_state_dict(load_file(directory / "model.safetensors"))
    return model


def pictures(images):
    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().numpy()]


@torch.inference_mode()
def test_clip_score_is_open_clips_own(judge_files, images, labels):
    model = open_clip_model(judge_files / "clip")
    tokenizer = open_clip.SimpleTokenizer(str(judge_files / "clip" / "merges.txt.gz"), context_length=12)
    transform = image_transform_v2(PreprocessCfg(size=IMAGE_SIZE), is_train=False)
    pixels = torch.stack([transform(picture) for picture in pictures(images)])
    image_features = model.encode_image(pixels, normalize=True)
    text_features = model.encode_text(tokenizer(PROMPTS), normalize=True)
    expected = 100 * (image_features @ text_features.T)[torch.arange(6), labels]
    score = loaded(CLIP, judge_files)(images, labels)["score"]
    assert score.dtype == torch.float32
    assert (score - expected).abs().max() < 1e-4


@torch.inference_mode()
def test_pick_score_is_transformers_own(judge_files, images, labels):
    directory = judge_files / "preference"
    model = transformers.CLIPModel.from_pretrained(directory).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(directory)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(directory)
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    pixels = processor(images=pictures(images), return_tensors="pt")["pixel_values"]
    expected = model(**tokens, pixel_values=pixels).logits_per_image[torch.arange(6), labels]
    assert (loaded(PICK, judge_files)(images, labels)["score"] - expected).abs().max() < 1e-4


@torch.inference_mode()
def test_cmmd_features_are_of_the_centre_square(judge_files, images, labels):
    transform = image_transform_v2(PreprocessCfg(size=IMAGE_SIZE, resize_mode="squash"), is_train=False)
    squares = [picture.crop((4, 0, 25, 21)) for picture in pictures(images)]
    model = open_clip_model(judge_files / "clip")
    expected = model.encode_image(torch.stack([transform(square) for square in squares]))
    features = loaded(CMMD, judge_files)(images, labels)["features"]
    assert features.shape == (6, 12)
    assert (features - expected).abs().max() < 1e-5


@torch.inference_mode()
def test_aesthetic_score_is_the_head_on_unit_features(judge_files, images, labels, tmp_path):
    head = torch.nn.Module()  # as published: dropout between the layers, whose indices it takes
    head.layers = torch.nn.Sequential(torch.nn.Linear(12, 5), torch.nn.Dropout(0.2), torch.nn.Linear(5, 1))
    torch.save(head.state_dict(), tmp_path / "head.pth")
    spec = replace(
        CLIP, name="aesthetic", kind="aesthetic", options={**CLIP.options, "head": str(tmp_path / "head.pth")}
    )
    features = open_clip_model(judge_files / "clip").encode_image(
        loaded(CLIP, judge_files).preprocess(images), normalize=True
    )
    expected = head.layers[2](head.layers[0](features))[:, 0]
    judge = loaded(spec, judge_files)
    assert judge.reads_native and not judge.needs_labels
    assert (judge(images, labels)["score"] - expected).abs().max() < 1e-5
    whole = {"layers.0.weight": torch.zeros(1, 12), "layers.0.bias": torch.zeros(1)}
    for wrong in (
        {"layers.0.weight": torch.zeros(2, 12), "layers.0.bias": torch.zeros(2)},
        {"other": torch.zeros(1)},
        whole | {"layers.0.bias": torch.zeros(2)},
        whole | {"layers.0.weight": torch.zeros(12)},
        whole | {"layers.first.weight": torch.zeros(1)},
        {"layers.0.weight": whole["layers.0.weight"], "layers.0.gain": torch.zeros(1)},
    ):
        torch.save(wrong, tmp_path / "head.pth")
        with pytest.raises(BenchError, match="no aesthetic head"):
            loaded(spec, judge_files)
    torch.save(whole | {"layers.0.weight": torch.zeros(1, 7)}, tmp_path / "head.pth")
    with pytest.raises(BenchError, match="reads 7 features, its CLIP has 12"):
        loaded(spec, judge_files)


def test_clip_features_of_a_transformers_directory(judge_files, images, labels):
    spec = JudgeSpec("cmmd", "clip-features", {"path": "preference", "geometry": "shortest-edge"})
    judge, pick = loaded(spec, judge_files), loaded(PICK, judge_files)
    expected = pick.towers.image_features(pick.preprocess(images))
    assert (judge(images, labels)["features"] - expected).abs().max() < 1e-5


def test_cmmd_of_a_judges_features_is_the_discrepancy_of_unit_vectors(judge_files, images):
    judge = loaded(CMMD, judge_files)
    generator = torch.Generator().manual_seed(5)
    sets = [images, torch.randint(0, 256, (8, *images.shape[1:]), dtype=torch.uint8, generator=generator)]
    real, fake = (judge(pixels, torch.zeros(len(pixels), dtype=torch.int64))["features"].numpy() for pixels in sets)
    assert not np.allclose(np.linalg.norm(fake, axis=1), 1)  # the judge leaves the length to the metric
    array = CATALOG["cmmd"].array
    result = measure({array: fake}, {array: ReferenceFeatures.of(real)}, ["cmmd"])

    def mean_kernel(x, y):
        x, y = (np.stack([row / np.sqrt((row**2).sum()) for row in rows.astype(np.float64)]) for rows in (x, y))
        return np.mean([[np.exp(-((a - b) ** 2).sum() / (2 * 10.0**2)) for b in y] for a in x])

    expected = 1000 * (mean_kernel(real, real) + mean_kernel(fake, fake) - 2 * mean_kernel(real, fake))
    assert result.values[0].value == pytest.approx(expected, rel=1e-6)


@torch.inference_mode()
def test_classifier_logits_are_transformers_own(judge_files, images, labels):
    squares = images[:, :, :, :21].contiguous()
    directory = judge_files / "classifier"
    model = transformers.ViTForImageClassification.from_pretrained(directory).eval()
    processor = transformers.ViTImageProcessorPil.from_pretrained(directory)
    expected = model(processor(images=pictures(squares), return_tensors="pt")["pixel_values"]).logits
    judge = loaded(CLASSIFIER, judge_files)
    assert (judge(squares, labels)["logits"] - expected).abs().max() < 1e-5
    assert judge.needs_labels  # says nothing of a reference
    with pytest.raises(BenchError, match="distinguishes 3 classes, the protocol has 2; choose a classifier"):
        judge.prepare(PROMPTS[:2])


def test_dinov2_features_use_the_published_position_grid(judge_files, images, labels):
    judge = loaded(DINO, judge_files)
    assert judge(images, labels)["features"].shape == (6, 16)
    model = transformers.Dinov2Model.from_pretrained(judge_files / "dino")
    table = model.embeddings.position_embeddings.detach().clone()
    set_positions(model, 5)
    assert torch.equal(model.embeddings.position_embeddings, table)
    # The published code samples the table at (i + 1/2) 5 / (4 + 0.1) - 1/2.
    ramp = torch.arange(5.0).repeat(5).view(1, 25, 1).expand(-1, -1, 16)
    model.embeddings.position_embeddings.data[:, 1:] = ramp
    set_positions(model, 4)
    point = 1.5 * 5 / 4.1 - 0.5
    expected = sum(tap * cubic_weight(abs(point - tap)) for tap in range(4))
    assert model.embeddings.position_embeddings[0, 1:, 0].view(4, 4)[1, 1] == pytest.approx(expected, abs=1e-5)


def cubic_weight(x: float, a: float = -0.75) -> float:
    return ((a + 2) * x - (a + 3)) * x * x + 1 if x <= 1 else ((x - 5) * x + 8) * x * a - 4 * a


def test_weights_that_lack_a_tensor_are_refused(judge_files, tmp_path):
    shutil.copytree(judge_files / "preference", tmp_path / "preference")
    state = load_file(tmp_path / "preference" / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "preference" / "model.safetensors", {"format": "pt"})
    with pytest.raises(BenchError, match=r"is missing 1 of the model's weights, the first visual_projection\.weight"):
        loaded(PICK, tmp_path)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_judging_leaves_the_callers_world_alone(judge_files, images, labels, spec):
    torch.set_float32_matmul_precision("high")
    try:
        torch.manual_seed(5)
        state = torch.random.get_rng_state()
        settings = precision_settings()
        judge = loaded(spec, judge_files)
        judged = judge(images, labels)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert precision_settings() == settings
        assert torch.is_grad_enabled()
        assert not any(value.requires_grad for value in judged.values())
    finally:
        torch.set_float32_matmul_precision("highest")


def precision_settings():
    backends = torch.backends
    groups = [
        getattr(group, name, None)
        for group in (backends.cuda, backends.cudnn, backends.mkldnn)
        for name in ("matmul", "conv", "rnn")
    ]
    fine = [getattr(group, "fp32_precision", None) for group in groups]
    return [*fine, torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32]


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_low_precision_callers_get_the_same_values(judge_files, images, labels, spec):
    judge = loaded(spec, judge_files)
    expected = judge(images, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        judged = judge(images, labels)
    assert all(torch.equal(judged[key], expected[key]) for key in expected)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_batch_size_option_changes_nothing_but_rounding(judge_files, images, labels, spec):
    whole = loaded(spec, judge_files)
    halves = loaded(with_options(spec, batch_size=4), judge_files)
    assert whole.digest == halves.digest
    for key, value in whole(images, labels).items():
        torch.testing.assert_close(halves(images, labels)[key], value, rtol=1e-5, atol=1e-4)


def test_each_prompt_is_encoded_once(judge_files, images, labels, monkeypatch):
    judge = load_judge(CLIP, device="cpu", root=judge_files)
    encoded = []
    tokenize = judge.towers.tokenize
    monkeypatch.setattr(judge.towers, "tokenize", lambda prompts: encoded.extend(prompts) or tokenize(prompts))
    judge.prepare(PROMPTS)
    judge(images, labels)
    judge(images, labels)
    assert encoded == PROMPTS


def test_several_prompts_of_a_class_are_averaged_as_unit_vectors(judge_files):
    single = loaded(CLIP, judge_files).prompt_features
    averaged = loaded(CLIP, judge_files, [PROMPTS[:2], PROMPTS[2]]).prompt_features
    mean = (single[0] + single[1]) / 2
    torch.testing.assert_close(averaged, torch.stack([mean / mean.norm(), single[2]]))


def test_digest_follows_weights_and_settings(judge_files, tmp_path):
    digest = loaded(CLIP, judge_files).digest
    assert digest == loaded(replace(CLIP, name="other"), judge_files).digest
    assert digest != loaded(with_options(CLIP, scale=1.0), judge_files).digest
    assert digest != loaded(with_options(CLIP, geometry="squash"), judge_files).digest
    shutil.copytree(judge_files, tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "clip" / "model.safetensors")
    state["visual.proj"] = state["visual.proj"] + 1e-6
    save_file(state, tmp_path / "clip" / "model.safetensors")
    assert digest != loaded(CLIP, tmp_path).digest
    pick = loaded(PICK, tmp_path).digest
    tokenizer_settings = {"model_max_length": 19}
    (tmp_path / "preference" / "tokenizer_config.json").write_text(json.dumps(tokenizer_settings))
    assert pick != loaded(PICK, tmp_path).digest


def missing_files(spec, root):
    cache = FileCache(cache_directory())
    return [file for file in judge_files_of(spec, root=root) if file.find(cache) is None]


def test_missing_file_is_known_before_loading(judge_files):
    assert missing_files(CLIP, judge_files) == []
    spec = with_options(CLIP, weights="clip/gone.safetensors")
    (missing,) = missing_files(spec, judge_files)
    assert str(missing).endswith("clip/gone.safetensors")
    refusal = (
        r"weights of judge 'clip': not on this machine \(.*gone\.safetensors\); .*correct the path in the protocol"
    )
    with pytest.raises(BenchError, match=refusal):
        load_judge(spec, device="cpu", root=judge_files)
    with pytest.raises(BenchError, match=refusal):
        fetch_files(judge_files_of(spec, root=judge_files))
    states = fetch_files(judge_files_of(CLIP, root=judge_files))
    assert states[0].path == judge_files / "clip" / "model.safetensors"


@pytest.mark.parametrize(
    ("spec", "title"),
    [
        (JudgeSpec("inception", "torch-fidelity"), "weights-inception-2015-12-05-6726825d.pth"),
        (JudgeSpec("clip", "open-clip", {"model": "ViT-B-16-quickgelu", "pretrained": "openai"}), "open_clip_model"),
        (
            JudgeSpec("pick", "transformers-clip", {"hub": "yuvalkirstain/PickScore_v1"}),
            "PickScore_v1/model.safetensors",
        ),
        (JudgeSpec("dinov2", "dinov2"), "facebook/dinov2-large/model.safetensors"),
        (JudgeSpec("hps", "hpsv2"), "xswu/HPSv2/HPS_v2.1_compressed.pt"),
        (JudgeSpec("aesthetic", "aesthetic"), "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_published_weights_that_are_missing_name_the_command(tmp_path, monkeypatch, spec, title):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("BENCH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert title in str(missing_files(spec, tmp_path)[0])
    with pytest.raises(BenchError, match=f"judge '{spec.name}': .*bench weights fetch judges") as raised:
        load_judge(spec, device="cpu", root=tmp_path)
    with pytest.raises(BenchError, match=f"judge '{spec.name}': .*bench weights fetch judges --protocol mine"):
        load_judge(replace(spec, protocol="mine"), device="cpu", root=tmp_path)
    assert "\n" not in str(raised.value)


def test_hub_files_of_earlier_versions_are_found_in_the_cache_directory(judge_files, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE_DIR", str(tmp_path))
    snapshot = tmp_path / "judges" / "huggingface" / "models--owner--preference" / "snapshots" / "abc"
    shutil.copytree(judge_files / "preference", snapshot)
    reference = tmp_path / "judges" / "huggingface" / "models--owner--preference" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("abc")
    spec = JudgeSpec("pick", "transformers-clip", {"hub": "owner/preference"})
    assert missing_files(spec, tmp_path) == []
    judge = load_judge(spec, device="cpu", root=tmp_path)
    assert judge.digest == loaded(PICK, judge_files).digest
    (snapshot / "special_tokens_map.json").write_text('{"unk_token": "?"}')  # another program fetched it
    (snapshot / "tokenizer_config.json").write_text('{"model_max_length": 3}')
    assert load_judge(spec, device="cpu", root=tmp_path).digest == judge.digest


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (replace(CLIP, kind="open-klip"), "unknown kind of judge 'clip' 'open-klip': did you mean open-clip"),
        (with_options(CLIP, scael=1), r"unknown option of judge 'clip' \(open-clip\) 'scael': did you mean scale"),
        (JudgeSpec("clip", "open-clip", {}), "give either 'model'"),
        (JudgeSpec("clip", "open-clip", {"model": "ViT-B-16"}), "set 'weights' .* or 'pretrained'"),
        (
            JudgeSpec("clip", "open-clip", {"model": "ViT-B-16", "pretrained": "openai"}),
            'set model = "ViT-B-16-quickgelu"',
        ),
        (JudgeSpec("clip", "open-clip", {"model": "ViT-B-16", "pretrained": "opnai"}), "did you mean openai"),
        (JudgeSpec("pick", "transformers-clip", {}), "set 'path' .* or 'hub'"),
        (with_options(CLIP, merges="clip/model.json"), "is not a gzipped list of merges"),
        (with_options(CLIP, weights="preference/model.safetensors"), "does not fit the model"),
        (with_options(CLIP, config="preference/config.json"), "has no 'embed_dim'"),
        (with_options(PICK, path="dino", processor_path="preference"), "is of type 'dinov2'"),
        (with_options(CLASSIFIER, path="preference"), "is missing 2 of the model's weights, the first classifier.bias"),
        (with_options(DINO, size=57), "not a multiple of its patch of 14"),
        (with_options(DINO, resize="nearest"), "backend 'nearest'"),
        (
            JudgeSpec("reward", "image-reward"),
            r"image-reward is not installed; run pip install 'fewstep-bench\[image-reward\]'",
        ),
    ],
)
def test_wrong_setting_is_one_clear_line(judge_files, spec, reason):
    with pytest.raises(BenchError, match=reason) as raised:
        load_judge(spec, device="cpu", root=judge_files)
    assert "\n" not in str(raised.value)


def test_images_and_labels_are_checked(judge_files, images, labels):
    judge = loaded(CLIP, judge_files)
    with pytest.raises(BenchError, match="must be uint8"):
        judge(images.float(), labels)
    with pytest.raises(BenchError, match="must be uint8"):
        judge(images[:, :1], labels)
    with pytest.raises(BenchError, match="need as many labels"):
        judge(images, labels[:2])
    with pytest.raises(BenchError, match=r"labels 0\.\.3 do not fit its 3 prompts"):
        judge(images, labels + labels // 2)
    with pytest.raises(BenchError, match="call prepare"):
        load_judge(CLIP, device="cpu", root=judge_files)(images, labels)
    with pytest.raises(BenchError, match="every class needs a prompt"):
        judge.prepare([])
