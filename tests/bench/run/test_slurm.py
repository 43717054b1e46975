"""Shares of a run as jobs of submitit, whose local executor runs them as processes of this machine."""

import os
import pickle
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("submitit")

from bench.run.executors import batch_of, check_options, split_options
from bench.run.interface import How
from bench.run.on_slurm import MergeJob, ShareJob, Slurm, _minutes, _signals_passed_on
from bench.run.runner import run
from bench.run.shares import table_of
from results.errors import BenchError


class Watched(Slurm):
    """Shows its jobs and their logs."""

    def _results(self, jobs, *rest):
        self.jobs = jobs
        found = super()._results(jobs, *rest)
        self.logs = "".join(job.stderr() or "" for job in jobs)
        return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds a job's process in /proc")
def test_a_preempted_job_continues_and_the_tables_are_those_of_one_process(
    gaussian, tmp_path, quiet, tables, monkeypatch
):
    monkeypatch.setattr("bench.run.on_slurm.SECONDS_BETWEEN_LOOKS", 0.05)
    request = gaussian(num_samples=8_000, batch_size=10, steps=(1, 2))
    run(request, tmp_path / "one", progress=quiet(), workers=1)
    slurm = Watched(2, "cpu", cluster="local", time=30)
    seen = []

    class Preempting(quiet):
        def shares(self, ended, jobs, done, total):
            if done and not any(before[2] for before in seen):
                controller = slurm.jobs[0]._process.pid
                (task, *_) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
                os.kill(int(task), signal.SIGUSR2)
            seen.append((ended, jobs, done, total))

    summary = slurm.run(request, tmp_path / "jobs", How(), Preempting())
    assert [len(summary.measured), len(summary.failed)] == [2, 0]
    assert seen[-1] == (2, 2, 32, 32)
    assert "this job is preempted" in slurm.logs, slurm.logs
    assert tables(tmp_path / "jobs") == tables(tmp_path / "one")
    assert not list((tmp_path / "jobs").glob("jobs-*")), "what went well leaves no logs"


def job(request, runs, number=1, **way):
    how = asdict(How(**way)) | {"workers": 1, "arguments": []}
    return ShareJob(table_of(request), str(runs), number, 2, how, "a run")


def test_jobs_make_a_run_and_go_on_after_an_interruption_also_when_fresh(gaussian, tmp_path, quiet, tables, capsys):
    request = gaussian()
    run(request, tmp_path, progress=quiet(), workers=1)
    before = tables(tmp_path)
    first, second = (job(request, tmp_path, number, fresh=True) for number in (1, 2))
    directory = first()
    shards = sorted(directory.rglob("shard-*"))
    shards[0].unlink()
    kept = shards[1].stat().st_mtime_ns
    again = pickle.loads(pickle.dumps(first.checkpoint()))
    assert again.function(*again.args, **again.kwargs) == directory
    assert shards[0].exists() and shards[1].stat().st_mtime_ns == kept, "only what was missing is sampled"
    summary = pickle.loads(pickle.dumps(MergeJob(str(tmp_path), [str(directory), str(second())], first.way)()))
    assert len(summary.measured) == 3
    assert tables(tmp_path) == before
    assert "shard 1 of" in capsys.readouterr().err


def test_a_job_says_in_one_line_what_stood_in_its_way(gaussian, tmp_path):
    wrong = job(gaussian(), tmp_path)
    assert "share 1/2: unknown protocol 'x'" in replace(wrong, request=wrong.request | {"protocol": "x"})()


def test_a_signal_passes_through_what_holds_the_faults_of_adapters(gaussian, tmp_path, monkeypatch):
    from bench.contracts.adapter import Adapter

    def leave(number, frame):
        raise SystemExit(144)

    monkeypatch.setattr(Adapter, "sample", lambda *words, **named: os.kill(os.getpid(), signal.SIGUSR2))
    before = signal.signal(signal.SIGUSR2, leave)
    try:
        with pytest.raises(SystemExit, match="144"):
            job(gaussian(), tmp_path)()
        assert signal.getsignal(signal.SIGUSR2) is leave
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not list(tmp_path.rglob("failed.json"))
    with _signals_passed_on():
        assert signal.getsignal(signal.SIGUSR2) is before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cluster": "cloud"}, "--option cluster: 'cloud' is unknown; choose slurm or local"),
        ({"gpus": 0.5}, "--option gpus: must be an integer from 0, found 0.5"),
        ({"cpus": 0}, "--option cpus: must be an integer from 1, found 0"),
        ({"parallel": True}, "--option parallel: must be an integer from 1"),
        ({"time": "soon"}, "--option time: 'soon' is no limit"),
        ({"time": 0}, "--option time: '0' is no limit"),
        ({"mem": "lots"}, "--option mem: must be a number above 0"),
        ({"workers": 0}, "say how many jobs share the work, with --workers N"),
    ],
)
def test_settings_that_cannot_be_are_one_line(options, message):
    with pytest.raises(BenchError, match=message) as caught:
        Slurm(options.pop("workers", 2), "cpu", **options)
    assert len(str(caught.value).splitlines()) == 1


def test_limits_of_time_are_minutes_or_hours():
    assert [_minutes(text) for text in (90, "2:30:00", "0:00:30", "1-00:00", "12:05")] == [90, 150, 1, 1440, 725]


def test_no_slurm_here_is_one_line(gaussian, tmp_path, quiet, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match=r"are you indeed on a slurm cluster.*login node.*cluster=local"):
        Slurm(2, "auto").run(gaussian(), tmp_path / "runs", How(), quiet())
    assert not (tmp_path / "runs").exists()


def test_options_are_the_executors_or_the_samplers():
    assert batch_of("slurm") is Slurm and batch_of("local") is None
    own, rest = split_options("slurm", {"partition": "gpu", "time": 60, "time_warp": 2.0})
    assert (own, rest) == ({"partition": "gpu", "time": 60}, {"time_warp": 2.0})
    assert split_options("local", {"time": 60}) == ({}, {"time": 60})
    with pytest.raises(BenchError, match="unknown setting of executor 'slurm' 'partitions': did you mean partition"):
        check_options("slurm", {"partitions": "gpu"})
