"""TVM, pi-Flow, GMFlow, TiM and IMM: what their recordings do not hold."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters.gmflow import GMFlow
from adapters.imm import IMM, IMMSettings
from adapters.piflow import PiFlow, PiFlowSettings
from adapters.tim import TiM
from bench.cli.output import leaderboard_table
from bench.contracts.adapter import Adapter
from bench.contracts.evaluations import Evaluations
from bench.contracts.noise import PhiloxNoise
from bench.contracts.recording import load_case, recorded_adapter
from bench.models.cards import cards, find_card
from bench.models.registry import skeleton
from bench.recordings.replay import run_case
from results.errors import BenchError
from results.rows import Row

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("tvm-a", "piflow-imagenet-a", "gmflow-imagenet-a", "tim-a", "imm-a")
CARDS = sorted(name for name, card in cards().items() if card.family in ("tvm", "piflow", "gmflow", "tim", "imm"))


def evaluations(adapter: Adapter, steps: int, cfg: float, **settings: object) -> float:
    with Evaluations(adapter.network) as counted:
        adapter.sample_latents(torch.tensor([0]), steps, cfg, noise=PhiloxNoise(1, [0]), **settings)
    return counted.rows


@pytest.mark.parametrize("name", CASES)
def test_every_recorded_call_holds_and_costs_what_upstream_spent(name: str) -> None:
    results = run_case(GOLDEN / name)
    assert [result for result in results if not result.ok] == []
    assert all("nfe_per_image" in result.compared for result in results if result.kind == "sample")


@pytest.mark.parametrize("name", CARDS)
def test_cards_state_the_parameters_of_the_network(name: str) -> None:
    network = skeleton(find_card(name)).network
    assert sum(parameter.numel() for parameter in network.parameters()) == find_card(name).parameters


def test_the_published_250_steps_of_tim_make_399_evaluations() -> None:
    adapter = recorded_adapter(load_case(GOLDEN / "tim-a"), TiM, "classifier-free")
    published = find_card("tim-xl-256")
    assert evaluations(adapter, 250, 2.5, **published.settings(250)) == 399
    assert {figure.nfe for figure in published.published} == {399}


def test_substeps_cost_no_evaluation() -> None:
    adapter = recorded_adapter(load_case(GOLDEN / "piflow-imagenet-a"), PiFlow)
    assert evaluations(adapter, 2, 1.0) == 2
    assert adapter.substeps(2, PiFlowSettings()) == 128
    assert adapter.substeps(4, PiFlowSettings(total_substeps=2)) == 4  # one a step at least


def test_gmflow_takes_guidance_below_2_and_unguided_second_order_is_the_limit() -> None:
    adapter = recorded_adapter(load_case(GOLDEN / "gmflow-imagenet-a"), GMFlow, "classifier-free")
    assert "cfg - 1" in str(adapter.unsupported(4, 2.0))
    plain, limit = (
        adapter.sample_latents(torch.tensor([3]), 4, cfg, noise=PhiloxNoise(1, [0])) for cfg in (1.0, 1.0 + 1e-5)
    )
    assert torch.allclose(plain, limit, atol=1e-3)


def test_the_pixel_model_of_imm_has_the_published_two_step_grid() -> None:
    card = find_card("imm-cifar10")
    settings = IMMSettings.checked(card.settings(2), card.name)
    assert settings.times(2, 0.994, 0.006) == [0.994, 1.4 / 2.4, 0.006]
    assert "3 steps need 2 levels" in str(settings.misfit(3, 0.994, 0.006))
    assert "falling" in str(IMMSettings(grid=[200.0]).misfit(2, 0.994, 0.006))


@pytest.mark.parametrize(
    ("name", "key", "value"), [("imm-a", "f_type", "edm"), ("imm-a", "qk_norm", True), ("tim-a", "new_condition", "r")]
)
def test_an_architecture_that_nobody_published_is_refused_in_one_line(name: str, key: str, value: object) -> None:
    case = load_case(GOLDEN / name)
    case = replace(case, spec={**case.spec, "architecture": {**case.architecture, key: value}})
    with pytest.raises(BenchError, match=key):
        recorded_adapter(case, TiM if name == "tim-a" else IMM, "classifier-free")


def test_rows_with_substeps_show_them_beside_nfe_and_others_have_no_such_column() -> None:
    cell = {
        "model": "m", "steps": 1, "cfg": 1.0, "nfe": 1.0, "failures": 0, "images_per_second": None, "sampler": "native",
        "dtype": "float32", "random_weights": False, "off_regime": False, "options": {}, "seed": 0,
    }  # fmt: skip
    headings = [
        [column.header for column in leaderboard_table([Row({**cell, "substeps": count}, {})], 200).columns]
        for count in (128, None)
    ]
    assert headings[0][4:6] == ["NFE", "substeps"] and "substeps" not in headings[1]
