"""The script that makes the coverage tables of the documentation runs, and finds intervals right at a small size."""

import runpy
import sys
from pathlib import Path

SCRIPT = str(Path(__file__).parents[3] / "benchmarks" / "coverage_simulation.py")


def test_the_tables_of_the_documentation_are_made(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [SCRIPT, "2"])
    script = runpy.run_path(SCRIPT)
    small = script["REGIMES"][0]
    script["main"].__globals__.update(REGIMES=(small,), REFERENCES=(599,), SIDES=(script["SIDES"][0],))
    script["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"| {small.words} |") for line in lines) == 1
    assert any(line.startswith("| 599 | 0.") for line in lines)
    assert lines[-3] == "| regime | precision | recall | density | coverage |"
    assert lines[-1].startswith(f"| {script['SIDES'][0].words} | ")


def test_a_perfect_models_interval_is_neither_wide_nor_narrow():
    script = runpy.run_path(SCRIPT)
    found = script["single"](script["REGIMES"][-1]._replace(each=400, dimension=8), 120, place=0)
    assert 0.85 <= found.ratio <= 1.2 and found.corrected >= 0.9


def test_intervals_of_shares_are_neither_wide_nor_narrow():
    script = runpy.run_path(SCRIPT)
    small = script["SIDES"][0]._replace(n=120, m=160, dimension=4)
    for ratio, held in script["shares"](small, 120, seed=5).values():
        assert 0.82 <= ratio <= 1.28 and held >= 0.88
