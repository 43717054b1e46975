"""Words typed on the command line, turned into values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from results.errors import BenchError

if TYPE_CHECKING:
    from protocols import Protocol

WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
"""Numbers as people write them; Python's own reading takes `1_0` for 10, and letters of every script."""
MOST_STEPS, LARGEST_SCALE = 10**6, 1e6
LARGEST_COUNT = 2**31 - 1
"""What the store keeps of a count of samples."""
LARGEST_SECONDS = 10**7
LARGEST_SEED = 2**63 - 1
"""What the store keeps of a seed."""


def parse_protocol(name: str) -> Protocol:
    """Return the shipped protocol `name`, or the one in the file `name`.toml, checked without the heavy libraries.

    Raises BenchError for the first value that is wrong: file, key, what was found and what is allowed.
    """
    from bench.judges.options import check_judges
    from bench.metrics.registry import check_metrics
    from protocols import find_protocol
    from results.documents import shown

    protocol = find_protocol(name)
    check_judges(protocol)
    check_metrics(protocol.metrics, protocol.metric_options, f"protocol {shown(protocol.path)}")
    return protocol


def parse_models(text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list. Raises BenchError when there is none."""
    return tuple(dict.fromkeys(_words(text, "model")))


def parse_steps(text: str) -> tuple[int, ...]:
    """Return step counts of a comma-separated list. Raises BenchError unless they are integers above zero."""
    counts = []
    for word in _words(text, "steps"):
        if not WHOLE.fullmatch(word):
            raise BenchError(f"--steps: '{word}' is not an integer; write for example 1,2,4")
        count = int(word)
        if count <= 0:
            raise BenchError(f"--steps: {count} is not above zero; write for example 1,2,4")
        if count > MOST_STEPS:
            raise BenchError(f"--steps: {count} is above {MOST_STEPS:,}; write for example 1,2,4")
        counts.append(count)
    return tuple(dict.fromkeys(counts))


def parse_scales(text: str) -> tuple[float, ...]:
    """Return guidance scales of a comma-separated list. Raises BenchError unless they are finite numbers."""
    scales = []
    for word in _words(text, "cfg"):
        if word.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            raise BenchError(f"--cfg: '{word}' is not finite; write for example 1.0,1.5")
        if not NUMBER.fullmatch(word):
            raise BenchError(f"--cfg: '{word}' is not a number; write for example 1.0,1.5")
        scale = float(word)
        if abs(scale) > LARGEST_SCALE:
            raise BenchError(f"--cfg: {word} is beyond {LARGEST_SCALE:g}; write for example 1.0,1.5")
        scales.append(scale + 0.0)  # -0.0 is 0.0
    return tuple(dict.fromkeys(scales))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of a comma-separated list. Raises BenchError unless they are integers from 0."""
    seeds = []
    for word in _words(text, "seeds"):
        if not re.fullmatch(r"[0-9]{1,19}", word) or int(word) > LARGEST_SEED:
            raise BenchError(f"--seeds: '{word}' is not an integer from 0 to 2^63 - 1; write for example 0,1,2")
        seeds.append(int(word))
    return tuple(dict.fromkeys(seeds))


def parse_batches(text: str) -> tuple[int, ...]:
    """Return the batch sizes of a comma-separated list. Raises BenchError unless they are integers above zero."""
    return tuple(dict.fromkeys(parse_whole(text, "batch-size", 1, 1 << 20)))


def parse_labels(text: str) -> tuple[int, ...]:
    """Return the class numbers of a comma-separated list. Raises BenchError unless they are integers from 0."""
    return tuple(parse_whole(text, "labels", 0, 1 << 30))


def parse_whole(text: str, option: str, least: int, most: int) -> list[int]:
    """Return the numbers of a comma-separated list. Raises BenchError unless they are integers in the range."""
    found = []
    for word in _words(text, option):
        if not re.fullmatch(r"[0-9]{1,10}", word) or not least <= int(word) <= most:
            raise BenchError(f"--{option}: '{word}' is not an integer from {least} to {most:,}; write for example 1,8")
        found.append(int(word))
    return found


def check_words(words: Sequence[str]) -> None:
    """Refuse numbers in Python's own spelling (`1_0`), which the option parser would take."""
    for word in words:
        value = word.partition("=")[2] if word.startswith("--") else word
        if re.fullmatch(r"[+-]?[0-9]+(_[0-9]+)+", value):
            raise BenchError(f"'{value}' is not a number here; write {value.replace('_', '')}")


MAY_STAND_ALONE = {"--exclude-trained-on": "any", "--compile": "yes"}
"""Options whose value may be left out, and what it then is: the option parser itself knows no such thing."""


def completed(words: Sequence[str]) -> list[str]:
    """Return the words with the values of options that stand alone."""
    whole = []
    for position, word in enumerate(words):
        whole.append(word)
        if word in MAY_STAND_ALONE and (not words[position + 1 :] or words[position + 1].startswith("-")):
            whole.append(MAY_STAND_ALONE[word])
    return whole


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
    if WHOLE.fullmatch(text):
        return int(text)
    if NUMBER.fullmatch(text) and not text.lstrip("+-").isdigit() and abs(float(text)) < float("inf"):
        return float(text) + 0.0
    if re.fullmatch(r"[+-]?([0-9][0-9_]*\.?[0-9_]*|nan|inf|infinity)(e[+-]?[0-9]+)?", text.lower()):
        raise BenchError(f"--option: '{text}' is not a finite number; correct it")
    return text
