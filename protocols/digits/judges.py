"""Opening the stored CLIP and preference model, and what the judges are worth on held-out digits.

Everything here reads committed files only: no network access, no names looked up on a hub.
"""

import json
from pathlib import Path
from typing import NamedTuple, TypedDict

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import SimpleTokenizer
from torch.nn import functional as F
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from transformers import CLIPModel, CLIPTokenizer

from protocols.digits.classifier import DigitsClassifier
from protocols.digits.corruptions import CORRUPTIONS, Digits, corrupt
from protocols.digits.data import CLASS_NAMES, DigitsSplit, grey_from_uint8, uint8_from_grey
from protocols.digits.vocabulary import CONTEXT_LENGTH, TEMPLATE, TEMPLATES, UNSEEN_TEMPLATE

CLIP_DIRECTORY = Path(__file__).parent / "clip"
PREFERENCE_DIRECTORY = Path(__file__).parent / "preference"


class ClassifierFigures(TypedDict):
    """Accuracies in [0, 1]; `fid_train_against_test` is the floor of FID in judge units."""

    parameters: int
    accuracy_train: float
    accuracy_test: float
    fid_train_against_test: float


class ClipFigures(TypedDict):
    """Zero-shot accuracies in [0, 1]; scores are 100 cos(image, text), means over held-out images."""

    parameters: int
    accuracy_test: dict[str, float]
    score_right_class: float
    score_wrong_class: float
    score_deviation_right_class: float


class PreferenceFigures(TypedDict):
    """Shares of held-out pairs in which the better image wins, and mean scores exp(logit_scale) cos(text, image)."""

    parameters: int
    logit_scale: float
    pair_accuracy: dict[str, float]
    pair_accuracy_mean: float
    score_real_train: float
    score_real_test: float
    score_deviation_real_test: float
    score_corrupted: dict[str, float]


class ClipJudge(NamedTuple):
    """The small CLIP and its tokenizer (list of texts -> int64 [n, 16])."""

    model: open_clip.CLIP
    tokenizer: SimpleTokenizer

    def image_vectors(self, images: torch.Tensor) -> torch.Tensor:
        """Return unit vectors [n, d] of uint8 [n, 3, 8, 8] RGB images."""
        return self.model.encode_image(normalise(images), normalize=True)

    def text_vectors(self, texts: list[str]) -> torch.Tensor:
        """Return unit vectors [n, d] of texts."""
        return self.model.encode_text(self.tokenizer(texts), normalize=True)


class PreferenceJudge(NamedTuple):
    """The preference model and its tokenizer.

    Its score is exp(logit_scale) cos(text, image), as in PickScore (arXiv 2305.01569).
    """

    model: CLIPModel
    tokenizer: CLIPTokenizer

    def image_vectors(self, images: torch.Tensor) -> torch.Tensor:
        """Return unit vectors [n, d] of uint8 [n, 3, 8, 8] RGB images."""
        return F.normalize(self.model.get_image_features(pixel_values=normalise(images)).pooler_output, dim=-1)

    def text_vectors(self, texts: list[str]) -> torch.Tensor:
        """Return unit vectors [n, d] of texts."""
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=CONTEXT_LENGTH, return_tensors="pt"
        )
        return F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Return float32 [n, 3, 8, 8] of uint8 RGB images, with CLIP's published mean and deviation per channel."""
    mean = torch.tensor(OPENAI_DATASET_MEAN)[:, None, None]
    deviation = torch.tensor(OPENAI_DATASET_STD)[:, None, None]
    return (images.to(torch.float32) / 255 - mean) / deviation


def load_clip(directory: Path = CLIP_DIRECTORY) -> ClipJudge:
    """Open `model.json`, `model.safetensors` and `merges.txt.gz` of a directory with open_clip, in float32."""
    settings = json.loads((directory / "model.json").read_text(encoding="utf-8"))
    model = open_clip.CLIP(**settings)
    open_clip.load_checkpoint(model, str(directory / "model.safetensors"))
    tokenizer = SimpleTokenizer(
        bpe_path=str(directory / "merges.txt.gz"), context_length=settings["text_cfg"]["context_length"]
    )
    return ClipJudge(model.eval().requires_grad_(False), tokenizer)


def load_preference(directory: Path = PREFERENCE_DIRECTORY) -> PreferenceJudge:
    """Open a directory as transformers' `CLIPModel` and `CLIPTokenizer`, in float32."""
    model = CLIPModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(directory, local_files_only=True)
    return PreferenceJudge(model.eval().requires_grad_(False), tokenizer)


def class_prompts(template: str = TEMPLATE) -> list[str]:
    """Return the ten prompts of a template, by class."""
    return [template.format(name) for name in CLASS_NAMES]


def count_parameters(model: torch.nn.Module) -> int:
    """Return how many numbers the model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def classifier_figures(judge: DigitsClassifier, train: DigitsSplit, test: DigitsSplit) -> ClassifierFigures:
    """Measure a classifier that provides "pool" and "logits", in this order."""
    pool_train, logits_train = judge(train.images)
    pool_test, logits_test = judge(test.images)
    statistics_train = fid_features_to_statistics(pool_train)
    statistics_test = fid_features_to_statistics(pool_test)
    fid = fid_statistics_to_metric(statistics_train, statistics_test, verbose=False)
    return ClassifierFigures(
        parameters=count_parameters(judge),
        accuracy_train=float((logits_train.argmax(1) == train.labels).float().mean()),
        accuracy_test=float((logits_test.argmax(1) == test.labels).float().mean()),
        fid_train_against_test=float(fid["frechet_inception_distance"]),
    )


@torch.no_grad()
def clip_figures(judge: ClipJudge, test: DigitsSplit) -> ClipFigures:
    """Measure zero-shot classification for each template, and the scores of right and wrong class prompts."""
    image = judge.image_vectors(test.images)
    cosines = {
        template: image @ judge.text_vectors(class_prompts(template)).T for template in (*TEMPLATES, UNSEEN_TEMPLATE)
    }
    right = F.one_hot(test.labels, 10).bool()
    scores = 100 * cosines[TEMPLATE]
    return ClipFigures(
        parameters=count_parameters(judge.model),
        accuracy_test={
            template: float((cosine.argmax(1) == test.labels).float().mean()) for template, cosine in cosines.items()
        },
        score_right_class=float(scores[right].mean()),
        score_wrong_class=float(scores[~right].mean()),
        score_deviation_right_class=float(scores[right].std()),
    )


@torch.no_grad()
def preference_figures(
    judge: PreferenceJudge, train: DigitsSplit, test: DigitsSplit, *, seed: int = 0
) -> PreferenceFigures:
    """Measure four pairs a held-out image and kind of corruption; severities are uniform in [0.25, 1]."""
    generator = torch.Generator().manual_seed(seed)
    scale = judge.model.logit_scale.exp()
    text = judge.text_vectors(class_prompts())
    pool = Digits(grey_from_uint8(test.images), test.labels)
    real_train = scale * (judge.image_vectors(train.images) * text[train.labels]).sum(-1)
    real = scale * (judge.image_vectors(test.images) * text[test.labels]).sum(-1)

    rows = torch.arange(len(test.labels)).repeat(4)
    accuracy: dict[str, float] = {}
    corrupted: dict[str, float] = {}
    for kind in CORRUPTIONS:
        severity = 0.25 + 0.75 * torch.rand(rows.shape, generator=generator)
        worse = uint8_from_grey(corrupt(kind, rows, severity, pool, generator))
        score = scale * (judge.image_vectors(worse) * text[test.labels[rows]]).sum(-1)
        accuracy[kind] = float((real[rows] > score).float().mean())
        corrupted[kind] = float(score.mean())
    return PreferenceFigures(
        parameters=count_parameters(judge.model),
        logit_scale=float(judge.model.logit_scale),
        pair_accuracy=accuracy,
        pair_accuracy_mean=sum(accuracy.values()) / len(accuracy),
        score_real_train=float(real_train.mean()),
        score_real_test=float(real.mean()),
        score_deviation_real_test=float(real.std()),
        score_corrupted=corrupted,
    )
