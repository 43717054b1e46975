"""Text-to-image pipelines behind the contract: what recordings do not hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hosted_tiny import TINY, tiny
from torch import Tensor

from adapters.hosted.adapter import Hosted
from adapters.hosted.schedulers import build_scheduler
from adapters.hosted.table import HOSTED
from bench.contracts.adapter import Adapter
from bench.contracts.noise import PhiloxNoise
from bench.models.conformance import check_adapter
from bench.models.counting import Counter
from bench.models.loading import build_adapter
from bench.models.meter import Meter
from results.errors import BenchError

PROMPTS = ("a red apple", "an old bicycle leaning against a brick wall", "a lighthouse on a cliff in a storm")
EVERY = pytest.mark.parametrize("name", TINY)


def built(name: str, **facts: Any) -> Hosted:
    adapter = build_adapter(replace(tiny(name), **facts), random_weights=True)
    adapter.prepare(PROMPTS)
    assert isinstance(adapter, Hosted)
    return adapter


def sample(adapter: Adapter, steps: int = 2, cfg: float = 1.0, rows: range = range(3), **settings: Any) -> Tensor:
    return adapter.sample(torch.tensor(rows), steps, cfg, noise=PhiloxNoise(7, rows), **settings)


def test_every_pipeline_class_has_a_tiny_card() -> None:
    assert {tiny(name).architecture["pipeline"] for name in TINY} == set(HOSTED)


@pytest.mark.parametrize("name", {tiny(name).architecture["pipeline"]: name for name in TINY}.values())
def test_a_pipeline_keeps_the_contract(name: str) -> None:
    findings = check_adapter(tiny(name), random_weights=True)
    assert [f"{finding.clause}: {finding.detail}" for finding in findings if not finding.ok] == []


@EVERY
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    adapter, cfg = built(name), tiny(name).guidance.natural
    alone = [sample(adapter, cfg=cfg, rows=range(row, row + 1)) for row in range(3)]
    assert torch.allclose(sample(adapter, cfg=cfg), torch.cat(alone), atol=1e-4)


@EVERY
@pytest.mark.parametrize("guided", [False, True])
def test_the_declared_evaluations_are_those_that_are_counted(name: str, guided: bool) -> None:
    adapter, card = built(name), tiny(name)
    cfg = card.guidance.natural if guided else 1.0
    meter = Meter(adapter)
    with meter.installed():
        sample(adapter, 2, cfg)
    counted = Counter(card).count(2, cfg, adapter.resolve_settings(2))
    assert counted is not None
    assert counted.nfe == meter.rows / 3 == (4 if card.guidance.kind == "classifier-free" and guided else 2)


@EVERY
def test_images_are_those_of_the_pipelines_own_decoder(name: str) -> None:
    adapter = built(name)
    latents = adapter.sample_latents(torch.tensor([0]), 2, 1.0, noise=PhiloxNoise(7, [0]))
    asked: dict[str, Any] = {}
    pipeline = adapter.pipeline()
    own = type(pipeline).__call__

    def call(self: Any, **arguments: Any) -> Any:
        asked.update(arguments)
        return own(self, **{**arguments, "output_type": "pt" if name != "ernie-image" else "np"})

    made = type("Asked", (type(pipeline),), {"__call__": call})
    pipeline.__class__ = made
    adapter.hosting = replace(
        adapter.hosting, layout=replace(adapter.hosting.layout, unpack=lambda x, shape: _tensor(x))
    )
    images = adapter.sample_latents(torch.tensor([0]), 2, 1.0, noise=PhiloxNoise(7, [0]))
    assert asked["output_type"] == "latent"
    assert torch.allclose((adapter.decode(latents) + 1) / 2, images, atol=1e-5)


def _tensor(images: Any) -> Tensor:
    return images if isinstance(images, Tensor) else torch.from_numpy(images).permute(0, 3, 1, 2)


def test_what_another_run_left_in_the_global_generator_changes_nothing() -> None:
    adapter = built("flux-lcm")
    torch.manual_seed(1)
    first = sample(adapter, 3)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(first, sample(adapter, 3))
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_librarys_scheduler_keeps_its_own_noise() -> None:
    from diffusers.schedulers import scheduling_lcm
    from diffusers.utils.torch_utils import randn_tensor

    scheduler = build_scheduler("LCMScheduler", {}, lambda step: torch.full((1, 4), float(step)))
    scheduler.set_timesteps(3)
    x = torch.zeros(1, 4)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
    assert scheduling_lcm.randn_tensor is randn_tensor


def test_guidance_is_the_usual_weight_whatever_the_pipeline_calls_it() -> None:
    """c + s (c - u) with s = w - 1 is u + w (c - u), so guidance of weight 2 in one step is 2 c - u in the latents."""
    for name in ("z-image", "krea2", "sd3", "ernie-image", "flux2-klein-base"):
        adapter = built(name)
        labels, noise = torch.tensor([0]), PhiloxNoise(7, [0])
        latents = {w: adapter.sample_latents(labels, 1, w, noise=noise) for w in (1.0, 2.0, 3.0)}
        assert torch.allclose(latents[3.0] - latents[1.0], 2 * (latents[2.0] - latents[1.0]), atol=1e-3), name


@pytest.mark.parametrize(("name", "steps", "cfg", "settings", "told"), [
    ("flux-dev", 2, 3.5, {"eta": 0.5}, "its pipeline takes no eta"),
    ("sdxl-lcm", 2, 1.0, {"timesteps": [999]}, "timesteps holds 1 values for 2 steps"),
    ("sana-sprint", 1, 4.5, {"intermediate_time": 1.3}, "intermediate_time is for 2 steps"),
    ("sdxl-turbo", 1, 2.0, {}, "takes no guidance"),
    ("sd3", 2, 0.5, {}, "cfg must be at least 1"),
    ("sd3", 2, 1.0, {"scheduler": "NoScheduler"}, "unknown scheduler 'NoScheduler'"),
    ("sdxl-lcm", 2, 1.0, {"scheduler": "LCMSchedular"}, "did you mean LCMScheduler?"),
])  # fmt: skip
def test_what_a_pipeline_does_not_take_is_refused_in_one_line(
    name: str, steps: int, cfg: float, settings: Mapping[str, Any], told: str
) -> None:
    with pytest.raises(BenchError) as refusal:
        sample(built(name), steps, cfg, **settings)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("facts", "told"), [
    ({"pipeline": "FluxPipline"}, "unknown pipeline class 'FluxPipline'"),
    ({"pipeline": "FluxPipeline", "network": {"layers": 3}}, "takes no layers"),
    ({"pipeline": "StableDiffusion3Pipeline", "scheduler": {"shft": 3}, "network": {}}, "takes no setting 'shft'"),
])  # fmt: skip
def test_a_card_with_words_that_the_library_does_not_know_is_refused_in_one_line(
    facts: Mapping[str, Any], told: str
) -> None:
    card = tiny("sd3")
    network = card.architecture["network"] if not facts.get("network") else facts["network"]
    with pytest.raises(BenchError) as refusal:
        built("sd3", architecture={**card.architecture, **facts, "network": network}) and sample(
            built("sd3", architecture={**card.architecture, **facts, "network": network})
        )
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_another_scheduler_is_another_sampler_and_settings_are_the_pipelines_own() -> None:
    adapter = built("sdxl-lcm")
    plain = sample(adapter, 2)
    assert not torch.allclose(plain, sample(adapter, 2, timesteps=[999, 249]))
    assert not torch.allclose(plain, sample(adapter, 2, scheduler="TCDScheduler", eta=1))
    z = built("z-image")
    assert not torch.allclose(sample(z, 2, 4.0), sample(z, 2, 4.0, normalise=0.5))
    assert z.declared_nfe(2, 4.0, z.resolve_settings(2, overrides={"truncate": 0.5})) is None


def test_the_version_of_the_library_is_part_of_a_rows_identity() -> None:
    from importlib.metadata import version

    assert built("sd3").host == f"diffusers {version('diffusers')}"
