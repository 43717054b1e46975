"""Constant acceleration flow, CAF (arXiv 2411.00322): a velocity network, and one of the acceleration along it.

Noise lies at t = 0 and data at t = 1. The initial velocity costs one evaluation and each step one more. There is no
guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.consistency_models import PRECONDITIONING, adm_unet, named
from adapters.networks.adm import ADMUNet
from adapters.times import filled
from bench.contracts.adapter import Adapter, load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import SamplerSettings
from results.errors import BenchError, unknown

Acceleration = Callable[[Tensor, float, Tensor], Tensor]
"""A(x, t, v_0), [B, ...], at a time that is a number."""
VELOCITY = "velocity"
"""The role of the velocity network's weights."""
OWN_WORDS = (*PRECONDITIONING, "time_scale")
"""Words of an architecture that do not shape the networks."""


def accelerated_sample(
    velocity: Callable[[Tensor], Tensor], acceleration: Acceleration, x: Tensor, times: Sequence[float]
) -> Tensor:
    """Move x from noise (t = 0) to data (t = 1) at its initial velocity and an acceleration asked for at `times`.

    `velocity(z)` and `acceleration(x, t, v_0)` take and return float32 [B, ...]. N times of equal steps are N + 1
    evaluations.
    """
    steps, v_0 = len(times), velocity(x)
    for t in times:
        a = acceleration(x, t, v_0)
        x = x + v_0 / steps + (t + 1 / (2 * steps)) * a / steps
    return x


def published_times(steps: int) -> list[float]:
    """Return the times of `steps` equal steps, cut to thousandths as the authors' code does."""
    return [1000 * i // steps / 1000 for i in range(steps)]


class CAFNetworks(nn.Module):
    """The two networks of one architecture; each call asks one of them."""

    def __init__(self, velocity: ADMUNet, acceleration: ADMUNet) -> None:
        super().__init__()
        self.velocity, self.acceleration = velocity, acceleration

    def forward(self, x: Tensor, t: Tensor, v_0: Tensor, labels: Tensor | None = None, *, which: str) -> Tensor:
        """Return V or A, float32 [B, C, H, W], of x and v_0 [B, C, H, W], t [B] and labels int64 [B] or none."""
        network = self.velocity if which == VELOCITY else self.acceleration
        output: Tensor = network(torch.cat([x, v_0], dim=1), t, labels)
        return output


class CAF(Adapter):
    """CAF on two ADM U-Nets, which are given the initial velocity as further channels."""

    network: CAFNetworks

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.network = CAFNetworks(*(adm_unet(card, OWN_WORDS) for _ in range(2)))
        self.time_scale = float(card.architecture.get("time_scale", 1.0))
        network = self.network.velocity
        given, made = network.conv_in.in_channels, network.conv_out.out_channels
        if given != 2 * made:
            raise BenchError(
                f"card {card.name}: architecture.in_channels must be twice out_channels, for x and v_0, found {given} "
                f"and {made}"
            )

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the acceleration network, and from `extra` the velocity network."""
        if VELOCITY not in extra:
            raise BenchError(
                f"weights of {self.card.name} lack the velocity network: name it as extra_weights.velocity"
            )
        for role, found in (("acceleration", state), (VELOCITY, extra[VELOCITY])):
            network = getattr(self.network, role)
            load_strict(network, named(found, network), f"{self.card.name} ({role})")

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings) -> Tensor:
        """Return pixels, float32 [B, 3, H, W] in [-1, 1], of `steps` + 1 evaluations."""
        z = noise.normal(self.latent_shape)
        times = published_times(steps)
        sample = accelerated_sample(
            lambda z: self.ask(VELOCITY, z, filled(0.0, z), torch.zeros_like(z), labels),
            lambda x, t, v_0: self.ask("acceleration", x, filled(t, x), v_0, labels), z, times,
        )  # fmt: skip
        return sample.clamp(-1, 1)

    def ask(self, which: str, x: Tensor, t: Tensor, v_0: Tensor, labels: Tensor | None) -> Tensor:
        """Return the output of one network at the time t [B], in [0, 1]."""
        return self.network(x, self.time_scale * t, v_0, labels, which=which)


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a CAF case."""
    adapter = recorded_adapter(case, CAF, channels=case.architecture.get("out_channels", 3), roles=(VELOCITY,))

    def network(call: Call) -> Tensor:
        which = call["function"]
        if which not in (VELOCITY, "acceleration"):
            raise unknown(f"network function of {case.name}", which, (VELOCITY, "acceleration"))
        x, time, v_0, labels = case.arguments(call, "x", "time", "v0", "labels")
        return adapter.ask(which, x, time, torch.zeros_like(x) if v_0 is None else v_0, labels)

    def options(call: Call) -> dict[str, Any]:
        found = case.options(call)
        if found.pop("sampler", "caf") != "caf":
            raise unknown(f"sampler of {case.name}", call["options"]["sampler"], ("caf",))
        return found

    return recorded_replay(case, adapter, network, options=options)
