"""What an adapter may not leave behind: the state of torch, numpy and the process is put back after each batch."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch

from bench.run.executors import last_words

GRACE = 2.0
"""Seconds after its time in which a batch can still be interrupted; then a worker is ended whatever it computes."""
PUBLIC = [
    *((torch.nn.functional, name) for name in ("linear", "conv2d", "interpolate", "softmax", "gelu", "silu", "relu",
                                               "layer_norm", "group_norm", "scaled_dot_product_attention", "avg_pool2d",
                                               "normalize", "pad", "embedding")),
    *((torch, name) for name in ("matmul", "mm", "bmm", "cat", "stack", "einsum", "randn", "rand", "no_grad", "tensor",
                                 "from_numpy", "sqrt", "exp", "clamp", "round", "mean")),
    *((torch.Tensor, name) for name in ("__matmul__", "__add__", "__mul__", "to", "cpu", "float", "round", "clamp",
                                        "mean", "numpy", "isfinite")),
    *((torch.nn.Module, name) for name in ("__call__", "forward", "to", "eval")),
    *((np, name) for name in ("concatenate", "mean", "cov", "dot", "load", "save", "frombuffer")),
]  # fmt: skip
"""Functions whose replacement would bend what is measured of every model."""


class TimedOut(Exception):
    """A batch took longer than the user allows."""


@dataclass
class Changes:
    """What a block changed and was put back."""

    patched: list[str] = field(default_factory=list)
    """Functions that were replaced: what was measured since may be wrong."""
    settings: list[str] = field(default_factory=list)


@contextmanager
def contained() -> Iterator[Changes]:
    """Put back in the end what the block changed of the process, and name it in what is yielded.

    Seeds and numpy's handling of errors are put back unnamed: nothing of the harness goes by them.
    """
    changes = Changes()
    before = _state()
    functions = [(owner, name, getattr(owner, name)) for owner, name in PUBLIC]
    environment, directory = dict(os.environ), str(Path.cwd())
    seeds = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    errors = np.geterr()
    try:
        with no_exit():
            yield changes
    finally:
        patched = [(owner, name, own) for owner, name, own in functions if getattr(owner, name) is not own]
        for owner, name, own in patched:
            setattr(owner, name, own)
            changes.patched.append(f"{getattr(owner, '__name__', owner)}.{name}")
        after = _state()
        changes.settings += [name for name in before if before[name] != after[name]]
        torch.set_default_dtype(before["the default dtype"])
        torch.set_grad_enabled(before["the gradient mode"])
        if after["the number of threads"] != before["the number of threads"]:
            torch.set_num_threads(before["the number of threads"])
        torch.use_deterministic_algorithms(before["deterministic algorithms"])
        torch.backends.cudnn.benchmark = before["cudnn.benchmark"]
        torch.backends.cudnn.deterministic = before["cudnn.deterministic"]
        if _own(os.environ) != _own(environment):
            changes.settings.append("environment variables")
            os.environ.clear()
            os.environ.update(environment)
        if _directory() != directory:
            changes.settings.append("the working directory")
            os.chdir(directory)
        np.seterr(**errors)
        random.setstate(seeds[0])
        np.random.set_state(seeds[1])
        torch.random.set_rng_state(seeds[2])


@contextmanager
def no_exit() -> Iterator[None]:
    """Let `os._exit` in the block raise SystemExit, so that no adapter ends the process; children of fork may."""
    own, process = os._exit, os.getpid()

    def leave(status: int = 0) -> NoReturn:
        if os.getpid() != process:
            own(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = leave
    try:
        yield
    finally:
        os._exit = own


def _state() -> dict[str, Any]:
    return {
        "the default dtype": torch.get_default_dtype(),
        "the gradient mode": torch.is_grad_enabled(),
        "the number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
    }


def _own(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that torch's compiler does not set for itself."""
    return {name: value for name, value in environment.items() if not name.startswith(("TORCH", "TRITON", "CUDA"))}


def _directory() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:
        return None


@contextmanager
def time_limit(seconds: float | None, what: str = "a batch") -> Iterator[None]:
    """Raise TimedOut in the block after `seconds` (None: never). Only the main thread of a process can be limited.

    Compiled code that never returns to Python is not interrupted: GRACE later a worker process ends, and is replaced.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimedOut(too_long(seconds, what))

    alarm = hasattr(signal, "SIGALRM")  # Windows has none: there the worker is ended after the grace alone
    kept = signal.signal(signal.SIGALRM, ring) if alarm else None
    if alarm:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    note = last_words()
    if note is not None:
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=note)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, kept)


def too_long(seconds: float, what: str = "a batch") -> str:
    """Return what is said of what took longer than `seconds`."""
    return f"{what} took longer than {seconds:g} s (--timeout); raise the limit, or fix the adapter"
