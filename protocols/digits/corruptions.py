"""Ways of making a digit worse, for training and measuring the preference model.

Each takes grey images float32 [n, 1, 8, 8] in [0, 1], a severity in [0, 1] per image and a local generator, and returns
images of the same shape and range; severity 0 changes (nearly) nothing. The blends imitate what samplers with too few
steps produce, the contrast changes what too much guidance produces.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from protocols.digits.data import GREY_LEVELS, IMAGE_SIZE


class Digits(NamedTuple):
    """The pool from which partners are drawn: `grey` float32 [N, 1, 8, 8] in [0, 1] and `labels` int64 [N]."""

    grey: torch.Tensor
    labels: torch.Tensor


def draw_class(pool: Digits, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return for each label the index of a random image of that class, int64 [n]."""
    weights = (labels[:, None] == pool.labels[None]).float()
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def other_labels(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return for each label another one of the ten, int64 [n]."""
    return (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10


def _column(severity: torch.Tensor) -> torch.Tensor:
    return severity[:, None, None, None]


def add_noise(grey: torch.Tensor, severity: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Add Gaussian noise with a standard deviation up to 0.3 of the grey range."""
    return grey + 0.3 * _column(severity) * torch.randn(grey.shape, generator=generator)


def blur(grey: torch.Tensor, severity: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mix with the 3x3 binomial blur, entirely at severity 1."""
    edge = torch.tensor([0.25, 0.5, 0.25])
    blurred = F.conv2d(grey, torch.outer(edge, edge)[None, None], padding=1)
    return torch.lerp(grey, blurred, _column(severity))


def warp(grey: torch.Tensor, severity: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move pixels along a smooth random field (elastic distortion) of up to 1.5 pixels (standard deviation)."""
    n = grey.shape[0]
    field = F.interpolate(
        torch.randn(n, 2, 4, 4, generator=generator), size=IMAGE_SIZE, mode="bicubic", align_corners=True
    )
    shift = 1.5 * (2 / IMAGE_SIZE) * _column(severity) * field
    still = F.affine_grid(torch.eye(2, 3).repeat(n, 1, 1), list(grey.shape), align_corners=False)
    return F.grid_sample(grey, still + shift.movedim(1, -1), align_corners=False)


def erase_stroke(grey: torch.Tensor, severity: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Fade out the ink around one inked pixel, over a Gaussian spot of 1.3 pixels."""
    centre = torch.multinomial(grey.flatten(1) + 1e-6, 1, generator=generator)
    row, column = centre // IMAGE_SIZE, centre % IMAGE_SIZE
    axis = torch.arange(IMAGE_SIZE)
    squared = ((axis - row) ** 2)[:, :, None] + ((axis - column) ** 2)[:, None, :]
    return grey * (1 - _column(severity) * torch.exp(-squared / (2 * 1.3**2))[:, None])


def change_contrast(grey: torch.Tensor, severity: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Make ink paler (by up to 0.6) in half of the images, saturate it (gain up to 3) in the others."""
    paler = 1 - 0.6 * severity
    stronger = 1 + 2 * severity
    gain = torch.where(torch.rand(severity.shape, generator=generator) < 0.5, paler, stronger)
    return grey * _column(gain)


def blend(grey: torch.Tensor, partners: torch.Tensor, severity: torch.Tensor) -> torch.Tensor:
    """Mix with partner images, half and half at severity 1."""
    return torch.lerp(grey, partners, 0.5 * _column(severity))


Corruption = Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]
PIXEL_CORRUPTIONS: dict[str, Corruption] = {
    "noise": add_noise,
    "blur": blur,
    "elastic": warp,
    "missing-stroke": erase_stroke,
    "contrast": change_contrast,
}
CORRUPTIONS = (*PIXEL_CORRUPTIONS, "blend-same-class", "blend-other-class", "wrong-digit")


def corrupt(
    kind: str, rows: torch.Tensor, severity: torch.Tensor, pool: Digits, generator: torch.Generator
) -> torch.Tensor:
    """Return worse versions, float32 [n, 1, 8, 8] in [0, 1], of the images `pool.grey[rows]`.

    `kind` is one of `CORRUPTIONS`. "blend-same-class" mixes with the mean of three images of the same class,
    "blend-other-class" with one image of another class, "wrong-digit" replaces the image by one of another class
    whatever the severity. The result is snapped to the 17 grey levels of real digits, which thus give nothing away.
    """
    grey, labels = pool.grey[rows], pool.labels[rows]
    if kind in PIXEL_CORRUPTIONS:
        worse = PIXEL_CORRUPTIONS[kind](grey, severity, generator)
    elif kind == "blend-same-class":
        partners = [pool.grey[draw_class(pool, labels, generator)] for _ in range(3)]
        worse = blend(grey, torch.stack(partners).mean(0), 1.5 * severity)
    elif kind == "blend-other-class":
        worse = blend(grey, pool.grey[draw_class(pool, other_labels(labels, generator), generator)], severity)
    elif kind == "wrong-digit":
        worse = pool.grey[draw_class(pool, other_labels(labels, generator), generator)]
    else:
        raise ValueError(f"unknown corruption {kind!r}: use one of {', '.join(CORRUPTIONS)}")
    return snap(worse)


def snap(grey: torch.Tensor) -> torch.Tensor:
    """Clip to [0, 1] and round to multiples of 1/16."""
    return (grey.clamp(0, 1) * GREY_LEVELS).round() / GREY_LEVELS
