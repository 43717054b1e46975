"""Fields of rows whose true order is known, drawn and judged: run as a script it prints the table of the documentation.

`python benchmarks/order_simulation.py [REPETITIONS]` (200 unless told) writes the rows of docs/statistics.md.
"""

import sys
from typing import NamedTuple

import numpy as np

from results.chances import chances_of_first
from results.rank_sets import rank_sets

SIZES = (2, 8, 44)
FIELDS = {
    "separated": "normal, spread 10",
    "close": "normal, spread 1",
    "nearly tied": "normal, spread 0.2",
    "tied": "all equal",
    "tied leaders": "5 equal leaders, the others 5 to 30 behind",
}
"""What the true scores are, in standard errors of a row."""
BINS = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


class Outcome(NamedTuple):
    """What came of a simulated field: shares of repetitions, and said and true chances of every row, [T, R]."""

    covered: float
    """All rank sets hold the true ranks."""
    first: float
    """The sets of all truly best rows begin at 1."""
    best: float
    """A truly best row is in the set of possible bests."""
    width: float
    """Mean number of ranks in a set."""
    said: np.ndarray
    true: np.ndarray


def true_scores(random, field, rows):
    """Return true scores of a field, [R]; a row's standard error is 1."""
    if field == "tied":
        return np.zeros(rows)
    if field == "tied leaders":
        leaders = min(5, rows)
        return np.concatenate([np.zeros(leaders), -random.uniform(5, 30, rows - leaders)])
    return random.normal(size=rows) * {"separated": 10, "close": 1, "nearly tied": 0.2}[field]


def observed(random, true, blocks=20, shared=0.0):
    """Return values [R] and leave-one-block-out values [R, K] of means whose errors have the correlation `shared`."""
    noise = np.sqrt(shared) * random.normal(size=(1, blocks)) + np.sqrt(1 - shared) * random.normal(
        size=(len(true), blocks)
    )
    noise *= np.sqrt(blocks)
    left = (noise.sum(axis=1, keepdims=True) - noise) / (blocks - 1)
    return true + noise.mean(axis=1), true[:, None] + left


def simulate(field, rows, repetitions, *, blocks=20, shared=0.0, seed=0):
    """Return the outcome of `repetitions` draws of a field and its samples."""
    random = np.random.default_rng([seed, rows, blocks, list(FIELDS).index(field)])
    held, said, chances = [], [], []
    for trial in range(repetitions):
        true = true_scores(random, field, rows)
        values, left = observed(random, true, blocks, shared)
        sets = rank_sets(values, left, "higher", seed=trial)
        ahead, behind = true > true[:, None], true < true[:, None]
        top = true == true.max()
        held.append(
            [
                ((sets.low <= 1 + ahead.sum(axis=1)) & (sets.high >= rows - behind.sum(axis=1))).all(),
                (sets.low[top] == 1).all(),
                sets.best[top].mean(),
                (sets.high - sets.low + 1).mean(),
            ]
        )
        said.append(chances_of_first(values, left, "higher", seed=trial, draws=1000))
        chances.append(top / top.sum())
    return Outcome(*np.mean(held, axis=0), np.array(said), np.array(chances))


def calibration(outcomes, fewest=30):
    """Return (said, true, count) of each bin of chances that holds at least `fewest` of them, over all `outcomes`."""
    said = np.concatenate([outcome.said.ravel() for outcome in outcomes])
    true = np.concatenate([outcome.true.ravel() for outcome in outcomes])
    place = np.clip(np.searchsorted(BINS, said, side="right") - 1, 0, len(BINS) - 2)
    found = []
    for index in range(len(BINS) - 1):
        here = place == index
        if here.sum() >= fewest:
            found.append((said[here].mean(), true[here].mean(), int(here.sum())))
    return found


def leader(outcome):
    """Return the mean chance said of the row thought likeliest, and how often it is truly the best."""
    place = outcome.said.argmax(axis=1)[:, None]
    return tuple(np.take_along_axis(array, place, axis=1).mean() for array in (outcome.said, outcome.true))


def main():
    """Print the table of docs/statistics.md."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    held = "all ranks covered | rank 1 of the best row covered | best row in its set"
    print(f"| rows | true scores | noise | {held} | ranks per set | leader: said / true |\n{8 * '|---'}|")
    for rows in SIZES:
        for shared in (0.0, 0.8):
            pooled = []
            for field, words in FIELDS.items():
                if field == "tied leaders" and rows == 2:
                    continue
                outcome = simulate(field, rows, repetitions, shared=shared)
                pooled.append(outcome)
                shares = " | ".join(f"{100 * share:.1f}" for share in outcome[:3])
                noise = "shared, 0.8" if shared else "independent"
                said, true = leader(outcome)
                print(f"| {rows} | {words} | {noise} | {shares} | {outcome.width:.1f} | {said:.2f} / {true:.2f} |")
            bins = ", ".join(f"{said:.2f}/{true:.2f}" for said, true, _ in calibration(pooled))
            print(f"| {rows} | chances said / true, all fields | {noise} | | | | | {bins} |", flush=True)


if __name__ == "__main__":
    main()
