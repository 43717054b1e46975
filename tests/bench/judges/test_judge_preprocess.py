import numpy as np
import pytest
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from bench.judges.pixels.preprocess import Preprocess, from_processor_config
from results.errors import BenchError

SHAPES = [(64, 64), (48, 61), (61, 48), (200, 150), (20, 31)]
SIZE = 32


def noise(shape: tuple[int, int], count: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(sum(shape)).randint(0, 256, (count, 3, *shape)).astype(np.uint8))


def pictures(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().numpy()]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("backend", "processor_class"),
    [("pillow", transformers.CLIPImageProcessorPil), ("torchvision", transformers.CLIPImageProcessor)],
)
def test_equals_the_transformers_processor(shape, backend, processor_class):
    processor = processor_class(size={"shortest_edge": SIZE + 4}, crop_size={"height": SIZE, "width": SIZE})
    images = noise(shape)
    expected = processor(images=pictures(images), return_tensors="pt")["pixel_values"]
    ours = from_processor_config(processor.to_dict(), backend)(images)
    assert (ours - expected).abs().max() < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("resize_mode", "geometry"), [("shortest", "shortest-edge"), ("squash", "squash"), ("longest", "longest")]
)
def test_equals_the_open_clip_transform(shape, resize_mode, geometry):
    transform = image_transform_v2(PreprocessCfg(size=SIZE, resize_mode=resize_mode), is_train=False)
    images = noise(shape)
    expected = torch.stack([transform(picture) for picture in pictures(images)])
    ours = Preprocess(size=SIZE, geometry=geometry, crop_rounding="even")(images)
    assert (ours - expected).abs().max() < 1e-5


def test_crop_square_crops_before_it_resizes():
    images = noise((50, 81), count=1)
    picture = pictures(images)[0].crop((15, 0, 65, 50)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255
    ours = Preprocess(size=SIZE, geometry="crop-square", mean=(0.0,) * 3, std=(1.0,) * 3)(images)[0]
    assert torch.equal(ours, expected)


def test_unknown_setting_is_refused():
    with pytest.raises(BenchError, match="geometry 'stretch'"):
        Preprocess(size=8, geometry="stretch")
    with pytest.raises(BenchError, match="below the crop"):
        Preprocess(size=8, edge=4)
    with pytest.raises(BenchError, match="no square input"):
        from_processor_config({"do_center_crop": False, "size": {"shortest_edge": 8}})
