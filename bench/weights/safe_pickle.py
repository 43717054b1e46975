"""Pickles of arrays, read without executing anything: every name in the file is looked up in a fixed list.

What is on the list builds arrays and containers; the classes of training libraries (optimiser states, frozen
dictionaries, argument namespaces) become inert objects. Any other name ends the reading before it is imported.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core import multiarray


class CodeRefused(pickle.UnpicklingError):
    """A pickle names something that is not data; nothing of it was run."""


INERT_PACKAGES = ("chex", "easydict", "flax", "jax", "jaxlib", "ml_collections", "omegaconf", "optax")
INERT_NAMES = {
    "argparse.Namespace", "types.SimpleNamespace", "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath",
    "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
}  # fmt: skip
"""What lies beside the arrays in published files (settings, optimiser states); each becomes an inert object."""


def inert_class() -> type:
    """Return a new class that accepts any arguments and any state, and keeps neither.

    New for every file, so that nothing a file does to it outlives the file.
    """

    class Inert:
        def __new__(cls, *arguments: Any, **keywords: Any) -> Inert:
            return super().__new__(cls)

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            pass

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


def is_inert(name: str) -> bool:
    """Tell whether objects of `name` (with its module) may stand in a file as inert objects."""
    return name in INERT_NAMES or name.split(".")[0] in INERT_PACKAGES


class _FrozenDict(dict):
    """Stands for flax's FrozenDict, whose state is the dictionary that it wraps."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.update(state.get("_dict", state))


def _reconstruct_jax_array(
    function: Callable[..., np.ndarray], arguments: tuple[Any, ...], state: tuple[Any, ...], abstract_value: Any
) -> np.ndarray:
    if function is not multiarray._reconstruct:
        raise CodeRefused("a jax array that is not built from numpy's parts")
    array = function(*arguments)
    array.__setstate__(state)
    return array


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # Protocol 2 writes bytes as text with this call.
    if encoding not in ("latin1", "latin-1"):
        raise CodeRefused(f"_codecs.encode with {encoding}")
    return text.encode("latin1")


ARRAY_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (module, name): getattr(multiarray, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    },
    ("jax._src.array", "_reconstruct_array"): _reconstruct_jax_array,
    ("flax.core.frozen_dict", "FrozenDict"): _FrozenDict,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,
    **{("builtins", kind.__name__): kind for kind in (bytearray, complex, dict, frozenset, list, set, slice, tuple)},
}
"""What a file of arrays needs besides plain data, by (module, name)."""


def _bfloat16() -> type:
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("it holds bfloat16 arrays; run pip install ml_dtypes") from error
    found: type = ml_dtypes.bfloat16
    return found


class ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, text and arrays; raises CodeRefused for anything else that a file names."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.inert = inert_class()

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for `module.name`, by exact match: nothing is imported at a file's request."""
        if (module, name) in ARRAY_NAMES:
            return ARRAY_NAMES[module, name]
        if (module, name) == ("ml_dtypes", "bfloat16"):
            return _bfloat16()
        if is_inert(f"{module}.{name}"):
            return self.inert
        raise CodeRefused(f"{module}.{name}")


def load_arrays(path: Path) -> Any:
    """Return the object of the pickle at `path`: nested containers of numpy arrays, numbers and inert objects.

    Raises CodeRefused, before anything is run, when the file names something that is not data.
    """
    with path.open("rb") as file:
        return ArrayUnpickler(file).load()
