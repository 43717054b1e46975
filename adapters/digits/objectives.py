"""What each family minimises: one function a family, an equation per line, names from the papers.

All share the linear path x_t = (1 - t) x + t z from data x (t = 0) to noise z (t = 1), whose velocity is z - x, except
the consistency family, which adds noise as EDM does. Every function draws its random numbers from `draws` and returns
a scalar loss. `ema` is the moving average of the network, which the samples will come from.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from adapters.digits.network import IMAGE_SIZE, NULL_LABEL
from adapters.digits.parametrisation import (
    FINEST_LEVEL,
    INTRINSIC_SCALE,
    LEVELS,
    consistency_function,
    cosine_path,
    denoise,
    edm_denoise,
    guide_code,
    predict_bits,
    step_code,
    to_bits,
    velocity,
    wide,
)

LABEL_DROPOUT = 0.1


class Batch(NamedTuple):
    """Training images float32 [B, 1, 8, 8] in [-1, 1] and labels int64 [B]."""

    x: Tensor
    y: Tensor


def rectified_flow(network: nn.Module, batch: Batch, draws: Generator) -> Tensor:
    """|F(x_t, t) - (z - x)|^2 with t logit-normal(0, 1) (arXiv 2209.03003, 2401.08740, 2403.03206)."""
    x, y = batch.x, drop_labels(batch.y, draws)
    z = normal_like(x, draws)
    t = torch.sigmoid(torch.randn(len(x), generator=draws))
    v = z - x
    return (velocity(network, path(x, z, t), t, y) - v).square().mean()


# --- UCGM (arXiv 2505.07447), Linear transport: alpha = t, gamma = 1 - t, F -> z - x ---------------------------------


def ucgm_multi_step(
    network: nn.Module,
    ema: nn.Module,
    batch: Batch,
    draws: Generator,
    *,
    enhancement: float,
    enhanced_until: float = 0.75,
) -> Tensor:
    """Consistency ratio 0: the velocity of *enhanced* data and noise, which bakes in guidance.

    Where t <= `enhanced_until` the target's x is moved by r (x_hat(y) - x_hat(null)), z likewise, r = `enhancement`;
    samples without a label and later times take the mean of the plain target and the network's own estimate.
    """
    x, y = batch.x, drop_labels(batch.y, draws)
    z = normal_like(x, draws)
    t = torch.rand(len(x), generator=draws)
    x_t = path(x, z, t)
    prediction = velocity(network, x_t, t, y)
    target = z - x
    if enhancement > 0:
        with torch.no_grad():
            own = prediction.detach()
            null = velocity(ema, x_t, t, torch.full_like(y, NULL_LABEL))
            # x_hat = x_t - t F and z_hat = x_t + (1 - t) F: the two shifts add up to r (F - F_null).
            enhanced = target + enhancement * (own - null)
            inside = wide((t <= enhanced_until) & (y != NULL_LABEL))
            target = torch.where(inside, enhanced, 0.5 * (target + own))
    return (cosine_weight(t) * root_mean_square(prediction - target, h=0.0)).mean()


def ucgm_few_step(
    network: nn.Module, start: nn.Module, batch: Batch, draws: Generator, *, difference: float = 0.005
) -> Tensor:
    """Consistency ratio 1: hold x_hat constant along the path of the frozen `start` network (enhancement r = 1).

    F is moved against g = d x_hat / dt, a central difference between t - 0.005 and t + 0.005 clipped to [-1, 1].
    """
    x, y = batch
    z = normal_like(x, draws)
    t = beta(0.8, len(x), draws)
    x_t = path(x, z, t)
    prediction = velocity(network, x_t, t, y)
    with torch.no_grad():
        f_start = velocity(start, x_t, t, y)
        x_start = x_t - wide(t) * f_start
        z_start = x_t + wide(1 - t) * f_start
        ends = torch.cat([(t + difference).clamp(max=1.0), (t - difference).clamp(min=0.0)])
        x_ends = path(x_start.repeat(2, 1, 1, 1), z_start.repeat(2, 1, 1, 1), ends)
        x_late, x_early = denoise(network, x_ends, ends, y.repeat(2)).chunk(2)
        g = ((x_late - x_early) / (2 * difference)).clamp(-1, 1)
        # alpha / D = -t; the factor 4 / sin(1.57 t) is the published step length.
        target = prediction + wide(t * 4 / torch.sin(1.57 * t).clamp(min=1e-3)) * g
    return (cosine_weight(t) * root_mean_square(prediction - target, h=1.0)).mean()


# --- Consistency (arXiv 2303.01469), from an EDM diffusion (arXiv 2206.00364) by easy tuning (arXiv 2406.14548) -------


def edm_diffusion(network: nn.Module, batch: Batch, draws: Generator) -> Tensor:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 |D(x + sigma z, sigma) - x|^2 with ln sigma ~ N(-0.8, 1.2)."""
    x, y = batch.x, drop_labels(batch.y, draws)
    sigma = noise_levels(len(x), -0.8, 1.2, draws)
    weight = (sigma**2 + LEVELS.data**2) / (sigma * LEVELS.data) ** 2
    denoised = edm_denoise(network, x + wide(sigma) * normal_like(x, draws), sigma, y)
    return (wide(weight) * (denoised - x).square()).mean()


def easy_consistency(network: nn.Module, batch: Batch, draws: Generator, *, stage: int, huber: float = 0.06) -> Tensor:
    """Hold f(x + t z, t) to f(x + r z, r) for r < t, where r closes in on t from stage to stage.

    r / t = max(0, 1 - 2^-stage (1 + 8 sigmoid(-t))), mostly 0 (diffusion) in the first stage of six; the loss is the
    pseudo-Huber distance over t - r.
    """
    x, y = batch
    z = normal_like(x, draws)
    t = noise_levels(len(x), -0.8, 1.8, draws)
    r = (t * (1 - 2.0**-stage * (1 + 8 * torch.sigmoid(-t)))).clamp(min=0.0)
    f_t = consistency_function(network, x + wide(t) * z, t, y)
    with torch.no_grad():
        # At and below sigma_min the function is the identity.
        at_r = r.clamp(min=LEVELS.minimum)
        f_r = consistency_function(network, x + wide(at_r) * z, at_r, y)
        f_r = torch.where(wide(r > LEVELS.minimum), f_r, x)
    distance = (f_t - f_r).square().flatten(1).sum(1)
    return ((torch.sqrt(distance + huber**2) - huber) / (t - r)).mean()


# --- MeanFlow (arXiv 2505.13447) -------------------------------------------------------------------------------------


def mean_flow(network: nn.Module, batch: Batch, draws: Generator, *, instantaneous: float = 0.25) -> Tensor:
    """The MeanFlow identity u = v - (t - r) du/dt, du/dt = v . grad_z u + d_t u by one forward-mode JVP.

    r <= t are two sorted uniforms (a logit-normal pair hardly ever asks for the whole interval, which one step needs);
    a share `instantaneous` of the batch has r = t, where u = v and no derivative is needed. The second scalar is h.
    """
    x, y = batch.x, drop_labels(batch.y, draws)
    z = normal_like(x, draws)
    pair = torch.rand(2, len(x), generator=draws)
    t, r = pair.amax(0), pair.amin(0)
    equal = round(instantaneous * len(x))
    r[:equal] = t[:equal]
    z_t = path(x, z, t)
    u = network(z_t, t, t - r, y)
    return adaptive(u - mean_flow_target(network, z_t, t, t - r, z - x, y, equal))


def mean_flow_target(network: nn.Module, z_t: Tensor, t: Tensor, h: Tensor, v: Tensor, y: Tensor, equal: int) -> Tensor:
    """Return v - h du/dt without a gradient; the first `equal` rows have h = 0 and need no derivative."""
    du_dt = torch.zeros_like(v)
    apart = slice(equal, None)
    with torch.no_grad():
        one = torch.ones_like(t[apart])
        du_dt[apart] = torch.func.jvp(
            lambda z_t, t, h: network(z_t, t, h, y[apart]), (z_t[apart], t[apart], h[apart]), (v[apart], one, one)
        )[1]
        return v - wide(h) * du_dt


# --- BiFM (arXiv 2603.24942): MeanFlow in both directions -------------------------------------------------------------


def bidirectional_flow(network: nn.Module, batch: Batch, draws: Generator, *, instantaneous: float = 0.25) -> Tensor:
    """The MeanFlow identity from t to any r, earlier (generation) or later (inversion), and back again.

    t and r are two uniforms, so that h = t - r has either sign; the velocity z - x is that of both directions. The
    second error holds u from x_r back to t, where x_r is where u from x_t leads, to that u: an interval has one average
    velocity whichever way it is travelled. Both share MeanFlow's adaptive weight: with one of its own, the second,
    which any constant field fulfils, wins.
    """
    x, y = batch.x, drop_labels(batch.y, draws)
    z = normal_like(x, draws)
    t, r = torch.rand(2, len(x), generator=draws)
    equal = round(instantaneous * len(x))
    r[:equal] = t[:equal]
    h = t - r
    z_t = path(x, z, t)
    u = network(z_t, t, h, y)
    error = u - mean_flow_target(network, z_t, t, h, z - x, y, equal)
    there = u[equal:].detach()
    x_r = z_t[equal:] - wide(h[equal:]) * there
    difference = torch.zeros_like(error)
    difference[equal:] = network(x_r, r[equal:], -h[equal:], y[equal:]) - there
    return adaptive(torch.cat([error, difference], dim=1))


# --- Shortcut (arXiv 2410.12557) -------------------------------------------------------------------------------------


def shortcut(network: nn.Module, ema: nn.Module, batch: Batch, draws: Generator, *, bootstrap: float = 0.25) -> Tensor:
    """Flow matching at the finest step; above it one step of 2d must equal two of d, taken by `ema`.

    A share `bootstrap` of the batch holds such doubled steps, of sizes 2d = 1, 1/2, ..., uniformly. The second scalar
    is the step size's code.
    """
    x, y = batch
    z = normal_like(x, draws)
    count = round(bootstrap * len(x))
    level = torch.randint(0, FINEST_LEVEL, (count,), generator=draws)
    d = 2.0 ** -(level + 1)
    # Noise is at t = 1: a step of 2d starts at a multiple of 2d and ends at t - 2d.
    start = ((torch.rand(count, generator=draws) / (2 * d)).floor() + 1) * 2 * d
    flow_time = torch.sigmoid(torch.randn(len(x) - count, generator=draws))
    t = torch.cat([start, flow_time])
    code = torch.cat([step_code(level), torch.zeros_like(flow_time)])
    y_pair, y = y[:count], torch.cat([y[:count], drop_labels(y[count:], draws)])
    x_t = path(x, z, t)
    target = z - x
    with torch.no_grad():
        half = step_code(level + 1)
        s_1 = ema(x_t[:count], start, half, y_pair)
        s_2 = ema(x_t[:count] - wide(d) * s_1, start - d, half, y_pair)
        target[:count] = (s_1 + s_2) / 2
    return (network(x_t, t, code, y) - target).square().mean()


# --- iSM: a shortcut model with intrinsic guidance (arXiv 2510.21250) -------------------------------------------------


def intrinsic_shortcut(
    network: nn.Module, target: nn.Module, batch: Batch, draws: Generator, *, bootstrap: float = 0.25
) -> Tensor:
    """The shortcut objective with the guidance scale w as an input: the finest step is that of the guided velocity.

    Only there does guidance enter, z - x + (w - 1)(v(y) - v(null)) with v from `target`, a fast average, at w = 1; a
    step of 2d must equal two of d at the same w. w is 1 in three tenths of the batch, else uniform on [1, 3], and 1 for
    the null label.
    """
    x, y = batch
    z = normal_like(x, draws)
    count = round(bootstrap * len(x))
    level = torch.randint(0, FINEST_LEVEL, (count,), generator=draws)
    d = 2.0 ** -(level + 1)
    start = ((torch.rand(count, generator=draws) / (2 * d)).floor() + 1) * 2 * d
    flow_time = torch.sigmoid(torch.randn(len(x) - count, generator=draws))
    t = torch.cat([start, flow_time])
    code = torch.cat([step_code(level), torch.zeros_like(flow_time)])
    y_flow = drop_labels(y[count:], draws)
    y_all = torch.cat([y[:count], y_flow])
    w = guidance_scales(len(x), 0.3, INTRINSIC_SCALE, draws)
    w = torch.where(y_all == NULL_LABEL, 1.0, w)
    guide = guide_code(w, INTRINSIC_SCALE)
    x_t = path(x, z, t)
    goal = z - x
    with torch.no_grad():
        half = step_code(level + 1)
        s_1 = target(x_t[:count], start, half, y[:count], guide[:count])
        s_2 = target(x_t[:count] - wide(d) * s_1, start - d, half, y[:count], guide[:count])
        goal[:count] = (s_1 + s_2) / 2
        none = torch.zeros_like(flow_time)
        v = target(x_t[count:], flow_time, none, y_flow, none)
        v_null = target(x_t[count:], flow_time, none, torch.full_like(y_flow, NULL_LABEL), none)
        goal[count:] += wide(w[count:] - 1) * (v - v_null)
    return (network(x_t, t, code, y_all, guide) - goal).square().mean()


# --- Analog bits (arXiv 2208.04202) ----------------------------------------------------------------------------------


def analog_bits(network: nn.Module, batch: Batch, draws: Generator) -> Tensor:
    """|x_hat(x_t, x_hat', t) - x|^2 of the bits x; x_hat' is the network's own estimate in half of the batch, else 0.

    That is self-conditioning: the estimate comes from the same x_t, without a gradient, and is clipped to [-1, 1].
    """
    x, y = to_bits(batch.x), drop_labels(batch.y, draws)
    z = normal_like(x, draws)
    t = torch.rand(len(x), generator=draws)
    alpha, sigma = cosine_path(t)
    x_t = wide(alpha) * x + wide(sigma) * z
    estimate = torch.zeros_like(x)
    half = len(x) // 2
    with torch.no_grad():
        own = predict_bits(network, x_t[:half], estimate[:half], t[:half], y[:half])
        estimate[:half] = own.clamp(-1, 1)
    return (predict_bits(network, x_t, estimate, t, y) - x).square().mean()


# --- SplitMeanFlow (arXiv 2507.16884) --------------------------------------------------------------------------------


def split_mean_flow(network: nn.Module, ema: nn.Module, batch: Batch, draws: Generator) -> Tensor:
    """(t - r) u(x_t; r, t) = (s - r) u(x_s; r, s) + (t - s) u(x_t; s, t), the right side from the network `ema`.

    In the first quarter r = t, where u = v; in the second t = 1, half of it with r = 0, the question that one step
    asks. `ema` is a fast average: with the network itself in its place any constant field is a solution, and training
    finds one.
    """
    x, y = batch.x, drop_labels(batch.y, draws)
    z = normal_like(x, draws)
    pair = torch.rand(2, len(x), generator=draws)
    t, r = pair.amax(0), pair.amin(0)
    quarter = len(x) // 4
    r[:quarter] = t[:quarter]
    t[quarter : 2 * quarter] = 1.0
    r[quarter : quarter + quarter // 2] = 0.0
    s = r + torch.rand(len(x), generator=draws) * (t - r)
    x_t = path(x, z, t)
    target = z - x
    with torch.no_grad():
        u_2 = ema(x_t, t, t - s, y)
        x_s = x_t - wide(t - s) * u_2
        u_1 = ema(x_s, s, s - r, y)
        split = (wide(s - r) * u_1 + wide(t - s) * u_2) / wide(t - r).clamp(min=1e-4)
        target = torch.where(wide(r < t), split, target)
    return (network(x_t, t, t - r, y) - target).square().mean()


# --- LowDiff (arXiv 2509.15342): one network at two resolutions -------------------------------------------------------


def low_diff(network: nn.Module, batch: Batch, draws: Generator, *, augmentation: float = 0.1) -> Tensor:
    """|F(x_t, t) - (z - x)|^2 of 4x4 means in half of the batch and, given these, of 8x8 images in the other half.

    The second scalar tells the resolutions apart. The means that are given carry noise of deviation `augmentation`,
    because the sampler's are not quite true ones. t is logit-normal.
    """
    y = drop_labels(batch.y, draws)
    half = len(y) // 2
    x_4, x_8 = halved(batch.x[:half]), batch.x[half:]
    hint = halved(x_8)
    hint = hint + augmentation * normal_like(hint, draws)
    loss = torch.zeros(())
    for x, labels, given, code in ((x_4, y[:half], None, 1.0), (x_8, y[half:], hint, 0.0)):
        z = normal_like(x, draws)
        t = torch.sigmoid(torch.randn(len(x), generator=draws))
        predicted = network(path(x, z, t), t, torch.full_like(t, code), labels, hint=given)
        loss = loss + (predicted - (z - x)).square().mean() / 2
    return loss


# --- Pieces ----------------------------------------------------------------------------------------------------------


def path(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """Return x_t = (1 - t) x + t z for t [B]."""
    return wide(1 - t) * x + wide(t) * z


def one_step(generator: nn.Module, y: Tensor, draws: Generator) -> Tensor:
    """Return samples of a one-step generator, G(z) = x_hat at t = 1, for labels y."""
    z = torch.randn(len(y), 1, IMAGE_SIZE, IMAGE_SIZE, generator=draws)
    return denoise(generator, z, torch.ones(len(y)), y)


def noise_levels(count: int, mean: float, width: float, draws: Generator) -> Tensor:
    """Return [count] sigmas with ln sigma ~ N(mean, width^2), clamped to the family's range."""
    return torch.exp(mean + width * torch.randn(count, generator=draws)).clamp(LEVELS.minimum, LEVELS.maximum)


def halved(x: Tensor) -> Tensor:
    """Return the means of 2x2 pixels, [B, 1, 4, 4]."""
    return torch.nn.functional.avg_pool2d(x, 2)


def normal_like(x: Tensor, draws: Generator) -> Tensor:
    """Return unit normal noise of x's shape."""
    return torch.randn(x.shape, generator=draws)


def drop_labels(y: Tensor, draws: Generator) -> Tensor:
    """Return labels of which a tenth became the null label."""
    return torch.where(torch.rand(len(y), generator=draws) < LABEL_DROPOUT, NULL_LABEL, y)


def guidance_scales(count: int, unguided: float, largest: float, draws: Generator) -> Tensor:
    """Return [count] scales w, 1 in a share `unguided` and else uniform on [1, largest]."""
    w = 1 + (largest - 1) * torch.rand(count, generator=draws)
    return torch.where(torch.rand(count, generator=draws) < unguided, 1.0, w)


def beta(a: float, count: int, draws: Generator) -> Tensor:
    """Return [count] draws of Beta(a, 1), by its inverse distribution function."""
    return torch.rand(count, generator=draws) ** (1 / a)


def cosine_weight(t: Tensor) -> Tensor:
    """Return UCGM's weight cos(1.57 t)."""
    return torch.cos(1.57 * t)


def root_mean_square(error: Tensor, h: float) -> Tensor:
    """Return UCGM's distance sqrt(mean(error^2) + h^2) - h per sample, [B]."""
    return torch.sqrt(error.square().mean((1, 2, 3)) + h**2) - h


def adaptive(error: Tensor, power: float = 1.0, constant: float = 0.01) -> Tensor:
    """Return the mean of |error|^2 / sg(|error|^2 + c)^p, MeanFlow's adaptive weight."""
    square = error.square().sum((1, 2, 3))
    return (square / (square.detach() + constant) ** power).mean()
