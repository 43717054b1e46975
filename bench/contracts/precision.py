"""Float32 without shortcuts: a run's samples, judges and resizes compute the same on every device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

BACKENDS = torch.backends


def _fine_settings() -> list[Any]:
    """Return the objects whose `fp32_precision` (torch >= 2.9) decides how float32 products are computed."""
    groups = (BACKENDS.cuda, BACKENDS.cudnn, BACKENDS.mkldnn)
    found = [getattr(group, name, None) for group in groups for name in ("matmul", "conv", "rnn")]
    return [setting for setting in found if hasattr(setting, "fp32_precision")]


def _coarse_state() -> tuple[str | None, bool | None]:
    """Return torch's older switches; None where torch refuses to read them because the newer ones were used."""
    try:
        matmul: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:
        matmul = None
    try:
        convolution: bool | None = BACKENDS.cudnn.allow_tf32
    except RuntimeError:
        convolution = None
    return matmul, convolution


def _set_coarse(matmul: str | None, convolution: bool | None) -> None:
    if matmul is not None:
        torch.set_float32_matmul_precision(matmul)
    if convolution is not None:
        BACKENDS.cudnn.allow_tf32 = convolution


@contextmanager
def full_precision() -> Iterator[None]:
    """Turn TF32 and bf16 products of float32 tensors off inside the block; restore the caller's settings after it."""
    settings = _fine_settings()
    fine = [setting.fp32_precision for setting in settings]
    matmul, convolution = _coarse_state()
    try:
        # Both generations of switches are set, because torch raises when it finds that they disagree.
        _set_coarse(None if matmul is None else "highest", None if convolution is None else False)
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        _set_coarse(matmul, convolution)
        for setting, value in zip(settings, fine, strict=True):
            setting.fp32_precision = value
