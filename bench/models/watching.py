"""What code does with torch beside computing: copies between host and device, random numbers of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DRAWS = (
    "randn",
    "rand",
    "randint",
    "randperm",
    "randn_like",
    "rand_like",
    "randint_like",
    "normal",
    "bernoulli",
    "multinomial",
)
TENSOR_DRAWS = ("normal_", "uniform_", "random_", "bernoulli_", "exponential_")


class _Drew(Exception):
    """A random function was called where none may be."""


@contextmanager
def forbidden_draws() -> Iterator[None]:
    """Make torch's random functions raise for the duration of the block."""
    kept: list[tuple[Any, str, Any]] = [(torch, name, getattr(torch, name)) for name in DRAWS]
    kept += [(Tensor, name, getattr(Tensor, name)) for name in TENSOR_DRAWS]
    try:
        for owner, name, _ in kept:
            setattr(owner, name, _refuse(name))
        yield
    finally:
        for owner, name, original in kept:
            setattr(owner, name, original)


def _refuse(name: str) -> Callable[..., Any]:
    def draw(*arguments: Any, **keywords: Any) -> Any:
        raise _Drew(f"the adapter called {name}; use noise.normal(shape, draw) instead")

    return draw


class Copies:
    """Counts copies between the host and the meta device; on a real one each makes the host wait.

    Versions of torch differ in which operators a copy dispatches (`torch.tensor(.., device=..)` none at all in some),
    so the calls that make copies are seen as well, and a call in which no operator copied counts by what went in.
    """

    def __init__(self) -> None:
        self.copies = 0
        self._modes = (_CopyingOperators(self), _CopyingCalls(self))

    def __enter__(self) -> Copies:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _CopyingOperators(TorchDispatchMode):
    def __init__(self, counter: Copies) -> None:
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        operation, aten = func.overloadpacket, torch.ops.aten
        if operation in (aten.to, aten._to_copy, aten.copy_):
            source = args[1] if operation is aten.copy_ else args[0]
            self.counter.copies += source.device != output.device
        return output


class _CopyingCalls(TorchFunctionMode):
    def __init__(self, counter: Copies) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.counter.copies
        output = func(*args, **(kwargs or {}))
        if self.counter.copies == before:
            self.counter.copies += _copies(func, args, kwargs or {}, output)
        return output


def _copies(func: Any, args: Any, named: dict[str, Any], output: Any) -> bool:
    """Tell whether a call of torch's Python interface brought values of the host to the meta device."""
    if func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor):
        source = args[-1] if args else named.get("data", named.get("obj"))
        return output.device.type == "meta" and _on_host(source)
    if func in (Tensor.to, Tensor.cuda, Tensor.type, Tensor.type_as):
        return isinstance(output, Tensor) and args[0].device != output.device
    if func is Tensor.copy_:
        source = args[1] if len(args) > 1 else named["src"]
        return source.device != args[0].device
    if func in (Tensor.__getitem__, Tensor.__setitem__):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return args[0].device.type == "meta" and any(map(_is_host_index, index))
    return False


def _on_host(data: Any) -> bool:
    return not (isinstance(data, Tensor) and data.device.type == "meta")


def _is_host_index(index: Any) -> bool:
    """Tell whether an index selects by numbers that the host keeps; one number alone travels with the kernel."""
    if isinstance(index, Tensor):
        return index.dim() > 0 and _on_host(index)
    return isinstance(index, (list, np.ndarray))
