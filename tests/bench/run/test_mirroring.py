import os
import warnings

import pytest

from bench.run.mirroring import Mirror
from results.errors import BenchError
from results.remote import Storage, read_manifest

pytest.importorskip("fsspec")


def test_another_machine_goes_on_where_this_one_was_stopped(measure, quiet, tmp_path):
    url = f"memory://{os.urandom(4).hex()}"
    here = Mirror(url, tmp_path / "here")
    assert here.fetch() == 0
    settings = {"num_samples": 1500}
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "here", progress=here.around(quiet(stop_after=2)), **settings)
    there, shown = Mirror(url, tmp_path / "there"), quiet()
    assert there.fetch() == 1
    (cell,) = measure(tmp_path / "there", progress=there.around(shown), **settings).measured
    assert shown.planned == (1, 0, 1000)  # the first of three shards came from the copy
    there.finish()
    assert "result.json" in read_manifest(Storage(url) / "cells" / cell.cell_id)
    third = Mirror(url, tmp_path / "third")
    assert third.fetch() == 1
    assert len(measure(tmp_path / "third", progress=third.around(quiet()), **settings).reused) == 1


def test_a_storage_that_fails_warns_once_and_is_tried_again_at_the_end(measure, quiet, tmp_path, monkeypatch):
    mirror = Mirror(f"memory://{os.urandom(4).hex()}", tmp_path / "runs")
    mirror.fetch()

    def gone(self, path):
        raise BenchError("the network is gone")

    monkeypatch.setattr(Storage, "upload", gone)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        summary = measure(tmp_path / "runs", progress=mirror.around(quiet()), num_samples=600)
    assert len(summary.measured) == 1
    assert [str(line.message) for line in told if "network" in str(line.message)] == [
        "the network is gone; the run goes on and uploads at its end"
    ]
    with pytest.raises(BenchError, match="the same command uploads it"):
        mirror.finish()
    monkeypatch.undo()
    again = Mirror(mirror.storage.url, tmp_path / "runs")  # the same command
    reused = measure(tmp_path / "runs", progress=again.around(quiet()), num_samples=600).reused
    again.finish(reused)
    assert read_manifest(mirror.storage / "cells" / summary.measured[0].cell_id)
    monkeypatch.setattr(Storage, "upload", gone)
    again.finish(reused)  # all of it is there
