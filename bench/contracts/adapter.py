"""The contract of a generator family: labels, steps, guidance and noise in, images in [-1, 1] out."""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from bench.contracts.card import ModelCard, WeightsSource
from bench.contracts.noise import NoiseSource
from bench.contracts.settings import SamplerSettings
from results.errors import BenchError, BenchWarning


def _says_something(record: logging.LogRecord) -> bool:
    """Tell a warning of diffusers from the one that names no module: `[]`, at every move of a network to a dtype."""
    return "should be kept in float32: []" not in record.getMessage()


logging.getLogger("diffusers.models.modeling_utils").addFilter(_says_something)


class Decoder(Protocol):
    """The decoding half of an autoencoder, whose files the harness fetches, loads and verifies."""

    def sources(self) -> Mapping[str, WeightsSource]:
        """Return the files it needs, by role."""

    def load(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the state dicts of `sources()`, by role. Raises BenchError when one does not fit."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return images, float32 [B, 3, H, W] in [-1, 1], from latents, float32 [B, *latent_shape]."""


class Adapter(ABC):
    """One family of generators, instantiated for one card.

    A family implements `generate` (model space: latents or pixels); a latent one also sets `autoencoder`, and one whose
    samples are not RGB overrides `decode`. It never draws random numbers, picks labels, quantises, saves, downloads or
    sets global state.
    """

    Settings: ClassVar[type[SamplerSettings]] = SamplerSettings
    """The family's sampler settings: names, types, ranges and defaults (the `plain` sampler); a card's presets and
    `--option` override them."""
    network: nn.Module
    """The module whose evaluations count as NFE."""
    guide: nn.Module | None = None
    """A second, weaker network (autoguidance); its evaluations have their own column."""
    autoencoder: Decoder | None = None
    """What turns a latent family's samples into images; None for a model of pixels."""
    takes_prompts: bool = False
    """Whether labels are prompts, those of whatever protocol it runs under, given to `prepare` before the first sample;
    its images may then be of another size than the protocol's, and are resized once."""
    host: str = ""
    """The library and version whose loop samples, e.g. `diffusers 0.42.1`: part of a row's identity. Empty where the
    loop is the family's own; a hosted loop may wait for the device between steps."""

    evaluations_differ: ClassVar[bool] = False
    """Whether the evaluations of one sample cost different amounts: operations are then counted over a whole sample."""
    discrete: ClassVar[bool] = False
    """Whether a sample is drawn from a finite vocabulary, so that a rounding may turn a part of it into another."""

    out_of_process: ClassVar[bool] = False
    """Whether another process draws the samples, so that what can be seen of them here is what it says."""

    def __init__(self, card: ModelCard) -> None:
        """Build the networks of `card.architecture`, float32 on the CPU; weights come later through `load`."""
        self.card = card
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample's noise."""
        return self.card.latent_shape

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 .. num_classes - 1 (0: unconditional, whose one label is 0)."""
        return self.card.num_classes

    @property
    def guidance(self) -> str:
        """Guidance kind: `none`, `classifier-free`, `embedded` or `autoguidance`."""
        return self.card.guidance.kind

    @abstractmethod
    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the networks from a published state dict (upstream's names), strictly.

        `extra` holds the states of the card's `extra_weights` by role. Raises BenchError listing keys that are
        missing, unexpected or of a wrong shape.
        """

    def unsupported(self, steps: int, cfg: float, settings: Any = None) -> str | None:
        """Return why (steps, cfg) cannot be sampled with `settings` (None: the card's native ones), or None if it can.

        A family that overrides it ends with `return super().unsupported(steps, cfg, settings)`.
        """
        if self.card.supported_steps is not None and steps not in self.card.supported_steps:
            known = ", ".join(map(str, self.card.supported_steps))
            return f"{self.card.name} takes {known} step{'s' if known != '1' else ''} only"
        if self.guidance == "none" and cfg != 1.0:
            return f"{self.card.name} takes no guidance (cfg must be 1)"
        return None

    def load_folder(self, folder: Path, extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the networks from the folder of a pipeline (weights of format `diffusers`) and the states of `extra`.

        Raises BenchError when a part of it is missing or is another system's.
        """
        raise BenchError(f"{self.card.name}: family '{self.card.family}' reads no folder of a pipeline")

    def prepare(self, prompts: Sequence[str], store: Path | None = None) -> None:  # noqa: B027 - most take labels
        """Take the prompts that labels stand for, in label order; `store` is a folder that may keep what is encoded."""

    def cut_prompts(self) -> Mapping[str, Mapping[str, str]]:
        """Return what was not read of the prompts of the last batch's run: by prompt, the words each tokenizer cut."""
        return {}

    def declared_nfe(self, steps: int, cfg: float, settings: Any) -> float | None:
        """Return the evaluations per image where the family can say without sampling; None: they are counted."""
        return None

    def substeps(self, steps: int, settings: Any) -> int | None:
        """Return how many updates of a sample ask no network, beside its NFE; None for a sampler without such."""
        return None

    def euler_field(self, labels: Tensor, cfg: float, settings: Any) -> Callable[[Tensor, float], Tensor] | None:
        """Return dx/dt, a function of (x, t), of a flow that the sampler integrates by Euler's method, else None.

        Time falls from 1 (noise) to 0 (data), as that of setting `times`, which such a family takes.
        """
        return None

    @abstractmethod
    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: Any) -> Tensor:
        """Return samples in model space, float32 [B, *latent_shape]; `settings` is a record of `Settings`."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return images, float32 [B, 3, H, W] in [-1, 1] (values outside are clamped by the harness)."""
        return latents if self.autoencoder is None else self.autoencoder.decode(latents)

    @torch.inference_mode()
    def sample(self, labels: Tensor, steps: int, cfg: float, *, noise: NoiseSource, **settings: Any) -> Tensor:
        """Return images, float32 [B, 3, H, W] RGB in [-1, 1] on the adapter's device.

        `labels` int64 [B]; `steps` >= 1; `cfg` 1.0 means no inference-time guidance. `settings` override the card's
        native sampler settings. Raises BenchError for labels, steps, guidance or settings that the model cannot take.
        """
        return self.decode(self.sample_latents(labels, steps, cfg, noise=noise, **settings))

    @torch.inference_mode()
    def sample_latents(self, labels: Tensor, steps: int, cfg: float, *, noise: NoiseSource, **settings: Any) -> Tensor:
        """Return what `sample` decodes, float32 [B, *latent_shape], after the same checks."""
        if steps < 1:
            raise BenchError(f"{self.card.name}: steps must be at least 1, found {steps}")
        chosen = self.resolve_settings(steps, overrides=settings)
        reason = self.unsupported(steps, cfg, chosen)
        if reason is not None:
            raise BenchError(reason)
        self.check_labels(labels)
        return self.generate(labels.to(self.device), steps, cfg, noise, chosen)

    @property
    def unconditional(self) -> bool:
        """Whether every label is the same to the model: its label space is 0 alone."""
        return self.num_classes == 0

    def own_labels(self, labels: Tensor) -> Tensor:
        """Return what a plan's labels [B] are to the model: an unconditional one is asked for 0 throughout."""
        return torch.zeros_like(labels) if self.unconditional else labels

    def check_labels(self, labels: Tensor) -> None:
        """Raise BenchError for labels, int64 [B], that the model does not have."""
        last = max(self.num_classes - 1, 0)
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) > last):
            allowed = "is unconditional: its one label is 0" if self.unconditional else f"labels must be in 0..{last}"
            found = sorted({int(label) for label in labels.tolist() if not 0 <= label <= last})
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise BenchError(f"{self.card.name}: {allowed}, found {', '.join(map(str, found[:5]))}{more}")

    def resolve_settings(self, steps: int, sampler: str = "native", overrides: Mapping[str, Any] | None = None) -> Any:
        """Return the complete sampler settings, a record of `Settings`: defaults, then card, preset and `overrides`.

        Raises BenchError for a name, value or combination that the family does not take.
        """
        return self.Settings.checked(self.card.settings(steps, sampler) | dict(overrides or {}), self.card.name)

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Adapter:
        """Move every network to `device` and `dtype`, in evaluation mode, and return self."""
        self.device, self.dtype = torch.device(device), dtype
        for module in self.modules():
            module.to(device=self.device, dtype=dtype).eval().requires_grad_(False)
        return self

    def modules(self) -> list[nn.Module]:
        """Return the networks that `to` moves: the network, the guide and the autoencoder where there is one."""
        return [module for module in (self.network, self.guide, self.autoencoder) if isinstance(module, nn.Module)]

    def randomise(self, seed: int = 0) -> Adapter:
        """Fill every parameter with seeded random values (`--random-weights`: speed, memory and tests).

        Weights keep the variance of what passes through them, 1 / fan-in, and tables of vectors have unit variance, so
        that labels, times and guidance move the output visibly and no 16-bit format overflows at any published depth.
        """
        generator = torch.Generator().manual_seed(seed)
        for network in self.modules():
            fill_randomly(network, generator)
        return self


def fill_randomly(network: nn.Module, generator: torch.Generator) -> None:
    """Fill every parameter of `network` as `Adapter.randomise` does, with numbers drawn on the generator's device."""
    tables = {id(part.weight) for part in network.modules() if isinstance(part, nn.Embedding)}
    for name, parameter in network.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, device=generator.device)
        if name.endswith("bias"):
            values *= 0.02
        elif parameter.ndim < 2:  # gains: of norms, of residual branches
            values = 1 + 0.02 * values
        elif name.endswith("weight") and id(parameter) not in tables:
            values *= parameter[0].numel() ** -0.5
        parameter.data.copy_(values)


WRAPPERS = ("module.", "_orig_mod.", "_forward_module.", "ema_model.", "online_model.", "model_ema.", "model.")
"""Prefixes that wrappers (DataParallel, compile, averaging, training classes) put before every key, in any order."""
AVERAGED = ("ema_model.", "model_ema.", "ema.")
"""Prefixes of averaged weights that lie beside the raw ones in one flat file."""
BOOKKEEPING = {"n_averaged", "decay", "num_updates", "initted", "step", "optimization_step", "epoch", "global_step"}
"""Numbers that averaging leaves beside the weights."""


def _bookkeeping(key: str, value: Tensor) -> bool:
    return value.numel() == 1 and key.rpartition(".")[2] in BOOKKEEPING


def stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` without the wrappers' prefixes; of raw and averaged weights in one, the averaged ones."""
    found = dict(state)
    while True:
        weights = [key for key, value in found.items() if not _bookkeeping(key, value)]
        shared = next((one for one in WRAPPERS if weights and all(key.startswith(one) for key in weights)), None)
        if shared is None:
            pair = _averaged(weights)
            if pair is None:
                return found
            found = {key: value for key, value in found.items() if key.startswith(pair) or key not in weights}
            shared = pair
        found = {key.removeprefix(shared): value for key, value in found.items()}


def _averaged(keys: Sequence[str]) -> str | None:
    """Return the prefix of the averaged half of `keys`, when the other half is the same under another prefix."""
    for one in AVERAGED:
        half = {key.removeprefix(one) for key in keys if key.startswith(one)}
        rest = [key for key in keys if not key.startswith(one)]
        raw = {key.partition(".")[2] for key in rest}
        if half and rest and half == raw and len({key.partition(".")[0] for key in rest}) == 1:
            return one
    return None


def load_strict(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load `state` into `module`, cast to the module's dtype; every key must match in name and shape.

    Wrappers' prefixes (`module.`, `_orig_mod.`, `model.` ...) count on neither side, and the numbers that averaging
    leaves beside the weights (`decay`, `n_averaged` ...) are left out with a warning; NaN weights have one too. Raises
    BenchError that lists what is missing, unexpected or of a wrong shape (the first few of each), and for weights that
    are all zero.
    """
    own = module.state_dict()
    state = _named_as(own, state)
    left_out = [key for key in state if key not in own and _bookkeeping(key, state[key])]
    if left_out:
        line = f"weights of {name}: left out what lies next to the weights: {', '.join(left_out)}"
        warnings.warn(line, BenchWarning, stacklevel=2)
        state = {key: value for key, value in state.items() if key not in left_out}
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{kind}: {', '.join(keys[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen))
        if keys
    ]
    if problems:
        raise BenchError(
            f"weights of {name} do not fit: {'; '.join(problems)}. {_trees(state)}Is it the checkpoint of another "
            "variant?"
        )
    _check_values({key: state[key] for key, _ in module.named_parameters() if key in state}, name)
    module.load_state_dict(dict(state), strict=True, assign=False)


def _named_as(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return `state` under the names of `own` when they differ by wrappers' prefixes alone, else as it is."""
    if all(key in state for key in own):
        return state
    bare, named = stripped(state), {}
    for key in own:
        inner = key
        while inner.startswith(WRAPPERS) and inner not in bare:
            inner = inner.partition(".")[2]
        if inner in bare:
            named[key] = bare.pop(inner)
    return {**named, **bare} if all(key in named for key in own) else state


def _trees(state: Mapping[str, Tensor]) -> str:
    """Name the trees of a file of several, and how to choose one; empty when there is one."""
    counts: dict[str, int] = {}
    for key in state:
        if "/" in key:
            counts[key.partition("/")[0]] = counts.get(key.partition("/")[0], 0) + 1
    if not counts:
        return ""
    trees = ", ".join(f"{tree} ({count} arrays)" for tree, count in list(counts.items())[:8])
    return f"The file contains the trees {trees}; choose one with weights.tree in the card. "


def _check_values(weights: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that are nothing but zeros, and warn of NaN and infinite ones."""
    floats = {key: value for key, value in weights.items() if value.is_floating_point() and value.element_size() > 1}
    broken = [key for key, value in floats.items() if not bool(value.isfinite().all())]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        line = f"weights of {name} contain NaN or infinite values: {', '.join(broken[:3])}{more}; is the file damaged?"
        warnings.warn(line, BenchWarning, stacklevel=3)
    if floats and not any(bool(value.any()) for value in floats.values()):
        raise BenchError(f"weights of {name} are all zero: nothing was trained or saved; use another checkpoint")
