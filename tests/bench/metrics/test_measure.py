import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.stats import spearmanr

from bench.metrics.frechet import Moments, frechet_distance_from_features
from bench.metrics.measure import JudgeOutputs, ReferenceFeatures, measure
from results.catalog import CATALOG
from results.errors import BenchError
from results.statistics import jackknife

DIGITS = ["fid", "is", "kid", "precision", "recall", "clip", "pick", "accuracy"]


def cell(n=400, classes=10, d=16, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    logits = random.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += 2.5
    outputs = {
        "inception.features": (1.1 * random.normal(size=(n, d))).astype(np.float32),
        "inception.logits": logits,
        "clip.score": random.normal(30, 1, size=n).astype(np.float32),
        "pick.score": random.normal(20, 1, size=n).astype(np.float32),
    }
    real = random.normal(size=(300, d)).astype(np.float32)
    return outputs, ReferenceFeatures.of(real, np.arange(300) % classes), labels


def test_every_value_carries_its_interval_and_the_same_blocks():
    outputs, reference, labels = cell()
    result = measure(JudgeOutputs(outputs), reference, [*DIGITS, "fid_corrected", "density", "coverage"], labels=labels)
    assert result.skipped == []
    for value in result.values:
        assert value.low <= value.value <= value.high and value.standard_error > 0
        assert value.jackknife.shape == (20,) and value.n == 400 and value.judge == CATALOG[value.name].judge
    named = {value.name: value for value in result.values}
    expected = frechet_distance_from_features(reference.features, outputs["inception.features"])
    assert named["fid"].value == pytest.approx(expected, rel=1e-9)
    fid, fixed = named["fid"], named["fid_corrected"]
    corrected = jackknife(fid.value, fid.jackknife, reference=fid.jackknife_reference).corrected
    assert fixed.value == fid.corrected == pytest.approx(corrected)
    assert jackknife(corrected, fixed.jackknife, reference=fixed.jackknife_reference).corrected == pytest.approx(
        corrected
    )
    assert fixed.standard_error == pytest.approx(fid.standard_error)
    assert named["is"].corrected is None
    for name in ("fid", "kid", "precision", "recall", "density", "coverage"):
        value = named[name]
        assert value.jackknife_reference.shape == (20,) and "20 blocks, 20 of the reference" in value.method
        assert value.standard_error > jackknife(value.value, value.jackknife).standard_error
    for name in ("is", "clip", "accuracy"):
        assert named[name].jackknife_reference is None and "reference" not in named[name].method


def test_per_class_values_are_class_means():
    outputs, reference, labels = cell()
    rows = measure(outputs, reference, DIGITS, labels=labels).per_class
    assert {row.metric for row in rows} == {"clip", "pick", "accuracy", "fid", "kid"} and len(rows) == 50
    clip = next(row for row in rows if row.metric == "clip" and row.label == 3)
    assert clip.value == pytest.approx(outputs["clip.score"][labels == 3].mean()) and clip.n == 40
    fid = next(row for row in rows if row.metric == "fid" and row.label == 3)
    expected = frechet_distance_from_features(
        reference.features[reference.labels == 3], outputs["inception.features"][labels == 3]
    )
    assert fid.value == pytest.approx(expected, rel=1e-9)
    assert {(row.n, row.n_reference) for row in rows if row.metric in ("fid", "kid")} == {(40, 30)}
    assert clip.n_reference is None


def test_within_classes_kid_orders_them_by_error_where_fid_orders_them_by_their_spread():
    random = np.random.default_rng(5)
    classes, n, d = 30, 50, 128
    spread, error = random.uniform(0.5, 2, classes), random.uniform(0, 0.4, classes)
    labels = np.repeat(np.arange(classes), n)
    real = spread[labels, None] * random.normal(size=(classes * n, d))
    fake = spread[labels, None] * (random.normal(size=(classes * n, d)) + error[labels, None])
    options = {"kid_degree": 1}  # the distance of means, known: |shift|^2 / d
    result = measure({"inception.features": fake}, ReferenceFeatures.of(real, labels), ["fid", "kid"],
                     labels=labels, options=options)  # fmt: skip
    values = {name: [row.value for row in result.per_class if row.metric == name] for name in ("fid", "kid")}
    true = (spread * error) ** 2
    assert spearmanr(values["kid"], true).statistic > 0.9 > spearmanr(values["fid"], true).statistic
    assert spearmanr(values["fid"], spread).statistic > 0.95


def test_statistics_alone_serve_fid_and_skip_what_needs_features():
    outputs, reference, labels = cell()
    moments = Moments.of(reference.features)
    known = ReferenceFeatures(mu=moments.mean, sigma=moments.covariance, n=300)
    result = measure(outputs, known, ["fid", "kid", "recall", "clip"], labels=labels)
    assert [value.name for value in result.values] == ["fid", "clip"]
    full = measure(outputs, reference, ["fid"], labels=labels).values[0]
    assert result.values[0].value == pytest.approx(full.value, rel=1e-9)
    assert "reference sampling not included" in result.values[0].method
    assert result.values[0].jackknife_reference is None and full.standard_error > result.values[0].standard_error
    assert {skip.name for skip in result.skipped} == {"kid", "recall"}
    assert "only its mean and covariance are known" in result.skipped[0].reason


def test_a_metric_that_cannot_be_computed_leaves_the_others():
    outputs, reference, labels = cell(n=8, classes=2)
    outputs["pick.score"][3] = np.nan
    result = measure(
        outputs, reference, ["fid", "is", "kid_subsets", "fid_infinity", "clip", "pick", "fd_dinov2"], labels=labels
    )
    assert [value.name for value in result.values] == ["fid", "clip"]
    reasons = {skip.name: skip.reason for skip in result.skipped}
    assert reasons["is"] == "10 splits need at least 10 samples, got 8"
    assert "subsets of 1000" in reasons["kid_subsets"] and "80 for d = 16; got 8" in reasons["fid_infinity"]
    assert "not finite for 1 of 8 images" in reasons["pick"] and "no judge produced" in reasons["fd_dinov2"]


def test_features_of_another_judge_are_refused():
    outputs, _, labels = cell()
    result = measure(outputs, ReferenceFeatures.of(np.zeros((50, 9))), ["fid", "kid"], labels=labels)
    assert all("different judges" in skip.reason for skip in result.skipped) and len(result.skipped) == 2


def test_agreement_needs_a_judge_of_the_same_classes():
    outputs, reference, labels = cell()
    result = measure(outputs, reference, ["accuracy"], labels=labels, options={"num_classes": 1000})
    assert result.skipped[0].reason.startswith("the judge has 10 classes, the labels 1000")


def test_a_classifier_and_a_second_clip_of_their_own_are_read_apart():
    outputs, reference, labels = cell()
    logits = np.zeros((len(labels), 10), dtype=np.float32)
    logits[np.arange(len(labels)), labels] = 1.0
    logits[:100] = np.roll(logits[:100], 1, axis=1)
    outputs["classifier.logits"] = logits
    outputs["clip_l14.score"] = 2 * outputs["clip.score"]
    outputs["hpsv2.score"] = outputs["image_reward.score"] = outputs["aesthetic.score"] = outputs["pick.score"]
    names = ["accuracy", "top1", "clip", "clip_l14", "hpsv2", "image_reward", "aesthetic"]
    result = measure(outputs, reference, names, labels=labels, options={"num_classes": 10})
    accuracy, top1, clip, clip_l14, *preferences = result.values
    assert all(value.low < value.value < value.high for value in preferences)
    assert top1.value == 0.75 and top1.low < 0.75 < top1.high and top1.judge == "classifier"
    assert accuracy.value != top1.value and clip_l14.value == pytest.approx(2 * clip.value)
    assert {row.metric for row in result.per_class} == set(names)


def test_other_judges_have_their_own_reference():
    outputs, reference, labels = cell()
    random = np.random.default_rng(1)
    outputs["dinov2.features"] = random.normal(size=(400, 8))
    outputs["clip_l14_336.features"] = random.normal(size=(400, 8)) / 8**0.5
    references = {
        "inception.features": reference,
        "dinov2.features": ReferenceFeatures.of(random.normal(size=(300, 8))),
        "clip_l14_336.features": ReferenceFeatures.of(random.normal(size=(300, 8)) / 8**0.5),
    }
    result = measure(outputs, references, ["fid", "fd_dinov2", "cmmd"], labels=labels)
    assert result.skipped == [] and result.values[1].judge == "dinov2"


def test_without_labels_or_enough_samples_for_blocks_values_remain():
    outputs, reference, _ = cell(n=3)
    outputs.pop("inception.logits")
    result = measure(outputs, reference, ["fid", "clip"])
    assert result.values[0].low is None and result.values[0].jackknife is None and result.per_class == []
    assert "low-rank" in result.values[0].method


def test_unknown_names_and_uneven_arrays_are_one_clear_line():
    outputs, reference, labels = cell()
    with pytest.raises(BenchError, match="unknown metric 'fdi': did you mean fid"):
        measure(outputs, reference, ["fdi"], labels=labels)
    with pytest.raises(BenchError, match="unknown metric option"):
        measure(outputs, reference, ["fid"], labels=labels, options={"splits": 3})
    with pytest.raises(BenchError, match="differ in length"):
        JudgeOutputs({"a": np.ones(3), "b": np.ones(4)})
    with pytest.raises(BenchError, match="one label per image"):
        measure(outputs, reference, ["fid"], labels=labels[1:])


def test_a_cell_of_the_default_protocol_takes_well_under_a_second():
    outputs, reference, labels = cell(n=2000, d=48)
    measure(outputs, reference, DIGITS, labels=labels)
    start = time.process_time()
    measure(outputs, reference, DIGITS, labels=labels)
    assert time.process_time() - start < 1.0


def test_the_catalog_is_light():
    code = "import sys, results.catalog; print(sorted({'numpy', 'scipy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert all(fact.definition.endswith(".") and fact.title for fact in CATALOG.values())
