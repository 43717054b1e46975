"""Shortcut models: recorded behaviour, the flax layout, step sizes and what the front refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import adapters.cards
from adapters.shortcut import Shortcut, convert_flax, replay, shortcut_sample
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.noise import PhiloxNoise
from bench.contracts.recording import Case, load_case, recorded_adapter
from bench.models.cards import load_card
from bench.recordings.replay import replay_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden"
CARDS = sorted(Path(adapters.cards.__path__[0]).glob("shortcut-*.toml"))
ARCHITECTURE = {
    "latent_size": 4, "in_channels": 4, "patch_size": 2, "hidden_size": 16, "depth": 1, "num_heads": 2,
    "mlp_ratio": 2.0, "num_classes": 3, "ignore_dt": False, "denoise_timesteps": 128,
}  # fmt: skip
SIZES = {"shortcut-b": 131_091_728, "shortcut-celeba-b": 130_324_496, "shortcut-xl": 676_440_848}
"""Numbers in the published tree, the unused table of 256 included, the position table not."""


def tiny(num_classes: int = 3, kind: str = "classifier-free", **facts: object) -> Shortcut:
    card = ModelCard("tiny", "shortcut", "tiny", 4, num_classes, (4, 4, 4), ARCHITECTURE | facts)
    adapter = Shortcut(replace(card, guidance=Guidance(kind)))
    return adapter.randomise().to("cpu")  # type: ignore[return-value]


def recorded() -> Case:
    return load_case(GOLDEN / "shortcut-dit-a")


def holds(case: Case, call: str = "forward") -> bool:
    (result,) = [result for result in replay_case(case, replay(case)) if result.call == call]
    return result.ok


def with_weights(case: Case, weights: dict[str, torch.Tensor]) -> Case:
    return replace(case, weights=weights, spec={**case.spec, "calls": case.spec["calls"][:1]})


def test_recorded_case_holds() -> None:
    case = recorded()
    results = replay_case(case, replay(case))
    assert len(results) == 10
    assert [result for result in results if not result.ok] == []


@pytest.mark.parametrize(("first", "second"), [
    ("DiTBlock_0/Dense_1/", "DiTBlock_0/Dense_2/"),
    ("TimestepEmbedder_0/", "TimestepEmbedder_1/"),
])  # fmt: skip
def test_layers_that_could_be_swapped_are_told_apart(first: str, second: str) -> None:
    case = recorded()
    swapped = {
        path.replace(first, "*").replace(second, first).replace("*", second): array
        for path, array in case.weights.items()
    }
    assert holds(case)
    assert not holds(with_weights(case, swapped))


def test_attention_logits_are_divided_by_head_dim_without_root() -> None:
    case = recorded()
    attention = convert_flax(case.weights, heads=4)
    q, k, _ = attention["blocks.0.attn.qkv.weight"].chunk(3)
    head_dim = 16
    assert torch.allclose(q * head_dim**-0.5, case.weights["DiTBlock_0/Dense_2/kernel"].T / head_dim)
    assert torch.equal(k, case.weights["DiTBlock_0/Dense_1/kernel"].T)
    rooted = dict(case.weights)
    for leaf in ("kernel", "bias"):
        rooted[f"DiTBlock_0/Dense_2/{leaf}"] = rooted[f"DiTBlock_0/Dense_2/{leaf}"] * head_dim**0.5
    assert not holds(with_weights(case, rooted))


def test_tree_is_read_with_a_device_axis_and_without_the_unused_table() -> None:
    case = recorded()
    plain = convert_flax(case.weights, heads=4)
    stacked = {path: array[None] for path, array in case.weights.items() if path != "Embed_0/embedding"}
    converted = convert_flax(stacked, heads=4)
    assert converted.keys() == plain.keys()
    assert all(torch.equal(converted[key], plain[key]) for key in plain)


def test_incomplete_or_foreign_tree_is_one_line() -> None:
    case = recorded()
    broken = {path: array for path, array in case.weights.items() if path != "DiTBlock_1/Dense_2/kernel"}
    with pytest.raises(BenchError, match=r"missing: blocks\.1\.attn\.qkv\.weight") as caught:
        replay(with_weights(case, broken))
    assert "\n" not in str(caught.value)
    with pytest.raises(BenchError, match="unexpected: Dense_9/kernel"):
        replay(with_weights(case, {**case.weights, "Dense_9/kernel": torch.zeros(2, 2)}))


def test_euler_steps_from_noise_to_data() -> None:
    seen: list[tuple[float, float]] = []

    def velocity(x: torch.Tensor, t: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        seen.append((float(t[0]), float(d[0])))
        return torch.ones_like(x)

    out = shortcut_sample(velocity, torch.zeros(2, 1), 4, 2)
    assert seen == [(0.0, 2.0), (0.25, 2.0), (0.5, 2.0), (0.75, 2.0)]
    assert torch.equal(out, torch.ones(2, 1))


@pytest.mark.parametrize(("steps", "index"), [(1, 0), (2, 1), (32, 5), (128, 7)])
def test_step_index_is_the_logarithm_of_the_step_count(steps: int, index: int) -> None:
    adapter, seen = tiny(), set()
    adapter.network.d_embedder.register_forward_pre_hook(lambda module, inputs: seen.add(float(inputs[0][0])))
    adapter.sample_latents(torch.tensor([0]), steps, 1.0, noise=PhiloxNoise(0, range(1)))
    assert seen == {float(index)}


def test_flow_matching_baseline_is_blind_to_the_step_size() -> None:
    adapter, seen = tiny(ignore_dt=True), set()
    adapter.network.d_embedder.register_forward_pre_hook(lambda module, inputs: seen.add(float(inputs[0][0])))
    adapter.sample_latents(torch.tensor([0]), 25, 1.0, noise=PhiloxNoise(0, range(1)))
    assert seen == {0.0}
    assert adapter.unsupported(25, 1.5) is None


@pytest.mark.parametrize("steps", [3, 25, 100, 256])
def test_untrained_step_sizes_are_refused(steps: int) -> None:
    adapter = tiny()
    assert "powers of two up to 128" in str(adapter.unsupported(steps, 1.0))
    with pytest.raises(BenchError, match="powers of two"):
        adapter.sample(torch.tensor([0]), steps, 1.0, noise=PhiloxNoise(0, range(1)))


def test_guidance_is_taken_at_128_steps_only() -> None:
    adapter = tiny()
    assert adapter.unsupported(128, 1.5) is None
    assert adapter.unsupported(64, 1.0) is None
    assert "guidance at 128 steps only" in str(adapter.unsupported(64, 1.5))


@pytest.mark.parametrize(("cfg", "expected"), [(1.0, 2), (0.0, 2), (1.5, 4)])
def test_only_guidance_costs_a_second_pass(cfg: float, expected: int) -> None:
    adapter, rows = tiny(), []
    adapter.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    adapter.integrate(torch.zeros(1, 4, 4, 4), torch.tensor([0]), 2, cfg, 1)
    assert sum(rows) == expected


def test_unconditional_model_takes_the_null_label() -> None:
    adapter, seen = tiny(num_classes=0, kind="none"), []
    adapter.network.y_embedder.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0].tolist()))
    adapter.sample(torch.zeros(2, dtype=torch.int64), 1, 1.0, noise=PhiloxNoise(0, range(2)))
    assert seen == [3, 3]
    assert "no guidance" in str(adapter.unsupported(128, 1.5))


def test_samples_do_not_depend_on_the_batch() -> None:
    adapter, labels = tiny(), torch.tensor([0, 1, 2])
    with torch.inference_mode():
        whole = adapter.sample_latents(labels, 4, 1.0, noise=PhiloxNoise(1, range(3)))
        parts = [
            adapter.sample_latents(labels[list(part)], 4, 1.0, noise=PhiloxNoise(1, part))
            for part in (range(1), range(1, 3))
        ]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)


def test_every_published_model_has_a_card() -> None:
    assert {path.stem for path in CARDS} == set(SIZES)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card_has_the_published_size(path: Path) -> None:
    card = load_card(path)
    with torch.device("meta"):
        adapter = Shortcut(card)
    trained = sum(parameter.numel() for parameter in adapter.network.parameters())
    assert trained == card.parameters
    assert trained + 256 == SIZES[card.name]
    assert all(adapter.unsupported(steps, 1.0) is None for steps in card.supported_steps or ())
    assert adapter.unsupported(card.natural_steps, card.guidance.natural) is None
    assert card.weights is not None
    assert card.weights.tree == "train_state/params_ema"


def test_celeba_has_one_class_and_the_null_label() -> None:
    card = load_card(next(path for path in CARDS if "celeba" in path.name))
    assert (card.num_classes, card.architecture["num_classes"], card.guidance.kind) == (0, 1, "none")


@pytest.mark.parametrize(("kind", "steps", "index"), [("livereflow", 4, 0), ("livereflow", 128, 7), ("naive", 4, 7)])
def test_a_recorded_objective_says_which_step_index_is_told(kind: str, steps: int, index: int) -> None:
    case = recorded()
    call = next(call for call in case.spec["calls"] if call["kind"] == "sample") | {"steps": steps}
    named, told = ({**call, "options": options} for options in ({"train_type": kind}, {"dt_index": index}))
    with torch.inference_mode():
        assert torch.equal(replay(case)(named)["output"], replay(case)(told)["output"])
    with pytest.raises(BenchError, match=r"unknown train_type of shortcut-dit-a 'naiv'.*naive"):
        replay(case)({**call, "options": {"train_type": "naiv"}})


def test_a_recorded_consistency_model_jumps_to_the_data_and_takes_fresh_noise() -> None:
    case = recorded()
    call = next(call for call in case.spec["calls"] if call["kind"] == "sample")
    noise, labels = case.tensors[call["noise"]], case.tensors[call["labels"]]
    fresh = torch.randn(2, *noise.shape, generator=torch.Generator().manual_seed(0))
    case.tensors["fresh"] = fresh  # type: ignore[index]
    network = recorded_adapter(case, Shortcut).velocity
    full = lambda value: torch.full((len(noise),), float(value))  # noqa: E731
    with torch.inference_mode():
        options = {"train_type": "consistency"}
        found = replay(case)({**call, "steps": 3, "injected": "fresh", "options": options})["output"]
        x = noise
        for i in range(3):
            t, then = i / 3, (i + 1) / 3
            x = then * (x + (1 - t) * network(x, full(t), full(1), labels)) + (1 - then) * (fresh[i] if i < 2 else 0)
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)


def test_queries_in_half_precision_are_scaled_in_full() -> None:
    case = recorded()
    half = {key: value.half() for key, value in case.weights.items()}
    found, exact = (convert_flax(state, 6) for state in (half, {key: value.float() for key, value in half.items()}))
    assert all(torch.equal(found[key].float(), exact[key]) for key in exact)
