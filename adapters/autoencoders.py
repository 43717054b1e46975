"""Autoencoders: from normalised latents to images, as each published model decodes them.

A card names one by `kind` (a key of `KINDS`) and may override its facts: `weights` and `statistics` (where the files
lie), `mean`, `std` and `multiplier` of the latents, `output_range`, `decode_batch`, and whatever the kind's decoder
takes in `config`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adapters.networks.group_norm import keep_layout
from adapters.networks.kl_autoencoder import KLDecoder
from adapters.networks.layers import Float32Buffers
from bench.contracts.adapter import load_strict
from bench.contracts.card import WeightsSource
from bench.contracts.recording import Call, Case, Replay
from results.errors import BenchError, unknown

State = Mapping[str, Tensor]
OUTPUT_RANGES = ("minus-one-one", "zero-one")
PIXELS_PER_PASS = 8 * 512 * 512
"""Image pixels decoded at once unless told otherwise."""
VALUES_PER_PIXEL = 900
"""Activations alive at the decoder's peak, per image pixel, in the SD-VAE, the hungriest: 7.5 GB a pass in float32."""


@dataclass(frozen=True)
class AutoencoderKind:
    """How one kind of autoencoder is built and which facts its cards need not repeat."""

    build: Callable[..., nn.Module]
    """Makes the decoder (latents to unclamped images) from the `config` facts."""
    convert: Callable[[State], State]
    """Takes a published state dict to the decoder's keys."""
    facts: Mapping[str, Any] = field(default_factory=dict)


class Autoencoder(Float32Buffers):
    """The decoding half of an autoencoder with its latents' statistics.

    The decoder sees sample * std / multiplier + mean.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        decoder: nn.Module | None = None,
        *,
        kind: str = "identity",
        convert: Callable[[State], State] = dict,
        weights: Mapping[str, Any] | None = None,
        statistics: Mapping[str, Any] | None = None,
        mean: Any = 0.0,
        std: Any = 1.0,
        multiplier: float = 1.0,
        output_range: str = "minus-one-one",
        downsample: int = 1,
        decode_batch: int | None = None,
    ) -> None:
        super().__init__()
        if output_range not in OUTPUT_RANGES:
            raise unknown("output_range of an autoencoder", output_range, OUTPUT_RANGES)
        self.decoder = decoder
        self.kind = kind
        self.convert = convert
        self.files = {"autoencoder": weights, "statistics": statistics}
        self.multiplier = multiplier
        self.output_range = output_range
        self.downsample = downsample
        self.decode_batch = decode_batch
        self.register_buffer("mean", _as_latent(torch.tensor(mean)), persistent=False)
        self.register_buffer("std", _as_latent(torch.tensor(std)), persistent=False)

    def sources(self) -> dict[str, WeightsSource]:
        """Return the files that `load` needs, by role: `autoencoder` and, where they are measured, `statistics`."""
        return {role: WeightsSource(**facts) for role, facts in self.files.items() if facts is not None}

    def load(self, states: Mapping[str, State]) -> None:
        """Fill decoder and statistics from the states of `sources()` by role.

        Raises BenchError listing keys that do not fit, or naming the statistics that are not there.
        """
        needed = {role for role, facts in self.files.items() if facts is not None}
        for role in sorted(needed | {"autoencoder"} if self.decoder is not None else needed):
            if role not in states:
                raise BenchError(f"autoencoder {self.kind}: no state was given for '{role}'; fetch its file")
        if self.decoder is not None:
            load_strict(self.decoder, self.convert(states["autoencoder"]), f"autoencoder {self.kind}")
        if "statistics" in states:
            statistics = states["statistics"]
            if "mean" not in statistics or "std" not in statistics:
                found = ", ".join(list(statistics)[:5])
                raise BenchError(f"latent statistics of {self.kind} need the keys mean and std, found: {found}")
            self.use_statistics(statistics["mean"], statistics["std"])

    def use_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the latents' mean and standard deviation: scalars, [C], [C, H, W] or [1, C, 1, 1]."""
        self.mean, self.std = (_as_latent(value).to(self.mean.device) for value in (mean, std))

    def raw(self, latents: Tensor) -> Tensor:
        """Return the decoder's own output, float32 [B, 3, H, W], for normalised latents float32 [B, C, h, w]."""
        latents = latents.float() * self.std / self.multiplier + self.mean
        if self.decoder is None:
            return latents
        dtype = next(self.decoder.parameters()).dtype
        pixels = latents.shape[-2] * latents.shape[-1] * self.downsample**2
        size = self.decode_batch or images_per_pass(pixels, dtype, latents.device)
        return torch.cat([self.decoder(part.to(dtype)).float() for part in latents.split(size)])

    def decode(self, latents: Tensor) -> Tensor:
        """Return images, float32 [B, 3, H, W] in [-1, 1], from normalised latents float32 [B, C, h, w].

        Without a decoder (a model of pixels) the samples pass as they are, unclamped.
        """
        y = self.raw(latents)
        if self.decoder is None:
            return y
        if self.output_range == "zero-one":
            y = 2 * y - 1
        return y.clamp(-1, 1)


def images_per_pass(pixels: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return how many images of `pixels` pixels to decode at once: a fixed number, fewer where memory is short.

    The number is the same on every device with room for it, because kernels may round differently at other batches.
    """
    size = PIXELS_PER_PASS // pixels
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        size = min(size, int(0.8 * free) // (pixels * VALUES_PER_PIXEL * dtype.itemsize))
    return max(1, size)


def build_autoencoder(facts: Mapping[str, Any] | None, decode_batch: int | None = None) -> Autoencoder:
    """Return the autoencoder that a card's `autoencoder` table describes, not yet loaded; None is the identity.

    `decode_batch` is the number of images decoded at once (default: `images_per_pass`). Raises BenchError for an
    unknown kind or fact.
    """
    if facts is None:
        return Autoencoder()
    facts = dict(facts)
    name = facts.pop("kind", None)
    if not isinstance(name, str) or name not in KINDS:
        raise unknown("autoencoder kind", str(name), KINDS)
    kind = KINDS[name]
    merged: dict[str, Any] = {"decode_batch": decode_batch} | dict(kind.facts) | facts
    config = dict(merged.pop("config", {}))
    try:
        return Autoencoder(kind.build(**config), kind=name, convert=kind.convert, **merged)
    except TypeError as error:
        raise BenchError(f"autoencoder {name}: {error}; see the facts its kind takes") from error


def register(name: str, kind: AutoencoderKind) -> None:
    """Make a further kind known under `name` (families with a decoder of their own call this on import)."""
    KINDS[name] = kind


def _as_latent(value: Tensor) -> Tensor:
    value = value.detach().float()
    if value.ndim in (0, 1):
        return value.reshape(1, -1, 1, 1)
    return value if value.ndim == 4 else value[None]


class DiffusersDecoder(nn.Module):
    """The decoding half of a diffusers autoencoder; keys as in diffusers."""

    def __init__(self, decoder: nn.Module, post_quant_conv: nn.Module | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.post_quant_conv = post_quant_conv

    def forward(self, latents: Tensor) -> Tensor:
        """Latents to unclamped images."""
        z = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        images: Tensor = self.decoder(z)
        return images


def _sd_vae(**config: Any) -> nn.Module:
    from diffusers import AutoencoderKL

    published = {
        "latent_channels": 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    whole: Any = AutoencoderKL(**(published | config))
    return DiffusersDecoder(keep_layout(whole.decoder), whole.post_quant_conv)


def _dc_ae(**config: Any) -> nn.Module:
    from diffusers import AutoencoderDC

    published = {
        "latent_channels": 32,
        "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
        "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
        "encoder_layers_per_block": (0, 4, 8, 2, 2, 2),
        "decoder_layers_per_block": (0, 5, 10, 2, 2, 2),
        "encoder_qkv_multiscales": ((),) * 6,
        "decoder_qkv_multiscales": ((),) * 6,
        "decoder_norm_types": ("batch_norm",) * 3 + ("rms_norm",) * 3,
        "decoder_act_fns": ("relu",) * 3 + ("silu",) * 3,
    }
    whole: Any = AutoencoderDC(**(published | config))
    return DiffusersDecoder(whole.decoder, None)


# diffusers renamed the attention layers of its autoencoders; the published SD-VAE files have the old names.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def decoding_half(state: State) -> State:
    """Keep the decoder and `post_quant_conv` of an autoencoder's state dict, with today's names."""
    kept = {}
    for key, value in state.items():
        if key.startswith(("decoder.", "post_quant_conv.")):
            for old, new in _OLD_ATTENTION.items():
                key = key.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
            kept[key] = value
    return kept


def _hub(repo: str, file: str, format: str = "torch") -> dict[str, str]:
    return {"format": format, "repo": repo, "file": file}


def _ucgm(name: str, resolution: int) -> dict[str, Any]:
    return {
        "weights": _hub("sp12138sp/UCGM", f"buffers/vaes/{name}.ckpt"),
        "statistics": _hub("sp12138sp/UCGM", f"buffers/vaes/stat/{name}_{resolution}.pt"),
    }


_SD_EMA = {"weights": _hub("stabilityai/sd-vae-ft-ema", "diffusion_pytorch_model.safetensors", "safetensors")}
_SD_MSE = {"weights": _hub("stabilityai/sd-vae-ft-mse", "diffusion_pytorch_model.safetensors", "safetensors")}
_SD = {"downsample": 8, "multiplier": 0.18215}
_EDM2_RAW_MEAN = (5.81, 3.25, 0.12, -2.15)
_EDM2_RAW_STD = (4.17, 4.62, 3.71, 3.28)
_EDM2_STD = 0.5
_KL_F16 = {"downsample": 16, "config": {"latent_channels": 32}}

KINDS: dict[str, AutoencoderKind] = {
    "kl": AutoencoderKind(KLDecoder, decoding_half),
    "sd-vae-ema": AutoencoderKind(_sd_vae, decoding_half, _SD_EMA | _SD),
    "sd-vae-mse": AutoencoderKind(_sd_vae, decoding_half, _SD_MSE | _SD),
    # EDM2's latents have standard deviation 0.5, and its decoder's output is taken as [0, 1] without (y + 1) / 2.
    "edm2-sd-vae": AutoencoderKind(
        _sd_vae,
        decoding_half,
        _SD_MSE
        | {
            "downsample": 8,
            "mean": _EDM2_RAW_MEAN,
            "std": tuple(std / _EDM2_STD for std in _EDM2_RAW_STD),
            "output_range": "zero-one",
        },
    ),
    "va-vae": AutoencoderKind(KLDecoder, decoding_half, _ucgm("vavae_f16d32", 256) | _KL_F16),
    "e2e-va-vae": AutoencoderKind(KLDecoder, decoding_half, _ucgm("e2evavae_f16d32", 256) | _KL_F16),
    # The latents are normalised by measured statistics; diffusers' scaling factor (0.3189) plays no part.
    "dc-ae-f32c32": AutoencoderKind(
        _dc_ae,
        decoding_half,
        _ucgm("dcae_f32c32", 512)
        | {
            "weights": _hub(
                "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers", "diffusion_pytorch_model.safetensors", "safetensors"
            ),
            "downsample": 32,
        },
    ),
}


def replay(case: Case) -> Replay:
    """Return the replay of recorded calls of the KL decoder (parity adapter `ucgm-autoencoder`)."""
    config = {key: value for key, value in case.architecture.items() if key != "network"}
    autoencoder = build_autoencoder({"kind": "kl", "config": config}).eval()
    autoencoder.load({"autoencoder": case.weights})

    def run(call: Call) -> dict[str, Any]:
        inputs = case.inputs(call)
        latent = inputs["latent"]
        assert latent is not None
        mean, std = inputs.get("mean"), inputs.get("std")
        autoencoder.use_statistics(
            torch.tensor(0.0) if mean is None else mean, torch.tensor(1.0) if std is None else std
        )
        autoencoder.multiplier = call.get("multiplier", 1.0)
        raw = autoencoder.raw(latent)
        if call["kind"] == "network":
            return {"output": raw}
        images = {}
        for output_range in OUTPUT_RANGES:
            autoencoder.output_range = output_range
            images[output_range] = (autoencoder.decode(latent) + 1) / 2
        image = images["minus-one-one"]
        return {
            "raw": raw,
            "output": image,
            "output_zero_one": images["zero-one"],
            "output_uint8": (255 * image).to(torch.uint8),
        }

    return run
