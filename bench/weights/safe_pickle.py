"""Pickles of arrays, read without executing anything: every name in the file is looked up in a fixed list.

What is on the list builds arrays and containers, by functions of this module that take no size from the file; the
classes of training libraries (optimiser states, frozen dictionaries, argument namespaces) become inert objects. Any
other name stands as inert data where the file holds a pickled network (`bench.weights.holders`), and else ends the
reading. Nothing is imported at a file's request.
"""

from __future__ import annotations

import collections
import mmap
import pickle
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bench.weights.holders import PERSISTENCE, Holders
from bench.weights.opcodes import Bomb, CodeRefused, check_opcodes
from results.errors import BenchError

INERT_PACKAGES = (
    "accelerate", "chex", "easydict", "flax", "jax", "jaxlib", "lightning", "lightning_fabric", "lightning_utilities",
    "ml_collections", "omegaconf", "optax", "pytorch_lightning", "typing",
)  # fmt: skip
INERT_NAMES = {
    "argparse.Namespace", "types.SimpleNamespace", "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "pathlib._local.PurePosixPath", "datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta",
    "datetime.timezone", "decimal.Decimal", "fractions.Fraction", "uuid.UUID", "torch.torch_version.TorchVersion",
    "numpy.random._pickle.__randomstate_ctor", "numpy.random._pickle.__generator_ctor",
    "numpy.random._pickle.__bit_generator_ctor", "numpy.random._mt19937.MT19937", "numpy.random._pcg64.PCG64",
    "torch._C.Generator", "torch.Generator",
}  # fmt: skip
"""What lies beside the arrays in published files (settings, optimiser states); each becomes an inert object."""
DTYPE = re.compile(r"[<>|=]?[a-zA-Z?]\d{0,3}|bfloat16|(u?int|float|complex)\d{1,3}|bool")
"""Names of dtypes that a file may build; whatever else an array may hold (text, dates, records) is not a weight."""
NUMERIC = "biuf"
ALLOWANCE = 2**24
"""Bytes that a file may build however small it is."""


def inert_class() -> type:
    """Return a new class that accepts any arguments and any state, and keeps neither.

    New for every file, so that nothing a file does to it outlives the file.
    """

    class Inert:
        def __new__(cls, *arguments: Any, **keywords: Any) -> Inert:
            return super().__new__(cls)

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            pass

        def __call__(self, *arguments: Any, **keywords: Any) -> Inert:
            return self

        def __setstate__(self, state: Any) -> None:
            pass

        def __hash__(self) -> int:
            return id(self)

        def append(self, item: Any) -> None:
            pass

        def extend(self, items: Any) -> None:
            pass

        def __setitem__(self, key: Any, value: Any) -> None:
            pass

    return Inert


def modern_name(module: str, name: str) -> str:
    """Return a dotted name as Python 3 spells it; pickles up to protocol 2 keep Python 2's."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def is_inert(name: str) -> bool:
    """Tell whether objects of `name` (with its module) may stand in a file as inert objects."""
    return name in INERT_NAMES or name.split(".")[0] in INERT_PACKAGES


class Builder:
    """A function that a file may call. It has no attributes that the file could set."""

    __slots__ = ("_function", "name")
    name: str
    _function: Callable[..., Any]

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        """Do what the file asks for, within bounds."""
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise CodeRefused(f"{self.name}, to change it")

    def __setstate__(self, state: Any) -> None:
        raise CodeRefused(f"{self.name}, to change it")


class DtypeInFile:
    """A dtype as a file states it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order in ("<", b"<", ">", b">"):
            self.name = (order if isinstance(order, str) else order.decode()) + self.name.lstrip("<>|=")

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """Return the numeric dtype, None for any other."""
        if self.name.lstrip("<>|=") == "bfloat16":
            return np.dtype(_bfloat16())
        try:
            found = np.dtype(self.name)
        except TypeError:
            return None
        return found if found.kind in NUMERIC else None


class ArrayInFile:
    """An array as a file states it, filled by the state that follows."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 4:
            raise pickle.UnpicklingError("an array without shape, dtype and values")
        shape, dtype, fortran, values = state[-4:]
        numeric = dtype.dtype if isinstance(dtype, DtypeInFile) else None
        if isinstance(values, str):  # Python 2 wrote bytes as text
            values = values.encode("latin1")
        if numeric is None or not isinstance(values, (bytes, bytearray)):
            return  # text, objects, records: no weight
        self.array = np.frombuffer(values, numeric).reshape(shape, order="F" if fortran else "C")


def _bfloat16() -> type:
    try:
        import ml_dtypes
    except ImportError as error:
        raise BenchError("it holds bfloat16 arrays; run pip install ml_dtypes") from error
    found: type = ml_dtypes.bfloat16
    return found


def _dtype(name: Any, *flags: Any) -> DtypeInFile:
    if isinstance(name, Builder):
        name = name.name.rpartition(".")[2]
    if isinstance(name, bytes):
        name = name.decode("latin1")
    if isinstance(name, str) and DTYPE.fullmatch(name):
        return DtypeInFile(name)
    return DtypeInFile("V")


def _reconstruct(*arguments: Any) -> ArrayInFile:
    return ArrayInFile()


def _frombuffer(values: Any, dtype: Any, shape: Any, order: str = "C", *axes: Any) -> ArrayInFile:
    array = ArrayInFile()
    if not axes:
        array.__setstate__((shape, dtype, order == "F", values))
    return array


def _scalar(dtype: Any, value: Any = None) -> Any:
    numeric = dtype.dtype if isinstance(dtype, DtypeInFile) else None
    if isinstance(value, str):
        value = value.encode("latin1")
    if numeric is None or not isinstance(value, (bytes, bytearray)) or len(value) != numeric.itemsize:
        return None
    return np.frombuffer(value, numeric)[0]


def _jax_array(function: Any, arguments: Any, state: Any, abstract_value: Any) -> ArrayInFile:
    if not isinstance(function, Builder) or not function.name.endswith("._reconstruct"):
        raise CodeRefused("a jax array that is not built from numpy's parts")
    array = ArrayInFile()
    array.__setstate__(state)
    return array


def _no_call(*arguments: Any) -> Any:
    raise CodeRefused("numpy.ndarray, to make an array of any size")


class ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, text and arrays; raises CodeRefused for anything else that a file names.

    `budget` bounds the elements that the calls in the file may copy, in bytes: a file of a megabyte that builds ten
    gigabytes is a Bomb.
    """

    def __init__(self, file: BinaryIO, budget: int) -> None:
        super().__init__(file, encoding="latin1")
        self.budget = budget
        self.inert = inert_class()
        self.inert_names: set[str] = set()
        self.holders = Holders(self.spend)
        ordered = self._copied(collections.OrderedDict)
        known: dict[str, Callable[..., Any]] = {
            "numpy.ndarray": _no_call,
            "numpy.dtype": _dtype,
            "jax._src.array._reconstruct_array": _jax_array,
            "collections.OrderedDict": ordered,
            "collections.Counter": ordered,
            "collections.defaultdict": lambda factory=None, items=(): ordered(items),
            "collections.deque": lambda items=(), *length: self._copied(list)(items),
            "_codecs.encode": self._encode,
            "builtins.bytearray": self._bytes,
            "builtins.bytes": lambda *content: bytes(self._bytes(*content)),
            "builtins.complex": complex,
            "builtins.slice": lambda *parts: None,
            **{f"builtins.{kind.__name__}": self._copied(kind) for kind in (dict, frozenset, list, set, tuple)},
        }
        for module in ("numpy.core", "numpy._core"):
            known |= {f"{module}.multiarray._reconstruct": _reconstruct, f"{module}.multiarray.scalar": _scalar}
            known[f"{module}.numeric._frombuffer"] = _frombuffer
        # Named in files, called in none: dtypes of arrays, factories of a dictionary's defaults.
        for name in ("int", "float", "str", "bool"):
            known[f"builtins.{name}"] = _no_call
        known["ml_dtypes.bfloat16"] = _no_call
        self.classes: dict[str, Any] = {name: Builder(name, function) for name, function in known.items()}
        self.classes["flax.core.frozen_dict.FrozenDict"] = self._frozen_dict()

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for `module.name`, by its whole name: nothing is imported at a file's request."""
        whole = modern_name(module, name)
        if whole in self.classes:
            return self.classes[whole]
        if is_inert(whole):
            self.inert_names.add(whole)
            return self.inert
        if whole.endswith(f".{PERSISTENCE}") or whole == PERSISTENCE:
            return self.classes.setdefault(whole, Builder(whole, self.holders.rebuilt))
        return self.holders.of(whole)

    def load(self) -> Any:
        """Return the object in the file, pickled networks as their state dicts.

        Raises CodeRefused for what is not data, and whatever a damaged pickle runs into.
        """
        try:
            tree = super().load()
        except (CodeRefused, BenchError):
            raise
        except Exception:
            self.holders.refuse()
            raise
        return self.holders.resolved(tree)

    def spend(self, size: int) -> None:
        """Count `size` more bytes. Raises Bomb beyond the budget."""
        self.budget -= size
        if self.budget < 0:
            raise Bomb("it unpacks to far more than the file contains, as a decompression bomb does; do not use it")

    def _frozen_dict(self) -> type:
        """Return what stands for flax's FrozenDict, whose state is the dictionary that it wraps."""
        copied = self._copied(dict)

        class FrozenDict(dict):
            def __init__(self, items: Any = ()) -> None:
                super().__init__(copied(items))

            def __setstate__(self, state: Mapping[str, Any]) -> None:
                self.update(copied(state.get("_dict", state)))

        return FrozenDict

    def _copied(self, kind: Callable[..., Any]) -> Callable[..., Any]:
        def build(items: Any = (), *rest: Any) -> Any:
            if not isinstance(items, (dict, frozenset, list, set, tuple)):
                raise CodeRefused("a container made of something else than a container")
            self.spend(8 * len(items) + 64)
            return kind(items)

        return build

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        # Protocol 2 writes bytes as text with this call.
        if encoding not in ("latin1", "latin-1"):
            raise CodeRefused(f"_codecs.encode with {encoding}")
        self.spend(len(text))
        return text.encode("latin1")

    def _bytes(self, content: Any = b"", *encoding: Any) -> bytearray:
        if isinstance(content, str):
            content = self._encode(content, *encoding)
        if not isinstance(content, (bytes, bytearray)):
            raise CodeRefused("builtins.bytearray, to make one of any size")
        self.spend(len(content))
        return bytearray(content)


def budget_for(size: int) -> int:
    """Return the bytes that a file of `size` bytes may build."""
    return ALLOWANCE + 16 * size


def load_arrays(path: Path, unpickler: type[ArrayUnpickler] = ArrayUnpickler) -> Any:
    """Return the object of the pickle at `path`: nested containers of numpy arrays, numbers and inert objects.

    Raises CodeRefused, before anything is run, when the file names something that is not data; Bomb when it asks for
    more than it holds.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        check_opcodes(content)
        return unpickler(file, budget_for(len(content))).load()
