import json
from pathlib import Path

import pytest

from bench.judges.base import judge_cost, judge_specs
from bench.run.forecast import (
    MEASURE_SECONDS,
    MEASURE_SECONDS_A_SAMPLE,
    PEAKS,
    READ_BYTES,
    START_SECONDS,
    UTILISATION,
    timing_seconds,
)
from bench.run.schedule import Schedule
from bench.run.shard import shard_ranges
from bench.run.simulate import Job, simulate
from protocols import find_protocol


def job(checkpoint, samples=2000, image=0.01, batch=50, **more):
    ranges = shard_ranges(samples, batch)
    return Job(checkpoint, ranges, ranges, image, **more)


def test_shards_go_in_the_order_of_the_plan_and_a_whole_cell_is_measured_first():
    first, second = job("a", samples=1000), job("b", samples=500)
    schedule = Schedule([first, second], workers=1)
    started = [schedule.next(0)]
    assert started[0] == (first, (0, 500))
    schedule.sampled(*started[0])
    assert schedule.next(0) == (first, (500, 1000))
    assert schedule.next(1) is None  # one worker has one task at a time
    schedule.sampled(first, (500, 1000))
    assert schedule.next(0) == (first, None)
    assert schedule.next(0) == (second, (0, 500))


def test_judges_that_prove_themselves_hold_a_cell_back_until_its_first_shard_is_there():
    first, second = job("a", samples=1000), job("b", samples=1000)
    schedule = Schedule([first, second], workers=8, proving=True)
    assert [schedule.next(0), schedule.next(1), schedule.next(2)] == [(first, (0, 500)), (second, (0, 500)), None]
    schedule.sampled(second, (0, 500))
    assert schedule.next(1) == (second, (500, 1000))


def test_a_dropped_cell_is_neither_sampled_nor_measured():
    first, second = job("a"), job("b", samples=500)
    schedule = Schedule([first, second], workers=8)
    schedule.drop(first)
    assert schedule.next(0) == (second, (0, 500))
    assert schedule.next(1) is None
    whole = Job("c", [(0, 500)], [], 0.01)
    schedule = Schedule([whole], workers=1)
    schedule.drop(whole)
    assert schedule.next(0) is None


def test_the_simulation_repeats_itself_and_does_all_the_work_once():
    jobs = [job(name, image=0.01 * size, load=3.0, measure=2.0, timing=1.0) for size, name in enumerate("abcabc", 1)]
    one, again, other = (simulate(jobs, 4, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    alone = simulate(jobs, 1, seed=0)
    assert alone.seconds >= alone.bound and one.seconds >= one.bound
    assert alone.busy * alone.seconds == pytest.approx(4 * one.busy * one.seconds)
    assert alone.loads == 12  # six cells in the order of the plan, each sampled and later timed
    assert (alone.least, one.least) == (3, 4)
    assert alone.loading == pytest.approx(12 * 3.0 / alone.seconds)
    assert simulate(jobs, 4, seed=0, abreast=False).timing > one.timing


def test_more_workers_never_pass_the_longest_task_nor_the_lower_bound():
    jobs = [job("a", samples=500, image=1.0), job("b", samples=4000, image=0.01)]
    many = simulate(jobs, 1000)
    assert many.seconds >= many.bound >= 0.8 * 500
    assert many.ratio < 1.01


def test_weights_that_are_slow_to_load_show_in_the_time_but_not_in_the_bound():
    quick, slow = ([job(name, load=load) for name in "abcdefgh"] for load in (0.0, 60.0))
    assert simulate(slow, 8).ratio > simulate(quick, 8).ratio


def test_nothing_to_do_takes_no_time():
    done = simulate([], 8, start=60.0)
    assert (done.seconds, done.bound, done.loads, done.ratio) == (60.0, 60.0, 0, 1.0)


def test_the_fair_protocol_on_64_accelerators_stays_within_a_tenth_of_the_lower_bound():
    """The rows are stored as `bench plan` counted them when class-to-image models were all that the protocol had.

    They are timed on all accelerators at once; one after the other it is the timing that decides.
    """
    planned = json.loads((Path(__file__).parent / "fair_imagenet_256_v2.json").read_text())
    protocol = find_protocol("fair-imagenet-256-v2")
    assert len(planned["cells"]) == 259
    costs = [(judge_cost(spec), spec.options.get("precision") == "half") for spec in judge_specs(protocol)]
    n, batch = protocol.num_samples, protocol.batch_size
    for dtype in ("float32", "bfloat16"):
        rate = {kind: peak * UTILISATION["cuda"] for kind, peak in PEAKS["cuda"].items()}
        judging = sum(cost.operations / rate["float16" if half else "float32"] for cost, half in costs)
        jobs = [
            job(
                checkpoint,
                samples=n,
                batch=batch,
                image=flops / rate[dtype] + judging,
                load=planned["weight_bytes"][checkpoint] / READ_BYTES,
                measure=MEASURE_SECONDS + MEASURE_SECONDS_A_SAMPLE * n,
                timing=timing_seconds(flops / rate[dtype], n, batch),
            )
            for checkpoint, flops in planned["cells"]
        ]
        found = simulate(jobs, 64, start=START_SECONDS["cuda"], proving=True)
        assert 1.0 <= found.ratio <= 1.1, (dtype, found)
        if dtype == "bfloat16":
            one = simulate(jobs, 64, start=START_SECONDS["cuda"], proving=True, abreast=False)
            assert one.timing > 10 * found.timing
