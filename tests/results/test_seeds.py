"""A setting on several seeds: its mean, best and spread, and whether the seeds differ as the jackknife expects."""

import json

import numpy as np
import pytest

from bench.cli import main
from bench.run.plan import make_plan
from results.claims import published_claims
from results.rows import Row, Value
from results.seeds import over_seeds, repeated

CELL = {
    "protocol": "p", "measurement": "x", "num_samples": 100, "model": "m", "checkpoint": "m", "steps": 1, "cfg": 1.0,
    "sampler": "native", "settings": {}, "dtype": "float32", "weights_sha256": None, "random_weights": False,
}  # fmt: skip


def row(seed, metrics, **changes):
    values = {
        name: Value(float(noise.mean()), n=100, jackknife=tuple((noise.sum() - noise) / (len(noise) - 1)))
        for name, noise in metrics.items()
    }
    return Row(CELL | {"seed": seed} | changes, values)


def drawn(random, seeds=3, extra=0.0, blocks=20, metrics=("fid", "is", "kid", "precision")):
    """Rows whose metrics are means of `blocks` normal numbers, and vary by `extra` standard errors between seeds."""
    noise = np.sqrt(blocks)
    return [
        row(seed, {name: random.normal(size=blocks) * noise + extra * random.normal() for name in metrics})
        for seed in range(seeds)
    ]


def test_mean_best_and_spreads_are_those_of_the_values():
    rows = drawn(np.random.default_rng(0))
    found = over_seeds(rows)["fid"]
    values = [r.metrics["fid"].value for r in rows]
    assert (found.mean, found.best, found.seeds) == (pytest.approx(np.mean(values)), min(values), (0, 1, 2))
    assert found.spread == pytest.approx(np.std(values, ddof=1))
    errors = [np.std(r.metrics["fid"].jackknife, ddof=1) * 19 / np.sqrt(20) for r in rows]
    assert found.expected == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert found.low < found.mean < found.high
    assert over_seeds(rows)["is"].best == max(r.metrics["is"].value for r in rows)


def test_interval_of_the_mean_covers_and_alarms_are_rare():
    random = np.random.default_rng(1)
    found = [over_seeds(drawn(random, seeds)) for seeds in (2, 3, 5) for _ in range(150)]
    covered = np.mean([over.low <= 0 <= over.high for metrics in found for over in metrics.values()])
    alarms = np.mean([any(over.disagree for over in metrics.values()) for metrics in found])
    assert 0.93 <= covered <= 0.97 and alarms <= 0.025


def test_seeds_that_differ_by_more_than_expected_are_found():
    random = np.random.default_rng(2)
    found = [over_seeds(drawn(random, 4, extra=8.0))["fid"].disagree for _ in range(50)]
    assert np.mean([verdict == "more" for verdict in found]) > 0.9
    steady = [row(seed, {"fid": np.arange(20.0) - 9.5 + 1e-6 * seed}) for seed in range(6)]
    assert over_seeds(steady)["fid"].disagree == "less"


def test_what_all_seeds_share_of_the_reference_widens_the_mean_but_not_the_expected_spread():
    rows = drawn(np.random.default_rng(3), metrics=("fid",))
    left = tuple(np.random.default_rng(4).normal(size=10))
    wide = [Row(r.cell, {"fid": Value(r.metrics["fid"].value, jackknife=r.metrics["fid"].jackknife,
                                      jackknife_reference=left)}) for r in rows]  # fmt: skip
    narrow, broad = over_seeds(rows)["fid"], over_seeds(wide)["fid"]
    assert broad.expected == narrow.expected and broad.high - broad.low > 2 * (narrow.high - narrow.low)


def test_too_few_blocks_withhold_the_statement_and_keep_the_values():
    found = over_seeds(drawn(np.random.default_rng(5), blocks=4))["fid"]
    assert (found.low, found.high, found.expected, found.disagree) == (None,) * 4 and found.spread > 0


def test_only_rows_of_one_setting_belong_together():
    rows = drawn(np.random.default_rng(6))
    other = row(9, {"fid": np.arange(20.0)}, steps=2)
    scored = [row(seed, {"fid": np.arange(20.0)}, steps=None) for seed in (1, 2)]
    (setting,) = repeated([*rows, other, *scored, row(3, {"fid": np.arange(20.0)}, random_weights=True)])
    assert [r.cell["seed"] for r in setting.rows] == [0, 1, 2]


def test_the_leaderboard_shows_the_seeds_of_what_it_shows(synthetic, capsys):
    database = synthetic()
    noise = np.random.default_rng(7).normal(size=20)
    for seed, value in ((0, 3.0), (1, 3.1), (2, 9.0)):
        database.add("one", {"fid": value}, {"fid": value + 0.01 * noise}, seed=seed, ranking=f"k{seed}")
        database.add("two", {"fid": 5.0 + value}, {"fid": 5.0 + value + noise}, seed=seed, ranking=f"k{seed}")
    runs = str(database.write().parent)
    with pytest.raises(SystemExit):
        main(["leaderboard", "--runs-dir", runs])
    out = capsys.readouterr().out
    assert "Over several seeds:" in out and "fid (more)" in out and "0,1,2" in out
    with pytest.raises(SystemExit):
        main(["leaderboard", "--json", "--runs-dir", runs])
    first = json.loads(capsys.readouterr().out)[0]
    assert first["over_seeds"]["fid"]["best"] == 3.0 and first["over_seeds"]["fid"]["disagree"] == "more"


def test_a_published_best_of_three_is_held_against_the_best_of_three_seeds(synthetic):
    card = "edm-cifar10-cond-vp"
    database = synthetic(num_samples=50_000)
    for seed, value in ((0, 1.9), (1, 1.8), (2, 1.85), (3, 1.7)):
        database.add(card, {"fid": value}, steps=18, seed=seed, ranking=f"k{seed}")
    path = database.write()
    (claim,) = published_claims(path, card).claims
    assert (claim.published, claim.best_of, claim.measured) == (1.79, 3, 1.8)  # of seeds 0 to 2: three, not four
    assert not any("best of" in line for line in claim.not_comparable)
    (claim,) = published_claims(path, card, seed=3).claims
    assert any("published is the best of 3 runs, measured is 1" in line for line in claim.not_comparable)


def test_every_cell_is_planned_on_every_seed(digits_request):
    cells = make_plan(digits_request(steps=(1, 2), seeds=(0, 5), select_on=7), "")
    assert sorted((cell.steps, cell.seed, cell.selection) for cell in cells) == [
        (1, 0, False), (1, 5, False), (1, 7, True), (2, 0, False), (2, 5, False), (2, 7, True),
    ]  # fmt: skip
    one = {cell.cell_id for cell in make_plan(digits_request(steps=(1, 2), seed=5), "")}
    assert one <= {cell.cell_id for cell in cells}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--seed", "1", "--seeds", "1,2"], "--seed measures one seed, --seeds several: use one of the two"),
        (["--seeds", "a"], "--seeds: 'a' is not an integer"),
        (["--seeds", ","], "--seeds: the list is empty"),
        (["--seeds", "-1"], "--seeds: '-1' is not an integer"),
        (["--seeds", "1,2", "--select-on", "2"], "--select-on: 2 is a seed that results are reported on"),
    ],
)
def test_seeds_that_cannot_be_are_refused_in_one_line(words, reason, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["run", "--model", "digits-dmd", "--runs-dir", str(tmp_path / "runs"), *words])
    assert stop.value.code == 2 and reason in capsys.readouterr().err
