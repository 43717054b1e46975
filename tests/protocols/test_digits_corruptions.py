import pytest
import torch

from protocols.digits.corruptions import CORRUPTIONS, PIXEL_CORRUPTIONS, Digits, corrupt, draw_class, other_labels
from protocols.digits.data import grey_from_uint8, load_split


@pytest.fixture(scope="module")
def pool():
    test = load_split("test")
    return Digits(grey_from_uint8(test.images), test.labels)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_depends_on_its_generator_alone_and_keeps_shape_and_levels(kind, pool):
    rows, severity = torch.arange(64), torch.full((64,), 0.7)
    worse = corrupt(kind, rows, severity, pool, torch.Generator().manual_seed(3))
    torch.manual_seed(99)
    again = corrupt(kind, rows, severity, pool, torch.Generator().manual_seed(3))
    assert torch.equal(worse, again)
    assert worse.shape == (64, 1, 8, 8)
    assert torch.equal((worse * 16).round(), worse * 16)
    assert float(worse.min()) >= 0
    assert float(worse.max()) <= 1
    assert (worse != pool.grey[rows]).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("kind", PIXEL_CORRUPTIONS)
def test_severity_zero_leaves_the_image_as_it_is(kind, pool):
    grey = pool.grey[:32]
    untouched = PIXEL_CORRUPTIONS[kind](grey, torch.zeros(32), torch.Generator().manual_seed(0))
    torch.testing.assert_close(untouched, grey, atol=1e-5, rtol=0)


def test_partners_are_of_the_class_asked_for(pool):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat(20)
    assert torch.equal(pool.labels[draw_class(pool, labels, generator)], labels)
    others = other_labels(labels, generator)
    assert (others != labels).all()
    assert others.unique().tolist() == list(range(10))


def test_an_unknown_corruption_is_named(pool):
    with pytest.raises(ValueError, match="sepia"):
        corrupt("sepia", torch.arange(2), torch.ones(2), pool, torch.Generator())
