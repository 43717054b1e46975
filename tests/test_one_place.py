"""Names that rooms must agree on which may not import each other, and lists that may not be written twice."""

import ast
import tomllib
from collections import defaultdict
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
    assert set(card.WEIGHT_FORMATS) == {*READERS, "diffusers"}  # the folder of a pipeline is read by its adapter
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


POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
KNOWN_BY_NAME = {
    "fid": "what rows are sorted by where there is no MMHM, and what embedded networks measure themselves with",
    "fid_corrected": "what pairs of rows are compared by where the bias decides their order",
    "is": "has a keyword's name in published tables",
    "clip": "also what is done with values beyond bounds, and a judge of the embedded protocol",
    "kid": "what the embedded networks measure themselves with",
    "precision": "also how exactly a judge computes",
    "recall": "what guidance is traded against",
    "accuracy": "what guidance is traded against",
    "torch-fidelity": "the one network whose statistics others publish, and a package in provenance",
    "classifier": "also an ordinary word",
    "folder": "also an ordinary word",
    "local": "the default",
}
"""Names that code beside a plug-in's own module knows, and why; no new metric, judge, data set or executor is one."""


def test_a_plug_in_is_known_to_its_own_module_and_the_catalogue_alone():
    places = defaultdict(set)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                places[node.value].add(str(path.relative_to(ROOT)))
    homes = defaultdict(lambda: {"results/catalog.py"})
    for group in ("metrics", "judges", "datasets", "executors"):
        for name, value in POINTS[f"bench.{group}"].items():
            homes[name].add(value.split(":")[0].replace(".", "/") + ".py")
    elsewhere = {
        name: {place for place in places[name] - home if not place.startswith("bench/recordings/")}
        for name, home in homes.items()
    }
    assert {name for name, found in elsewhere.items() if found} == set(KNOWN_BY_NAME)


ONLY_THERE = {
    "difflib": {"results/errors.py"},
    "errno.ENOSPC": {"results/files.py"},
    "no space left on the device": {"results/files.py"},
    "os.replace": set(),
    "allow_nan=False": {"results/bundles.py", "results/cells.py", "results/records.py"},
}


@pytest.mark.parametrize("what", ONLY_THERE)
def test_what_has_one_place_is_nowhere_else(what):
    assert {str(path.relative_to(ROOT)) for path in SOURCES if what in path.read_text(encoding="utf-8")} == ONLY_THERE[
        what
    ]
