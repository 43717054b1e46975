import json
import os

import numpy as np
import pytest

from bench.references.copies import pull_reference, push_reference
from bench.references.stored import built_references, references_directory
from results.errors import BenchError
from results.remote import Storage, read_manifest

pytest.importorskip("fsspec")
FACTS = {
    "name": "mine", "kind": "folder", "n": 3, "resize": "none", "resolution": 8, "data": "d", "digest": "a" * 64,
    "judge": "inception", "judge_digest": "j", "outputs": ["features"], "labels": None,
}  # fmt: skip


@pytest.fixture
def built(cache):
    directory = references_directory() / "mine" / ("a" * 20)
    directory.mkdir(parents=True)
    np.save(directory / "features.npy", np.arange(6.0).reshape(3, 2))
    (directory / "facts.json").write_text(json.dumps(FACTS))
    return directory


def test_a_reference_that_somebody_built_is_found_by_others(built, monkeypatch, tmp_path):
    url = f"memory://{os.urandom(4).hex()}"
    assert [count for _, count in push_reference("mine", url)] == [2]
    assert [count for _, count in push_reference("mine", url)] == [0]
    monkeypatch.setenv("BENCH_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert not built_references("mine")
    assert [count for _, count in pull_reference("mine", url)] == [2]
    (found,) = built_references("mine")
    assert dict(found.facts) == FACTS
    assert np.array_equal(np.load(found.directory / "features.npy"), np.arange(6.0).reshape(3, 2))
    assert [count for _, count in pull_reference("mine", url)] == [0]


def test_a_copy_that_was_altered_or_is_none_leaves_no_reference(built, monkeypatch, tmp_path):
    url = f"memory://{os.urandom(4).hex()}"
    push_reference("mine", url)
    folder = Storage(url) / "mine" / ("a" * 20)
    (folder / read_manifest(folder)["features.npy"].sha256).write(b"other")
    monkeypatch.setenv("BENCH_CACHE_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(BenchError, match="digest"):
        pull_reference("mine", url)
    with pytest.raises(BenchError, match="no copy of this reference"):
        pull_reference("other", url)
    with pytest.raises(BenchError, match="not built here"):
        push_reference("mine", url)
    with pytest.raises(BenchError, match="no name"):
        pull_reference("../mine", url)
    assert not built_references("mine")
