"""Networks that their authors pickled whole: read to the same tensors as their state dicts, without their classes."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pickled_networks import Calls, Named, dumps, module, network, persistence, save

from bench.contracts.card import WeightsSource
from bench.weights.file import read_state
from bench.weights.formats import read_file
from results.errors import BenchError

GOLDEN = Path(__file__).parents[2] / "golden"
RECORDED = ["edm-adm-tiny/network.pkl", "edm2-autoguidance-tiny/network.pkl", "sid-edm2-a/network.pkl"]
STATE = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}


def read(path, tree="ema", format="pickle"):
    return read_state(path, WeightsSource(format=format, tree=tree), "model")


def written(path, value):
    path.write_bytes(dumps(value))
    return path


def same(found, state=STATE):
    return sorted(found) == sorted(state) and all(
        torch.equal(found[key], state[key]) and found[key].dtype == state[key].dtype for key in state
    )


@pytest.mark.parametrize("file", [*RECORDED, "pfgmpp-a/training-state.pt"])
@pytest.mark.parametrize("format", ["pickle", "torch"])
def test_recorded_pickles_read_to_the_recorded_tensors(file, format):
    path, before = GOLDEN / file, set(sys.modules)
    found = read(path, format=format)
    assert same(found, read_file(path.parent / "weights.safetensors", WeightsSource(format="safetensors")))
    assert not {name for name in set(sys.modules) - before if name.startswith(("torch_utils", "dnnlib", "training"))}


def test_a_training_state_holds_two_networks_and_the_card_chooses():
    path = GOLDEN / "pfgmpp-a" / "training-state.pt"
    ema, net = read(path, "ema", "torch"), read(path, "net", "torch")
    assert sorted(ema) == sorted(net)
    assert not torch.equal(ema["map_layer0.weight"], net["map_layer0.weight"])


@pytest.mark.parametrize("writer", ["pickle", "torch", "torch, old format"])
def test_whatever_a_single_network_is_called_it_is_found(tmp_path, writer):
    made = network(STATE)
    for name, file in (("ema", {"ema": made}), ("net", {"net": made, "loss_fn": None}), ("bare", made)):
        path = tmp_path / name.replace(" ", "")
        if writer == "pickle":
            written(path, file)
        else:
            save(file, path, zipped=writer == "torch")
        assert same(read(path))
        assert same(read(path, "ema?"))
        assert same(read(path, None))


def test_of_two_networks_the_missing_one_is_named_with_the_choice(tmp_path):
    path = written(tmp_path / "a.pkl", {"G": network(STATE), "D": network(STATE)})
    with pytest.raises(
        BenchError, match=r"no tree 'ema' in it .*trees of weights: G, D; choose one with weights\.tree"
    ):
        read(path)
    assert same(read(path, "G"))


def test_the_averaged_generator_is_known_by_its_other_name(tmp_path):
    zeros = {key: torch.zeros_like(value) for key, value in STATE.items()}
    assert same(read(written(tmp_path / "a.pkl", {"G": network(zeros), "G_ema": network(STATE)})))


def test_what_lies_in_a_network_beside_its_weights_is_left_out(tmp_path):
    inner = persistence(
        "Net",
        module(
            {"w": torch.nn.Parameter(STATE["w"]), "none": None},
            {"b": STATE["b"], "cache": torch.zeros(9)},
            _non_persistent_buffers_set={"cache"},
            _forward_pre_hooks={0: Calls(getattr, Calls(Named("training.nets", "Layer")), "hook")},
            scale=np.float64(2.5),
            moment=np.arange(3.0),
        ),
    )
    wrapper = Calls(Named("training.dit", "Wrapper"), state=module(modules={"_orig_mod": inner, "head": None}))
    settings = Calls(Named("dnnlib.util", "EasyDict"))
    file = {"ema": persistence("P", module(modules={"model": wrapper})), "dataset_kwargs": settings}
    assert same(read(written(tmp_path / "a.pkl", file)))


def test_a_file_of_an_upstream_dictionary_is_a_dictionary(tmp_path):
    class EasyDict(dict):
        def __reduce__(self):
            return Named("dnnlib.util", "EasyDict"), (), None, None, iter(self.items())

    file = EasyDict(encoder=None, ema=network(STATE), dataset_kwargs=EasyDict(path="x"))
    assert same(read(written(tmp_path / "a.pkl", file)))


def test_constructor_words_are_kept_as_facts_and_the_source_is_not_looked_at(tmp_path):
    source = f"open({str(tmp_path / 'ran')!r}, 'w')"
    made = network(STATE, "Wrapper", {"label_dim": 10, "mult": (1, 2), "dropout": 0.1}, source, do_scale_param=False)
    found = read(written(tmp_path / "a.pkl", {"ema": made}))
    assert found.class_name == "Wrapper"
    assert found.facts == {"label_dim": 10, "mult": [1, 2], "dropout": 0.1, "do_scale_param": False}
    assert not (tmp_path / "ran").exists()


def test_a_module_pickled_without_persistence_is_read_too(tmp_path):
    torch.save({"model": torch.nn.Linear(3, 2), "epoch": 3}, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt", "model", "torch")
    assert sorted(found) == ["bias", "weight"]


def test_a_plain_pickle_of_tensors_is_a_state_dict(tmp_path):
    assert same(read(written(tmp_path / "a.pkl", {"ema": STATE}), "ema?"))


@pytest.mark.parametrize("size", [100, 9000, 100_000, -1])
def test_a_truncated_network_is_one_line(tmp_path, size):
    path = shutil.copy(GOLDEN / RECORDED[0], tmp_path / "a.pkl")
    Path(path).write_bytes(Path(path).read_bytes()[:size])
    with pytest.raises(BenchError, match=r"a\.pkl.*(damaged|truncated)") as raised:
        read(Path(path))
    assert "\n" not in str(raised.value)
