from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters import autoencoders
from adapters.autoencoders import (
    VALUES_PER_PIXEL,
    AutoencoderKind,
    build_autoencoder,
    images_per_pass,
    register,
    replay,
)
from bench.contracts.recording import load_case
from bench.recordings.replay import replay_case
from results.errors import BenchError

CASE = load_case(Path(__file__).parents[1] / "golden" / "ucgm-autoencoder-kl")
KL = {"kind": "kl", "config": {key: value for key, value in CASE.architecture.items() if key != "network"}}
SMALL_SD = {
    "latent_channels": 4, "block_out_channels": (32, 32), "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip


class Negative(nn.Module):
    """A decoder of one parameter: y = -weight * latents."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, latents: Tensor) -> Tensor:
        return -self.weight * latents


@pytest.fixture
def negative() -> Iterator[None]:
    register("negative", AutoencoderKind(Negative, dict))
    yield
    del autoencoders.KINDS["negative"]


def latents(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_recorded_decoder_holds_and_uint8_is_truncated() -> None:
    results = replay_case(CASE, replay(CASE))
    assert all(result.ok for result in results), results
    assert set(results[1].compared) == {"output", "raw", "output_zero_one", "output_uint8"}


def test_no_autoencoder_is_the_identity() -> None:
    identity = build_autoencoder(None)
    samples = 3 * latents(2, 3, 4, 4)
    assert torch.equal(identity.decode(samples), samples)
    assert identity.sources() == {}
    identity.load({})


def test_decoding_in_parts_changes_nothing() -> None:
    whole, parts = build_autoencoder(KL), build_autoencoder(KL, decode_batch=1)
    for autoencoder in (whole, parts):
        autoencoder.load({"autoencoder": CASE.weights})
    samples = latents(3, 6, 4, 4)
    with torch.inference_mode():
        assert torch.allclose(whole.decode(samples), parts.decode(samples), atol=1e-5)


def test_the_decoder_sees_denormalised_latents(negative: None) -> None:
    samples = latents(2, 2, 3, 3) / 10
    facts: dict[str, Any] = {"kind": "negative", "mean": [0.1, -0.2], "std": [0.5, 2.0], "multiplier": 0.25}
    expected = samples * torch.tensor([0.5, 2.0]).view(1, 2, 1, 1) / 0.25
    expected = expected + torch.tensor([0.1, -0.2]).view(1, 2, 1, 1)
    autoencoder = build_autoencoder(facts)
    assert torch.allclose(autoencoder.raw(samples), -expected)
    assert torch.equal(autoencoder.decode(samples), autoencoder.raw(samples).clamp(-1, 1))
    zero_one = build_autoencoder({**facts, "output_range": "zero-one"})
    assert torch.allclose((zero_one.decode(samples) + 1) / 2, (-expected).clamp(0, 1), atol=1e-6)


def test_measured_statistics_come_from_their_own_file(negative: None) -> None:
    facts = {"kind": "negative", "statistics": {"format": "torch", "repo": "a/b", "file": "stat.pt"}}
    autoencoder = build_autoencoder(facts)
    assert autoencoder.sources()["statistics"].file == "stat.pt"
    weights = {"weight": torch.tensor(1.0)}
    with pytest.raises(BenchError, match="'statistics'"):
        autoencoder.load({"autoencoder": weights})
    with pytest.raises(BenchError, match="need the keys mean and std"):
        autoencoder.load({"autoencoder": weights, "statistics": {"var": torch.ones(2)}})
    statistics = {"mean": torch.full((1, 2, 1, 1), 0.5), "std": torch.full((1, 2, 1, 1), 3.0)}
    autoencoder.load({"autoencoder": weights, "statistics": statistics})
    assert torch.allclose(autoencoder.raw(torch.ones(1, 2, 1, 1)), torch.full((1, 2, 1, 1), -3.5))


def test_statistics_stay_float32_when_the_decoder_is_cast(negative: None) -> None:
    autoencoder = build_autoencoder({"kind": "negative", "mean": [5.81], "std": [4.17]}).to(torch.bfloat16)
    assert next(autoencoder.parameters()).dtype == torch.bfloat16
    assert (autoencoder.mean.dtype, autoencoder.std.dtype) == (torch.float32, torch.float32)
    assert autoencoder.mean.item() == pytest.approx(5.81, abs=1e-6)
    assert autoencoder.decode(torch.zeros(1, 1, 2, 2)).dtype == torch.float32


def test_edm2_latents_have_its_constants_and_zero_one_images() -> None:
    autoencoder = build_autoencoder({"kind": "edm2-sd-vae", "config": SMALL_SD})
    assert autoencoder.mean.flatten().tolist() == pytest.approx([5.81, 3.25, 0.12, -2.15])
    assert autoencoder.std.flatten().tolist() == pytest.approx([8.34, 9.24, 7.42, 6.56])
    assert (autoencoder.multiplier, autoencoder.output_range) == (1.0, "zero-one")


def test_sd_vae_equals_diffusers_and_reads_old_attention_names() -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    reference: Any = AutoencoderKL(**SMALL_SD).eval()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in reference.state_dict().items():
        for new, name in old.items():
            key = key.replace(f".attentions.0.{new}.", f".attentions.0.{name}.")
        state[key] = value
    autoencoder = build_autoencoder({"kind": "sd-vae-ema", "config": SMALL_SD}).eval()
    autoencoder.load({"autoencoder": state})
    samples = latents(2, 4, 4, 4) * 0.18215
    with torch.inference_mode():
        expected = reference.decode(samples / 0.18215).sample.clamp(-1, 1)
        assert torch.allclose(autoencoder.decode(samples), expected, atol=1e-6)


def test_a_damaged_autoencoder_names_what_is_missing() -> None:
    state = dict(CASE.weights) | {"encoder.conv_in.weight": torch.zeros(1), "quant_conv.weight": torch.zeros(1)}
    autoencoder = build_autoencoder(KL)
    autoencoder.load({"autoencoder": state})
    del state["decoder.conv_out.bias"]
    with pytest.raises(BenchError, match=r"missing: decoder\.conv_out\.bias"):
        autoencoder.load({"autoencoder": state})


@pytest.mark.parametrize(
    ("kind", "shape", "image", "parameters"),
    [
        ("sd-vae-ema", (4, 32, 32), 256, 49_490_199),
        ("va-vae", (32, 16, 16), 256, 41_418_659),
        ("e2e-va-vae", (32, 16, 16), 256, 41_418_659),
        ("dc-ae-f32c32", (32, 16, 16), 512, 200_184_076),
    ],
)
def test_published_autoencoders_have_their_size(kind: str, shape: tuple[int, ...], image: int, parameters: int) -> None:
    with torch.device("meta"):
        autoencoder = build_autoencoder({"kind": kind}).eval()
        assert autoencoder.decode(torch.zeros(1, *shape)).shape == (1, 3, image, image)
    assert sum(parameter.numel() for parameter in autoencoder.parameters()) == parameters


def test_a_card_may_name_another_file_and_statistics() -> None:
    mine = {"format": "torch", "repo": "me/mine", "file": "vae.pt", "tree": "ema"}
    with torch.device("meta"):
        source = build_autoencoder({"kind": "sd-vae-ema", "weights": mine}).sources()["autoencoder"]
    assert (source.repo, source.tree) == ("me/mine", "ema")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"kind": "sd-vae-emma"}, "did you mean"),
        ({"multiplier": 1.0}, "unknown autoencoder kind"),
        ({"kind": "kl", "shift": 1.0, "config": {"latent_channels": 4}}, "shift"),
        ({"kind": "kl", "output_range": "unit", "config": {"latent_channels": 4}}, "output_range"),
    ],
)
def test_a_wrong_fact_is_named_in_one_line(facts: dict[str, Any], reason: str) -> None:
    with torch.device("meta"), pytest.raises(BenchError, match=reason) as error:
        build_autoencoder(facts)
    assert "\n" not in str(error.value)


def test_a_pass_holds_a_fixed_number_of_images_and_fewer_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = 512 * 512
    assert images_per_pass(pixels, torch.float32, torch.device("cpu")) == 8
    assert images_per_pass(100 * pixels, torch.float32, torch.device("cpu")) == 1
    device, needed = torch.device("cuda"), pixels * VALUES_PER_PIXEL * 4
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: needed)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 0)
    for free, images in ((40 * needed, 8), (3 * needed, 3), (0, 1)):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device, free=free: (free, free))
        assert images_per_pass(pixels, torch.float32, device) == images
