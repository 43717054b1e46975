import argparse
import collections
import os
import pathlib
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.contracts.card import WeightsSource
from bench.weights.file import read_state
from results.errors import BenchError

CHECKPOINTS = Path(__file__).parents[2] / "golden" / "checkpoints"
KERNEL = torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7 * 2
BIAS = torch.tensor([3.0, -4.0, 0.5])


def read(path, format="torch", **facts):
    return read_state(path, WeightsSource(format=format, **facts), "model")


@pytest.mark.parametrize(
    ("file", "format", "tree"),
    [
        ("shortcut.pickle", "pickle", "train_state/params_ema"),
        ("flax.msgpack", "flax-msgpack", "ema_params/net"),
        ("flax-chunked.msgpack", "flax-msgpack", "ema_params/net"),
        ("orbax.zip", "orbax", "ema_params/net"),
    ],
)
def test_checkpoints_written_by_the_publishers_libraries_are_read(file, format, tree):
    if format == "orbax":
        pytest.importorskip("tensorstore")
    state = read(CHECKPOINTS / file, format, tree=tree)
    assert torch.allclose(state["Dense_0/kernel"], KERNEL, rtol=0, atol=1e-7)
    assert torch.equal(state["Dense_0/bias"], BIAS)
    assert state["Dense_0/bias"].dtype == torch.float32
    if file == "flax.msgpack":
        assert torch.equal(state.pop("Dense_0/half"), torch.tensor([0.5, 3.0], dtype=torch.bfloat16))
    assert sorted(state) == ["Dense_0/bias", "Dense_0/kernel"]


def test_orbax_without_tensorstore_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorstore", None)
    with pytest.raises(
        BenchError, match=r"need tensorstore, which is not installed; run pip install 'fewstep-bench\[orbax"
    ):
        read(CHECKPOINTS / "orbax.zip", "orbax", tree="ema_params")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype_is_kept_as_it_is_in_the_file(tmp_path, dtype):
    state = {"layer.weight": torch.tensor([[0.5, -1.0]]).to(dtype)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    for file, format in (("a.safetensors", "safetensors"), ("a.pt", "torch")):
        found = read(tmp_path / file, format)["layer.weight"]
        assert found.dtype == dtype
        assert torch.equal(found, state["layer.weight"])


def test_a_network_takes_half_precision_files_in_its_own_dtype(tmp_path):
    from bench.contracts.adapter import load_strict

    linear = torch.nn.Linear(2, 1, bias=False)
    torch.save({"weight": torch.tensor([[0.5, -1.0]], dtype=torch.bfloat16)}, tmp_path / "a.pt")
    load_strict(linear, read(tmp_path / "a.pt"), "model")
    assert linear.weight.dtype == torch.float32
    assert linear.weight.tolist() == [[0.5, -1.0]]


@pytest.mark.parametrize("new_format", [True, False])
def test_settings_beside_the_weights_become_inert(tmp_path, new_format):
    averaged = {"w": torch.ones(2)}
    file = {
        "model": {"w": torch.zeros(2)},
        "ema": averaged,
        "args": argparse.Namespace(lr=1e-4, out=pathlib.PurePosixPath("runs")),
        "step": np.int64(7),
        "loss": np.float64(0.5),
        "history": np.arange(3.0),
    }
    torch.save(file, tmp_path / "a.pt", _use_new_zipfile_serialization=new_format)
    assert read(tmp_path / "a.pt", tree="ema")["w"].tolist() == [1.0, 1.0]
    whole = read(tmp_path / "a.pt")
    assert sorted(whole) == ["ema/w", "history", "loss", "model/w", "step"]
    assert whole["history"].tolist() == [0.0, 1.0, 2.0]


def test_an_optional_tree_is_taken_where_it_is_there(tmp_path):
    bare = {"w": torch.zeros(2)}
    torch.save({"ema": {"w": torch.ones(2)}, "model": bare}, tmp_path / "trained.pt")
    torch.save(bare, tmp_path / "bare.pt")
    assert read(tmp_path / "trained.pt", tree="ema?")["w"].tolist() == [1.0, 1.0]
    assert read(tmp_path / "bare.pt", tree="ema?")["w"].tolist() == [0.0, 0.0]
    with pytest.raises(BenchError, match=r"bare\.pt: no tree 'ema' in it \(it holds: w\)"):
        read(tmp_path / "bare.pt", tree="ema")


def test_prefixes_are_stripped(tmp_path):
    torch.save({"net.a": torch.ones(1), "other.b": torch.ones(1)}, tmp_path / "a.pt")
    assert sorted(read(tmp_path / "a.pt", prefix="net.")) == ["a", "other.b"]
    torch.save({"module._orig_mod.a": torch.ones(1), "module._orig_mod.b": torch.ones(1)}, tmp_path / "b.pt")
    assert sorted(read(tmp_path / "b.pt")) == ["a", "b"]


def test_a_conversion_to_safetensors_is_taken_for_any_card(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "converted.safetensors")
    assert sorted(read(tmp_path / "converted.safetensors", "pickle", tree="train_state/params_ema")) == ["w"]


def test_a_directory_that_holds_one_file_and_an_archive_stand_for_it(tmp_path):
    upstream = tmp_path / "imagenet-shortcut2"
    upstream.mkdir()
    shutil.copy(CHECKPOINTS / "shortcut.pickle", upstream / "imagenet-shortcut2.tmp")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.write(upstream / "imagenet-shortcut2.tmp", "folder/checkpoint")
    for path in (upstream, tmp_path / "packed.zip"):
        assert "Dense_0/kernel" in read(path, "pickle", tree="train_state/params_ema")
    (upstream / "second").write_bytes(b"")
    with pytest.raises(BenchError, match="holds 2 entries; use the checkpoint itself"):
        read(upstream, "pickle")


class Calls:
    """Pickles as the call `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


EVIL = {
    "system": lambda mark: Calls(os.system, f"touch {mark}"),
    "popen": lambda mark: Calls(subprocess.Popen, ["touch", str(mark)]),
    "open": lambda mark: Calls(open, str(mark), "w"),
    "eval": lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: Calls(exec, f"open({str(mark)!r}, 'w')"),
    "getattr": lambda mark: Calls(getattr, Calls(__import__, "os"), "system"),
    "numpy": lambda mark: Calls(np.save, str(mark), 1),
    "pickle": lambda mark: Calls(pickle.loads, pickle.dumps(Calls(open, str(mark), "w"))),
}
PLACES = {
    "bare": lambda evil: evil,
    "nested": lambda evil: {"train_state": {"params_ema": [({"w": evil},)]}, "ema": collections.OrderedDict(a=[evil])},
    "beside": lambda evil: {"ema": {"w": torch.ones(1).numpy()}, "opt": {(1, 2): {"state": evil}}},
}
WRITERS = {
    "pickle": lambda value, path: path.write_bytes(pickle.dumps(value)),
    "pickle, protocol 0": lambda value, path: path.write_bytes(pickle.dumps(value, protocol=0)),
    "torch": torch.save,
    "torch, old format": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, writer, place, evil):
    mark, path = tmp_path / "ran", tmp_path / "weights"
    WRITERS[writer](PLACES[place](EVIL[evil](mark)), path)
    assert not mark.exists()
    for format in ("pickle", "torch"):
        for tree in (None, "ema?"):
            with pytest.raises(BenchError) as raised:
                read(path, format, tree=tree)
            assert "\n" not in str(raised.value)
            assert not mark.exists()
    with pytest.raises(BenchError, match=r"is a pickle that names .*nothing in it was run"):
        read(path, writer.split(",")[0])


def test_the_same_code_in_an_archive_is_refused(tmp_path):
    mark = tmp_path / "ran"
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("a", pickle.dumps({"w": EVIL["system"](mark)}))
    with pytest.raises(BenchError, match=r"names (posix|nt)\.system"):
        read(tmp_path / "packed.zip", "pickle")
    assert not mark.exists()


def test_names_are_matched_whole_so_that_attributes_of_allowed_ones_stay_out(tmp_path):
    # ndarray.tofile by protocol 4's dotted names: STACK_GLOBAL resolves 'ndarray.tofile' in module numpy.
    (tmp_path / "a").write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.")
    with pytest.raises(BenchError, match=r"names numpy\.ndarray\.tofile"):
        read(tmp_path / "a", "pickle")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("torch", b"PK\x03\x04 not a zip"),
        ("torch", b""),
        ("pickle", b"\x80\x04not a pickle"),
        ("flax-msgpack", b"\xc1\xc1"),
        ("flax-msgpack", b"\x82\xa1a"),
        ("safetensors", b"\xff" * 40),
        ("orbax", b"nothing"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, name, content):
    if name == "orbax":
        pytest.importorskip("tensorstore")
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(BenchError, match=r"weights of model: .*weights") as raised:
        read(tmp_path / "weights", name)
    assert "\n" not in str(raised.value)


def test_a_truncated_checkpoint_is_one_line(tmp_path):
    torch.save({"w": torch.ones(1000)}, tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:2000])
    with pytest.raises(BenchError, match=r"half\.pt is truncated: .*2,000 bytes.*fetch the file again") as raised:
        read(tmp_path / "half.pt")
    assert "\n" not in str(raised.value)


def test_an_unknown_format_names_the_nearest(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(BenchError, match="unknown format of weights 'flax-msgpac': did you mean flax-msgpack"):
        read(tmp_path / "a", "flax-msgpac")
