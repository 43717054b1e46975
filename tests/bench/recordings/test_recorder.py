"""`bench adapter record`: what it writes, `bench parity` replays."""

import json

import pytest

from bench.cli import main
from bench.recordings.recorder import Recorder
from bench.recordings.replay import run_case

SCRIPT = '''
from pathlib import Path

import torch

from bench.contracts.noise import RecordedNoise
from bench.contracts.recording import load_case, recorded_adapter
from adapters.sit import SiT

case = load_case(Path({case!r}))


def record(recorder):
    """The 'upstream' of this test is the network of a recorded case, sampled by Euler's method."""
    adapter = recorded_adapter(case, SiT)
    network = adapter.network
    recorder.network_of(case.weights, case.architecture, repository="here", license="MIT")
    x, t, labels = case.tensors["net_x"], case.tensors["net_t"], case.tensors["net_labels"]
    recorder.call("forward", lambda x, t, labels: network(x, t, labels), x=x, t=t, labels=labels)
    noise = torch.randn(len(labels), *adapter.latent_shape, generator=torch.Generator().manual_seed(1))
    settings = adapter.Settings.checked({{}}, "here")
    recorder.sample(
        "two", lambda: adapter.generate(labels, 2, 1.0, RecordedNoise(noise), settings), network=network, noise=noise,
        labels=labels, steps=2,
    )
'''


@pytest.fixture
def script(tmp_path, request):
    place = tmp_path / "upstream.py"
    golden = request.config.rootpath / "tests" / "golden" / "sit-a"
    place.write_text(SCRIPT.format(case=str(golden)), encoding="utf-8")
    return place


def run(*words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_a_recorded_case_is_replayed_and_a_changed_one_found(script, tmp_path, capsys):
    case = tmp_path / "case"
    assert run("adapter", "record", script, case, "--adapter", "sit") == 0
    assert "bench parity" in capsys.readouterr().err
    results = run_case(case)
    assert [(result.call, result.ok) for result in results] == [("forward", True), ("two", True)], results
    spec = json.loads((case / "case.json").read_text())
    assert spec["calls"][1]["nfe_per_image"] == 2 and spec["upstream"]["license"] == "MIT"
    spec["calls"][1]["nfe_per_image"] = 3
    (case / "case.json").write_text(json.dumps(spec))
    assert [result.ok for result in run_case(case)] == [True, False]
    assert run("adapter", "record", script, case, "--adapter", "sit") == 2  # nothing is overwritten


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "has no function record(recorder)"),
        ("def record(recorder): pass", "nothing was recorded"),
        ("def record(recorder): 1 / 0", "ZeroDivisionError"),
        (
            "import torch\ndef record(recorder): recorder.call('a', lambda x: torch.zeros(1), x=3)",
            "x is int, not a tensor",
        ),
        ("def record(recorder): recorder.call('a', lambda: None)", "no tensor in it"),
    ],
)
def test_a_script_that_records_nothing_is_one_line(tmp_path, capsys, text, said):
    script = tmp_path / "upstream.py"
    script.write_text(text, encoding="utf-8")
    assert run("adapter", "record", script, tmp_path / "case", "--adapter", "sit") == 2
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1 and not (tmp_path / "case").exists()


def test_draws_of_upstream_are_kept_in_order():
    import torch

    original = torch.randn_like
    with Recorder("a", "sit").draws() as kept:
        first, second = torch.randn(2, 3), torch.randn_like(torch.zeros(2, 3))
    assert [torch.equal(a, b) for a, b in zip(kept, (first, second), strict=True)] == [True, True]
    assert torch.randn_like is original
