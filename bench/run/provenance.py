"""What a row needs to be repeated: command, code, packages and device."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
import uuid
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import bench
from results.store import now

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
