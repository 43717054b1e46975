"""The digits images and their split into a training part and a held-out part.

scikit-learn ships 1,797 grey images of 8x8 pixels with values 0..16 (the test part of the "Optical Recognition of
Handwritten Digits" set, Alpaydin and Kaynak, UCI, 1998), so nothing is downloaded.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGE_SIZE = 8
GREY_LEVELS = 16
SPLIT_SEED = 0
TRAIN_COUNT = 1198
TEST_COUNT = 599


class DigitsSplit(NamedTuple):
    """One part of the digits.

    `images`: uint8 [n, 3, 8, 8], RGB with the grey value repeated; `labels`: int64 [n] in 0..9.
    Row i of both is the same image; rows keep the order in which scikit-learn stores them.
    """

    images: torch.Tensor
    labels: torch.Tensor


def load_split(part: Literal["train", "test"]) -> DigitsSplit:
    """Return the training part (1,198 images) or the held-out part (599 images), which is also the reference set.

    The rule: shuffle all images with numpy's `RandomState(0).permutation(1797)` (whose stream is frozen), sort them by
    class with a stable sort, number them 0, 1, 2, ... through that list, and hold out every image whose number
    is 2 modulo 3. So each class is split 2 : 1 to within one image, at random inside the class.

    A stored value v in 0..16 becomes the uint8 value round(v * 255 / 16).

    Raises ValueError for any other `part`, or if scikit-learn's file is not the expected one.
    """
    from sklearn.datasets import load_digits

    if part not in ("train", "test"):
        raise ValueError(f"unknown part {part!r} of the digits: use 'train' or 'test'")
    values, labels = load_digits(return_X_y=True)
    if values.shape != (TRAIN_COUNT + TEST_COUNT, IMAGE_SIZE**2):
        raise ValueError(
            f"scikit-learn's digits have shape {values.shape}, expected (1797, 64): install scikit-learn >= 1.5"
        )

    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[by_class[2::3]] = True
    rows = held_out if part == "test" else ~held_out

    grey = np.rint(values[rows] * 255 / GREY_LEVELS).astype(np.uint8).reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE)
    return DigitsSplit(torch.from_numpy(grey).repeat(1, 3, 1, 1), torch.from_numpy(labels[rows].astype(np.int64)))


def grey_from_uint8(images: torch.Tensor) -> torch.Tensor:
    """Return float32 [n, 1, 8, 8] grey values in [0, 1] of uint8 [n, 3, 8, 8] RGB images (mean over the channels)."""
    return images.to(torch.float32).mean(dim=1, keepdim=True) / 255


def uint8_from_grey(grey: torch.Tensor) -> torch.Tensor:
    """Return uint8 [n, 3, 8, 8] RGB of float [n, 1, 8, 8] grey values in [0, 1], rounded to nearest."""
    return (grey * 255).round().clamp(0, 255).to(torch.uint8).repeat(1, 3, 1, 1)
