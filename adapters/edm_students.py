"""Students on EDM's and EDM2's networks: SiD and SiDA, DMD2, ECT and CMT, TrigFlow consistency models (sCM, FastGen's).

All jump to data, x_0 = D(x; sigma), and those of several steps noise it again, x = x_0 + m z, at a lower level m. They
differ in the levels and, slightly, in the preconditioning. None takes guidance.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from adapters.consistency import Scalings, boundary_scalings, karras_sigmas, multistep_sample
from adapters.edm import EDMNetworks, network_call, unlabelled
from adapters.times import filled, per_sample
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number, SamplerSettings
from results.errors import BenchError

Levels = Sequence[Number]


class LevelSettings(SamplerSettings):
    """Settings that choose the noise levels of the steps."""

    @abstractmethod
    def levels(self, steps: int) -> list[float]:
        """Return the noise levels of `steps` evaluations, falling, and a last 0."""

    def misfit(self, steps: int) -> str | None:
        """Return why there are no levels for `steps`, and which counts there are, or None."""
        return None


class Student(EDMNetworks):
    """A model of one or a few jumps to data from the levels of its settings."""

    def unsupported(self, steps: int, cfg: float, settings: Any = None) -> str | None:
        """Refuse a step count for which there are no noise levels."""
        settings = settings or self.resolve_settings(steps)
        misfit = settings.misfit(steps)
        return f"{self.card.name} {misfit}" if misfit else super().unsupported(steps, cfg, settings)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: Any) -> Tensor:
        """Return samples, float32 [B, *latent_shape], of `steps` evaluations; the k-th noise is draw k."""
        levels = settings.levels(steps)
        if getattr(settings, "student_sample_type", "sde") == "ode":
            return ode_sample(self.denoiser(labels), noise.normal(self.latent_shape), levels)
        return multistep_sample(
            self.denoiser(labels), noise, self.latent_shape, levels, sigma_min=0.0, sigma_max=inf, clamp=False
        )

    def denoiser(self, labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return D as a function of x [B, ...] and sigma [B]."""
        return lambda x, sigma: self.denoise(x, sigma.double(), labels)


def ode_sample(denoiser: Callable[[Tensor, Tensor], Tensor], z: Tensor, levels: Sequence[float]) -> Tensor:
    """Return the last data estimate of a sampler that goes on along its own noise, x = x_0 + m (x - x_0) / t."""
    x = z * levels[0]
    for t, m in pairwise(levels):
        x_0 = denoiser(x, filled(t, x))
        x = x_0 + m * ((x - x_0) / t)
    return x


def falling(levels: Levels, last_zero: bool) -> Levels:
    """Return `levels` if they fall (to 0). Raises ValueError otherwise."""
    body = levels[:-1] if last_zero else levels
    if (last_zero and (len(levels) < 2 or levels[-1] != 0)) or any(level <= 0 for level in body):
        raise ValueError("positive numbers that fall to 0" if last_zero else "positive numbers that fall")
    if any(a <= b for a, b in pairwise(levels)):
        raise ValueError("positive numbers that fall" + (" to 0" if last_zero else ""))
    return levels


# ----------------------------------------------------------------------------
# SiD and SiDA (arXiv 2404.04057, 2410.14919).


class SiDSettings(LevelSettings):
    """The level that a student starts from; k = 1 .. n - 1 more steps are at init_sigma (n - k) / n."""

    init_sigma: Number = Field(2.5, gt=0, description="noise level of the first step, as the checkpoint was distilled")

    def levels(self, steps: int) -> list[float]:
        """Return equidistant levels from init_sigma to 0."""
        return [self.init_sigma * (steps - k) / steps for k in range(steps + 1)]


class SiD(Student):
    """Score identity distillation: one step from sigma 2.5."""

    Settings = SiDSettings


# ----------------------------------------------------------------------------
# ECT (arXiv 2406.14548) and CMT (2509.24526).


class ECTSettings(LevelSettings):
    """The first level and those of the further steps."""

    t_max: Number = Field(80, gt=0, description="noise level of the first step")
    mid_t: Levels = Field((), description="noise levels of the steps after the first, falling")

    @field_validator("mid_t")
    @classmethod
    def _falling(cls, levels: Levels) -> Levels:
        return falling(levels, last_zero=False)

    def levels(self, steps: int) -> list[float]:
        """Return t_max, mid_t and 0."""
        return [float(level) for level in (self.t_max, *self.mid_t, 0)]

    def misfit(self, steps: int) -> str | None:
        """Return why mid_t does not fit `steps`."""
        count = len(self.mid_t) + 1
        if steps == count:
            return None
        return (
            f"takes {count} step{'s' if count > 1 else ''} with mid_t {list(self.mid_t)}, found {steps}: give one "
            f"level for each step after the first, {steps - 1} in all, as --option mid_t=..."
        )


class ECT(Student):
    """Easy consistency tuning: EDM's network with consistency boundary scalings, or EDM2's with plain ones."""

    Settings = ECTSettings

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return the scalings in evaluation: on EDM's network f(x, sigma_min) = x."""
        facts = self.card.architecture
        sigma_min = 0.0
        if facts.get("class_name") == "ECMPrecond":
            sigma_min = 0.003 if facts.get("sigma_min") is None else facts["sigma_min"]
        return boundary_scalings(sigma, self.sigma_data, sigma_min)


# ----------------------------------------------------------------------------
# sCM / TrigFlow (arXiv 2410.11081), consistency models and TCM as NVIDIA's FastGen trains and samples them.


class SCMSettings(LevelSettings):
    """The list of noise levels and how a step goes on to the next."""

    t_list: Levels | None = Field(
        None, description="noise levels (sigmas, not angles) of the steps and a last 0; null: the schedule's own"
    )
    student_sample_type: Literal["sde", "ode"] = Field(
        "sde", description="sde: fresh noise at the next level; ode: along the noise of the sample itself"
    )

    @field_validator("t_list")
    @classmethod
    def _falling(cls, levels: Levels | None) -> Levels | None:
        return None if levels is None else falling(levels, last_zero=True)

    def levels(self, steps: int) -> list[float]:
        """Return steps + 1 levels: t_list, or points of the training grid of 1000, from the 999th down."""
        if self.t_list is not None:
            return [float(level) for level in self.t_list]
        grid = karras_sigmas(1000)[::-1]
        points = torch.linspace(998, 2, steps + 1, dtype=torch.float64, device="cpu").tolist()
        return [*(grid[int(point)] for point in points[:-1]), 0.0]

    def misfit(self, steps: int) -> str | None:
        """Return why t_list does not fit `steps`."""
        if self.t_list is None or len(self.t_list) == steps + 1:
            return None
        return (
            f"takes {len(self.t_list) - 1} steps with t_list {list(self.t_list)}, found {steps}: give {steps} levels "
            "and a last 0, or t_list=null for the schedule's own"
        )


class SCM(Student):
    """TrigFlow consistency models: D(x; sigma) is the TrigFlow jump at the angle arctan(sigma / sigma_data)."""

    Settings = SCMSettings

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return EDM's scalings with c_skip and c_out taken at sigma - sigma_shift."""
        sigma_data = self.sigma_data
        s = sigma - self.card.architecture.get("sigma_shift", 0.0)
        return Scalings(
            c_skip=sigma_data**2 / (s**2 + sigma_data**2),
            c_out=s * sigma_data / (s**2 + sigma_data**2).sqrt(),
            c_in=1 / (sigma**2 + sigma_data**2).sqrt(),
        )

    def trigflow(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Return F(x, t), float32 [B, ...], of TrigFlow's state x = cos(t) x_0 + sin(t) sigma_data z; t [B] in radians.

        f = cos(t) x - sigma_data sin(t) F is D again.
        """
        sigma_data, t = self.sigma_data, t.double()
        d = self.denoise(x * per_sample((1 + t.tan() ** 2).sqrt(), x), sigma_data * t.tan(), labels)
        F: Tensor = (per_sample(t.cos(), x) * x - d) / (sigma_data * per_sample(t.sin(), x))
        return F.float()


# ----------------------------------------------------------------------------
# DMD2 on ImageNet (arXiv 2405.14867).


class DMD2Settings(LevelSettings):
    """The one noise level of the student."""

    conditioning_sigma: Number = Field(
        80, gt=0, description="noise level of the one step: it scales the noise and conditions the network"
    )

    def levels(self, steps: int) -> list[float]:
        """Return the level and 0."""
        return [float(self.conditioning_sigma), 0.0]

    def misfit(self, steps: int) -> str | None:
        """Return why there are no more steps."""
        return None if steps == 1 else f"takes 1 step only: it was distilled at one noise level, found {steps}"


class DMD2(Student):
    """Distribution matching distillation on EDM's network: one step from sigma 80."""

    Settings = DMD2Settings


# ----------------------------------------------------------------------------
# Recordings.


def _student_replay(case: Case, adapter: Student, samplers: Sequence[str]) -> Replay:
    def options(call: Call) -> dict[str, Any]:
        found = case.options(call)
        found.pop("t_list_used", None)
        if found.pop("sampler", samplers[0]) not in samplers:
            raise BenchError(f"{case.name}: sampler must be {' or '.join(samplers)}")
        return found

    def network(call: Call) -> Tensor:
        return _student_network(adapter, case, call)

    null = unlabelled(adapter)
    return recorded_replay(case, adapter, network, options=options, cfg=lambda call: 1.0, null_label=null)


def _student_network(adapter: Student, case: Case, call: Call) -> Tensor:
    if isinstance(adapter, SCM) and call["function"] in ("trigflow", "trigflow_x0"):
        x, t, labels = case.arguments(call, "x", "time", "labels")
        F = adapter.trigflow(x, t, labels)
        if call["function"] == "trigflow":
            return F
        return per_sample(t.cos(), x) * x - adapter.sigma_data * per_sample(t.sin(), x) * F
    return network_call(adapter, case, call)


def replay_sid(case: Case) -> Replay:
    """Return the replay of a SiD or SiDA recording."""
    return _student_replay(case, recorded_adapter(case, SiD), ("sid_onestep", "sid_multistep"))


def replay_dmd2(case: Case) -> Replay:
    """Return the replay of a recording of DMD2's ImageNet student."""
    return _student_replay(case, recorded_adapter(case, DMD2), ("dmd2_onestep",))


def replay_ect(case: Case) -> Replay:
    """Return the replay of an ECT or CMT recording."""
    return _student_replay(case, recorded_adapter(case, ECT), ("ect",))


def replay_scm(case: Case) -> Replay:
    """Return the replay of a recording of FastGen's samplers."""
    return _student_replay(case, recorded_adapter(case, SCM), ("scm",))
