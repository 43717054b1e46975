"""Flow maps: networks of the average velocity u(x, t, r) from t down to r, sampled by jumps.

Noise lies at t = 1 and data at t = 0. The state keeps its dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from bench.contracts.noise import NoiseSource

FlowMap = Callable[[Tensor, float, float], Tensor]
"""u(x, t, r), [B, ...]: the average velocity over [r, t]."""


def flow_map_sample(u: FlowMap, x: Tensor, times: Sequence[float]) -> Tensor:
    """Return x at the last of `times`, started from `x` [B, ...] at the first: a jump a step, nothing is drawn."""
    for t, r in pairwise(times):
        x = x - (t - r) * u(x, t, r)
    return x


def restart_sample(u: FlowMap, x: Tensor, times: Sequence[float], noise: NoiseSource) -> Tensor:
    """Return the data estimate of the stochastic sampler: jump to the data, add noise again, jump again.

    `x` [B, ...] at the first of `times`, which end at 0; draw k of `noise` is the noise after step k.
    """
    for k, (t, t_next) in enumerate(pairwise(times), start=1):
        x_0 = x - t * u(x, t, 0.0)
        x = x_0 if t_next == 0.0 else (1 - t_next) * x_0 + t_next * noise.normal(x.shape[1:], draw=k).to(x)
    return x
