"""Environments of models that are sampled out of process: found, and made when the user asks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.contracts.card import ModelCard
from bench.models.registry import family_class
from bench.weights.cache import cache_directory
from results.errors import BenchError, one_line
from results.files import write_atomically

PYTHON = "BENCH_WORKER_PYTHON"
"""Environment variable of the interpreter that a user typed (`--worker-python`)."""
RECORD = "environment.json"
"""What a finished environment holds beside the packages: how it was made."""


def environment_folder(card: ModelCard) -> Path:
    """Return where the environment of `card` lies, made or not."""
    return cache_directory() / "environments" / (card.worker.environment or card.name)


def environment_python(card: ModelCard) -> Path:
    """Return the interpreter of the card's environment: the one that was typed, else that of the one that was made.

    Raises BenchError when there is none, and says how to make it.
    """
    typed = os.environ.get(PYTHON)
    if typed:
        found = shutil.which(typed)
        if found is None:
            raise BenchError(f"--worker-python: {typed} is no program here; give the interpreter of an environment")
        return Path(found).absolute()  # not resolved: a link into an environment is what makes it one
    folder = environment_folder(card)
    if (folder / RECORD).exists():
        return folder / "bin" / "python"
    raise BenchError(
        f"{card.name} is sampled in an environment of its own, which is not here; make it with 'bench worker setup "
        f"{card.name}', or give one with --worker-python"
    )


def make_environment(card: ModelCard, *, python: str | None = None, tell: Callable[[str], None] = print) -> Path:
    """Make the environment of `card` anew, by uv where it is installed and else by venv and pip; return its folder.

    Raises BenchError when a program fails, with its last line; an unfinished environment is not found later.
    """
    check_worker(card)
    folder, needs = environment_folder(card), card.worker
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    uv, interpreter = shutil.which("uv"), folder / "bin" / "python"
    if uv:
        chosen = python or needs.python or sys.executable
        _run([uv, "venv", "--quiet", "--python", chosen, str(folder)], tell)
        install = [uv, "pip", "install", "--python", str(interpreter)]
    else:
        _run([_interpreter(python, needs.python), "-m", "venv", str(folder)], tell)
        install = [str(interpreter), "-m", "pip", "install", "--disable-pip-version-check"]
    if needs.requirements:
        _run([*install, "--", *needs.requirements], tell)
    record = {"requirements": list(needs.requirements), "python": needs.python, "by": "uv" if uv else "venv"}
    write_atomically(folder / RECORD, json.dumps(record, indent=1).encode())
    return folder


def check_worker(card: ModelCard) -> None:
    """Raise BenchError for a model that is sampled in this process."""
    if not family_class(card.family).out_of_process:
        raise BenchError(f"{card.name} is sampled in this environment; it needs none of its own")


def _interpreter(typed: str | None, version: str) -> str:
    """Return the interpreter to make an environment with."""
    wanted = typed or (f"python{version}" if version else sys.executable)
    found = shutil.which(wanted)
    if found is None and version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        found = sys.executable
    if found is None:
        raise BenchError(f"{wanted} is not installed; install it or uv, or name an interpreter with --python")
    return found


def _run(command: list[str], tell: Callable[[str], None]) -> None:
    tell(" ".join(command))
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BenchError(f"{command[0]} cannot be started ({error.strerror})") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "")
        raise BenchError(one_line(f"{Path(command[0]).name} failed (exit code {done.returncode}): {last}"))
