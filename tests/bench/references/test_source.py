"""The cuts of reference images, one at a time on the processor, against the batched ones."""

import numpy as np
import pytest
import torch

from bench.judges.pixels.resize import resize
from bench.references.source import cut

SIZE = 16


@pytest.mark.parametrize("policy", ["squash", "lanczos", "adm-center-crop"])
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (16, 16), (64, 90), (200, 17)])
def test_every_cut_equals_the_batched_one(policy, shape):
    pixels = np.random.RandomState(0).randint(0, 256, (*shape, 3)).astype(np.uint8)
    batched = resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], SIZE, policy)[0].permute(1, 2, 0).numpy()
    assert (cut(pixels, SIZE, policy) == batched).all()


def test_the_bicubic_crop_keeps_the_aspect_ratio():
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 30:50] = 255
    inside = cut(pixels, SIZE, "bicubic-crop")
    assert inside.shape == (SIZE, SIZE, 3) and (inside[:, 5:11] > 250).all() and (inside[:, :3] < 5).all()
