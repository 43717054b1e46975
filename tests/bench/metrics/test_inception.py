import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from bench.metrics.inception import (
    inception_leave_one_out,
    inception_score,
    inception_score_by_chunk,
    order_of_content,
    split_of_rows,
)
from bench.metrics.measure import measure


def logits(n=203, classes=7):
    return (3 * np.random.default_rng(0).normal(size=(n, classes))).astype(np.float32)


@pytest.mark.parametrize("splits,shuffle,seed", [(1, True, 2020), (10, True, 3), (7, False, 0)])
def test_agrees_with_torch_fidelity(splits, shuffle, seed):
    expected = isc_features_to_metric(torch.from_numpy(logits()), splits, shuffle, seed)
    mean, std = inception_score(logits(), splits, shuffle, seed)
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert std == pytest.approx(expected["inception_score_std"], rel=1e-9, abs=1e-12)


def test_certain_and_even_predictions_score_the_number_of_classes():
    sure = np.repeat(1000.0 * np.eye(5), 20, axis=0)
    assert inception_score(sure, splits=1).mean == pytest.approx(5.0)
    assert inception_score(np.zeros((50, 5)), splits=5).mean == pytest.approx(1.0)


def test_chunks_of_everything_are_one_split():
    assert inception_score_by_chunk(logits(), 5000).mean == pytest.approx(inception_score(logits(), 1).mean)


def test_leave_one_out_keeps_every_sample_in_its_split():
    x, splits = logits(), 3
    blocks, split = np.arange(len(x)) % 4, split_of_rows(len(x), splits)
    score, left = inception_leave_one_out(x, blocks, splits)
    assert score == pytest.approx(inception_score(x, splits))
    for k in range(4):
        parts = [inception_score(x[(split == s) & (blocks != k)], 1, shuffle=False).mean for s in range(splits)]
        assert left[k] == pytest.approx(np.mean(parts), rel=1e-10)


def test_fewer_samples_than_splits_are_refused():
    with pytest.raises(ValueError, match="10 splits"):
        inception_score(logits(5))


def test_the_order_of_content_is_that_of_the_images_and_a_balanced_run_keeps_its_own():
    labels = np.arange(60) % 6
    keys = np.random.default_rng(0).integers(2**63, size=60).astype(np.uint64)
    shuffled = np.random.default_rng(1).permutation(60)
    for own in (labels, None):
        order = order_of_content(keys, own)
        again = order_of_content(keys[shuffled], None if own is None else own[shuffled])
        assert sorted(order) == list(range(60)) and np.array_equal(keys[order], keys[shuffled][again])
    assert np.array_equal(labels[order_of_content(keys, labels)], labels)
    assert np.array_equal(order_of_content(np.arange(60, dtype=np.uint64), labels), np.arange(60))


def test_the_score_of_images_in_any_order_of_files_is_one():
    random = np.random.default_rng(2)
    labels = np.arange(200) % 10
    logits = random.normal(size=(200, 10))
    logits[np.arange(200), labels] += 3
    keys = random.permutation(200).astype(np.uint64)
    found = []
    for order in (np.argsort(labels, kind="stable"), random.permutation(200)):
        content = order_of_content(keys[order], labels[order])
        (value,) = measure({"inception.logits": logits[order]}, None, ["is"], labels=labels[order],
                           options={"is_shuffle": False}, order=content).values  # fmt: skip
        found.append(value.value)
    in_class_order = inception_score(logits[np.argsort(labels)], shuffle=False).mean
    assert found[0] == pytest.approx(found[1], rel=1e-12) and in_class_order < found[0] / 2
