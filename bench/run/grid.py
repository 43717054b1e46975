"""A grid of a model's images as one PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.contracts.card import ModelCard
from bench.contracts.noise import PhiloxNoise
from bench.models.cards import sampled_card
from bench.models.loading import build_adapter
from bench.models.meter import Meter
from bench.run.containment import contained, no_exit
from bench.run.quantise import quantise
from results.errors import BenchError, one_line
from results.files import write_atomically
from results.numbers import counted

BATCH = 20
SMALLEST = 64
"""Pixels of the side of an image in the grid; smaller ones are enlarged by whole pixels."""
GAP = 2


def write_grid(
    card: ModelCard,
    output: Path,
    *,
    steps: int | None,
    cfg: float | None,
    images: int,
    labels: Sequence[int] | None,
    seed: int,
    weights: Path | None,
    random_weights: bool,
    options: Mapping[str, Any],
    device: str,
) -> str:
    """Sample `images` images of `card` and write them to `output`; return what was sampled, in words.

    Images take `labels` (None: all classes) in turn. Raises BenchError for what the model does not take.
    """
    steps = steps or card.natural_steps
    card = sampled_card(card, steps)
    scale = card.guidance.natural if cfg is None else cfg
    adapter = build_adapter(card, device=device, weights=weights, random_weights=random_weights)
    turn = list(labels) if labels is not None else list(range(max(1, adapter.num_classes)))
    asked = torch.tensor([turn[index % len(turn)] for index in range(images)])
    settings = adapter.resolve_settings(steps, "native", options)
    meter = Meter(adapter)
    parts: list[Tensor] = []
    try:
        with no_exit(), contained(), meter.installed():
            for first in range(0, images, BATCH):
                part = asked[first : first + BATCH]
                noise = PhiloxNoise(seed, range(first, first + len(part)), adapter.device)
                drawn = adapter.sample(part, steps, scale, noise=noise, **dict(settings))
                parts.append(quantise(drawn, "round").cpu())
    except (BenchError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise BenchError(
            f"{card.name}: {one_line(f'{type(error).__name__}: {error}')}; add --debug for the traceback"
        ) from error
    write_atomically(output, _png(torch.cat(parts)), "--output")
    nfe = (meter.rows + meter.guide_rows) / images
    what = "class" if len(set(asked.tolist())) == 1 else "classes"
    shown = ", ".join(map(str, dict.fromkeys(asked[:12].tolist()))) + (", ..." if len(set(asked.tolist())) > 12 else "")
    return (
        f"{counted(images, 'image')} of {card.name}, {counted(steps, 'step')}, cfg "
        f"{scale:g}, NFE {nfe:g}, seed {seed}, {what} {shown}" + ", random weights" * random_weights
    )


def _png(pixels: Tensor) -> bytes:
    """Return uint8 images [N, 3, H, W] row by row on a white sheet about as wide as high."""
    from PIL import Image

    times = max(1, -(-SMALLEST // pixels.shape[-1]))
    pixels = pixels.repeat_interleave(times, -1).repeat_interleave(times, -2)
    columns = min(len(pixels), max(1, round(math.sqrt(len(pixels) * 1.25))))
    rows = -(-len(pixels) // columns)
    height, width = pixels.shape[-2] + GAP, pixels.shape[-1] + GAP
    sheet = torch.full((3, rows * height - GAP, columns * width - GAP), 255, dtype=torch.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * height, index % columns * width
        sheet[:, top : top + height - GAP, left : left + width - GAP] = image
    buffer = io.BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
