"""Rows of the database as tests invent them, and runs directories that hold some."""

import numpy as np
import pytest

from results.cells import CellDirectory
from results.index import reindex
from results.store import connect, write_cell


def cell_row(cell_id, **changes):
    row = {
        "cell_id": cell_id, "run_id": "r", "model": "m", "checkpoint": "m", "family": "f", "protocol": "digits",
        "protocol_digest": "d", "ranking": "k", "status": "done", "reason": None, "steps": 4, "cfg": 1.0,
        "sampler": "native", "settings": {}, "options": {}, "dtype": "float32", "seed": 0, "num_samples": 100,
        "batch_size": 10, "off_regime": False, "random_weights": False, "weights_sha256": None, "nfe": 4.0,
        "failures": 0, "device": "cpu", "latent_shape": "1x8x8", "command": "bench run", "started": "2026-01-01",
        "finished": "2026-01-01",
    }  # fmt: skip
    return row | changes


def metric_row(name, value):
    return {
        "metric": name, "value": value, "low": value - 1, "high": value + 1, "standard_error": 0.5, "corrected": value,
        "n": 100, "method": "x", "judge": "j", "judge_digest": "", "reference": None, "reference_digest": None,
        "jackknife": [value, value],
    }  # fmt: skip


@pytest.fixture(scope="session")
def cell():
    """Make a row of table `cells`."""
    return cell_row


@pytest.fixture(scope="session")
def metric():
    """Make a row of table `metrics`."""
    return metric_row


@pytest.fixture(scope="session")
def record():
    """Make the record of a cell with one metric."""

    def make(cell_id, value=3.0, **changes):
        return {"cell": cell_row(cell_id, **changes), "metrics": [metric_row("fid", value)]}

    return make


@pytest.fixture(scope="session")
def runs_with(record):
    """Make a runs directory of finished cells, with scores of images."""

    def make(path, *names, database=True):
        for directory in (CellDirectory(path, name) for name in names):
            directory.write_result(record(directory.path.name))
            np.save(directory.path / "pick.score.npy", np.arange(4.0))
        if database:
            reindex(path)
        return path

    return make


@pytest.fixture(scope="session")
def only_rows(record):
    """Make a database of rows without directories."""

    def make(path, *names):
        path.parent.mkdir(parents=True, exist_ok=True)
        with connect(path, write=True) as connection:
            for name in names:
                write_cell(connection, record(name))
        return path

    return make


@pytest.fixture(scope="session")
def cells():
    """Return the ids of the rows of a runs directory's database."""

    def read(runs):
        with connect(runs / "bench.duckdb") as connection:
            return [name for (name,) in connection.execute("SELECT cell_id FROM cells ORDER BY cell_id").fetchall()]

    return read
