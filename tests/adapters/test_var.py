"""VAR beside its recording: ties between convolutions, draws, refusals, operations, the published files' keys."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters.autoencoders import build_autoencoder
from adapters.networks.var import ResidualQuantiser, VARTransformer
from adapters.var import VAR, decoder_state, drawn, limited
from bench.contracts.noise import PhiloxNoise
from bench.models.cards import cards, find_card
from bench.models.meter import Meter
from bench.models.registry import skeleton
from bench.recordings.replay import run_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_recording_holds():
    results = list(run_case(GOLDEN / "var-a"))
    assert len(results) == 7 and all(result.ok for result in results), results


@pytest.mark.parametrize(
    ("share", "scales", "expected"),
    [
        (4, 10, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),  # two exact ties, decided in float64
        (1, 3, [0, 0, 0]),
        (0, 3, [0, 1, 2]),
        (2, 4, [0, 0, 1, 1]),
        (4, 1, [0]),
    ],
)
def test_each_scale_takes_the_convolution_of_the_nearest_tick(share, scales, expected):
    sides = range(1, scales + 1)
    quantiser = ResidualQuantiser(vocabulary=4, code_channels=2, patch_nums=sides, share_quant_resi=share)
    assert quantiser.nearest == expected
    names = {key.rpartition(".")[0] for key in quantiser.state_dict() if key.startswith("quant_resi")}
    prefix = {0: "quant_resi.{}", 1: "quant_resi.qresi"}.get(share, "quant_resi.qresi_ls.{}")
    assert names == {prefix.format(index) for index in range(share or scales)}


def test_scales_one_by_one_with_a_cache_are_those_at_once():
    facts = {"num_classes": 3, "vocabulary": 11, "code_channels": 4, "patch_nums": (1, 2, 3), "shared_adaln": True}
    for l2_norm in (True, False):
        torch.manual_seed(0)
        network = VARTransformer(depth=2, width=16, num_heads=2, attn_l2_norm=l2_norm, **facts).eval()
        codes, labels, cache = torch.randn(2, 13, 4), torch.tensor([0, 3]), [None, None]
        whole = network(codes, labels)
        parts = [network(codes[:, :0], labels, 0, cache), network(codes[:, :4], labels, 1, cache)]
        parts.append(network(codes[:, 4:], labels, 2, cache))
        assert torch.allclose(whole, torch.cat(parts, dim=1), atol=1e-5)


def test_draws_are_by_inverse_transform_within_the_limits():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(1, 5, 4)
    uniform = torch.tensor([[0.0, 0.09, 0.11, 0.69, 0.9999999]])
    assert drawn(logits, uniform).tolist() == [[0, 0, 1, 2, 3]]
    assert drawn(limited(logits, 2, 0.0), uniform).tolist() == [[1, 1, 1, 3, 3]]
    assert drawn(limited(logits, 0, 0.5), uniform).tolist() == [[1, 1, 1, 3, 3]]
    assert drawn(limited(logits, 99, 1e-9), uniform).tolist() == [[1] * 5]


def test_uniform_numbers_and_normal_ones_are_one_draw():
    noise = PhiloxNoise(3, range(4))
    uniform, normal = noise.uniform((5, 3), 2), noise.normal((5, 3), 2)
    assert uniform.dtype == torch.float64 and uniform.min() > 0 and uniform.max() < 1
    assert torch.allclose(torch.special.ndtr(normal.double()), uniform, atol=1e-7)


@pytest.mark.parametrize("name", sorted(name for name, card in cards().items() if card.family == "var"))
def test_a_card_is_the_network_it_says(name):
    card = find_card(name)
    adapter = skeleton(card)
    assert sum(parameter.numel() for parameter in adapter.network.parameters()) == card.parameters
    assert adapter.latent_shape == (card.architecture["code_channels"], *[card.architecture["patch_nums"][-1]] * 2)
    assert adapter.latent_shape[-1] * adapter.autoencoder.downsample == card.resolution


@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_the_declared_evaluations_are_those_that_are_counted(cfg):
    card = find_card("var-d16")
    small = {**card.architecture, "depth": 1, "width": 64, "num_heads": 1}
    adapter = VAR(replace(card, architecture=small)).randomise().to("cpu")
    meter = Meter(adapter)
    with meter.installed():
        adapter.sample_latents(torch.tensor([3, 7]), 10, cfg, noise=PhiloxNoise(0, range(2)))
    assert meter.rows / 2 == adapter.declared_nfe(10, cfg, adapter.resolve_settings(10))


def test_other_step_counts_and_unknown_facts_are_refused_in_one_line():
    card = find_card("var-d16")
    assert skeleton(card).unsupported(4, 1.0) == "var-d16 predicts 10 scales, one a step, and takes 10 steps only"
    with pytest.raises(BenchError, match=r"architecture of VAR.*rope"):
        VAR(replace(card, architecture={**card.architecture, "rope": True}))


def test_the_decoder_takes_the_authors_fused_attention():
    config = {"latent_channels": 32, "base_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1}
    config |= {"nominal_resolution": 2, "attn_resolutions": (1,)}
    ours = build_autoencoder({"kind": "var-vae", "config": config, "downsample": 2})
    theirs = {key: torch.randn_like(value) for key, value in ours.decoder.state_dict().items()}
    for stem in sorted({key.partition(".q.")[0] for key in theirs if ".q." in key}):
        for kind in ("weight", "bias"):
            theirs[f"{stem}.qkv.{kind}"] = torch.cat([theirs.pop(f"{stem}.{part}.{kind}") for part in "qkv"])
    theirs |= {"encoder.conv_in.weight": torch.zeros(1), "quantize.embedding.weight": torch.zeros(1)}
    assert any(".mid.attn_1.qkv." in key for key in theirs) and any(".attn.0.qkv." in key for key in theirs)
    ours.load({"autoencoder": theirs})
    assert decoder_state(theirs).keys() == ours.decoder.state_dict().keys()
    assert ours.decode(torch.randn(1, 32, 4, 4)).shape == (1, 3, 8, 8)
