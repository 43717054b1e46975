"""Guidance: the formula, its channels and interval, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapters.guidance import Guided, combine

X = torch.linspace(-1, 1, 2 * 4 * 3).reshape(2, 4, 3)
LABELS, NULL = torch.tensor([1, 2]), torch.tensor([9, 9])


class Network:
    """x (1 + t) + label, and how many rows each call had."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: Tensor | float, labels: Tensor | None) -> Tensor:
        self.rows.append(len(x))
        t = t[:, None, None] if isinstance(t, Tensor) else t
        return x * (1 + t) + (0 if labels is None else labels[:, None, None])


def expected(cfg: float, t: float = 0.5, null: float = 9.0) -> Tensor:
    return X * (1 + t) + null + cfg * (LABELS - null)[:, None, None]


@pytest.mark.parametrize("time", [0.5, torch.full((2,), 0.5)])
def test_one_is_the_conditional_prediction_in_one_evaluation(time: Tensor | float) -> None:
    network = Network()
    assert torch.equal(Guided(network, LABELS, NULL, 1.0)(X, time), network(X, time, LABELS))
    assert network.rows == [2, 2]


@pytest.mark.parametrize("time", [0.5, torch.full((2,), 0.5)])
@pytest.mark.parametrize(("doubled", "rows"), [(True, [4]), (False, [2, 2])])
def test_above_one_both_predictions_are_paid_for(time: Tensor | float, doubled: bool, rows: list[int]) -> None:
    network = Network()
    guided = Guided(network, LABELS, NULL, 3.0, doubled=doubled)(X, time)
    assert torch.allclose(guided, expected(3.0), atol=1e-5)
    assert network.rows == rows


def test_a_network_without_a_null_label_is_asked_without_one() -> None:
    network = Network()
    assert torch.allclose(Guided(network, LABELS, None, 3.0)(X, 0.5), expected(3.0, null=0.0), atol=1e-5)
    assert network.rows == [2, 2]


def test_a_weaker_network_takes_the_place_of_the_null_prediction() -> None:
    network = Network()
    guided = Guided(network, LABELS, NULL, 3.0, weak=lambda x, t, labels: 0 * x)(X, 0.5)
    assert torch.allclose(guided, 3 * network(X, 0.5, LABELS), atol=1e-5)


def test_channels_left_unguided_are_conditional() -> None:
    cond, null = X, -X
    some = combine(cond, null, 2.0, channels=3)
    assert torch.equal(some[:, :3], combine(cond, null, 2.0)[:, :3])
    assert torch.equal(some[:, 3:], cond[:, 3:])


def test_the_ends_of_the_interval_are_inside_in_the_precision_of_the_times() -> None:
    network = Network()
    model = Guided(network, LABELS, NULL, 3.0, interval=(0.3, 0.7))
    for number in (0.3, 0.7, 0.5, 0.29, 0.71):
        model(X, torch.tensor(number, dtype=torch.float32).item())
    assert network.rows == [4, 4, 4, 2, 2]


def test_a_doubled_state_is_unguided_in_its_second_half_where_channels_are_left_out() -> None:
    network = Network()
    model = Guided(network, LABELS, NULL, 3.0, channels=3)
    first, second = model.pair(torch.cat([X, X]), torch.full((4,), 0.5)).chunk(2)
    assert torch.equal(first, model(X, torch.full((2,), 0.5)))
    assert torch.equal(first[:, :3], second[:, :3])
    assert torch.equal(second[:, 3:], network(X, 0.5, NULL)[:, 3:])
