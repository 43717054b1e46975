"""The frozen bounds of MMHM on digits are what their `source` says: real images and clearly broken ones."""

import pytest

from bench.contracts.noise import PhiloxNoise
from bench.references.stored import prepare_reference
from bench.run.quantise import quantise
from bench.run.record import Context, measure_arrays
from bench.run.worker import load_judges
from protocols import find_protocol
from protocols.digits.data import load_split


@pytest.fixture(scope="module")
def score(tmp_path_factory):
    """Judge float images [n, 1, 8, 8] in [-1, 1] as if they were a model's samples of the training labels."""
    protocol = find_protocol("digits")
    judges = load_judges(protocol, "cpu")
    reference = prepare_reference(protocol, judges, tmp_path_factory.mktemp("anchors"))
    labels = load_split("train").labels

    def measure(images):
        pixels = quantise(images.expand(-1, 3, -1, -1), protocol.quantise, protocol.levels)
        arrays = {
            f"{name}.{key}": values.numpy()
            for name, judge in judges.items()
            for key, values in judge(pixels, labels).items()
        }
        context = Context(protocol, reference, {}, {}, "cpu")
        measured = measure_arrays(context, arrays, labels.numpy()).values
        return {value.name: value.corrected if value.name == "fid" else value.value for value in measured}

    return measure


def test_the_bounds_are_the_anchors(score):
    bounds = find_protocol("digits").composite["bounds"]
    real = load_split("train").images[:, :1].float() / 127.5 - 1
    noise = PhiloxNoise(0, range(len(real))).normal((1, 8, 8))
    best, worst = score(real), score(real + 0.6 * noise)
    for metric, (low, high) in bounds.items():
        expected_low, expected_high = (best, worst) if metric == "fid" else (worst, best)
        assert low == pytest.approx(expected_low[metric], rel=0.005)
        assert high == pytest.approx(expected_high[metric], rel=0.005)
