"""How often a network was evaluated: what NFE means everywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from results.errors import BenchError


class Evaluations:
    """Counts a network's evaluations, by batch rows, for the duration of a `with` block (None counts nothing)."""

    def __init__(self, network: nn.Module | None) -> None:
        self.network = network
        self.rows = 0

    def __enter__(self) -> Self:
        self._handle = None if self.network is None else self.network.register_forward_hook(self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.rows += batch_rows(output)


def batch_rows(output: Any) -> int:
    """Return the batch size of a network's output: of the tensor, or of the first in what it returns.

    That may be a tuple, a list, a dictionary, or an output of diffusers or transformers. Where the first thing in it is
    itself a list of tensors, as in `([sample, sample],)` of diffusers' Z-Image, each of them is one sample. Raises
    BenchError for an output without a tensor.
    """
    first = next((part for part in _parts(output) if first_tensor(part) is not None), None)
    if isinstance(first, list) and all(isinstance(sample, Tensor) for sample in first):
        return len(first)
    found = first_tensor(output)
    if found is None or found.ndim == 0:
        what = type(output).__name__ if found is None else "a number"
        raise BenchError(
            f"the network returned {what}: its evaluations are counted by the batch size of the tensor that it returns"
        )
    return int(found.shape[0])


def first_tensor(output: Any) -> Tensor | None:
    """Return the first tensor of nested tuples, lists, dictionaries and dataclasses; None where there is none."""
    if isinstance(output, Tensor):
        return output
    return next((found for part in _parts(output) if (found := first_tensor(part)) is not None), None)


def _parts(output: Any) -> Iterable[Any]:
    """Return what a tuple, list, dictionary or dataclass holds, in its order; nothing of anything else."""
    if isinstance(output, Mapping):
        return output.values()
    if isinstance(output, (tuple, list)):
        return output
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return (getattr(output, field.name) for field in dataclasses.fields(output))
    return ()
