"""Flax parameter trees to PyTorch state dicts: one table of rules per family, used for checkpoints and parity alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


def same(value: Tensor) -> Tensor:
    """Keep an array: biases, embeddings, tokens, and the one-dimensional `kernel` of an RMS norm."""
    return value


def matrix(kernel: Tensor) -> Tensor:
    """Return (out, in) from a dense kernel (in, out)."""
    return kernel.T


def image_kernel(kernel: Tensor) -> Tensor:
    """Return (out, in, height, width) from a convolution kernel (height, width, in, out)."""
    return kernel.permute(3, 2, 0, 1)


def unbatched(value: Tensor) -> Tensor:
    """Drop a leading axis of length one."""
    return value.squeeze(0)


class Rule(NamedTuple):
    """What becomes of the arrays whose whole path matches `pattern`: name (with the pattern's groups) and form."""

    pattern: str
    name: str
    transform: Callable[[Tensor], Tensor]


def is_flax(state: Mapping[str, Tensor]) -> bool:
    """Tell whether `state` is a flat flax tree: its paths are joined with '/'."""
    return any("/" in key for key in state)


def convert(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Return the state under PyTorch names; the first matching rule acts.

    A path that no rule knows keeps its name, so that strict loading lists it as unexpected.
    """
    converted = {}
    for path, value in state.items():
        for rule in rules:
            if re.fullmatch(rule.pattern, path):
                converted[re.sub(rule.pattern, rule.name, path)] = rule.transform(value)
                break
        else:
            converted[path] = value
    return converted


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the state with `prefix` removed where it stands; other keys stay, for strict loading to judge."""
    return {key.removeprefix(prefix): value for key, value in state.items()}
