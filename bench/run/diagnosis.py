"""What this machine has: device, packages, database, judges and weights; what is missing and how to get it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from bench.contracts.card import cards
from bench.references.stored import build_command
from bench.run.provenance import device_name, package_versions
from bench.run.runner import lacking_judge_files, lacks_reference
from bench.weights import FileCache, cache_directory, model_files
from protocols import Protocol, ProtocolError, load_protocol, protocol_files
from results import StoreError
from results.errors import BenchError
from results.store import connect


class Finding(NamedTuple):
    """One thing looked at: `ready`, `missing` (with how to get it) or `broken`."""

    state: str
    subject: str
    detail: str


def diagnose(runs: Path) -> list[Finding]:
    """Return what is ready, missing and broken on this machine."""
    return [
        _device(),
        Finding("ready", "packages", ", ".join(f"{name} {found}" for name, found in package_versions().items())),
        _directory("runs directory", runs),
        _directory("cache directory", cache_directory()),
        _database(runs / "bench.duckdb"),
        *_protocols(),
        *_weights(),
    ]


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Finding("ready", "device", f"{device_name('cuda')}, {memory:.0f} GiB")
    return Finding("ready", "device", f"{device_name('cpu')}, {os.cpu_count()} cores (no GPU: --device cpu)")


def _directory(subject: str, path: Path) -> Finding:
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        return Finding("broken", subject, f"{path} is not writable; choose another place")
    free = shutil.disk_usage(existing).free / 2**30
    return Finding("ready", subject, f"{path}, {free:.0f} GiB free")


def _database(path: Path) -> Finding:
    if not path.exists():
        return Finding("missing", "database", f"{path}; 'bench run' makes it")
    try:
        with connect(path) as connection:
            row = connection.execute("SELECT count(*) FROM cells").fetchone()
    except StoreError as error:
        return Finding("broken", "database", str(error))
    return Finding("ready", "database", f"{path}, {row[0] if row else 0} cells")


def _protocols() -> list[Finding]:
    """Return one finding for each protocol; the smoke ones need what their full ones need."""
    findings = []
    for name, path in protocol_files().items():
        try:
            protocol = load_protocol(path)
            if protocol.smoke:
                continue
            remedies = _remedies(protocol)
        except (ProtocolError, BenchError) as error:
            findings.append(Finding("broken", f"protocol {name}", str(error)))
            continue
        ready = f"judges {', '.join(protocol.judges)}; reference {protocol.reference['name']}"
        state = "missing" if remedies else "ready"
        findings.append(Finding(state, f"protocol {name}", "; ".join(remedies) or ready))
    return findings


def _remedies(protocol: Protocol) -> list[str]:
    """Return what a protocol lacks, each with the command that gets it."""
    remedies = []
    lacking = sorted({judge for judge, _ in lacking_judge_files(protocol)})
    if lacking:
        judges = f"judge{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
        remedies.append(f"{judges}: bench weights fetch judges --protocol {protocol.name}")
    if lacks_reference(protocol):
        remedies.append(f"reference {protocol.reference['name']}: {build_command(protocol)}")
    return remedies


def _weights() -> list[Finding]:
    cache = FileCache(cache_directory())
    ready: list[str] = []
    missing: list[str] = []
    for card in cards().values():
        if card.weights is not None and not card.members:
            complete = all(file.find(cache) is not None for file in model_files(card))
            (ready if complete else missing).append(card.name)
    findings = [Finding("ready", f"weights of {len(ready)} models", ", ".join(ready))] if ready else []
    if missing:
        detail = f"{', '.join(missing[:6])}{' ...' if len(missing) > 6 else ''}; fetch with 'bench weights fetch MODEL'"
        findings.append(Finding("missing", f"weights of {len(missing)} models", detail))
    return findings
