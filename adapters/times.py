"""A time as tensors: one value for the whole batch, and the batch's values against a sample's axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Output = TypeVar("Output")


def filled(value: float, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return `value` for every sample of x, [B]."""
    return torch.full((len(x),), value, dtype=dtype, device=x.device)


def per_sample(t: Tensor, x: Tensor) -> Tensor:
    """Return t [B] as [B, 1, ...], to be broadcast against x [B, ...]."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


def rounded(value: float) -> float:
    """Return `value` rounded to float32, the precision of published time grids."""
    return torch.tensor(value, dtype=torch.float32).item()


def at_times(network: Callable[..., Output], dtype: torch.dtype = torch.float32) -> Callable[..., Output]:
    """Return `network` as a function of (x, *times, labels) whose times are numbers, given as `dtype`; x as float32."""

    def evaluate(x: Tensor, *conditions: float | Tensor) -> Output:
        *times, labels = conditions
        return network(x.float(), *(filled(float(t), x, dtype) for t in times), labels)

    return evaluate
