"""The whole pipeline against closed forms: noise, sampler, hooks, quantiser, judge, shards, metrics, store."""

import numpy as np
import pytest

from adapters.gaussian import closed_form_fid, moments
from bench.cells import CellDirectory
from bench.metrics.frechet import frechet_distance
from bench.noise import PhiloxNoise
from bench.plan import Request
from bench.runner import run
from protocols import find_protocol
from protocols.gaussian import DEVIATION, DIMENSIONS, OFFSET, exact_statistics
from results.leaderboard import rows
from results.store import connect


@pytest.fixture(scope="module")
def measured(tmp_path_factory, quiet):
    """The protocol as shipped, measured once: its runs directory and rows by (steps, cfg)."""
    runs = tmp_path_factory.mktemp("analytic")
    summary = run(Request(find_protocol("gaussian")), runs, progress=quiet(), workers=1)
    with connect(summary.database) as connection:
        return runs, {(row.cell["steps"], row.cell["cfg"]): row for row in rows(connection)}


def settings():
    return [(steps, cfg) for steps in (1, 2, 4, 8) for cfg in (1.0, 1.5)]


@pytest.mark.parametrize(("steps", "cfg"), settings())
def test_evaluations_are_what_the_algebra_says(measured, steps, cfg):
    assert measured[1][steps, cfg].cell["nfe"] == steps * (2 if cfg != 1.0 else 1)


@pytest.mark.parametrize(("steps", "cfg"), settings())
def test_fid_agrees_with_an_independent_computation_to_machine_precision(measured, steps, cfg):
    row = measured[1][steps, cfg]
    n = row.cell["num_samples"]
    noise = PhiloxNoise(1, range(n)).normal((DIMENSIONS,)).double().numpy()
    mean, rho = moments(steps, cfg, DEVIATION, OFFSET)
    sign = np.where(np.arange(n) % 2 == 0, -1.0, 1.0)[:, None]
    features = sign * mean * DIMENSIONS**-0.5 + rho * noise
    stored = CellDirectory(measured[0], row.cell["cell_id"]).arrays()["inception.features"].astype(np.float64)
    assert np.abs(stored - features).max() <= 0.5 / 127.5 + 1e-5
    exact = exact_statistics()
    by_hand = frechet_distance(stored.mean(0), np.cov(stored, rowvar=False), exact.mu, exact.sigma)
    assert row.metrics["fid"].value == pytest.approx(by_hand, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("steps", "cfg"), settings())
def test_the_corrected_fid_covers_the_closed_form(measured, steps, cfg):
    value = measured[1][steps, cfg].metrics["fid_corrected"]
    exact = closed_form_fid(steps, cfg, DEVIATION, OFFSET, DIMENSIONS)
    rounding = 1e-4
    assert value.low - rounding <= exact <= value.high + rounding


def test_more_steps_come_closer_and_guidance_overshoots():
    fids = [closed_form_fid(steps, 1.0, DEVIATION, OFFSET, DIMENSIONS) for steps in (1, 2, 4, 8, 256)]
    assert fids == sorted(fids, reverse=True) and fids[-1] < 1e-3
    assert moments(512, 1.5, DEVIATION, OFFSET)[0] > OFFSET
