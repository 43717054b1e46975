"""Shares of a run, sampled by separate processes and put together, are the run of one process."""

import multiprocessing
import os
import re
import shutil
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest

from bench.contracts.adapter import Adapter
from bench.models.loading import build_adapter
from bench.run.executors import Processes
from bench.run.gathering import find_shares, finish, gathered
from bench.run.runner import run
from bench.run.shares import PlannedCell, Share, assigned, run_share
from results.cells import share_files
from results.errors import BenchError, BenchWarning


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("bench.run.shard.SHARD_SAMPLES", 50)


def merged(runs, *sources, progress, allow_mixed=False):
    plans = gathered(find_shares(sources), [runs, *sources], allow_mixed=allow_mixed)
    return [finish(plan, runs, progress=progress, workers=1, allow_mixed=allow_mixed) for plan in plans]


@pytest.fixture
def loads(tmp_path, monkeypatch):
    """Count what this process and those forked from it load from now on, by process and checkpoint."""
    log = tmp_path / "loads"

    def counted(card, **how):
        with log.open("a") as lines:
            print(os.getpid(), card.name, file=lines)
        return build_adapter(card, **how)

    monkeypatch.setattr("bench.run.worker.build_adapter", counted)
    monkeypatch.setattr("bench.run.worker._adapters", {})
    return lambda: Counter(tuple(line.split()) for line in log.read_text().splitlines())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to be fast")
def test_a_worker_loads_each_checkpoint_once(digits_request, tmp_path, quiet, loads, monkeypatch):
    request = digits_request(models=("digits-flow-small", "digits-flow"), steps=(1, 2), num_samples=100)
    monkeypatch.setattr("bench.run.timing.LEAST_SECONDS", 0.0)
    forked = partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("fork"))
    monkeypatch.setattr(Processes, "_open", lambda self: forked(self.workers))
    sampled = []

    class Noting(quiet):
        def shard(self, *words):
            sampled.append(loads())

    run(request, tmp_path / "two", progress=Noting(), workers=2)
    assert len(sampled) == 8
    assert set(sampled[-1].values()) == {1} and 2 <= len(sampled[-1]) <= 4
    assert (loads() - sampled[-1]).total() <= 4, "once more at most for each row that is timed"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to be fast")
def test_three_processes_make_the_tables_of_one(digits_request, tmp_path, quiet, tables, loads):
    request = digits_request(models=("digits-flow-small", "digits-flow"), steps=(1, 2))
    run(request, tmp_path / "one", progress=quiet(), workers=1)
    before = loads()
    fork = multiprocessing.get_context("fork")
    places = [tmp_path / "own", tmp_path / "shared", tmp_path / "shared"]
    processes = [
        fork.Process(target=run_share, args=(request, place, Share(i, 3)), kwargs={"progress": quiet(), "workers": 1})
        for i, place in enumerate(places, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (loads() - before).total() <= 3 + 2 - 1, "as few as there can be: a share is a piece of the plan"
    assert not (tmp_path / "shared" / "cells").exists() and not (tmp_path / "shared" / "bench.duckdb").exists()
    (summary,) = merged(tmp_path / "shared", tmp_path / "own", tmp_path / "shared", progress=quiet())
    assert [len(summary.measured), len(summary.failed)] == [4, 0]
    assert tables(tmp_path / "shared") == tables(tmp_path / "one")
    assert not share_files(tmp_path / "shared"), "what was put together is gone"
    assert len(share_files(tmp_path / "own")) == 1, "another's directory is left as it is"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_every_shard_is_in_one_share_and_shares_cost_about_the_same(count):
    cells = [PlannedCell(cell=f"c{steps}", label="", samples=1010, steps=steps) for steps in (1, 2, 4, 8, 40)]
    shares = [assigned(cells, 50, Share(number, count)) for number in range(1, count + 1)]
    found = sorted((cell, span) for share in shares for cell, spans in share.items() for span in spans)
    assert found == sorted((cell.cell, (at, min(at + 50, 1010))) for cell in cells for at in range(0, 1010, 50))
    steps = {cell.cell: cell.steps for cell in cells}
    costs = [sum(steps[cell] * (b - a) for cell, spans in share.items() for a, b in spans) for share in shares]
    assert max(costs) - min(costs) <= 2 * 50 * 40


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/3/5", "-1/3", "1/0", "1 / 3", "", "1/9999999", "٣/٤"])
def test_a_share_that_cannot_be_is_one_line(text):
    with pytest.raises(BenchError, match=r"--shards: .*write for example 1/3"):
        Share.parse(text)


def test_an_interrupted_share_continues_at_its_next_shard(gaussian, tmp_path, quiet, tables):
    request = gaussian()
    run(request, tmp_path / "one", progress=quiet(), workers=1)
    with pytest.raises(KeyboardInterrupt):
        run_share(request, tmp_path / "a", Share(1, 2), progress=quiet(stop_after=2), workers=1)
    run_share(request, tmp_path / "b", Share(2, 2), progress=quiet(), workers=1)
    with pytest.raises(BenchError, match=r"samples 100\.\.149 of gaussian 1 step are missing, share 1/2 was interr"):
        merged(tmp_path / "all", tmp_path / "a", tmp_path / "b", progress=quiet())
    assert not (tmp_path / "all").exists()
    done = run_share(request, tmp_path / "a", Share(1, 2), progress=quiet(), workers=1)
    assert (done.shards, done.kept) == (6, 2)
    merged(tmp_path / "all", tmp_path / "a", tmp_path / "b", progress=quiet())
    assert tables(tmp_path / "all") == tables(tmp_path / "one")
    again = run_share(request, tmp_path / "all", Share(1, 2), progress=quiet(), workers=1)
    assert (again.shards, again.kept) == (0, 0), "what is measured in the directory is not sampled again"


@pytest.fixture
def two(gaussian, tmp_path, quiet):
    for number in (1, 2):
        run_share(gaussian(), tmp_path / str(number), Share(number, 2), progress=quiet(), workers=1)
    return tmp_path


def test_a_missing_share_is_named(two, quiet):
    with pytest.raises(BenchError, match=r"share 2/2 missing beside 1/2 .*--shards 2/2"):
        merged(two / "all", two / "1", progress=quiet())


def test_shares_of_another_plan_are_not_mixed_in(two, gaussian, quiet):
    shutil.rmtree(two / "2")
    run_share(gaussian(steps=(1,)), two / "2", Share(2, 2), progress=quiet(), workers=1)
    with pytest.raises(BenchError, match=r"share 2/2 missing .*are of 1 other plan;"):
        merged(two / "all", two / "1", two / "2", progress=quiet())


def test_a_share_of_other_code_is_refused_unless_allowed(two, gaussian, quiet, monkeypatch):
    shutil.rmtree(two / "2")
    from bench.run.provenance import made_by

    others = dict(made_by()) | {"torch": "1.0", "fewstep-bench": "0.0.1 (code abc)"}
    with monkeypatch.context() as elsewhere:
        for module in ("runner", "worker"):
            elsewhere.setattr(f"bench.run.{module}.made_by", lambda: others)
        run_share(gaussian(), two / "2", Share(2, 2), progress=quiet(), workers=1)
    with pytest.raises(
        BenchError, match=r"share 2/2 was made by .*0\.0\.1 \(code abc\), here .*torch 1\.0, here.*mixed"
    ):
        merged(two / "all", two / "1", two / "2", progress=quiet())
    assert not (two / "all").exists()
    (path,) = share_files(two / "2")
    text = path.read_text()
    path.write_text(re.sub(r'"made_by": \{.*?\}', '"made_by": ' + share_made_by(two / "1"), text, flags=re.DOTALL))
    with pytest.raises(BenchError, match=r"shard-.*was made by .*torch 1\.0, here"):
        merged(two / "all", two / "1", two / "2", progress=quiet())
    assert not list((two / "all").glob("cells/*/shard-*")), "nothing half merged"
    path.write_text(text)
    (summary,) = merged(two / "all", two / "1", two / "2", progress=quiet(), allow_mixed=True)
    assert len(summary.measured) == 3


def test_an_interrupted_run_of_other_code_is_sampled_again_unless_allowed(gaussian, tmp_path, quiet, monkeypatch):
    others = {"torch": "1.0"}
    for place in ("again", "kept"):
        with monkeypatch.context() as elsewhere, pytest.raises(KeyboardInterrupt):
            for module in ("runner", "worker"):
                elsewhere.setattr(f"bench.run.{module}.made_by", lambda: others)
            run(gaussian(steps=(1,)), tmp_path / place, progress=quiet(stop_after=3), workers=1)
    progress = quiet()
    with pytest.warns(BenchWarning, match=r"3 shards of an earlier run sampled again: made by .*torch 1\.0, here"):
        run(gaussian(steps=(1,)), tmp_path / "again", progress=progress, workers=1)
    kept = quiet()
    run(gaussian(steps=(1,)), tmp_path / "kept", progress=kept, workers=1, allow_mixed=True)
    assert (progress.shards, kept.shards) == (4, 1)


def share_made_by(runs):
    (path,) = share_files(runs)
    return re.search(r'"made_by": (\{.*?\})', path.read_text(), re.DOTALL)[1]


def spoil_shard(runs):
    (shard, *_) = sorted(runs.rglob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-40])


def spoil_manifest(change):
    def spoil(runs):
        (path,) = share_files(runs)
        path.write_text(change(path.read_text()))

    return spoil


def link_shard(runs):
    (shard, *_) = sorted(runs.rglob("shard-*"))
    moved = shard.rename(runs / "elsewhere")
    shard.symlink_to(moved)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_shard, "are missing, share 2/2 was interrupted"),
        (spoil_manifest(lambda text: "{"), "share .*share.json: not JSON"),
        (spoil_manifest(lambda text: "[]"), "must contain a JSON object"),
        (spoil_manifest(lambda text: text.replace('"share": 2', '"share": 3')), "3/2 .* cannot be"),
        (spoil_manifest(lambda text: text.replace('"share": 2', '"share": true')), "key 'share' must be"),
        (spoil_manifest(lambda text: text.replace('"version": 1', '"version": 9')), "key 'version'"),
        (
            spoil_manifest(lambda text: text.replace('"protocol": "gaussian"', '"protocol": "x"')),
            "unknown protocol 'x'",
        ),
        (spoil_manifest(lambda text: text.replace('"samples": 200', '"samples": -1', 1)), "cannot be"),
        (spoil_manifest(lambda text: re.sub(r'"cell": "[^"]*"', '"cell": "../../x"', text)), "a row that cannot be"),
        (
            spoil_manifest(lambda text: text.replace('"samples": 200', '"samples": 2000000000')),
            "more than 1,000,000,000",
        ),
        (link_shard, "a link; only files inside the runs directory are merged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_spoiled_share_is_one_line_and_nothing_is_merged(two, quiet, spoil, message):
    spoil(two / "2")
    with pytest.raises(BenchError, match=message) as caught:
        merged(two / "all", two / "2", two / "1", progress=quiet())
    assert len(str(caught.value).splitlines()) == 1
    assert not (two / "all").exists()


def test_a_plan_that_is_not_this_machines_is_refused(two, quiet):
    for number in (1, 2):
        spoil_manifest(lambda text: text.replace('"seed": null', '"seed": 5'))(two / str(number))
    with pytest.raises(BenchError, match=r"its plan is not this machine's \(gaussian 1 step is another cell here\)"):
        merged(two / "all", two / "1", two / "2", progress=quiet())
    assert not list((two / "all").glob("cells/*"))


def test_a_cell_that_broke_in_a_share_is_a_failed_row(gaussian, tmp_path, quiet, tables, monkeypatch):
    request = gaussian()
    sound = Adapter.sample

    def sample(self, labels, steps, cfg, **rest):
        if steps == 2:
            raise ValueError("broken")
        return sound(self, labels, steps, cfg, **rest)

    with monkeypatch.context() as broken:
        broken.setattr(Adapter, "sample", sample)
        run(request, tmp_path / "one", progress=quiet(), workers=1)
        shares = [
            run_share(request, tmp_path / "all", Share(i, 3), progress=quiet(), workers=1).failed for i in (1, 2, 3)
        ]
    assert [len(failed) for failed in shares] == [1, 1, 0], "two steps are in two shares"
    (summary,) = merged(tmp_path / "all", tmp_path / "all", progress=quiet())
    assert [(cell.steps, reason) for cell, reason in summary.failed] == [(2, "ValueError: broken")]
    assert tables(tmp_path / "all") == tables(tmp_path / "one")


def test_a_cell_that_breaks_when_it_is_measured_again_is_no_longer_the_row_it_was(
    gaussian, tmp_path, quiet, monkeypatch
):
    (cell,) = run(gaussian(steps=(1,)), tmp_path, progress=quiet(), workers=1).measured
    with monkeypatch.context() as broken:
        broken.setattr(Adapter, "sample", lambda *rest, **more: 1 / 0)
        run_share(gaussian(steps=(1,)), tmp_path, Share(1, 1), progress=quiet(), workers=1, fresh=True)
    (summary,) = merged(tmp_path, tmp_path, progress=quiet())
    assert [found.cell_id for found, _ in summary.failed] == [cell.cell_id] and not summary.reused
