"""SoFlow: recorded behaviour, the re-noising sampler, its two networks and what its front refuses."""

from __future__ import annotations

from math import cos, pi, sin
from pathlib import Path
from typing import Any

import pytest
import torch

import adapters.cards
from adapters.soflow import SoFlow, replay, soflow_sample, solve
from bench.contracts.card import ModelCard
from bench.contracts.noise import PhiloxNoise
from bench.contracts.recording import load_case
from bench.models.cards import load_card
from bench.recordings.replay import replay_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden"
CARDS = sorted(Path(adapters.cards.__path__[0]).glob("soflow-*.toml"))
DIT = {
    "network": "dit", "latent_size": 4, "in_channels": 4, "patch_size": 2, "hidden_size": 16, "depth": 1,
    "num_heads": 2, "mlp_ratio": 2, "num_classes": 3, "cfg_drop_rate": 0.1, "noising_type": "Linear",
    "coefficient_type": "Euler",
}  # fmt: skip
UNET = {
    "network": "unet", "latent_size": 8, "in_channels": 3, "model_channels": 8, "channel_mult": [1, 2],
    "num_blocks": 1, "attn_resolutions": [4], "num_classes": 10, "cfg_drop_rate": 0.0, "noising_type": "Linear",
    "coefficient_type": "Euler",
}  # fmt: skip
SIZES = {
    "soflow-b-4": 131_214_400,
    "soflow-b-4-unguided": 131_214_400 - 768,
    "soflow-b-2": 131_288_080,
    "soflow-m-2": 308_281_360,
    "soflow-l-2": 459_399_184,
    "soflow-xl-2": 676_735_504,
    "soflow-cifar10": 55_932_547,
}
"""Numbers in the published state dict, fixed tables and filters included."""


def tiny(facts: dict[str, Any], num_classes: int = 3) -> SoFlow:
    shape = (facts["in_channels"], facts["latent_size"], facts["latent_size"])
    adapter = SoFlow(ModelCard("tiny", "soflow", "tiny", shape[1], num_classes, shape, facts))
    return adapter.randomise().to("cpu")  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["soflow-dit-a", "soflow-unet-a"])
def test_recorded_case_holds(name: str) -> None:
    case = load_case(GOLDEN / name)
    results = replay_case(case, replay(case))
    assert len(results) == 6
    assert [result for result in results if not result.ok] == []


def test_every_jump_goes_to_the_data_and_noise_is_fresh() -> None:
    jumps: list[tuple[float, float]] = []
    states: list[torch.Tensor] = []

    def solution(x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        jumps.append((float(t[0]), float(s[0])))
        states.append(x)
        return torch.full_like(x, 10.0)

    noise = PhiloxNoise(0, range(2))
    out = soflow_sample(solution, noise, (1,), 4)
    assert jumps == [(1.0, 0.0), (0.75, 0.0), (0.5, 0.0), (0.25, 0.0)]
    assert torch.equal(out, torch.full((2, 1), 10.0))
    assert torch.equal(states[0], noise.normal((1,)))
    for i, state in enumerate(states[1:], start=1):
        t = 1 - i / 4
        assert torch.allclose(state, (1 - t) * 10 + t * noise.normal((1,), i))


def test_noise_is_added_by_the_noising_type() -> None:
    states: list[torch.Tensor] = []

    def solution(x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        states.append(x)
        return torch.ones_like(x)

    noise = PhiloxNoise(0, range(1))
    soflow_sample(solution, noise, (2,), 4, noising_type="Trig")
    assert torch.allclose(states[1], cos(pi * 0.375) + sin(pi * 0.375) * noise.normal((2,), 1))
    with pytest.raises(BenchError, match="unknown SoFlow noising type 'Triangular'"):
        soflow_sample(solution, noise, (2,), 4, noising_type="Triangular")


def test_solution_operator_by_coefficient_type() -> None:
    x, prediction = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    t, s = torch.tensor([0.8]), torch.tensor([0.3])
    assert float(solve(prediction, x, t, s)) == pytest.approx(2 - 0.5 * 3)
    assert float(solve(prediction, x, t, s, "Trig")) == pytest.approx(2 * cos(pi / 4) - 3 * sin(pi / 4))
    assert float(solve(prediction, x, t, t)) == 2.0


def test_second_embedder_takes_the_interval() -> None:
    adapter, seen = tiny(DIT), {}
    for name in ("t_embedder", "s_embedder"):
        adapter.network.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: seen.update({name: float(inputs[0][0])})
        )
    adapter.solution(torch.zeros(1, 4, 4, 4), torch.tensor([0.8]), torch.tensor([0.3]), torch.tensor([0]))
    assert seen == pytest.approx({"t_embedder": 0.8, "s_embedder": 0.5})


def test_one_evaluation_a_step_and_no_null_pass() -> None:
    adapter, rows = tiny(DIT), []
    adapter.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    adapter.sample_latents(torch.tensor([0, 1]), 3, 1.0, noise=PhiloxNoise(0, range(2)))
    assert rows == [2, 2, 2]


def test_guidance_is_refused() -> None:
    adapter = tiny(DIT)
    assert adapter.unsupported(2, 1.0) is None
    assert "takes none at sampling" in str(adapter.unsupported(2, 1.5))
    for call in (adapter.sample_latents, adapter.sample):
        with pytest.raises(BenchError, match="guidance trained in"):
            call(torch.tensor([0]), 2, 7.0, noise=PhiloxNoise(0, range(1)))


def test_model_without_label_dropping_has_no_null_row() -> None:
    rows = [tiny(DIT | {"cfg_drop_rate": rate}).network.y_embedder.embedding_table.weight for rate in (0.1, 0.0)]
    assert [len(table) for table in rows] == [4, 3]


def test_checkpoint_of_the_other_label_table_is_one_line() -> None:
    state = {f"network.{key}": value for key, value in tiny(DIT).network.state_dict().items()}
    with pytest.raises(BenchError, match=r"y_embedder\.embedding_table"):
        tiny(DIT | {"cfg_drop_rate": 0.0}).load(state, {})
    tiny(DIT).load(state, {})


def test_unet_reads_interleaved_attention() -> None:
    case = load_case(GOLDEN / "soflow-unet-a")
    blocked = {
        key: value.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1) if ".qkv." in key else value
        for key, value in case.weights.items()
    }
    wrong = type(case)(case.directory, case.spec, blocked, case.tensors)
    assert not any(result.ok for result in replay_case(wrong, replay(wrong)))


@pytest.mark.parametrize("facts", [DIT, UNET])
def test_samples_do_not_depend_on_the_batch(facts: dict[str, Any]) -> None:
    adapter = tiny(facts)
    labels = torch.tensor([0, 1, 2])
    with torch.inference_mode():
        whole = adapter.sample_latents(labels, 3, 1.0, noise=PhiloxNoise(1, range(3)))
        parts = [
            adapter.sample_latents(labels[list(part)], 3, 1.0, noise=PhiloxNoise(1, part))
            for part in (range(1), range(1, 3))
        ]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)


def test_unknown_network_is_named() -> None:
    with pytest.raises(BenchError, match="unknown SoFlow network 'vit'"):
        tiny(DIT | {"network": "vit"})


def test_every_published_model_has_a_card() -> None:
    assert {path.stem for path in CARDS} == set(SIZES)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card_has_the_published_size(path: Path) -> None:
    card = load_card(path)
    with torch.device("meta"):
        adapter = SoFlow(card)
    assert sum(value.numel() for value in adapter.network.state_dict().values()) == SIZES[card.name]
    assert sum(parameter.numel() for parameter in adapter.network.parameters()) == card.parameters
    assert card.guidance.kind == "none"
    assert [figure.steps for figure in card.published] == [1, 2]
