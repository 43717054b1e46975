"""Noise is a pure function of (seed, sample index, draw, element), pinned to golden values."""

import pytest
import torch

from bench.contracts.noise import PhiloxNoise, RecordedNoise, inverse_normal, philox4x32


def words(counter, key):
    tensors = [torch.tensor([word], dtype=torch.int64) for word in counter]
    return [int(word) for word in philox4x32(tensors, key)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, expected):
    assert tuple(words(counter, key)) == expected


def test_values_are_pinned():
    noise = PhiloxNoise(seed=2026, indices=[0, 1, 10**10])
    first = noise.normal((5,))
    assert first.dtype == torch.float32
    assert first.tolist() == GOLDEN_DRAW_0
    assert noise.normal((5,), draw=3)[2].tolist() == GOLDEN_DRAW_3


def test_a_sample_does_not_depend_on_its_batch():
    whole = PhiloxNoise(7, range(20)).normal((2, 3, 3), draw=1)
    parts = torch.cat([PhiloxNoise(7, range(a, b)).normal((2, 3, 3), draw=1) for a, b in ((0, 1), (1, 13), (13, 20))])
    assert torch.equal(whole, parts)


def test_elements_do_not_depend_on_the_shape_asked_for():
    small = PhiloxNoise(7, [4]).normal((6,))
    assert torch.equal(small[0], PhiloxNoise(7, [4]).normal((3, 10)).flatten()[:6])


def test_seed_index_and_draw_each_change_every_value():
    base = PhiloxNoise(1, [0]).normal((8,))
    others = [PhiloxNoise(2, [0]).normal((8,)), PhiloxNoise(1, [1]).normal((8,)), PhiloxNoise(1, [0]).normal((8,), 1)]
    for other in others:
        assert not (base == other).any()


def test_the_inverse_normal_is_accurate_in_centre_and_tails():
    from scipy.stats import norm

    p = torch.cat([torch.logspace(-10, -0.31, 500, dtype=torch.float64), torch.linspace(0.001, 0.999, 999).double()])
    error = inverse_normal(p) - torch.from_numpy(norm.ppf(p.numpy()))
    assert error.abs().max() < 1e-14


def test_the_distribution_is_unit_normal():
    values = PhiloxNoise(3, range(500)).normal((400,)).double().flatten()
    n = len(values)
    assert abs(values.mean()) < 4 / n**0.5
    assert abs(values.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((values**4).mean() - 3) < 4 * (96 / n) ** 0.5


def test_a_recording_replays_its_draws_and_nothing_else():
    noise = RecordedNoise(torch.zeros(2, 3), torch.ones(1, 2, 3))
    assert torch.equal(noise.normal((3,), 1), torch.ones(2, 3))
    with pytest.raises(IndexError, match="no draw 2"):
        noise.normal((3,), 2)
    with pytest.raises(ValueError, match="asked for"):
        noise.normal((4,))


GOLDEN_DRAW_0 = [
    [-0.17362909018993378, 0.05601470544934273, 0.5312376618385315, -0.5343912243843079, 2.2662055492401123],
    [0.5394001007080078, -1.1839019060134888, 0.17356370389461517, 1.8227721452713013, 1.15500807762146],
    [-0.9504234790802002, 0.8338882327079773, 0.6879841089248657, 0.07853014022111893, 0.0556287057697773],
]
GOLDEN_DRAW_3 = [2.4703915119171143, 0.4947849214076996, -0.21545054018497467, 0.08388838917016983, -1.4731509685516357]
