"""Integrators of the sampling ODE and SDE, noise at t = 0 and data at t = 1, on grids that the caller gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import sqrt
from typing import Literal, get_args

import torch
from torch import Tensor

from adapters.interpolants import Field, Flow
from adapters.times import filled
from results.errors import BenchError, unknown

FixedSolver = Literal["euler", "midpoint", "heun2", "heun3", "rk4"]
SOLVER = "solver of the flow; midpoint and heun2 cost two evaluations per step, heun3 three, rk4 four"
"""What a setting with these solvers says of itself."""
AdaptiveSolver = Literal["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]
ADAPTIVE = get_args(AdaptiveSolver)
"""Solvers of torchdiffeq that choose their own steps."""


def ode_sample(
    velocity: Field,
    x: Tensor,
    times: Sequence[float] | Tensor,
    solver: str = "euler",
    *,
    atol: float = 1e-6,
    rtol: float = 1e-3,
) -> Tensor:
    """Integrate dx/dt = velocity(x, t) over `times`, increasing from noise (t = 0) to data (t = 1).

    N + 1 times are N steps of a fixed-step solver: `euler` (N evaluations), `midpoint` and `heun2` (2N), `heun3` (3N),
    `rk4` (4N, the 3/8 rule as in torchdiffeq). `dopri5` and the other adaptive solvers choose their own steps by `atol`
    and `rtol`, so only the first and the last time matter, a sample depends slightly on its batch, and the field may
    be evaluated beyond the last time; they need the `ode` extra. Raises BenchError for an unknown solver.
    """
    if solver in ADAPTIVE:
        return _integrate_adaptively(velocity, x, times, solver, atol, rtol)
    if solver not in FIXED_STEP:
        raise unknown("ODE solver", solver, [*FIXED_STEP, *ADAPTIVE])

    def slope(x: Tensor, t: float) -> Tensor:
        return velocity(x, filled(t, x))

    return fixed_steps(slope, x, [float(t) for t in times], solver)


Slope = Callable[[Tensor, float], Tensor]
"""dx/dt of (x, t), [B, ...], at a time that is a number."""


def fixed_steps(slope: Slope, x: Tensor, times: Sequence[float], solver: str = "euler") -> Tensor:
    """Integrate dx/dt = slope(x, t) over `times`, which rise or fall: a step of `solver` between each two of them."""
    for t, t_next in pairwise(times):
        x = FIXED_STEP[solver](slope, x, t, t_next - t)
    return x


def _euler(f: Slope, x: Tensor, t: float, h: float) -> Tensor:
    return x + h * f(x, t)


def _midpoint(f: Slope, x: Tensor, t: float, h: float) -> Tensor:
    k1 = f(x, t)
    return x + h * f(x + h * k1 / 2, t + h / 2)


def _heun2(f: Slope, x: Tensor, t: float, h: float) -> Tensor:
    k1 = f(x, t)
    k2 = f(x + h * k1, t + h)
    return x + h * (k1 + k2) / 2


def _heun3(f: Slope, x: Tensor, t: float, h: float) -> Tensor:
    k1 = f(x, t)
    k2 = f(x + h * k1 / 3, t + h / 3)
    k3 = f(x + h * k2 * 2 / 3, t + h * 2 / 3)
    return x + h * (k1 + 3 * k3) / 4


def _rk4(f: Slope, x: Tensor, t: float, h: float) -> Tensor:
    k1 = f(x, t)
    k2 = f(x + h * k1 / 3, t + h / 3)
    k3 = f(x + h * (k2 - k1 / 3), t + h * 2 / 3)
    k4 = f(x + h * (k1 - k2 + k3), t + h)
    return x + h * (k1 + 3 * k2 + 3 * k3 + k4) / 8


FIXED_STEP: Mapping[str, Callable[[Slope, Tensor, float, float], Tensor]] = {
    "euler": _euler, "midpoint": _midpoint, "heun2": _heun2, "heun3": _heun3, "rk4": _rk4,
}  # fmt: skip


def _integrate_adaptively(
    velocity: Field, x: Tensor, times: Sequence[float] | Tensor, solver: str, atol: float, rtol: float
) -> Tensor:
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise BenchError(
            f"solver '{solver}' needs torchdiffeq; install the extra: pip install 'fewstep-bench[ode]'"
        ) from error
    grid = torch.as_tensor(times, dtype=torch.float32, device=x.device)
    path: Tensor = odeint(lambda t, x: velocity(x, t.expand(len(x))), x, grid, method=solver, atol=atol, rtol=rtol)
    return path[-1]


def sde_sample(
    flow: Callable[[Tensor, Tensor], Flow],
    x: Tensor,
    draw: Callable[[int], Tensor],
    times: Sequence[float],
    diffusion: Callable[[Tensor], Tensor],
    *,
    solver: str = "euler",
    last_step: Callable[[Tensor, Flow, Tensor], Tensor] | None = None,
) -> Tensor:
    """Integrate dx = (v + w s) dt + sqrt(2 w) dW over `times`, then apply `last_step` to the state at the last time.

    N times are N - 1 noisy updates, the k-th with `draw(k)`, k = 1 .. N - 1. `euler` is Euler-Maruyama (N evaluations
    with a last step, N - 1 without); `heun` adds the noise first and then takes a trapezoid step of the drift (2N - 1
    or 2N - 2). `diffusion` is w(t). `flow` takes x float32 [B, ...] and t float32 [B]; `last_step` takes
    x, the flow there and t [1, ...]. Raises BenchError for an unknown solver.
    """
    if solver not in ("euler", "heun"):
        raise unknown("SDE solver", solver, ("euler", "heun"))

    def w(x: Tensor, t: float) -> Tensor:
        return diffusion(x.new_full((1,) * x.ndim, t))

    def drift(x: Tensor, t: float) -> Tensor:
        v, s = flow(x, filled(t, x))
        return v + w(x, t) * s

    dt = float(times[1]) - float(times[0])
    for k, t in enumerate([float(t) for t in times[:-1]], start=1):
        dw = sqrt(dt) * draw(k)
        if solver == "euler":
            x = x + drift(x, t) * dt + torch.sqrt(2 * w(x, t)) * dw
        else:
            x = x + torch.sqrt(2 * w(x, t)) * dw
            k1 = drift(x, t)
            k2 = drift(x + dt * k1, t + dt)
            x = x + dt * (k1 + k2) / 2
    if last_step is None:
        return x
    t_last = float(times[-1])
    return last_step(x, flow(x, filled(t_last, x)), x.new_full((1,) * x.ndim, t_last))
