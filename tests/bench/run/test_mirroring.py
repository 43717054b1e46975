import os
import warnings

import pytest

from bench.run.gathering import find_shares, finish, gathered
from bench.run.mirroring import Mirror
from bench.run.runner import run
from bench.run.shares import Share, run_share
from results.errors import BenchError
from results.mirror import local_copies
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
        "the network is gone; the run continues and uploads at its end"
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


def test_shares_are_copied_and_put_together_from_the_copy(gaussian, quiet, tmp_path, tables, monkeypatch):
    """One share is sampled in two goes on two machines; none of the directories is there when they are merged."""
    monkeypatch.setattr("bench.run.shard.SHARD_SAMPLES", 50)
    url, request = f"memory://{os.urandom(4).hex()}", gaussian()
    run(request, tmp_path / "one", progress=quiet(), workers=1)

    def sample(place, number, progress):
        mirror = Mirror(url, tmp_path / place)
        mirror.check()
        way = {"progress": mirror.around(progress), "mirror": mirror, "workers": 1}
        try:
            return run_share(request, tmp_path / place, Share(number, 2), **way)
        finally:
            mirror.finish()

    sample("a", 1, quiet())
    with pytest.raises(KeyboardInterrupt):
        sample("b", 2, quiet(stop_after=2))
    with local_copies([url], 1000) as sources, pytest.raises(BenchError, match="share 2/2 was interrupted"):
        gathered(find_shares(sources), sources)
    done = sample("c", 2, quiet())
    assert done.kept == 2 <= done.shards
    with local_copies([url], 1000) as sources:
        (plan,) = gathered(find_shares(sources), sources)
        finish(plan, tmp_path / "all", progress=quiet(), workers=1)
    assert tables(tmp_path / "all") == tables(tmp_path / "one")
