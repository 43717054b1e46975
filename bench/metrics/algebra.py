"""Dense float64 algebra on the host or, inside `on(device)`, on an accelerator: numpy in, numpy out.

Nothing is set for a processor, where every function is numpy's own: the same bits as without this module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from results.errors import BenchWarning

if TYPE_CHECKING:
    import torch

_device: ContextVar[torch.device | None] = ContextVar("algebra_device", default=None)


@contextmanager
def on(device: torch.device | None) -> Iterator[None]:
    """Compute on `device` inside the block, in float64; None: by numpy."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def device() -> torch.device | None:
    """Return where the algebra runs; None: numpy."""
    return _device.get()


def array(values: np.ndarray) -> Any:
    """Return `values` as float64 where the algebra runs: numpy's array, or torch's with the same operators."""
    place = _device.get()
    if place is None:
        return np.asarray(values, dtype=np.float64)
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).to(place, torch.float64)


def host(values: Any) -> np.ndarray:
    """Return an `array`, or what operators made of it, as numpy's."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a @ b, [n, k] of [n, d] and [d, k]."""
    return _either(lambda: a @ b, lambda torch: torch.matmul(array(a), array(b)))


def sandwich(root: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Return root^T middle root made symmetric, [r, r] of root [d, r] and middle [d, d]."""

    def numpy() -> np.ndarray:
        found = root.T @ middle @ root
        return (found + found.T) / 2

    def other(torch: Any) -> Any:
        side = array(root)
        found = side.T @ array(middle) @ side
        return (found + found.T) / 2

    return _either(numpy, other)


def eigvalsh(matrix: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of a symmetric matrix [d, d], ascending."""
    return _either(lambda: np.linalg.eigvalsh(matrix), lambda torch: torch.linalg.eigvalsh(array(matrix)))


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Return the singular values of a matrix [n, d], descending."""
    return _either(lambda: np.linalg.svd(matrix, compute_uv=False), lambda torch: torch.linalg.svdvals(array(matrix)))


def _either(numpy: Callable[[], np.ndarray], other: Callable[[Any], Any]) -> np.ndarray:
    """Compute where the algebra runs; an accelerator whose memory is full leaves it to the host."""
    if _device.get() is None:
        return numpy()
    import torch

    try:
        return host(other(torch))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        line = f"metrics: {_device.get()} has too little free memory for them; computed on the processor"
        warnings.warn(line, BenchWarning, stacklevel=3)
    except torch.linalg.LinAlgError as error:
        raise np.linalg.LinAlgError(str(error)) from error
    return numpy()
