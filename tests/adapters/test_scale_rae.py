"""Scale-RAE's worker: its two samplers, and what it asks the authors' package for, on tiny networks in its place."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters.scale_rae.adapter import ScaleRAE
from bench.contracts import bench_worker
from bench.contracts.noise import PhiloxNoise
from bench.models.cards import find_card
from bench.models.counting import Counter
from results.errors import BenchError

CHANNELS, SIDE, WIDTH = 6, 2, 5
PROMPTS = ["a photo of a tench", "a photo of a great_white_shark"]


def load_worker() -> Any:
    spec = importlib.util.spec_from_file_location("scale_rae_worker", ScaleRAE.script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORKER = load_worker()


class Flow(nn.Module):
    """v(x, t, y) of the flow's network, as the authors call it."""

    def __init__(self) -> None:
        super().__init__()
        self.y_embedder = nn.Module()
        self.y_embedder.dropout_embedding = nn.Parameter(torch.linspace(-1, 1, WIDTH))
        self.project = nn.Linear(WIDTH, CHANNELS)
        self.seen: list[tuple[int, float]] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.seen.append((len(x), round(t[0].item(), 5)))
        return x * t[:, None, None, None] + self.project(y).transpose(1, 2).reshape(x.shape)


class Head(nn.Module):
    """The flow behind the language model."""

    normalize_data = True

    def __init__(self) -> None:
        super().__init__()
        self.model = Flow()
        self.register_buffer("data_std", torch.full((SIDE * SIDE, CHANNELS), 2.0))
        self.register_buffer("data_mean", torch.full((SIDE * SIDE, CHANNELS), 0.5))

    def infer(self, z: Tensor, x_end: Tensor | None = None, guidance_level: float | None = None) -> Tensor:
        raise AssertionError("the authors' sampler is not called")


class LanguageModel(nn.Module):
    """Answers each question with the condition that its words choose; it draws no image of a dog."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.diff_head = Head()
        self.asked: list[str] = []

    def generate(self, ids: Tensor, **options: Any) -> None:
        question = "".join(map(chr, ids[0].tolist()))
        self.asked.append(question)
        if "dog" not in question:
            z = PhiloxNoise(len(question), [0]).normal((SIDE * SIDE, WIDTH))
            self.diff_head.infer(z, guidance_level=options["guidance_level"])


class Decoder(nn.Module):
    """A pixel a token, three of its channels; the first token is dropped."""

    def __init__(self, **facts: Any) -> None:
        super().__init__()
        self.facts = facts

    def forward(self, tokens: Tensor) -> Tensor:
        assert not tokens[:, 0].any()
        return tokens[:, 1:, :3].transpose(1, 2).reshape(len(tokens), 3, SIDE, SIDE)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The worker's model over a package that has the authors' names."""
    language = LanguageModel().eval()
    torch.manual_seed(0)
    template = SimpleNamespace(copy=lambda: Conversation())
    tokenizer = SimpleNamespace(convert_tokens_to_ids=len)
    parts = {
        "model.builder": {"load_pretrained_model": lambda **facts: (tokenizer, language, None, 2048)},
        "model.multimodal_decoder": {"MultimodalDecoder": Decoder},
        "conversation": {"conv_templates": {"qwen_2": template}},
        "constants": {"IMAGE_TOKEN_INDEX": -200},
        "mm_utils": {"tokenizer_image_token": lambda text, *rest, **more: torch.tensor([ord(c) for c in text])},
    }
    for name, content in parts.items():
        module = ModuleType(f"scale_rae.{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, f"scale_rae.{name}", module)
    monkeypatch.setitem(sys.modules, "scale_rae", ModuleType("scale_rae"))
    monkeypatch.setitem(sys.modules, "scale_rae.model", ModuleType("scale_rae.model"))
    monkeypatch.setattr(torch, "load", torch.load)  # restored afterwards
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    card = find_card("scale-rae")
    words = {
        "card": {
            "latent_shape": [CHANNELS, SIDE, SIDE], "resolution": SIDE, "num_classes": 0,
            "architecture": {**card.architecture, "decoder": str(tmp_path)},
        },
        "files": {}, "random_seed": None, "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    yield WORKER.Model(bench_worker.Job(words))


class Conversation:
    roles = ("user", "assistant")

    def __init__(self) -> None:
        self.said: list[str | None] = []

    def append_message(self, role: str, text: str | None) -> None:
        self.said.append(text)

    def get_prompt(self) -> str:
        return str(self.said[0])


def batch(steps: int, cfg: float, behaviour: str, labels: list[int], first: int = 0) -> Any:
    noise = PhiloxNoise(3, range(first, first + len(labels)))
    words = {"steps": steps, "cfg": cfg, "settings": {"behaviour": behaviour}, "prompts": [PROMPTS[i] for i in labels]}
    return bench_worker.Batch(words, {"labels": labels}, lambda kind, shape, draw: noise.normal(shape, draw).numpy())


@pytest.mark.parametrize(("steps", "times", "travelled"), [
    (4, [0.9622, 0.89495, 0.73982, 0.9622], -0.916), (1, [0.00842], 0.9916), (2, [0.89495, 0.89495], None),
])  # fmt: skip
def test_the_released_sampler_starts_late_and_ends_with_a_step_back(
    steps: int, times: list[float], travelled: float | None
) -> None:
    grid = WORKER.grid_times(steps, 1152 * 256)
    pairs = WORKER.intervals(grid, "released")
    assert [t for t, _ in pairs] == pytest.approx(times, abs=1e-5)
    if travelled is not None:
        assert sum(to - t for t, to in pairs) == pytest.approx(travelled, abs=1e-3)
    corrected = WORKER.intervals(grid, "corrected")
    assert len(corrected) == steps
    assert corrected[0][0] == 1.0
    assert all(to == t for (_, to), (t, _) in pairwise(corrected))
    assert corrected[-1][1] == pytest.approx(0.00842, abs=1e-5)


def test_a_question_is_asked_once_and_a_sample_does_not_depend_on_its_batch(model: Any) -> None:
    whole = batch(3, 1.0, "corrected", [0, 1, 0])
    images = model.sample(whole)
    assert images.shape == (3, 3, SIDE, SIDE) and images.abs().max() <= 1
    assert whole.rows == 9
    assert model.model.asked == [f"Can you generate {prompt}?" for prompt in PROMPTS]
    assert torch.equal(model.sample(batch(3, 1.0, "corrected", [1], first=1)), images[1:2])
    assert len(model.model.asked) == 2


def test_guidance_acts_where_it_is_corrected_and_only_costs_where_it_is_released(model: Any) -> None:
    plain, guided = batch(2, 1.0, "released", [0, 1]), batch(2, 7.0, "released", [0, 1])
    assert torch.equal(model.sample(plain), model.sample(guided))
    assert (plain.rows, guided.rows) == (4, 8)
    corrected = batch(2, 1.5, "corrected", [0, 1])
    assert not torch.allclose(model.sample(corrected), model.sample(batch(2, 1.0, "corrected", [0, 1])))
    assert corrected.rows == 8


def test_no_image_and_random_weights_are_errors_of_one_line(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PROMPTS", ["a photo of a dog"])
    with pytest.raises(ValueError, match="answered without an image: 'a photo of a dog'"):
        model.sample(batch(1, 1.0, "corrected", [0]))
    with pytest.raises(ValueError, match="no random weights"):
        WORKER.Model(SimpleNamespace(random_seed=0))


@pytest.mark.usefixtures("model")
def test_pickles_of_the_authors_package_run_no_code_whatever_it_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.ones(2)}, path)
    assert torch.load(path, "cpu")["weight"].tolist() == [1.0, 1.0]
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(UnpicklingError):
        torch.load(path, weights_only=False)


def test_an_environment_without_the_package_or_its_files_says_what_to_do(
    model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = {"latent_shape": [CHANNELS, SIDE, SIDE], "resolution": SIDE, "num_classes": 0, "name": "scale-rae"}
    job = SimpleNamespace(card={**facts, "architecture": dict.fromkeys(("model", "decoder", "encoder"), "a/b")},
        files={}, random_seed=None, device="cpu", dtype="float32")  # fmt: skip

    def absent(**facts: Any) -> None:
        raise OSError("a/b is not a local folder")

    monkeypatch.setattr(sys.modules["scale_rae.model.builder"], "load_pretrained_model", absent)
    with pytest.raises(RuntimeError, match="get a/b, a/b, a/b with 'huggingface-cli download' in this environment"):
        WORKER.Model(job)
    monkeypatch.setitem(sys.modules, "scale_rae.model.builder", None)
    with pytest.raises(RuntimeError, match="not that of 'bench worker setup scale-rae'"):
        WORKER.Model(job)


def test_its_cards_are_two_systems_whose_evaluations_are_declared() -> None:
    card, released = find_card("scale-rae"), find_card("scale-rae-released")
    adapter = ScaleRAE(released)
    assert (
        adapter.resolve_settings(1).behaviour == "released"
        and ScaleRAE(card).resolve_settings(1).behaviour != "released"
    )
    assert str(Counter(released).count(25, 1.42, adapter.resolve_settings(25))) == "50"
    assert "at least 1" in str(adapter.unsupported(4, 0.5))
    adapter.prepare(PROMPTS)
    assert adapter.num_classes == 2 and not adapter.unconditional
    with pytest.raises(BenchError, match="scale-rae-released has no environment; make one with: bench worker setup"):
        adapter.sample(torch.tensor([0]), 1, 1.0, noise=PhiloxNoise(0, [0]))


def test_the_harness_half_of_the_protocol_is_found_beside_the_harness() -> None:
    assert WORKER.harness_half().PROTOCOL == bench_worker.PROTOCOL
