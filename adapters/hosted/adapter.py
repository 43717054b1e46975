"""The adapter of every system that diffusers hosts: prompts in place of classes, the library's own loop.

`Hosted.run` is the one place where a pipeline is called: with the harness's noise, with embeddings instead of prompts,
with what the table switches off, and with guidance as the class spells it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.hosted.folders import check_folder, encoders, fuse_lora, load_part, scheduler_settings
from adapters.hosted.prompts import Conditioning, Prompts
from adapters.hosted.schedulers import build_scheduler
from adapters.hosted.table import OPTIONS, Hosting, diffusers_version, from_diffusers, hosting
from adapters.hosted.twinflow import second_time_keys, with_second_time
from bench.contracts.adapter import Adapter, load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.settings import Number, SamplerSettings
from results.errors import BenchError

PLAIN_SCHEDULER = "FlowMatchEulerDiscreteScheduler"


class HostedSettings(SamplerSettings):
    """What a pipeline takes besides steps and guidance; a class refuses those that it does not have."""

    scheduler: str | None = Field(None, description="a scheduler class of diffusers; null: the card's")
    timesteps: Sequence[int] | None = Field(None, description="timesteps of the steps; null: the scheduler's own")
    sigmas: Sequence[Number] | None = Field(
        None, description="noise levels of the steps before the shift; null: the pipeline's own. Another sampler"
    )
    eta: Number | None = Field(
        None, ge=0, le=1, description="share of fresh noise of DDIM and TCD; null: the pipeline's"
    )
    intermediate_time: Number | None = Field(
        None, gt=0, description="SANA-Sprint: the second of two times (the authors': 1.3); null: evenly spaced"
    )
    true_cfg: Number = Field(
        1, ge=1, description="FLUX.1: guidance by a second evaluation beside the embedded one; 1 is none"
    )
    normalise: Number = Field(0, ge=0, description="Z-Image: cap of the guided prediction's norm; 0 is none")
    truncate: Number = Field(1, ge=0, le=1, description="Z-Image: no guidance where 1 - sigma exceeds it; 1 is never")
    negative_prompt: str = Field("", description="what guidance leads away from")
    max_tokens: int | None = Field(None, ge=8, description="length at which prompts are cut; null: the class's own")
    offload: Literal["none", "block", "leaf"] = Field(
        "none", description="what waits in the memory of the host until it is called: blocks of layers, or each layer"
    )
    vae_tiling: bool = Field(False, description="decode in tiles: less memory, other pixels at their seams")
    text_encoder: Literal["full", "float8"] = Field(
        "full", description="float8: the text encoders' weights are kept in 8 bits, so that larger ones fit"
    )


class HostedDecoder(nn.Module):
    """The autoencoder of a pipeline; its files come with the pipeline's."""

    def __init__(self, vae: nn.Module, hosting: Hosting) -> None:
        super().__init__()
        self.vae = vae
        self.decoding, self.eps = hosting.decoding, hosting.eps

    def sources(self) -> Mapping[str, Any]:
        """Return no files."""
        return {}

    def load(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take nothing."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return images, float32 [B, 3, H, W] in [-1, 1], from latents [B, C, h, w] as the pipeline's last lines do."""
        vae: Any = self.vae
        dtype = next(vae.parameters()).dtype
        z = self.scaled(latents).to(dtype)
        images: Tensor = vae.decode(z, return_dict=False)[0]
        if images.ndim == 5:
            images = images[:, :, 0]
        return images.float().clamp(-1, 1)

    def scaled(self, latents: Tensor) -> Tensor:
        """Return what the autoencoder decodes, from normalised latents."""
        vae: Any = self.vae
        config = vae.config
        if self.decoding == "decoded":
            return latents
        if self.decoding == "batch-norm":
            eps = config.get("batch_norm_eps", 1e-4) if self.eps is None else self.eps
            mean, std = vae.bn.running_mean.view(1, -1, 1, 1), (vae.bn.running_var.view(1, -1, 1, 1) + eps).sqrt()
            return unpatchified(latents * std.to(latents) + mean.to(latents))
        if self.decoding == "per-channel":
            mean, std = (_column(config[key], latents) for key in ("latents_mean", "latents_std"))
            return (latents * std + mean)[:, :, None]
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            mean, std = (_column(config[key], latents) for key in ("latents_mean", "latents_std"))
            return latents * std / config["scaling_factor"] + mean
        z = latents / config["scaling_factor"]
        return z + config["shift_factor"] if self.decoding == "shifted" and config["shift_factor"] else z


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device).view(1, -1, 1, 1)


def unpatchified(latents: Tensor) -> Tensor:
    """Return latents [B, C, 2 h, 2 w] of patchified ones [B, 4 C, h, w], features (channel, row, column)."""
    b, c, h, w = latents.shape
    return latents.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)


@dataclass(frozen=True)
class Size:
    """Height and width of the images of a call, in pixels."""

    height: int
    width: int


class Hosted(Adapter):
    """A pipeline of diffusers behind the contract."""

    Settings = HostedSettings
    takes_prompts = True
    autoencoder: HostedDecoder | None

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        facts = card.architecture
        logging.getLogger("diffusers").setLevel(logging.ERROR)  # what it warns of is in the table
        self.pipeline_name = str(facts.get("pipeline"))
        self.hosting: Hosting = hosting(self.pipeline_name)
        self.host = f"diffusers {diffusers_version()}"
        part, name = self.hosting.network
        self.part = part
        self.network = _built(name, facts.get("network", {}), card.name)
        if facts.get("second_time"):
            self.network = with_second_time(self.network)
        if card.autoencoder is None:
            self.autoencoder = None
        else:
            config = {key: value for key, value in card.autoencoder.items() if key != "kind"}
            vae = _built(self.hosting.autoencoder, config, card.name)
            self.autoencoder = HostedDecoder(vae, self.hosting)
        self.prompts = Prompts(self.hosting, self._config(), card.name)
        self._pipeline: Any = None
        self._changes: Mapping[str, Any] = {}
        self._folder: Path | None = None
        self._folder_scheduler: tuple[str, Mapping[str, Any]] = ("", {})
        self._placed = ""

    @property
    def num_classes(self) -> int:
        """Number of prompts, which are the labels."""
        return len(self.prompts.texts)

    @property
    def unconditional(self) -> bool:
        """Whether every label is the same: never, labels are prompts."""
        return False

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from its own state dict, diffusers' names."""
        found = second_time_keys(dict(state)) if self.card.architecture.get("second_time") else state
        load_strict(self.network, found, self.card.name)

    def load_folder(self, folder: Path, extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take network, autoencoder, scheduler and text encoders from the folder of a pipeline.

        `extra` may hold `network`, a whole state that replaces the network's (a student), and `lora`, which is added to
        it at the card's `lora_scale`.
        """
        facts, name = self.card.architecture, self.card.name
        check_folder(folder, self.pipeline_name, self.hosting, name)
        part, made = self.hosting.network
        self.network = load_part(folder, part, made, name)
        if facts.get("second_time"):
            self.network = with_second_time(self.network)
        vae = load_part(folder, "vae", self.hosting.autoencoder, name)
        self.autoencoder = HostedDecoder(vae, self.hosting)
        self._pipeline = None
        if "network" in extra:
            self.load(extra["network"], {})
        if "lora" in extra:
            fuse_lora(self.pipeline(), extra["lora"], float(facts.get("lora_scale", 1.0)), name)
        self._folder_scheduler = scheduler_settings(folder, name)
        self.prompts = Prompts(self.hosting, self._config(), name)
        self._folder = folder

    def unsupported(self, steps: int, cfg: float, settings: HostedSettings | None = None) -> str | None:
        """Refuse settings that the pipeline class does not take, or that are of another step count."""
        s = settings or self.resolve_settings(steps)
        name = self.card.name
        plain = self.Settings()
        for option in OPTIONS:
            if option not in self.hosting.options and getattr(s, option) != getattr(plain, option):
                return f"{name}: its pipeline takes no {option}"
        for option in ("timesteps", "sigmas"):
            given = getattr(s, option)
            if given is not None and len(given) != steps:
                return f"{name}: {option} holds {len(given)} values for {steps} step{'s' if steps != 1 else ''}"
        if s.timesteps is not None and s.sigmas is not None:
            return f"{name}: timesteps and sigmas exclude each other"
        if s.intermediate_time is not None and steps != 2:
            return f"{name}: intermediate_time is for 2 steps"
        if cfg < 1 and self.guidance == "classifier-free":
            return f"{name}: cfg must be at least 1 (no guidance), found {cfg:g}"
        return super().unsupported(steps, cfg, s)

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Adapter:
        """Move the networks; what the library keeps in float32 stays so, and autoencoders overflow in float16."""
        self.device, self.dtype = torch.device(device), dtype
        kept = set(getattr(self.network, "_keep_in_fp32_modules", None) or ())
        decoder = torch.float32 if dtype == torch.float16 else dtype
        for module, own in ((self.network, dtype), (self.autoencoder, decoder)):
            if module is None:
                continue
            for name, value in module.named_parameters():
                wanted = torch.float32 if module is self.network and set(name.split(".")) & kept else own
                value.data = value.data.to(dtype=wanted)
            # Positions and statistics stay exact, as the library's loader keeps them.
            if self.device.type != "cuda":
                module.to(self.device)
            elif module is not self.network:  # the network waits for what the settings say
                self._move(module)
            module.eval().requires_grad_(False)
        return self

    def declared_nfe(self, steps: int, cfg: float, settings: HostedSettings) -> float | None:
        """Return the evaluations per image that the pipeline's own rules come to; None where they depend on values."""
        if settings.truncate < 1 and cfg > 1:
            return None
        guided = self.guidance == "classifier-free" and cfg > 1
        return float(steps * (2 if guided or settings.true_cfg > 1 else 1))

    def prepare(self, prompts: Sequence[str], store: Path | None = None) -> None:
        """Take the prompts, one a label; embeddings that are in `store` are read from there."""
        self.prompts.take(prompts, store)

    def cut_prompts(self) -> Mapping[str, Mapping[str, str]]:
        """Return the words that tokenizers cut off the run's prompts."""
        return self.prompts.cut

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: HostedSettings) -> Tensor:
        """Return latents, float32 [B, C, h, w], normalised as the pipeline holds them."""
        s = settings
        if self._folder is not None:
            self.prompts.small = s.text_encoder == "float8"
            self.prompts.open = partial(
                encoders, self._folder, self.pipeline_name, self.hosting, self.device, self.dtype, self.prompts.small,
                self.card.name,
            )  # fmt: skip
        guided = (self.guidance == "classifier-free" and cfg > 1) or s.true_cfg > 1
        conditioning = self.prompts.batch(
            labels, negative=s.negative_prompt if guided else None, tokens=s.max_tokens, device=self.device,
            dtype=self.dtype,
        )  # fmt: skip
        self._place(s)
        size = Size(self.card.resolution, self.card.resolution)
        arguments = self.arguments(steps, cfg, s)
        latents = self.run(noise, self.latent_shape, steps, size, conditioning, arguments, s.scheduler)
        return self.hosting.layout.unpack(latents, self.latent_shape).float()

    def _place(self, settings: HostedSettings) -> None:
        """Bring the networks to the device, or have what waits on the host brought there when it is called."""
        wanted = f"{settings.offload} {settings.vae_tiling}"
        if self._placed == wanted:
            return
        if self._placed.partition(" ")[0] not in ("", settings.offload):
            raise BenchError(
                f"{self.card.name}: offload is chosen once in a process; measure each choice in its own run"
            )
        if self.autoencoder is not None and hasattr(self.autoencoder.vae, "use_tiling"):
            vae: Any = self.autoencoder.vae
            (vae.enable_tiling if settings.vae_tiling else vae.disable_tiling)()
        if settings.offload != "none" and self._placed == "" and self.device.type == "cuda":
            from diffusers.hooks import apply_group_offloading

            apply_group_offloading(
                self.network, onload_device=self.device, offload_device=torch.device("cpu"),
                offload_type=f"{settings.offload}_level",
                num_blocks_per_group=1 if settings.offload == "block" else None,
            )  # fmt: skip
        elif self._placed == "" and self.device.type == "cuda":
            self._move(self.network)
        self._placed = wanted

    def _move(self, module: nn.Module) -> None:
        """Bring a network to the device. Raises BenchError, with what it takes, where there is no room."""
        need = sum(value.numel() * value.element_size() for value in module.parameters())
        free = torch.cuda.mem_get_info(self.device)[0]
        if need > free:
            raise BenchError(
                f"{self.card.name}: {type(module).__name__} needs {need / 2**30:.1f} GiB, {self.device} has "
                f"{free / 2**30:.1f}; try --dtype bfloat16 or --option offload=block"
            )
        for value in (*module.parameters(), *module.buffers()):
            value.data = value.data.to(self.device)

    def arguments(self, steps: int, cfg: float, settings: HostedSettings) -> dict[str, Any]:
        """Return what a call says of guidance and of the settings, under the pipeline's names."""
        found: dict[str, Any] = {self.hosting.argument: cfg - self.hosting.offset}
        plain = self.Settings()
        for option, argument in self.hosting.options.items():
            value = getattr(settings, option)
            # The default of a pipeline's intermediate time is for 2 steps.
            if value != getattr(plain, option) or option == "intermediate_time":
                found[argument] = list(value) if isinstance(value, (list, tuple)) else value
        return found

    def run(
        self,
        noise: NoiseSource,
        shape: Sequence[int],
        steps: int,
        size: Size,
        conditioning: Conditioning,
        arguments: Mapping[str, Any],
        scheduler: str | None = None,
    ) -> Tensor:
        """Return the pipeline's latent output.

        Args:
            noise: draw 0 is the initial latent, draw k that of the scheduler's k-th draw; of `shape` [C, h, w].
            shape: of one sample's noise.
            steps: number of steps.
            size: of the images.
            conditioning: embeddings by argument of the pipeline.
            arguments: further arguments of the pipeline, by its names.
            scheduler: a scheduler class in place of the card's.
        """
        layout = self.hosting.layout

        def draw(step: int) -> Tensor:
            return layout.stepped(noise.normal(shape, step).to(self.device))

        pipeline = self.pipeline()
        pipeline.scheduler = self.scheduler(draw, scheduler)
        call = {**self.hosting.fixed, "num_inference_steps": steps, "height": size.height, "width": size.width}
        call |= {**arguments, **conditioning, "output_type": "latent", "return_dict": False}
        latents = layout.pack(noise.normal(shape).to(self.device, torch.float32 if self.hosting.exact else self.dtype))
        output: Tensor = pipeline(latents=latents, **call)[0]
        return output

    def scheduler(self, draw: Any, name: str | None) -> Any:
        """Return a fresh scheduler; another class than the card's takes the settings of the card that it knows."""
        facts = self.card.architecture
        found, settings = self._folder_scheduler
        own = str(facts.get("scheduler_class", found or PLAIN_SCHEDULER))
        config = {**settings, **facts.get("scheduler", {}), **self._changes}
        return build_scheduler(name or own, config, draw, lenient=bool(settings) or name not in (None, own))

    def reconfigure(self, changes: Mapping[str, Any]) -> None:
        """Change settings of the card's scheduler."""
        self._changes = dict(changes)

    def pipeline(self) -> Any:
        """Return the pipeline of diffusers around the adapter's networks, without text encoders."""
        if self._pipeline is None:
            name = self.pipeline_name
            made = from_diffusers(name, "pipeline")
            facts = dict(self.card.architecture.get("options", {}))
            parts = {**dict.fromkeys(self.hosting.text), **self.hosting.constructor, **facts}
            vae = None if self.autoencoder is None else self.autoencoder.vae
            try:
                self._pipeline = made(vae=vae, scheduler=None, **{self.part: self.network}, **parts)
            except TypeError as error:
                raise BenchError(f"{self.card.name}: {name} {str(error).partition('__init__() ')[2]}") from error
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline

    def _config(self) -> Mapping[str, Any]:
        config: Any = self.network.config
        return dict(config)


def _built(name: str, config: Mapping[str, Any], model: str) -> nn.Module:
    """Return a network of diffusers from its configuration. Raises BenchError for words that it does not know."""
    made = from_diffusers(name, "network")
    known = inspect.signature(made.__init__).parameters
    strange = [key for key in config if key not in known and not key.startswith("_")]
    if strange:
        raise BenchError(f"{model}: {name} of diffusers {diffusers_version()} takes no {', '.join(strange)}")
    try:
        built: nn.Module = made(**{key: value for key, value in config.items() if not key.startswith("_")})
    except (TypeError, ValueError) as error:
        raise BenchError(f"{model}: {name} cannot be built ({error}); correct the card") from error
    return built
