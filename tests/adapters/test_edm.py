"""EDM, EDM2, PFGM++ and their students: recordings, refusals in one line, cards."""

from __future__ import annotations

from dataclasses import replace
from math import inf, sqrt
from pathlib import Path

import pytest
import torch

from adapters.edm import EDM, EDM2, EDMNetworks, build_network
from adapters.edm_students import SCM, SCMSettings
from adapters.pfgmpp import odds_of, prior
from bench.contracts.noise import PhiloxNoise
from bench.contracts.recording import load_case, recorded_adapter
from bench.models.cards import cards, find_card
from bench.models.registry import skeleton
from bench.recordings.replay import open_replay, run_case
from results.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ("edm", "edm2", "sid", "dmd2", "ect", "scm", "pfgmpp")
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.name.startswith((*FAMILIES, "pfgmpp")))
CARDS = {name: card for name, card in cards().items() if card.family in FAMILIES}


@pytest.mark.parametrize("name", CASES)
def test_every_recorded_call_is_reproduced(name: str) -> None:
    results = run_case(GOLDEN / name)
    assert results and [result for result in results if not result.ok] == []


@pytest.mark.parametrize("name", CARDS)
def test_a_card_fits_its_network(name: str) -> None:
    card = CARDS[name]
    with torch.device("meta"):
        network = build_network(card.architecture, name)
    assert sum(parameter.numel() for parameter in network.parameters()) == card.parameters
    assert card.teacher is None or card.teacher in cards()
    assert card.weights is not None and ("non-commercial" in card.licence or card.family == "scm")


def refusal(name: str, steps: int, cfg: float = 1.0) -> str | None:
    return skeleton(find_card(name)).unsupported(steps, cfg)


def test_what_cannot_be_sampled_is_refused_with_what_can() -> None:
    assert "takes 2 or more steps" in str(refusal("edm-cifar10-cond-vp", 1))
    assert "takes 1, 2 steps only" in str(refusal("ect-cifar10", 3)) or "mid_t" in str(refusal("ect-cifar10", 3))
    assert "takes no guidance" in str(refusal("edm2-xs", 32, 1.5))
    assert "takes no guidance" in str(refusal("sid-imagenet-64", 1, 1.5))
    assert refusal("edm2-xs-guided", 32, 1.4) is None
    assert "takes 1 step only" in str(refusal("dmd2-imagenet-64", 2)) and refusal("dmd2-imagenet-64", 1) is None


def test_a_student_card_without_its_teachers_autoencoder_is_refused() -> None:
    card = replace(find_card("sid2a-edm2-xs"), autoencoder=None)
    with pytest.raises(BenchError, match="name the teacher's autoencoder"), torch.device("meta"):
        EDMNetworks.__init__(object.__new__(type(skeleton(find_card("sid2a-edm2-xs")))), card)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"model_type": "UNet"}, "model_type"),
        ({"class_name": "VPPrecond", "model_type": "SongUNet"}, "class_name"),
        ({"model_type": "SongUNet", "decoder_type": "skip"}, "decoder_type must be 'standard'"),
        ({"depth": 3}, "depth"),
    ],
)
def test_an_unknown_network_or_word_is_refused_in_one_line(facts: dict[str, object], message: str) -> None:
    base = {"img_resolution": 8, "img_channels": 3, "label_dim": 0, "model_channels": 8}
    with pytest.raises(BenchError, match=message) as refused, torch.device("meta"):
        build_network(base | facts, "mine")
    assert "\n" not in str(refused.value)


def test_the_schedules_own_levels_begin_at_the_999th_of_a_thousand() -> None:
    levels = SCMSettings().levels(2)
    assert levels == pytest.approx([79.56382521581216, 2.5265068484381206, 0.0])


def test_the_priors_radius_has_the_distribution_of_the_paper() -> None:
    # R^2 / (80^2 D) = b / (1 - b) with b ~ Beta(N / 2, D / 2), whose mean is N / (D - 2).
    n, d = 48, 16
    noise = PhiloxNoise(3, range(4000))
    z, w = noise.normal((3, 4, 4)), noise.normal((d,), 1)
    x = prior(z, odds_of(z, [w]), d)
    odds = x.flatten(1).square().sum(1) / (80**2 * d)
    assert float(odds.mean()) == pytest.approx(n / (d - 2), rel=0.05)
    assert torch.allclose(
        x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True),
        (z.flatten(1) / z.flatten(1).norm(dim=1, keepdim=True)).double(), atol=1e-6,
    )  # fmt: skip
    assert float((x.flatten(1).norm(dim=1) / sqrt(n)).median()) > 80


@pytest.mark.parametrize("name", ["edm-adm-tiny", "edm2-autoguidance-tiny"])
def test_a_recorded_sample_without_a_label_of_a_conditional_network_has_rows_of_zeros(name: str) -> None:
    case = load_case(GOLDEN / name)
    (call,) = (call for call in case.spec["calls"] if call["id"] == "heun4")
    unlabelled, unbounded = {**call, "labels": None}, {**call, "options": {**call["options"], "S_max": inf}}
    with torch.inference_mode():
        replay = open_replay(case)
        adapter = recorded_adapter(case, EDM2 if case.spec["adapter"] == "edm2" else EDM)
        settings = adapter.resolve_settings(4)
        z = case.tensors[call["noise"]]
        expected = adapter.generate(torch.zeros(len(z), 10), 4, 1.0, case.noise(call), settings)
        assert torch.equal(replay(unlabelled)["output"], expected)
        labelled = replay(call)["output"]
        assert not torch.allclose(labelled, expected, atol=1e-2)
        assert torch.equal(replay(unbounded)["output"], labelled)


def test_the_scale_of_the_data_is_the_networks_own_wherever_it_is_used() -> None:
    case = load_case(GOLDEN / "scm-a")
    adapter = recorded_adapter(
        replace(case, spec={**case.spec, "architecture": {**case.architecture, "sigma_data": 0.3}}), SCM
    )
    x, t, labels = torch.randn(2, 3, 16, 16), torch.tensor([0.2, 1.5]), torch.tensor([1, 2])
    sigma = 0.3 * t.double().tan()
    c_skip = 0.3**2 / (sigma**2 + 0.3**2)
    c_out, c_in = sigma * 0.3 / (sigma**2 + 0.3**2).sqrt(), 1 / (sigma**2 + 0.3**2).sqrt()
    wide = lambda c: c.float()[:, None, None, None]  # noqa: E731
    with torch.inference_mode():
        raw = adapter.network(wide(c_in) * x, (sigma.log() / 4).float(), labels)
        torch.testing.assert_close(adapter.denoise(x, sigma, labels), wide(c_skip) * x + wide(c_out) * raw)
        F = adapter.trigflow(x * wide(t.cos()), t, labels)
    d = adapter.denoise(x, sigma, labels)
    torch.testing.assert_close(wide(t.cos()) ** 2 * x - 0.3 * wide(t.sin()) * F, d, atol=1e-5, rtol=1e-5)


def test_words_without_a_value_are_absent_and_edm2_takes_the_filter_that_it_has_and_no_other() -> None:
    base = {"img_resolution": 8, "img_channels": 3, "label_dim": 0, "model_channels": 8, "attn_resolutions": []}
    with torch.device("meta"):
        build_network(base | {"resample_filter": [1, 1]}, "mine")
        adm = {"model_type": "DhariwalUNet", "channels_per_head": None, "num_blocks": None}
        assert (
            build_network(base | adm, "mine").state_dict().keys()
            == build_network(base | {"model_type": "DhariwalUNet"}, "mine").state_dict().keys()
        )
        with pytest.raises(BenchError, match=r"resample_filter must be \[1, 1\]"):
            build_network(base | {"resample_filter": [1, 3, 3, 1]}, "mine")


def test_the_radius_is_drawn_in_pieces_without_a_change_of_its_distribution() -> None:
    z, w = PhiloxNoise(3, range(4)).normal((3, 4, 4)), PhiloxNoise(3, range(4)).normal((16,), 1)
    torch.testing.assert_close(odds_of(z, [w[:, :7], w[:, 7:]]), odds_of(z, [w]))
