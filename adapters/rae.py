"""RAE (arXiv 2510.11690): DiT-DH on the latents of a frozen representation encoder, with a trained ViT decoder.

Noise lies at t = 1 and data at t = 0; the network predicts v = noise - data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapters.autoencoders import AutoencoderKind, build_autoencoder, register
from adapters.networks.ditdh import DiTDH
from adapters.networks.rae_decoder import RAEDecoder
from adapters.networks.rae_encoder import RAEEncoder, used_weights
from bench.contracts.adapter import Adapter, load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay
from results.errors import BenchError, unknown

T_STOP = 0.999
"""The unshifted grid ends at 1 - T_STOP, not at 0, and there is no last step to 0."""
STATISTICS_EPS = 1e-5
METHODS = ("autoguidance", "classifier-free")

Predict = Callable[[Tensor, Tensor, bool], Tensor]
State = Mapping[str, Tensor]


def time_grid(steps: int, shift: float) -> Tensor:
    """Return the `steps` + 1 decreasing times of `steps` Euler steps, float32, shifted towards noise by `shift` >= 1.

    With a shift that float32 cannot represent well the first time may round to just above 1, where a guidance interval
    ending at 1 does not reach: as published.
    """
    if steps < 1:
        raise BenchError(f"steps must be at least 1, found {steps}")
    u = 1 - torch.linspace(0, T_STOP, steps + 1, device="cpu")
    return shift * u / (1 + (shift - 1) * u)


def euler_sample(
    predict: Predict,
    noise: NoiseSource,
    shape: Sequence[int],
    steps: int,
    *,
    interval: Sequence[float] = (0.0, 1.0),
    time_dist_shift_dim: float = 4096,
    time_dist_shift_base: float = 4096,
) -> Tensor:
    """Integrate dx/dt = v from noise to the last time of the grid, float32 [B, *shape].

    `predict(x, t, guided)` takes x float32 [B, *shape] and t float32 [B] and returns v; `guided` says whether t lies in
    `interval`, both ends included. The times are shifted by sqrt(time_dist_shift_dim / time_dist_shift_base); equal
    numbers leave them uniform. Raises BenchError for a shift or an interval that is none.
    """
    if time_dist_shift_dim <= 0 or time_dist_shift_base <= 0:
        raise BenchError(
            "time_dist_shift_dim and time_dist_shift_base must be above 0, "
            f"found {time_dist_shift_dim} and {time_dist_shift_base}"
        )
    if len(interval) != 2:
        raise BenchError(f"interval must be two times (first, last), found {list(interval)}")
    times = time_grid(steps, (time_dist_shift_dim / time_dist_shift_base) ** 0.5)
    guided = ((times >= interval[0]) & (times <= interval[1])).tolist()

    x = noise.normal(shape)
    for (t, t_next), inside in zip(pairwise(times), guided[:-1], strict=True):
        v = predict(x, x.new_full((len(x),), float(t)), inside)
        x = x + float(t_next - t) * v
    return x


class LatentStatistics(NamedTuple):
    """Mean and standard deviation of encoder latents: per position and channel, [C, h, w], or scalars."""

    mean: Tensor
    std: Tensor

    def normalise(self, latents: Tensor) -> Tensor:
        """Return model-space latents of encoder latents, [B, C, h, w]."""
        return (latents - self.mean) / self.std


def latent_statistics(state: State, eps: float = STATISTICS_EPS) -> LatentStatistics:
    """Return the statistics of a published file (`mean` and `var`; either may be missing: 0 and 1)."""
    mean = state.get("mean", torch.zeros(()))
    variance = state.get("var", torch.ones(()))
    return LatentStatistics(mean.float(), (variance.float() + eps).sqrt())


class RAE(Adapter):
    """DiT-DH guided by itself without a label or by a second, weaker DiT-DH (`architecture.guide`)."""

    network: DiTDH

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        architecture = dict(card.architecture)
        weak = architecture.pop("guide", None)
        self.network = DiTDH(**architecture)
        self.guide = None if weak is None else DiTDH(**weak)
        self.autoencoder = build_autoencoder(card.autoencoder)
        decoder = self.autoencoder.decoder
        if isinstance(decoder, RAEDecoder):
            self.autoencoder.convert = lambda state: decoder.with_positions(bare_state(state))

    def load(self, state: State, extra: Mapping[str, State]) -> None:
        """Load the network, and from `extra` what the card names: `guide` (weak network), `statistics` (of latents)."""
        for role in self.card.extra_weights:
            if role not in extra:
                raise BenchError(f"{self.card.name}: no state was given for '{role}'; fetch its file")
        load_strict(self.network, bare_state(state), self.card.name)
        if self.guide is not None and "guide" in extra:
            load_strict(self.guide, bare_state(extra["guide"]), f"{self.card.name} (guide)")
        if "statistics" in extra:
            statistics = latent_statistics(extra["statistics"])
            for value in statistics:
                if value.ndim and tuple(value.shape) != self.latent_shape:
                    raise BenchError(
                        f"{self.card.name}: latent statistics have shape {tuple(value.shape)}, the latents "
                        f"{self.latent_shape}; each resolution has statistics of its own"
                    )
            self.autoencoder.use_statistics(*statistics)

    def unsupported(self, steps: int, cfg: float) -> str | None:
        """Refuse guidance that the card has no network or no null label for."""
        reason = super().unsupported(steps, cfg)
        if reason is None and cfg != 1.0:
            reason = self._unguidable(self.resolve_settings(steps)["method"])
        return reason

    def _unguidable(self, method: str) -> str | None:
        if method == "autoguidance" and self.guide is None:
            return f"{self.card.name} has no second, weaker network for autoguidance; use method=classifier-free"
        if method == "classifier-free" and not self.card.architecture.get("class_dropout_prob", 0.1) > 0:
            return f"{self.card.name} was trained without a null label, which classifier-free guidance needs"
        return None

    def generate(
        self,
        labels: Tensor,
        steps: int,
        cfg: float,
        noise: NoiseSource,
        *,
        method: str = "classifier-free",
        interval: Sequence[float] = (0.0, 1.0),
        time_dist_shift_dim: float = 4096,
        time_dist_shift_base: float = 4096,
    ) -> Tensor:
        """Return latents in model space, float32 [B, C, h, w], by `steps` Euler steps (see `euler_sample`).

        `method` classifier-free: v_null + cfg (v - v_null) by a doubled batch; autoguidance: v_weak + cfg (v - v_weak)
        where the weak network (`guide`) gets the same label. At times outside `interval`, and at cfg 1, there is one
        evaluation. Raises BenchError for a method that does not exist or that the model has no network for.
        """
        if method not in METHODS:
            raise unknown("guidance method of RAE", method, METHODS)
        if cfg != 1.0 and (reason := self._unguidable(method)) is not None:
            raise BenchError(reason)
        null = torch.full_like(labels, self.card.num_classes)

        def predict(x: Tensor, t: Tensor, guided: bool) -> Tensor:
            if cfg == 1.0 or not guided:
                return self.network(x, t, labels)
            if method == "autoguidance" and self.guide is not None:
                v, v_weak = self.network(x, t, labels), self.guide(x, t, labels)
            else:
                doubled = self.network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, null]))
                v, v_weak = doubled.chunk(2)
            return v_weak + cfg * (v - v_weak)

        return euler_sample(
            predict, noise, self.latent_shape, steps, interval=interval,
            time_dist_shift_dim=time_dist_shift_dim, time_dist_shift_base=time_dist_shift_base,
        )  # fmt: skip

    def decode(self, latents: Tensor) -> Tensor:
        """Return images, float32 [B, 3, H, W] in [-1, 1]."""
        images: Tensor = self.autoencoder.decode(latents)
        return images


def bare_state(state: State) -> dict[str, Tensor]:
    """Return the sampled weights of a published file: its `ema` tree where there is one, wrappers' prefixes stripped.

    Raises BenchError for a training file without averaged weights.
    """
    trees: Mapping[str, Any] = state
    if "ema" not in trees and any(key.partition("/")[0] == "model" for key in trees):
        raise BenchError("this RAE checkpoint holds 'model' but no averaged weights 'ema'; give the released file")
    bare = {}
    for key, value in trees.get("ema", trees).items():
        while key.startswith(("module.", "_orig_mod.")):
            key = key.partition(".")[2]
        bare[key] = value
    return bare


def _decoder(file: str, **config: Any) -> AutoencoderKind:
    weights = {"format": "torch", "repo": "nyu-visionx/RAE-collections", "file": f"decoders/{file}/model.pt"}
    facts = {"weights": weights, "output_range": "zero-one", "downsample": 16, "config": config}
    return AutoencoderKind(RAEDecoder, bare_state, facts)


HALF = (0.5, 0.5, 0.5)
DECODERS = {
    "rae-dinov2-b": _decoder("dinov2/wReg_base/ViTXL_n08"),
    "rae-dinov2-b-512": _decoder("dinov2/wReg_base/ViTXL_n08_i512", num_patches=1024),
    # Siblings trained with another amount of latent noise than 0.8: by their files' names none, 0.5 and 1.0.
    "rae-dinov2-b-n00": _decoder("dinov2/wReg_base/ViTXL"),
    "rae-dinov2-b-n05": _decoder("dinov2/wReg_base/ViTXL_n05"),
    "rae-dinov2-b-n10": _decoder("dinov2/wReg_base/ViTXL_n10"),
    # No denoiser is published for these two; they decode latents of facebook/vit-mae-base and of
    # google/siglip2-base-patch16-256.
    "rae-mae-b": _decoder("mae/base_p16/ViTXL_n08"),
    "rae-siglip2-b": _decoder("siglip2/base_p16_i256/ViTXL_n08", image_mean=HALF, image_std=HALF),
}
for _name, _kind in DECODERS.items():
    register(_name, _kind)


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a DiT-DH case (parity adapter `rae`)."""
    name, architecture = case.spec["name"], case.architecture
    side, channels, classes = (architecture[key] for key in ("input_size", "in_channels", "num_classes"))
    adapter = RAE(ModelCard(name, "rae", name, side, classes, (channels, side, side), architecture))
    adapter.load(case.weights, {})
    adapter.to("cpu")

    @cache
    def other_network(file: str, architecture: str) -> DiTDH:
        role = next(role for role, known in case.spec["extra_weights"].items() if known == file)
        network = DiTDH(**case.spec[architecture])
        load_strict(network, bare_state(case.extra_weights(role)), f"{name} ({role})")
        return network.eval()

    def run(call: Call) -> dict[str, Any]:
        if call["kind"] == "network":
            network = adapter.network
            if "weights" in call:
                network = other_network(call["weights"], call.get("architecture", "architecture"))
            inputs = (case.tensors[call["inputs"][role]] for role in ("x", "t", "labels"))
            return {"output": network(*inputs)}
        options = case.options(call)
        recorded = options.pop("method", "none")
        cfg = 1.0 if recorded == "none" else max(call.get("guidance", 1.0), 1.0)  # Upstream: up to 1 is off.
        file = options.pop("guide_weights", None)
        adapter.guide = None if file is None else other_network(file, "guide_architecture")
        method = {"cfg": "classifier-free", "none": "classifier-free"}.get(recorded, recorded)
        labels = case.labels(call, classes)
        latents = adapter.generate(labels, call["steps"], cfg, case.noise(call), method=method, **options)
        return {"output": latents}

    return run


def replay_decoder(case: Case) -> Replay:
    """Return the function that replays one recorded call of a decoder case (parity adapter `rae-decoder`)."""
    config = dict(case.architecture)
    eps = config.pop("stat_eps", STATISTICS_EPS)
    autoencoder = build_autoencoder({"kind": "rae-dinov2-b", "config": config}).eval()
    autoencoder.load({"autoencoder": case.weights})
    decoder = autoencoder.decoder
    assert isinstance(decoder, RAEDecoder)

    def run(call: Call) -> dict[str, Any]:
        inputs = {role: value for role, value in case.inputs(call).items() if value is not None}
        if call["kind"] == "network":
            return {"output": decoder.patches(inputs["tokens"])}
        options = call.get("options", {})
        statistics = LatentStatistics(torch.zeros(()), torch.ones(()))
        if options.get("normalise", True):
            recorded = {"mean": inputs.get("stat_mean"), "var": inputs.get("stat_var")}
            statistics = latent_statistics({key: value for key, value in recorded.items() if value is not None}, eps)
        autoencoder.use_statistics(*statistics)
        if "image_mean" in inputs:
            decoder.use_image_statistics(inputs["image_mean"], inputs["image_std"])
        if not options.get("uint8", False):
            return {"output": autoencoder.raw(inputs["latent"])}
        image = (255 * (autoencoder.decode(inputs["latent"]) + 1) / 2).to(torch.uint8)
        return {"output": image.permute(0, 2, 3, 1) if options.get("layout", "BHWC") == "BHWC" else image}

    return run


def replay_encoder(case: Case) -> Replay:
    """Return the function that replays one recorded call of an encoder case (parity adapter `rae-encoder`)."""
    architecture = dict(case.architecture)
    eps = architecture.pop("stat_eps", STATISTICS_EPS)
    encoder = RAEEncoder(**architecture).eval()
    load_strict(encoder, used_weights(case.weights), case.spec["name"])

    def run(call: Call) -> dict[str, Any]:
        inputs = {role: value for role, value in case.inputs(call).items() if value is not None}
        if call["kind"] == "network":
            return {"output": encoder(inputs["pixels"])}
        latents = encoder.encode(inputs["image"], inputs["image_mean"], inputs["image_std"])
        recorded = {"mean": inputs.get("stat_mean"), "var": inputs.get("stat_var")}
        if not call.get("options", {}).get("normalise", True) or recorded == {"mean": None, "var": None}:
            return {"output": latents}
        statistics = latent_statistics({key: value for key, value in recorded.items() if value is not None}, eps)
        return {"output": statistics.normalise(latents)}

    return run
