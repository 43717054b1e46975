"""A stored reference that is damaged is one line that names the file and what to do."""

import json

import numpy as np
import pytest

from bench.references import stored
from bench.references.stored import built_references, prepare_reference
from bench.run.worker import load_judges
from protocols import find_protocol
from results.errors import BenchError


@pytest.fixture
def reference(tmp_path):
    """The directory of the judged reference of protocol `gaussian`, and how to open it."""
    protocol = find_protocol("gaussian")
    judges = load_judges(protocol, "cpu")

    def features():
        return prepare_reference(protocol, judges, tmp_path).features()

    features()
    (directory,) = (tmp_path / "references").iterdir()
    return directory, features


FACTS = {
    "not JSON": "{",
    "a list": "[]",
    "deep": "[" * 100_000,
    "no n": '{"judges_digest": "x"}',
    "n a text": '{"n": "4"}',
}


@pytest.mark.parametrize("case", FACTS)
def test_damaged_facts_name_the_file(reference, case):
    directory, features = reference
    (directory / "facts.json").write_text(FACTS[case])
    with pytest.raises(
        BenchError, match=r"facts\.json: is damaged .*; remove .* which the next run creates again"
    ) as said:
        features()
    assert "\n" not in str(said.value)


def pickled(path):
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


ARRAYS = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "pickled": pickled,
    "of another shape": lambda path: np.save(path, np.ones((2, 2, 2))),
    "of texts": lambda path: np.save(path, np.array([["x"]])),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_damaged_arrays_name_the_file(reference, case):
    directory, features = reference
    path = directory / "inception.features.sigma.npy"
    ARRAYS[case](path)
    with pytest.raises(BenchError, match=r"inception\.features\.sigma\.npy: is damaged .*; remove ") as said:
        features()
    assert "allow_pickle" not in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize("facts", [[], {"name": "mine"}, {"n": True}])
def test_damaged_facts_of_a_built_reference_name_the_command(tmp_path, monkeypatch, facts):
    monkeypatch.setattr(stored, "references_directory", lambda: tmp_path)
    (tmp_path / "mine" / "0123").mkdir(parents=True)
    (tmp_path / "mine" / "0123" / "facts.json").write_text(json.dumps(facts))
    with pytest.raises(BenchError, match=r"facts\.json: is damaged .*: bench reference build mine --data DIR"):
        built_references("mine")


def test_a_full_device_is_named(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("1024 requested and 300 written")

    monkeypatch.setattr(np, "save", full)
    protocol = find_protocol("gaussian")
    with pytest.raises(BenchError, match="no space left on the device"):
        prepare_reference(protocol, load_judges(protocol, "cpu"), tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
