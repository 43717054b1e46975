"""Too little memory, a device that goes away, no compiler: one line, nothing lost, the same samples."""

import os
import warnings

import numpy as np
import pytest
import torch

from bench.contracts.adapter import Adapter
from bench.judges.towers import ImageFeatureJudge
from bench.models import compilation
from bench.run import compiling, shard
from bench.run.devices import LOST
from results.cells import CellDirectory
from results.errors import BenchError, DeviceLostError
from results.leaderboard import rows
from results.store import connect

GENERATE = Adapter.sample


def limited(monkeypatch, largest):
    """Let adapters sample at most `largest` images at once, as a device with little memory does."""
    asked = []

    def sample(self, labels, steps, cfg, *, noise, **settings):
        asked.append(len(labels))
        images = GENERATE(self, labels, steps, cfg, noise=noise, **settings)
        if len(labels) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return images

    monkeypatch.setattr(Adapter, "sample", sample)
    monkeypatch.setattr("bench.run.worker._adapters", {})
    return asked


def row_of(summary):
    with connect(summary.database) as connection:
        (row,) = rows(connection)
        return row


def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same_samples(measure, tmp_path, monkeypatch):
    whole = row_of(measure(tmp_path / "whole"))
    asked = limited(monkeypatch, 13)
    with pytest.warns(UserWarning, match="sampled 13 at once, the same samples") as said:
        found = row_of(measure(tmp_path / "halved"))
    assert asked[:3] == [50, 25, 13]
    assert len([line for line in said if "too little memory" in str(line.message)]) == 1
    assert found.cell["nfe"] == whole.cell["nfe"], "an attempt that came to nothing counts no evaluation"
    assert found.cell["cell_id"] == whole.cell["cell_id"]
    for name, value in whole.metrics.items():
        assert found.metrics[name].value == pytest.approx(value.value, rel=1e-4, abs=1e-4), name


def test_one_image_that_does_not_fit_fails_its_cell_in_one_line(measure, monkeypatch):
    limited(monkeypatch, 0)
    ((_, reason),) = measure().failed
    assert "too little memory for one image" in reason and "\n" not in reason


@pytest.mark.skipif(not LOST, reason="this version of torch does not tell")
def test_a_device_that_goes_away_ends_the_run_and_loses_nothing(measure, tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "SHARD_SAMPLES", 50)
    whole = row_of(measure(tmp_path / "whole"))
    calls = []

    def vanish(self, labels, steps, cfg, *, noise, **settings):
        calls.append(len(labels))
        if calls.count(50) == 3:  # beside shards a single sample is drawn, whose operations are counted
            raise torch.AcceleratorError("CUDA error: GPU is lost\nFor debugging consider passing CUDA_LAUNCH_BLOCKING")
        return GENERATE(self, labels, steps, cfg, noise=noise, **settings)

    monkeypatch.setattr(Adapter, "sample", vanish)
    with pytest.raises(
        DeviceLostError, match=r"failed \(CUDA error: GPU is lost.*run the same command to go on"
    ) as said:
        measure(tmp_path / "lost")
    assert "\n" not in str(said.value)
    assert len(list((tmp_path / "lost").glob("cells/*/shard-*"))) == 2
    monkeypatch.setattr(Adapter, "sample", GENERATE)
    found = row_of(measure(tmp_path / "lost"))
    assert {n: v.value for n, v in found.metrics.items()} == {n: v.value for n, v in whole.metrics.items()}
    assert CellDirectory(tmp_path / "lost", found.cell["cell_id"]).read_result()["cell"]["status"] == "done"


def test_a_judge_that_does_not_fit_halves_its_batch():
    class Plain:
        def __call__(self, images):
            return images.float()

    sizes = []

    def encode(pixels):
        sizes.append(len(pixels))
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pixels.flatten(1)

    judge = ImageFeatureJudge("wide", encode, Plain(), {}, torch.device("cpu"))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (10, 3, 2, 2), dtype=np.uint8))
    with pytest.warns(UserWarning, match="judge 'wide': too little memory for 10 images at once; 5 from here on"):
        features = judge(images, torch.zeros(10, dtype=torch.int64))["features"]
    assert torch.equal(features, images.flatten(1).float()) and judge.batch_size == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge(images, torch.zeros(10, dtype=torch.int64))
    judge.encode = lambda pixels: (_ for _ in ()).throw(torch.OutOfMemoryError("full"))
    with pytest.warns(UserWarning), pytest.raises(BenchError, match="too little memory for one image"):
        judge(images, torch.zeros(10, dtype=torch.int64))


def test_auto_compiles_where_the_plan_is_long_enough(digits_request, monkeypatch):
    monkeypatch.setattr(compiling, "check_compiler", lambda device: None)
    long = digits_request(device="cuda", num_samples=50_000, steps=(4,), cfg=(1.5,))
    assert compiling.decide(long) == (
        True, "compiled: 1 model, each sampled about 80 s sooner or more; compiling takes about 25 s",
    )  # fmt: skip
    short = compiling.decide(digits_request(device="cuda"))
    assert not short.compile and "not compiled: 1 model, each sampled about 0 s sooner" in short.why
    assert not compiling.decide(digits_request()).compile


@pytest.mark.parametrize("lacking", ["compiler", "triton"])
def test_auto_without_a_compiler_samples_uncompiled_and_says_why(digits_request, monkeypatch, lacking):
    monkeypatch.setattr("shutil.which", lambda name: None if lacking == "compiler" else "/usr/bin/c++")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    decision = compiling.decide(digits_request(device="cuda", num_samples=50_000, steps=(40,)))
    assert not decision.compile
    assert decision.why.startswith("not compiled: ") and ("triton" if lacking == "triton" else "C++") in decision.why


def test_what_is_compiled_is_kept_in_the_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    seen = []
    monkeypatch.setattr(compilation, "compile_forward", lambda network, graphs: seen.append(network))
    adapter = type("Parts", (), {})()
    adapter.device, adapter.network, adapter.guide = torch.device("cpu"), torch.nn.Linear(2, 2), None
    adapter.autoencoder = torch.nn.Module()
    adapter.autoencoder.decoder = torch.nn.Conv2d(1, 1, 1)
    compilation.compile_networks(adapter)
    assert seen == [adapter.network, adapter.autoencoder.decoder]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


def batch_of(first, last, broken=()):
    images = torch.arange(first, last, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    marks = torch.tensor([index in broken for index in range(first, last)])
    host = shard.Host({"judge.score": images[:, 0, 0, 0].float(), shard.BROKEN: marks, shard.PIXELS: images})
    return shard._Batch(first, last, host, (1.0, 3.0, 3.5), 7, first > 0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # on CUDA in a thread, which needs no CUDA itself
def test_batches_are_taken_in_in_their_order_beside_the_sampling(digits_request, device):
    collected = shard._Shard(digits_request().protocol)
    with shard._collecting(collected, torch.device(device)) as collect:
        for first in (0, 4, 8):
            collect(batch_of(first, first + 4))
    arrays = collected.arrays()
    assert arrays["judge.score"].tolist() == [float(index) for index in range(12)]
    assert len(arrays["thumbnails"]) == min(12, digits_request().protocol.thumbnails)
    assert (collected.sample_seconds, collected.judge_seconds, collected.timed_seconds) == (6.0, 1.5, 4.0)
    assert (collected.timed_samples, collected.peak, collected.seen.images) == (8, 7, 12)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_samples_that_are_not_finite_end_the_cell_whichever_batch_they_are_in(digits_request, device):
    for bad in (1, 5, 9):
        collected = shard._Shard(digits_request().protocol)
        with (
            pytest.raises(shard.CellFailure, match=rf"1 of samples {bad // 4 * 4}\.\.{bad // 4 * 4 + 3} contain NaN"),
            shard._collecting(collected, torch.device(device)) as collect,
        ):
            for first in (0, 4, 8):
                collect(batch_of(first, first + 4, broken={bad}))
