"""A discrete simulation of a run: workers, weight loads and stragglers, by the run's own schedule."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bench.run.schedule import Schedule, Span, Start

SPREAD = 0.05
"""Standard deviation of the logarithm of a task's time about what was forecast."""
STRAGGLERS, SLOWDOWN = 0.01, 3.0
"""Share of tasks that take so many times as long: a node that throttles, a file system that stalls."""


@dataclass(eq=False)
class Job:
    """One cell to simulate; all times in seconds.

    Attributes:
        checkpoint: whose weights it needs.
        ranges: all shards of the cell, in order.
        missing: those that are to be sampled.
        image: sampling and judging one image.
        load: reading the checkpoint's weights.
        measure: computing the metrics of the whole cell.
        timing: timing it alone, after all sampling.
    """

    checkpoint: str
    ranges: Sequence[Span]
    missing: Sequence[Span]
    image: float
    load: float = 0.0
    measure: float = 0.0
    timing: float = 0.0


class Simulated(NamedTuple):
    """What a simulated run takes.

    Attributes:
        workers: how many there are.
        seconds: from start to end.
        bound: what no schedule can fall below: every worker busy all the time, weights of each checkpoint loaded once,
            and no shard or measurement cut in two.
        loads: how often weights were loaded.
        least: how often they are in any schedule, for every worker and every checkpoint needs one load.
        loading: share of the workers' time that loads take.
        busy: share of the workers' time that is work, loads left out.
        timing: seconds of the whole that pass with timing, after all sampling.
    """

    workers: int
    seconds: float
    bound: float
    loads: int
    least: int
    loading: float
    busy: float
    timing: float

    @property
    def ratio(self) -> float:
        """The time over its lower bound, at least 1."""
        return self.seconds / self.bound if self.bound > 0 else 1.0


def simulate(
    jobs: Sequence[Job], workers: int, *, seed: int = 0, start: float = 0.0, proving: bool = False, abreast: bool = True
) -> Simulated:
    """Run `jobs` on `workers` simulated workers in the order of `bench.run.schedule.Schedule`.

    Args:
        jobs: the cells in the order of the plan.
        workers: each with an accelerator of its own.
        seed: of the stragglers and the spread of times; the same seed gives the same run.
        start: seconds until a worker has started and loaded the judges.
        proving: see `Schedule`.
        abreast: whether cells are timed on all workers at once, each on its own accelerator; else one after the other.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    jobs = list(jobs)
    slow = {
        id(job): np.exp(SPREAD * random.standard_normal(len(job.missing) + 1))
        * np.where(random.random(len(job.missing) + 1) < STRAGGLERS, SLOWDOWN, 1.0)
        for job in jobs
    }
    turn = {id(job): {span: index for index, span in enumerate(job.missing)} for job in jobs}

    def seconds(task: Start[Job]) -> float:
        job, span = task
        if span is None:
            return float(job.measure * slow[id(job)][-1])
        return float(job.image * (span[1] - span[0]) * slow[id(job)][turn[id(job)][span]])

    schedule = Schedule(jobs, workers, proving=proving)
    free = list(range(workers))
    loaded: list[str | None] = [None] * workers
    handed: deque[Start[Job]] = deque()
    ends: list[tuple[float, int, int, Start[Job]]] = []
    now, running, order, loads, work, loading, longest = start, 0, 0, 0, 0.0, 0.0, 0.0
    while True:
        while (task := schedule.next(running)) is not None:
            handed.append(task)
            running += 1
        while free and handed:
            worker, task = heapq.heappop(free), handed.popleft()
            took = seconds(task)
            work, longest = work + took, max(longest, took)
            if task.span is not None and loaded[worker] != task.item.checkpoint:
                loaded[worker] = task.item.checkpoint
                took += task.item.load
                loading += task.item.load
                loads += 1
            heapq.heappush(ends, (now + took, order, worker, task))
            order += 1
        if not ends:
            break
        now, _, worker, (job, span) = heapq.heappop(ends)
        heapq.heappush(free, worker)
        running -= 1
        if span is not None:
            schedule.sampled(job, span)
    sampled = now
    timed = 0.0
    ready = [(now, worker) for worker in range(workers if abreast else 1)]
    for job in jobs:
        at, worker = heapq.heappop(ready)
        again = loaded[worker] != job.checkpoint
        loaded[worker] = job.checkpoint
        heapq.heappush(ready, (at + again * job.load + job.timing, worker))
        timed, loads, longest = timed + job.timing, loads + again, max(longest, job.timing)
        loading += again * job.load
    end = max(at for at, _ in ready)
    checkpoints = {job.checkpoint: job.load for job in jobs}
    once = sum(checkpoints.values())
    bound = start + max((work + timed + once) / workers, longest)
    spent = workers * (end - start)
    least = max(len(checkpoints), min(workers, sum(len(job.missing) for job in jobs)))
    busy, weights = ((work + timed) / spent, loading / spent) if spent > 0 else (1.0, 0.0)
    return Simulated(workers, end, bound, loads, least, weights, busy, end - sampled)
