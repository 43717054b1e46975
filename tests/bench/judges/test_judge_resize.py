import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch.nn import functional

from bench.judges.pixels import resize as resizing
from bench.judges.pixels.resize import pillow_resize, pillow_resize_float, resize, torch_resize
from results.errors import BenchError

FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SIZES = [
    ((24, 20), (37, 37)),
    ((256, 256), (224, 224)),
    ((64, 48), (37, 37)),
    ((33, 90), (7, 101)),
    ((700, 512), (31, 29)),
]
pillow_13 = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 13 changed the order of passes")


def noise(height: int, width: int, count: int = 2, black_and_white: bool = False) -> torch.Tensor:
    values = np.random.RandomState(height * width).randint(0, 256, (count, 3, height, width)).astype(np.uint8)
    return torch.from_numpy((values > 127).astype(np.uint8) * 255 if black_and_white else values)


def by_pillow(images: torch.Tensor, size: tuple[int, int], kernel: str) -> torch.Tensor:
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().numpy()]
    resized = [np.asarray(picture.resize(size[::-1], FILTERS[kernel])) for picture in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


@pillow_13
@pytest.mark.parametrize("kernel", FILTERS)
@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("black_and_white", [False, True])
def test_uint8_resize_equals_pillow_bit_for_bit(source, target, kernel, black_and_white):
    images = noise(*source, black_and_white=black_and_white)
    assert torch.equal(pillow_resize(images, target, kernel), by_pillow(images, target, kernel))


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_uint8_resize_equals_torch_bit_for_bit(source, target, kernel):
    images = noise(*source, black_and_white=True)
    expected = functional.interpolate(images, size=target, mode=kernel, align_corners=False, antialias=True)
    assert torch.equal(torch_resize(images, target, kernel), expected)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_float_resize_equals_pillow_in_mode_f(source, target):
    images = noise(*source, count=1)
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in images[0].numpy()]
    expected = np.stack([np.asarray(channel.resize(target[::-1], FILTERS["bicubic"])) for channel in channels])
    assert np.abs(pillow_resize_float(images, target)[0].numpy() - expected).max() < 1e-3


def test_result_depends_neither_on_batch_nor_on_chunks(monkeypatch):
    images = noise(40, 30, count=7)
    whole = pillow_resize(images, (23, 23))
    monkeypatch.setattr(resizing, "CHUNK_ELEMENTS_CPU", 3 * 40 * 30 * 2)
    assert torch.equal(pillow_resize(images, (23, 23)), whole)
    assert torch.equal(torch.cat([pillow_resize(image[None], (23, 23)) for image in images]), whole)


def test_adm_crop_equals_pillow_steps():
    images = noise(150, 101, count=1)
    picture = Image.fromarray(images[0].permute(1, 2, 0).contiguous().numpy())
    picture = picture.resize((50, 75), FILTERS["box"])
    picture = picture.resize((32, 48), FILTERS["bicubic"])
    expected = np.asarray(picture)[8:40]
    assert np.array_equal(resize(images, 32, "adm-center-crop")[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("method", resizing.METHODS)
def test_every_method_gives_a_square_in_range(method):
    resized = resize(noise(20, 26), 11, method)
    assert resized.shape == (2, 3, 11, 11)
    assert method == "torch-bicubic" or (resized.min() >= 0 and resized.max() <= 255)


def test_same_size_is_the_identity():
    images = noise(19, 19)
    for method in resizing.METHODS:
        assert torch.equal(resize(images, 19, method).float().round(), images.float()), method


def test_unknown_method_names_the_nearest():
    with pytest.raises(BenchError, match="did you mean clean-fid"):
        resize(noise(8, 8), 4, "clean-fit")
