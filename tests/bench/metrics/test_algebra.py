"""Metrics on an accelerator: several at once, each part of the work done once, and the processor's values."""

import contextlib
import threading
import time

import numpy as np
import pytest
import torch

from bench.metrics import algebra
from bench.metrics.frechet import FrechetReference, frechet_influence
from bench.metrics.interactions import frechet_interactions
from bench.metrics.manifold import balls
from bench.metrics.measure import ReferenceFeatures, ahead, measure
from bench.metrics.once import Once

DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
NAMES = ["precision", "fid", "accuracy", "kid", "is", "recall", "density", "coverage", "clip", "fid_corrected"]


def cell(n=600, d=24, classes=10):
    random = np.random.default_rng(11)
    labels = np.arange(n) % classes
    logits = random.normal(size=(n, classes)).astype(np.float32)
    outputs = {
        "inception.features": (1.1 * random.normal(size=(n, d))).astype(np.float32),
        "inception.logits": logits,
        "clip.score": random.normal(30, 1, size=n).astype(np.float32),
    }
    real = random.normal(size=(500, d)).astype(np.float32)
    real[7] = real[8] = outputs["inception.features"][3]  # ties, which the host decides
    return outputs, real, labels


def measured(names=NAMES):
    outputs, real, labels = cell()
    reference = ReferenceFeatures.of(real, np.arange(len(real)) % 10)
    return measure(outputs, reference, [*names, "pick"], labels=labels)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_all_metrics_of_a_cell_have_the_processors_values_and_order(device):
    expected = measured()
    with algebra.on(device):
        found = measured()
    assert [value.name for value in found.values] == NAMES == [value.name for value in expected.values]
    assert [skipped.name for skipped in found.skipped] == ["pick"]
    for ours, theirs in zip(found.values, expected.values, strict=True):
        assert (ours.method, ours.judge, ours.n) == (theirs.method, theirs.judge, theirs.n)
        for key in ("value", "low", "high", "jackknife", "jackknife_reference"):
            mine, other = getattr(ours, key), getattr(theirs, key)
            assert (mine is None) == (other is None)
            if mine is not None:
                np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-12)
    assert [row[:2] for row in found.per_class] == [row[:2] for row in expected.per_class]
    np.testing.assert_allclose(
        [row.value for row in found.per_class], [row.value for row in expected.per_class], rtol=1e-9, atol=1e-12
    )
    assert found.kept.keys() == expected.kept.keys()
    for name, values in expected.kept.items():
        np.testing.assert_allclose(found.kept[name], values, rtol=1e-6)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_pairs_of_blocks_influence_and_neighbours_have_the_processors_values(device, monkeypatch):
    monkeypatch.setattr("bench.metrics.manifold.TILE", 200)
    outputs, real, _ = cell()
    made = outputs["inception.features"]
    reference = FrechetReference.of(real)

    def tables():
        pairs = frechet_interactions(reference, made, np.arange(600) % 20, real, np.arange(500) % 20)
        return [*pairs, frechet_influence(reference, made), balls(made, 3).squared, balls(real, 5).squared]

    expected = tables()
    with algebra.on(device):
        found = tables()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_the_smallest_of_parts_are_those_of_the_whole(device):
    matrix = np.random.default_rng(12).permuted(np.arange(400.0).reshape(4, 100), axis=1)
    for k in (1, 7, 100, 130):
        with algebra.on(device):
            nearest = algebra.Smallest(k)
            for start in range(0, 100, 30):
                nearest.take(algebra.array(matrix[:, start : start + 30]), start)
            columns = nearest.columns
        expected = np.argsort(matrix, axis=1)[:, :k]
        np.testing.assert_array_equal(np.sort(columns, axis=1), np.sort(expected, axis=1))


@pytest.mark.parametrize("device", [None, *DEVICES], ids=str)
@pytest.mark.parametrize("d", [40, 600])
def test_the_largest_eigenvalues_are_those_of_all(d, device):
    x = np.random.default_rng(13).standard_normal((d + 50, d)) * np.geomspace(1, 0.1, d)
    matrix = x.T @ x
    with algebra.on(device):
        values, vectors = algebra.largest(matrix, 5)
        everything, _ = algebra.largest(matrix, d)
    expected = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(values, expected[-5:], rtol=1e-10)
    np.testing.assert_allclose(everything, expected, rtol=1e-8)
    np.testing.assert_allclose(vectors.T @ matrix @ vectors, np.diag(values), atol=1e-9 * values[-1])


def test_a_fault_of_one_metric_among_several_leaves_the_others(monkeypatch):
    from bench.metrics import inception

    def broken(*_):
        raise RuntimeError("no logits today")

    monkeypatch.setattr(inception, "inception_score", broken)
    with algebra.on(torch.device("cpu")):
        found = measured()
    assert {skipped.name: skipped.reason for skipped in found.skipped}["is"] == "RuntimeError: no logits today"
    assert [value.name for value in found.values] == [name for name in NAMES if name != "is"]


def test_threads_work_where_the_algebra_runs_and_one_computes_for_all():
    asked, once, places = [], Once(), []

    def compute():
        asked.append(threading.current_thread().name)
        time.sleep(0.02)
        return 42

    def work(item):
        places.append(algebra.device())
        return item, once.get("key", compute)

    with algebra.on(torch.device("cpu")):
        assert algebra.spread(work, range(6)) == [(item, 42) for item in range(6)]
    assert len(asked) == 1 and asked != ["MainThread"] and places == [torch.device("cpu")] * 6
    assert algebra.spread(work, range(2)) == [(0, 42), (1, 42)] and places[-1] is None


def test_ahead_leaves_nothing_of_the_reference_to_the_first_cell(monkeypatch):
    from bench.metrics import cell as cells
    from bench.metrics import kernel, records

    outputs, real, labels = cell()
    reference = ReferenceFeatures.of(real, np.arange(500) % 10)
    names, options = [*NAMES, "cmmd", "fid_infinity"], {"num_classes": 10}
    with algebra.on(torch.device("cpu")):
        ahead({"inception.features": reference}, names, blocks=20, options=options)

    def again(*_, **__):
        raise AssertionError("computed again")

    for module, name in ((cells, "sides_without_blocks"), (records, "balls"), (records, "kernel_self_mean")):
        assert callable(getattr(module, name))
        monkeypatch.setattr(module, name, again)
    monkeypatch.setattr(kernel, "kernel_self_mean", again)
    with algebra.on(torch.device("cpu")):
        found = measure(outputs, reference, NAMES, labels=labels, options={"per_class": False})
    assert [value.name for value in found.values] == NAMES


def test_streams_of_an_accelerator_are_used_again(monkeypatch):
    """Each keeps the memory that it was given, so that a new one for every metric would fill the card."""
    made, inside = [], []
    monkeypatch.setattr(algebra, "_streams", {})
    monkeypatch.setattr(torch.cuda, "Stream", lambda place: made.append(place) or len(made))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext(inside.append(stream)))
    with algebra.on(torch.device("cuda:0")):
        for _ in range(5):
            algebra.spread(lambda _: time.sleep(0.001), range(12))
        with pytest.raises(ZeroDivisionError):
            algebra.spread(lambda _: 1 / 0, range(2))
    assert 1 <= len(made) <= algebra.AT_A_TIME and len(inside) == 62
    assert sorted(algebra._streams["cuda:0"]) == list(range(1, len(made) + 1)), "all are given back, a failed one's too"


def test_what_fails_once_is_tried_again_by_the_next():
    once = Once()
    with pytest.raises(ZeroDivisionError):
        once.get("key", lambda: 1 / 0)
    assert once.get("key", lambda: 5) == 5
