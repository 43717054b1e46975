"""The loader that turns a protocol's `[judges.NAME]` table into a judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bench.judges.costs import JudgeCost
from bench.judges.files import PATH_OPTIONS, of_judge
from bench.judges.judge import Judge, JudgeSpec
from bench.judges.options import JUDGES, JudgeKind, check_judges
from bench.weights.cache import FileCache, cache_directory
from bench.weights.file import NeededFile, here
from protocols import Protocol as Definition
from results.errors import BenchError, unknown


def judge_specs(protocol: Definition) -> list[JudgeSpec]:
    """Return the judges of a protocol; local paths are made absolute, each from the file that states it.

    Raises ProtocolError for an option whose value is wrong.
    """
    check_judges(protocol)
    specs = []
    for name, table in protocol.judges.items():
        options = protocol.judge_options(name)
        for key in PATH_OPTIONS:
            folder = protocol.folders.get(f"{name}.{key}")
            if folder is not None and isinstance(options.get(key), str):
                options[key] = str((folder / Path(options[key]).expanduser()).absolute())
        specs.append(JudgeSpec(name, str(table["kind"]), options, protocol.argument))
    return specs


def judge_kind(spec: JudgeSpec) -> JudgeKind:
    """Return the spec's kind, by entry point. Raises BenchError for one that is unknown or broken."""
    try:
        return JUDGES.load(spec.kind, f" of judge '{spec.name}'")
    except BenchError as error:
        raise BenchError(f"{spec.where('kind')}{error}") from error


def judge_cost(spec: JudgeSpec) -> JudgeCost | None:
    """Return what the judge of `spec` costs an image before it is loaded; None where nothing is known of it."""
    return judge_kind(spec).cost(spec)


def check_options(spec: JudgeSpec, known: Sequence[str]) -> None:
    """Raise BenchError for an option the judge's kind does not have; `precision` is every kind's."""
    for key in spec.options:
        if key == "precision":
            continue
        if key not in known:
            fault = unknown(f"option of judge '{spec.name}' ({spec.kind})", key, known)
            raise BenchError(f"{spec.where(key)}{fault}")


def judge_files(spec: JudgeSpec, *, root: Path) -> list[NeededFile]:
    """Return the files a judge needs, in the order its kind's `build` expects them."""
    return [of_judge(file, spec.name, spec.protocol) for file in judge_kind(spec).required_files(spec, root)]


def load_judge(spec: JudgeSpec, *, device: torch.device | str, root: Path) -> Judge:
    """Load a judge from files on this machine.

    Nothing is downloaded and torch's global random state is left as it was. Raises BenchError, one line, when a file is
    missing (naming it and the command that fetches it), altered or of another network, or an option is not known.
    """
    kind, cache = judge_kind(spec), FileCache(cache_directory())
    half = spec.options.get("precision") == "half"
    if half and not kind.judge.takes_half:
        raise BenchError(
            f"{spec.where('precision')}judge '{spec.name}': kind {spec.kind} computes in float32 alone; leave it out"
        )
    paths = []
    for file in judge_files(spec, root=root):
        paths.append(here(file, cache))
        cache.verify(file.title, paths[-1], file.key(cache), file.sha256)
    with torch.random.fork_rng(devices=[]):
        judge = kind.build(spec, root, paths, torch.device(device))
    return judge.in_half() if half else judge
