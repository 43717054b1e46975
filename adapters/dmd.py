"""Distribution matching distillation (DMD, arXiv 2311.18828; DMD2, arXiv 2405.14867): the one-step sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.contracts.noise import NoiseSource


def one_step_sample(
    denoise: Callable[[Tensor, Tensor], Tensor], noise: NoiseSource, shape: Sequence[int], level: float
) -> Tensor:
    """Return G(z) = D(level z; level), float32 [B, *shape]: the denoiser's answer to pure noise.

    `denoise(x, level)` takes x [B, *shape] and the noise level [B]. `level` both scales the noise and conditions the
    network: sigma = 80 for the published ImageNet student (EDM), t = 1 where x_t = (1 - t) x + t z. No noise is
    injected, nothing is clamped, and there is no guidance: the teacher's is folded in.
    """
    x = level * noise.normal(shape, 0)
    return denoise(x, torch.full((len(x),), level, dtype=x.dtype, device=x.device))
