"""Recordings need not be complete: what is null or absent in a call has its plain meaning for every family."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters.dmf import DecoupledMeanFlow
from adapters.ucgm import UCGM, UCGMSettings, trajectory
from bench.contracts.recording import Case, load_case, recorded_adapter
from bench.recordings.replay import open_replay, replay_case
from results.errors import BenchError

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


NULL_ROW = tuple(name for name in CASES if name.startswith((
    "alphaflow", "dmf", "drift", "facm", "gmflow", "imf-flax", "imm", "jit", "meanflow-dit", "mf-rae", "piflow",
    "pmf-flax", "rae-ditdh", "shortcut", "sit", "soflow-dit", "tim", "tvm", "ucgm-sit", "ucgm-tit-linear-few",
)))  # fmt: skip
"""Cases whose label table has a row for no label, its last."""


@pytest.mark.parametrize("name", NULL_ROW)
def test_without_recorded_labels_the_null_label_is_asked_for(name: str) -> None:
    case = load_case(GOLDEN / name)
    facts = case.architecture
    null = facts["num_classes"] - (1 if "noise_classes" in facts else 0)  # drifting counts it among the classes
    replay = open_replay(case)
    calls = [call for call in case.spec["calls"] if call["kind"] == "network" and "guidance" not in call][:1]
    for call in (*calls, next(sample_calls(case))):
        network = call["kind"] == "network"
        stated = call["inputs"] if network else call
        labels = case.tensors[stated["labels"]]
        case.tensors["null"] = torch.full_like(labels, null)  # type: ignore[index]
        unlabelled, nulls = ({**stated, "labels": value} for value in (None, "null"))
        given = [{**call, "inputs": made} if network else made for made in (unlabelled, nulls)]
        with torch.inference_mode():
            found, expected = (replay({key: value for key, value in one.items() if value is not None}) for one in given)
        torch.testing.assert_close(found["output"], expected["output"], atol=0, rtol=0)


def test_edm2_without_recorded_labels_leaves_its_label_branch_out() -> None:
    case = load_case(GOLDEN / "ucgm-edm2-edm")
    adapter = recorded_adapter(case, UCGM, "classifier-free")
    (call,) = (dict(call) for call in case.spec["calls"] if call["id"] == "steps2")
    noise, settings = case.noise(call), UCGMSettings.checked(case.options(call), case.name)
    with torch.inference_mode():
        found = open_replay(case)({key: value for key, value in call.items() if key != "labels"})
        labelled = open_replay(case)(call)
        predict = lambda x, t: adapter.evaluate(x, t, None)  # noqa: E731
        *_, expected = trajectory(predict, noise, adapter.latent_shape, 2, settings)
    torch.testing.assert_close(found["output"], expected, atol=0, rtol=0)
    assert found["nfe_per_image"] == 2.0 and not torch.allclose(found["output"], labelled["output"], atol=1e-2)


@pytest.mark.parametrize("name", ["imf-torch-a", "pmf-torch-a"])
def test_a_recorded_scale_below_1_is_told_to_the_network_as_any_other(name: str) -> None:
    case = load_case(GOLDEN / name)
    (call,) = (dict(call) for call in case.spec["calls"] if call["id"] == "s1_0")
    z = case.architecture.get("noise_scale", 1.0) * case.tensors[call["noise"]]
    scalars = [torch.full((len(z),), value) for value in (1.0, 1.0, 0.5, 0.0, 1.0)]
    tensors = {f"scalar{place}": value for place, value in enumerate(scalars)} | {"z": z}
    case.tensors.update(tensors)  # type: ignore[attr-defined]
    roles = dict(zip(("t", "h", "omega", "t_min", "t_max"), tensors, strict=False))
    replay = open_replay(case)
    with torch.inference_mode():
        u = replay({"id": "u", "kind": "network", "inputs": {"x": "z", "labels": call["labels"], **roles}})["output"]
        torch.testing.assert_close(replay({**call, "guidance": 0.5})["output"], z - u)
        with pytest.raises(BenchError, match="guidance 0 has no reciprocal"):
            replay({**call, "guidance": 0.0})


def test_a_decoupled_network_may_tell_either_time_to_all_of_its_blocks() -> None:
    case = load_case(GOLDEN / "dmf-a")
    x, t, labels = torch.randn(2, 4, 8, 8), torch.tensor([0.9, 0.4]), torch.tensor([1, 2])
    outputs = {}
    for depth in (0, 3, 4):
        spec = {**case.spec, "architecture": {**case.architecture, "dmf_depth": depth}}
        network = recorded_adapter(replace(case, spec=spec), DecoupledMeanFlow).network
        with torch.inference_mode():
            outputs[depth] = [network(x, t + k * 0.1, t - r * 0.1, labels) for k, r in ((0, 1), (1, 1), (0, 2))]
    plain, later, nearer = outputs[0]
    assert torch.equal(plain, later) and not torch.allclose(plain, nearer)
    assert not torch.allclose(outputs[4][0], outputs[4][2]), "the last layer is told r"
    assert not torch.allclose(outputs[4][0], outputs[3][0])


@pytest.mark.parametrize("name", ["ucgm-tit-linear-few", "ucgm-edm2-edm"])
def test_a_recorded_scale_of_1_costs_two_evaluations_and_changes_nothing(name: str) -> None:
    case = load_case(GOLDEN / name)
    (call,) = (dict(call) for call in case.spec["calls"] if call["id"] == "steps4-guided")
    with torch.inference_mode():
        off, at_one = (open_replay(case)({**call, "guidance": scale}) for scale in (0.0, 1.0))
    assert (off["nfe_per_image"], at_one["nfe_per_image"]) == (4.0, call["nfe_per_image"])
    torch.testing.assert_close(off["output"], at_one["output"], atol=1e-5, rtol=1e-5)
