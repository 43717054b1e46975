"""From floats in [-1, 1] to the bytes that judges see: one rule for every model of a protocol."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def quantise(images: Tensor, rule: str, levels: int = 256) -> Tensor:
    """Return uint8 images of float images in [-1, 1] (clamped), by the protocol's rule.

    `round`: nearest of `levels` equally spaced grey values (256: x -> floor(127.5 x + 128)). `trunc128`: truncate
    127.5 x + 128, as SiT, MeanFlow and SoFlow do (1.0 clamps to 255). `trunc255`: truncate 255 (x + 1)/2, as UCGM and
    RAE do (half a grey level darker).
    """
    return RULES[rule]((images.double().clamp(-1.0, 1.0) + 1.0) / 2.0, levels).byte()


def _round(unit: Tensor, levels: int) -> Tensor:
    steps = levels - 1
    level = (unit * steps + 0.5).floor().clamp(0, steps)
    return (level * 255.0 / steps + 0.5).floor()


RULES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "round": _round,
    "trunc128": lambda unit, _: (unit * 255.0 + 0.5).floor().clamp(0, 255),
    "trunc255": lambda unit, _: (unit * 255.0).floor(),
}
"""Grey values, float64, of values in [0, 1], by rule of the protocol."""
