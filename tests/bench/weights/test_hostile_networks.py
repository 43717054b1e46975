"""Hostile files in the shape of pickled networks: nothing runs, and what is refused is refused in one line at once."""

import builtins
import importlib
import io
import os
import pickle
import resource
import runpy
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pickled_networks import MODULE, Calls, Named, dumps, module, network, persistence, save

from bench.contracts.card import WeightsSource
from bench.weights.file import read_state
from results.errors import BenchError

WEIGHTS = {"w": torch.ones(2)}
MARK = "ran"
TOUCH = f"touch {MARK}"
OPEN = f"open({MARK!r}, 'w')"
LOAD = Named("torch.storage", "_load_from_bytes")


def shaped(**state):
    """A network with something in its state."""
    return {"ema": network(WEIGHTS, **state)}


def inside(evil):
    """A network with `evil` among its parameters."""
    return {"ema": persistence("P", module({"w": torch.nn.Parameter(WEIGHTS["w"]), "x": evil}))}


def tensor(storage, offset=0, size=(2,), stride=(1,)):
    return Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


def storage(values=2):
    return Calls(LOAD, stored(values))


def stored(values):
    buffer = io.BytesIO()
    torch.save(torch.ones(values).untyped_storage(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zipped():
    buffer = io.BytesIO()
    torch.save(torch.ones(2), buffer)
    return buffer.getvalue()


def chain(length):
    """Modules in modules."""
    inner = persistence("P", module({"w": torch.nn.Parameter(WEIGHTS["w"])}))
    for _ in range(length):
        inner = persistence("P", module(modules={"m": inner}))
    return {"ema": inner}


def doubled(levels):
    """Modules that hold the next one twice."""
    inner = persistence("P", module({"w": WEIGHTS["w"]}))
    for _ in range(levels):
        inner = persistence("P", module(modules={"a": inner, "b": inner}))
    return {"ema": inner}


def laughing(levels):
    value = ["x"]
    for _ in range(levels):
        value = [value] * 10
    return value


def in_itself():
    """A module that is its own child."""
    children = {}
    made = persistence("P", {"_parameters": {"w": WEIGHTS["w"]}, "_modules": children})
    children["again"] = made
    return {"ema": made}


def ops(*parts, before=b"\x80\x04"):
    """A pickle of opcodes, after the name of the persistence function."""
    return before + b"c" + MODULE.encode() + b"\n_reconstruct_persistent_obj\n0" + b"".join(parts) + b"."


def nested_tuples(count):
    return ops(b"}N", b"\x85" * count, b"K\x01s")


EVIL = {
    "os.system": lambda: inside(Calls(os.system, TOUCH)),
    "os.system in a state": lambda: shaped(note=Calls(os.system, TOUCH)),
    "os.system as the description": lambda: {"ema": Calls(Named(MODULE, "_reconstruct_persistent_obj"),
                                                          Calls(os.system, TOUCH))},
    "os.system in constructor words": lambda: {"ema": network(WEIGHTS, kwargs={"x": Calls(os.system, TOUCH)})},
    "os.system in a hook": lambda: shaped(_forward_pre_hooks={0: Calls(os.system, TOUCH)}),
    "os.system beside the network": lambda: {**shaped(), "loss_fn": Calls(os.system, TOUCH)},
    "subprocess": lambda: inside(Calls(subprocess.Popen, ["touch", MARK])),
    "eval": lambda: inside(Calls(eval, OPEN)),
    "exec": lambda: inside(Calls(exec, OPEN)),
    "open": lambda: inside(Calls(open, MARK, "w")),
    "import and getattr": lambda: inside(Calls(Calls(getattr, Calls(__import__, "os"), "system"), TOUCH)),
    "calls of attributes": lambda: shaped(x=Calls(Calls(getattr, Calls(Named("a", "B")), "__class__"), TOUCH)),
    "calls of calls": lambda: shaped(x=Calls(Calls(Calls(Named("evil", "a"), 1), 2), TOUCH)),
    "importlib": lambda: inside(Calls(importlib.import_module, "antigravity")),
    "runpy": lambda: inside(Calls(runpy.run_path, MARK)),
    "pickle.loads": lambda: inside(Calls(pickle.loads, pickle.dumps(Calls(open, MARK, "w")))),
    "shutil": lambda: inside(Calls(shutil.copyfile, "/etc/hostname", MARK)),
    "setattr": lambda: inside(Calls(setattr, Calls(Named("a", "B")), "x", 1)),
    "a storage that is a pickle": lambda: inside(tensor(Calls(LOAD, pickle.dumps(Calls(open, MARK, "w"))))),
    "a storage that is a zip": lambda: inside(tensor(Calls(LOAD, zipped()))),
    "a storage that is not bytes": lambda: inside(tensor(Calls(LOAD, [1, 2]))),
    "a storage cut short": lambda: inside(tensor(Calls(LOAD, stored(9999)[:400]))),
    "a tensor beyond its storage": lambda: inside(tensor(storage(), size=(3,))),
    "a tensor at a negative place": lambda: inside(tensor(storage(), offset=-1)),
    "a tensor of ten billion repetitions": lambda: inside(tensor(storage(), size=(10**10,), stride=(0,))),
    "an array of any size": lambda: inside(Calls(np.ndarray, (10**10,))),
    "bytes of any size": lambda: inside(Calls(builtins.bytearray, 10**10)),
    "modules in modules": lambda: chain(70),
    "modules doubled": lambda: doubled(40),
    "a module in itself": in_itself,
    "containers in containers": lambda: nested_tuples(300_000),
    "lists in lists": lambda: ops(b"]" * 5000, b"a" * 4999),
    "memo": lambda: ops(b"Nr\xff\xff\xff\x7f"),
    "memo that is not there": lambda: ops(b"h\xff"),
    "stack underflow": lambda: ops(b"0" * 9),
    "tuple of nothing": lambda: ops(b"\x87"),
    "no mark": lambda: ops(b"t"),
    "extension 1": lambda: ops(b"\x82\x01"),
    "extension 4": lambda: ops(b"\x84\x01\0\0\0"),
    "persistent id": lambda: ops(b"K\x01Q"),
    "persistent id in text": lambda: ops(b"Px\n", before=b""),
    "INST": lambda: ops(b"(S'touch ran'\nios\nsystem\n", before=b""),
    "OBJ": lambda: ops(b"(cos\nsystem\nX\x09\0\0\0touch rano"),
    "dotted name": lambda: ops(b"\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R"),
    "Python 2's name": lambda: ops(b"c__builtin__\neval\nX\x01\0\0\x001\x85R", before=b"\x80\x02"),
    "changing the function": lambda: b"\x80\x04c" + MODULE.encode() + b"\n_reconstruct_persistent_obj\n}\x8c\x04name"
    b"\x8c\x01xs\x86b.",
    "state for a class": lambda: ops(b"ca\nB\n}\x8c\x0c__setstate__Nsb"),
    "items for a class": lambda: ops(b"ca\nB\nK\x01K\x02s"),
    "a description that is none": lambda: {"ema": Calls(Named(MODULE, "_reconstruct_persistent_obj"), [1])},
    "endless names": lambda: ops(*(b"ca\nB%d\n0" % index for index in range(200_000))),
    "a storage read again and again": lambda: ops(
        b"ctorch.storage\n_load_from_bytes\nq\x01B", len(stored(2)).to_bytes(4, "little"), stored(2), b"q\x02",
        b"h\x01h\x02\x85R0" * 60_000,
    ),
    "a network with no tensors": lambda: {"ema": persistence("P", module())},
}  # fmt: skip
HARMLESS = {
    "source with effects": lambda: {"ema": network(WEIGHTS, source=OPEN)},
    "getattr": lambda: shaped(x=Calls(getattr, Calls(Named("a", "B")), "__class__")),
    "a state that is a function": lambda: shaped(x=Calls(Named("evil", "A"), state=Named("evil", "b"))),
    "a state with __setstate__": lambda: shaped(x=Calls(Named("evil", "A"), state={"__setstate__": 1, "__class__": 2})),
    "a state with slots": lambda: shaped(x=Calls(Named("evil", "A"), state=({"a": 1}, {"__class__": 2, "b": 3}))),
    "a library's loader": lambda: shaped(x=Calls(Named("torch", "load"), "x")),
    "a hub's loader": lambda: shaped(x=Calls(Named("torch.hub", "load"), "owner/repository", "x")),
    "a name in two lines": lambda: {"ema": network(WEIGHTS, class_name="A\nB\x1b[31m" * 99)},
    "an array of objects": lambda: shaped(x=np.array([{}, None], dtype=object)),
    "a description of wrong types": lambda: {**shaped(), "x": persistence(7, [1], source=3, type=None)},
    "laughing settings": lambda: {"ema": network(WEIGHTS, kwargs={"x": laughing(9)})},
    "parameters that are none": lambda: shaped(_buffers={1: None, "a": "text", (2,): WEIGHTS["w"]}),
}


def write(value, path, writer):
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif writer == "torch":
        save(value, path)
    else:
        path.write_bytes(dumps(value))


def attempt(path):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        return read_state(path, WeightsSource(format="pickle", tree="ema?"), "model")
    finally:
        assert time.monotonic() - began < 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024  # KiB
        assert not Path(MARK).exists()


@pytest.mark.parametrize("shape", EVIL)
def test_a_hostile_network_is_refused_and_nothing_runs(tmp_path, monkeypatch, shape):
    monkeypatch.chdir(tmp_path)
    write(EVIL[shape](), tmp_path / "a.pkl", "pickle")
    with pytest.raises(BenchError) as raised:
        found = attempt(tmp_path / "a.pkl")
        assert not found, found  # nothing to load is refused by what would be loaded
        raise BenchError("no weights")
    assert "\n" not in str(raised.value)
    assert "Traceback" not in str(raised.value)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
@pytest.mark.parametrize("shape", HARMLESS)
def test_what_only_looks_hostile_is_kept_as_data(tmp_path, monkeypatch, shape, writer):
    monkeypatch.chdir(tmp_path)
    write(HARMLESS[shape](), tmp_path / "a.pkl", writer)
    assert torch.equal(attempt(tmp_path / "a.pkl")["w"], WEIGHTS["w"])


@pytest.mark.parametrize("shape", [name for name in EVIL if not isinstance(EVIL[name](), bytes)][:16])
def test_the_same_in_torchs_zip_is_refused(tmp_path, monkeypatch, shape):
    monkeypatch.chdir(tmp_path)
    save(EVIL[shape](), tmp_path / "a.pt")
    with pytest.raises(BenchError, match="which is not data; nothing in it was run"):
        attempt(tmp_path / "a.pt")


def test_code_in_a_file_without_a_network_is_refused_as_before(tmp_path):
    for value in (Calls(Named("evil", "function"), 1), {"w": Calls(Named("evil", "A")), "v": torch.ones(2)}):
        (tmp_path / "a.pkl").write_bytes(dumps(value))
        with pytest.raises(BenchError, match=r"is a pickle that names evil\.\w+, which is not data"):
            attempt(tmp_path / "a.pkl")


def test_an_archive_of_records_that_are_not_there_is_refused(tmp_path):
    save({"ema": network(WEIGHTS)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith("data/0"):
                new.writestr(entry.filename, old.read(entry))
    with pytest.raises(BenchError, match=r"its record data/0 is missing"):
        attempt(tmp_path / "b.pt")
