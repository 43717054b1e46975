"""Words typed on the command line, turned into values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from results.errors import BenchError


def parse_models(text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list. Raises BenchError when there is none."""
    return tuple(_words(text, "model"))


def parse_steps(text: str) -> tuple[int, ...]:
    """Return step counts of a comma-separated list. Raises BenchError unless they are integers above zero."""
    counts = []
    for word in _words(text, "steps"):
        try:
            count = int(word)
        except ValueError:
            raise BenchError(f"--steps: '{word}' is not an integer; write for example 1,2,4") from None
        if count <= 0:
            raise BenchError(f"--steps: {count} is not above zero; write for example 1,2,4")
        counts.append(count)
    return tuple(counts)


def parse_scales(text: str) -> tuple[float, ...]:
    """Return guidance scales of a comma-separated list. Raises BenchError unless they are finite numbers."""
    scales = []
    for word in _words(text, "cfg"):
        try:
            scale = float(word)
        except ValueError:
            raise BenchError(f"--cfg: '{word}' is not a number; write for example 1.0,1.5") from None
        if not math.isfinite(scale):
            raise BenchError(f"--cfg: '{word}' is not finite; write for example 1.0,1.5")
        scales.append(scale)
    return tuple(scales)


def _words(text: str, option: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise BenchError(f"--{option}: the list is empty; leave the option out for the protocol's own")
    return words


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Return settings of `key=value` pairs: numbers, true/false, null, comma-separated lists, else text."""
    options = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise BenchError(f"--option: '{pair}' is not of the form key=value")
        options[name.strip()] = parse_option(value.strip())
    return options


def parse_option(text: str) -> Any:
    """Return the value that an option's text stands for."""
    if "," in text:
        return [parse_option(word.strip()) for word in text.split(",") if word.strip()]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in ("null", "none"):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
