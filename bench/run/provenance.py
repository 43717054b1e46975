"""What a row needs to be repeated: command, code, packages and device."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import bench
from bench.contracts.plugins import BUILT_IN, distributions_with_plugins
from results.database import now

PACKAGES = (
    "torch", "numpy", "scipy", "torch-fidelity", "open-clip-torch", "transformers", "diffusers", "pillow",
    "safetensors", "scikit-learn", "duckdb",
)  # fmt: skip


def run_record(arguments: Sequence[str], device: str, threads: int) -> dict[str, Any]:
    """Return the row of table `runs` for a run that starts now with the command line `arguments`."""
    commit, dirty = _git_state()
    return {
        "run_id": uuid.uuid4().hex[:16],
        "started": now().isoformat(),
        "finished": None,
        "command": shlex.join(["bench", *arguments]),
        "code_version": bench.__version__,
        "code_commit": commit,
        "code_dirty": dirty,
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": threads,
    }


def package_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that can move a number."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


ROOMS = ("bench", "adapters", "protocols", "results")
"""Packages of this distribution whose code can move a number."""


@cache
def made_by() -> Mapping[str, str]:
    """Return what samples in this process, by name: the code (its version and a digest of it), Python, the libraries
    that can move a number, and the distributions with plug-ins."""
    root = Path(bench.__file__).parent.parent
    code = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
        code.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return {
        BUILT_IN: f"{bench.__version__} (code {code.hexdigest()[:12]})",
        "python": platform.python_version(),
        **package_versions(),
        **distributions_with_plugins(),
    }


def differences(found: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Return in what two makers differ, `torch 2.6.0, here 2.7.1; ...`; empty where they are the same."""
    names = [name for name in {**here, **found} if found.get(name) != here.get(name)]
    return "; ".join(f"{name} {found.get(name, 'absent')}, here {here.get(name, 'absent')}" for name in names)


def device_name(device: str) -> str:
    """Return a readable name of the device: the accelerator's, or the processor's."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git_state() -> tuple[str | None, bool | None]:
    root = Path(bench.__file__).parent.parent
    if not (root / ".git").exists():
        return None, None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit or None, bool(_git(root, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def typed_command() -> list[str]:
    """Return the arguments this process was started with."""
    return sys.argv[1:]
