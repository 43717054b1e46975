import pytest
import torch

from bench.run.quantise import quantise

LEVELS = torch.arange(256) / 127.5 - 1


@pytest.mark.parametrize("rule", ["round", "trunc128"])
def test_bytes_survive_a_round_trip(rule):
    assert torch.equal(quantise(LEVELS, rule), torch.arange(256).byte())


def test_round_takes_the_nearest_level_and_clamps():
    values = torch.tensor([-3.0, -1.0, 0.0, 0.0078, 1.0, 9.0])
    assert quantise(values, "round").tolist() == [0, 0, 128, 128, 255, 255]


def test_trunc128_equals_round_of_127_5_x_plus_127_5():
    x = torch.linspace(-1, 1, 10001)
    published = (127.5 * x.double() + 128).clamp(0, 255).floor()
    assert (quantise(x, "trunc128").double() - published).abs().max() == 0


def test_trunc255_is_half_a_level_darker_than_rounding():
    x = torch.linspace(-1, 1, 100001)
    shift = quantise(x, "round").double().mean() - quantise(x, "trunc255").double().mean()
    assert abs(shift - 0.5) < 0.01


def test_seventeen_levels_are_those_of_the_digits():
    x = torch.linspace(-1, 1, 1001)
    expected = {round(v * 255 / 16) for v in range(17)}
    assert set(quantise(x, "round", levels=17).tolist()) == expected
