"""An audit leaves a true row alone and contradicts rows that were made otherwise than they say."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.cli import main
from bench.metrics.measure import ReferenceFeatures, measure
from bench.metrics.registry import fact_of
from bench.run.audit import Settings, allowed_moves, audit
from bench.run.evidence import evidence_of
from bench.run.follows import follow
from bench.run.plan import Request
from bench.run.runner import run
from bench.run.score import score_images
from bench.run.worker import _adapters
from protocols import find_protocol
from results.cells import CellDirectory, cell_directories
from results.evidence import projection, read_evidence
from results.records import checked, columns_of
from results.statistics import COUNTED_ONCE, influences

SETTINGS = Settings(seed=5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, quiet):
    """Rows of the small flow: two steps, three steps, and two steps under a little guidance."""
    path = tmp_path_factory.mktemp("audit") / "runs"
    for steps, cfg in ((2, 1.0), (3, 1.0), (2, 1.05)):
        request = Request(
            find_protocol("digits"), models=("digits-flow-small",), steps=(steps,), cfg=(cfg,), num_samples=250
        )
        run(request, path, progress=quiet(), workers=1)
    return path


@pytest.fixture(scope="module")
def rows(runs):
    """Record and evidence by (steps, cfg)."""
    found = {}
    for directory in cell_directories(runs):
        record = directory.read_result()
        found[record["cell"]["steps"], record["cell"]["cfg"]] = record, read_evidence(directory.path)
    return found


def said(found):
    return " ".join(found.reasons)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_a_true_row_is_consistent_at_any_batch_size(rows, runs, batch_size):
    found = audit(*rows[2, 1.0], runs, replace(SETTINGS, batch_size=batch_size))
    assert (found.outcome, found.compared, found.moved) == ("consistent", 64, 0)
    verdicts = {finding.metric: finding.verdict for finding in found.findings}
    assert {name for name, verdict in verdicts.items() if verdict == "follows"} >= {"fid", "is", "clip", "pick"}
    assert "contradicted" not in verdicts.values()


@pytest.mark.parametrize(("protocol", "model"), [("gaussian", "gaussian"), ("digits", "digits-flow-small")])
def test_a_true_row_of_few_samples_is_consistent(tmp_path, quiet, protocol, model):
    """Its distances are mostly bias, and pairs of all its samples are no independent draws."""
    request = Request(find_protocol(protocol), models=(model,), steps=(2,), cfg=(1.0,), num_samples=40)
    run(request, tmp_path, progress=quiet(), workers=1)
    (directory,) = cell_directories(tmp_path)
    found = audit(directory.read_result(), read_evidence(directory.path), tmp_path, SETTINGS)
    assert found.outcome == "consistent", said(found)


@pytest.mark.parametrize("other", [(3, 1.0), (2, 1.05)])
def test_a_row_of_other_steps_or_guidance_is_contradicted(rows, runs, other):
    record, evidence = copy.deepcopy(rows[2, 1.0][0]), rows[other][1]
    record["metrics"] = rows[other][0]["metrics"]
    found = audit(record, evidence, runs, SETTINGS)
    assert found.outcome == "contradicted" and found.moved > 60
    assert "samples drawn again are other ones" in said(found)


def test_a_row_of_slightly_other_weights_is_contradicted(rows, runs):
    record, evidence = rows[2, 1.0]
    assert audit(record, evidence, runs, SETTINGS).moved == 0
    (adapter,) = _adapters.values()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in adapter.network.parameters():
            weight.add_(0.01 * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=draws))
    try:
        assert audit(record, evidence, runs, SETTINGS).outcome == "contradicted"
    finally:
        _adapters.clear()


@pytest.mark.parametrize("metric", find_protocol("digits").metrics)
def test_a_metric_that_was_edited_with_its_interval_and_blocks_is_contradicted(rows, runs, metric):
    record, evidence = copy.deepcopy(rows[2, 1.0][0]), rows[2, 1.0][1]
    (row,) = (row for row in record["metrics"] if row["metric"] == metric)
    by = 0.02 * abs(row["value"]) * (-1 if fact_of(metric).better == "lower" else 1)
    for key in ("value", "low", "high", "corrected"):
        row[key] = None if row[key] is None else row[key] + by
    for key in ("jackknife", "jackknife_reference"):
        row[key] = None if row[key] is None else [value + by for value in row[key]]
    found = audit(record, evidence, runs, SETTINGS)
    assert found.outcome == "contradicted" and f"{metric}: " in said(found)


@pytest.mark.parametrize("metric", ["kid", "recall"])
def test_a_value_that_was_edited_alone_is_contradicted_by_its_blocks(rows, runs, metric):
    record, evidence = copy.deepcopy(rows[2, 1.0][0]), rows[2, 1.0][1]
    (row,) = (row for row in record["metrics"] if row["metric"] == metric)
    row["value"] += 0.9 * (row["high"] - row["value"])
    found = audit(record, evidence, runs, SETTINGS)
    assert found.outcome == "contradicted" and "block" in said(found)


@pytest.mark.parametrize(("share", "interval"), [(0.6, 0.6), (0.75, 0.4)])
def test_a_standard_error_below_what_pairs_of_blocks_can_do_is_contradicted(rows, runs, share, interval):
    record, evidence = copy.deepcopy(rows[2, 1.0][0]), rows[2, 1.0][1]
    (row,) = (row for row in record["metrics"] if row["metric"] == "fid")
    assert COUNTED_ONCE in row["method"]
    full = np.sqrt(sum((influences(row[key]) ** 2).sum() for key in ("jackknife", "jackknife_reference")))
    half = interval * (row["high"] - row["value"])
    row |= {"standard_error": share * full, "low": row["value"] - half, "high": row["value"] + half}
    found = audit(record, evidence, runs, SETTINGS)
    assert found.outcome == "contradicted" and "not that of its values without each block" in said(found)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("kid/own", lambda own: own - np.float32(0.2 * own.mean())),
        ("kid/cross", lambda cross: cross + np.float32(0.1 * cross.std())),
        ("precision/inside", lambda inside: 1 - inside),
        ("recall/holder", lambda holder: np.where(holder < 0, np.arange(len(holder)) % 250, holder).astype(np.int32)),
        ("recall/radius", lambda radius: 4 * radius),
        ("inception.logits/named", lambda named: np.roll(named, 1)),
        ("inception.features/mean", lambda mean: mean + hidden_from_the_sketch(len(mean))),
    ],
)
def test_evidence_that_was_forged_for_a_metric_is_denied_by_the_samples_drawn_again(rows, runs, part, change):
    record, evidence = rows[2, 1.0]
    arrays = {**evidence.arrays, part: change(evidence.arrays[part])}
    found = audit({**record, "metrics": []}, evidence._replace(arrays=arrays), runs, SETTINGS)
    assert found.outcome == "contradicted" and "samples drawn again" in said(found)


def hidden_from_the_sketch(width):
    """Return a large step that the projection of a sketch does not see."""
    seen = np.linalg.qr(projection("inception.features", width))[0]
    step = np.ones(width) - seen @ (seen.T @ np.ones(width))
    return (3 * step).astype(np.float32)


def test_evidence_of_the_first_version_is_read_and_says_less(rows, runs):
    record, evidence = rows[2, 1.0]
    old = {
        name: values
        for name, values in evidence.arrays.items()
        if name.partition("/")[0] not in find_protocol("digits").metrics
    }
    found = audit(record, evidence._replace(arrays=old), runs, SETTINGS)
    assert found.outcome == "consistent"
    untold = {finding.metric for finding in found.findings if finding.verdict == "cannot tell"}
    assert untold == {"kid", "precision", "recall"}


@pytest.mark.parametrize("metric", ["density", "coverage", "kid_subsets", "fid_infinity"])
def test_metrics_that_the_digits_leave_out_follow_from_evidence_too(metric):
    random = np.random.default_rng(0)
    features, real = random.normal(size=(400, 12)), random.normal(0.1, 1.0, size=(300, 12))
    options = {"kid_subset_size": 100, "fid_infinity_sizes": 5}
    protocol = replace(find_protocol("digits"), metrics=("fid", "kid", metric), metric_options=options)
    references = {"inception.features": ReferenceFeatures.of(real)}
    measured = measure({"inception.features": features}, references, protocol.metrics, options=options)
    evidence = evidence_of(protocol, {"inception.features": features}, measured.kept)
    stored = [
        {"metric": value.name, "value": value.value, "n": value.n, "method": value.method, "low": value.low,
         "high": value.high, "standard_error": value.standard_error, "corrected": value.corrected,
         "jackknife": None if value.jackknife is None else list(value.jackknife),
         "jackknife_reference": None if value.jackknife_reference is None else list(value.jackknife_reference)}
        for value in measured.values
    ]  # fmt: skip
    assert {found.verdict for found in follow(stored, evidence, protocol, references, None)} == {"follows"}
    stored[2]["value"] += max(0.5, stored[2]["value"])
    (denied,) = (f for f in follow(stored, evidence, protocol, references, None) if f.verdict == "contradicted")
    assert denied.metric == metric


def test_moments_that_the_sketch_denies_are_contradicted(rows, runs):
    record, evidence = rows[2, 1.0]
    arrays = dict(evidence.arrays)
    arrays["inception.features/mean"] = arrays["inception.features/mean"] * np.float32(0.9)
    found = audit(record, evidence._replace(arrays=arrays), runs, SETTINGS)
    assert found.outcome == "contradicted" and "the sketch of 'inception.features'" in said(found)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol": "nowhere"}, "protocol 'nowhere' is not here"),
        ({"measurement": "0" * 64}, "measures otherwise here"),
        ({"weights_sha256": "0" * 64, "cell_id": "0" * 20}, "has other weights here"),
        ({"cell_id": "0" * 20}, "is another model here"),
        ({"model": "nobody"}, "unknown model 'nobody'"),
        ({"dtype": "float8"}, "no tolerance is recorded"),
        ({"status": "failed"}, "the row is failed"),
    ],
)
def test_what_cannot_be_told_here_says_why(rows, runs, change, reason):
    record = copy.deepcopy(rows[2, 1.0][0])
    record["cell"] |= change
    found = audit(record, rows[2, 1.0][1], runs, SETTINGS)
    assert found.outcome == "cannot tell" and reason in said(found)


def test_columns_that_may_be_empty_may_be_left_out(rows, runs):
    record, evidence = copy.deepcopy(rows[2, 1.0][0]), rows[2, 1.0][1]
    for part, table in ((record["cell"], "cells"), *((metric, "metrics") for metric in record["metrics"])):
        for column in columns_of(table):
            if not column.required and column.name != "value":
                part.pop(column.name, None)
    record["metrics"][0] |= {"low": 0.0, "high": None}
    record["metrics"][1] |= {"value": None}
    checked(record)
    assert audit(record, evidence, runs, SETTINGS).outcome in ("consistent", "cannot tell")


def test_a_row_without_evidence_cannot_be_told(rows, runs):
    assert "has no evidence" in said(audit(rows[2, 1.0][0], None, runs, SETTINGS))


def test_images_made_elsewhere_keep_evidence_that_their_metrics_follow_from(tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8).repeat(3, axis=3)
    np.savez(tmp_path / "a.npz", arr_0=images, arr_1=np.arange(60) % 10)
    runs = tmp_path / "runs"
    directory = CellDirectory(runs, score_images(tmp_path / "a.npz", find_protocol("digits"), runs, name="a"))
    found = audit(directory.load_result(), read_evidence(directory.path), runs, SETTINGS)
    assert found.outcome == "cannot tell" and "cannot be drawn again" in said(found)
    assert {finding.verdict for finding in found.findings} == {"follows", "cannot tell"}


def test_outputs_that_are_not_finite_leave_no_evidence():
    broken = {"pick.score": np.array([1.0, np.nan], np.float32), "clip.score": np.ones(2, np.float32)}
    assert evidence_of(find_protocol("digits"), broken, {}).outputs == ["clip.score"]


def test_the_allowed_number_of_samples_is_that_of_a_binomial():
    from scipy.stats import binom

    from bench.run.audit import FALSE_ALARMS, TOLERANCES

    for tolerance in TOLERANCES.values():
        allowed = allowed_moves(64, tolerance)
        assert binom.sf(allowed, 64, tolerance.share) <= FALSE_ALARMS < binom.sf(allowed - 1, 64, tolerance.share)
        assert allowed < 64


def command(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    shown = capsys.readouterr()
    return stop.value.code or 0, shown.out, shown.err


def test_the_command_ends_with_0_for_consistent_rows_and_with_1_for_others(rows, runs, tmp_path, capsys):
    code, out, _ = command(capsys, "audit", "digits-flow-small", "--seed", 1, "--json", "--runs-dir", runs)
    found = json.loads(out)
    assert code == 0 and [one["outcome"] for one in found] == ["consistent"] * 3
    assert {one["seed"] for one in found} == {1}
    forged = CellDirectory(tmp_path, rows[2, 1.0][0]["cell"]["cell_id"])
    record = copy.deepcopy(rows[2, 1.0][0])
    next(row for row in record["metrics"] if row["metric"] == "clip")["value"] += 1
    forged.path.mkdir(parents=True)
    (forged.path / "evidence.safetensors").write_bytes(
        (runs / "cells" / forged.path.name / "evidence.safetensors").read_bytes()
    )
    forged.write_result(record)
    code, out, _ = command(capsys, "audit", "digits-flow-small@2", "--runs-dir", tmp_path)
    assert code == 1 and out.startswith("contradicted: digits-flow-small, 2 steps") and "clip:" in out
    for name, source in (("forged", tmp_path), ("honest", runs)):  # the honest one must not stand for the other
        command(capsys, "bundle", forged.path.name, "-o", tmp_path / f"{name}.zip", "--runs-dir", source)
    code, out, _ = command(capsys, "audit", *sorted(tmp_path.glob("*.zip")), "--json")
    assert code == 1 and sorted(one["outcome"] for one in json.loads(out)) == ["consistent", "contradicted"]
    code, _, err = command(capsys, "audit", "nobody", "--runs-dir", tmp_path)
    assert code == 2 and "no row 'nobody'" in err and len(err.splitlines()) == 1
