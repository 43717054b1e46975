"""Times: their intervals, what they leave open, and what a table says of them."""

import numpy as np
import pytest

from results.budgets import pareto_front, unsure_of_front
from results.leaderboard import within_budget
from results.rows import Row, Value
from results.timing import Interval, checked_timing, described, remarks, timed, timing_of


def timing(median, width=0.02, load=0.3, batch_size=100):
    part = {"median": median, "low": median * (1 - width / 2), "high": median * (1 + width / 2), "repeats": 20}
    batch = {**part, "median": median * 100, "low": part["low"] * 100, "high": part["high"] * 100}
    return {"latency": part, "batch": batch, "batch_size": batch_size, "threads": 1, "cores": 4, "load": load}


def row(cell, fid, seconds, device="card", **facts):
    table = timing(seconds, **facts)
    cell = {"cell_id": cell, "ranking": "k", "model": cell, "steps": 1, "nfe": 1.0, "guide_nfe": None, "device": device,
            "images_per_second": 1 / seconds, "latency_seconds": seconds, "timing": table}  # fmt: skip
    return Row(cell, {"fid": Value(fid, n=100)})


def names(found):
    return [row.cell["cell_id"] for row in found]


def test_the_interval_of_a_median_covers_it_in_95_of_100_samples():
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        found = timing_of(random.exponential(size=15))
        covered += found.low <= np.log(2) <= found.high
    assert 0.94 <= covered / 400 <= 1.0


def test_few_repetitions_have_a_median_and_no_interval():
    assert timing_of([1.0, 3.0, 2.0]) == (2.0, None, None, 3)
    assert not timing_of([1.0, 1.0]).narrow
    assert timing_of([1.0] * 12).narrow


def test_a_place_on_the_front_is_sure_only_where_the_times_are_apart():
    quick, slow = row("quick", 5.0, 1.0), row("slow", 3.0, 1.5)
    front = pareto_front([quick, slow], "fid", "seconds")
    assert names(front) == ["quick", "slow"]
    assert unsure_of_front(front, [quick, slow], "fid", "seconds") == []
    vague = [row("quick", 5.0, 1.0, width=0.6), row("slow", 3.0, 1.2, width=0.3)]
    assert names(unsure_of_front(vague, vague, "fid", "seconds")) == ["quick"]
    assert unsure_of_front(vague, vague, "fid", "nfe")  # the same evaluations: the worse has no place of its own


def test_a_budget_of_seconds_takes_rows_whose_whole_interval_is_within():
    found = [row("in", 1.0, 0.9), row("straddles", 1.0, 0.99, width=0.1), row("out", 1.0, 1.2)]
    assert names(within_budget(found, seconds=1.0)) == ["in"]
    assert not Interval(1.0, None, None).surely_less(Interval(2.0, None, None))


def test_rows_of_two_devices_or_a_busy_machine_say_so():
    assert remarks([row("a", 1.0, 1.0), row("b", 1.0, 1.0)]) == []
    mixed = remarks([row("a", 1.0, 1.0), row("b", 1.0, 1.0, device="other", load=9.0)])
    assert "2 devices" in mixed[0] and "card (1 row), other (1 row)" in mixed[0]
    assert "busy machine (load up to 9.0)" in mixed[1]
    few = row("a", 1.0, 1.0)
    few.cell["timing"]["batch"] |= {"low": None, "high": None, "repeats": 3}
    assert remarks([few]) == ["1 row was timed fewer than 6 times: images/s without an interval"]


def test_a_row_says_how_often_and_where_it_was_timed():
    assert described(row("a", 1.0, 0.002).cell) == (
        "one image 2.000 ± 0.020 ms over 20 repetitions; an image in batches 2.000 ± 0.020 ms over 20 repetitions; "
        "card, 1 thread, batch 100, load 0.3 on 4 cores"
    )
    old = row("a", 1.0, 0.002).cell | {"timing": None}
    assert timed(old, "latency_seconds") == Interval(0.002, None, None)
    assert described(old).endswith("card, while other work ran")


@pytest.mark.parametrize(
    "change", [{"threads": "1"}, {"batch": None}, {"latency": {"median": 1}}, {"load": -1}, {"batch_size": 0}]
)
def test_a_timing_of_another_shape_is_refused(change):
    checked_timing(timing(1.0))
    with pytest.raises(ValueError, match=next(iter(change))):
        checked_timing(timing(1.0) | change)
