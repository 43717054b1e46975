"""The digits generators: cards and weights, samplers, evaluations, objectives and the training script."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor, nn

import adapters.digits.cards
from adapters.digits import distillation, objectives, recipes
from adapters.digits import train as script
from adapters.digits.adapters import Digits, DigitsFlow, DigitsUCGM
from adapters.digits.network import NULL_LABEL, DigitsMixer, build_network, images, patches
from adapters.digits.objectives import Batch
from adapters.digits.parametrisation import (
    LEVELS,
    consistency_function,
    edm_denoise,
    wide,
)
from bench.contracts.noise import PhiloxNoise
from bench.metrics.frechet import frechet_distance_from_features
from bench.models.cards import load_card
from bench.models.registry import family_class
from protocols import find_protocol
from protocols.digits.classifier import DigitsClassifier
from protocols.digits.data import load_split
from results.errors import BenchError

CARDS = {card.name: card for card in map(load_card, sorted(Path(adapters.digits.cards.__path__[0]).glob("*.toml")))}
MODELS = [name for name, card in CARDS.items() if not card.members]
TRAINED = [name for name in MODELS if CARDS[name].weights.path.stem == name]
"""Models with weights of their own; the others sample these in another way."""
EVALUATIONS = {
    "digits-caf": lambda steps: steps + 1,
    "digits-flow-midpoint": lambda steps: 2 * steps,
    "digits-flow-heun2": lambda steps: 2 * steps,
    "digits-flow-heun": lambda steps: 3 * steps,
}
"""By model, the evaluations of so many steps, where it is not one each."""
FEWEST = {"digits-low-diff": 2}
"""By model, the fewest steps that it takes, where one is too few: a step at each of its resolutions."""


def loaded(name: str) -> Digits:
    card = CARDS[name]
    adapter = family_class(card.family)(card)
    assert isinstance(adapter, Digits) and card.weights is not None and card.weights.path is not None
    adapter.load(load_file(card.weights.path), {role: load_file(one.path) for role, one in card.extra_weights.items()})
    adapter.to("cpu")
    return adapter


def noise(count: int, seed: int = 0, first: int = 0) -> PhiloxNoise:
    return PhiloxNoise(seed, range(first, first + count))


def sample(adapter: Digits, count: int, steps: int, cfg: float = 1.0, seed: int = 0) -> Tensor:
    return adapter.sample(torch.arange(count) % 10, steps, cfg, noise=noise(count, seed))


# --- Cards and weights -----------------------------------------------------------------------------------------------


def test_every_recipe_has_a_card_and_weights() -> None:
    assert set(TRAINED) == set(recipes.RECIPES)


@pytest.mark.parametrize("name", MODELS)
def test_card_states_the_network_and_the_digest_of_its_weights(name: str) -> None:
    card = CARDS[name]
    assert card.weights is not None and card.weights.path is not None
    assert hashlib.sha256(card.weights.path.read_bytes()).hexdigest() == card.weights.sha256
    assert sum(p.numel() for p in build_network(card.architecture).parameters()) == card.parameters
    if name in TRAINED:
        assert card.architecture == recipes.RECIPES[name].architecture
    assert "arXiv:" in card.paper and card.licence == "Apache-2.0"


def test_all_weights_together_stay_below_sixteen_megabytes() -> None:
    assert sum(path.stat().st_size for path in script.WEIGHTS.glob("*.safetensors")) < 16e6


def test_every_model_that_stands_in_for_a_paper_says_who_trained_it() -> None:
    field = {model for sweep in find_protocol("digits-field").sweeps for model in sweep.models}
    ours = {name for name in field & set(TRAINED) if name != "digits-flow"}
    assert len(ours) == 11
    for name in ours:
        assert "trained by us" in CARDS[name].title
        assert CARDS[name].verified.startswith("trained by us on digits with the paper's objective")


def test_the_pair_takes_the_few_step_model_up_to_four_steps() -> None:
    pair = CARDS["digits-ucgm"]
    assert pair.weights is None
    assert [pair.member(steps) for steps in (1, 4, 5, 32)] == 2 * ["digits-ucgm-few"] + 2 * ["digits-ucgm-multi"]


def test_weights_of_another_width_are_refused() -> None:
    with pytest.raises(BenchError, match="do not fit"):
        Digits.load(loaded("digits-flow"), DigitsMixer(32, 2).state_dict(), {})


def test_network_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert DigitsMixer().output.weight.is_meta


# --- Sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        (name, steps)
        for name in MODELS
        for steps in (CARDS[name].supported_steps or (1, 2, 5))
        if steps >= FEWEST.get(name, 1)
    ],
)
def test_one_step_costs_one_evaluation_unless_the_sampler_takes_more(name: str, steps: int) -> None:
    adapter, rows = loaded(name), []
    adapter.network.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    assert sample(adapter, 3, steps).shape == (3, 3, 8, 8)
    assert rows == [3] * EVALUATIONS.get(name, lambda steps: steps)(steps)


def test_guidance_doubles_the_evaluations_and_mixes_with_the_null_class() -> None:
    adapter, rows = loaded("digits-flow-small"), []
    adapter.network.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    guided = sample(adapter, 5, 1, cfg=2.5)
    assert rows == [10]
    labels, z, t = torch.arange(5), noise(5).normal((1, 8, 8)), torch.ones(5)
    conditional, null = (adapter.network(z, t, 0 * t, y) for y in (labels, torch.full_like(labels, NULL_LABEL)))
    torch.testing.assert_close(guided[:, :1], z - (null + 2.5 * (conditional - null)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    adapter, steps = loaded(name), FEWEST.get(name, 1)
    whole = sample(adapter, 6, steps)
    parts = [
        adapter.sample(torch.arange(first, last), steps, 1.0, noise=noise(last - first, first=first))
        for first, last in ((0, 2), (2, 6))
    ]
    torch.testing.assert_close(whole, torch.cat(parts), atol=1e-5, rtol=0)


def test_images_are_grey_and_near_the_range() -> None:
    pictures = sample(loaded("digits-dmd"), 20, 1)
    assert pictures.dtype == torch.float32
    assert torch.equal(pictures[:, 0], pictures[:, 2])
    assert pictures.abs().quantile(0.99) < 1.3


def test_uniform_uni_without_fresh_noise_is_the_euler_flow() -> None:
    flow = loaded("digits-flow")
    ucgm = DigitsUCGM(replace(CARDS["digits-ucgm-multi"], presets=()))
    ucgm.load(flow.network.state_dict(), {})
    for steps in (1, 5):
        torch.testing.assert_close(sample(ucgm, 4, steps), sample(flow, 4, steps), atol=1e-4, rtol=0)


def test_two_few_steps_differ_from_one() -> None:
    adapter = loaded("digits-ucgm-few")
    assert (sample(adapter, 10, 2) - sample(adapter, 10, 1)).abs().mean() > 0.02


@pytest.mark.parametrize(
    ("name", "steps", "cfg", "reason"),
    [
        ("digits-shortcut", 3, 1.0, "powers of two"),
        ("digits-shortcut", 64, 1.0, "powers of two"),
        ("digits-dmd", 2, 1.0, "takes 1 step only"),
        ("digits-meanflow", 2, 1.5, "takes no guidance"),
        ("digits-progressive", 3, 1.0, "takes 8, 4, 2, 1 steps only|takes 1, 2, 4, 8 steps only"),
        ("digits-progressive", 2, 2.5, "guidance scales from 1 to 2"),
        ("digits-guided", 2, 0.5, "guidance scales from 1 to 2"),
        ("digits-ism", 3, 1.0, "powers of two|takes 1, 2, 4, 8, 16, 32 steps only"),
        ("digits-ism", 2, 3.5, "guidance scales from 1 to 3"),
        ("digits-multi-student", 2, 1.0, "takes 1 step only"),
    ],
)
def test_what_a_family_cannot_do_is_refused_with_the_reason(name: str, steps: int, cfg: float, reason: str) -> None:
    with pytest.raises(BenchError, match=reason):
        sample(loaded(name), 2, steps, cfg)


def test_consistency_levels_must_be_one_a_step() -> None:
    adapter = loaded("digits-consistency")
    with pytest.raises(BenchError, match="one noise level per step"):
        adapter.sample(torch.zeros(1, dtype=torch.int64), 3, 1.0, noise=noise(1), sigmas=[80.0, 1.0])


def test_half_precision_weights_give_the_same_picture() -> None:
    adapter = loaded("digits-meanflow")
    full = sample(adapter, 4, 1)
    adapter.to("cpu", torch.bfloat16)
    half = sample(adapter, 4, 1)
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.05


@pytest.mark.parametrize("name", [name for name in MODELS if name != "digits-flow-weak"])  # a guide, bad on purpose
def test_the_judge_recognises_the_class(name: str) -> None:
    judge = DigitsClassifier("judge", ["logits"])
    (logits,) = judge(to_uint8(sample(loaded(name), 200, min(CARDS[name].natural_steps, 8), seed=5)))
    agreement = (logits.argmax(1) == torch.arange(200) % 10).float().mean()
    assert agreement > 0.9


def test_few_step_models_beat_the_flow_at_few_steps_and_the_flow_wins_back() -> None:
    judge = DigitsClassifier("judge", ["pool"])

    def features(pictures: Tensor) -> np.ndarray:
        return judge(pictures)[0].double().numpy()

    held_out = features(load_split("test").images)

    def distance(name: str, steps: int) -> float:
        return frechet_distance_from_features(features(to_uint8(sample(loaded(name), 500, steps))), held_out)

    flow = {steps: distance("digits-flow", steps) for steps in (1, 2, 16)}
    few = ("digits-ucgm-few", "digits-consistency", "digits-meanflow", "digits-shortcut")
    assert all(3 * distance(name, 2) < flow[2] for name in few)
    assert 5 * distance("digits-dmd", 1) < flow[1]
    assert flow[16] < distance("digits-dmd", 1) + 0.3


def to_uint8(pictures: Tensor) -> Tensor:
    levels = (8 * (pictures.clamp(-1, 1) + 1)).round()
    return (levels * 255 / 16).round().to(torch.uint8)


# --- Network ---------------------------------------------------------------------------------------------------------


def test_patches_and_images_are_inverse() -> None:
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(images(patches(x)), x)
    assert torch.equal(patches(x)[1, 0], x[0, 0, :2, 2:4].flatten())


def test_every_input_matters() -> None:
    network = loaded("digits-meanflow").network
    x, t, h, y = torch.randn(2, 1, 8, 8), torch.full((2,), 0.7), torch.full((2,), 0.3), torch.tensor([1, 2])
    plain = network(x, t, h, y)
    for other in (
        network(x + 0.1, t, h, y),
        network(x, t + 0.1, h, y),
        network(x, t, h + 0.1, y),
        network(x, t, h, 3 - y),
    ):
        assert (other - plain).abs().max() > 1e-3


# --- Objectives ------------------------------------------------------------------------------------------------------

ONE_IMAGE = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)


class OneImage(nn.Module):
    """The exact solution of every family when the data are one image: each path is a straight line to it."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor, guide: Tensor | None = None) -> Tensor:
        return (x - ONE_IMAGE) / wide(t).clamp(min=1e-6) + self.shift


class OneImageDenoiser(nn.Module):
    """The same under EDM's preconditioning: F such that D(x, sigma), or f(x, sigma), is the image."""

    def __init__(self, sigma_min: float) -> None:
        super().__init__()
        self.sigma_min = sigma_min

    def forward(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        from adapters.consistency import boundary_scalings

        sigma = LEVELS.minimum * (LEVELS.maximum / LEVELS.minimum) ** t
        c_skip, c_out, c_in = (wide(c) for c in boundary_scalings(sigma, LEVELS.data, self.sigma_min))
        return (ONE_IMAGE - c_skip * x / c_in) / c_out.clamp(min=1e-9)


def one_image_batch(count: int = 64) -> Batch:
    return Batch(ONE_IMAGE.repeat(count, 1, 1, 1), torch.arange(count) % 10)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


OBJECTIVES = {
    "flow": lambda network: objectives.rectified_flow(network, one_image_batch(), draws()),
    "ucgm multi": lambda network: objectives.ucgm_multi_step(
        network, network, one_image_batch(), draws(), enhancement=0.2
    ),
    "ucgm few": lambda network: objectives.ucgm_few_step(network, OneImage(), one_image_batch(), draws()),
    "meanflow": lambda network: objectives.mean_flow(network, one_image_batch(), draws()),
    "bifm": lambda network: objectives.bidirectional_flow(network, one_image_batch(), draws()),
    "shortcut": lambda network: objectives.shortcut(network, network, one_image_batch(), draws()),
    "split meanflow": lambda network: objectives.split_mean_flow(network, network, one_image_batch(), draws()),
    "ism": lambda network: objectives.intrinsic_shortcut(network, network, one_image_batch(), draws()),
    "scm": lambda network: distillation.continuous_consistency(
        network, OneImage(), one_image_batch(), draws(), warm_up=1.0
    ),
    "ayf": lambda network: distillation.eulerian_map(network, OneImage(), one_image_batch(), draws(), warm_up=1.0),
    "guided": lambda network: distillation.guided_distillation(network, OneImage(), one_image_batch(), draws()),
    "progressive": lambda network: distillation.progressive_distillation(
        network, OneImage(), one_image_batch(), draws(), steps=4
    ),
}


@pytest.mark.parametrize("family", OBJECTIVES)
def test_the_exact_solution_is_a_zero_of_the_objective_and_a_wrong_one_is_not(family: str) -> None:
    exact, wrong = OBJECTIVES[family](OneImage()), OBJECTIVES[family](OneImage(shift=0.3))
    assert float(exact) < 1e-3
    assert float(wrong) > 10 * float(exact) + 1e-3


def test_the_exact_denoiser_is_a_zero_of_the_diffusion_and_consistency_objectives() -> None:
    batch = one_image_batch()
    assert float(objectives.edm_diffusion(OneImageDenoiser(0.0), batch, draws())) < 1e-4
    for stage in (1, 6):
        consistent = objectives.easy_consistency(OneImageDenoiser(LEVELS.minimum), batch, draws(), stage=stage)
        plain = objectives.easy_consistency(OneImageDenoiser(0.3), batch, draws(), stage=stage)
        assert float(consistent) < 0.01 < float(plain)


def test_the_consistency_function_is_the_identity_at_sigma_min() -> None:
    network, y = recipes.RECIPES["digits-flow"].network(0), torch.zeros(2, dtype=torch.int64)
    x, sigma = torch.randn(2, 1, 8, 8), torch.full((2,), LEVELS.minimum)
    torch.testing.assert_close(consistency_function(network, x, sigma, y), x)
    assert not torch.equal(edm_denoise(network, x, sigma, y), x)


def test_meanflow_without_intervals_is_flow_matching() -> None:
    network, batch = loaded("digits-flow").network, one_image_batch()
    loss = objectives.mean_flow(network, batch, draws(), instantaneous=1.0)
    drawn = draws()
    y, z = objectives.drop_labels(batch.y, drawn), objectives.normal_like(batch.x, drawn)
    t = torch.rand(2, len(y), generator=drawn).amax(0)
    error = network(objectives.path(batch.x, z, t), t, 0 * t, y) - (z - batch.x)
    square = error.square().sum((1, 2, 3))
    torch.testing.assert_close(loss, (square / (square + 0.01)).mean())


def test_the_networks_forward_derivative_agrees_with_a_difference() -> None:
    network, y = loaded("digits-meanflow").network, torch.arange(3)
    z, v = torch.randn(2, 3, 1, 8, 8, generator=draws())
    t, h, one = torch.full((3,), 0.8), torch.full((3,), 0.5), torch.ones(3)
    _, derivative = torch.func.jvp(lambda z, t, h: network(z, t, h, y), (z, t, h), (v, one, one))
    late, early = (network(z + d * v, t + d, h + d, y) for d in (1e-2, -1e-2))
    torch.testing.assert_close(derivative, (late - early) / 2e-2, atol=2e-2, rtol=2e-2)


def test_distribution_matching_moves_the_generator_from_fake_to_real() -> None:
    generator = recipes.RECIPES["digits-flow"].network(0)
    y = torch.arange(8)

    def gradient(fake: nn.Module) -> Tensor:
        generator.zero_grad()
        distillation.distribution_matching(generator, fake, OneImage(), y, draws()).backward()
        return generator.output.bias.grad.clone()

    assert gradient(OneImage()).abs().max() < 1e-5
    # A fake score that lies too dark everywhere: brighter samples follow, that is F (subtracted) goes down.
    assert (gradient(OneImage(shift=0.5)) > 0).all()


# --- Training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> recipes.Data:
    return script.training_data()


def test_training_reads_the_training_part_at_its_seventeen_levels(data: recipes.Data) -> None:
    assert data.x.shape == (1198, 1, 8, 8)
    assert set(data.x.unique().tolist()) == {v / 8 - 1 for v in range(17)}
    assert torch.equal(data.y, load_split("train").labels)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_runs_and_repeats(name: str, data: recipes.Data) -> None:
    recipe = recipes.RECIPES[name]

    def run() -> tuple[list[float], dict[str, Tensor]]:
        losses: list[float] = []
        trained = recipe.train(data, recipe.network(0), draws(1), lambda loss: losses.append(float(loss)), iterations=2)
        return losses, trained.state_dict()

    (losses, first), (_, second) = run(), run()
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_script_writes_weights_that_an_adapter_loads(
    tmp_path: Path, data: recipes.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        recipes.RECIPES, "digits-flow-small", replace(recipes.RECIPES["digits-flow-small"], iterations=30)
    )
    script.train(["digits-flow-small"], data, 7, tmp_path, Progress(disable=True))
    adapter = DigitsFlow(CARDS["digits-flow-small"])
    adapter.load(load_file(tmp_path / "digits-flow-small.safetensors"), {})
    assert sample(adapter, 2, 1).isfinite().all()


def test_a_missing_start_is_named(tmp_path: Path, data: recipes.Data) -> None:
    with pytest.raises(BenchError, match=r"digits-meanflow starts from .*train digits-flow first"):
        script.train(["digits-meanflow"], data, 7, tmp_path, Progress(disable=True))


def test_an_unknown_model_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--only", "flw"])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 2
    assert "unknown digits model 'digits-flw': did you mean digits-flow" in capsys.readouterr().err
