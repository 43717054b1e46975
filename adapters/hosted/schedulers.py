"""Schedulers of the hosted systems: diffusers' own with the harness's noise, and two loops that diffusers lacks."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapters.hosted.table import from_diffusers
from adapters.transports import TRANSPORTS, time_grid
from results.errors import BenchError, nearest

Draw = Callable[[int], Tensor]
"""The unit noise of the step with this number (1, 2, ...), in the layout that the scheduler steps in."""


class Stepped(NamedTuple):
    """What a scheduler's step returns, by the names that diffusers' pipelines read."""

    prev_sample: Tensor
    denoised: Tensor


def build_scheduler(name: str, config: Mapping[str, Any], draw: Draw, *, lenient: bool = False) -> Any:
    """Return the scheduler `name` of diffusers, or of this module, whose steps take their noise from `draw`.

    With `lenient`, settings that it does not know are left out: those of a card are of another class.

    Raises BenchError, one line, for an unknown name or setting.
    """
    if name in OWN:
        return OWN[name](draw, **_known(name, config, OWN[name].__init__, lenient))
    known = _names()
    if name not in known:
        near = nearest(name, (*known, *OWN), 1)
        raise BenchError(
            f"unknown scheduler '{name}'; {f'did you mean {near[0]}? ' if near else ''}it is the name of a scheduler "
            "class of diffusers, such as LCMScheduler"
        )
    made = from_diffusers(name, "scheduler")
    scheduler = made(**_known(name, config, made.__init__, lenient))
    scheduler.step = types.MethodType(with_noise(made.step, draw), scheduler)
    return scheduler


def _names() -> list[str]:
    import diffusers

    return [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith(("Flax", "_"))]


def _known(name: str, config: Mapping[str, Any], constructor: Callable[..., Any], lenient: bool) -> dict[str, Any]:
    """Return the settings that a scheduler takes; keys that begin with `_` are a file's bookkeeping."""
    names = inspect.signature(constructor).parameters
    stated = {key: value for key, value in config.items() if not key.startswith("_")}
    if lenient:
        return {key: value for key, value in stated.items() if key in names}
    for key in stated:
        if key not in names:
            near = nearest(key, names, 1)
            raise BenchError(f"{name} takes no setting '{key}'" + (f"; did you mean {near[0]}?" if near else ""))
    return stated


def with_noise(step: Callable[..., Any], draw: Draw) -> Callable[..., Any]:
    """Return a copy of a scheduler's `step` in which `randn_tensor` gives the harness's noise.

    Several pipelines call `step` without a generator, and some schedulers then draw from torch's global one. The copy
    has names of its own; the library's module stays as it is.
    """
    own = inspect.unwrap(step)
    count = 0

    def randn_tensor(
        shape: Sequence[int], generator: Any = None, device: Any = None, dtype: Any = None, **_: Any
    ) -> Tensor:
        nonlocal count
        count += 1
        noise = draw(count)
        if tuple(noise.shape) != tuple(shape):
            raise BenchError(f"the scheduler asks for noise {tuple(shape)}, the samples are {tuple(noise.shape)}")
        return noise.to(device, dtype)

    copied = types.FunctionType(
        own.__code__, {**own.__globals__, "randn_tensor": randn_tensor}, own.__name__, own.__defaults__, own.__closure__
    )
    copied.__kwdefaults__ = own.__kwdefaults__
    return copied


class _Scheduler:
    """What pipelines of diffusers ask of a scheduler."""

    order = 1
    init_noise_sigma: float | Tensor = 1.0

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.config: Any = types.SimpleNamespace(get=lambda key, default=None: default)
        self.timesteps = torch.empty(0)
        self.position = 0

    def set_begin_index(self, index: int = 0) -> None:
        """Begin at a step."""
        self.position = index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the network's input, the sample as it is."""
        return sample


class X0Scheduler(_Scheduler):
    """x0 from epsilon at fixed timesteps, renoised to the next with fresh noise: DMD2 and SiD-LSG.

    Args:
        draw: noise of the steps.
        timesteps: those of as many steps; of other counts the first is the beginning.
        alpha_bar_at_timestep: replaces alpha_bar at the first timestep: DMD2's SD1.5 code hard-codes 0.0047.
        noised: whether the noise is scaled to the first timestep's level, as of a zero image (SiD-LSG), or unit (DMD2).
        beta_start: of Stable Diffusion's `scaled_linear` betas.
        beta_end: likewise.
        num_train_timesteps: their number.
    """

    def __init__(
        self,
        draw: Draw,
        timesteps: Sequence[int] = (999,),
        alpha_bar_at_timestep: float | None = None,
        noised: bool = False,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__(draw)
        self.chosen, self.fixed, self.noised = list(timesteps), alpha_bar_at_timestep, noised
        with torch.device("cpu"):
            betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2
            self.alpha_bars: list[float] = (1 - betas).cumprod(0).tolist()

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Sequence[int] | None = None
    ) -> None:
        """Choose the timesteps: those given, else t_i = T (1 - i / n) from the first one of the card."""
        if timesteps is None:
            n = num_inference_steps or len(self.chosen)
            timesteps = self.chosen if n == len(self.chosen) else [int(self.chosen[0] * (1 - i / n)) for i in range(n)]
        self.times = [int(t) for t in timesteps]
        self.timesteps = torch.tensor(self.times, device=device)
        self.position = 0
        self.init_noise_sigma = (1 - self.alpha_bar(0)) ** 0.5 if self.noised else 1.0

    def alpha_bar(self, position: int) -> float:
        """Return alpha_bar at a step."""
        return self.fixed if self.fixed is not None and position == 0 else self.alpha_bars[self.times[position]]

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
        """x0 = (x - sqrt(1 - a) eps) / sqrt(a); x' = sqrt(a') x0 + sqrt(1 - a') noise, and x0 itself at last."""
        a = self.alpha_bar(self.position)
        x0 = (sample - (1 - a) ** 0.5 * model_output) / a**0.5
        self.position += 1
        x = x0
        if self.position < len(self.times):
            a = self.alpha_bar(self.position)
            x = a**0.5 * x0 + (1 - a) ** 0.5 * self.draw(self.position).to(x0)
        return Stepped(x, x0) if return_dict else (x, x0)


class TwinFlowScheduler(_Scheduler):
    """TwinFlow's sampler (arXiv 2512.05150): UCGM's on the linear path, t = 1 noise; its state is float64.

    Args:
        draw: noise of the steps.
        gap_steps: how far the first time lies from 1, and the last from 1 the other way.
        stochastic_ratio: the share r of fresh noise.
        extrapolation: of the estimates from the third step on.
        time_distribution: the Kumaraswamy warp of the grid.
    """

    def __init__(
        self,
        draw: Draw,
        gap_steps: Sequence[float] = (0.001, 0.5),
        stochastic_ratio: float = 1.0,
        extrapolation: float = 0.0,
        time_distribution: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__(draw)
        self.gap_steps, self.ratio, self.extrapolation = gap_steps, stochastic_ratio, extrapolation
        self.warp = time_distribution
        self.state: Tensor | None = None
        self.before: tuple[Tensor, Tensor] | None = None

    def set_timesteps(
        self,
        num_inference_steps: int = 0,
        device: Any = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Lay the grid, float32 values that end with 0; of the pipeline's own sigmas only their number counts."""
        n = num_inference_steps if sigmas is None else len(sigmas)
        with torch.device("cpu"):
            self.times = [*time_grid(TRANSPORTS["Linear"], n, self.gap_steps, self.warp), 0.0]
        self.timesteps = 1000 * torch.tensor(self.times[:-1], dtype=torch.float64, device=device)
        self.position, self.state, self.before = 0, None, None

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
        """x0 = x - t F; z = x + (1 - t) F; x' = (1 - t') x0 + t' (sqrt(1 - r) z + sqrt(r) noise); x0 at last."""
        x = sample.double() if self.state is None else self.state
        i, r = self.position, self.ratio
        t, after = self.times[i : i + 2]
        f = model_output.double()
        x0, z = x - t * f, x + (1 - t) * f
        self.position, self.state = i + 1, x0
        if i < len(self.times) - 2:
            x_hat, z_hat = x0, z
            if i >= 2 and self.before is not None:
                x_hat = x0 + self.extrapolation * (x0 - self.before[0])
                z_hat = z + self.extrapolation * (z - self.before[1])
            self.before = x0, z
            z_hat = (1 - r) ** 0.5 * z_hat
            if r > 0:
                z_hat = z_hat + r**0.5 * self.draw(i + 1).to(x0)
            self.state = (1 - after) * x_hat + after * z_hat
        x = self.state.to(sample.dtype)
        return Stepped(x, x0) if return_dict else (x, x0)


OWN: Mapping[str, Any] = {"X0Scheduler": X0Scheduler, "TwinFlowScheduler": TwinFlowScheduler}
"""Schedulers of this module, by the name that cards give."""
