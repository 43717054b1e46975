"""What this machine has: device, packages, database, judges and weights; what is missing and how to get it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench.contracts.plugins import BUILT_IN, Group, faults
from bench.judges.base import JUDGES, judge_specs
from bench.judges.fidelity import EXTRACTORS
from bench.metrics.registry import METRICS, check_metrics
from bench.models.cards import CARDS, cards
from bench.models.compilation import check_compiler
from bench.models.environments import environment_python
from bench.models.files import check_given, model_files
from bench.models.registry import ADAPTERS, family_class
from bench.recordings.replay import REPLAYS
from bench.references.datasets import DATASETS
from bench.references.source import check_policy
from bench.references.stored import SOURCES, check_kind, check_source
from bench.run.executors import EXECUTORS
from bench.run.needs import cards_of, needs_of_judging, needs_of_run, require
from bench.run.plan import Request
from bench.run.provenance import device_name, package_versions
from bench.weights.cache import FileCache, cache_directory
from protocols import Protocol, load_protocol, protocol_files
from results.documents import shown
from results.errors import BenchError, StoreError, one_line
from results.files import disk_error, free_bytes, nearest_folder
from results.numbers import counted
from results.store import connect

GROUPS: tuple[Group[Any], ...] = (
    ADAPTERS,
    CARDS,
    REPLAYS,
    JUDGES,
    EXTRACTORS,
    METRICS,
    DATASETS,
    SOURCES,
    EXECUTORS,
)
"""Every kind of plug-in."""


class Finding(NamedTuple):
    """One thing looked at: `ready`, `missing` (with how to get it) or `broken`."""

    state: str
    subject: str
    detail: str
    lacks: str = ""
    """Of a protocol, what is missing, without the commands."""
    commands: tuple[str, ...] = ()
    """What gets it."""


def diagnose_protocol(protocol: Protocol) -> Finding:
    """Return what a protocol lacks here."""
    subject = f"protocol {protocol.name}"
    remedies = _remedies(protocol)
    if not remedies:
        return Finding("ready", subject, f"judges {', '.join(protocol.judges)}; reference {protocol.reference['name']}")
    detail = "; ".join(f"{what}: {command}" for what, command in remedies)
    return Finding("missing", subject, detail, "; ".join(what for what, _ in remedies), tuple(dict(remedies).values()))


def diagnose(runs: Path) -> list[Finding]:
    """Return what is ready, missing and broken on this machine."""
    looks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("device", lambda: [_device()]),
        ("packages", lambda: [_packages()]),
        ("runs directory", lambda: [_directory("runs directory", runs)]),
        ("cache directory", lambda: [_directory("cache directory", cache_directory())]),
        ("database", lambda: [_database(runs / "bench.duckdb")]),
        ("protocols", _protocols),
        ("weights", _weights),
        ("plug-ins", _plugins),
    ]
    findings = []
    for subject, look in looks:
        try:
            findings += look()
        except Exception as error:  # what is broken in one place must not hide the others
            findings.append(Finding("broken", subject, one_line(f"{type(error).__name__}: {error}")))
    return findings


def _packages() -> Finding:
    return Finding("ready", "packages", ", ".join(f"{name} {found}" for name, found in package_versions().items()))


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Finding("ready", "device", f"{device_name('cuda')}, {memory:.0f} GiB")
    return Finding("ready", "device", f"{device_name('cpu')}, {os.cpu_count()} cores (no GPU: --device cpu)")


def _directory(subject: str, path: Path) -> Finding:
    if not os.access(nearest_folder(path), os.W_OK):
        return Finding("broken", subject, f"{path} is not writable; choose another place")
    free = free_bytes(path) / 2**30
    return Finding("ready", subject, f"{path}, {free:.0f} GiB free")


def _database(path: Path) -> Finding:
    if not path.exists():
        return Finding("missing", "database", f"{path}; 'bench run' creates it")
    try:
        with connect(path) as connection:
            row = connection.execute("SELECT count(*) FROM cells").fetchone()
    except StoreError as error:
        return Finding("broken", "database", str(error))
    return Finding("ready", "database", f"{path}, {counted(row[0] if row else 0, 'row')}")


def _protocols() -> list[Finding]:
    """Return one finding for each protocol; the smoke ones need what their full ones need."""
    findings = []
    for name, path in protocol_files().items():
        try:
            protocol = load_protocol(path)
            if protocol.smoke:
                continue
            findings.append(diagnose_protocol(protocol))
        except BenchError as error:
            findings.append(Finding("broken", f"protocol {name}", str(error)))
    return findings


def _remedies(protocol: Protocol) -> list[tuple[str, str]]:
    """Return what a protocol lacks, each with the command that gets it."""
    lacking = needs_of_judging(protocol).lacking()
    remedies = []
    judges = list(dict.fromkeys(file.owner.removeprefix("judge ").strip("'") for file in lacking.files))
    if judges:
        called = f"judge{'s' if len(judges) > 1 else ''} {', '.join(judges)}"
        remedies.append((called, f"bench weights fetch judges --protocol {protocol.argument}"))
    return remedies + [(f"reference {found.name}", found.command) for found in lacking.references]


def _weights() -> list[Finding]:
    cache = FileCache(cache_directory())
    ready: list[str] = []
    missing: list[str] = []
    broken: list[Finding] = []
    for card in cards().values():
        if card.weights is not None and not card.members:
            try:
                complete = all(file.find(cache) is not None for file in model_files(card))
            except Exception as error:  # the family is asked for its autoencoder's files, and it may be anyone's
                broken.append(Finding("broken", f"model {card.name}", one_line(f"{error}; fix the card {card.path}")))
                continue
            (ready if complete else missing).append(card.name)
    findings = [Finding("ready", f"weights of {len(ready)} models", ", ".join(ready))] if ready else []
    findings += broken
    if missing:
        detail = f"{', '.join(missing[:6])}{' ...' if len(missing) > 6 else ''}; fetch with 'bench fetch --model MODEL'"
        findings.append(Finding("missing", f"weights of {len(missing)} models", detail))
    return findings


def _plugins() -> list[Finding]:
    """Return one finding for each distribution with plug-ins (what it adds), and one for each fault of one."""
    cards()
    added: dict[str, dict[str, list[str]]] = {}
    for group in GROUPS:
        for plugin, _ in group.load_all():
            added.setdefault(plugin.distribution, {}).setdefault(plugin.group, []).append(plugin.name)
    findings = []
    for distribution, groups in added.items():
        shown = (
            f"{group.removeprefix('bench.')} {len(names) if distribution == BUILT_IN else ', '.join(names)}"
            for group, names in groups.items()
        )
        findings.append(Finding("ready", f"plug-ins of {distribution}", one_line("; ".join(shown))))
    for fault in faults():
        detail = f"{fault.reason}; fix it, or pip uninstall {fault.distribution}"
        findings.append(Finding("broken", f"plug-in {fault.distribution} ({fault.group}: {fault.name or '-'})", detail))
    return findings


FREE_BYTES_NEEDED = 64 * 2**20


def preflight(request: Request, runs: Path, database: Path) -> None:
    """Meet every fault that can be met before the first sample.

    Raises BenchError for the first, and for all files and references that are missing at once.
    """
    check_surroundings(request, runs, database)
    require(needs_of_run([request]))


def check_surroundings(request: Request, runs: Path, database: Path | None) -> None:
    """Raise BenchError for what stands in the way of a run apart from files that it lacks; None: no database is
    written."""
    check_protocol(request.protocol)
    if request.weights is not None:
        check_given(request.weights)
    if request.compile:
        check_compiler(request.device)
    for card in cards_of([request]):
        if family_class(card.family).out_of_process:
            environment_python(card)
    try:
        runs.mkdir(parents=True, exist_ok=True)
        probe = runs / f".write-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
        free = shutil.disk_usage(runs).free
    except OSError as error:
        raise disk_error(runs, error) from error
    if free < FREE_BYTES_NEEDED:
        raise BenchError(
            f"{runs}: only {free // 2**20} MiB free; free some space or choose another place with --runs-dir"
        )
    if database is not None:
        with connect(database, write=True, retry=True):
            pass


def check_protocol(protocol: Protocol) -> None:
    """Raise BenchError for the first thing the protocol asks for that is not known here, or wrong."""
    check_metrics(protocol.metrics, protocol.metric_options, f"protocol {shown(protocol.path)}")
    judge_specs(protocol)
    check_source(protocol)
    check_kind(protocol)
    if "kind" in protocol.reference:
        check_policy(str(protocol.reference.get("resize", "none")))
