"""A time as tensors: one value for the whole batch, and the batch's values against a sample's axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def filled(value: float, x: Tensor) -> Tensor:
    """Return `value` for every sample of x, float32 [B]."""
    return torch.full((len(x),), value, dtype=torch.float32, device=x.device)


def per_sample(t: Tensor, x: Tensor) -> Tensor:
    """Return t [B] as [B, 1, ...], to be broadcast against x [B, ...]."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


def rounded(value: float) -> float:
    """Return `value` rounded to float32, the precision of published time grids."""
    return torch.tensor(value, dtype=torch.float32).item()


def at_times(network: nn.Module) -> Callable[..., Tensor]:
    """Return `network` as a function of (x, *times, labels) whose times are numbers, in float32 whatever x is."""

    def evaluate(x: Tensor, *conditions: float | Tensor) -> Tensor:
        *times, labels = conditions
        output: Tensor = network(x.float(), *(filled(float(t), x) for t in times), labels)
        return output

    return evaluate
