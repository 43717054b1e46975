"""Names that rooms must agree on which may not import each other, and lists that may not be written twice."""

import ast
from pathlib import Path

import pytest

from bench.contracts import card
from bench.run.quantise import RULES
from bench.weights.formats import READERS
from protocols import tables
from protocols.labels import plan_labels
from results.catalog import CATALOG

ROOT = Path(__file__).parent.parent
SOURCES = [path for room in ("bench", "results", "report", "protocols") for path in sorted((ROOT / room).rglob("*.py"))]


def test_rooms_agree_on_the_names_that_files_may_hold():
    assert set(tables.SAMPLERS) == set(card.SAMPLERS)
    assert set(tables.QUANTISERS) == set(RULES)
    assert set(card.WEIGHT_FORMATS) == set(READERS)
    for plan in tables.LABEL_PLANS:
        assert len(plan_labels(plan, 4, 2, seed=0, reference=[0, 1])) == 4


def lists_of_metrics(path: Path) -> list[str]:
    """Every tuple, list, set or table that spells three metrics or more, by line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        words = {item.value.lower() for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)}
        if len(words & set(CATALOG)) >= 3:
            found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


REPLAYS = "bench/recordings/metrics.py"
"""Which upstream code a recorded case is compared with goes by the case's kind, not by the catalogue."""
GUIDED_AGAINST = "report/sections.py"
"""What guidance is traded against, in an order of preference that is the report's own."""


def test_no_room_lists_metrics_again():
    found = [place for path in SOURCES for place in lists_of_metrics(path)]
    assert {place.split(":")[0] for place in found} == {REPLAYS, GUIDED_AGAINST}, found


ONLY_THERE = {
    "difflib": {"results/errors.py"},
    "errno.ENOSPC": {"results/files.py"},
    "no space left on the device": {"results/files.py"},
    "os.replace": set(),
    "allow_nan=False": {"results/cells.py", "results/records.py"},
}


@pytest.mark.parametrize("what", ONLY_THERE)
def test_what_has_one_place_is_nowhere_else(what):
    assert {str(path.relative_to(ROOT)) for path in SOURCES if what in path.read_text(encoding="utf-8")} == ONLY_THERE[
        what
    ]
