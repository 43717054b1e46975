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
from results.statistics import blocks_by_label, jackknife


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


def test_a_class_keeps_its_share_of_a_split_when_a_block_is_left_out():
    x, labels = logits(40, 4), np.arange(40) % 4
    blocks, split = blocks_by_label(labels, 5), split_of_rows(40, 2)
    found = inception_leave_one_out(x, blocks, 2, strata=labels)[1]
    p = np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(axis=1, keepdims=True)
    for k in range(5):
        scores = []
        for s in range(2):
            inside = split == s
            rest = [inside & (blocks != k) & (labels == c) for c in range(4)]
            shares = np.array([(inside & (labels == c)).sum() for c in range(4)]) / inside.sum()
            mean = sum(share * p[rows].mean(axis=0) for share, rows in zip(shares, rest, strict=True))
            own = sum(
                share * (p[rows] * np.log(p[rows])).sum(axis=1).mean() for share, rows in zip(shares, rest, strict=True)
            )
            scores.append(np.exp(own - (mean * np.log(mean)).sum()))
        assert found[k] == pytest.approx(np.mean(scores), rel=1e-9)


def test_a_sure_judges_score_has_the_standard_error_of_its_images_not_of_the_labels_dealt_to_splits():
    random, labels = np.random.default_rng(3), np.arange(800) % 10
    blocks, values, errors, before = blocks_by_label(labels, 20), [], [], []
    for _ in range(40):
        x = random.normal(size=(800, 10))
        x[np.arange(800), labels] += 11 + 2 * random.normal(size=800)
        score, left = inception_leave_one_out(x, blocks, strata=labels)
        values.append(score.mean)
        errors.append(jackknife(score.mean, left).standard_error)
        before.append(jackknife(score.mean, inception_leave_one_out(x, blocks)[1]).standard_error)
    assert 0.75 <= np.mean(errors) / np.std(values, ddof=1) <= 1.4
    assert np.mean(before) > 2 * np.mean(errors)


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
