"""From uint8 images to a network's float input, in batches on the device, equal to what the network's library does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench.judges.options import BACKENDS, GEOMETRIES
from bench.judges.pixels.resize import center_crop, pillow_resize, shortest_edge_size, torch_resize
from results.errors import BenchError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IN_CACHE = 4
"""Images prepared at once on a processor: their intermediate results then stay in its cache (2 to 4 times faster)."""
PILLOW_KERNELS = {1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}


@dataclass(frozen=True)
class Preprocess:
    """Resize to `size` x `size`, scale to [0, 1], subtract `mean`, divide by `std`.

    Attributes:
        size: side of the network's input in pixels.
        geometry: `shortest-edge` (shorter side to `edge`, then centre crop: CLIP), `crop-square` (centre crop to a
            square, then resize: CMMD), `squash` (aspect ratio lost: DINOv2), `longest` (longer side to `size`, then
            black bars: HPSv2).
        backend: `pillow` (uint8, bit for bit Pillow's), `torchvision` (uint8, bit for bit torch's antialiased
            filter on the CPU), `torch-float` (torch's filter in float32, not rounded).
        kernel: `bicubic`, `bilinear`, `lanczos` or `box`.
        edge: length of the shorter side before the crop; None for `size`.
        crop_rounding: how an odd margin is split, see `center_crop`.
        mean: per channel, in units of [0, 1].
        std: per channel, in units of [0, 1].
    """

    size: int
    geometry: str = "shortest-edge"
    backend: str = "pillow"
    kernel: str = "bicubic"
    edge: int | None = None
    crop_rounding: str = "down"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self) -> None:
        known = {"geometry": GEOMETRIES, "backend": BACKENDS, "kernel": tuple(PILLOW_KERNELS.values())}
        for key, names in known.items():
            if getattr(self, key) not in names:
                raise BenchError(f"image preprocessing: {key} '{getattr(self, key)}' is not one of {', '.join(names)}")
        if self.edge is not None and self.edge < self.size:
            raise BenchError(f"image preprocessing: shortest edge {self.edge} is below the crop of {self.size} pixels")

    def __call__(self, images: Tensor) -> Tensor:
        """Return the network input, float32 [B, 3, size, size], of uint8 [B, 3, H, W]."""
        shape = (len(images), 3, self.size, self.size)
        pixels = torch.empty(shape, dtype=torch.float32, device=images.device)
        count = IN_CACHE if images.device.type == "cpu" else max(len(images), 1)
        with torch.autocast(images.device.type, enabled=False):  # a network may be in half precision, its input never
            for part, target in zip(images.split(count), pixels.split(count), strict=True):
                self._normalise(self._to_input_size(part), target)
        return pixels

    def _to_input_size(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        square = (self.size, self.size)
        if self.geometry == "squash":
            return self._resize(images, square)
        if self.geometry == "crop-square":
            side = min(height, width)
            return self._resize(center_crop(images, (side, side), self.crop_rounding), square)
        if self.geometry == "longest":
            ratio = max(height, width) / self.size
            images = self._resize(images, (round(height / ratio), round(width / ratio)))
            return _pad(images, square)
        images = self._resize(images, shortest_edge_size(height, width, self.edge or self.size))
        return center_crop(images, square, self.crop_rounding)

    def _resize(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        if tuple(images.shape[-2:]) == size:
            return images
        if self.backend == "pillow":
            return pillow_resize(images, size, self.kernel)
        if self.backend == "torchvision":
            return torch_resize(images, size, self.kernel)
        return functional.interpolate(
            images.to(torch.float32), size=size, mode=self.kernel, align_corners=False, antialias=True
        )

    def _normalise(self, images: Tensor, target: Tensor) -> None:
        mean, std = _per_channel(self.mean, images.device), _per_channel(self.std, images.device)
        pixels = images.to(torch.float32)
        if self.backend == "torchvision":
            torch.div(pixels - mean * 255.0, std * 255.0, out=target)
        else:
            torch.div((pixels / 255.0).sub_(mean), std, out=target)


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def _pad(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Centre [B, C, H, W] on black; an odd margin leaves the larger part below and to the right."""
    rows, columns = size[0] - images.shape[-2], size[1] - images.shape[-1]
    return functional.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def from_processor_config(config: Mapping[str, Any], backend: str = "pillow") -> Preprocess:
    """Read a transformers `preprocessor_config.json` of a CLIP-like image processor.

    `backend` `pillow` is `CLIPImageProcessorPil` (what published scores used), `torchvision` is `CLIPImageProcessor`
    of transformers 5. Raises BenchError for steps this preprocessing has no equal of.
    """
    size, crop = config.get("size", 224), config.get("crop_size", 224)
    edge = size if isinstance(size, int) else size.get("shortest_edge")
    cropped = crop if isinstance(crop, int) else crop["height"]
    rescale = config.get("rescale_factor", 1 / 255)
    if abs(rescale * 255 - 1) > 1e-6 or not config.get("do_normalize", True) or not config.get("do_resize", True):
        raise BenchError("image processor: only resize, crop, rescale by 1/255 and normalise are supported")
    shared: dict[str, Any] = {
        "backend": backend,
        "kernel": PILLOW_KERNELS[config.get("resample", 3)],
        "mean": tuple(config.get("image_mean", CLIP_MEAN)),
        "std": tuple(config.get("image_std", CLIP_STD)),
    }
    if edge is None:
        return Preprocess(size=size["height"], geometry="squash", **shared)
    if not config.get("do_center_crop", True):
        raise BenchError("image processor: a shortest edge without a centre crop gives no square input")
    return Preprocess(size=cropped, edge=edge, **shared)
