"""A few real images of a protocol's classes, to be shown next to samples."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from bench.references.source import open_images
from bench.references.stored import source_images
from protocols.schema import Protocol
from results.errors import BenchError

MOST = 4
"""Images of a class."""
LARGEST_SIDE = 96
"""Pixels; larger images are shrunk."""


def real_images(protocol: Protocol, labels: Collection[int], directory: Path | None = None) -> dict[int, list[bytes]]:
    """Return PNG files of the first `MOST` real images of each label, as far as there are any.

    They are those of `directory` (class folders, an archive or an `.npz`, cut to the protocol's size), else the images
    that the protocol's reference is made of where the package carries them. Raises BenchError for a directory that
    cannot be read or has no labels.
    """
    if directory is not None:
        source = open_images(directory, protocol.resolution, protocol.class_names)
        if source.labels is None:
            raise BenchError(f"{directory}: {source.unlabelled}; real images are shown by class")
        places = {label: np.flatnonzero(source.labels == label)[:MOST] for label in labels}
        chosen = {label: [next(iter(source.batches(int(at), 1))).images for at in ats] for label, ats in places.items()}
    else:
        found = source_images(protocol)
        if found is None:
            return {}
        images, classes = found
        chosen = {label: [images[at : at + 1] for at in np.flatnonzero(classes == label)[:MOST]] for label in labels}
    return {
        label: [_png(image[0].permute(1, 2, 0).numpy()) for image in images if len(image)]
        for label, images in chosen.items()
    }


def _png(pixels: np.ndarray) -> bytes:
    image, file = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
