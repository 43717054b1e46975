"""PFGM++ (arXiv 2302.04265): EDM's networks and sampler from a heavy-tailed prior in N + D dimensions."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from adapters.edm import EDM, HeunSettings, heun_replay, network_call
from adapters.times import per_sample
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter
from bench.contracts.settings import Number

SIGMA_PRIOR = 80.0
"""Whatever the grid begins with, up to N = 256 * 256 * 3 data dimensions."""
RADIUS_DRAW = 2**31
"""The draw of the prior's radius, far from those of the steps."""
PIECE = 2**20
"""Numbers of one draw of the radius; more are drawn in pieces."""


class PFGMppSettings(HeunSettings):
    """EDM's settings with the dimension of the prior; churn adds no noise unless S_noise says so."""

    D: int = Field(128, ge=1, le=2**22, description="augmented dimensions, as the checkpoint was trained")
    S_noise: Number = Field(0, ge=0, description="standard deviation of the added noise; 0 raises the level alone")


def prior(z: Tensor, odds: Tensor, D: int) -> Tensor:
    """Return x_T = R z / |z| with R = 80 sqrt(D odds), float64 [B, ...], of the Gaussian z and the odds [B].

    odds = b / (1 - b) of a draw b ~ Beta(N / 2, D / 2), float64; N is the number of data dimensions.
    """
    u = z / per_sample(z.flatten(1).norm(dim=1), z)
    return u.double() * per_sample(SIGMA_PRIOR * sqrt(D) * odds.sqrt(), z)


def odds_of(z: Tensor, w: Iterable[Tensor]) -> Tensor:
    """Return b / (1 - b), float64 [B], of b ~ Beta(N / 2, D / 2) from Gaussians z [B, N ...] and w, [B, D] in pieces.

    The ratio of their squared lengths has that distribution, and a Gaussian's length is independent of its direction.
    """
    return z.double().flatten(1).square().sum(1) / sum(piece.double().square().sum(1) for piece in w)


class PFGMpp(EDM):
    """EDM with the prior of PFGM++."""

    Settings: ClassVar[type[HeunSettings]] = PFGMppSettings

    def prior(self, noise: NoiseSource, sigma: float, settings: HeunSettings) -> Tensor:
        """Return the first state, float64 [B, *latent_shape]; `sigma`, the grid's first level, plays no part."""
        assert isinstance(settings, PFGMppSettings)
        z, D = noise.normal(self.latent_shape), settings.D
        w = (noise.normal((min(PIECE, D - at),), RADIUS_DRAW + at // PIECE) for at in range(0, D, PIECE))
        return prior(z, odds_of(z, w), D)


class RecordedPFGMpp(PFGMpp):
    """The family with the radii of a recording."""

    beta: Tensor

    def prior(self, noise: NoiseSource, sigma: float, settings: HeunSettings) -> Tensor:
        """Return the prior of the recorded draws b."""
        assert isinstance(settings, PFGMppSettings)
        b = self.beta.double()
        return prior(noise.normal(self.latent_shape), b / (1 - b), settings.D)


def replay(case: Case) -> Replay:
    """Return the replay of a PFGM++ recording, which holds the Beta draws beside the Gaussian noise."""
    adapter = recorded_adapter(case, RecordedPFGMpp)
    sampled = heun_replay(case, adapter)
    trained = case.architecture.get("D", PFGMppSettings().D)

    def run(call: Call) -> dict[str, Any]:
        if call["kind"] == "network" and call["function"] != "prior":
            return {"output": network_call(adapter, case, call)}
        b = case.tensor(call.get("inputs", {}).get("beta"))
        adapter.beta = torch.full((len(case.noise(call)),), 0.5) if b is None else b
        options = {"D": trained, **case.options(call)}
        if call["kind"] == "network":
            z, b = case.arguments(call, "x", "beta")
            return {"output": prior(z, b.double() / (1 - b.double()), options["D"])}
        return dict(sampled({**call, "options": options}))

    return run
