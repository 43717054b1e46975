"""What is said of a set's pixels: the commonest mistakes, whatever the batches."""

import numpy as np
import pytest

from bench.judges.pixels.images import Notes
from bench.judges.pixels.sanity import Pixels

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 3, 8, 8), dtype=np.uint8)


def facts(images, batch=64, notes=()):
    seen = Pixels()
    for start in range(0, len(images), batch):
        seen.add(images[start : start + batch], notes[start : start + batch])
    return seen.facts()


def test_images_as_they_should_be_have_no_remark():
    found = facts(IMAGES)
    assert (found["images"], found["low"], found["high"], found["copies"], found["levels"]) == (300, 0, 255, 0, None)
    assert found["remarks"] == []


@pytest.mark.parametrize(
    ("images", "remark"),
    [
        (IMAGES // 128, "all pixels are 0 or 1: scale to 0..255"),
        (IMAGES // 15, "no pixel exceeds 17"),
        (IMAGES // 16, "no pixel exceeds 15: scale to 0..255"),
        (np.array([0, 1, 255], np.uint8)[IMAGES % 3], "floats of -1..1 cast to uint8"),
        (IMAGES * 0, "all images are black"),
        (IMAGES[:1].repeat(300, 0), "all 300 images are equal"),
        (np.concatenate([IMAGES[:1].repeat(299, 0), IMAGES[1:2]]), "299 of 300 images are equal"),
        (np.concatenate([IMAGES[:150], IMAGES[:150]]), "150 of 300 images are copies of others"),
        (np.concatenate([IMAGES[:290], IMAGES[:10] * 0 + 200]), "10 of 300 images are one colour, or nearly"),
    ],
)
def test_the_commonest_mistakes_are_named(images, remark):
    said = "; ".join(facts(images)["remarks"])
    assert (remark in said) == ("exceeds 17" not in remark)


def test_what_files_said_and_pixels_do_not_is_counted():
    notes = [Notes("8x8", True, index < 3, index == 7) for index in range(300)]
    found = facts(IMAGES, notes=notes)
    assert found["grey"] == 300 and found["sizes"] == 1
    assert found["remarks"] == [
        "3 of 300 images have transparent pixels; alpha is dropped",
        "1 of 300 images ask to be turned (EXIF); the orientation is ignored",
    ]


def test_batches_parts_and_a_stop_in_between_change_nothing():
    images = np.concatenate([IMAGES[:200], IMAGES[:100]])
    whole, joined = facts(images), Pixels()
    for part in np.array_split(images, 7):
        seen = Pixels()
        seen.add(part)
        joined.join(Pixels.of(seen.state()))
    assert joined.facts() == whole == facts(images, batch=7)
    assert whole["copies"] == 100
