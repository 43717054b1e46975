"""docs/architecture.md says what the import rules say, and each rule can fail."""

import re
import shutil
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("bench", "adapters", "protocols", "results", "report")
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
CONTRACTS = {contract["name"]: contract for contract in LINTER["contracts"]}
FLOORS = [floor.split(" | ") for floor in CONTRACTS["the floors of the harness"]["layers"]]
ROOMS = [f"bench.{room}" for floor in FLOORS for room in floor] + [name for name in PACKAGES if name != "bench"]


def within(module, package):
    return module == package or module.startswith(package + ".")


def exceptions(contract, room, other):
    """What of `other` a forbidden contract leaves open to every module of `room`."""
    for arrow in contract.get("ignore_imports", []):
        importer, imported = (side.removesuffix(".**") for side in arrow.split(" -> "))
        if within(room, importer) and within(imported, other):
            yield imported


def allowed(room):
    """What the contracts let a room import: whole rooms, or modules of one."""
    found = set()
    for other in set(ROOMS) - {room}:
        if room.startswith("bench.") and other.startswith("bench."):
            floor, below = (next(i for i, names in enumerate(FLOORS) if x[6:] in names) for x in (room, other))
            if floor >= below:
                continue
        forbidding = [
            contract
            for contract in CONTRACTS.values()
            if contract["type"] == "forbidden"
            and any(within(room, source) for source in contract["source_modules"])
            and any(within(other, target) for target in contract["forbidden_modules"])
        ]
        open_parts = [set(exceptions(contract, room, other)) for contract in forbidding]
        found |= set.intersection(*open_parts) if open_parts else {other}
    return found


def test_the_table_of_rooms_is_that_of_the_contracts():
    rows = re.findall(r"^\| `([\w.]+)/?` \|[^|]*\|([^|]*)\|$", PAGE, re.M)
    stated = {room: set(re.findall(r"`([\w.]+)`", cell)) for room, cell in rows}
    assert stated == {room: allowed(room) for room in ROOMS}


def test_the_picture_shows_the_floors_from_top_to_bottom():
    picture = re.search(r"```text\n(.*?)```", PAGE, re.S)[1]
    drawn = [re.findall(r"bench\.(\w+)", line) for line in picture.splitlines() if "bench." in line]
    assert drawn == FLOORS


def test_every_place_that_the_page_names_exists():
    for name in re.findall(r"`((?:bench|adapters|protocols|results|report|tests|docs)/[\w./*-]*)`", PAGE):
        assert list(ROOT.glob(name.rstrip("/"))), name


BREAKS = {
    "the floors of the harness": ("bench/metrics/kernel.py", "bench.cli"),
    "the harness knows no family and no report but through its command line": ("bench/run/plan.py", "adapters.sit"),
    "contracts import errors, files and licences only": ("bench/contracts/noise.py", "results.store"),
    "weights and models know no protocol": ("bench/weights/cache.py", "protocols.labels"),
    "metrics import the catalogue, statistics and errors only": ("bench/metrics/frechet.py", "results.store"),
    "adapters import contracts and errors only": ("adapters/dmd.py", "bench.run.runner"),
    "results stand alone": ("results/store.py", "protocols.schema"),
    "the report reads results only": ("report/text.py", "bench.contracts.card"),
    "protocols import errors, digests, documents and the catalogue only": (
        "protocols/labels.py",
        "results.ranking",
    ),
}


@pytest.fixture(scope="module")
def complaints(tmp_path_factory):
    """What the linter says of a copy of the tree in which every contract is broken once, by contract."""
    copy = tmp_path_factory.mktemp("broken")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for file, module in BREAKS.values():
        with (copy / file).open("a", encoding="utf-8") as source:
            source.write(f"\n\ndef _later():\n    import {module}\n")
    (copy / "bench" / "attic").mkdir()
    (copy / "bench" / "attic" / "__init__.py").touch()
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    sections = re.split(r"^(.+)\n-+\n", done.stdout.partition("Broken contracts\n")[2], flags=re.M)
    return {name.strip(): text for name, text in zip(sections[1::2], sections[2::2], strict=True)}


def test_every_contract_has_its_break():
    assert BREAKS.keys() == CONTRACTS.keys()


@pytest.mark.parametrize("contract", BREAKS)
def test_a_forbidden_import_is_found(complaints, contract):
    file, module = BREAKS[contract]
    importer = file.removesuffix(".py").replace("/", ".")
    assert re.search(rf"{re.escape(importer)} -> {re.escape(module)}\b", complaints[contract])


def test_a_room_that_no_floor_lists_is_found(complaints):
    assert (
        "bench.attic" in complaints["the floors of the harness"] or "attic" in complaints["the floors of the harness"]
    )


def test_no_file_imports_itself_by_way_of_others():
    """Also by an import within a function or for types alone: a file that is read needs no file that needs it."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()
