"""pi-Flow on ImageNet (arXiv 2510.14974): one network pass a step predicts a policy, which cheap substeps follow.

Noise lies at t = 1 and data at t = 0. The policy is GMFlow's Gaussian mixture. Guidance is trained in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from pydantic import Field
from torch import Tensor

from adapters.latent import LatentAdapter
from adapters.mixtures import Policy, predicted
from adapters.networks.gmdit import GMDiT
from adapters.times import at_times
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number, SamplerSettings
from results.errors import BenchError

EPS = 1e-4
"""Smallest noise level and divisor of the policy."""


class PiFlowSettings(SamplerSettings):
    """The time grid, its warp and the substeps."""

    shift: Number = Field(1.0, gt=0, description="noise level is s t / (1 + (s - 1) t); above 1 towards noise")
    total_substeps: int = Field(128, ge=1, description="substeps of the whole path; they cost no network evaluation")
    final_step_size_scale: Number = Field(
        1.0, gt=0, description="length of the last step in units of the others; 1: all steps are equal"
    )
    temperature: Number = Field(
        1.0, gt=0, description="temperature of the mixtures at every step but the last; 1: as predicted"
    )

    def times(self, steps: int) -> list[float]:
        """Return `steps` + 1 times from 1 (noise) to 0 (data)."""
        unit = 1 / (steps - 1 + self.final_step_size_scale)
        return [max(0.0, 1 - i * unit) for i in range(steps)] + [0.0]

    def segments(self, steps: int) -> Iterator[list[float]]:
        """Yield the noise levels of each step's substeps, both ends included."""
        for t, t_next in pairwise(self.times(steps)):
            count = max(1, round((t - t_next) * self.total_substeps))
            yield [self.sigma(t + (t_next - t) * i / count) for i in range(count + 1)]

    def sigma(self, t: float) -> float:
        """Return the noise level at time `t`."""
        return self.shift * t / (1 + (self.shift - 1) * t)


class PiFlow(LatentAdapter):
    """pi-Flow's class-conditional students."""

    Settings = PiFlowSettings
    network: GMDiT

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        try:
            self.network = GMDiT(**{"num_classes": card.num_classes, **card.architecture})
        except TypeError as error:
            raise BenchError(f"card {card.name}: architecture of pi-Flow: {error}") from error

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from the published state dict."""
        load_strict(self.network, state, self.card.name)

    def substeps(self, steps: int, settings: PiFlowSettings) -> int:
        """Return how many substeps a sample takes."""
        return sum(len(sigmas) - 1 for sigmas in settings.segments(steps))

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: PiFlowSettings) -> Tensor:
        """Return latents, float32 [B, C, H, W]; the network is asked at the first noise level of each step."""
        x, network = noise.normal(self.latent_shape).to(self.device), at_times(self.network)
        for index, sigmas in enumerate(settings.segments(steps), 1):
            mixture = predicted(network(x, sigmas[0], labels), x, sigmas[0])
            if index < steps and settings.temperature != 1:
                mixture = mixture.cooled(settings.temperature)
            x = Policy(mixture, x, sigmas[0], EPS).follow(sigmas)
        return x


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a pi-Flow case."""
    adapter = recorded_adapter(case, PiFlow)

    def network(call: Call) -> Tensor:
        inputs = case.arguments(call, "x", "t", "labels", null_label=adapter.num_classes)
        output: Tensor = adapter.network(*inputs)[PARTS.index(case.options(call)["part"])]
        return output

    return recorded_replay(case, adapter, network, cfg=lambda call: 1.0, null_label=adapter.num_classes)


PARTS = ("means", "logweights", "logstds")
"""What recordings call the parts of the network's output."""
