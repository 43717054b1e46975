"""A Ray cluster of several machines, each of them processes of this one: the same tables, whatever dies."""

import os
import socket

import pytest

pytest.importorskip("ray")

import ray
from ray.cluster_utils import Cluster

from bench.run.on_ray import Ray
from bench.run.provenance import made_by
from bench.run.runner import run
from results.errors import BenchError


@pytest.fixture(scope="module")
def cluster():
    """A head that takes no tasks and two machines of one processor, each with an accelerator that Ray believes in."""
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.spare = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def run_on(cluster, request, runs, progress, **options):
    way = {"executor": "ray", "options": {"address": cluster.address, **options}}
    return run(request, runs, progress=progress, **way)


def test_a_machine_that_dies_changes_no_bit(cluster, gaussian, tmp_path, quiet, tables, monkeypatch):
    """Shards come back through the object store, then through the directory that all machines see."""
    monkeypatch.setattr("bench.run.shard.SHARD_SAMPLES", 50)
    request = gaussian(num_samples=1000)
    run(request, tmp_path / "one", progress=quiet(), workers=1)
    lost = []

    class Losing(quiet):
        def shard(self, *words):
            if not lost:
                lost.append(cluster.spare.pop())
                cluster.remove_node(lost[0], allow_graceful=False)

    summary = run_on(cluster, request, tmp_path / "sent", Losing(), shared=False)
    assert [len(summary.measured), len(summary.failed), len(lost)] == [3, 0, 1]
    assert tables(tmp_path / "sent") == tables(tmp_path / "one")
    cluster.spare.append(cluster.add_node(num_cpus=1, num_gpus=1))
    cluster.wait_for_nodes()
    run_on(cluster, request, tmp_path / "shared", quiet())
    assert tables(tmp_path / "shared") == tables(tmp_path / "one")


def test_workers_share_a_gpu_and_keep_their_weights(cluster, gaussian):
    """Four workers for two machines of one accelerator; their processes stay from task to task."""
    executor = Ray(0, "cuda", address=cluster.address, gpus_per_worker=0.5, cpus_per_worker=0.5)
    try:
        assert executor.workers == 4
        seen = [executor.submit(os.getpid).result() for _ in range(6)]
        assert len(set(seen)) <= 4
        assert executor.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() == "0"
    finally:
        executor.shutdown(now=True)


def test_machines_of_other_versions_are_named_before_the_first_sample(cluster, gaussian, tmp_path, quiet, monkeypatch):
    others = dict(made_by()) | {"torch": "1.0"}
    monkeypatch.setattr("bench.run.runner.made_by", lambda: others)
    with pytest.raises(
        BenchError, match=r"machine \S+.*: torch .*, here 1\.0; install the same.*--allow-mixed"
    ) as caught:
        run_on(cluster, gaussian(), tmp_path, quiet())
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.glob("cells/*"))


def test_what_the_cluster_lacks_is_one_line(cluster):
    with pytest.raises(BenchError, match="no machine of the cluster has 64 CPU; ask for less"):
        Ray(0, "cpu", address=cluster.address, cpus_per_worker=64)
    with pytest.raises(BenchError, match="no machine of the cluster has 1 CPU and 8 GPU"):
        Ray(0, "cuda", address=cluster.address, gpus_per_worker=8)
    assert not ray.is_initialized()


def test_a_cluster_that_is_not_there_is_one_line_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(BenchError, match=r"--address: no Ray cluster at .*refused.*ray start --head"):
            Ray(1, "cpu", address=address)
    for address in ("somewhere", "host:", ":1", "host:99999"):
        with pytest.raises(BenchError, match="is no HOST:PORT"):
            Ray(1, "cpu", address=address)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus_per_worker": 1.5}, "--option gpus_per_worker: must be a part of one or a whole number"),
        ({"cpus_per_worker": "two"}, "--option cpus_per_worker: must be"),
        ({"retries": 1.5}, "--option retries: must be an integer"),
        ({"shared": "maybe"}, "--option shared: must be true or false"),
    ],
)
def test_settings_that_cannot_be_are_one_line(options, message):
    with pytest.raises(BenchError, match=message):
        Ray(1, "cpu", address="127.0.0.1:1", **options)
