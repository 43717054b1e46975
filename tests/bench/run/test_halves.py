"""Half-precision judges: a digest of their own, proven on the first shard, or else float32."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.judges.base import judge_specs, load_judge
from bench.judges.judge import HALF_TYPES
from bench.references.stored import feature_judges
from bench.run.halves import halves, prove, remark, settled, strict_beside
from bench.run.plan import Request
from bench.run.runner import run
from protocols import load_protocol
from results.cells import CellDirectory
from results.errors import BenchError

PROTOCOL = """
extends = "digits"
name = "halved"

[judges.clip]
precision = "half"

[judges.pick]
precision = "half"

[metrics]
names = ["clip", "pick", "accuracy"]
"""


@pytest.fixture
def halved(tmp_path):
    path = tmp_path / "halved.toml"
    path.write_text(PROTOCOL)
    return load_protocol(path)


@pytest.fixture
def on_a_processor(monkeypatch):
    """Let half precision be bfloat16 where the tests run."""
    monkeypatch.setitem(HALF_TYPES, "cpu", torch.bfloat16)
    monkeypatch.setattr("bench.run.worker._judges", {})


def judges_of(protocol):
    return {
        spec.name: load_judge(spec, device="cpu", root=protocol.path.parent)
        for spec in judge_specs(protocol)
        if spec.name in ("inception", "clip", "pick")
    }


def test_precision_is_in_the_digest_and_a_strict_judge_keeps_its_own(halved, on_a_processor):
    plain, asked = judges_of(load_protocol(halved.path.parent.joinpath("halved.toml"))), judges_of(halved)
    assert asked["clip"].facts["precision"] == "half" and asked["clip"].half is torch.bfloat16
    strict = asked["clip"].strict()
    assert strict.digest != asked["clip"].digest and "precision" not in strict.facts and strict.half is None
    assert asked["inception"].strict() is asked["inception"]
    assert halves(asked) == ["clip", "pick"] and list(strict_beside(asked)) == ["strict:clip", "strict:pick"]
    assert feature_judges(plain)["inception"].half is None


def test_half_moves_little_and_never_the_input(halved, on_a_processor):
    judge = judges_of(halved)["clip"]
    judge.prepare(halved.prompts)
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (8, 3, 8, 8), dtype=np.uint8))
    labels = torch.arange(8)
    seen = []
    judge.towers.model.visual.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    half, exact = judge(images, labels)["score"], judge.strict()(images, labels)["score"]
    assert half.dtype == exact.dtype == torch.float32
    assert 0 < float((half - exact).abs().max()) < 1.0
    assert torch.equal(seen[0], seen[1]) and seen[0].dtype == torch.float32


def test_on_a_processor_half_is_float32(halved):
    assert halves(judges_of(halved)) == []


def test_a_network_of_published_values_refuses_half(halved):
    halved.path.write_text(PROTOCOL + '\n[judges.inception]\nprecision = "half"\n')
    with pytest.raises(BenchError, match=r"judges\.inception\.precision.*float32 alone"):
        judges_of(load_protocol(halved.path))
    halved.path.write_text(PROTOCOL.replace('"half"', '"quarter"'))
    with pytest.raises(BenchError, match="precision"):
        judge_specs(load_protocol(halved.path))


def measured(said):
    values = said["clip.score"].astype(np.float64)
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    mean = float(values.mean())
    clip = SimpleNamespace(name="clip", value=mean, low=mean - half, high=mean + half, judge="clip")
    return SimpleNamespace(values=[clip] if np.isfinite(mean) else [])


SCORES = np.random.default_rng(1).normal(60, 1, 500).astype(np.float32)
HALF_WIDTH = 1.96 * float(SCORES.std(ddof=1)) / 2000**0.5  # of 2,000 samples


@pytest.mark.parametrize(
    ("moved", "kept"), [(0.0, "half"), (0.09, "half"), (-0.09, "half"), (0.12, "float32"), (np.inf, "float32")]
)
def test_a_tenth_of_the_half_width_at_all_samples_decides(moved, kept):
    arrays = {"clip.score": SCORES + np.float32(moved * HALF_WIDTH), "strict:clip.score": SCORES}
    found, proof = prove(arrays | {"inception.features": np.zeros((500, 2))}, measured, 2000)
    assert proof["clip"]["kept"] == kept and set(found) == {"clip.score", "inception.features"}
    assert found["clip.score"] is (SCORES if kept == "float32" else arrays["clip.score"])
    if np.isfinite(moved):
        effect = proof["clip"]["effects"]["clip"]
        assert effect["moved"] == pytest.approx(abs(moved) * HALF_WIDTH, rel=0.02, abs=1e-6)
        assert effect["half_width"] == pytest.approx(HALF_WIDTH, rel=1e-6)
    assert kept in remark(proof, "clip", "clip") and remark(proof, "inception", "fid") is None


def test_an_effect_that_cannot_be_told_falls_back():
    few = SCORES[:3]

    def without_interval(said):
        mean = float(said["clip.score"].mean())
        return SimpleNamespace(values=[SimpleNamespace(name="clip", value=mean, low=None, high=None, judge="clip")])

    _, proof = prove({"clip.score": few + 1e-3, "strict:clip.score": few}, without_interval, 3)
    assert proof["clip"]["kept"] == "float32"


def method_of(summary, metric):
    directory = CellDirectory(summary.database.parent, summary.measured[0].cell_id)
    (row,) = [row for row in directory.read_result()["metrics"] if row["metric"] == metric]
    return row["method"], row["value"]


def test_a_run_records_the_effect_and_may_fall_back(halved, on_a_processor, tmp_path, quiet, monkeypatch):
    monkeypatch.setattr("bench.run.shard.SHARD_SAMPLES", 100)
    request = Request(halved, models=("digits-flow",), steps=(1,), cfg=(1.0,), num_samples=200, batch_size=50)

    def measure(name):
        return run(request, tmp_path / name, progress=quiet(), workers=1)

    monkeypatch.setattr("bench.run.halves.TOLERATED", 1e9)
    kept, value = method_of(measure("kept"), "clip")
    assert "judged in half: half precision moves the first 64 images by" in kept
    monkeypatch.setattr("bench.run.halves.TOLERATED", 0.0)
    with pytest.warns(UserWarning, match="half precision is not accurate enough for judge 'clip'"):  # and drawn again
        fallen, exact = method_of(measure("fallen"), "clip")
    assert "judged in float32" in fallen and value != exact
    monkeypatch.setattr("bench.run.worker._judges", {})
    monkeypatch.delitem(HALF_TYPES, "cpu")
    plain, strict = method_of(measure("plain"), "clip")
    assert strict == exact and "judged in" not in plain


def test_settled_judges_are_strict_unless_proven(halved, on_a_processor):
    judges = judges_of(halved)
    found = settled(judges, {"clip": {"kept": "half"}, "pick": {"kept": "float32"}})
    assert (found["clip"].half, found["pick"].half) == (torch.bfloat16, None)
    assert all(judge.half is None for judge in settled(judges, {}).values())
