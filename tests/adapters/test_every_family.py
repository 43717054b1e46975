"""Every registered family, third-party ones too, keeps the contract on a small network of each of its kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.caf import CAF
from adapters.digits.students import DigitsCAF
from adapters.edm import EDM
from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard
from bench.contracts.noise import PhiloxNoise
from bench.contracts.precision import full_precision
from bench.models.cards import cards, find_card
from bench.models.conformance import check_adapter
from bench.models.counting import Counter
from bench.models.loading import build_adapter
from bench.models.meter import Meter
from bench.models.registry import family_class

STEPS = 4
NUM_CLASSES = 10
SMALL = {
    "hidden_size": 64, "depth": 2, "num_heads": 2, "num_blocks": 2, "num_encoder_blocks": 1, "num_groups": 2,
    "aux_head_depth": 1, "bottleneck_channels": 8, "model_channels": 16, "channels_per_head": 16,
    "num_classes": NUM_CLASSES, "num_class_tokens": 2, "num_time_tokens": 1, "num_cfg_tokens": 1,
    "num_interval_tokens": 1, "num_gaussians": 4, "logstd_inner_dim": 32, "lora_hidden_size": 32,
    "dmf_depth": 1, "bottleneck_dim": 8, "in_context_len": 2, "in_context_start": 1,
    "cond_dim": 64, "noise_classes": 8, "noise_coords": 4, "n_cls_tokens": 2,
    "num_res_blocks": 1, "num_head_channels": 16, "norm_groups": 8,
}  # fmt: skip
PAIRS = {"hidden_size": [48, 64], "depth": [2, 1], "num_heads": [2, 2]}
"""RAE's trunk and head."""
SIZES = ("input_size", "latent_size", "img_resolution", "image_size")

STABLE = {
    "latent_channels": 4, "block_out_channels": (32, 32), "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
KL = {"latent_channels": 32, "base_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": ()}
DEEP = {
    f"{half}_{fact}": value
    for half in ("encoder", "decoder")
    for fact, value in {
        "block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (32, 64), "layers_per_block": (1, 1),
        "qkv_multiscales": ((), ()),
    }.items()
}  # fmt: skip
DEEP |= {"decoder_norm_types": ("batch_norm", "rms_norm"), "decoder_act_fns": ("relu", "silu")}
REPRESENTATION = {
    "latent_dim": 16, "num_patches": 16, "patch_size": 2, "decoder_hidden_size": 32, "decoder_intermediate_size": 64,
    "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 2,
}  # fmt: skip
AUTOENCODERS = {
    "sd-vae-ema": STABLE, "sd-vae-mse": STABLE, "edm2-sd-vae": STABLE, "va-vae": KL, "e2e-va-vae": KL,
    "dc-ae-f32c32": DEEP, "rae-dinov2-b": REPRESENTATION, "rae-dinov2-b-512": REPRESENTATION,
}  # fmt: skip
"""Small decoders of each kind, all of which double the side."""

GUIDED_NFE = {"tim-xl-256": 7, "tim-xl-512": 7,
    "ucgm-s-ddt-xl-256": 6, "ucgm-s-lightningdit-xl-256": 7, "ucgm-s-sit-xl-repae-256": 6, "facm-xl-100ep": 7,
    "jit-b-16": 7,
}  # fmt: skip
"""NFE of STEPS guided steps where guidance acts on an interval: two of the four times lie inside, or three."""


def representatives() -> dict[str, ModelCard]:
    """Return one card for each network, autoencoder and guidance that a family has, by name."""
    chosen: dict[tuple[Any, ...], ModelCard] = {}
    for card in sorted(cards().values(), key=lambda card: card.name):
        network = card.architecture.get("network", card.architecture.get("model_type"))
        kind = card.family, network, (card.autoencoder or {}).get("kind"), card.guidance.kind
        if not card.members and sampled_here(card.family):
            chosen.setdefault(kind, card)
    return {card.name: card for card in chosen.values()}


def sampled_here(family: str) -> bool:
    """Tell whether this file checks a family; others: test_hosted.py and tests/bench/run/test_workers.py."""
    found = family_class(family)
    return not (found.takes_prompts or found.out_of_process)


def small(card: ModelCard) -> ModelCard:
    """Return `card` with a network of its kind that samples in milliseconds; foreign ones are taken as they are."""
    if "patch_nums" in card.architecture:
        return small_scales(card)
    channels_word = next((word for word in ("in_channels", "img_channels") if word in card.architecture), None)
    if not family_class(card.family).__module__.startswith("adapters.") or channels_word is None:
        return card
    side = 4 * patch(card.architecture)
    architecture = shrunken(card.architecture, side)
    channels = min(card.latent_shape[0], architecture[channels_word])  # a network may be given more than a sample has
    facts: dict[str, Any] = {"architecture": architecture, "latent_shape": (channels, side, side), "resolution": side}
    facts["num_classes"] = min(card.num_classes, NUM_CLASSES)
    if card.autoencoder is not None:
        config = AUTOENCODERS[card.autoencoder["kind"]]
        facts |= {"autoencoder": {**card.autoencoder, "config": config, "downsample": 2}, "resolution": 2 * side}
    return replace(card, **facts)


def small_scales(card: ModelCard) -> ModelCard:
    """Return the card of a generator of token maps with STEPS scales."""
    side, sizes = STEPS, {"width": 32, "vocabulary": 64, "code_channels": 32, "patch_nums": list(range(1, STEPS + 1))}
    return replace(
        card,
        architecture={**shrunken(card.architecture, side), **sizes},
        latent_shape=(32, side, side), resolution=2 * side, num_classes=NUM_CLASSES,
        supported_steps=None, presets=(), autoencoder={**(card.autoencoder or {}), "config": KL, "downsample": 2},
    )  # fmt: skip


def patch(architecture: Mapping[str, Any]) -> int:
    return min(architecture.get("patch_size", 2), 4)


def shrunken(architecture: Mapping[str, Any], side: int) -> dict[str, Any]:
    """Return the architecture with every width, depth and count made small and everything else as it was."""
    found: dict[str, Any] = {}
    for key, value in architecture.items():
        if key == "guide":
            found[key] = shrunken(value, side)
        elif isinstance(value, list) and key in PAIRS:
            found[key] = PAIRS[key]
        elif key in SIZES:
            found[key] = side
        elif key in ("num_classes", "label_dim"):
            found[key] = min(value, NUM_CLASSES)
        elif key == "attn_resolutions":
            found[key] = [side // 2]
        elif key == "channel_mult" and "image_size" in architecture:
            found[key] = value[:2]
        elif key == "patch_size":
            found[key] = patch(architecture)
        elif key == "in_channels":
            found[key] = min(value, 32) if value < 768 else REPRESENTATION["latent_dim"]
        else:
            found[key] = SMALL.get(key, value)
    return found


def built(card: ModelCard, dtype: str = "float32", device: str = "cpu") -> Adapter:
    return build_adapter(card, device=device, dtype=dtype, random_weights=is_random(card))


def is_random(card: ModelCard) -> bool:
    return card.weights is not None and card.weights.path is None


def sample(adapter: Adapter, steps: int, cfg: float = 1.0) -> Tensor:
    labels = torch.arange(3) % max(adapter.num_classes, 1)
    return adapter.sample(labels, steps, cfg, noise=PhiloxNoise(5, range(3), adapter.device))


def evaluations(adapter: Adapter, steps: int, cfg: float) -> tuple[float, float]:
    meter = Meter(adapter)
    with meter.installed():
        sample(adapter, steps, cfg)
    return meter.rows / 3, meter.guide_rows / 3


def broken(card: ModelCard) -> list[str]:
    findings = check_adapter(card, random_weights=is_random(card))
    return [f"{finding.clause}: {finding.detail}" for finding in findings if not finding.ok]


def is_heun(adapter: Adapter) -> bool:
    return isinstance(adapter, EDM) or adapter.card.sampler.get("sampler") == "heun"


FOUND = representatives()
EVERY = pytest.mark.parametrize("card", [pytest.param(small(card), id=name) for name, card in FOUND.items()])


def test_every_family_has_a_card() -> None:
    families = {point.name for point in entry_points(group="bench.adapters") if sampled_here(point.name)}
    assert {card.family for card in FOUND.values()} == families


@EVERY
def test_a_family_keeps_the_contract(card: ModelCard) -> None:
    assert broken(card) == []


@EVERY
def test_evaluations_are_those_that_the_card_promises(card: ModelCard) -> None:
    adapter = built(card)
    steps = STEPS if adapter.unsupported(STEPS, 1.0) is None else 1
    nfe = 2 * steps - 1 if is_heun(adapter) else steps + 1 if isinstance(adapter, (CAF, DigitsCAF)) else steps
    counter = Counter(card)
    assert counter.count(steps, 1.0, adapter.resolve_settings(steps)) == (nfe, 0)
    assert evaluations(adapter, steps, 1.0) == (nfe, 0), (
        "cfg 1 costs one evaluation per step (Heun: two; CAF: one more in all) and no guide"
    )
    scale = 1.5
    if adapter.guidance == "none" or adapter.unsupported(steps, scale) is not None:
        return
    doubled = {"classifier-free": GUIDED_NFE.get(card.name, 2 * steps)}
    guide = nfe if adapter.guidance == "autoguidance" else 0
    assert counter.count(steps, scale, adapter.resolve_settings(steps)) == evaluations(adapter, steps, scale)
    assert evaluations(adapter, steps, scale) == (doubled.get(adapter.guidance, nfe), guide)


@EVERY
def test_the_plan_counts_the_evaluations_that_sampling_makes(card: ModelCard) -> None:
    adapter, counter = built(card), Counter(card)
    for steps, cfg in product((1, 2, STEPS) if adapter.evaluations_differ else (1, 2), (1.0, 1.5)):
        settings = adapter.resolve_settings(steps)
        if adapter.unsupported(steps, cfg, settings) is None:
            assert counter.count(steps, cfg, settings) == evaluations(adapter, steps, cfg), f"{steps} steps, cfg {cfg}"


@EVERY
def test_half_precision_stays_close_and_random_weights_are_the_same_each_time(card: ModelCard) -> None:
    # float16 rounds eight times finer than bfloat16, whose error the contract limits to a tenth.
    exact_adapter = built(card)
    steps = next(n for n in (1 if card.supported_steps else 2, STEPS) if exact_adapter.unsupported(n, 1.0) is None)
    exact, rounded = sample(exact_adapter, steps), sample(built(card, "float16"), steps)
    assert rounded.dtype == torch.float32
    if exact_adapter.discrete:  # one rounding may turn one token into any other
        return
    assert (rounded - exact).square().mean().sqrt() < 0.1 / 8 * exact.std()


@pytest.mark.gpu
@EVERY
def test_a_family_keeps_the_contract_on_the_gpu_and_agrees_with_the_processor(card: ModelCard) -> None:
    findings = check_adapter(card, random_weights=is_random(card), device="cuda")
    assert [f"{finding.clause}: {finding.detail}" for finding in findings if not finding.ok] == []
    adapter = built(card, device="cuda")
    steps = next(n for n in (1 if card.supported_steps else 2, STEPS) if adapter.unsupported(n, 1.0) is None)
    with full_precision():
        there = sample(adapter, steps).cpu()
    here = sample(built(card), steps)
    assert (there - here).abs().max() <= 1e-3 * here.abs().max().clamp_min(1)  # random weights leave [-1, 1] far behind


@pytest.mark.gpu
@EVERY
def test_a_step_never_waits_for_the_gpu(card: ModelCard) -> None:
    adapter = built(card, "bfloat16", "cuda")
    labels = torch.zeros(3, dtype=torch.int64, device="cuda")
    noise, steps = PhiloxNoise(5, range(3), "cuda"), 1 if card.supported_steps else 2
    with torch.inference_mode():
        adapter.generate(labels, steps, 1.0, noise, adapter.resolve_settings(steps))
        torch.cuda.set_sync_debug_mode("error")
        try:
            adapter.generate(labels, steps, 1.0, noise, adapter.resolve_settings(steps))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_evaluations_that_depend_on_values_are_left_to_the_run() -> None:
    counter = Counter(small(find_card("sit-xl")))
    chosen = counter.adapter.resolve_settings(4, overrides={"solver": "dopri5"})
    assert counter.count(4, 1.0, chosen) is None
    assert counter.count(4, 1.5, counter.adapter.resolve_settings(4, overrides={"solver": "heun2"})) == (16, 0)


@pytest.mark.parametrize(("name", "settings"), [
    ("sit-xl", {"solver": "heun2"}),
    ("sit-xl", {"solver": "rk4", "path_type": "GVP", "prediction": "noise"}),
    ("sit-xl", {"mode": "SDE", "diffusion_form": "linear", "last_step": "Tweedie"}),
    ("sit-xl", {"mode": "SDE", "solver": "heun", "last_step": "Euler"}),
    ("sit-xl", {"mode": "SDE", "last_step": "none"}),
    ("ucgm-xl-few", {"stochast_ratio": "Auto", "sampling_order": 2, "rfba_gap_steps": [0.001, 0.0]}),
    ("ucgm-xl-few", {"sampler": "uniode", "sampling_method": "Heun", "transport": "TrigFlow"}),
    ("rae-xl-256", {"method": "classifier-free", "interval": [0.2, 0.9], "time_dist_shift_dim": 65536}),
    ("alphaflow-b-2-cfg", {"mode": "consistency"}),
    ("facm-xl-100ep", {"sampler": "euler", "shift": 0.3}),
    ("dmf-xl-512", {"sampler": "restart", "shift": 1.5, "interval": [0.0, 0.7]}),
    ("jit-b-16", {"method": "heun", "interval": [0.1, 0.9]}),
    ("imf-b", {"t_min": 0.3, "t_max": 0.7}),
    ("edm-imagenet-64", {"S_churn": 40, "S_min": 0.05, "S_max": 50}),
    ("pfgmpp-cifar10-cond-d2048", {"D": 128, "S_churn": 20, "S_noise": 1}),
    ("fastgen-cm-imagenet-64-s", {"t_list": [80, 2, 0], "student_sample_type": "ode"}),
    ("cm-edm-bedroom-256", {"sampler": "heun", "S_churn": 20, "S_min": 0.05, "S_max": 50}),
    ("ctm-imagenet-64", {"sampler": "gamma_multistep", "gamma": 0.7}),
    ("ctm-imagenet-64", {"sampler": "heun"}),
    ("ct-imagenet-64", {"scales": 201}),
])  # fmt: skip
def test_other_settings_of_a_sampler_keep_the_contract(name: str, settings: dict[str, Any]) -> None:
    assert broken(replace(small(find_card(name)), sampler=settings, presets=())) == []
