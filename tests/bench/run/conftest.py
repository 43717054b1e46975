"""What tests of runs on several machines share."""

import pytest

from protocols import find_protocol
from results.store import connect

NUMBERS = (
    "SELECT * EXCLUDE (judge_digest) FROM metrics ORDER BY ALL",
    "SELECT * FROM per_class ORDER BY ALL",
    "SELECT * FROM thumbnails ORDER BY ALL",
    "SELECT cell_id, status, reason, nfe, parameters, flops, substeps, pixels, command FROM cells ORDER BY ALL",
    "SELECT * FROM ranks ORDER BY ALL",
)


@pytest.fixture(scope="session")
def tables():
    """Return what the database in a runs directory says that is no time and no place."""

    def read(runs):
        with connect(runs / "bench.duckdb") as connection:
            return [connection.execute(query).fetchall() for query in NUMBERS]

    return read


@pytest.fixture
def gaussian(digits_request):
    """Make a request that takes next to no time: the analytic model, 200 samples in batches of 50."""

    def make(**changes):
        defaults = {"protocol": find_protocol("gaussian"), "models": ("gaussian",), "steps": (1, 2, 3)}
        return digits_request(**(defaults | changes))

    return make
