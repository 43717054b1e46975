"""EDM (arXiv 2206.00364) and EDM2 (2312.02696, 2406.02507): networks, preconditioning and the Heun sampler.

Pixels or latents plus noise, x_sigma = x + sigma z. D(x; sigma) is the denoiser, F the raw network. The students of
these models (`adapters.edm_students`) and PFGM++ (`adapters.pfgmpp`) share the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import inf, sqrt
from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from adapters.consistency import Scalings, edm_scalings, karras_sigmas
from adapters.guidance import Guided
from adapters.latent import LatentAdapter
from adapters.networks.dhariwal import DhariwalUNet
from adapters.networks.edm2 import EDM2UNet, LogVariance
from adapters.networks.songunet import SongUNet
from adapters.times import filled, per_sample, rounded
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number, SamplerSettings
from results.errors import BenchError, unknown

SIGMA_DATA = 0.5
Denoiser = Callable[[Tensor, float], Tensor]
"""D(x, sigma): float32 or float64 [B, ...] and one noise level for the batch -> the same dtype and shape."""

# ----------------------------------------------------------------------------
# Networks by the words of the authors' constructors.

TRAINING_ONLY = {
    "class_name", "dropout", "dropout_res", "label_dropout", "use_fp16", "sigma_min", "sigma_max", "sigma_data",
    "sigma_shift", "force_normalization", "use_gan", "mp_fourier_bandwidth", "logvar_channels", "D", "pfgmpp",
    "guide", "guide_weights",
}  # fmt: skip
"""Constructor words that do not shape the network (or shape the preconditioning, which reads them itself)."""
EDM2_CLASSES = ("Precond", "EDM2Precond", "EDM_2_Precond_Generator")
EDM_CLASSES = ("EDMPrecond", "EDMPrecond_EncoderDecoder", "ECMPrecond")


def build_network(architecture: Mapping[str, Any], name: str) -> nn.Module:
    """Return the inner network F(x, ln(sigma) / 4, labels) of an EDM or EDM2 checkpoint.

    `architecture` holds its constructor's words (`img_resolution`, `img_channels`, `label_dim`, `model_channels` ...);
    `model_type` tells `SongUNet` and `DhariwalUNet` apart, and EDM2's U-Net has none. Raises BenchError, one line
    naming the model `name`, for a network or a word that is not known.
    """
    facts = {key: value for key, value in architecture.items() if key not in TRAINING_ONLY}
    kind, wrapper = facts.pop("model_type", None), architecture.get("class_name")
    channels = facts.pop("img_channels", 3)
    build: Callable[..., nn.Module]
    if kind is None and wrapper in (None, *EDM2_CLASSES):
        taps = facts.pop("resample_filter", (1, 1))
        if list(taps) != [1, 1]:
            raise BenchError(f"card {name}: EDM2's resample_filter must be [1, 1], as ever published, found {taps!r}")
        build, facts["img_channels"] = EDM2UNet, channels
    elif kind is not None and wrapper in (None, *EDM_CLASSES):
        facts = {word: value for word, value in facts.items() if value is not None}
        network = str(kind).removesuffix("_EncoderDecoder")
        if network not in ("SongUNet", "DhariwalUNet"):
            raise unknown(f"network (model_type) of {name}", str(kind), ("SongUNet", "DhariwalUNet"))
        facts |= {"in_channels": channels, "out_channels": channels}
        build = DhariwalUNet if network == "DhariwalUNet" else _song_unet
    else:
        raise unknown(f"class_name of {name}", str(wrapper), EDM2_CLASSES if kind is None else EDM_CLASSES)
    try:
        return build(**facts)
    except TypeError as error:
        raise BenchError(f"card {name}: architecture: {error}".replace("__init__() ", "")) from error


class EDMSongUNet(SongUNet):
    """SongUNet with EDM's arguments."""

    def forward(self, x: Tensor, noise_label: Tensor, labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """x float32 [B, C, H, W], noise_label = ln(sigma) / 4 [B], labels as `SongUNet` -> float32 [B, C, H, W]."""
        return super().forward(x, noise_label, labels=labels)


def _song_unet(
    *,
    encoder_type: Literal["standard", "residual"] = "standard",
    decoder_type: str = "standard",
    embedding_type: Literal["positional", "fourier"] = "positional",
    channel_mult_noise: int = 1,
    resample_filter: Sequence[float] = (1, 1),
    augment_dim: int = 0,
    num_heads: int = 1,
    channels_per_head: int | None = None,
    **facts: Any,
) -> SongUNet:
    """Return a SongUNet by EDM's words: one head always, and the standard decoder, the only ones ever published."""
    for word, value, known in (
        ("encoder_type", encoder_type, ("standard", "residual")),
        ("decoder_type", decoder_type, ("standard",)),
        ("embedding_type", embedding_type, ("positional", "fourier")),
        ("num_heads", num_heads, (1,)),
    ):
        if value not in known:
            raise BenchError(f"SongUNet: {word} must be {' or '.join(map(repr, known))}, found {value!r}")
    return EDMSongUNet(
        encoder_type=encoder_type, embedding_type=embedding_type, channel_mult_noise=channel_mult_noise,
        resample_filter=resample_filter, augment_dim=augment_dim, scalar_inputs=1, interleaved_qkv=True, **facts,
    )  # fmt: skip


def load_network(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a published state dict: keys under `model.` (EDM) or `unet.` (EDM2) or bare.

    The estimate of the loss beside the network (`logvar_*`) serves training only and is left out; gains of shape [1]
    (FastGen's) become scalars. Raises BenchError as `load_strict`.
    """
    own = network.state_dict()
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        key = key.removeprefix("net.").removeprefix("model.").removeprefix("unet.")
        if not key.startswith("logvar_"):
            scalar = key in own and own[key].ndim == 0 and value.shape == (1,)
            named[key] = value.reshape([]) if scalar else value
    load_strict(network, named, name)


# ----------------------------------------------------------------------------
# Preconditioning and sampler.


def denoise(
    network: nn.Module,
    x: Tensor,
    sigma: Tensor,
    labels: Tensor | None,
    scalings: Callable[[Tensor], Scalings],
) -> Tensor:
    """Return D(x; sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4), float32 [B, ...]; sigma [B] in any precision."""
    c_skip, c_out, c_in = (per_sample(value, x).float() for value in scalings(sigma))
    x = x.float()
    return c_skip * x + c_out * network(c_in * x, (sigma.log() / 4).float(), seen(network, x, labels))


def seen(network: nn.Module, x: Tensor, labels: Tensor | None) -> Tensor | None:
    """Return the labels that a network sees: all-zero rows for None, and none where it is unconditional."""
    classes = cast(int, network.label_dim)
    if not classes:
        return None
    return torch.zeros(len(x), classes, device=x.device) if labels is None else labels


def heun_sample(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    draw: Callable[[int], Tensor],
    settings: HeunSettings,
    *,
    draws_every_step: bool = True,
) -> Tensor:
    """Return x at the last of `sigmas` (0), started from x [B, ...] at the first: EDM's algorithm 2.

    The arithmetic has the precision of x. `sigmas` fall to 0: N steps are N + 1 levels and 2 N - 1 evaluations.
    `draw(k)`, k = 1, 2 ..., is the noise of step k, or with `draws_every_step` False of the k-th step that adds noise.
    """
    s, steps, noisy = settings, len(sigmas) - 1, 0
    for i, (t, t_next) in enumerate(pairwise(sigmas), start=1):
        gamma = min(s.S_churn / steps, sqrt(2) - 1) if s.S_min <= t <= (inf if s.S_max is None else s.S_max) else 0.0
        t_hat, x_hat = t, x
        if gamma > 0:
            noisy += 1
            t_hat = t + gamma * t
            added = sqrt(t_hat**2 - t**2) * s.S_noise
            if added > 0:
                x_hat = x + added * draw(i if draws_every_step else noisy).to(x.dtype)
        d = (x_hat - denoiser(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next > 0:
            d_prime = (x - denoiser(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (d + d_prime) / 2
    return x


class HeunSettings(SamplerSettings):
    """The grid of noise levels and the stochasticity ("churn") of EDM's sampler, by the paper's names."""

    sigma_min: Number = Field(0.002, gt=0, description="last noise level before 0")
    sigma_max: Number = Field(80, gt=0, description="first noise level")
    rho: Number = Field(7, gt=0, description="exponent of the grid: larger is denser near sigma_min")
    S_churn: Number = Field(0, ge=0, description="noise added and removed again over all steps; 0: deterministic")
    S_min: Number = Field(0, ge=0, description="lowest noise level that churns")
    S_max: Number | None = Field(None, ge=0, description="highest noise level that churns; null: no limit")
    S_noise: Number = Field(1, ge=0, description="standard deviation of the added noise")

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max, found {self.sigma_min} and {self.sigma_max}")
        return self


class EDMNetworks(LatentAdapter):
    """What every family on EDM's or EDM2's networks shares: building and loading them, and the denoiser D."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.network = build_network(card.architecture, card.name)
        self.sigma_data: float = card.architecture.get("sigma_data", SIGMA_DATA)
        side, channels = card.architecture["img_resolution"], card.architecture.get("img_channels", 3)
        if card.latent_shape != (channels, side, side):
            raise BenchError(
                f"card {card.name}: latent_shape must be {[channels, side, side]} as the architecture says, found "
                f"{list(card.latent_shape)}"
            )
        if card.resolution != side and card.autoencoder is None:
            raise BenchError(
                f"card {card.name}: its network samples latents of {side}x{side} for images of {card.resolution}x"
                f'{card.resolution}; name the teacher\'s autoencoder, [autoencoder] kind = "edm2-sd-vae"'
            )

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from a published state dict, and the guide, where there is one, from `extra`."""
        load_network(self.network, state, self.card.name)
        if self.guide is not None and "guide" in extra:
            load_network(self.guide, extra["guide"], f"{self.card.name} (guide)")

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return the preconditioning of the noise levels sigma [B]."""
        return edm_scalings(sigma, self.sigma_data)

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Return D(x; sigma), float32 [B, ...]; sigma [B]; labels None for all-zero label rows."""
        return denoise(self.network, x, sigma, labels, self.scalings)


class EDM(EDMNetworks):
    """EDM's Heun sampler, its state in float64; no guidance."""

    Settings: ClassVar[type[HeunSettings]] = HeunSettings
    precision = torch.float64
    draws_every_step = True

    def unsupported(self, steps: int, cfg: float, settings: HeunSettings | None = None) -> str | None:
        """Refuse one step: the grid of one noise level divides by zero."""
        if steps < 2:
            return f"{self.card.name} takes 2 or more steps (Heun's method on EDM's grid is not defined for one)"
        return super().unsupported(steps, cfg, settings)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: HeunSettings) -> Tensor:
        """Return samples, float32 [B, *latent_shape], of 2 steps - 1 evaluations."""
        sigmas = self.sigmas(steps, settings)
        x = self.prior(noise, sigmas[0], settings)
        denoiser = self.denoiser(labels, cfg)
        draw = lambda k: noise.normal(self.latent_shape, k)  # noqa: E731
        return heun_sample(denoiser, x, sigmas, draw, settings, draws_every_step=self.draws_every_step).float()

    def sigmas(self, steps: int, settings: HeunSettings) -> list[float]:
        """Return steps + 1 noise levels from sigma_max to sigma_min and 0, within the network's own range."""
        low = max(settings.sigma_min, self.card.architecture.get("sigma_min") or 0.0)
        high = min(settings.sigma_max, self.card.architecture.get("sigma_max") or inf)
        levels = [*karras_sigmas(steps, float(low), float(high), float(settings.rho)), 0.0]
        return levels if self.precision == torch.float64 else [rounded(level) for level in levels]

    def prior(self, noise: NoiseSource, sigma: float, settings: HeunSettings) -> Tensor:
        """Return the sampler's first state, [B, *latent_shape] in its precision."""
        return noise.normal(self.latent_shape).to(self.precision) * sigma

    def denoiser(self, labels: Tensor, cfg: float) -> Denoiser:
        """Return D as a function of (x, sigma), guided where `cfg` is not 1."""
        guided = Guided(self.denoise, labels, None, cfg, weak=None if self.guide is None else self.denoise_guide)
        return lambda x, sigma: guided(x.float(), filled(sigma, x)).to(self.precision)

    def denoise_guide(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Return the guide's D(x; sigma); a guide without labels ignores them."""
        assert self.guide is not None
        return denoise(self.guide, x, sigma, labels, self.scalings)


class EDM2(EDM):
    """EDM2: the same sampler in float32, guided by a second network, D = D_guide + cfg (D_main - D_guide).

    The guide (`architecture.guide`) is an unconditional or a weaker conditional network (autoguidance) in a file of its
    own; its evaluations have their own column.
    """

    precision = torch.float32
    draws_every_step = False

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        guide = card.architecture.get("guide")
        self.guide = None if guide is None else build_network(guide, f"{card.name} (guide)")

    def unsupported(self, steps: int, cfg: float, settings: HeunSettings | None = None) -> str | None:
        """Refuse guidance without a guide."""
        if cfg != 1.0 and self.guide is None:
            return f"{self.card.name} takes no guidance (cfg must be 1): it has no guiding network"
        return super().unsupported(steps, cfg, settings)


# ----------------------------------------------------------------------------
# Recordings.


def network_call(adapter: EDMNetworks, case: Case, call: Call) -> Tensor:
    """Return what a recorded `network` call asks of a family on EDM's networks."""
    x, time, sigma, labels = case.arguments(call, "x", "time", "sigma", "labels")
    match call["function"]:
        case "raw":
            output: Tensor = adapter.network(x, time, seen(adapter.network, x, labels))
            return output
        case "denoiser" | "denoiser_unlabelled":
            return adapter.denoise(x, sigma, labels)
        case "denoiser_edm":
            return denoise(adapter.network, x, sigma, labels, lambda sigma: edm_scalings(sigma, adapter.sigma_data))
        case "denoiser_guide" if isinstance(adapter, EDM):
            return adapter.denoise_guide(x, sigma, labels)
        case "logvar":
            head = LogVariance(case.architecture.get("logvar_channels", 128))
            load_strict(head, {k: v for k, v in case.weights.items() if k.startswith("logvar_")}, case.name)
            return head(sigma.log() / 4)
    raise BenchError(f"{case.name}: network function '{call['function']}' is not known")


def replay(case: Case) -> Replay:
    """Return the replay of an EDM recording."""
    return heun_replay(case, recorded_adapter(case, EDM))


def replay_edm2(case: Case) -> Replay:
    """Return the replay of an EDM2 recording, with its guide where it has one."""
    adapter = recorded_adapter(case, EDM2, "autoguidance")
    if adapter.guide is not None:
        load_network(adapter.guide, case.file(case.architecture["guide_weights"]), f"{case.name} (guide)")
    return heun_replay(case, adapter)


def heun_replay(case: Case, adapter: EDM) -> Replay:
    """Return the replay of a recording by `adapter`'s sampler."""

    def options(call: Call) -> dict[str, Any]:
        found = case.options(call)
        sampler = found.pop("sampler", "edm_heun")
        if sampler not in ("edm_heun", "edm2_heun"):
            raise unknown(f"sampler of {case.name}", sampler, ("edm_heun", "edm2_heun"))
        return found

    null = unlabelled(adapter)
    return recorded_replay(
        case, adapter, lambda call: network_call(adapter, case, call), options=options, null_label=null
    )


def unlabelled(adapter: EDMNetworks) -> Tensor:
    """Return the row of labels that a network is given for a sample without a label."""
    return torch.zeros(adapter.num_classes)
