"""Inductive moment matching, IMM (arXiv 2503.07565): jumps from t to s that keep the moments of the marginals.

Noise lies at t = 1 and data at t = 0. The state is scaled by `sigma_data`, so that the initial noise has that standard
deviation, and starts at T, a little below 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.guidance import Guided
from adapters.latent import LatentAdapter
from adapters.meanflow import input_size
from adapters.networks.dit import DiT
from adapters.networks.songunet import SongUNet
from adapters.times import at_times, per_sample
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource, RecordedNoise
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, sampled
from bench.contracts.settings import Number, SamplerSettings
from results.errors import BenchError, unknown

RHO = 7.0
"""Exponent of the grid `edm`."""
NETWORKS = ("dit", "unet")
UNET_FIXED = {
    "model_type": "SongUNet", "embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard",
    "label_dim": 0, "channel_mult_noise": 1, "num_classes": 0,
}  # fmt: skip
"""Facts of EDM's DDPM++ that no published IMM model changes."""
UNET_UNUSED = ("dropout", "label_dropout", "use_fp16", "mlp_ratio", "qk_norm")
DIT_UNUSED = ("class_dropout_prob", "learn_sigma", "dropout", "use_fp16")


class IMMSettings(SamplerSettings):
    """Jumps from time to time, or to the data with fresh noise between them."""

    sampler: Literal["pushforward", "restart"] = Field(
        "pushforward", description="pushforward: from time to time; restart: to the data, then add noise again"
    )
    grid: Literal["uniform", "edm"] | Sequence[Annotated[Number, Field(gt=0)]] = Field(
        "uniform", description="uniform times, EDM's noise levels t / (1 - t), or the levels between the two ends"
    )

    def times(self, steps: int, first: float, last: float) -> list[float]:
        """Return `steps` + 1 times from `first` to `last`, float64."""
        if self.grid == "uniform":
            times: list[float] = torch.linspace(first, last, steps + 1, dtype=torch.float64, device="cpu").tolist()
            return times
        ends = [(t / (1 - t)) for t in (first, last)]
        levels: Sequence[float]
        if self.grid == "edm":
            a, b = (end ** (1 / RHO) for end in ends)
            levels = [(a + i / steps * (b - a)) ** RHO for i in range(1, steps)]
        else:
            levels = self.grid
        return [first, *(eta / (1 + eta) for eta in levels), last]

    def misfit(self, steps: int, first: float, last: float) -> str | None:
        """Return why the grid does not fit `steps`, or None."""
        times = self.times(steps, first, last)
        if len(times) == steps + 1 and all(t > s for t, s in pairwise(times)):
            return None
        top = first / (1 - first)
        return f"grid {self.grid} does not fit: {steps} steps need {steps - 1} levels falling from below {top:.4g} to 0"


class IMM(LatentAdapter):
    """IMM on latents (a DiT) and on pixels (EDM's DDPM++), with guidance at every step."""

    Settings = IMMSettings

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        facts = {"num_classes": card.num_classes, **card.architecture}
        self.sigma_data, self.scale = float(facts.pop("sigma_data", 0.5)), float(facts.pop("time_scale", 1000.0))
        self.first, self.last = float(facts.pop("T", 0.994)), float(facts.pop("eps", 0.0))
        self.second = _choice(card.name, facts, "temb_type", ("stride", "identity"))
        self.rule = _choice(card.name, facts, "f_type", ("euler_fm", "simple_edm"))
        kind = _choice(card.name, facts, "network", (*NETWORKS, "songunet"))
        try:
            self.network: nn.Module = dit(facts, card.name) if kind == "dit" else unet(facts, card.name)
        except TypeError as error:
            raise BenchError(f"card {card.name}: architecture of IMM: {error}") from error

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from the published wrapper's state dict."""
        load_strict(self.network, state, self.card.name)

    def unsupported(self, steps: int, cfg: float, settings: IMMSettings | None = None) -> str | None:
        """Refuse a grid of another number of steps."""
        settings = settings or self.resolve_settings(steps)
        return settings.misfit(steps, self.first, self.last) or super().unsupported(steps, cfg, settings)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: IMMSettings) -> Tensor:
        """Return samples of unit scale, float32 [B, C, H, W], by jumps of a float64 state."""
        F = Guided(
            at_times(self.predict, torch.float64), labels, null=torch.full_like(labels, self.num_classes), cfg=cfg
        )
        x = self.sigma_data * noise.normal(self.latent_shape).to(self.device).double()
        times = settings.times(steps, self.first, self.last)
        for k, (t, s) in enumerate(pairwise(times), start=1):
            if settings.sampler == "pushforward":
                x = self.jump(x, F(x, t, s).double(), t, s)
                continue
            x = self.jump(x, F(x, t, self.last).double(), t, self.last)
            if k < steps:
                x = (1 - s) * x + s * self.sigma_data * noise.normal(x.shape[1:], draw=k).to(x)
        return x.float() / self.sigma_data

    def predict(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """Return the network's F, float32 [B, C, H, W], for x of scale `sigma_data` and times float64 [B]."""
        c_in = 1 / (self.sigma_data * ((1 - t).square() + t.square()).sqrt())
        second = t - s if self.second == "stride" else s
        conditions = (labels,) if isinstance(self.network, DiT) else ()
        output: Tensor = self.network(x * per_sample(c_in, x).to(x), self.scale * t, self.scale * second, *conditions)
        return output

    def jump(self, x: Tensor, F: Tensor, t: float, s: float) -> Tensor:
        """Return x_s of x_t and F."""
        if self.rule == "euler_fm":
            return x - (t - s) * self.sigma_data * F
        norm = (1 - t) ** 2 + t**2
        c_skip = ((1 - t) * (1 - s) + t * s) / norm
        c_out = -((1 - s) * t - (1 - t) * s) / norm**0.5 * self.sigma_data
        return c_skip * x + c_out * F


def _choice(name: str, facts: dict[str, Any], key: str, known: Sequence[str]) -> str:
    value = str(facts.pop(key, known[0]))
    if value not in known:
        raise unknown(f"{key} of {name}", value, known)
    return value


def dit(facts: Mapping[str, Any], name: str) -> DiT:
    """Return the DiT of an architecture: embedders of two times, no norms of q and k."""
    facts = {key: value for key, value in facts.items() if key not in DIT_UNUSED}
    if facts.pop("qk_norm", False):
        raise BenchError(f"card {name}: qk_norm must be false: no published IMM model has norms of q and k")
    rows = facts.pop("num_classes") + 1
    return DiT(label_rows=rows, scalars=("t_embedder", "s_embedder"), precision=torch.float64, **facts)


def unet(facts: Mapping[str, Any], name: str) -> SongUNet:
    """Return the DDPM++ of an architecture in EDM's terms, with layers of its own for the second time."""
    kept = {key: value for key, value in facts.items() if key not in UNET_UNUSED}
    for key, value in UNET_FIXED.items():
        if kept.pop(key, value) not in (value, None):
            raise BenchError(f"card {name}: {key} must be {value!r} on IMM's U-Net, found {facts[key]!r}")
    channels = kept.pop("img_channels", kept.get("in_channels", 3))
    size = input_size(kept)
    for key in ("input_size", "latent_size", "img_resolution", "in_channels", "out_channels"):
        kept.pop(key, None)
    defaults: dict[str, Any] = {"resample_filter": (1, 1), "augment_dim": 0}
    return SongUNet(
        img_resolution=size, in_channels=channels, out_channels=channels, channel_mult_noise=1, scalar_inputs=1,
        interleaved_qkv=True, second_time=True, **defaults | kept,
    )  # fmt: skip


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of an IMM case."""
    adapter = recorded_adapter(case, IMM, "classifier-free")

    def run(call: Call) -> dict[str, Any]:
        if call["kind"] == "network":
            x, t, s, labels = case.arguments(call, "x", "t", "s", "labels", null_label=adapter.num_classes or None)
            return {"output": adapter.predict(x, t, s, labels)}
        options = case.options(call)
        if "mid_nt" in options:
            options["grid"] = options.pop("mid_nt")  # what upstream calls the levels between
        settings, labels = IMMSettings.checked(options, case.name), case.labels(call, adapter.num_classes)
        recorded = case.noise(call)  # at the scale of the state
        noise = RecordedNoise(recorded.initial / adapter.sigma_data, recorded.injected)
        w, sd = call.get("guidance", 1.0), adapter.sigma_data
        return sampled(adapter, lambda: adapter.generate(labels, call["steps"], w, noise, settings) * sd)

    return run
