"""torch's files: what they name and how much they ask for is known before torch reads a byte of them."""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from bench.weights.safe_pickle import (
    ArrayInFile,
    ArrayUnpickler,
    Bomb,
    Builder,
    CodeRefused,
    DtypeInFile,
    budget_for,
    check_opcodes,
    modern_name,
)
from results.errors import BenchError

ITEM_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    "ComplexFloat": 8, "ComplexDouble": 16, "Untyped": 1,
}  # fmt: skip
STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+?)Storage")
DTYPE = re.compile(r"torch\.(u?int\d+|float\w*|bfloat16|half|double|complex\d+|bool|long|short|int|uint8)")
FACTS = {"torch.device", "torch.serialization._get_layout"}
PARAMETERS = {
    "torch.nn.parameter.Parameter", "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
}  # fmt: skip
TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"}
EXPANSION = 16
"""How often a tensor in a file may repeat its values (by strides of zero)."""


class _Storage(NamedTuple):
    key: str
    values: int
    bytes: int


class _Tensor:
    """Stands for a tensor while a file is looked over."""

    def __setstate__(self, state: Any) -> None:
        raise BenchError("it is a file of torch before 0.4; save it anew with a newer torch")


class _Survey(ArrayUnpickler):
    """Reads a torch pickle without its tensors: names, and the sizes of storages."""

    def __init__(self, file: BinaryIO, budget: int) -> None:
        super().__init__(file, budget)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for `module.name`; torch's own names as far as they are tensors."""
        whole = modern_name(module, name)
        storage = STORAGE.fullmatch(whole)
        if storage and storage.group(1) in ITEM_BYTES:
            return Builder(storage.group(1), _no_size)
        if whole == "torch.Tensor" or DTYPE.fullmatch(whole):
            return Builder(whole, _no_size)
        if whole in FACTS:
            return Builder(whole, lambda *facts: None)
        if whole == "torch.Size":
            return Builder(whole, self._copied(tuple))
        if whole in TENSORS:
            return Builder(whole, self._tensor)
        if whole in PARAMETERS:
            return Builder(whole, _parameter)
        if whole == "torch._tensor._rebuild_from_type_v2":
            return Builder(whole, self._tensor_of_type)
        if whole.startswith("torch._utils._rebuild"):
            kind = name.removeprefix("_rebuild_").replace("_", " ")
            raise BenchError(f"it holds a {kind}, which is not read; save dense tensors")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage of a persistent id."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], Builder):
            raise CodeRefused("a persistent object that is no storage")
        kind, key, values = pid[1].name, str(pid[2]), pid[4]
        if kind not in ITEM_BYTES or not isinstance(values, int) or values < 0:
            raise BenchError("a storage of unknown type or size; the file is damaged, fetch it again")
        storage = _Storage(key, values, values * ITEM_BYTES[kind])
        known = self.storages.setdefault(key, storage)
        if storage.bytes > known.bytes:
            self.storages[key] = storage
        return storage

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
        numbers = [offset, *size, *stride]
        if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > 64:
            raise BenchError("a tensor without storage or of broken shape; the file is damaged, fetch it again")
        if not all(isinstance(number, int) and 0 <= number < 2**63 for number in numbers):
            raise BenchError("a tensor of broken shape; the file is damaged, fetch it again")
        last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
        total = math.prod(size)
        if total and (last >= storage.values or total > EXPANSION * storage.values + 2**20):
            shape = "x".join(map(str, size)) or "scalar"
            raise Bomb(f"a tensor of {shape} values in a storage of {storage.values:,}; the file is damaged")
        return _Tensor()

    def _tensor_of_type(self, function: Any, kind: Any, arguments: Any, state: Any = None) -> Any:
        if not isinstance(function, Builder) or function.name not in TENSORS | PARAMETERS:
            raise CodeRefused("a tensor that is not built from torch's parts")
        return function(*arguments)


def _parameter(tensor: Any, *rest: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise CodeRefused("a parameter that is no tensor")
    return tensor


def _no_size(*arguments: Any) -> Any:
    raise CodeRefused("a tensor or storage, to make one of any size")


def read_torch(path: Path) -> Any:
    """Read a torch file with `weights_only`: numpy scalars and arrays are let in, settings become inert objects.

    Raises CodeRefused for a file that names something that is not data, Bomb for one that asks for more than it
    holds, BenchError for one that is damaged; all of them before torch reads it.
    """
    zipped = zipfile.is_zipfile(path)
    survey = _survey_zip(path) if zipped else _survey_legacy(path)
    known = [(value, name) for name, value in survey.classes.items()]
    inert = [(survey.inert, name) for name in sorted(survey.inert_names)]
    own = [(kind, f"bench.{kind.__name__}") for kind in (ArrayInFile, DtypeInFile, survey.inert)]
    with torch.serialization.safe_globals([*known, *inert, *own]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".safetensors":  # torch goes by the name
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        # Memory-mapped: of a file with optimiser states only the sampled tree is read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _survey_zip(path: Path) -> _Survey:
    """Look over a file that torch wrote as a zip: every record stored as it is, none larger than the file."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        by_name = {entry.filename: entry for entry in entries}
        if len({entry.filename.lower() for entry in entries}) != len(entries):
            raise BenchError("two records of one name; torch never writes that, do not use it")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise BenchError("its records are compressed, as torch never writes them; unpack it and save it with torch")
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise BenchError(f"{len(pickles)} records data.pkl; the file is damaged, fetch it again")
        size = path.stat().st_size
        content = archive.read(pickles[0])
        root = pickles[0].filename.removesuffix("data.pkl")
    check_opcodes(io.BytesIO(content))
    survey = _Survey(io.BytesIO(content), budget_for(size))
    with _damage():
        survey.load()
    for storage in survey.storages.values():
        record = by_name.get(f"{root}data/{storage.key}")
        if record is None:
            raise BenchError(f"its record data/{storage.key} is missing: the file is damaged; fetch it again")
        if storage.bytes > record.file_size or record.header_offset + record.file_size > size:
            raise Bomb(
                f"its record data/{storage.key} should have {storage.bytes:,} bytes and has {record.file_size:,}: the "
                "file is damaged; fetch it again"
            )
    return survey


def _survey_legacy(path: Path) -> _Survey:
    """Look over a file of torch before 1.6: five pickles, then the storages."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end, surveys = 0, []
        for _ in range(5):
            begin, end = end, check_opcodes(content, end)
            surveys.append(_Survey(io.BytesIO(content[begin:end]), budget_for(size)))
            with _damage():
                surveys[-1].load()
    survey = surveys[3]
    needed = end + sum(8 + storage.bytes for storage in survey.storages.values())
    if needed > size:
        raise BenchError(f"it is truncated ({size:,} of {needed:,} bytes); fetch it again")
    return survey


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Say that a pickle is damaged, in place of what its opcodes ran into."""
    try:
        yield
    except (BenchError, CodeRefused):
        raise
    except Exception as error:
        raise BenchError(f"its pickle is damaged ({type(error).__name__}); fetch it again") from error
