"""Text-to-image pipelines behind the contract: what recordings do not hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hosted_tiny import TINY, tiny
from torch import Tensor

from adapters.hosted.adapter import Hosted
from adapters.hosted.prompts import Prompts
from adapters.hosted.schedulers import build_scheduler
from adapters.hosted.table import HOSTED
from bench.contracts.adapter import Adapter
from bench.contracts.noise import PhiloxNoise
from bench.contracts.recording import load_case
from bench.judges.judge import Judge
from bench.judges.pixels.sanity import Pixels
from bench.models.conformance import check_adapter
from bench.models.counting import Counter
from bench.models.loading import build_adapter
from bench.models.meter import Meter
from bench.recordings.replay import open_replay
from bench.run.plan import Request, make_plan
from bench.run.record import pixel_facts
from bench.run.shard import sample_shard
from bench.run.worker import load_cell_adapter
from protocols import find_protocol
from results.errors import BenchError, BenchWarning

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


def tiny_folder(place: Path, text: str = "abcdefghijklmnopqrstuvwxyz") -> Path:
    """Save a tiny Stable Diffusion pipeline, text encoder and tokenizer included, and return its folder."""
    import diffusers
    from hosted_tiny import UNET, VAE
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    place.mkdir(parents=True)
    words = [*text, *(f"{letter}</w>" for letter in text), "<|startoftext|>", "<|endoftext|>"]
    (place.parent / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (place.parent / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(place.parent / "vocab.json"), str(place.parent / "merges.txt"), model_max_length=77)
    torch.manual_seed(0)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
        )
    )  # fmt: skip
    diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**VAE), text_encoder=encoder, tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**UNET), safety_checker=None, feature_extractor=None,
        scheduler=diffusers.DDIMScheduler(**tiny("sd15").architecture["scheduler"]),
        requires_safety_checker=False,
    ).save_pretrained(place)  # fmt: skip
    return place


def test_a_folder_is_sampled_as_the_library_samples_it_and_its_encoders_are_opened_once(tmp_path: Path) -> None:
    import diffusers

    folder = tiny_folder(tmp_path / "pipeline")
    adapter = build_adapter(tiny("sd15"), weights=folder)
    assert isinstance(adapter, Hosted)
    adapter.prepare(PROMPTS, tmp_path / "store")
    noise = PhiloxNoise(7, range(3))
    images = adapter.sample(torch.arange(3), 2, 3.0, noise=noise)
    whole = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, feature_extractor=None)
    whole.set_progress_bar_config(disable=True)
    own = whole(list(PROMPTS), height=16, width=16, num_inference_steps=2, guidance_scale=3.0, output_type="pt",
        latents=noise.normal((4, 8, 8)))  # fmt: skip
    assert torch.allclose((images + 1) / 2, own.images, atol=1e-4)

    shutil.rmtree(folder / "text_encoder")
    again = build_adapter(tiny("sd15"), weights=folder)
    again.prepare(PROMPTS, tmp_path / "store")
    assert torch.equal(images, again.sample(torch.arange(3), 2, 3.0, noise=noise))


def test_embeddings_of_encoders_in_8_bits_are_kept_apart_from_the_full_ones(tmp_path: Path) -> None:
    adapter = build_adapter(tiny("sd15"), weights=tiny_folder(tmp_path / "pipeline"))
    adapter.prepare(PROMPTS, tmp_path / "store")
    full, small = sample(adapter), sample(adapter, text_encoder="float8")
    assert not torch.equal(full, small)
    assert torch.equal(full, sample(adapter))


def test_words_that_an_encoder_cuts_are_named_and_recorded(tmp_path: Path) -> None:
    adapter = build_adapter(tiny("sd15"), weights=tiny_folder(tmp_path / "pipeline"))
    long, short = " ".join(["abc"] * 30 + ["zebra"]), "a b"
    adapter.prepare([long, short], tmp_path / "store")
    with pytest.warns(BenchWarning, match="tokenizer reads 77 tokens, so that a prompt loses its end: '.*zebra'"):
        adapter.sample(torch.tensor([0]), 1, 1.0, noise=PhiloxNoise(7, [0]))
    cut = adapter.cut_prompts()
    assert list(cut) == [long]
    assert list(cut[long]) == ["tokenizer"] and cut[long]["tokenizer"].endswith("zebra")

    assert isinstance(adapter, Hosted)
    again = Prompts(adapter.hosting, adapter.prompts.config, "again")
    again.take([long, short], tmp_path / "store")
    again.batch(torch.tensor([1]), negative=None, tokens=None, device=adapter.device, dtype=torch.float32)
    assert again.cut == cut  # embeddings that were stored still tell

    seen = Pixels()
    seen.add(np.zeros((2, 3, 8, 8), np.uint8))
    facts = pixel_facts([{"pixels": seen.state(), "cut_prompts": cut}], 8, 8)
    assert facts is not None
    assert facts["cut_prompts"] == cut
    assert facts["remarks"][-1] == "1 prompt too long for tokenizer, whose words are cut"


@pytest.mark.parametrize(("break_it", "told"), [
    (lambda folder: (folder / "model_index.json").unlink(), "model_index.json cannot be read"),
    (lambda folder: index(folder, _class_name="FluxPipeline"), "holds a FluxPipeline"),
    (lambda folder: index(folder, unet=["own_code", "Net"]), "code of its own"),
    (lambda folder: index(folder, unet=[]), "code of its own"),
    (lambda folder: shutil.rmtree(folder / "vae"), "lacks the component 'vae'"),
    (lambda folder: next((folder / "unet").glob("*.safetensors")).write_bytes(b"\0" * 90), "cannot be read as UNet2D"),
])  # fmt: skip
def test_a_damaged_folder_is_refused_in_one_line(break_it: Callable[[Path], Any], told: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "pipeline")
    break_it(folder)
    with pytest.raises(BenchError) as refusal:
        build_adapter(tiny("sd15"), weights=folder)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_prompts_are_sampled_at_their_own_size_and_resized_once(tmp_path: Path) -> None:
    protocol = tmp_path / "text-to-image-tiny.toml"
    protocol.write_text(
        'extends = "digits"\nname = "text-to-image-tiny"\ntitle = "Prompts"\n[labels]\n'
        f"names = {json.dumps([f'{count} red apples' for count in range(10)])}\n"
        'template = "a photo of {name}"\n[sampling]\nnum_samples = 40\nbatch_size = 20\n'
    )
    card = tmp_path / "tiny-flux.toml"
    facts = tiny("flux-schnell")
    network, vae = ("\n".join(f"{k} = {json.dumps(v)}" for k, v in table.items()) for table in (
        facts.architecture["network"], facts.autoencoder or {}))  # fmt: skip
    card.write_text(
        'name = "tiny-flux"\nfamily = "diffusers"\ntitle = "Tiny"\nresolution = 16\nnum_classes = 0\n'
        'latent_shape = [4, 8, 8]\n[architecture]\npipeline = "FluxPipeline"\n[architecture.network]\n'
        f'{network}\n[autoencoder]\n{vae}\n[weights]\nformat = "diffusers"\nrepo = "a/b"\nfile = "model_index.json"\n'
    )
    request = Request(find_protocol(str(protocol)), models=(str(card),), steps=(2,), random_weights=True)
    (cell,) = make_plan(request, "")
    labels = np.arange(40) % 10
    adapter = load_cell_adapter(cell, request.protocol, "cpu")
    seen: dict[str, tuple[int, ...]] = {}

    class Looking(Judge):
        def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            seen[self.name] = tuple(images.shape[1:])
            return {"score": images.float().mean((1, 2, 3))}

    judges = {name: Looking(name, {}, torch.device("cpu")) for name in ("small", "native")}
    judges["native"].reads_native = True
    _, facts_of_shard = sample_shard(cell, request.protocol, adapter, judges, labels, 0, 40)
    assert seen == {"small": (3, 8, 8), "native": (3, 16, 16)}
    assert facts_of_shard["network_rows"] == 80
    pixels = pixel_facts([facts_of_shard], 16, 8)
    assert pixels is not None
    assert (pixels["native"], pixels["resize"]) == (16, "lanczos")
    assert replace(cell, host="diffusers 0.1").cell_id != cell.cell_id


def test_a_recorded_size_off_the_multiples_of_a_pipeline_is_replayed_as_by_its_bins() -> None:
    case = load_case(Path(__file__).parents[1] / "golden" / "t2i-sana-sprint")
    (call,) = (dict(call) for call in case.spec["calls"] if call["id"] == "steps1")
    odd = {**call, "options": {**call["options"], "height": 16}}
    exact = {**odd, "options": {**odd["options"], "arguments": {"use_resolution_binning": False}}}
    replay = open_replay(case)
    with torch.inference_mode():
        expected = case.tensors[call["output"]]
        torch.testing.assert_close(replay(odd)["output"], expected, atol=call["atol"], rtol=0)
        with pytest.raises(ValueError, match="divisible by 32"):
            replay(exact)
