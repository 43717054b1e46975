"""Files that ask for more than they hold: refused in a moment, whatever they name."""

import builtins
import collections
import pickle
import resource
import time
import zipfile

import numpy as np
import pytest
import torch
from numpy._core import multiarray

from bench.contracts.card import WeightsSource
from bench.weights.file import read_state
from bench.weights.safe_pickle import load_arrays
from results.errors import BenchError


class Calls:
    """Pickles as the call `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def repeated(depth):
    value = [1.0]
    for _ in range(depth):
        value = [value, value]
    return value


BOMBS = {
    "bytearray": Calls(bytearray, 9_999_999_999),
    "array": Calls(np.ndarray, (10**10,), "f8"),
    "array of zeros": Calls(np.zeros, (10**10,)),
    "tensor": Calls(torch.Tensor, 10**10),
    "storage": Calls(torch.UntypedStorage, 10**11),
    "list of bytes": Calls(builtins.list, b"\0" * 99),
    "containers in containers": repeated(40),
}
WRITERS = {
    "pickle": lambda value, path: path.write_bytes(pickle.dumps(value)),
    "torch": torch.save,
    "torch, old format": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_bounded_time_and_memory(tmp_path, bomb, writer):
    WRITERS[writer]({"ema": {"w": BOMBS[bomb]}}, tmp_path / "a")
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(BenchError):
        read_state(tmp_path / "a", WeightsSource(format=writer.split(",")[0], tree="ema?"), "model")
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024  # KiB


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"abc.",
        b"\x80\x04\x8e" + (9 * 2**30).to_bytes(8, "little") + b"abc.",
        b"\x80\x02\x82\x01.",
        b"\x80\x04cbuiltins\nlist\nq\x00(" + b"K\x01" * 99999 + b"tq\x01]" + b"h\x00h\x01\x85Ra" * 99999 + b".",
    ],
    ids=["memo", "bytearray", "bytes", "extension", "copies"],
)
def test_opcodes_that_reserve_more_than_the_file_are_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises((BenchError, pickle.UnpicklingError)):
        load_arrays(tmp_path / "a")


def test_a_file_cannot_change_what_it_may_call(tmp_path):
    state = b"N}\x8c\x04name\x8c\x04evil" + b"s\x86b"
    for name in (b"numpy\ndtype", b"_codecs\nencode", b"numpy._core.multiarray\n_reconstruct"):
        (tmp_path / "a").write_bytes(b"\x80\x04c" + name + b"\n" + state + b".")
        with pytest.raises(pickle.UnpicklingError, match="to change it"):
            load_arrays(tmp_path / "a")
    assert np.dtype("f4").name == "float32"


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol_keep_their_values(tmp_path, protocol):
    arrays = {
        "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big-endian": np.arange(3, dtype=">i4"),
        "half": np.float16(0.5),
        "empty": np.zeros((0, 3)),
    }
    extra = {"counts": collections.defaultdict(int, a=1), "objects": np.array([{}, 1], dtype=object), "names": {"x"}}
    (tmp_path / "a").write_bytes(pickle.dumps({"tree": arrays, **extra}, protocol=protocol))
    found = read_state(tmp_path / "a", WeightsSource(format="pickle", tree="tree"), "model")
    for name, array in arrays.items():
        assert found[name].numpy().tolist() == array.tolist()
        assert found[name].shape == np.shape(array)
        assert found[name].numpy().dtype == array.dtype.newbyteorder("=")


def rewritten(source, target, change, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))


def test_a_torch_file_whose_records_do_not_hold_what_it_states_is_refused(tmp_path):
    torch.save({"w": torch.ones(100)}, tmp_path / "a.pt")
    rewritten(tmp_path / "a.pt", tmp_path / "short.pt", lambda name, data: data[:4] if "/data/" in name else data)
    rewritten(tmp_path / "a.pt", tmp_path / "packed.pt", lambda name, data: data, zipfile.ZIP_DEFLATED)
    torch.save({"w": torch.ones(1).expand(10**9)}, tmp_path / "expanded.pt")
    for name, reason in (("short", "should have 400 bytes"), ("packed", "compressed"), ("expanded", "in a storage of")):
        with pytest.raises(BenchError, match=reason):
            read_state(tmp_path / f"{name}.pt", WeightsSource(format="torch"), "model")


def test_an_array_that_is_only_announced_is_no_weight(tmp_path):
    announced = Calls(multiarray._reconstruct, np.ndarray, (10**10,), b"b")
    (tmp_path / "a").write_bytes(pickle.dumps({"w": announced, "v": np.ones(1)}))
    assert sorted(read_state(tmp_path / "a", WeightsSource(format="pickle"), "model")) == ["v"]
