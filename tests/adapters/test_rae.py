"""RAE: recorded behaviour, the time grid, guidance and its cost, the decoder's and encoder's conventions, the cards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from adapters.integrators import fixed_steps
from adapters.networks.ditdh import DiTDH
from adapters.networks.lightningdit import LightningBlock, feed_forward
from adapters.networks.rae_decoder import RAEDecoder
from adapters.rae import (
    DECODERS,
    RAE,
    RAESettings,
    bare_state,
    latent_statistics,
    replay,
    replay_decoder,
    time_grid,
)
from adapters.rae_encoder import RAEEncoder, replay_encoder, used_weights
from bench.contracts.adapter import load_strict
from bench.contracts.card import Guidance, ModelCard, WeightsSource
from bench.contracts.noise import PhiloxNoise
from bench.contracts.recording import Case, Replay, load_case
from bench.models.meter import Meter
from bench.recordings.replay import replay_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden"
NETWORK: dict[str, Any] = {
    "input_size": 4, "in_channels": 6, "hidden_size": [16, 24], "depth": [2, 1], "num_heads": [2, 3], "num_classes": 5,
}  # fmt: skip
WEAK = NETWORK | {"hidden_size": [8, 24], "depth": [1, 1]}
DECODER = {
    "latent_dim": 6, "num_patches": 16, "patch_size": 2, "decoder_hidden_size": 16, "decoder_intermediate_size": 24,
    "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1,
}  # fmt: skip
SHIFT = {"time_dist_shift_dim": 192, "time_dist_shift_base": 20}


def random_(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny(guide: bool = True, **options: Any) -> RAE:
    architecture = NETWORK | options | ({"guide": WEAK} if guide else {})
    kind = Guidance("autoguidance" if guide else "classifier-free")
    autoencoder = {"kind": "rae-dinov2-b", "config": DECODER, "downsample": 2}
    card = ModelCard("tiny", "rae", "tiny", 8, 5, (6, 4, 4), architecture, autoencoder=autoencoder, guidance=kind)
    adapter = RAE(replace(card, sampler={"method": kind.kind}))
    adapter.randomise(1).to("cpu")
    return adapter


def generate(adapter: RAE, steps: int = 3, cfg: float = 1.0, indices: range = range(3), **settings: Any) -> Tensor:
    plain = {"method": "classifier-free"}
    with torch.inference_mode():
        labels = torch.tensor([0, 1, 4])[list(indices)]
        return adapter.sample_latents(labels, steps, cfg, noise=PhiloxNoise(5, indices), **plain | settings)


def evaluations(adapter: RAE, steps: int = 4, cfg: float = 1.0, **settings: Any) -> tuple[float, float]:
    """Evaluations per sample of the network and of the guide."""
    meter = Meter(adapter)
    with meter.installed():
        generate(adapter, steps, cfg, **settings)
    return meter.rows / 3, meter.guide_rows / 3


@pytest.mark.parametrize(("name", "family", "calls"), [
    ("rae-ditdh", replay, 16), ("rae-decoder", replay_decoder, 3), ("rae-encoder", replay_encoder, 2),
])  # fmt: skip
def test_recorded_case_holds(name: str, family: Callable[[Case], Replay], calls: int) -> None:
    case = load_case(GOLDEN / name)
    results = replay_case(case, family(case))
    assert len(results) == calls
    assert [result for result in results if not result.ok] == []


# The time grid


@pytest.mark.parametrize(("dim", "shift", "last"), [(196608, 48**0.5, 0.0068873), (786432, 192**0.5, 0.0136804)])
def test_published_grids_start_at_one_and_stop_above_zero(dim: int, shift: float, last: float) -> None:
    for steps in (1, 49):
        times = time_grid(steps, (dim / 4096) ** 0.5)
        assert len(times) == steps + 1
        assert float(times[0]) == 1.0
        assert float(times[-1]) == pytest.approx(last, rel=1e-4)
    u = 1 - 0.999 * torch.arange(50) / 49
    assert torch.allclose(time_grid(49, shift), shift * u / (1 + (shift - 1) * u), atol=1e-6)


def test_equal_shift_numbers_leave_the_times_uniform() -> None:
    times = time_grid(4, 1.0)
    assert torch.allclose(times.diff(), torch.full((4,), -0.999 / 4))


def test_sampling_ends_at_the_last_time_of_the_grid() -> None:
    noise = PhiloxNoise(3, range(2)).normal((2,))
    seen: list[float] = []

    def data_is_zero(x: Tensor, t: float) -> Tensor:
        seen.append(t)
        return noise

    times = list(RAESettings(**SHIFT).grid(4))
    assert times == time_grid(4, (192 / 20) ** 0.5).tolist()
    x = fixed_steps(data_is_zero, noise, times)
    assert seen == times[:4]
    assert torch.allclose(x, times[-1] * noise, atol=1e-6)


def test_a_second_order_solver_asks_twice_a_step_and_errs_less_on_falling_times() -> None:
    assert evaluations(tiny(), solver="heun2") == (8, 0)
    assert evaluations(tiny(), cfg=1.5, solver="heun2", method="autoguidance") == (8, 8)

    def error(solver: str) -> float:  # dx/dt = x
        x = fixed_steps(lambda x, t: x, torch.ones(1, 1), [1.0, 0.75, 0.5, 0.25, 0.0], solver)
        return abs(x.item() - math.exp(-1))

    assert error("heun2") < error("euler") / 10


def test_both_ends_of_the_interval_are_guided() -> None:
    times = time_grid(3, 1.0)
    adapter, rows = tiny(), []
    adapter.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    generate(adapter, 3, 1.5, interval=(float(times[2]), float(times[1])))
    assert rows == [3, 6, 6]


# Guidance


def test_each_method_has_its_cost() -> None:
    adapter = tiny()
    assert evaluations(adapter) == (4, 0)
    assert evaluations(adapter, cfg=1.5) == (8, 0)
    assert evaluations(adapter, cfg=1.5, method="autoguidance") == (4, 4)
    assert evaluations(adapter, method="autoguidance") == (4, 0)
    middle: dict[str, Any] = {"interval": (0.3, 0.9)}  # uniform times 1, 0.75, 0.5, 0.25
    assert evaluations(adapter, cfg=1.5, **middle) == (6, 0)
    assert evaluations(adapter, cfg=1.5, method="autoguidance", **middle) == (4, 2)


@pytest.mark.parametrize("method", ["classifier-free", "autoguidance"])
def test_guidance_extrapolates_from_the_weaker_prediction(method: str) -> None:
    adapter = tiny()
    labels, noise = torch.tensor([0, 1, 4]), PhiloxNoise(5, range(3))
    x, ones = noise.normal((6, 4, 4)), torch.ones(3)
    with torch.inference_mode():
        strong = adapter.network(x, ones, labels)
        weak = adapter.network(x, ones, torch.full((3,), 5))
        if method == "autoguidance":
            assert adapter.guide is not None
            weak = adapter.guide(x, ones, labels)
    expected = x - 0.999 * (weak + 1.7 * (strong - weak))
    assert torch.allclose(generate(adapter, 1, 1.7, method=method), expected, atol=1e-4)
    assert (strong - weak).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["classifier-free", "autoguidance"])
def test_cfg_one_is_the_plain_model(method: str) -> None:
    adapter = tiny()
    plain = generate(adapter, cfg=1.0, method=method)
    assert (plain - generate(adapter, cfg=1.0001, method=method)).abs().max() < 0.01
    assert (plain - generate(adapter, cfg=3.0, method=method)).abs().max() > 0.01
    assert torch.equal(plain, generate(adapter, cfg=3.0, method=method, interval=(2.0, 3.0)))


@pytest.mark.parametrize("method", ["classifier-free", "autoguidance"])
def test_samples_do_not_depend_on_the_batch(method: str) -> None:
    adapter = tiny()
    whole = generate(adapter, cfg=1.5, method=method)
    parts = [generate(adapter, cfg=1.5, indices=indices, method=method) for indices in (range(1), range(1, 3))]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)


@pytest.mark.parametrize(("settings", "reason"), [
    ({"method": "cfg"}, "method must be one of classifier-free, autoguidance"),
    ({"interval": (0.5,)}, "interval must be a list of 2 numbers"),
    ({"time_dist_shift_dim": 0}, "above 0"),
    ({"steps": 0}, "at least 1"),
])  # fmt: skip
def test_impossible_settings_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(BenchError, match=reason) as caught:
        generate(tiny(), **settings)
    assert "\n" not in str(caught.value)


def test_guidance_that_the_model_cannot_give_is_refused() -> None:
    with pytest.raises(BenchError, match="no second, weaker network"):
        generate(tiny(guide=False), cfg=1.5, method="autoguidance")
    without_null = tiny(guide=False, class_dropout_prob=0.0)
    assert "null label" in str(without_null.unsupported(4, 1.5))
    assert without_null.unsupported(4, 1.0) is None
    assert tiny().unsupported(4, 1.5) is None
    generate(without_null, cfg=1.0)


# The network


def test_the_label_reaches_the_head_only_through_the_trunk() -> None:
    network = tiny(guide=False).network
    x, t, labels = random_(2, 6, 4, 4), torch.tensor([0.3, 0.8]), torch.tensor([0, 3])
    for block in network.blocks[: network.trunk_depth]:
        assert isinstance(block, LightningBlock)
        for parameter in block.adaLN_modulation.parameters():
            parameter.data.zero_()
    assert torch.equal(network(x, t, labels), network(x, t, labels + 1))
    assert not torch.equal(network(x, t, labels), network(x, t + 0.1, labels))


def test_the_head_sees_the_noisy_latent_again() -> None:
    network = tiny(guide=False).network
    x, t, labels = random_(1, 6, 4, 4), torch.tensor([0.3]), torch.tensor([0])
    before = network(x, t, labels)
    network.s_embedder.proj.weight.data.zero_()
    changed = [network(x, t, labels), network(2 * x, t, labels)]
    assert not torch.equal(before, changed[0])
    assert not torch.equal(changed[0], changed[1])


def test_the_condition_goes_through_silu_twice() -> None:
    network = tiny(guide=False).network
    conditions: list[Tensor] = []
    modulated: list[Tensor] = []
    first = network.blocks[0]
    assert isinstance(first, LightningBlock)
    first.register_forward_pre_hook(lambda module, inputs: conditions.append(inputs[1]))
    first.adaLN_modulation[1].register_forward_pre_hook(lambda module, inputs: modulated.append(inputs[0]))
    t, labels = torch.tensor([0.3, 0.8]), torch.tensor([0, 3])
    network(random_(2, 6, 4, 4), t, labels)
    e = network.t_embedder(t) + network.y_embedder(labels)
    assert torch.allclose(conditions[0][:, 0], F.silu(e))
    assert torch.allclose(modulated[0][:, 0], F.silu(F.silu(e)))


def test_time_frequencies_come_from_the_checkpoint() -> None:
    published = DiTDH(**NETWORK)
    published.t_embedder.W = random_(256, seed=9)
    adapter = tiny(guide=False)
    adapter.load(published.state_dict(), {})
    assert torch.equal(adapter.network.t_embedder.W, published.t_embedder.W)
    without = {key: value for key, value in published.state_dict().items() if key != "t_embedder.W"}
    with pytest.raises(BenchError, match=r"missing: t_embedder\.W"):
        adapter.load(without, {})


def test_time_frequencies_stay_exact_in_bfloat16() -> None:
    adapter = tiny(guide=False)
    x, t, labels = random_(2, 6, 4, 4), torch.tensor([0.31, 0.87]), torch.tensor([0, 3])
    exact, w = adapter.network(x, t, labels), adapter.network.t_embedder.W.clone()
    adapter.to("cpu", torch.bfloat16)
    assert torch.equal(adapter.network.t_embedder.W, w)
    rough = adapter.network(x, t, labels)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(("options", "keys", "missing"), [
    ({"use_qknorm": True}, {"blocks.2.attn.q_norm.weight": (8,)}, "blocks.0.attn.q_norm.bias"),
    ({"use_qknorm": True, "use_rmsnorm": False}, {"blocks.0.attn.k_norm.bias": (8,)}, "blocks.0.norm1.weight"),
    ({"use_swiglu": False}, {"blocks.0.mlp.fc1.weight": (64, 16)}, "blocks.0.mlp.w12.weight"),
    ({"use_rmsnorm": False}, {}, "final_layer.norm_final.weight"),
    ({"use_rope": False}, {"pos_embed": (1, 16, 16)}, "enc_feat_rope.freqs_cos"),
    ({"use_pos_embed": False}, {"dec_feat_rope.freqs_sin": (16, 8)}, "pos_embed"),
    ({"class_dropout_prob": 0.0}, {"y_embedder.embedding_table.weight": (5, 16)}, ""),
    ({"hidden_size": [16, 16], "num_heads": 2}, {"x_embedder.proj.weight": (16, 6, 1, 1)}, "s_projector.weight"),
    ({"patch_size": 2}, {"final_layer.linear.weight": (24, 24), "pos_embed": (1, 4, 16)}, ""),
    ({"mlp_ratio": 3.0}, {"blocks.2.mlp.w3.weight": (24, 48)}, ""),
])  # fmt: skip
def test_options_have_their_tensors(options: dict[str, Any], keys: dict[str, tuple[int, ...]], missing: str) -> None:
    network = tiny(guide=False, **options).network
    state = network.state_dict()
    assert {key: tuple(state[key].shape) for key in keys} == keys
    assert missing not in state
    x = random_(2, 6, 4, 4)
    out = network(x, torch.tensor([0.3, 0.8]), torch.tensor([0, 3]))
    assert out.shape == x.shape
    assert torch.isfinite(out).all()


def test_swiglu_widths_are_the_published_ones() -> None:
    with torch.device("meta"):
        mlps = {width: feed_forward(width) for width in (384, 1152, 2048)}
    hidden = {width: mlp.state_dict()["w3.weight"].shape[1] for width, mlp in mlps.items()}
    assert hidden == {384: 1024, 1152: 3072, 2048: 5461}


@pytest.mark.parametrize("options", [{"wo_shift": True}, {"patch_size": [2, 1]}])
def test_options_without_a_published_model_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BenchError, match=next(iter(options))):
        DiTDH(**(NETWORK | options))


# Weights


def test_training_files_are_read_from_their_ema_and_stripped_of_wrappers() -> None:
    published = DiTDH(**NETWORK).state_dict()
    adapter = tiny(guide=False)
    wrapped = {f"module._orig_mod.{key}": value for key, value in published.items()}
    adapter.load({"model": {}, "ema": wrapped}, {})  # type: ignore[dict-item]
    assert torch.equal(adapter.network.x_embedder.proj.weight, published["x_embedder.proj.weight"])
    with pytest.raises(BenchError, match="no averaged weights 'ema'"):
        adapter.load({"model": published}, {})  # type: ignore[dict-item]
    with pytest.raises(BenchError, match="no averaged weights 'ema'"):
        adapter.load({f"model/{key}": value for key, value in published.items()}, {})


def test_guide_and_statistics_of_the_card_must_be_there_and_fit() -> None:
    adapter = tiny()
    published, weak = DiTDH(**NETWORK).state_dict(), DiTDH(**WEAK).state_dict()
    source = WeightsSource("torch", repo="a/b", file="c")
    adapter.card = replace(adapter.card, extra_weights={"guide": source, "statistics": source})
    statistics = {"mean": random_(6, 4, 4), "var": random_(6, 4, 4).square()}
    adapter.load(published, {"guide": weak, "statistics": statistics})
    assert adapter.guide is not None
    assert torch.equal(adapter.guide.state_dict()["pos_embed"], weak["pos_embed"])
    assert torch.allclose(adapter.autoencoder.std[0], (statistics["var"] + 1e-5).sqrt())
    with pytest.raises(BenchError, match="'statistics'"):
        adapter.load(published, {"guide": weak})
    with pytest.raises(BenchError, match=r"weights of tiny \(guide\) do not fit"):
        adapter.load(published, {"guide": published, "statistics": statistics})
    larger = {"mean": random_(6, 8, 8), "var": random_(6, 8, 8).square()}
    with pytest.raises(BenchError, match="each resolution has statistics of its own"):
        adapter.load(published, {"guide": weak, "statistics": larger})


def test_a_missing_statistic_is_zero_or_one() -> None:
    mean, var = torch.tensor([2.0]), torch.tensor([3.0])
    assert latent_statistics({"var": var}).mean == 0
    assert latent_statistics({"mean": mean}).std == pytest.approx((1 + 1e-5) ** 0.5)
    latents = latent_statistics({"mean": mean, "var": var}).normalise(torch.tensor([5.0]))
    assert float(latents) == pytest.approx(3 / (3 + 1e-5) ** 0.5)


# Decoder and encoder


def test_decoder_output_is_taken_as_zero_to_one() -> None:
    adapter = tiny()
    latents = random_(2, 6, 4, 4)
    raw, images = adapter.autoencoder.raw(latents), adapter.decode(latents)
    assert raw.shape == (2, 3, 8, 8)
    assert raw.min() < 0 < 1 < raw.max()
    assert torch.allclose(images, 2 * raw.clamp(0, 1) - 1, atol=1e-6)


def test_pixels_are_denormalised_with_the_encoders_statistics() -> None:
    decoder = RAEDecoder(**DECODER, image_mean=(0.1, 0.2, 0.3), image_std=(2.0, 3.0, 4.0))  # type: ignore[arg-type]
    decoder.decoder_pred.weight.data.zero_()
    decoder.decoder_pred.bias.data.fill_(1.0)
    image = decoder(random_(1, 6, 4, 4))
    assert torch.allclose(image[0, :, 0, 0], torch.tensor([2.1, 3.2, 4.3]))


def test_latent_statistics_act_per_position() -> None:
    adapter = tiny()
    mean, std = random_(6, 4, 4), random_(6, 4, 4, seed=1).abs() + 0.5
    latents = random_(2, 6, 4, 4, seed=2)
    assert adapter.autoencoder.decoder is not None
    expected = adapter.autoencoder.decoder(latents * std + mean)
    adapter.autoencoder.use_statistics(mean, std)
    assert torch.allclose(adapter.autoencoder.raw(latents), expected, atol=1e-5)


@pytest.mark.parametrize("side", [2, 4, 6])
def test_the_image_keeps_its_size_whatever_the_latent_grid(side: int) -> None:
    decoder = RAEDecoder(**DECODER)  # type: ignore[arg-type]
    assert decoder(random_(1, 6, side, side)).shape == (1, 3, 8, 8)


def test_another_grid_is_resized_after_embedding() -> None:
    decoder = RAEDecoder(**DECODER).eval()  # type: ignore[arg-type]
    grid = random_(1, 6, 2, 2)
    embedded: list[Tensor] = []
    decoder.decoder_layers[0].register_forward_pre_hook(lambda module, inputs: embedded.append(inputs[0]))
    decoder(grid)
    small = decoder.decoder_embed(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    large = F.interpolate(small, size=(4, 4), mode="bilinear").flatten(2).transpose(1, 2)
    assert torch.allclose(embedded[0][:, 1:] - decoder.decoder_pos_embed[:, 1:], large, atol=1e-6)
    assert torch.equal(decoder.decoder_pos_embed[:, :1], torch.zeros(1, 1, 16))


def test_decoder_file_may_leave_out_positions_and_nothing_else() -> None:
    adapter = tiny()
    state = dict(RAEDecoder(**DECODER).state_dict())  # type: ignore[arg-type]
    positions = state.pop("decoder_pos_embed")
    adapter.autoencoder.load({"autoencoder": state})
    assert torch.equal(adapter.autoencoder.state_dict()["decoder.decoder_pos_embed"], positions)
    adapter.autoencoder.load({"autoencoder": state | {"decoder_pos_embed": positions + 1}})
    assert torch.equal(adapter.autoencoder.state_dict()["decoder.decoder_pos_embed"], positions + 1)
    del state["trainable_cls_token"]
    with pytest.raises(BenchError, match="missing: trainable_cls_token"):
        adapter.autoencoder.load({"autoencoder": state})


def test_every_published_decoder_is_an_autoencoder_kind() -> None:
    files = {kind.facts["weights"]["file"] for kind in DECODERS.values()}
    dinov2 = [f"dinov2/wReg_base/ViTXL{suffix}" for suffix in ("", "_n05", "_n08", "_n10", "_n08_i512")]
    others = ["mae/base_p16/ViTXL_n08", "siglip2/base_p16_i256/ViTXL_n08"]
    assert files == {f"decoders/{name}/model.pt" for name in [*dinov2, *others]}
    with torch.device("meta"):
        decoders = {name: RAEDecoder(**kind.facts["config"]) for name, kind in DECODERS.items()}
    assert {sum(p.numel() for p in decoder.parameters()) for decoder in decoders.values()} == {415_056_640}
    assert decoders["rae-dinov2-b-512"].decoder_pos_embed.shape == (1, 1025, 1152)
    assert DECODERS["rae-siglip2-b"].facts["config"]["image_mean"] == (0.5, 0.5, 0.5)


def test_encoder_agrees_with_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    case = load_case(GOLDEN / "rae-encoder")
    facts = case.architecture
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=facts["hidden_size"], num_hidden_layers=facts["num_hidden_layers"],
        num_attention_heads=facts["num_attention_heads"], patch_size=14, image_size=70, num_register_tokens=4,
        mlp_ratio=4,
    )  # fmt: skip
    theirs = transformers.Dinov2WithRegistersModel(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = RAEEncoder(**{key: value for key, value in facts.items() if key != "stat_eps"}).eval()
    load_strict(ours, used_weights(load_file(tmp_path / "model.safetensors")), "encoder")
    pixels = random_(2, 3, 84, 84)
    with torch.inference_mode():
        z = theirs(pixels).last_hidden_state[:, 5:]
        assert torch.allclose(ours(pixels), z, atol=2e-5)


def test_encoder_normalises_after_resizing_and_keeps_overshoots() -> None:
    encoder = RAEEncoder(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, patch_size=4, pretrained_image_size=8,
        encoder_input_size=8,
    )  # fmt: skip
    seen: list[Tensor] = []
    encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = (random_(1, 3, 6, 6) > 0).float()
    latents = encoder.encode(image, image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    assert latents.shape == (1, 8, 2, 2)
    assert seen[0].max() > 1 or seen[0].min() < 0
    assert torch.equal(seen[0], F.interpolate(image, size=(8, 8), mode="bicubic"))
    encoder.encode(seen[0], image_mean=(0.5,) * 3, image_std=(0.25,) * 3)
    assert torch.allclose(seen[1], (seen[0] - 0.5) / 0.25)


def test_bare_state_keeps_what_has_no_wrapper() -> None:
    assert list(bare_state({"a.module.b": torch.zeros(1)})) == ["a.module.b"]


def test_grid_is_strictly_decreasing() -> None:
    assert all(float(a) > float(b) for a, b in pairwise(time_grid(49, 48**0.5)))
