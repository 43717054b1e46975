"""Image resizes by name, as batched tensor code that runs where the images are.

A resize moves FID by more than most models differ (Parmar et al., arXiv 2104.11222), so each one that a published
number depends on has a name here and equals the library it is named after:

| name              | source                                                     | result                            |
|-------------------|------------------------------------------------------------|-----------------------------------|
| `tf1-bilinear`    | TensorFlow 1, torch-fidelity, ADM: corner aligned to pixel 0, no antialias | float32           |
| `clean-fid`       | Pillow bicubic on float channels (arXiv 2104.11222)        | float32, clipped, not rounded     |
| `torchmetrics`    | torch bilinear, half-pixel centres, antialias              | float32                           |
| `torch-bicubic`   | torch bicubic, half-pixel centres, antialias (EDM2)        | float32, not clipped, not rounded |
| `squash`          | Pillow bicubic on uint8, aspect ratio lost                 | uint8                             |
| `lanczos`         | Pillow Lanczos on uint8, aspect ratio lost                 | uint8                             |
| `adm-center-crop` | ADM: halve by box while twice too large, bicubic, crop     | uint8                             |

Pillow resamples uint8 images in fixed point: weights of 22 bits, rounded to uint8 after each of its two passes. The
same integers are computed here by float32 matrix products of weight parts that are small enough for every partial sum
to be exact, so the result does not depend on device, batch or order of summation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.contracts.precision import full_precision
from results.errors import unknown

PILLOW_WEIGHT_BITS = 22
TORCH_WEIGHT_LIMIT = 2**15
FLOAT_BITS = 24
PIXEL_BITS = 8
CHUNK_ELEMENTS = 2**26
CHUNK_ELEMENTS_CPU = 2**20  # intermediate results then stay in the processor's cache


class Kernel(NamedTuple):
    """A resampling filter: its weight at a distance in source pixels, zero from `support` on."""

    support: float
    weight: Callable[[np.ndarray], np.ndarray]


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -1/2 (IEEE ASSP 29, 1981)."""
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)


KERNELS = {
    "box": Kernel(0.5, _box),
    "bilinear": Kernel(1.0, _triangle),
    "bicubic": Kernel(2.0, _cubic),
    "lanczos": Kernel(3.0, _lanczos),
}


@lru_cache(maxsize=64)
def resampling_matrix(size_in: int, size_out: int, kernel: str) -> np.ndarray:
    """Return the float64 [size_out, size_in] weights of Pillow's antialiased resampling along one axis.

    Row i is centred on (i + 1/2) scale with scale = size_in / size_out; the filter is stretched by a scale above 1.
    """
    support, weight = KERNELS[kernel]
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    centre = (np.arange(size_out)[:, None] + 0.5) * scale
    first = np.maximum(np.trunc(centre - support * stretch + 0.5), 0)
    last = np.minimum(np.trunc(centre + support * stretch + 0.5), size_in)
    source = np.arange(size_in)[None, :]
    inside = (source >= first) & (source < last)
    values = np.where(inside, weight((source - centre + 0.5) * (1.0 / stretch)), 0.0)
    return values / values.sum(axis=1, keepdims=True)


@lru_cache(maxsize=64)
def _float_weights(size_in: int, size_out: int, kernel: str, device: torch.device) -> Tensor:
    return torch.from_numpy(resampling_matrix(size_in, size_out, kernel)).to(torch.float32).to(device)


class _IntegerWeights(NamedTuple):
    """Fixed-point weights, split so that float32 sums of digit x pixel stay below 2^24 and are therefore exact.

    weights = sum_j digits[j] 2^(digit_bits j), as float32 [pieces, size_out, size_in]; one pixel unit is 2^scale_bits.
    """

    digits: Tensor
    digit_bits: int
    scale_bits: int


@lru_cache(maxsize=64)
def _integer_weights(
    size_in: int, size_out: int, kernel: str, arithmetic: str, device: torch.device
) -> _IntegerWeights:
    weights = resampling_matrix(size_in, size_out, kernel)
    scale_bits = PILLOW_WEIGHT_BITS
    if arithmetic == "torch":
        # As many bits, up to Pillow's, as leave the largest weight within 16-bit integers.
        while scale_bits and int(0.5 + weights.max() * 2**scale_bits) >= TORCH_WEIGHT_LIMIT:
            scale_bits -= 1
    scaled = weights * 2.0**scale_bits
    rest = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64)
    taps = max(int((rest != 0).sum(axis=1).max()), 1)
    digit_bits = FLOAT_BITS - PIXEL_BITS - int(np.ceil(np.log2(taps)))
    digits = []
    while rest.any():
        carry = (rest + (1 << (digit_bits - 1))) >> digit_bits
        digits.append((rest - (carry << digit_bits)).astype(np.float32))
        rest = carry
    return _IntegerWeights(torch.from_numpy(np.stack(digits)).to(device), digit_bits, scale_bits)


def _round_fixed_point(parts: list[Tensor], weights: _IntegerWeights) -> Tensor:
    """Return the rounded and clipped pixel values, as float32, of sums of digit x pixel."""
    dtype = torch.int32 if len(parts) <= 2 else torch.int64
    total = parts[0].to(dtype) + (1 << (weights.scale_bits - 1))
    for power, part in enumerate(parts[1:], start=1):
        total += part.to(dtype) << (weights.digit_bits * power)
    return (total >> weights.scale_bits).clamp_(0, 255).to(torch.float32)


def _pillow_passes(images: Tensor, size: tuple[int, int]) -> list[str]:
    """Return the axes to resample, in Pillow's order, which matters because uint8 pixels are rounded in between.

    Pillow 13 resizes vertically first where the height loses more than twice as many pixels as the width; the
    releases before it, and torch, always begin horizontally. From square to square all agree.
    """
    height, width = images.shape[-2:]
    lost_rows, lost_columns = height - size[0], width - size[1]
    return ["height", "width"] if lost_rows > 0 and lost_rows > 2 * lost_columns else ["width", "height"]


def _resample_uint8(images: Tensor, size: tuple[int, int], kernel: str, arithmetic: str) -> Tensor:
    height, width = images.shape[-2:]
    pixels = images.to(torch.float32)
    for axis in _pillow_passes(images, size) if arithmetic == "pillow" else ("width", "height"):
        if axis == "width" and width != size[1]:
            weights = _integer_weights(width, size[1], kernel, arithmetic, images.device)
            pixels = _round_fixed_point([pixels @ digit.T for digit in weights.digits], weights)
        elif axis == "height" and height != size[0]:
            weights = _integer_weights(height, size[0], kernel, arithmetic, images.device)
            pixels = _round_fixed_point([digit @ pixels for digit in weights.digits], weights)
    return pixels.to(torch.uint8)


def _resample_float(images: Tensor, size: tuple[int, int], kernel: str) -> Tensor:
    height, width = images.shape[-2:]
    pixels = images.to(torch.float32)
    if width != size[1]:
        pixels = pixels @ _float_weights(width, size[1], kernel, images.device).T
    if height != size[0]:
        pixels = _float_weights(height, size[0], kernel, images.device) @ pixels
    return pixels


def _in_chunks(images: Tensor, size: tuple[int, int], resample: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `resample` to so many images at a time that its intermediates stay bounded."""
    height, width = images.shape[-2:]
    elements = 3 * max(height, size[0]) * max(width, size[1])
    limit = CHUNK_ELEMENTS_CPU if images.device.type == "cpu" else CHUNK_ELEMENTS
    count = max(1, limit // elements)
    with full_precision():
        return torch.cat([resample(chunk) for chunk in images.split(count)])


def pillow_resize(images: Tensor, size: tuple[int, int], kernel: str = "bicubic") -> Tensor:
    """Resize uint8 [B, C, H, W] to `size` (height, width), bit for bit Pillow's `Image.resize`; returns uint8."""
    return _in_chunks(images, size, lambda chunk: _resample_uint8(chunk, size, kernel, "pillow"))


def torch_resize(images: Tensor, size: tuple[int, int], kernel: str = "bicubic") -> Tensor:
    """Resize uint8 [B, C, H, W] to `size`, bit for bit torch's antialiased uint8 interpolation on the CPU.

    On other devices torch itself computes in float and rounds once, which differs by several grey levels at edges.
    """
    return _in_chunks(images, size, lambda chunk: _resample_uint8(chunk, size, kernel, "torch"))


def pillow_resize_float(images: Tensor, size: tuple[int, int], kernel: str = "bicubic") -> Tensor:
    """Resize [B, C, H, W] to `size` as Pillow does images of mode "F": float32, neither clipped nor rounded."""
    return _in_chunks(images, size, lambda chunk: _resample_float(chunk, size, kernel))


def center_crop(images: Tensor, size: tuple[int, int], rounding: str = "down") -> Tensor:
    """Cut `size` (height, width) from the middle of [B, C, H, W].

    An odd margin puts floor(margin / 2) before the crop ("down": transformers, ADM), or margin / 2 rounded half to even
    ("even": torchvision).
    """
    margins = [have - want for have, want in zip(images.shape[-2:], size, strict=True)]
    top, left = (margin // 2 if rounding == "down" else round(margin / 2) for margin in margins)
    return images[..., top : top + size[0], left : left + size[1]]


def shortest_edge_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Return the (height, width) whose shorter side is `size`; the longer one is truncated, as in torchvision."""
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)


def _tf1_bilinear(images: Tensor, size: int) -> Tensor:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    return interpolate_bilinear_2d_like_tensorflow1x(images.to(torch.float32), size=(size, size), align_corners=False)


def _torch_antialiased(mode: str) -> Callable[[Tensor, int], Tensor]:
    def resize(images: Tensor, size: int) -> Tensor:
        pixels = images.to(torch.float32)
        return functional.interpolate(pixels, size=(size, size), mode=mode, align_corners=False, antialias=True)

    return resize


def _adm_center_crop(images: Tensor, size: int) -> Tensor:
    height, width = images.shape[-2:]
    while min(height, width) >= 2 * size:
        height, width = height // 2, width // 2
        images = pillow_resize(images, (height, width), "box")
    scale = size / min(height, width)
    images = pillow_resize(images, (round(height * scale), round(width * scale)), "bicubic")
    return center_crop(images, (size, size))


METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "tf1-bilinear": _tf1_bilinear,
    "clean-fid": lambda images, size: pillow_resize_float(images, (size, size)).clamp_(0.0, 255.0),
    "torchmetrics": _torch_antialiased("bilinear"),
    "torch-bicubic": _torch_antialiased("bicubic"),
    "squash": lambda images, size: pillow_resize(images, (size, size), "bicubic"),
    "lanczos": lambda images, size: pillow_resize(images, (size, size), "lanczos"),
    "adm-center-crop": _adm_center_crop,
}


NATIVE_RESIZE = "lanczos"
"""How samples of a model that draws at another size than a protocol judges become the protocol's: once, on uint8."""


def resize(images: Tensor, size: int, method: str) -> Tensor:
    """Resize uint8 [B, 3, H, W] to [B, 3, size, size] by a named method (the module's table says what each returns).

    Values lie in 0..255. Raises BenchError for an unknown method.
    """
    if method not in METHODS:
        raise unknown("resize method", method, METHODS)
    return METHODS[method](images, size)
