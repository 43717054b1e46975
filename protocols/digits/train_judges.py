"""Train the digits judges on the training part and store them: `python -m protocols.digits.train_judges`.

Four small networks, a few minutes on one CPU thread: the classifier, its cross-check, the CLIP and the preference
model. None of them sees a held-out image. Weights are stored in half precision and the figures in `judges.json` are
those of the stored weights.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from protocols.digits import corruptions, judges, vocabulary
from protocols.digits.classifier import (
    TOTAL_VARIANCE,
    DigitsClassifier,
    DigitsCrossCheck,
    DigitsNetwork,
)
from protocols.digits.corruptions import CORRUPTIONS, PIXEL_CORRUPTIONS, Digits
from protocols.digits.data import GREY_LEVELS, IMAGE_SIZE, grey_from_uint8, load_split, uint8_from_grey

BATCH = 128
CLIP_SETTINGS: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": IMAGE_SIZE,
        "patch_size": 2,
        "layers": 3,
        "width": 48,
        "head_width": 16,
        "mlp_ratio": 3.0,
    },
    "text_cfg": {
        "context_length": vocabulary.CONTEXT_LENGTH,
        "vocab_size": 0,
        "layers": 2,
        "width": 32,
        "heads": 2,
        "mlp_ratio": 3.0,
    },
}


class Recipe(NamedTuple):
    """How one judge is trained: AdamW at a peak rate that warms up for 100 iterations and falls to 0 as a cosine."""

    seed: int
    iterations: int
    rate: float
    weight_decay: float


RECIPES = {
    "classifier": Recipe(seed=1, iterations=1500, rate=2e-3, weight_decay=0.01),
    "cross_check": Recipe(seed=2, iterations=1500, rate=2e-3, weight_decay=0.01),
    "clip": Recipe(seed=3, iterations=1200, rate=2e-3, weight_decay=0.05),
    "preference": Recipe(seed=4, iterations=1500, rate=2e-3, weight_decay=0.05),
}

Track = Callable[[int], Iterable[int]]


def optimise(model: nn.Module, recipe: Recipe, loss: Callable[[], torch.Tensor], track: Track) -> None:
    """Minimise `loss()`, which draws its own batch, and leave the model in evaluation mode."""
    optimiser = torch.optim.AdamW(model.parameters(), recipe.rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay)
    model.train()
    for iteration in track(recipe.iterations):
        warm_up = min(1.0, (iteration + 1) / 100)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * warm_up * 0.5 * (1 + math.cos(math.pi * iteration / recipe.iterations))
        optimiser.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.eval()


def draw_rows(pool: Digits, generator: torch.Generator, count: int = BATCH) -> torch.Tensor:
    """Return random row numbers of the pool, int64 [count]."""
    return torch.randint(0, len(pool.labels), (count,), generator=generator)


def draw_prompts(labels: torch.Tensor, generator: torch.Generator) -> list[str]:
    """Return for each label one of its training prompts, words twice as often as numerals."""
    words = len(vocabulary.TEMPLATES)
    weights = torch.tensor([2.0] * words + [1.0] * words)
    choices = torch.multinomial(weights, len(labels), replacement=True, generator=generator)
    return [
        vocabulary.prompts_of_class(label)[choice]
        for label, choice in zip(labels.tolist(), choices.tolist(), strict=True)
    ]


def train_classifier(network: DigitsNetwork, pool: Digits, recipe: Recipe, track: Track) -> None:
    """Cross entropy with label smoothing 0.05 and input noise 0.1 (grey values in [-1, 1])."""
    generator = torch.Generator().manual_seed(recipe.seed)

    def loss() -> torch.Tensor:
        rows = draw_rows(pool, generator)
        grey = 2 * pool.grey[rows] - 1
        noisy = grey + 0.1 * torch.randn(grey.shape, generator=generator)
        return F.cross_entropy(network(noisy), pool.labels[rows], label_smoothing=0.05)

    optimise(network, recipe, loss, track)


@torch.no_grad()
def set_feature_scale(network: DigitsNetwork, grey: torch.Tensor) -> None:
    """Set the constant after which the features of all real images have a total variance of 100."""
    variance = network.features(2 * grey - 1).var(dim=0).sum()
    network.feature_scale.copy_((TOTAL_VARIANCE / variance).sqrt())


def train_clip(judge: judges.ClipJudge, pool: Digits, recipe: Recipe, track: Track) -> None:
    """Symmetric contrastive loss (CLIP, arXiv 2103.00020) whose targets know the classes.

    All prompts of a class are right for its images (they repeat within a batch), so each row's target is spread over
    them. Half of the images are blends of two classes with the target split in proportion: the cosine then
    says how much of the class an image shows, instead of only which class it is.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    text_labels = torch.arange(4 * 10) % 10

    def loss() -> torch.Tensor:
        first, second = draw_rows(pool, generator), draw_rows(pool, generator)
        share = torch.where(
            torch.rand(BATCH, generator=generator) < 0.5, torch.rand(BATCH, generator=generator), torch.zeros(BATCH)
        )
        grey = torch.lerp(pool.grey[first], pool.grey[second], share[:, None, None, None])
        for kind in ("elastic", "noise"):
            grey = PIXEL_CORRUPTIONS[kind](grey, 0.4 * torch.rand(BATCH, generator=generator), generator)
        classes = torch.lerp(
            F.one_hot(pool.labels[first], 10).float(), F.one_hot(pool.labels[second], 10).float(), share[:, None]
        )
        target = classes[:, text_labels]

        image = judge.image_vectors(uint8_from_grey(corruptions.snap(grey)))
        text = judge.text_vectors(draw_prompts(text_labels, generator))
        logits = judge.model.logit_scale.exp().clamp(max=20) * image @ text.T
        of_text = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
        of_image = F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True).clamp(min=1e-6))
        return (of_text + of_image) / 2

    optimise(judge.model, recipe, loss, track)


def train_preference(judge: judges.PreferenceJudge, pool: Digits, recipe: Recipe, track: Track) -> None:
    """PickScore's objective (arXiv 2305.01569): cross entropy of a pair's softmax(exp(logit_scale) cos(text, image)).

    Pairs of one prompt are: an image and its corrupted version (half), a mildly and a more strongly corrupted
    version of it (three eighths), and two real images of the class, which tie (one eighth). Together they order
    degrees of damage rather than telling real from unreal only.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    # The wrong digit is the hardest to tell for a model whose texts are few: it gets two shares of each batch.
    kinds = (*CORRUPTIONS, "wrong-digit")

    def loss() -> torch.Tensor:
        rows = draw_rows(pool, generator)
        severities = torch.rand(2, BATCH, generator=generator).sort(dim=0).values
        worse, mild = torch.empty(BATCH, 1, IMAGE_SIZE, IMAGE_SIZE), torch.empty(BATCH, 1, IMAGE_SIZE, IMAGE_SIZE)
        for index, kind in enumerate(kinds):
            part = slice(index * BATCH // len(kinds), (index + 1) * BATCH // len(kinds))
            worse[part] = corruptions.corrupt(kind, rows[part], severities[1, part], pool, generator)
            if kind == "wrong-digit":
                mild[part] = pool.grey[rows[part]]
            else:
                mild[part] = corruptions.corrupt(kind, rows[part], severities[0, part], pool, generator)

        fate = torch.rand(BATCH, generator=generator)
        better = torch.where((fate < 0.5)[:, None, None, None], pool.grey[rows], mild)
        tied = fate > 0.875
        better[tied] = pool.grey[rows[tied]]
        worse[tied] = pool.grey[corruptions.draw_class(pool, pool.labels[rows[tied]], generator)]

        # Samplers need not round to the 17 grey levels of real digits: in half of the pairs both images leave them.
        images = torch.stack([better, worse])
        off_level = (torch.rand(images.shape, generator=generator) - 0.5) / GREY_LEVELS
        images += off_level * (torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5)

        text = judge.text_vectors(draw_prompts(pool.labels[rows], generator))
        pair = judge.image_vectors(uint8_from_grey(images.flatten(0, 1))).unflatten(0, (2, BATCH))
        scores = judge.model.logit_scale.exp() * (pair * text).sum(-1)
        wins = torch.where(tied, 0.5, 1.0)
        return F.cross_entropy(scores.T, torch.stack([wins, 1 - wins], dim=1))

    optimise(judge.model, recipe, loss, track)


def new_clip(directory: Path, merges: list[vocabulary.Merge]) -> judges.ClipJudge:
    """Write the tokenizer and settings of the CLIP and return it untrained."""
    path = directory / "merges.txt.gz"
    vocabulary.write_open_clip_merges(merges, path)
    tokenizer = SimpleTokenizer(bpe_path=str(path), context_length=vocabulary.CONTEXT_LENGTH)
    text_settings = {**CLIP_SETTINGS["text_cfg"], "vocab_size": tokenizer.vocab_size}
    settings = {**CLIP_SETTINGS, "text_cfg": text_settings}
    (directory / "model.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return judges.ClipJudge(open_clip.CLIP(**settings), tokenizer)


def new_preference(directory: Path, merges: list[vocabulary.Merge]) -> judges.PreferenceJudge:
    """Write the tokenizer, image processor and configuration of the preference model and return it untrained."""
    ids = vocabulary.write_transformers_tokenizer(merges, directory)
    tokenizer = CLIPTokenizer.from_pretrained(directory, local_files_only=True)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side).save_pretrained(directory)
    config = CLIPConfig(
        projection_dim=32,
        text_config={
            "projection_dim": 32,
            "vocab_size": len(ids),
            "max_position_embeddings": vocabulary.CONTEXT_LENGTH,
            "hidden_size": 32,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "projection_dim": 32,
            "image_size": IMAGE_SIZE,
            "patch_size": 2,
            "hidden_size": 48,
            "intermediate_size": 144,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
        },
    )
    config.architectures = ["CLIPModel"]
    # Stored in half precision, computed in single: transformers takes the type from here.
    config.dtype = "float32"
    config.save_pretrained(directory)
    return judges.PreferenceJudge(CLIPModel(config), tokenizer)


def save_half(model: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Store the weights in half precision; every loader here widens them to float32."""
    save_file({key: value.half().contiguous() for key, value in model.state_dict().items()}, path, metadata)


def train_all(directory: Path, progress: Progress) -> dict[str, object]:
    """Train the four judges into `directory` (`weights/`, `clip/`, `preference/`) and return their figures."""
    train, test = load_split("train"), load_split("test")
    pool = Digits(grey_from_uint8(train.images), train.labels)
    everything = grey_from_uint8(torch.cat([train.images, test.images]))
    folders = {name: directory / name for name in ("weights", "clip", "preference")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    merges = vocabulary.learn_merges()

    def track(name: str) -> Track:
        return lambda iterations: progress.track(range(iterations), description=name)

    figures: dict[str, object] = {}
    for name, extractor in (("classifier", DigitsClassifier), ("cross_check", DigitsCrossCheck)):
        torch.manual_seed(RECIPES[name].seed)
        network = extractor.build_network()
        train_classifier(network, pool, RECIPES[name], track(name))
        set_feature_scale(network, everything)
        path = folders["weights"] / f"{name}.safetensors"
        save_half(network, path)
        figures[name] = judges.classifier_figures(extractor(name, ["pool", "logits"], path), train, test)

    torch.manual_seed(RECIPES["clip"].seed)
    clip = new_clip(folders["clip"], merges)
    train_clip(clip, pool, RECIPES["clip"], track("clip"))
    save_half(clip.model, folders["clip"] / "model.safetensors")
    figures["clip"] = judges.clip_figures(judges.load_clip(folders["clip"]), test)

    torch.manual_seed(RECIPES["preference"].seed)
    preference = new_preference(folders["preference"], merges)
    train_preference(preference, pool, RECIPES["preference"], track("preference"))
    save_half(preference.model, folders["preference"] / "model.safetensors", {"format": "pt"})
    figures["preference"] = judges.preference_figures(judges.load_preference(folders["preference"]), train, test)
    return figures


def rounded(figures: object) -> object:
    """Return nested figures with floats rounded to four digits after the point."""
    if isinstance(figures, dict):
        return {key: rounded(value) for key, value in figures.items()}
    return round(figures, 4) if isinstance(figures, float) else figures


def main() -> None:
    """Train all judges and write `weights/judges.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent, help="where weights/, clip/ and preference/ go"
    )
    directory: Path = parser.parse_args().output

    # One thread: the sums of a matrix product then do not depend on how many cores the machine has.
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        figures = train_all(directory, progress)

    record = {
        "trained_with": {"torch": torch.__version__.split("+")[0]},
        "recipes": {name: recipe._asdict() for name, recipe in RECIPES.items()},
        **figures,
    }
    path = directory / "weights" / "judges.json"
    path.write_text(json.dumps(rounded(record), indent=2) + "\n", encoding="utf-8")
    console.print(f"wrote {path}")
    console.print_json(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
