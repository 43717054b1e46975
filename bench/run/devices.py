"""An accelerator that fails or goes away: one line, and what is on disk stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from results.errors import DeviceLostError, one_line

LOST: tuple[type[BaseException], ...] = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
"""What torch raises once a device does not answer, or a kernel has spoilt this process's use of it."""


@contextmanager
def losses(device: str, what: str) -> Iterator[None]:
    """Turn the loss of `device` inside the block into DeviceLostError; `what` is what it was about."""
    try:
        yield
    except LOST as error:
        reason = one_line(str(error)).partition(" For debugging")[0]
        raise DeviceLostError(
            f"{what}: {device} failed ({reason}); finished shards and rows are kept, run the same command to go on"
        ) from error
