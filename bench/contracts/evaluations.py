"""How often a network was evaluated: what NFE means everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from torch import nn


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
    """Return the batch size of a network's output: of the tensor, or of the first of several.

    Some networks return a record of named outputs (diffusers, transformers), some a list of one tensor a sample.
    """
    if isinstance(output, Mapping):
        output = tuple(output.values())
    first = output[0] if isinstance(output, (tuple, list)) else output
    return len(first) if isinstance(first, (tuple, list)) else int(first.shape[0])
