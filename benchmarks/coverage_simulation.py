"""Intervals of single values and of pairs, drawn where the truth is known: run as a script it prints three tables.

`python benchmarks/coverage_simulation.py [REPETITIONS]` (200 unless told) writes the tables of docs/statistics.md.
"""

import sys
from typing import NamedTuple

import numpy as np

from bench.metrics.frechet import FrechetReference, distances_to_sides, frechet_distance, sides_without_blocks
from bench.metrics.interactions import frechet_interactions
from bench.metrics.manifold import precision_recall_halves
from results.statistics import block_count, blocks_by_label, jackknife, paired_difference


class Regime(NamedTuple):
    """Samples of a model, and the reference that they are held against."""

    words: str
    dimension: int
    classes: int
    each: int
    """Samples a class."""
    blocks: int = 20
    kind: str = "normal"
    shift: float = 0.3
    spread: float = 1.2


REGIMES = (
    Regime("normal, d 16, N 1,000, no classes", 16, 1, 1000),
    Regime("10 classes, d 32, N 1,000", 32, 10, 100),
    Regime("10 classes, d 32, N 1,000, K 50", 32, 10, 100, 50),
    Regime("squared rectified normal, d 32, N 2,000", 32, 1, 2000, kind="relu"),
    Regime("Student's t of 5, d 32, N 1,000", 32, 1, 1000, kind="t5"),
    Regime("N/d 5 (160 in 32)", 32, 1, 160),
    Regime("N/d 2.5 (160 in 64)", 64, 1, 160),
    Regime("30 a class, K 20", 24, 20, 30),
    Regime("10 a class, K 20 wanted, 10 taken", 24, 40, 10),
    Regime("10 a class, K 50 wanted, 10 taken", 24, 40, 10, 50),
    Regime("50 a class, K 20", 32, 20, 50),
    Regime("model equals the data, d 16, N 1,000", 16, 1, 1000, shift=0.0, spread=1.0),
)
REFERENCES = (599, 2000, 10_000)


def draw(random, regime, centres, labels):
    """Return samples [N, d] of a regime."""
    noise = random.normal(size=(len(labels), regime.dimension))
    if regime.kind == "relu":
        noise = np.maximum(noise, 0.0) ** 2
    if regime.kind == "t5":
        noise = random.standard_t(5, size=noise.shape) * np.sqrt(0.6)
    return regime.shift + centres[labels] + regime.spread * noise


def truth(regime, centres):
    """Return the mean [d] and covariance [d, d] of a regime's samples."""
    mean = np.full(regime.dimension, regime.shift) + centres.mean(axis=0)
    between = (centres - centres.mean(axis=0)).T @ (centres - centres.mean(axis=0)) / len(centres)
    within = regime.spread**2
    if regime.kind == "relu":  # max(z, 0)^2 has mean 1/2 and variance 3/2 - 1/4
        mean, within = mean + regime.spread * 0.5, within * 1.25
    return mean, between + within * np.eye(regime.dimension)


class Single(NamedTuple):
    """What repetitions of a regime came to."""

    ratio: float
    """Mean standard error over the standard deviation of FID."""
    expected: float
    """Share of intervals of `fid` that hold its expectation at this N."""
    corrected: float
    """Share of intervals of `fid_corrected` that hold the distance of the distributions."""


def single(regime, repetitions, place=0, seed=0):
    """Return how FID's intervals do against an exact reference; `place` and `seed` set the draws."""
    random = np.random.default_rng([seed, place])
    centres = random.normal(size=(regime.classes, regime.dimension)) * (regime.classes > 1)
    labels = np.arange(regime.classes * regime.each) % regime.classes
    reference = FrechetReference(np.zeros(regime.dimension), np.eye(regime.dimension))
    true = frechet_distance(reference.mu, reference.sigma, *truth(regime, centres))
    blocks = blocks_by_label(labels, block_count(labels, regime.blocks))
    plain, less = [], []
    for _ in range(repetitions):
        images = draw(random, regime, centres, labels)
        row, pairs = reference.leave_one_out(images, blocks), frechet_interactions(reference, images, blocks)
        twice = 0.0 if pairs is None else pairs.counted_twice(len(row[1]), None)
        plain.append(jackknife(*row, twice=twice))
        less.append(jackknife(*row, "corrected", twice=twice))
    values = np.array([interval.value for interval in plain])
    return Single(
        float(np.mean([interval.standard_error for interval in plain]) / values.std(ddof=1)),
        float(np.mean([interval.low <= values.mean() <= interval.high for interval in plain])),
        float(np.mean([interval.low <= true <= interval.high for interval in less])),
    )


class Sampled(NamedTuple):
    """What repetitions with a reference of M images came to; two models are equally far from the data."""

    corrected: float
    """Mean corrected value."""
    ratio: float
    """Mean standard error over the standard deviation of the corrected value."""
    covered: float
    """Share of its intervals that hold the truth."""
    better: float
    """Share of repetitions in which one of two equally good models is said to be better."""


def sampled_reference(count, repetitions, *, dimension=48, n=2000, distance=0.1225, seed=0):
    """Return how the two-sample jackknife does where the reference's `count` images are drawn anew each time."""
    random = np.random.default_rng([seed, count])
    shift = np.zeros((2, dimension))
    shift[0, 0] = shift[1, 1] = np.sqrt(distance)
    own, blocks = (blocks_by_label(np.zeros(size, dtype=int), 20) for size in (n, count))
    found, better = [], 0
    for _ in range(repetitions):
        real, noise = random.normal(size=(count, dimension)), random.normal(size=(n, dimension))
        reference, sides = FrechetReference.of(real), sides_without_blocks(real, blocks)
        rows = [(*reference.leave_one_out(noise + s, own), distances_to_sides(noise + s, sides)) for s in shift]
        (a, left_a, reference_a), (b, left_b, reference_b) = rows
        pairs = frechet_interactions(reference, noise + shift[0], own, real, blocks)
        found.append(jackknife(a, left_a, "corrected", reference_a, pairs.counted_twice(20, 20)))
        better += paired_difference(a, left_a, b, left_b, reference_a, reference_b).sign != 0
    values = np.array([interval.corrected for interval in found])
    return Sampled(
        float(values.mean()),
        float(np.mean([interval.standard_error for interval in found]) / values.std(ddof=1)),
        float(np.mean([interval.low <= distance <= interval.high for interval in found])),
        better / repetitions,
    )


SHARES = ("precision", "recall", "density", "coverage")


class Sides(NamedTuple):
    """Samples of a model and images of a reference, both drawn anew each time."""

    words: str
    n: int = 400
    m: int = 400
    dimension: int = 8
    k: int = 3
    spread: float = 1.1
    shift: float = 0.0
    kind: str = "normal"
    blocks: int = 20


SIDES = (
    Sides("d 8, N 400, M 400, k 3"),
    Sides("d 8, N 400, M 400, k 5, less variety", k=5, spread=0.8),
    Sides("d 4, N 300, M 800, k 3, shifted", 300, 800, 4, shift=0.3),
    Sides("Student's t of 5, d 24, N 600, M 300, k 3", 600, 300, 24, spread=1.0, shift=0.2, kind="t5"),
    Sides("d 16, N 1,000, M 500, k 3, 10 blocks", 1000, 500, 16, blocks=10),
)


def shares(sides, repetitions, seed=0):
    """Return, of each of SHARES, the standard error over the standard deviation and the share of intervals that hold.

    What is held is the expectation at this size.
    """
    random = np.random.default_rng([seed, sides.n, sides.m, sides.dimension, sides.k])
    regime = Regime("", sides.dimension, 1, sides.n, kind=sides.kind, shift=sides.shift, spread=sides.spread)
    real_regime = regime._replace(shift=0.0, spread=1.0)
    labels, real_labels = np.zeros(sides.n, dtype=int), np.zeros(sides.m, dtype=int)
    centre = np.zeros((1, sides.dimension))
    blocks, real_blocks = (blocks_by_label(side, sides.blocks) for side in (labels, real_labels))
    drawn = []
    for _ in range(repetitions):
        images, real = draw(random, regime, centre, labels), draw(random, real_regime, centre, real_labels)
        drawn.append(precision_recall_halves(images, real, blocks, sides.k, real_blocks=real_blocks))
    found = {}
    for name in SHARES:
        intervals = [
            jackknife(*(getattr(row.whole, name), np.array([getattr(part, name) for part in row.without])),
                      reference=np.array([getattr(part, name) for part in row.without_real]))
            for row in drawn
        ]  # fmt: skip
        values = np.array([interval.value for interval in intervals])
        held = np.mean([interval.low <= values.mean() <= interval.high for interval in intervals])
        found[name] = float(np.mean([i.standard_error for i in intervals]) / values.std(ddof=1)), float(held)
    return found


def main():
    """Print the tables of docs/statistics.md."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print("| regime | SE/sd | `fid` holds its expectation | `fid_corrected` holds the truth |\n|---|---|---|---|")
    for place, regime in enumerate(REGIMES):
        found = single(regime, repetitions, place)
        held = f"{100 * found.expected:.1f} | {100 * found.corrected:.1f}"
        print(f"| {regime.words} | {found.ratio:.2f} | {held} |", flush=True)
    print('\n| reference images M | corrected (true 0.1225) | SE/sd | holds the truth | false "better" |')
    print("|---|---|---|---|---|")
    for count in REFERENCES:
        found = sampled_reference(count, repetitions)
        held = f"{100 * found.covered:.1f} | {100 * found.better:.1f}"
        print(f"| {count:,} | {found.corrected:.4f} | {found.ratio:.2f} | {held} |", flush=True)
    print(f"\n| regime | {' | '.join(SHARES)} |\n|---|---|---|---|---|")
    for sides in SIDES:
        cells = [f"{ratio:.2f}, {100 * held:.1f}" for ratio, held in shares(sides, repetitions).values()]
        print(f"| {sides.words} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
