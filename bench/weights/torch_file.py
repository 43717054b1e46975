"""torch's files: what they name and how much they ask for is known before torch reads a byte of them."""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import re
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from bench.weights.holders import Persistent
from bench.weights.opcodes import Bomb, CodeRefused, check_opcodes
from bench.weights.safe_pickle import (
    ArrayInFile,
    ArrayUnpickler,
    Builder,
    DtypeInFile,
    budget_for,
    load_arrays,
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
STORAGE_BYTES = 4096
"""What reading one more storage out of its bytes costs beside their number, about."""


class _Storage(NamedTuple):
    key: str
    values: int
    bytes: int


class _Tensor:
    """Stands for a tensor while a file is looked over."""

    def __setstate__(self, state: Any) -> None:
        raise BenchError("it is a file of torch before 0.4; save it again with a newer torch")


class _TorchUnpickler(ArrayUnpickler, ABC):
    """Reads pickles that name torch's tensors; a subclass says what a tensor is made of."""

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
            return Builder(whole, self._checked_tensor)
        if whole in PARAMETERS:
            return Builder(whole, self._parameter)
        if whole == "torch._tensor._rebuild_from_type_v2":
            return Builder(whole, self._tensor_of_type)
        if whole == "torch.storage._load_from_bytes":
            return Builder(whole, self._storage_in_bytes)
        if whole.startswith("torch._utils._rebuild"):
            kind = name.removeprefix("_rebuild_").replace("_", " ")
            raise BenchError(f"it contains a {kind}, which is not supported; save dense tensors")
        return super().find_class(module, name)

    def _checked_tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        values = self._values_in(storage)
        if values is None or len(size) != len(stride) or len(size) > 64:
            raise BenchError("a tensor without storage or of broken shape; the file is damaged, fetch it again")
        if not all(type(number) is int and 0 <= number < 2**63 for number in (offset, *size, *stride)):
            raise BenchError("a tensor of broken shape; the file is damaged, fetch it again")
        last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
        total = math.prod(size)
        if total and (last >= values or total > EXPANSION * values + 2**20):
            shape = "x".join(map(str, size)) or "scalar"
            raise Bomb(f"a tensor of {shape} values in a storage of {values:,}; the file is damaged")
        return self._tensor(storage, offset, size, stride)

    @abstractmethod
    def _values_in(self, storage: Any) -> int | None:
        """Return how many values `storage` holds, None where it is not a storage."""

    @abstractmethod
    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any) -> Any:
        """Return a tensor whose geometry fits its storage."""

    def _storage_in_bytes(self, content: Any) -> Any:
        """Return the storage of torch's file in `content`: how plain pickles hold tensors."""
        raise CodeRefused("a storage in bytes, inside a file of storages")

    def _parameter(self, tensor: Any, *rest: Any) -> Any:
        if not isinstance(tensor, (_Tensor, torch.Tensor)):
            raise CodeRefused("a parameter that is not a tensor")
        return tensor

    def _tensor_of_type(self, function: Any, kind: Any, arguments: Any, state: Any = None) -> Any:
        if not isinstance(function, Builder) or function.name not in TENSORS | PARAMETERS:
            raise CodeRefused("a tensor that is not built from torch's parts")
        return function(*arguments)


class _Survey(_TorchUnpickler):
    """Reads a torch pickle without its tensors: names, and the sizes of storages."""

    def __init__(self, file: BinaryIO, budget: int) -> None:
        super().__init__(file, budget)
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage of a persistent id."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], Builder):
            raise CodeRefused("a persistent object that is not a storage")
        kind, key, values = pid[1].name, str(pid[2]), pid[4]
        if kind not in ITEM_BYTES or not isinstance(values, int) or values < 0:
            raise BenchError("a storage of unknown type or size; the file is damaged, fetch it again")
        storage = _Storage(key, values, values * ITEM_BYTES[kind])
        known = self.storages.setdefault(key, storage)
        if storage.bytes > known.bytes:
            self.storages[key] = storage
        return storage

    def _values_in(self, storage: Any) -> int | None:
        return storage.values if isinstance(storage, _Storage) else None

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any) -> _Tensor:
        return _Tensor()


class _PlainPickle(_TorchUnpickler):
    """Reads a plain pickle of tensors, each of which holds its values as a small torch file in bytes."""

    def _values_in(self, storage: Any) -> int | None:
        return len(storage) if isinstance(storage, (torch.TypedStorage, torch.UntypedStorage)) else None

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any) -> torch.Tensor:
        made: torch.Tensor = torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))
        return made

    def _storage_in_bytes(self, content: Any) -> Any:
        if not isinstance(content, (bytes, bytearray)):
            raise CodeRefused("a storage that is not in bytes")
        self.spend(len(content) + STORAGE_BYTES)
        survey = _survey_legacy(io.BytesIO(content), len(content))
        if len(survey.storages) != 1:
            raise BenchError("a storage in bytes that is none; the file is damaged, fetch it again")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def read_pickle(path: Path) -> Any:
    """Return the object of a plain pickle: arrays, tensors, and networks as their state dicts. Raises as `load_arrays`.

    A storage is read by torch with `weights_only`, after it was looked over.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own storages are deprecated
        return load_arrays(path, _PlainPickle)


def _no_size(*arguments: Any) -> Any:
    raise CodeRefused("a tensor or storage, to make one of any size")


def read_torch(path: Path) -> Any:
    """Read a torch file with `weights_only`: numpy scalars and arrays are let in, settings become inert objects.

    Raises CodeRefused for a file that names something that is not data, Bomb for one that asks for more than it
    holds, BenchError for one that is damaged; all of them before torch reads it.
    """
    zipped = zipfile.is_zipfile(path)
    if zipped:
        survey = _survey_zip(path)
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            survey = _survey_legacy(content, len(content))
    known = [(value, name) for name, value in (*survey.classes.items(), *survey.holders.classes.items())]
    inert = [(survey.inert, name) for name in sorted(survey.inert_names)]
    own = [(kind, f"bench.{kind.__name__}") for kind in (ArrayInFile, DtypeInFile, Persistent, survey.inert)]
    with torch.serialization.safe_globals([*known, *inert, *own]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".safetensors":  # torch goes by the name
            with path.open("rb") as file:
                tree = torch.load(file, map_location="cpu", weights_only=True)
        else:
            # Memory-mapped: of a file with optimiser states only the sampled tree is read.
            tree = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    return survey.holders.resolved(tree)


def _survey_zip(path: Path) -> _Survey:
    """Look over a file that torch wrote as a zip: every record stored as it is, none larger than the file."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        by_name = {entry.filename: entry for entry in entries}
        if len({entry.filename.lower() for entry in entries}) != len(entries):
            raise BenchError("two records share one name, which torch never writes; do not use it")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise BenchError("its records are compressed, which torch never does; unpack it and save it with torch")
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise BenchError(f"{len(pickles)} records named data.pkl; the file is damaged, fetch it again")
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


def _survey_legacy(content: Any, size: int) -> _Survey:
    """Look over the `size` bytes of a file of torch before 1.6 (a mapped file, or BytesIO).

    It is five pickles, then the storages.
    """
    end, surveys = 0, []
    for _ in range(5):
        begin, end = end, check_opcodes(content, end)
        content.seek(begin)
        surveys.append(_Survey(io.BytesIO(content.read(end - begin)), budget_for(size)))
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
