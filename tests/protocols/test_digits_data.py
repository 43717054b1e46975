import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from protocols.digits.data import grey_from_uint8, load_split, uint8_from_grey


def as_rows(images):
    return {bytes(image.numpy().tobytes()) for image in images}


def test_the_parts_together_are_all_of_scikit_learns_digits():
    train, test = load_split("train"), load_split("test")
    assert train.images.shape == (1198, 3, 8, 8)
    assert test.images.shape == (599, 3, 8, 8)
    values, labels = load_digits(return_X_y=True)
    expected = sorted(zip(labels.tolist(), np.rint(values * 255 / 16).astype(int).tolist(), strict=True))
    images = torch.cat([train.images, test.images])[:, 0].flatten(1).int().tolist()
    found = sorted(zip(torch.cat([train.labels, test.labels]).tolist(), images, strict=True))
    assert found == expected


def test_no_image_is_in_both_parts():
    assert not as_rows(load_split("train").images) & as_rows(load_split("test").images)


def test_each_class_is_split_two_to_one():
    train, test = (torch.bincount(load_split(part).labels, minlength=10) for part in ("train", "test"))
    assert ((train - 2 * test).abs() <= 2).all()


def test_the_split_is_the_recorded_one():
    train, test = load_split("train"), load_split("test")
    again = load_split("test")
    assert torch.equal(test.images, again.images)
    assert torch.equal(test.labels, again.labels)
    assert train.labels[:12].tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 0, 2, 3, 7]
    assert test.labels[:12].tolist() == [0, 3, 1, 4, 5, 6, 9, 5, 6, 7, 9, 5]
    assert int(test.images.long().sum()) == 8918637


def test_images_are_grey_rgb_on_seventeen_levels():
    images = load_split("test").images
    assert images.dtype == torch.uint8
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    assert images.unique().tolist() == [round(value * 255 / 16) for value in range(17)]


def test_grey_values_survive_the_way_there_and_back():
    images = load_split("test").images[:20]
    assert torch.equal(uint8_from_grey(grey_from_uint8(images)), images)


def test_an_unknown_part_is_named():
    with pytest.raises(ValueError, match="validation"):
        load_split("validation")
