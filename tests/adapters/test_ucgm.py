from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.guidance import combine
from adapters.transports import TRANSPORTS, kumaraswamy, time_grid
from adapters.ucgm import UCGM, UNI, UCGMSettings, replay, trajectory, uni_sample
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.noise import NoiseSource, PhiloxNoise, RecordedNoise
from bench.contracts.recording import load_case
from bench.recordings.replay import replay_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.name for path in GOLDEN.glob("ucgm-*") if path.name != "ucgm-autoencoder-kl")
TRANSFORMER = {"input_size": 4, "patch_size": 2, "in_channels": 5, "hidden_size": 16}
TINY = {
    "TiT": {**TRANSFORMER, "depth": 2, "num_heads": 2},
    "SiT": {**TRANSFORMER, "depth": 2, "num_heads": 2},
    "LightningDiT": {**TRANSFORMER, "depth": 2, "num_heads": 2},
    "DDT": {**TRANSFORMER, "num_blocks": 3, "num_encoder_blocks": 2, "num_groups": 2},
    "EDM2": {
        "input_size": 4, "in_channels": 5, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1,
        "attn_resolutions": [2], "channels_per_head": 8,
    },
}  # fmt: skip
SHAPE = (5, 4, 4)


class Draws(NoiseSource):
    """Philox noise that remembers which draws were asked for."""

    def __init__(self, batch: int = 2) -> None:
        self.source = PhiloxNoise(0, range(batch))
        self.asked: list[int] = []

    def normal(self, shape: object, draw: int = 0) -> Tensor:
        self.asked.append(draw)
        return self.source.normal(shape, draw)  # type: ignore[arg-type]


def tiny(network: str) -> UCGM:
    card = ModelCard(
        name=f"tiny-{network}", family="ucgm", title="", resolution=4, num_classes=7, latent_shape=SHAPE,
        architecture={"network": network, **TINY[network]}, guidance=Guidance("classifier-free"),
    )  # fmt: skip
    adapter = UCGM(card)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return adapter


def evaluations(adapter: UCGM, labels: Tensor, steps: int, cfg: float, **settings: object) -> tuple[Tensor, float]:
    rows = 0

    def count(_: object, arguments: tuple[Tensor, ...]) -> None:
        nonlocal rows
        rows += len(arguments[0])

    handle = adapter.network.register_forward_pre_hook(count)
    sample = adapter.sample(labels, steps, cfg, noise=PhiloxNoise(0, range(len(labels))), **settings)
    handle.remove()
    return sample, rows / len(labels)


@pytest.mark.parametrize("name", CASES)
def test_recorded_calls_hold(name: str) -> None:
    case = load_case(GOLDEN / name)
    for result in replay_case(case, replay(case)):
        assert result.ok, result
        if result.kind == "sample":
            assert {"output", "trajectory", "times", "nfe_per_image"} <= set(result.compared)


@pytest.mark.parametrize("network", ["TiT", "SiT", "LightningDiT"])
def test_one_class_means_no_label_table(network: str) -> None:
    adapter = UCGM(replace(tiny(network).card, num_classes=1))
    assert not any(key.startswith("y_embedder") for key in adapter.network.state_dict())
    images = adapter.randomise().sample(torch.zeros(2, dtype=torch.int64), 3, 1.5, noise=PhiloxNoise(0, range(2)))
    assert images.shape == (2, *SHAPE) and images.isfinite().all()


def test_the_cases_cover_every_network_and_transport() -> None:
    assert len(CASES) == 7
    transports = load_case(GOLDEN / "ucgm-transports").spec["calls"]
    assert {call["options"]["transport"] for call in transports if "options" in call} == set(TRANSPORTS)


def test_the_result_is_the_raw_data_estimate_of_the_last_evaluation() -> None:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        F = torch.sin(3 * x) + t[:, None]
        seen.append((x, t, F))
        return F

    noise = RecordedNoise(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))
    sample = uni_sample(predict, noise, (6,), 5, UNI(extrapol_ratio=0.7, rfba_gap_steps=(0.001, 0.2)))
    x, t, F = seen[-1]
    assert len(seen) == 5
    assert torch.equal(sample, x - t[:, None] * F)
    assert sample.dtype == torch.float32


def test_noise_lies_at_time_zero_under_relinear_only() -> None:
    for name, transport in TRANSPORTS.items():
        times = time_grid(transport, 4, (0.001, 0.001))
        assert (times[0] < 0.01) == (name == "ReLinear")
        start, end = transport.at(times[0]), transport.at(times[-1])
        assert start.alpha > 0.99
        assert start.gamma < 0.02
        assert end.gamma > 0.99


def test_the_warp_moves_the_first_time_off_the_gap() -> None:
    times = time_grid(TRANSPORTS["Linear"], 40, (0.001, 0.001), (1.17, 0.8, 1.1))
    assert times[0] == pytest.approx(0.99989, abs=1e-5)
    assert times[-1] == pytest.approx(0.00496, abs=1e-5)
    u = torch.linspace(0, 1, 5)
    assert torch.equal(kumaraswamy(u, (1.0, 1.0, 1.0)), u)


def test_an_end_gap_of_exactly_zero_leaves_the_last_point_out() -> None:
    linear = TRANSPORTS["Linear"]
    assert time_grid(linear, 4, (0.0, 0.0)) == [1.0, 0.75, 0.5, 0.25]
    assert time_grid(linear, 2, (0.0, 0.5)) == [1.0, 0.5]
    assert time_grid(linear, 1, (0.25, 0.5)) == [0.75]


@pytest.mark.parametrize(
    ("steps", "ratio", "order", "asked"),
    [(4, 0.0, 1, [0]), (4, 1.0, 1, [0, 1, 2, 3]), (1, 1.0, 1, [0]), (7, 0.5, 2, [0, 1, 2, 3])],
)
def test_draw_zero_is_the_start_and_each_step_has_its_own_draw(
    steps: int, ratio: float, order: int, asked: list[int]
) -> None:
    draws = Draws()
    settings = UNI(stochast_ratio=ratio, sampling_order=order, rfba_gap_steps=(0.05, 0.05))
    uni_sample(lambda x, t: x, draws, SHAPE, steps, settings)
    assert draws.asked == asked


@pytest.mark.parametrize(
    ("steps", "order", "end_gap", "expected"), [(40, 2, 0.01, 39), (9, 2, 0.01, 9), (8, 2, 0.01, 7), (8, 2, 0.0, 8)]
)
def test_the_second_order_costs_what_upstream_pays(steps: int, order: int, end_gap: float, expected: int) -> None:
    times: list[float] = []

    def predict_at(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return x

    settings = UCGMSettings(sampling_order=order, rfba_gap_steps=(0.05, end_gap))
    estimates = list(trajectory(predict_at, PhiloxNoise(0, [0]), SHAPE, steps, settings))
    assert len(times) == expected
    assert len(estimates) == (steps + 1) // 2
    assert (times[-1] == 0.0) == (end_gap == 0.0)


def test_the_plain_ode_is_uni_with_equal_gaps() -> None:
    noise = PhiloxNoise(0, [0, 1])
    field = lambda x, t: torch.tanh(x) * (1 + t)  # noqa: E731
    for method, order in (("Euler", 1), ("Heun", 2)):
        plain = UCGMSettings(sampler="uniode", sampling_method=method, eta=0.04)
        ode = list(trajectory(field, noise, SHAPE, 9, plain))
        equal = UCGMSettings(sampling_order=order, rfba_gap_steps=(0.04, 0.04))
        uni = list(trajectory(field, noise, SHAPE, 9, equal))
        assert torch.equal(ode[-1], uni[-1])


@pytest.mark.parametrize("network", list(TINY))
def test_cfg_one_is_no_guidance_and_costs_nothing(network: str) -> None:
    adapter, labels = tiny(network), torch.tensor([1, 3])
    plain, cost = evaluations(adapter, labels, 3, 1.0)
    guided, guided_cost = evaluations(adapter, labels, 3, 2.0)
    assert (cost, guided_cost) == (3, 6)
    model = adapter.guided(labels, 2.0, UCGMSettings())
    formula = lambda x, t: combine(*model.both(x, t), 1.0, model.channels)  # noqa: E731
    at_one = trajectory(formula, PhiloxNoise(0, [0, 1]), SHAPE, 3, UCGMSettings())
    assert torch.allclose(plain, list(at_one)[-1], atol=2e-4)
    assert not torch.allclose(plain, guided, atol=1e-3)


def test_guidance_acts_inside_its_interval_with_both_ends() -> None:
    adapter, labels = tiny("SiT"), torch.tensor([1, 3])
    grid = {"rfba_gap_steps": (0.0, 0.0)}
    for interval, cost in (((0.0, 0.2), 4), ((0.25, 0.5), 6), ((0.5, 0.5), 5), ((0.0, 1.0), 8)):
        assert evaluations(adapter, labels, 4, 3.0, guidance_interval=interval, **grid)[1] == cost
    # The float32 time 0.3 lies above the number 0.3, and is still inside [0, 0.3].
    settings = {"rfba_gap_steps": (0.0, 0.3), "guidance_interval": (0.0, 0.3)}
    assert evaluations(adapter, labels, 2, 3.0, **settings)[1] == 3


def test_lightningdit_guides_three_channels_only() -> None:
    adapter, labels = tiny("LightningDiT"), torch.tensor([1, 3])
    plain, _ = evaluations(adapter, labels, 1, 1.0, transport="ReLinear")
    guided, _ = evaluations(adapter, labels, 1, 6.7, transport="ReLinear")
    everywhere, _ = evaluations(adapter, labels, 1, 6.7, transport="ReLinear", guided_channels=5)
    assert torch.allclose(plain[:, 3:], guided[:, 3:], atol=1e-5)
    assert (plain[:, :3] - guided[:, :3]).abs().max() > 1e-2
    assert (plain[:, 3:] - everywhere[:, 3:]).abs().max() > 1e-2
    other, _ = evaluations(tiny("TiT"), labels, 1, 6.7)
    assert (other - evaluations(tiny("TiT"), labels, 1, 1.0)[0])[:, 3:].abs().max() > 1e-2


def test_edm2_without_labels_skips_the_label_branch() -> None:
    network = tiny("EDM2").network
    x, t = PhiloxNoise(0, [0, 1]).normal(SHAPE), torch.tensor([0.1, 0.2])
    skipped, zero = network(x, t, None), network(x, t, torch.zeros(2, 7))
    assert not torch.allclose(skipped, zero, atol=1e-3)
    one_hot = torch.eye(7)[[2, 5]]
    assert torch.equal(network(x, t, torch.tensor([2, 5])), network(x, t, one_hot))


def test_edm2_loads_the_official_names_and_drops_the_training_head() -> None:
    adapter, fresh = tiny("EDM2"), tiny("EDM2")
    official = {f"unet.{key}": value + 1 for key, value in adapter.network.state_dict().items()}
    official |= {"logvar_fourier.freqs": torch.zeros(3), "logvar_linear.weight": torch.zeros(1, 3)}
    fresh.load(official, {})
    assert torch.equal(fresh.network.out_conv.weight, adapter.network.out_conv.weight + 1)  # type: ignore[union-attr,operator]


def test_the_checkpoint_of_another_variant_is_refused_by_name() -> None:
    with pytest.raises(BenchError, match=r"unexpected: .*norm1\.weight"):
        tiny("TiT").load(tiny("LightningDiT").network.state_dict(), {})


@pytest.mark.parametrize("network", list(TINY))
def test_a_sample_does_not_depend_on_its_batch(network: str) -> None:
    adapter, labels = tiny(network), torch.tensor([1, 3, 0])
    settings = {"stochast_ratio": 0.5, "extrapol_ratio": 0.3, "rfba_gap_steps": (0.001, 0.1)}
    whole = adapter.sample(labels, 4, 1.5, noise=PhiloxNoise(3, [4, 5, 6]), **settings)
    parts = [adapter.sample(labels[i : i + 1], 4, 1.5, noise=PhiloxNoise(3, [4 + i]), **settings) for i in range(3)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("network", list(TINY))
def test_bfloat16_keeps_float32_outside_and_tables_exact(network: str) -> None:
    adapter = tiny(network)
    x, t, labels = PhiloxNoise(0, [0, 1]).normal(SHAPE), torch.tensor([0.1, 0.9]), torch.tensor([1, 3])
    exact = adapter.evaluate(x, t, labels)
    tables = {key: table.clone() for key, table in adapter.network.named_buffers() if key != "pos_embed"}
    adapter.to("cpu", torch.bfloat16)
    rough = adapter.evaluate(x, t, labels)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.05 * exact.norm()
    for key, table in adapter.network.named_buffers():
        if key != "pos_embed":
            assert torch.equal(table, tables[key])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"transport": "linear"}, "did you mean Linear"),
        ({"stochast_ratio": 1.5}, "stochast_ratio"),
        ({"stochast_ratio": "auto"}, "Auto"),
        ({"sampling_order": 3}, "sampling_order"),
        ({"rfba_gap_steps": (0.0, 1.0)}, "rfba_gap_steps"),
        ({"time_dist_ctrl": (1.0, 1.0)}, "time_dist_ctrl"),
        ({"sampling_order": 2, "rfba_gap_steps": (0.0, 0.1)}, "start above 0"),
        ({"sampler": "uniode", "sampling_method": "euler"}, "Euler"),
        ({"sampler": "ode"}, "sampler must be one of uni, uniode"),
        ({"steps_ratio": 1}, "unknown sampler setting"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_line(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(BenchError, match=reason) as error:
        tiny("TiT").sample(torch.tensor([0]), 4, 1.0, noise=PhiloxNoise(0, [0]), **settings)
    assert "\n" not in str(error.value)


def test_the_automatic_ratio_follows_its_formula_and_stays_finite() -> None:
    noise, field = PhiloxNoise(0, [0]), lambda x, t: torch.tanh(x)
    auto = uni_sample(field, noise, SHAPE, 4, UNI(stochast_ratio="Auto"))
    t0, t1 = time_grid(TRANSPORTS["Linear"], 4, (0.001, 0.001))[:2]
    ratio = min(2 * abs(t1 - t0) * t0 / t1**2, 1.0)
    assert torch.allclose(auto, uni_sample(field, noise, SHAPE, 4, UNI(stochast_ratio=ratio)), atol=1e-6)
    one = uni_sample(field, noise, SHAPE, 1, UNI(stochast_ratio="Auto"))
    assert torch.equal(one, uni_sample(field, noise, SHAPE, 1))
