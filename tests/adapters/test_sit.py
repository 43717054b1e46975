"""SiT: recorded behaviour, solvers, interpolants, guidance and what its front refuses."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import adapters.cards
from adapters.integrators import Flow, ode_sample, sde_sample
from adapters.interpolants import PATHS, Interpolant
from adapters.sit import SiT, SiTNetwork, replay
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.noise import PhiloxNoise
from bench.contracts.recording import load_case
from bench.models.cards import load_card
from bench.recordings.replay import replay_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden"
CARD = Path(adapters.cards.__path__[0]) / "sit-xl.toml"
ARCHITECTURE = {
    "latent_size": 4, "in_channels": 4, "patch_size": 2, "hidden_size": 16, "depth": 1, "num_heads": 2,
    "mlp_ratio": 2.0, "num_classes": 3, "learn_sigma": True,
}  # fmt: skip


def tiny(seed: int = 0) -> SiT:
    guidance = Guidance("classifier-free")
    card = ModelCard("tiny", "sit", "tiny", 4, 3, (4, 4, 4), ARCHITECTURE, guidance=guidance)
    adapter = SiT(card)
    return adapter.randomise(seed).to("cpu")  # type: ignore[return-value]


def generate(adapter: SiT, steps: int, cfg: float = 1.0, indices: range = range(3), **settings: object) -> torch.Tensor:
    labels = torch.tensor([0, 1, 2])[list(indices)]
    with torch.inference_mode():
        return adapter.sample_latents(labels, steps, cfg, noise=PhiloxNoise(5, indices), **settings)


def evaluations(adapter: SiT, *arguments: object, **settings: object) -> float:
    """Network evaluations per sample of `generate`, counted by batch rows."""
    rows = []
    handle = adapter.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    generate(adapter, *arguments, **settings)  # type: ignore[arg-type]
    handle.remove()
    return sum(rows) / 3


def test_recorded_case_holds() -> None:
    case = load_case(GOLDEN / "sit-a")
    results = [result for result in replay_case(case, replay(case)) if not result.optional]
    assert len(results) == 30
    assert [result for result in results if not result.ok] == []


def test_recorded_adaptive_calls_hold_with_torchdiffeq() -> None:
    pytest.importorskip("torchdiffeq")
    case = load_case(GOLDEN / "sit-a")
    results = [result for result in replay_case(case, replay(case)) if result.optional]
    assert len(results) == 2
    assert all(result.ok for result in results)


@pytest.mark.parametrize(("solver", "order", "calls"), [
    ("euler", 1, 1), ("midpoint", 2, 2), ("heun2", 2, 2), ("heun3", 3, 3), ("rk4", 4, 4),
])  # fmt: skip
def test_fixed_step_solver_has_its_order_and_its_evaluations(solver: str, order: int, calls: int) -> None:
    times: list[float] = []

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times.append(float(t[0]))
        return -2 * t[:, None] * x

    def error(steps: int) -> float:
        x = ode_sample(velocity, torch.ones(2, 1, dtype=torch.float64), torch.linspace(0, 1, steps + 1), solver)
        return abs(float(x[0]) - 0.36787944117144233)

    ratio = error(4) / error(8)
    assert len(times) == 12 * calls
    assert 0.7 * 2**order < ratio < 1.9 * 2**order


def test_rk4_is_the_three_eighths_rule() -> None:
    times: list[float] = []
    ode_sample(lambda x, t: (times.append(float(t[0])), x)[1], torch.ones(1, 1), [0.0, 1.0], "rk4")
    assert times == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_steps_count_evaluations_not_grid_points() -> None:
    adapter = tiny()
    assert evaluations(adapter, 1) == 1
    assert evaluations(adapter, 4) == 4
    assert evaluations(adapter, 4, solver="heun2") == 8
    assert evaluations(adapter, 4, 2.0) == 8


def test_dopri5_is_adaptive_whatever_the_steps() -> None:
    pytest.importorskip("torchdiffeq")
    adapter = tiny()
    counts = [evaluations(adapter, steps, solver="dopri5") for steps in (2, 50)]
    assert counts[0] == counts[1] > 2
    assert torch.equal(generate(adapter, 2, solver="dopri5"), generate(adapter, 50, solver="dopri5"))


def test_dopri5_without_torchdiffeq_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(BenchError, match=r"fewstep-bench\[ode\]") as caught:
        generate(tiny(), 4, solver="dopri5")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("settings", "expected"), [
    ({"solver": "euler"}, 4),
    ({"solver": "euler", "last_step": "none"}, 3),
    ({"solver": "heun"}, 7),
    ({"solver": "heun", "last_step": "none", "path_type": "GVP"}, 6),
])  # fmt: skip
def test_sde_steps_count_unique_evaluations(settings: dict[str, object], expected: int) -> None:
    assert evaluations(tiny(), 4, mode="SDE", **settings) == expected
    assert evaluations(tiny(), 4, 1.5, mode="SDE", **settings) == 2 * expected


@pytest.mark.parametrize("form", ["sigma", "linear", "decreasing", "increasing-decreasing", "constant"])
@pytest.mark.parametrize("path_type", PATHS)
def test_every_diffusion_form_gives_finite_samples(form: str, path_type: str) -> None:
    settings = {"mode": "SDE", "diffusion_form": form, "path_type": path_type}
    assert torch.isfinite(generate(tiny(), 3, **settings)).all()


def test_sde_last_step_has_a_fixed_size() -> None:
    times: list[float] = []
    adapter = tiny()
    adapter.network.register_forward_pre_hook(lambda module, inputs: times.append(float(inputs[1][0])))
    generate(adapter, 2, mode="SDE")
    generate(adapter, 3, mode="SDE")
    assert times == pytest.approx([0, 0.96, 0, 0.48, 0.96])


def test_euler_maruyama_takes_draw_k_at_update_k() -> None:
    draws = []

    def draw(k: int) -> torch.Tensor:
        draws.append(k)
        return torch.full((1, 1), float(k))

    def still(x: torch.Tensor, t: torch.Tensor) -> Flow:
        return Flow(torch.zeros_like(x), torch.zeros_like(x))

    x = sde_sample(still, torch.zeros(1, 1), draw, [0.0, 0.25, 0.5], lambda t: torch.full_like(t, 2.0))
    assert draws == [1, 2]
    assert float(x) == pytest.approx((1 + 2) * (2 * 2) ** 0.5 * 0.25**0.5)


@pytest.mark.parametrize("path_type", PATHS)
def test_predictions_stand_for_the_same_velocity_and_score(path_type: str) -> None:
    data, noise = torch.tensor([[0.7, -1.2]], dtype=torch.float64), torch.tensor([[-0.4, 0.9]], dtype=torch.float64)
    path = PATHS[path_type]
    t = torch.tensor([[0.37]], dtype=torch.float64)
    before, x, after = (path.alpha(t + h) * data + path.sigma(t + h) * noise for h in (-1e-5, 0.0, 1e-5))
    velocity = (after - before) / 2e-5
    predictions = {"velocity": velocity, "score": -noise / path.sigma(t), "noise": noise}
    for name, prediction in predictions.items():
        interpolant = Interpolant(path_type, name)
        assert torch.allclose(interpolant.velocity(prediction, x, t), velocity)
        assert torch.allclose(interpolant.score(prediction, x, t), predictions["score"])


def test_intervals_avoid_the_singular_ends() -> None:
    assert Interpolant("Linear", "velocity").interval() == (0.0, 1.0)
    assert Interpolant("GVP", "noise").interval() == (0.001, 0.999)
    assert Interpolant("VP", "velocity").interval() == (0.0, 0.999)
    assert Interpolant("Linear", "score").interval(0.04) == (0.001, 0.96)


def test_guidance_acts_on_three_of_four_channels() -> None:
    adapter, x, t, y = (
        tiny(),
        torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0.2, 0.6]),
        torch.tensor([0, 2]),
    )
    c = adapter.network(x, t, y)
    u = adapter.network(x, t, torch.full_like(y, 3))
    guided = adapter.guided(y, 3.0, channels=3)(x, t)
    assert torch.allclose(guided[:, :3], u[:, :3] + 3 * (c - u)[:, :3], atol=1e-3)
    assert torch.allclose(guided[:, 3:], c[:, 3:], atol=1e-4)
    every = adapter.guided(y, 3.0, channels=4)(x, t)
    assert torch.allclose(every, u + 3 * (c - u), atol=1e-3)
    three, four = (generate(adapter, 2, 3.0, guidance_channels=n) for n in (3, 4))
    assert (three - four).abs().max() > 1e-3


def test_cfg_one_is_the_conditional_model_in_one_pass() -> None:
    adapter = tiny()
    assert evaluations(adapter, 3, 1.0) == 3
    assert (generate(adapter, 3, 1.0) - generate(adapter, 3, 1.001)).abs().max() < 0.01
    assert (generate(adapter, 3, 1.0) - generate(adapter, 3, 3.0)).abs().max() > 0.01


@pytest.mark.parametrize("settings", [{}, {"mode": "SDE"}, {"mode": "SDE", "solver": "heun", "last_step": "Tweedie"}])
def test_samples_do_not_depend_on_the_batch(settings: dict[str, object]) -> None:
    adapter = tiny()
    whole = generate(adapter, 3, 1.5, **settings)
    parts = [generate(adapter, 3, 1.5, indices, **settings) for indices in (range(1), range(1, 3))]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("on_card", [True, False])
def test_sigma_channels_are_decided_from_the_file(in_file: bool, on_card: bool) -> None:
    published = SiTNetwork(ARCHITECTURE, learn_sigma=in_file).eval()
    adapter = tiny()
    adapter.card = replace(adapter.card, architecture={**ARCHITECTURE, "learn_sigma": on_card})
    adapter.load(published.state_dict(), {})
    x, t, y = torch.randn(1, 4, 4, 4), torch.tensor([0.5]), torch.tensor([1])
    assert torch.equal(adapter.network(x, t, y), published(x, t, y))
    assert adapter.network(x, t, y).shape == (1, 4, 4, 4)


def test_training_files_are_read_from_their_ema() -> None:
    model, ema = (SiTNetwork(ARCHITECTURE, learn_sigma=True).state_dict() for _ in range(2))
    adapter = tiny()
    adapter.load({"model": model, "ema": ema}, {})  # type: ignore[dict-item]
    assert torch.equal(adapter.network.x_embedder.proj.weight, ema["x_embedder.proj.weight"])


def test_checkpoint_of_another_size_is_one_line() -> None:
    other = SiTNetwork({**ARCHITECTURE, "hidden_size": 32}, learn_sigma=True).state_dict()
    with pytest.raises(BenchError, match=r"wrong shape: .*pos_embed") as caught:
        tiny().load(other, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("settings", "steps", "reason"), [
    ({"mode": "SDE", "diffusion_form": "SBDM"}, 4, "infinite at t = 0"),
    ({"mode": "SDE"}, 1, "2 or more steps"),
    ({"mode": "SDE", "solver": "heun", "last_step": "none"}, 4, "infinite on the Linear path; use solver=euler"),
    ({"mode": "PDE"}, 4, "mode must be one of ODE, SDE, found 'PDE'"),
    ({"solver": "eulr"}, 4, "did you mean euler"),
    ({"mode": "SDE", "solver": "rk4"}, 4, "unknown SDE solver"),
    ({"path_type": "linear"}, 4, "did you mean Linear"),
    ({"prediction": "data"}, 4, "prediction must be one of velocity, score, noise"),
    ({"mode": "SDE", "diffusion_form": "beta"}, 4, "diffusion_form must be one of sigma, linear"),
    ({"mode": "SDE", "last_step": "mean"}, 4, "last_step must be .*did you mean Mean"),
])  # fmt: skip
def test_impossible_settings_are_refused(settings: dict[str, object], steps: int, reason: str) -> None:
    with pytest.raises(BenchError, match=reason):
        generate(tiny(), steps, **settings)


def test_card_has_the_published_size_and_settings() -> None:
    card = load_card(CARD)
    with torch.device("meta"):
        adapter = SiT(card)
    trained = sum(parameter.numel() for parameter in adapter.network.parameters())
    assert trained == card.parameters
    assert trained + adapter.network.pos_embed.numel() == 675_129_632
    assert len(adapter.network.state_dict()) == 292
    assert adapter.resolve_settings(250).mode == "SDE"
    assert adapter.resolve_settings(249).mode == adapter.resolve_settings(250, "plain").mode == "ODE"
    assert adapter.unsupported(1, 1.5) is None
