"""SiT, scalable interpolant transformers (arXiv 2401.08740): a DiT sampled by an ODE or by a reverse SDE.

Noise lies at t = 0 and data at t = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from adapters.guidance import Guided
from adapters.integrators import ADAPTIVE, AdaptiveSolver, FixedSolver, ode_sample, sde_sample
from adapters.interpolants import Coefficient, DiffusionForm, Flow, Interpolant, PathName, Prediction
from adapters.latent import LatentAdapter
from adapters.meanflow import TimedSettings
from adapters.networks.dit import DiT
from adapters.times import filled
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number
from results.errors import unknown

LastStep = Callable[[Tensor, Flow, Tensor], Tensor]


class SiTSettings(TimedSettings):
    """An ODE or a reverse SDE, along the path and with the prediction that a checkpoint was trained for."""

    mode: Literal["ODE", "SDE"] = Field(
        "ODE", description="ODE: the step count is intervals of the solver; SDE: network evaluations of solver euler"
    )
    solver: FixedSolver | AdaptiveSolver | Literal["heun"] = Field(
        "euler",
        description="ODE: any but heun (adaptive ones choose their own steps, and their samples depend slightly on the "
        "batch); SDE: euler or heun",
    )
    guidance_channels: int = Field(3, ge=0, description="how many of the first channels are guided")
    path_type: PathName = Field("Linear", description="path between noise and data")
    prediction: Prediction = Field("velocity", description="what the network predicts")
    atol: Number = Field(1e-6, gt=0, description="absolute tolerance of an adaptive solver")
    rtol: Number = Field(1e-3, gt=0, description="relative tolerance of an adaptive solver")
    diffusion_form: DiffusionForm = Field("sigma", description="SDE: diffusion coefficient w(t)")
    diffusion_norm: Number = Field(1.0, ge=0, description="SDE: factor of the diffusion coefficient")
    last_step: Literal["Mean", "Euler", "Tweedie", "none"] = Field(
        "Mean", description="SDE: the update that the last evaluation serves"
    )
    last_step_size: Number = Field(
        0.04, ge=0, lt=1, description="SDE: size of the last update, however many steps there are"
    )

    @field_validator("last_step", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return "none" if value is None else value  # `--option last_step=none` reads as null

    @model_validator(mode="after")
    def _finite(self) -> Self:
        if self.times is not None and (self.mode != "ODE" or self.solver in ADAPTIVE):
            raise ValueError("times are for mode ODE and solvers of fixed steps")
        if self.mode == "ODE":
            if self.solver == "heun":
                raise ValueError("solver heun is for mode SDE; mode ODE has heun2 and heun3")
            return self
        if self.solver not in ("euler", "heun"):
            raise ValueError(str(unknown("SDE solver", self.solver, ("euler", "heun"))))
        if self.diffusion_form == "SBDM" and self.path_type != "VP" and self.prediction == "velocity":
            raise ValueError(
                f"diffusion_form SBDM is infinite at t = 0 on the {self.path_type} path; use sigma, or linear"
            )
        _, end = self.interpolant.interval(self.stop)
        if self.solver == "heun" and self.interpolant.path.sigma(torch.tensor(end, device="cpu")) == 0.0:
            raise ValueError(
                "solver heun without a last step needs the score at t = 1, where it is infinite on the "
                f"{self.path_type} path; use solver=euler or another last_step"
            )
        return self

    @property
    def interpolant(self) -> Interpolant:
        """The path and what is predicted on it."""
        return Interpolant(self.path_type, self.prediction)

    def clock(self, t: float) -> float:
        """Return the time on the path, where noise lies at 0, of the time `t` that falls from 1 to 0."""
        start, end = self.interpolant.interval()
        return start + (1 - t) * (end - start)

    @property
    def stop(self) -> float:
        """How far from the data the noisy updates of the SDE stop."""
        return 0.0 if self.last_step == "none" else self.last_step_size

    def last_update(self, w: Coefficient) -> LastStep | None:
        """Return the last update of the SDE with diffusion w, a function of (x, flow, t); None for none."""
        path, h = self.interpolant.path, self.last_step_size
        updates: dict[str, LastStep] = {
            "Mean": lambda x, f, t: x + h * (f.velocity + w(t) * f.score),
            "Euler": lambda x, f, t: x + h * f.velocity,
            "Tweedie": lambda x, f, t: x / path.alpha(t) + path.sigma(t) ** 2 / path.alpha(t) * f.score,
        }
        return updates.get(self.last_step)


class SiTNetwork(DiT):
    """A DiT of the SiT repository: with `learn_sigma` it emits twice the channels and the second half is unused."""

    def __init__(self, architecture: Mapping[str, Any], learn_sigma: bool) -> None:
        channels = architecture["in_channels"]
        super().__init__(
            input_size=architecture["latent_size"],
            patch_size=architecture["patch_size"],
            in_channels=channels,
            hidden_size=architecture["hidden_size"],
            depth=architecture["depth"],
            num_heads=architecture["num_heads"],
            mlp_ratio=architecture.get("mlp_ratio", 4.0),
            label_rows=architecture["num_classes"] + 1,
            out_channels=2 * channels if learn_sigma else channels,
        )
        self.channels = channels

    def forward(self, x: Tensor, *conditions: Tensor) -> Tensor:
        """x float32 [B, C, H, W], t float32 [B], labels int64 [B] (null label: num_classes) -> float32 [B, C, H, W]."""
        return super().forward(x, *conditions)[:, : self.channels]


class SiT(LatentAdapter):
    """SiT and any model of its repository's architecture and transport."""

    Settings = SiTSettings
    network: SiTNetwork

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.null_label = int(card.architecture["num_classes"])
        self.network = SiTNetwork(card.architecture, card.architecture.get("learn_sigma", True))

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load a state dict; whether it has sigma channels is decided from the file, not from the card."""
        self.network = load_network(self.card.architecture, state, self.card.name).to(self.device, self.dtype).eval()

    def unsupported(self, steps: int, cfg: float, settings: SiTSettings | None = None) -> str | None:
        """Refuse one-step SDE sampling: the last update alone would start from noise."""
        settings = settings or self.resolve_settings(steps)
        misfit = settings.misfit(steps)
        if misfit is not None:
            return f"{self.card.name}: {misfit}"
        if settings.mode == "SDE" and steps < 2:
            return f"{self.card.name} takes 2 or more steps in SDE mode (the last one is the last update)"
        return super().unsupported(steps, cfg, settings)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SiTSettings) -> Tensor:
        """Return latents, float32 [B, *latent_shape]."""
        s, interpolant = settings, settings.interpolant
        model = self.guided(labels, cfg, s.guidance_channels)
        x = noise.normal(self.latent_shape)
        if s.mode == "SDE":
            w = interpolant.diffusion(s.diffusion_form, s.diffusion_norm)
            times = torch.linspace(*interpolant.interval(s.stop), steps).tolist()
            return sde_sample(
                interpolant.flow_of(model), x, lambda k: noise.normal(self.latent_shape, k), times, w,
                solver=s.solver, last_step=s.last_update(w),
            )  # fmt: skip
        if s.times is None:
            times = torch.linspace(*interpolant.interval(), steps + 1).tolist()
        else:
            times = [s.clock(t) for t in s.grid(steps)]
        tolerances = {"atol": s.atol, "rtol": s.rtol}
        if s.solver in ADAPTIVE and cfg != 1.0:
            velocity, x = interpolant.velocity_of(model.pair), torch.cat([x, x])
            return ode_sample(velocity, x, times, s.solver, **tolerances)[: len(labels)]
        return ode_sample(interpolant.velocity_of(model), x, times, s.solver, **tolerances)

    def euler_field(
        self, labels: Tensor, cfg: float, settings: SiTSettings
    ) -> Callable[[Tensor, float], Tensor] | None:
        """Return the guided flow; an SDE and its likes have none."""
        if settings.mode != "ODE":
            return None
        field = settings.interpolant.velocity_of(self.guided(labels, cfg, settings.guidance_channels))
        start, end = settings.interpolant.interval()
        return lambda x, t: (start - end) * field(x, filled(settings.clock(t), x))

    def guided(self, labels: Tensor, cfg: float, channels: int) -> Guided:
        """Return the network as a function of (x, t), guided in the first `channels`.

        The published figures guide 3 of the 4 latent channels and leave the others conditional.
        """
        return Guided(self.network, labels, torch.full_like(labels, self.null_label), cfg, channels)


def load_network(architecture: Mapping[str, Any], state: Mapping[str, Any], name: str) -> SiTNetwork:
    """Return the network of a state dict, with sigma channels if its last layer has rows for them.

    Files that the repository's training script saved hold the weights under `ema`; the published one holds them bare.
    """
    if isinstance(state.get("ema"), Mapping):
        state = state["ema"]
    last = state.get("final_layer.linear.weight")
    outputs = architecture["patch_size"] ** 2 * architecture["in_channels"]
    learn_sigma = architecture.get("learn_sigma", True) if last is None else len(last) == 2 * outputs
    network = SiTNetwork(architecture, learn_sigma)
    load_strict(network, state, name)
    return network


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a SiT case."""
    adapter = recorded_adapter(case, SiT, "classifier-free")

    def network(call: Call) -> Tensor:
        x, t, labels = case.arguments(call, "x", "t", "labels", null_label=adapter.null_label)
        channels = case.options(call).get("guidance_channels", 3)
        return adapter.guided(labels, call.get("guidance", 1.0), channels)(x, t)

    def options(call: Call) -> dict[str, Any]:
        found = case.options(call)
        found.pop("upstream_num_steps", None)
        found["solver"] = found.get("solver", "euler").lower()
        if call.get("options", {}).get("last_step", "") is None:
            found["last_step"] = "none"
        return found

    return recorded_replay(case, adapter, network, options=options, null_label=adapter.null_label)
