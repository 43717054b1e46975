"""No input, however malformed or hostile, ends in a traceback, a wrong exit code, a hang, litter, or code that ran."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import Generator, commands

SEED, CASES = 1, 320
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def outcome():
    command = [sys.executable, HERE / "run.py", "--seed", str(SEED), "--cases", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_no_case_ends_in_what_should_not_be(outcome):
    assert outcome["cases"] == CASES
    assert outcome["failures"] == []


def test_the_cases_reach_refusals_and_successes(outcome):
    assert outcome["codes"]["2"] > CASES / 3
    assert outcome["codes"]["0"] > CASES / 10
    assert len(outcome["kinds"]) > 12


def test_every_command_is_tried():
    paths = {" ".join(path) for path, _ in commands()}
    assert {"run", "score", "reference build", "weights add", "adapter check", "merge", "remove", "parity"} <= paths


def test_a_case_is_a_function_of_seed_and_index(tmp_path):
    made = []
    for name in ("a", "b"):
        place = tmp_path / name
        place.mkdir()
        generators = [Generator(SEED, index, place, place) for index in range(40)]
        made.append([generator.rng.random() for generator in generators])
    assert made[0] == made[1] and len(set(made[0])) == 40
