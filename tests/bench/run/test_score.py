"""Images made elsewhere go through the same shards, arrays and record as a run's own."""

import pickle

import numpy as np
import pytest

import bench.run.score
from bench.references.stored import Reference
from bench.run.record import Context
from bench.run.score import score_images
from protocols import find_protocol
from results.cells import CellDirectory
from results.errors import BenchError


def archive(path, count, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8).repeat(3, axis=3)
    np.savez(path, arr_0=images, arr_1=np.arange(count) % 10)
    return path


def test_a_scored_row_keeps_its_arrays_whatever_the_batches(tmp_path, monkeypatch):
    source, runs, protocol = archive(tmp_path / "a.npz", 130), tmp_path / "runs", find_protocol("digits")
    cell_id = score_images(source, protocol, runs, name="a")
    first = {name: np.array(array) for name, array in CellDirectory(runs, cell_id).arrays().items()}
    assert first["inception.features"].shape[0] == first["clip.score"].shape[0] == 130
    assert not list(runs.glob("cells/scoring-*")) and not list(runs.glob("cells/*/shard-*"))
    monkeypatch.setattr(bench.run.score, "BATCH", 7)
    assert score_images(source, protocol, runs, name="a") == cell_id
    again = CellDirectory(runs, cell_id).arrays()
    assert all(np.allclose(again[name], first[name], rtol=1e-4, atol=1e-4) for name in first)


def test_a_source_that_breaks_off_leaves_no_directory(tmp_path):
    source = archive(tmp_path / "a.npz", 600)
    source.write_bytes(source.read_bytes()[:-40_000])
    with pytest.raises(BenchError):
        score_images(source, find_protocol("digits"), tmp_path / "runs", name="a")
    assert not list((tmp_path / "runs").glob("cells/*"))


def test_a_worker_keeps_the_reference_from_task_to_task(tmp_path):
    np.save(tmp_path / "features.npy", np.random.default_rng(0).standard_normal((30, 4)))
    reference = Reference("r", "digest", {"n": 30}, {"inception.features": tmp_path / "features"})
    context = Context(find_protocol("digits"), reference, {}, {}, "cpu")
    factor = context.reference_features()["inception.features"].frechet
    sent: Context = pickle.loads(pickle.dumps(context))
    assert sent.reference_features()["inception.features"].frechet is factor
