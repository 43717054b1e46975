"""What the families minimise that learn from a frozen teacher, in the form of `objectives`.

The teacher is the rectified flow: F = dx/dt on the linear path x_t = (1 - t) x + t z, towards the noise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from adapters.digits.network import NULL_LABEL
from adapters.digits.objectives import Batch, guidance_scales, normal_like, one_step, path
from adapters.digits.parametrisation import (
    GUIDED_SCALE,
    LEVELS,
    constant_motion,
    denoise,
    guided_velocity,
    trigflow,
    velocity,
    wide,
)

# --- DMD (arXiv 2311.18828) with the two time scales of DMD2 (arXiv 2405.14867) ---------------------------------------


def fake_score(fake: nn.Module, generator: nn.Module, y: Tensor, draws: Generator) -> Tensor:
    """The flow objective on the generator's own samples: `fake` learns what the generator makes now."""
    with torch.no_grad():
        x = one_step(generator, y, draws)
    z = normal_like(x, draws)
    t = torch.sigmoid(torch.randn(len(x), generator=draws))
    return (velocity(fake, path(x, z, t), t, y) - (z - x)).square().mean()


def distribution_matching(
    generator: nn.Module, fake: nn.Module, teacher: nn.Module, y: Tensor, draws: Generator
) -> Tensor:
    """Move G(z) along w (mu_fake - mu_real), mu the denoised means at a noised sample, w = 1 / mean|G(z) - mu_real|."""
    x = one_step(generator, y, draws)
    t = 0.02 + 0.96 * torch.rand(len(x), generator=draws)
    with torch.no_grad():
        x_t = path(x, normal_like(x, draws), t)
        mu_real = denoise(teacher, x_t, t, y)
        mu_fake = denoise(fake, x_t, t, y)
        w = 1 / (x - mu_real).abs().mean((1, 2, 3), keepdim=True)
        gradient = w * (mu_fake - mu_real)
        target = x - gradient
    return 0.5 * (x - target).square().mean()


# --- Guided distillation (arXiv 2210.03142) and progressive distillation (arXiv 2202.00512) ---------------------------


def guided_distillation(network: nn.Module, teacher: nn.Module, batch: Batch, draws: Generator) -> Tensor:
    """Stage 1: |F(x_t, t, w) - (v(null) + w (v(y) - v(null)))|^2, one evaluation for the teacher's two.

    w is the network's input, 1 in a quarter of the batch, else uniform on [1, 2]. (The paper's w is ours minus 1.)
    """
    x, y = batch
    z = normal_like(x, draws)
    t = torch.sigmoid(torch.randn(len(x), generator=draws))
    w = guidance_scales(len(x), 0.25, GUIDED_SCALE, draws)
    x_t = path(x, z, t)
    with torch.no_grad():
        both = torch.cat([y, torch.full_like(y, NULL_LABEL)])
        unguided = torch.ones(len(both))
        v, v_null = guided_velocity(teacher, x_t.repeat(2, 1, 1, 1), t.repeat(2), both, unguided).chunk(2)
        target = v_null + wide(w) * (v - v_null)
    return (guided_velocity(network, x_t, t, y, w) - target).square().mean()


def progressive_distillation(
    network: nn.Module, teacher: nn.Module, batch: Batch, draws: Generator, *, steps: int
) -> Tensor:
    """Stage 2: one of `steps` Euler steps of the student equals two of the teacher, at the same w.

    On the linear path DDIM's step is Euler's, so the target is the mean of the teacher's two velocities.
    """
    x, y = batch
    z = normal_like(x, draws)
    t = torch.randint(1, steps + 1, (len(x),), generator=draws) / steps
    d = 1 / (2 * steps)
    w = guidance_scales(len(x), 0.25, GUIDED_SCALE, draws)
    x_t = path(x, z, t)
    with torch.no_grad():
        v_1 = guided_velocity(teacher, x_t, t, y, w)
        v_2 = guided_velocity(teacher, x_t - d * v_1, t - d, y, w)
        target = (v_1 + v_2) / 2
    return (guided_velocity(network, x_t, t, y, w) - target).square().mean()


# --- CAF, constant acceleration flow (arXiv 2411.00322): t = 0 noise, t = 1 data --------------------------------------


class Pairs(NamedTuple):
    """Noise z and the teacher's samples x from it, float32 [B, 1, 8, 8] each, with labels int64 [B]."""

    z: Tensor
    x: Tensor
    y: Tensor


def initial_velocity(network: nn.Module, pairs: Pairs, draws: Generator, *, alpha: float = 1.5) -> Tensor:
    """|V(x_t, t) - v_0|^2, v_0 = alpha (x - z), x_t = (1 - t^2) z + t^2 x + v_0 (t - t^2); t = 0 in half of the batch.

    That is the position after the time t at the initial velocity v_0 and the constant acceleration 2 (x - z) - 2 v_0.
    The sampler asks for t = 0 alone.
    """
    z, x, y = pairs
    t = torch.rand(len(x), generator=draws)
    t[: len(x) // 2] = 0.0
    v_0 = alpha * (x - z)
    return (constant_motion(network, accelerated(z, x, v_0, t), t, torch.zeros_like(x), y) - v_0).square().mean()


def constant_acceleration(network: nn.Module, velocity: nn.Module, pairs: Pairs, draws: Generator) -> Tensor:
    """|A(x_t, t, v_0) - (2 (x - z) - 2 v_0)|^2 with v_0 = V(z, 0) of the trained `velocity`; t = 0 in a quarter."""
    z, x, y = pairs
    t = torch.rand(len(x), generator=draws)
    t[: len(x) // 4] = 0.0
    with torch.no_grad():
        v_0 = constant_motion(velocity, z, torch.zeros_like(t), torch.zeros_like(x), y)
    a = 2 * (x - z) - 2 * v_0
    return (constant_motion(network, accelerated(z, x, v_0, t), t, v_0, y) - a).square().mean()


def accelerated(z: Tensor, x: Tensor, v_0: Tensor, t: Tensor) -> Tensor:
    """Return x_t = z + v_0 t + a t^2 / 2, a = 2 (x - z) - 2 v_0, which is z at t = 0 and x at t = 1."""
    return wide(1 - t**2) * z + wide(t**2) * x + v_0 * wide(t - t**2)


# --- sCM (arXiv 2410.11081): continuous-time consistency distillation on TrigFlow -------------------------------------


def continuous_consistency(
    network: nn.Module, teacher: nn.Module, batch: Batch, draws: Generator, *, warm_up: float
) -> Tensor:
    """|F - F^- - g/(|g| + 0.1)|^2, g = -cos^2 t (sigma_d F^- - dx/dt) - r cos t sin t (x_t + sigma_d dF^-/dt).

    g is cos t df/dt along the teacher's path, normalised per image; r = `warm_up` rises from 0 to 1 early in training.
    tan(t) sigma_d = e^tau with tau ~ N(-0.8, 1.6). The derivative comes from one forward-mode JVP with tangents scaled
    by cos t sin t, so that nothing grows near pi/2.
    """
    x, y = batch
    sigma_d = LEVELS.data
    z = sigma_d * normal_like(x, draws)
    tau = -0.8 + 1.6 * torch.randn(len(x), generator=draws)
    t = torch.atan(torch.exp(tau) / sigma_d)
    cos, sin = torch.cos(t), torch.sin(t)
    x_t = wide(cos) * x + wide(sin) * z
    with torch.no_grad():
        dx = sigma_d * trigflow(teacher, x_t, t, y)
        tangents = (wide(cos * sin) * dx, cos * sin)
        f, cos_sin_df = torch.func.jvp(lambda x, t: trigflow(network, x, t, y), (x_t, t), tangents)[:2]
        g = -wide(cos**2) * (sigma_d * f - dx) - warm_up * (wide(cos * sin) * x_t + sigma_d * cos_sin_df)
        target = f + normalised(g)
    return (trigflow(network, x_t, t, y) - target).square().sum((1, 2, 3)).mean()


# --- Align Your Flow (arXiv 2506.14603), Eulerian map distillation ----------------------------------------------------


def eulerian_map(
    network: nn.Module,
    teacher: nn.Module,
    batch: Batch,
    draws: Generator,
    *,
    warm_up: float,
    instantaneous: float = 0.25,
) -> Tensor:
    """|F - F^- - g/(|g| + 0.1)|^2, g = v - F^- - r h dF^-/dt: f(x_t, t, s) = x_t + (s - t) F must not change along t.

    v is the teacher's velocity, h = t - s the second scalar, r = `warm_up`; s <= t are two sorted uniforms, with s = t
    in a share `instantaneous`.
    """
    x, y = batch
    z = normal_like(x, draws)
    pair = torch.rand(2, len(x), generator=draws)
    t, s = pair.amax(0), pair.amin(0)
    apart = slice(round(instantaneous * len(x)), None)
    s[: apart.start] = t[: apart.start]
    h = t - s
    x_t = path(x, z, t)
    f = network(x_t, t, h, y)
    with torch.no_grad():
        v = velocity(teacher, x_t, t, y)
        df_dt = torch.zeros_like(v)
        one = torch.ones_like(t[apart])
        df_dt[apart] = torch.func.jvp(
            lambda x_t, t, h: network(x_t, t, h, y[apart]), (x_t[apart], t[apart], h[apart]), (v[apart], one, one)
        )[1]
        g = v - f - warm_up * wide(h) * df_dt
        target = f + normalised(g)
    return (f - target).square().sum((1, 2, 3)).mean()


def normalised(g: Tensor) -> Tensor:
    """Return g / (|g| + 0.1), the norm over each image: tangent normalisation."""
    return g / (g.square().sum((1, 2, 3), keepdim=True).sqrt() + 0.1)
