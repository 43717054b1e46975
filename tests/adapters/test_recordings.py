"""Recordings need not be complete: what is null or absent in a call has its plain meaning for every family."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.contracts.recording import Case, load_case
from bench.recordings.replay import open_replay, replay_case

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = (
    "tvm", "piflow", "gmflow", "tim", "imm", "consistency", "ctm", "caf",
    "alphaflow", "dmf", "drift", "facm", "imf", "jit", "meanflow", "mf-rae", "pmf", "rae-ditdh", "shortcut", "sit",
    "soflow", "ucgm-sit", "ucgm-tit", "ucgm-edm2",
)  # fmt: skip
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.name.startswith(FAMILIES))


def sample_calls(case: Case) -> Iterator[dict]:
    """Yield the recorded sample calls of at most four steps."""
    yield from (dict(call) for call in case.spec["calls"] if call["kind"] == "sample" and call["steps"] <= 4)


@pytest.mark.parametrize("name", CASES)
def test_null_and_absent_entries_are_read_alike(name: str) -> None:
    case = load_case(GOLDEN / name)
    calls = []
    for call in sample_calls(case):
        bare = {key: value for key, value in call.items() if value is not None and key != "nfe_per_image"}
        calls.append(bare | {"nfe_per_image": None, "trajectory": None, "times": None})
    results = replay_case(replace(case, spec={**case.spec, "calls": calls}), open_replay(case))
    assert [result for result in results if not result.ok] == []
    assert all(result.compared == ("output",) for result in results)


@pytest.mark.parametrize("name", CASES)
def test_missing_options_guidance_and_labels_mean_the_plain_sampler(name: str) -> None:
    case = load_case(GOLDEN / name)
    replay, call = open_replay(case), next(sample_calls(case))
    shape = case.tensors[call["noise"]].shape
    for removed in ({"options"}, {"guidance"}, {"labels"}, {"options", "guidance", "labels"}):
        plain = {key: value for key, value in call.items() if key not in removed and value is not None}
        with torch.inference_mode():
            output = replay(plain)["output"]
        assert output.shape == shape and output.isfinite().all()


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("soflow")])
def test_a_recorded_scale_that_upstream_only_writes_down_changes_nothing(name: str) -> None:
    case = load_case(GOLDEN / name)
    calls = [call | {"guidance": 7.0} for call in sample_calls(case)]
    results = replay_case(replace(case, spec={**case.spec, "calls": calls}), open_replay(case))
    assert results and all(result.ok for result in results)
