"""The whole pipeline against closed forms: noise, sampler, hooks, quantiser, judge, shards, metrics, store."""

import numpy as np
import pytest

from adapters.gaussian import fid_of, moments
from bench.contracts.noise import PhiloxNoise
from bench.metrics.frechet import frechet_distance
from bench.run.plan import Request
from bench.run.runner import run
from protocols import find_protocol
from protocols.gaussian import DEVIATION, DIMENSIONS, OFFSET, exact_statistics
from results.cells import CellDirectory
from results.leaderboard import rows
from results.store import connect

STEP = 2 / 255
"""Distance of two grey levels in [-1, 1]."""


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
    # One step ends in two points: of a covariance of rank one the roots of rounding errors remain.
    precision = 1e-9 if steps > 1 else 1e-7
    assert row.metrics["fid"].value == pytest.approx(by_hand, rel=precision)


def on_grey_levels(mean, rho):
    """Return the moments after rounding to 256 levels: Sheppard's correction, or the rounded point itself."""
    if rho > STEP:
        return mean, (rho**2 + STEP**2 / 12) ** 0.5
    root = DIMENSIONS**0.5
    return float(np.floor((mean / root + 1) / STEP + 0.5) * STEP - 1) * root, rho


@pytest.mark.parametrize(("steps", "cfg"), settings())
def test_the_corrected_fid_covers_the_closed_form(measured, steps, cfg):
    value = measured[1][steps, cfg].metrics["fid_corrected"]
    mean, rho = on_grey_levels(*moments(steps, cfg, DEVIATION, OFFSET))
    exact = fid_of(mean, rho, DEVIATION, OFFSET, DIMENSIONS)
    if value.low is None:  # one step ends in two points: no block moves the value, which says no more than itself
        assert steps == 1 and value.value == pytest.approx(exact, abs=1e-6)
    else:
        assert value.low - 1e-6 <= exact <= value.high + 1e-6


def test_more_steps_come_closer_and_guidance_overshoots():
    fids = [
        fid_of(*moments(steps, 1.0, DEVIATION, OFFSET), DEVIATION, OFFSET, DIMENSIONS) for steps in (1, 2, 4, 8, 256)
    ]
    assert fids == sorted(fids, reverse=True) and fids[-1] < 1e-3
    assert moments(512, 1.5, DEVIATION, OFFSET)[0] > OFFSET
