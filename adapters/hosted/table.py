"""What sets the pipeline classes of diffusers apart, one row each; how each was found is told in text-to-image.md."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from torch import Tensor

from results.errors import BenchError, unknown

Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """How a class holds the latents: what its `latents` argument takes, and what its latent output is."""

    pack: Callable[[Tensor], Tensor]
    """From unit noise [B, C, h, w] to what the pipeline takes."""
    stepped: Callable[[Tensor], Tensor]
    """From unit noise [B, C, h, w] to what its scheduler steps in."""
    unpack: Callable[[Tensor, tuple[int, ...]], Tensor]
    """From the pipeline's latent output to the decoder's [B, C, h, w], with the shape [C, h, w] of the noise."""


@dataclass(frozen=True)
class Hosting:
    """One pipeline class.

    Attributes:
        network: name of the component that is evaluated, and its class.
        autoencoder: class of the component `vae`.
        conditioning: shapes of one prompt's embeddings by argument, from the network's configuration and a number of
            tokens; those of the negative prompt have the same names with `negative_` before.
        tokens: length to which the class pads or cuts a prompt.
        layout: how it holds latents.
        decoding: how its latents become the autoencoder's: `scaled`, `shifted` (scaled and shifted), `batch-norm`,
            `per-channel`, or `decoded` where its latent output is that already.
        eps: of `batch-norm`, where the class has a number of its own; None: the autoencoder's.
        argument: the argument that carries guidance.
        offset: what is taken off the usual weight (1: no guidance) to get it: 1 where the class means c + s (c - u).
        listed: whether embeddings are lists of one tensor a sample, each of its own length.
        masked: the argument that says which tokens of a padded embedding are real, by embedding.
        encoded: what `encode_prompt` returns, in order, as arguments; None for what the call works out itself.
        encoding: further arguments of `encode_prompt`.
        options: settings that the class takes, with its own argument for each.
        fixed: arguments of every call: what is switched off.
        text: its components that read the prompt.
        constructor: settings of the constructor.
        exact: whether the state is float32 whatever the network's dtype; else it is the network's.
        mask: the type of masks.
        sizes: the argument of `encode_prompt` that carries the number of tokens; empty where the tokenizer knows it.
    """

    network: tuple[str, str]
    autoencoder: str
    conditioning: Callable[[Config, int], Shapes]
    tokens: int
    layout: Layout
    text: tuple[str, ...]
    encoded: tuple[str | None, ...]
    decoding: str = "scaled"
    eps: float | None = None
    argument: str = "guidance_scale"
    offset: float = 0.0
    listed: bool = False
    masked: Mapping[str, str] = field(default_factory=dict)
    encoding: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    constructor: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False
    mask: str = "int64"
    sizes: str = "max_sequence_length"


def same(latents: Tensor) -> Tensor:
    """Return the latents as they are."""
    return latents


def as_it_is(latents: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the latents as they are."""
    return latents


def to_tokens(latents: Tensor) -> Tensor:
    """Return tokens [B, h w / 4, 4 C] of the 2x2 blocks of latents [B, C, h, w]; features (channel, row, column)."""
    b, c, h, w = latents.shape
    blocks = latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(b, h * w // 4, 4 * c)


def from_tokens(tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return latents [B, C, h, w] of tokens [B, h w / 4, 4 C], `shape` [C, h, w]."""
    c, h, w = shape
    blocks = tokens.reshape(len(tokens), h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(len(tokens), c, h, w)


def flattened(latents: Tensor) -> Tensor:
    """Return tokens [B, h w, C] of latents [B, C, h, w]."""
    return latents.flatten(2).transpose(1, 2)


def from_flattened(tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return latents [B, C, h, w] of tokens [B, h w, C], `shape` [C, h, w]."""
    return tokens.transpose(1, 2).reshape(len(tokens), *shape)


SPATIAL = Layout(same, same, as_it_is)
TOKENS = Layout(to_tokens, to_tokens, from_tokens)
GRID = Layout(same, flattened, from_flattened)
"""FLUX.2 takes the patchified grid, steps in its flattened tokens and returns these."""
KLEIN_GRID = Layout(same, flattened, as_it_is)
"""FLUX.2 klein steps in the flattened tokens and returns the decoder's latents."""


def _clip(config: Config, tokens: int) -> Shapes:
    return {"prompt_embeds": (tokens, config.get("cross_attention_dim", 768))}


def _clip_pair(config: Config, tokens: int) -> Shapes:
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return {**_clip(config, tokens), "pooled_prompt_embeds": (pooled,)}


def _joint(pooled: int | None) -> Callable[[Config, int], Shapes]:
    def shapes(config: Config, tokens: int) -> Shapes:
        found: Shapes = {"prompt_embeds": (tokens, config.get("joint_attention_dim", 4096))}
        if pooled is not None:
            found["pooled_prompt_embeds"] = (config.get("pooled_projection_dim", pooled),)
        return found

    return shapes


def _of(*keys: tuple[str, int]) -> Callable[[Config, int], Shapes]:
    """Return shapes of one embedding whose trailing sizes are these configuration keys (with their defaults)."""
    return lambda config, tokens: {"prompt_embeds": (tokens, *(config.get(key, value) for key, value in keys))}


def _glyphs(config: Config, tokens: int) -> Shapes:
    shapes: Shapes = {"prompt_embeds": (tokens, config.get("text_embed_dim", 3584))}
    shapes["prompt_embeds_2"] = (GLYPH_TOKENS, config.get("text_embed_2_dim") or GLYPH_WIDTH)
    return shapes


GLYPH_TOKENS, GLYPH_WIDTH = 128, 1472
"""HunyuanImage's second encoder reads the quoted text of a prompt; without any its embedding is zero."""
_STABLE = {"timesteps": "timesteps", "sigmas": "sigmas", "eta": "eta"}
_PAIR = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
_UNSAFE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False, "image_encoder": None}

HOSTED: Mapping[str, Hosting] = {
    "StableDiffusionPipeline": Hosting(
        network=("unet", "UNet2DConditionModel"),
        autoencoder="AutoencoderKL",
        conditioning=_clip,
        tokens=77,
        layout=SPATIAL,
        text=("text_encoder", "tokenizer"),
        encoded=("prompt_embeds", "negative_prompt_embeds"),
        encoding={"num_images_per_prompt": 1, "do_classifier_free_guidance": True},
        options=_STABLE,
        constructor=_UNSAFE,
        sizes="",
    ),
    "StableDiffusionXLPipeline": Hosting(
        network=("unet", "UNet2DConditionModel"),
        autoencoder="AutoencoderKL",
        conditioning=_clip_pair,
        tokens=77,
        layout=SPATIAL,
        text=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        encoded=_PAIR,
        encoding={"num_images_per_prompt": 1, "do_classifier_free_guidance": True},
        options=_STABLE,
        constructor={"add_watermarker": False, "feature_extractor": None, "image_encoder": None},
        sizes="",
    ),
    "StableDiffusion3Pipeline": Hosting(
        network=("transformer", "SD3Transformer2DModel"),
        autoencoder="AutoencoderKL",
        conditioning=_joint(2048),
        tokens=256,
        layout=SPATIAL,
        decoding="shifted",
        text=("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"),
        encoded=_PAIR,
        encoding={"prompt_2": None, "prompt_3": None},
        options={"sigmas": "sigmas"},
    ),
    "FluxPipeline": Hosting(
        network=("transformer", "FluxTransformer2DModel"),
        autoencoder="AutoencoderKL",
        conditioning=_joint(768),
        tokens=512,
        layout=TOKENS,
        decoding="shifted",
        text=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        encoded=("prompt_embeds", "pooled_prompt_embeds", None),
        encoding={"prompt_2": None},
        options={"sigmas": "sigmas", "true_cfg": "true_cfg_scale"},
    ),
    "Flux2Pipeline": Hosting(
        network=("transformer", "Flux2Transformer2DModel"),
        autoencoder="AutoencoderKLFlux2",
        conditioning=_of(("joint_attention_dim", 15360)),
        tokens=512,
        layout=GRID,
        text=("text_encoder", "tokenizer"),
        encoded=("prompt_embeds", None),
        decoding="batch-norm",
        options={"sigmas": "sigmas"},
        fixed={"caption_upsample_temperature": None},
    ),
    "Flux2KleinPipeline": Hosting(
        network=("transformer", "Flux2Transformer2DModel"),
        autoencoder="AutoencoderKLFlux2",
        conditioning=_of(("joint_attention_dim", 15360)),
        tokens=512,
        layout=KLEIN_GRID,
        text=("text_encoder", "tokenizer"),
        encoded=("prompt_embeds", None),
        decoding="decoded",
        options={"sigmas": "sigmas"},
    ),
    "ZImagePipeline": Hosting(
        network=("transformer", "ZImageTransformer2DModel"),
        autoencoder="AutoencoderKL",
        conditioning=_of(("cap_feat_dim", 2560)),
        tokens=512,
        layout=SPATIAL,
        decoding="shifted",
        text=("text_encoder", "tokenizer"),
        encoded=("prompt_embeds", None),
        encoding={"do_classifier_free_guidance": False},
        offset=1.0,
        exact=True,
        listed=True,
        options={"sigmas": "sigmas", "normalise": "cfg_normalization", "truncate": "cfg_truncation"},
    ),
    "QwenImagePipeline": Hosting(
        network=("transformer", "QwenImageTransformer2DModel"),
        autoencoder="AutoencoderKLQwenImage",
        conditioning=_of(("joint_attention_dim", 3584)),
        tokens=1024,
        layout=TOKENS,
        text=("text_encoder", "tokenizer"),
        encoded=("prompt_embeds", "prompt_embeds_mask"),
        decoding="per-channel",
        argument="true_cfg_scale",
        masked={"prompt_embeds": "prompt_embeds_mask"},
        options={"sigmas": "sigmas"},
    ),
    "SanaSprintPipeline": Hosting(
        network=("transformer", "SanaTransformer2DModel"),
        autoencoder="AutoencoderDC",
        conditioning=_of(("caption_channels", 2304)),
        tokens=300,
        layout=SPATIAL,
        text=("text_encoder", "tokenizer"),
        encoded=("prompt_embeds", "prompt_attention_mask"),
        exact=True,
        masked={"prompt_embeds": "prompt_attention_mask"},
        options={"timesteps": "timesteps", "intermediate_time": "intermediate_timesteps"},
        fixed={"use_resolution_binning": False},
    ),
    "HunyuanImagePipeline": Hosting(
        network=("transformer", "HunyuanImageTransformer2DModel"),
        autoencoder="AutoencoderKLHunyuanImage",
        conditioning=_glyphs,
        tokens=1000,
        layout=SPATIAL,
        text=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        encoded=("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2"),
        argument="distilled_guidance_scale",
        masked={"prompt_embeds": "prompt_embeds_mask", "prompt_embeds_2": "prompt_embeds_mask_2"},
        options={"sigmas": "sigmas"},
        constructor={"guider": None, "ocr_guider": None},
        sizes="",
    ),
    "Krea2Pipeline": Hosting(
        network=("transformer", "Krea2Transformer2DModel"),
        autoencoder="AutoencoderKLQwenImage",
        conditioning=_of(("num_text_layers", 12), ("text_hidden_dim", 2560)),
        tokens=512,
        layout=TOKENS,
        text=("text_encoder", "tokenizer"),
        encoded=("prompt_embeds", "prompt_embeds_mask"),
        decoding="per-channel",
        offset=1.0,
        masked={"prompt_embeds": "prompt_embeds_mask"},
        mask="bool",
        options={"sigmas": "sigmas"},
    ),
    "ErnieImagePipeline": Hosting(
        network=("transformer", "ErnieImageTransformer2DModel"),
        autoencoder="AutoencoderKLFlux2",
        conditioning=_of(("text_in_dim", 2560)),
        tokens=512,
        layout=SPATIAL,
        text=("text_encoder", "tokenizer"),
        encoded=("prompt_embeds",),
        decoding="batch-norm",
        eps=1e-5,
        listed=True,
        fixed={"use_pe": False},
        constructor={"pe": None, "pe_tokenizer": None},
        sizes="",
    ),
}  # fmt: skip
"""Pipeline classes of diffusers 0.42.1 by name."""
OPTIONS = tuple(dict.fromkeys(option for row in HOSTED.values() for option in row.options))
"""The settings that some class takes and others do not."""


def hosting(pipeline: str) -> Hosting:
    """Return the row of a pipeline class. Raises BenchError for one that is not in the table."""
    if pipeline not in HOSTED:
        raise unknown("pipeline class", pipeline, HOSTED)
    return HOSTED[pipeline]


def diffusers_version() -> str:
    """Return the version of diffusers that is installed."""
    return version("diffusers")


def from_diffusers(name: str, noun: str) -> Any:
    """Return the class `name` of diffusers. Raises BenchError for one that the installed version does not have."""
    found = None if name.startswith("_") else getattr(importlib.import_module("diffusers"), name, None)
    if not isinstance(found, type):
        raise BenchError(
            f"diffusers {diffusers_version()} has no {noun} '{name}'; correct the name, or install another version"
        )
    return found
