"""Thread pools of a fixed size, because the order in which threads add up moves the last bits of a sum.

The sizes depend on the device alone: neither on environment variables (OMP_NUM_THREADS, MKL_NUM_THREADS,
OPENBLAS_NUM_THREADS), nor on the machine's cores, nor on how many workers share the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PROCESSOR_THREADS = 1
"""On a processor the workers share the cores, one thread each."""
ACCELERATOR_THREADS = 8
"""Beside an accelerator one process reduces the features of all samples; fewer cores share the eight threads."""


def fix_threads(device: str | torch.device) -> None:
    """Fix the pools of torch and of the BLAS libraries of numpy and scipy for the rest of this process.

    To be called before a network is loaded or evaluated.
    """
    import scipy.linalg  # noqa: F401 - loads the BLAS that comes with scipy, for only loaded ones can be set
    from threadpoolctl import threadpool_limits

    count = _count(device)
    threadpool_limits(limits=count)
    torch.set_num_threads(count)


@contextmanager
def fixed_threads(device: str | torch.device) -> Iterator[None]:
    """Fix the pools inside the block and restore the caller's after it."""
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(limits=_count(device)):
        try:
            torch.set_num_threads(_count(device))
            yield
        finally:
            torch.set_num_threads(before)


def _count(device: str | torch.device) -> int:
    return PROCESSOR_THREADS if torch.device(device).type == "cpu" else ACCELERATOR_THREADS


def accelerator(device: str | torch.device) -> torch.device | None:
    """Return the device on which metrics are reduced too, in float64; None for a processor, where numpy does it."""
    found = torch.device(device)
    return found if found.type == "cuda" else None
