import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch_fidelity
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch.utils.data import Dataset
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from transformers import CLIPImageProcessorPil, CLIPModel

from protocols.digits import judges
from protocols.digits.classifier import DigitsClassifier, DigitsCrossCheck
from protocols.digits.corruptions import CORRUPTIONS, PIXEL_CORRUPTIONS, snap
from protocols.digits.data import grey_from_uint8, load_split, uint8_from_grey

DIGITS = Path(judges.__file__).parent
RECORD = json.loads((DIGITS / "weights" / "judges.json").read_text(encoding="utf-8"))


class Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.fixture(scope="module")
def train():
    return load_split("train")


@pytest.fixture(scope="module")
def test():
    return load_split("test")


@pytest.fixture(scope="module")
def preference_figures(train, test):
    return judges.preference_figures(judges.load_preference(), train, test)


@pytest.fixture
def registered_name():
    name = "digits-classifier-under-test"
    register_feature_extractor(name, DigitsClassifier)
    yield name
    del FEATURE_EXTRACTORS_REGISTRY[name]


# The classifiers


@pytest.mark.parametrize(("extractor", "name"), [(DigitsClassifier, "classifier"), (DigitsCrossCheck, "cross_check")])
def test_a_classifier_recognises_held_out_digits_as_recorded(extractor, name, train, test):
    figures = judges.classifier_figures(extractor(name, ["pool", "logits"]), train, test)
    assert figures["accuracy_test"] > 0.98
    assert figures["fid_train_against_test"] < 0.6
    assert figures == pytest.approx(RECORD[name], abs=2e-3)


@pytest.mark.parametrize("extractor", [DigitsClassifier, DigitsCrossCheck])
def test_the_features_have_a_total_variance_of_100_over_all_real_images(extractor, train, test):
    (pool,) = extractor("digits", ["pool"])(torch.cat([train.images, test.images]))
    assert pool.shape == (1797, 48)
    assert pool.dtype == torch.float32
    assert float(pool.double().var(dim=0).sum()) == pytest.approx(100, abs=0.5)


def test_features_come_in_the_order_asked_for(test):
    pool, logits = DigitsClassifier("digits", ["pool", "logits"])(test.images[:5])
    logits_first, pool_second = DigitsClassifier("digits", ["logits", "pool"])(test.images[:5])
    assert torch.equal(pool, pool_second)
    assert torch.equal(logits, logits_first)
    assert logits.shape == (5, 10)


def test_the_classifier_refuses_floats_and_other_sizes(test):
    judge = DigitsClassifier("digits", ["pool"])
    with pytest.raises(ValueError, match="float32"):
        judge(test.images[:2].float())
    with pytest.raises(ValueError, match="16"):
        judge(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


def test_torch_fidelity_measures_real_digits_with_the_classifier(registered_name, train, test):
    figures = torch_fidelity.calculate_metrics(
        input1=Images(train.images),
        input2=Images(test.images),
        feature_extractor=registered_name,
        feature_layer_fid="pool",
        fid=True,
        isc=True,
        kid=True,
        kid_subset_size=300,
        prc=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        batch_size=256,
    )
    recorded = RECORD["classifier"]["fid_train_against_test"]
    assert figures["frechet_inception_distance"] == pytest.approx(recorded, abs=2e-3)
    assert 7 < figures["inception_score_mean"] < 10
    assert np.isfinite(figures["kernel_inception_distance_mean"])
    assert figures["precision"] > 0.8
    assert figures["recall"] > 0.8


def test_torch_fidelitys_own_weights_option_is_honoured(test):
    path = str(DIGITS / "weights" / "classifier.safetensors")
    (given,) = DigitsClassifier("digits", ["pool"], feature_extractor_weights_path=path)(test.images[:3])
    (committed,) = DigitsClassifier("digits", ["pool"])(test.images[:3])
    assert torch.equal(given, committed)
    with pytest.raises(FileNotFoundError):
        DigitsClassifier("digits", ["pool"], feature_extractor_weights_path="nowhere.safetensors")


# The CLIP


def test_the_clip_names_held_out_digits_with_every_template(test):
    figures = judges.clip_figures(judges.load_clip(), test)
    assert min(figures["accuracy_test"].values()) > 0.95
    assert figures["score_right_class"] - figures["score_wrong_class"] > 20
    assert 0.5 < figures["score_deviation_right_class"] < 20
    assert figures["accuracy_test"] == pytest.approx(RECORD["clip"]["accuracy_test"], abs=2e-3)


def test_open_clips_own_factory_opens_the_clip(test):
    directory = judges.CLIP_DIRECTORY
    open_clip.add_model_config(directory / "model.json")
    model = open_clip.create_model("model", pretrained=str(directory / "model.safetensors")).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    judge = judges.load_clip()
    with torch.no_grad():
        image = model.encode_image(judges.normalise(test.images[:5]), normalize=True)
        torch.testing.assert_close(image, judge.image_vectors(test.images[:5]))


def test_open_clips_own_transform_gives_the_pixels_trained_on(test):
    judge = judges.load_clip()
    transform = open_clip.image_transform(judge.model.visual.image_size, is_train=False)
    pixels = torch.stack([transform(Image.fromarray(image.movedim(0, -1).numpy())) for image in test.images[:5]])
    torch.testing.assert_close(pixels, judges.normalise(test.images[:5]))


def test_the_two_tokenizers_agree_and_stay_inside_the_vocabulary():
    directory = judges.CLIP_DIRECTORY
    of_clip = SimpleTokenizer(bpe_path=str(directory / "merges.txt.gz"), context_length=16)
    clip, (model, of_preference) = judges.load_clip(), judges.load_preference()
    assert clip.model.vocab_size == of_clip.vocab_size == len(of_preference) == model.config.text_config.vocab_size
    assert of_clip.vocab_size < 700
    texts = ["a handwritten digit seven", "A photo of the number 3, written by hand", "émoji 🙂 tench's", "", "x" * 99]
    ids = of_clip(texts)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < of_clip.vocab_size
    for row, text in zip(ids, texts, strict=True):
        length = int(row.argmax()) + 1
        other = of_preference(text, truncation=True, max_length=16)["input_ids"]
        assert row[:length].tolist() == other
        clip.text_vectors([text])
        judges.load_preference().text_vectors([text])


def test_each_word_of_a_class_prompt_is_one_token():
    tokenizer = judges.load_clip().tokenizer
    assert [len(tokenizer.encode(prompt)) for prompt in judges.class_prompts()] == [4] * 10


# The preference model


def test_the_preference_model_prefers_the_undamaged_image_in_held_out_pairs(preference_figures):
    assert set(preference_figures["pair_accuracy"]) == set(CORRUPTIONS)
    assert min(preference_figures["pair_accuracy"].values()) > 0.85
    assert preference_figures["pair_accuracy"] == pytest.approx(RECORD["preference"]["pair_accuracy"], abs=1e-2)


def test_the_preference_score_is_higher_for_real_images_on_average_and_varies(preference_figures):
    real = preference_figures["score_real_test"]
    assert all(real > corrupted + 0.5 for corrupted in preference_figures["score_corrupted"].values())
    assert preference_figures["score_deviation_real_test"] > 0.2
    assert real == pytest.approx(preference_figures["score_real_train"], abs=1.0)


def test_the_preference_score_falls_with_the_amount_of_damage(test):
    judge = judges.load_preference()
    text = judge.text_vectors(judges.class_prompts())[test.labels]
    for corruption in PIXEL_CORRUPTIONS.values():
        means = []
        for amount in (0.0, 0.33, 0.66, 1.0):
            generator = torch.Generator().manual_seed(0)
            worse = corruption(grey_from_uint8(test.images), torch.full((599,), amount), generator)
            means.append(float((judge.image_vectors(uint8_from_grey(snap(worse))) * text).sum(-1).mean()))
        assert means == sorted(means, reverse=True)


def test_transformers_opens_the_directory_in_single_precision_with_its_own_processor(test):
    model = CLIPModel.from_pretrained(judges.PREFERENCE_DIRECTORY)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    processor = CLIPImageProcessorPil.from_pretrained(judges.PREFERENCE_DIRECTORY)
    pictures = [Image.fromarray(image.movedim(0, -1).numpy()) for image in test.images[:5]]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, judges.normalise(test.images[:5]), atol=1e-5, rtol=1e-5)


# All of them


def test_the_committed_judges_take_less_than_a_megabyte_and_a_half():
    folders = ("weights", "clip", "preference")
    sizes = [path.stat().st_size for folder in folders for path in (DIGITS / folder).iterdir() if path.is_file()]
    assert sum(sizes) < 1_500_000


def test_the_record_names_no_date_and_no_place():
    assert set(RECORD) == {"trained_with", "recipes", "classifier", "cross_check", "clip", "preference"}
    assert set(RECORD["trained_with"]) == {"torch"}
