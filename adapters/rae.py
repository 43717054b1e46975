"""RAE (arXiv 2510.11690): DiT-DH on the latents of a frozen representation encoder, with a trained ViT decoder.

Noise lies at t = 1 and data at t = 0; the network predicts v = noise - data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from adapters.autoencoders import AutoencoderKind, build_autoencoder, register
from adapters.guidance import Guided
from adapters.integrators import SOLVER, FixedSolver, fixed_steps
from adapters.latent import LatentAdapter
from adapters.meanflow import TimedSettings
from adapters.networks.ditdh import DiTDH
from adapters.networks.rae_decoder import RAEDecoder
from adapters.times import at_times
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter
from bench.contracts.settings import Number, SamplerSettings
from results.errors import BenchError

T_STOP = 0.999
"""The unshifted grid ends at 1 - T_STOP, not at 0, and there is no last step to 0."""
STATISTICS_EPS = 1e-5

State = Mapping[str, Tensor]


class RAESettings(TimedSettings):
    """Steps on a grid shifted by the size of the latents, and what guides them."""

    method: Literal["classifier-free", "autoguidance"] = Field(
        "classifier-free",
        description="what guides: the network itself without a label, or a second, weaker one with the same label",
    )
    interval: Sequence[Number] = Field(
        (0.0, 1.0), min_length=2, max_length=2, description="first and last time that are guided, both included"
    )
    time_dist_shift_dim: Number = Field(4096, gt=0, description="number of values in a latent")
    time_dist_shift_base: Number = Field(
        4096, gt=0, description="the times are shifted by sqrt(time_dist_shift_dim / time_dist_shift_base)"
    )
    solver: FixedSolver = Field("euler", description=SOLVER)

    def grid(self, steps: int) -> tuple[float, ...]:
        """Return the times of `steps` steps."""
        if self.times is not None:
            return super().grid(steps)
        return tuple(time_grid(steps, (self.time_dist_shift_dim / self.time_dist_shift_base) ** 0.5).tolist())


def time_grid(steps: int, shift: float) -> Tensor:
    """Return the `steps` + 1 decreasing times of `steps` steps, float32, shifted towards noise by `shift` >= 1.

    With a shift that float32 cannot represent well the first time may round to just above 1, where a guidance interval
    ending at 1 does not reach: as published.
    """
    u = 1 - torch.linspace(0, T_STOP, steps + 1, device="cpu")
    return shift * u / (1 + (shift - 1) * u)


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


class RAE(LatentAdapter):
    """DiT-DH guided by itself without a label or by a second, weaker DiT-DH (`architecture.guide`)."""

    Settings: ClassVar[type[SamplerSettings]] = RAESettings
    network: DiTDH

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        architecture = dict(card.architecture)
        weak = architecture.pop("guide", None)
        try:
            self.network = self.build_network(**architecture)
            self.guide = None if weak is None else self.build_network(**weak)
        except TypeError as error:
            raise BenchError(f"card {card.name}: architecture of DiT-DH: {error}") from error
        decoder = self.autoencoder.decoder
        if isinstance(decoder, RAEDecoder):
            self.autoencoder.convert = lambda state: decoder.with_positions(bare_state(state))

    @staticmethod
    def build_network(**facts: Any) -> DiTDH:
        """Return the network of an architecture's facts."""
        return DiTDH(**facts)

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

    def unsupported(self, steps: int, cfg: float, settings: RAESettings | None = None) -> str | None:
        """Refuse guidance that the card has no network or no null label for."""
        settings = settings or self.resolve_settings(steps)
        misfit, method = settings.misfit(steps), settings.method
        if misfit is not None:
            return f"{self.card.name}: {misfit}"
        if cfg != 1.0 and method == "autoguidance" and self.guide is None:
            return f"{self.card.name} has no second, weaker network for autoguidance; use method=classifier-free"
        dropout = self.card.architecture.get("class_dropout_prob", 0.1)
        if cfg != 1.0 and method == "classifier-free" and not dropout > 0:
            return f"{self.card.name} was trained without a null label, which classifier-free guidance needs"
        return super().unsupported(steps, cfg, settings)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: RAESettings) -> Tensor:
        """Return latents in model space, float32 [B, C, h, w], by `steps` steps of the solver."""
        z = noise.normal(self.latent_shape)
        return fixed_steps(self.euler_field(labels, cfg, settings), z, settings.grid(steps), settings.solver)

    def euler_field(self, labels: Tensor, cfg: float, settings: RAESettings) -> Guided:
        """Return the guided flow."""
        return Guided(
            at_times(self.network),
            labels,
            null=torch.full_like(labels, self.card.num_classes),
            cfg=cfg,
            interval=(settings.interval[0], settings.interval[1]),
            weak=at_times(self.guide) if settings.method == "autoguidance" and self.guide is not None else None,
        )


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
    adapter = recorded_adapter(case, RAE)

    @cache
    def other_network(file: str, architecture: str) -> DiTDH:
        role = next(role for role, known in case.spec["extra_weights"].items() if known == file)
        network = DiTDH(**case.spec[architecture])
        load_strict(network, bare_state(case.extra_weights(role)), f"{case.name} ({role})")
        return network.eval()

    def run(call: Call) -> dict[str, Any]:
        if call["kind"] == "network":
            network = adapter.network
            if "weights" in call:
                network = other_network(call["weights"], call.get("architecture", "architecture"))
            return {"output": network(*case.arguments(call, "x", "t", "labels", null_label=adapter.num_classes))}
        options = case.options(call)
        recorded = options.pop("method", "none")
        cfg = 1.0 if recorded == "none" else max(call.get("guidance", 1.0), 1.0)  # Upstream: up to 1 is off.
        file = options.pop("guide_weights", None)
        adapter.guide = None if file is None else other_network(file, "guide_architecture")
        options["method"] = "autoguidance" if recorded == "autoguidance" else "classifier-free"
        settings, labels = RAESettings.checked(options, case.name), case.labels(call, adapter.num_classes)
        return {"output": adapter.generate(labels, call["steps"], cfg, case.noise(call), settings)}

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
