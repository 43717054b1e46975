"""OpenAI's consistency models (CD and CT, arXiv 2303.01469) and their EDM teachers, on the ADM U-Net.

Pixels plus noise, x_sigma = x + sigma z. There is no guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor

from adapters.consistency import Scalings, boundary_scalings, edm_scalings, karras_sigmas, multistep_sample
from adapters.edm import HeunSettings, heun_sample
from adapters.networks.adm import ADMUNet, from_upstream
from adapters.times import filled, per_sample
from bench.contracts.adapter import Adapter, load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from results.errors import BenchError, unknown

Indices = Sequence[Annotated[int, Field(ge=0)]]
PRECONDITIONING = ("sigma_data", "sigma_min", "sigma_max", "rho")
"""Words of an architecture that shape the function around the network."""

# ----------------------------------------------------------------------------
# What consistency models and CTM share.


class PixelModel(Adapter):
    """A model of pixels on an ADM U-Net: building and loading it."""

    network: ADMUNet
    second_time: ClassVar[bool] = False
    own_words: ClassVar[tuple[str, ...]] = ()
    """Further words of an architecture that do not shape the network."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.network = adm_unet(card, (*PRECONDITIONING, *self.own_words), second_time=self.second_time)
        self.sigma_data = float(card.architecture.get("sigma_data", 0.5))

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from a state dict under the authors' names or diffusers'."""
        load_strict(self.network, named(state, self.network), self.card.name)


def adm_unet(card: ModelCard, words: Sequence[str], *, second_time: bool = False) -> ADMUNet:
    """Return the network of `card.architecture` without its `words`. Raises BenchError for words that are not known."""
    facts = {key: value for key, value in card.architecture.items() if key not in words}
    try:
        return ADMUNet(**facts, second_time=second_time)
    except TypeError as error:
        raise BenchError(f"card {card.name}: architecture: {error}".replace("ADMUNet.__init__() ", "")) from error


def named(state: Mapping[str, Tensor], network: ADMUNet) -> Mapping[str, Tensor]:
    """Return `state` under the names of `network`."""
    first: Any = network.down_blocks[0]
    return from_upstream(state, len(network.down_blocks), len(first.resnets))


def embedded(sigma: Tensor) -> Tensor:
    """Return the time that the network embeds for the noise level `sigma` [B]: 250 ln sigma."""
    return 1000 * 0.25 * (sigma + 1e-44).log()


class GridSettings(HeunSettings):
    """A noise grid of which a sampler visits some points, by their indices."""

    ts: Indices | None = Field(
        None, description="indices in the noise grid (0: sigma_max) of the evaluations and of the end, one more than "
        "there are steps; null: the sampler's own"
    )  # fmt: skip

    @field_validator("ts")
    @classmethod
    def _rising(cls, ts: Indices | None) -> Indices | None:
        if ts is not None and (len(ts) < 2 or any(i >= j for i, j in pairwise(ts))):
            raise ValueError("integers that rise, at least two")
        return ts

    def karras(self, points: int) -> list[float]:
        """Return the levels of a grid of `points`."""
        return karras_sigmas(points, float(self.sigma_min), float(self.sigma_max), float(self.rho))

    def misfit_of(self, points: int, steps: int) -> str | None:
        """Return why `ts` does not fit `steps` or a grid of `points`, or None."""
        if self.ts is None:
            return None
        if self.ts[-1] >= points:
            return f"has a noise grid of {points} points, 0 to {points - 1}; ts {list(self.ts)} goes beyond it"
        if len(self.ts) == steps + 1:
            return None
        count = len(self.ts) - 1
        return (
            f"takes {count} step{'s' if count > 1 else ''} with ts {list(self.ts)}, found {steps}: give {steps + 1} "
            "indices, or ts=null for the sampler's own"
        )


# ----------------------------------------------------------------------------
# Consistency models.


class ConsistencySettings(GridSettings):
    """Jumps to the data from chosen points of the noise grid, or, for the teachers, Heun's method."""

    sampler: Literal["multistep", "heun"] = Field(
        "multistep", description="multistep: jump to the data and add noise again; heun: EDM's, for a diffusion model"
    )
    scales: int = Field(40, ge=2, description="multistep: points of the noise grid, as the checkpoint was trained")
    parametrization: Literal["consistency", "edm"] | None = Field(
        None, description="scalings with sigma_min or without; null: by the sampler, edm for heun"
    )

    def indices(self, steps: int) -> list[int]:
        """Return the indices of `steps` evaluations and of the end: ts, or indices equally far apart."""
        if self.ts is not None:
            return list(self.ts)
        return [round(k * (self.scales - 1) / steps) for k in range(steps + 1)]

    def misfit(self, steps: int) -> str | None:
        """Return why `steps` cannot be sampled, and which step counts can, or None."""
        if self.sampler == "heun":
            if steps < 2:
                return "takes 2 or more steps (Heun's method on EDM's grid is not defined for one)"
            return "takes ts with sampler multistep only" if self.ts is not None else None
        if self.ts is None and steps >= self.scales:
            return f"takes 1 to {self.scales - 1} steps on its noise grid of {self.scales} points, found {steps}"
        return self.misfit_of(self.scales, steps)


class ConsistencyModel(PixelModel):
    """CD, CT and the diffusion models that CD was distilled from."""

    Settings: ClassVar[type[ConsistencySettings]] = ConsistencySettings

    def unsupported(self, steps: int, cfg: float, settings: ConsistencySettings | None = None) -> str | None:
        """Refuse a step count that the time indices do not have."""
        misfit = (settings or self.resolve_settings(steps)).misfit(steps)
        return f"{self.card.name} {misfit}" if misfit else super().unsupported(steps, cfg, settings)

    def generate(
        self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: ConsistencySettings
    ) -> Tensor:
        """Return pixels, float32 [B, 3, H, W] in [-1, 1]: `steps` evaluations, or 2 steps - 1 of Heun's method."""
        s, shape = settings, self.latent_shape
        if s.sampler == "heun":
            f = self.function(labels, s.parametrization or "edm")
            sigmas = [*s.karras(steps), 0.0]
            return heun_sample(
                lambda x, sigma: f(x, filled(sigma, x)).clamp(-1, 1),
                noise.normal(shape) * sigmas[0], sigmas, lambda k: noise.normal(shape, k), s,
            ).clamp(-1, 1)  # fmt: skip
        grid = s.karras(s.scales)
        return multistep_sample(
            self.function(labels, s.parametrization or "consistency"), noise, shape,
            [grid[i] for i in s.indices(steps)], sigma_min=float(s.sigma_min), sigma_max=float(s.sigma_max),
            start=float(s.sigma_max),
        )  # fmt: skip

    def function(self, labels: Tensor | None, parametrization: str) -> Callable[[Tensor, Tensor], Tensor]:
        """Return f(x, sigma) = c_skip x + c_out F(c_in x, 250 ln sigma) of x float32 [B, ...], sigma float32 [B]."""

        def f(x: Tensor, sigma: Tensor) -> Tensor:
            c_skip, c_out, c_in = (per_sample(c, x) for c in self.scalings(sigma, parametrization))
            return c_skip * x + c_out * self.network(c_in * x, embedded(sigma), labels)

        return f

    def scalings(self, sigma: Tensor, parametrization: str) -> Scalings:
        """Return the scalings of a consistency function, or EDM's."""
        if parametrization == "edm":
            return edm_scalings(sigma, self.sigma_data)
        return boundary_scalings(sigma, self.sigma_data, float(self.card.architecture.get("sigma_min", 0.002)))


# ----------------------------------------------------------------------------
# Recordings.

RECORDED = {"s_churn": "S_churn", "s_tmin": "S_min", "s_tmax": "S_max", "s_noise": "S_noise"}
"""What recordings call the settings of Heun's method."""


def recorded_options(case: Case, call: Call) -> dict[str, Any]:
    """Return the sampler settings of a recorded call; the architecture has those of the grid that the call lacks."""
    facts = {key: case.architecture[key] for key in PRECONDITIONING[1:] if key in case.architecture}
    return facts | {RECORDED.get(key, key): value for key, value in case.options(call).items()}


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a consistency model's case."""
    adapter = recorded_adapter(case, ConsistencyModel)

    def network_call(call: Call) -> Tensor:
        x, time, sigma, labels = case.arguments(call, "x", "time", "sigma", "labels")
        match call["function"]:
            case "raw":
                output: Tensor = adapter.network(x, time, labels)
                return output
            case "denoiser":
                return adapter.function(labels, "consistency")(x, sigma)
            case "denoiser_edm":
                return adapter.function(labels, "edm")(x, sigma)
        raise unknown(f"network function of {case.name}", call["function"], ("raw", "denoiser", "denoiser_edm"))

    def options(call: Call) -> dict[str, Any]:
        found = recorded_options(case, call)
        if found.get("sampler") == "onestep":
            found["sampler"] = "multistep"  # the same, of one step
        return found

    return recorded_replay(case, adapter, network_call, options=options)
