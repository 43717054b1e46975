"""Checkpoints as people save them, and files that are none."""

import argparse
import collections
import datetime
import gzip
import json
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.contracts.adapter import load_strict
from bench.contracts.card import WeightsSource
from bench.weights.file import read_state
from bench.weights.folder import INDEX, lacking
from results.errors import BenchError, BenchWarning

STATE = {"0.weight": torch.arange(12.0).reshape(4, 3), "0.bias": torch.ones(4)}


def network():
    return torch.nn.Sequential(torch.nn.Linear(3, 4))


def load(path, tree="ema?", format="torch", module=None):
    module = module or network()
    load_strict(module, read_state(path, WeightsSource(format=format, tree=tree), "model"), "model")
    return module.state_dict()


def prefixed(*prefixes, state=STATE):
    return {"".join(prefixes) + key: value for key, value in state.items()}


ZEROS = {key: torch.zeros_like(value) for key, value in STATE.items()}
SAVED = {
    "wrapped": prefixed("module.", "_orig_mod."),
    "wrapped the other way round": prefixed("_orig_mod.", "module."),
    "averaged model": {**prefixed("module."), "n_averaged": torch.tensor(5)},
    "averaged tree": {"ema": {**prefixed("ema_model.", "module."), "initted": torch.tensor(True)}, "model": ZEROS},
    "raw and averaged in one": {**prefixed("ema_model."), **prefixed("online_model.", state=ZEROS)},
    "bookkeeping": {"ema": {**STATE, "decay": torch.tensor(0.9), "num_updates": torch.tensor(7)}},
    "state_dict": {"state_dict": STATE},
    "another name of ema": {"model_ema": STATE, "model": ZEROS},
    "lightning": {
        "state_dict": prefixed("model."),
        "pytorch-lightning_version": "2.2.0",
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(1)}}}],
        "hyper_parameters": {"lr": 1e-4},
        "global_step": 10,
    },
    "containers": {
        "ema": collections.OrderedDict(STATE),
        "counts": collections.Counter("aab"),
        "log": collections.defaultdict(list, loss=[1.0]),
        "when": datetime.datetime(2026, 1, 1),
        "args": argparse.Namespace(lr=1e-4),
        "rng": np.random.RandomState(0).get_state(),
        "device": torch.device("cpu"),
        "names": np.array(["a", "b"]),
    },
}


@pytest.mark.filterwarnings("ignore::results.errors.BenchWarning")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", SAVED)
def test_checkpoints_load_as_people_save_them(tmp_path, name, zipped):
    torch.save(SAVED[name], tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = load(tmp_path / "a.pt")
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


def test_a_network_that_is_wrapped_itself_takes_the_file_it_would_save(tmp_path):
    inner = torch.nn.Module()
    inner.model = network()
    torch.save(prefixed("model."), tmp_path / "a.pt")
    assert torch.equal(load(tmp_path / "a.pt", module=inner)["model.0.weight"], STATE["0.weight"])


def test_numbers_left_out_beside_the_weights_are_named(tmp_path):
    torch.save(SAVED["bookkeeping"], tmp_path / "a.pt")
    with pytest.warns(BenchWarning, match="decay, num_updates"):
        load(tmp_path / "a.pt")


@pytest.mark.parametrize("tree", ["ema", "ema?"])
def test_a_file_without_the_tree_names_its_trees_and_how_to_choose(tmp_path, tree):
    torch.save({"model": STATE, "opt": {"state": {0: torch.ones(1)}}, "args": argparse.Namespace()}, tmp_path / "a.pt")
    with pytest.raises(BenchError, match=r"trees.* model.*choose one with weights\.tree in the card"):
        load(tmp_path / "a.pt", tree)


def test_zero_weights_are_refused_and_broken_ones_noticed(tmp_path):
    torch.save(ZEROS, tmp_path / "zero.pt")
    with pytest.raises(BenchError, match="are all zero"):
        load(tmp_path / "zero.pt")
    torch.save({**STATE, "0.bias": torch.full((4,), torch.nan)}, tmp_path / "nan.pt")
    with pytest.warns(BenchWarning, match=r"NaN or infinite values: 0\.bias"):
        load(tmp_path / "nan.pt")


def test_a_folder_of_one_weights_file_and_shards_with_their_index_are_read(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert torch.equal(load(tmp_path)["0.bias"], STATE["0.bias"])
    (tmp_path / "model.safetensors").unlink()
    index = {key: f"model-{number}.bin" for number, key in enumerate(STATE)}
    for key, name in index.items():
        torch.save({key: STATE[key]}, tmp_path / name)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for path in (tmp_path, tmp_path / "pytorch_model.bin.index.json"):
        assert torch.equal(load(path)["0.weight"], STATE["0.weight"])
    (tmp_path / "model-1.bin").unlink()
    with pytest.raises(BenchError, match=r"its shard model-1\.bin is not next to it"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../other.bin"}}))
    with pytest.raises(BenchError, match="names a shard outside its folder"):
        load(tmp_path)


def test_the_first_bytes_choose_the_reader_not_the_name(tmp_path):
    save_file(STATE, tmp_path / "a.pt")
    torch.save(STATE, tmp_path / "a.safetensors")
    for name, format in (("a.pt", "torch"), ("a.pt", "pickle"), ("a.safetensors", "safetensors")):
        assert torch.equal(load(tmp_path / name, format=format)["0.bias"], STATE["0.bias"])


NO_CHECKPOINT = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 2700000000\n": "is a Git LFS pointer to 2.7 GB.*"
    "run git lfs pull",
    b"<!DOCTYPE html><html>Google Drive - Virus scan warning": "is an HTML page",
    b"\xef\xbb\xbf  <html>": "is an HTML page",
    b'{"error": "quota"}': "is a JSON document",
    b"": "is empty",
    b"\0" * 999: "starts with nothing but zero bytes",
    b"Access denied": r"is a text \('Access denied'\)",
    gzip.compress(b"x"): "is a gzip archive",
    b"\x89HDF\r\n\x1a\n" + b"\0" * 99: "is an HDF5 file",
    b"GGUF\x03" + b"\0" * 99: "is a GGUF file",
    b"\x89PNG\r\n\x1a\n" + b"\0" * 99: "is a PNG image",
    b"\x08\x08\x12\x07pytorch\x1a": "is an ONNX graph",
    b"\x82\xa1a\x01\xa1b\x02": "is not a (torch|safetensors) file",
    struct.pack("<Q", 2**60) + b'{"a":' + b" " * 50: "is damaged: its safetensors header would be",
    struct.pack("<Q", 200) + b'{"a":' + b" " * 50: r"is truncated \(63 of at least 208 bytes",
    b"PK\x03\x04 rest is missing": "is truncated: a zip",
}


@pytest.mark.parametrize("content", NO_CHECKPOINT, ids=range(len(NO_CHECKPOINT)))
@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_a_file_that_is_no_checkpoint_is_named_for_what_it_is(tmp_path, content, format):
    (tmp_path / "in use lock.pt").write_bytes(content)
    with pytest.raises(BenchError, match=rf"in use lock\.pt {NO_CHECKPOINT[content]}") as raised:
        load(tmp_path / "in use lock.pt", format=format)
    assert "weights_only" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_truncated_files_say_how_much_is_there(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.pt"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-9])
        with pytest.raises(BenchError, match=rf"is truncated \({len(whole) - 9:,} of {len(whole):,} bytes\)"):
            load(tmp_path / name)


def test_a_zip_that_unpacks_to_a_multiple_of_itself_is_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights.pt", b"\0" * 2**26)
    with pytest.raises(BenchError, match="as a decompression bomb does"):
        load(tmp_path / "a.zip")


def test_reading_warns_of_nothing(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "a.pt")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "<html>", '{"unet": []}'])
def test_a_pipeline_whose_index_cannot_be_read_lacks_it(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    assert lacking(tmp_path) == [INDEX]


@pytest.mark.parametrize("shard", ["5", "[]", "null", '"missing.safetensors", "b": 1'])
def test_an_index_of_shards_that_names_no_files_is_lacking(tmp_path, shard):
    (tmp_path / INDEX).write_text('{"unet": ["diffusers", "UNet"]}')
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": {shard}}}}}')
    assert lacking(tmp_path) == ["unet/model.safetensors.index.json"]
