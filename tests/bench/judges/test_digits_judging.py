"""The committed digits judges, loaded and run by the code that loads the published ones."""

import time
from pathlib import Path

import pytest
import sklearn.datasets
import torch

import protocols.digits
from bench.judges.base import load_judge
from bench.judges.judge import JudgeSpec

ROOT = Path(protocols.digits.__file__).parent
SPECS = [
    JudgeSpec("inception", "torch-fidelity", {"extractor": "protocols.digits.classifier:DigitsClassifier"}),
    JudgeSpec(
        "clip",
        "open-clip",
        {"config": "clip/model.json", "weights": "clip/model.safetensors", "merges": "clip/merges.txt.gz"},
    ),
    JudgeSpec("pick", "transformers-clip", {"path": "preference"}),
]
WORDS = "zero one two three four five six seven eight nine".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def judges():
    loaded = {spec.name: load_judge(spec, device="cpu", root=ROOT) for spec in SPECS}
    for judge in loaded.values():
        judge.prepare([f"a handwritten digit {word}" for word in WORDS])
    return loaded


@pytest.fixture(scope="module")
def digits():
    data = sklearn.datasets.load_digits()
    grey = torch.from_numpy(data.images[:250] / 16 * 255).round().to(torch.uint8)
    return grey[:, None].expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(data.target[:250]).long()


def test_classifier_recognises_digits(judges, digits):
    images, labels = digits
    judged = judges["inception"](images, labels)
    assert judged["features"].shape == (250, 48)
    assert (judged["logits"].argmax(dim=1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("name", ["clip", "pick"])
def test_the_right_prompt_scores_higher(judges, digits, name):
    images, labels = digits
    right = judges[name](images, labels)["score"]
    wrong = judges[name](images, (labels + 3) % 10)["score"]
    assert (right > wrong).float().mean() > 0.9


def test_a_batch_is_judged_by_all_three_in_a_tenth_of_a_second(judges, digits):
    def seconds() -> float:
        start = time.process_time()
        for judge in judges.values():
            judge(*digits)
        return time.process_time() - start

    assert min(seconds() for _ in range(4)) < 0.1 * max(torch.get_num_threads(), 1)
