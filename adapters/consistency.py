"""Consistency models (arXiv 2303.01469): the boundary scalings, the noise grid and multistep sampling.

Pixels plus noise, x_sigma = x + sigma z; f(x, sigma) = c_skip x + c_out F(c_in x) jumps from any level to data. There
is no guidance of any kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from bench.contracts.noise import NoiseSource


class Scalings(NamedTuple):
    """The preconditioning of one noise level (or of each of a batch)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


def boundary_scalings(sigma: Tensor, sigma_data: float, sigma_min: float) -> Scalings:
    """Return the scalings of a consistency function, for which f(x, sigma_min) = x.

    sigma_min enters c_skip and the numerator of c_out only, neither c_in nor the root in c_out.
    """
    return Scalings(
        c_skip=sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2),
        c_out=(sigma - sigma_min) * sigma_data / (sigma**2 + sigma_data**2).sqrt(),
        c_in=1 / (sigma**2 + sigma_data**2).sqrt(),
    )


def edm_scalings(sigma: Tensor, sigma_data: float) -> Scalings:
    """Return the scalings of an EDM diffusion model (arXiv 2206.00364, table 1), the teacher's."""
    return boundary_scalings(sigma, sigma_data, sigma_min=0.0)


def karras_sigmas(count: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> list[float]:
    """Return `count` >= 2 noise levels from sigma_max (index 0) down to sigma_min (index count - 1)."""
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    between = [(first + i / (count - 1) * (last - first)) ** rho for i in range(1, count - 1)]
    # Exact ends: a rounded sigma_min would ask for a last, invisible addition of noise.
    return [sigma_max, *between, sigma_min]


def multistep_sample(
    consistency: Callable[[Tensor, Tensor], Tensor],
    noise: NoiseSource,
    shape: Sequence[int],
    sigmas: Sequence[float],
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    start: float | None = None,
    clamp: bool = True,
) -> Tensor:
    """Return samples, float32 [B, *shape]: denoise at each level, add noise of the next, denoise again (algorithm 1).

    `sigmas` holds the levels of the K evaluations, sigma_max first, and a terminal level, which is sigma_min in every
    published recipe: K steps are K + 1 numbers. `consistency(x, sigma)` takes float32 [B, *shape] and sigma [B]. The
    first state is noise of the first level, or of `start`. Each prediction is clamped to [-1, 1] before noise is added,
    and the result once more, unless `clamp` is False. The k-th addition of noise is draw k of `noise`.
    """
    x = noise.normal(shape, 0) * (sigmas[0] if start is None else start)
    for draw, (sigma, following) in enumerate(pairwise(sigmas), start=1):
        x_0 = consistency(x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device))
        x_0 = x_0.clamp(-1, 1) if clamp else x_0
        # What a sample at level s already is: data with noise of variance s^2 - sigma_min^2, seen from sigma_min.
        renoise = (min(max(following, sigma_min), sigma_max) ** 2 - sigma_min**2) ** 0.5
        x = x_0 + renoise * noise.normal(shape, draw) if renoise > 0 else x_0
    return x.clamp(-1, 1) if clamp else x
