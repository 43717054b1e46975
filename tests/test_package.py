"""The wheel holds what runs, and nothing else at its top level."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = {"bench", "adapters", "protocols", "results", "report"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel's members with their sizes."""
    import shutil

    source = tmp_path_factory.mktemp("source") / "tree"
    ignored = shutil.ignore_patterns(".git", "runs", "__pycache__", "*.egg-info", "build", "tests", ".venv", "venv")
    shutil.copytree(ROOT, source, ignore=ignored)
    output = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, output, source], check=True, capture_output=True)
    with zipfile.ZipFile(next(output.glob("*.whl"))) as archive:
        return {info.filename: info.file_size for info in archive.infolist()}


def test_the_top_level_names_are_the_five_packages(wheel):
    assert {name.split("/")[0] for name in wheel if ".dist-info" not in name} == TOP


def test_every_data_file_of_the_tree_is_in_the_wheel(wheel):
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files", *sorted(TOP)], capture_output=True, text=True, check=True)
    assert set(tracked.stdout.split()) <= set(wheel)


def test_the_licence_and_the_marks_of_typed_packages_are_in_the_wheel(wheel):
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
    assert {f"{package}/py.typed" for package in TOP} <= set(wheel)
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_version_is_stated_once(wheel):
    import tomllib

    import bench

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" in project["dynamic"] and "version" not in project
    assert f"fewstep_bench-{bench.__version__}.dist-info/METADATA" in wheel
    assert f"## {bench.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_digits_weights_stay_small(wheel):
    weights = [size for name, size in wheel.items() if "digits" in name and name.endswith(".safetensors")]
    assert len(weights) == 24
    assert sum(weights) < 16e6


def test_recorded_cases_stay_small():
    size = sum(path.stat().st_size for path in (ROOT / "tests" / "golden").rglob("*") if path.is_file())
    assert size < 45e6


def test_the_lowest_and_the_tested_versions_name_every_package_of_the_tests():
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, named = project["optional-dependencies"], []
    for requirement in (needed := [*project["dependencies"], *extras["dev"]]):
        name, inner = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()
        needed += [one for extra in (inner or "").split(",") if extra for one in extras[extra]]
        named += [requirement] if name != project["name"] else []
    lowest = subprocess.run([sys.executable, ".ci/floors.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    tools = {re.match(r"[\w.-]+", requirement)[0] for requirement in extras["dev"]}
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in named}
    assert {line.partition("==")[0] for line in lowest.stdout.split()} == names - tools
    tested = re.findall(r"^([\w.-]+)==[\d.]+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert names <= set(tested)


def test_no_file_depends_on_the_machine_it_was_written_on():
    """Absolute paths of a home or a temporary directory, and addresses of package indexes, work for nobody else."""
    pattern = r"/(work|home|root)/[a-z]|/tmp/[a-z]|pypi\.org|file:///"
    command = ["git", "-C", ROOT, "grep", "-n", "-I", "-E", pattern, "--", ".", ":!tests/test_package.py"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == ""
