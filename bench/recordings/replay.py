"""Recorded upstream behaviour, replayed: the tool that proves that an adapter computes what its authors' code does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.contracts.plugins import Group
from bench.contracts.recording import Call, Case, Replay, load_case
from results.errors import BenchError, one_line

REPLAYS: Group[Callable[[Case], Replay]] = Group("bench.parity", "parity adapter", "a function of a case", callable)

COMPARED = (
    "output",
    "expected",
    "raw",
    "output_zero_one",
    "output_uint8",
    "trajectory",
    "times",
    "nfe_per_image",
)


class CallResult(NamedTuple):
    """How far one call is from the recording; `ok` says whether every compared entry is within tolerance."""

    case: str
    call: str
    kind: str
    ok: bool
    max_abs: float
    max_rel: float
    compared: tuple[str, ...]
    optional: bool
    error: str | None


def open_replay(case: Case) -> Replay:
    """Return the family's replay function for `case` (entry point group `bench.parity`, by the case's adapter)."""
    return REPLAYS.load(str(case.spec["adapter"]))(case)


def run_case(directory: Path) -> list[CallResult]:
    """Replay every call of one case, by its family's entry point, and compare it with the recording."""
    case = load_case(directory)
    try:
        with torch.inference_mode():
            replay = open_replay(case)
    except Exception as error:  # the family's reader meets a damaged recording in its own way
        reason = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
        return [_failure(case, call, one_line(reason)) for call in case.spec["calls"]]
    return replay_case(case, replay)


def replay_case(case: Case, replay: Replay) -> list[CallResult]:
    """Replay every call of `case` with `replay` and compare it with the recording."""
    with torch.inference_mode():
        return [_run_call(case, call, replay) for call in case.spec["calls"]]


def _failure(case: Case, call: Call, reason: str) -> CallResult:
    optional = bool(call.get("optional", False))
    return CallResult(case.spec["name"], call["id"], call["kind"], False, np.inf, np.inf, (), optional, reason)


def _run_call(case: Case, call: Call, replay: Replay) -> CallResult:
    try:
        return _compared(case, call, replay)
    except Exception as error:  # a family's code, or a recording that is damaged: the call fails, the others go on
        return _failure(case, call, one_line(f"{type(error).__name__}: {error}"))


def _compared(case: Case, call: Call, replay: Replay) -> CallResult:
    optional = bool(call.get("optional", False))
    call = {key: value for key, value in call.items() if value is not None}  # null and absent say the same
    produced = replay(call)
    max_abs = max_rel = 0.0
    ok, compared = True, []
    for key in COMPARED:
        if key not in call or key not in produced:
            continue
        for name, expected, actual in _pairs(case, key, call[key], produced[key]):
            absolute, relative, within = _compare(expected, actual, call.get("atol", 0.0), call.get("rtol", 0.0))
            max_abs, max_rel, ok = max(max_abs, absolute), max(max_rel, relative), ok and within
            compared.append(name)
    if not any(name.split(".")[0] in ("output", "expected") for name in compared):
        ok = False
    return CallResult(
        case.spec["name"], call["id"], call["kind"], ok, max_abs, max_rel, tuple(compared), optional,
        None if compared else "the adapter returned nothing that is in the recording",
    )  # fmt: skip


def _pairs(case: Case, key: str, recorded: Any, produced: Any) -> Sequence[tuple[str, Any, Any]]:
    """Return (name, expected, actual) triples: tensors by name, tables entry by entry, literals as they are."""
    if isinstance(recorded, Mapping):
        return [
            triple
            for name, value in recorded.items()
            if isinstance(produced, Mapping) and name in produced
            for triple in _pairs(case, f"{key}.{name}", value, produced[name])
        ]
    if isinstance(recorded, str):
        return [(key, case.tensors[recorded], produced)]
    return [(key, recorded, produced)]


def _compare(expected: Any, actual: Any, atol: float, rtol: float) -> tuple[float, float, bool]:
    if expected is None or actual is None:
        return (0.0, 0.0, True) if expected is None and actual is None else (np.inf, np.inf, False)
    want, got = (_array(value) for value in (expected, actual))
    if want.shape != got.shape:
        return np.inf, np.inf, False
    both_nan = np.isnan(want) & np.isnan(got)
    error = np.where(both_nan | (want == got), 0.0, np.abs(want - got))
    relative = error / np.maximum(np.abs(want), np.finfo(np.float64).tiny)
    within = bool(np.all(error <= atol + rtol * np.abs(want)))
    relative = np.where(error == 0, 0.0, relative)
    return float(error.max(initial=0.0)), float(relative.max(initial=0.0)), within


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)
