"""Shares of a run put together: every shard found and checked first, then moved to the cells, which are measured."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.run.interface import Progress, Summary
from bench.run.plan import Cell, Request
from bench.run.provenance import differences, made_by
from bench.run.runner import Prepared, run
from bench.run.schedule import Span
from bench.run.shard import CellFailure
from bench.run.shares import Manifest, Share, assigned, failure_of, read_share, request_of
from bench.run.work import Earlier, has_metrics
from results.cells import CellDirectory, share_files
from results.documents import shown
from results.errors import BenchError, StoreError, one_line
from results.files import disk_error, remove, writing

AGAIN = "run its command again"


@dataclass
class Gathered:
    """All shares of one plan, whole as far as their files tell.

    Attributes:
        manifest: of one of them; the plan is the same in all.
        directories: the shares' directories.
        request: what was asked for.
        shards: by cell and span, the directory of the share that has it.
        failures: cells that failed, and why.
        finished: cells that need no shards.
    """

    manifest: Manifest
    directories: dict[Path, Manifest]
    request: Request
    shards: dict[tuple[str, Span], Path] = field(default_factory=dict)
    failures: dict[str, CellFailure] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)

    def into(self, runs: Path, ready: Prepared) -> Mapping[str, CellFailure]:
        """Put the shards beside the cells of `runs`, none unless all can be; return why cells failed, by cell."""
        planned = {cell.cell_id: cell for cell in ready.cells if cell.unsupported is None}
        if set(planned) != {cell.cell for cell in self.manifest.cells}:
            where, odd = shown(next(iter(self.directories))), _odd(planned, self.manifest)
            raise BenchError(
                f"{where}: its plan is not this machine's ({odd}): the weights, judges or reference here are others; "
                "merge where the shares were sampled"
            )
        earlier = Earlier(ready.context, ready.judged)
        for (name, span), directory in self.shards.items():
            place = CellDirectory(directory, name)
            if earlier.lacking(place, [span], self.manifest.batch_size):
                raise BenchError(
                    f"{shown(place.shard_path(*span))}: {_fault(earlier)}; {AGAIN}: bench run ... "
                    f"--shards {self.directories[directory].place}"
                )
        moved: list[Path] = []
        try:
            for cell in self.manifest.cells if self.manifest.fresh else ():
                CellDirectory(runs, cell.cell).clear()
            for (name, span), directory in self.shards.items():
                target = CellDirectory(runs, name).shard_path(*span)
                _bring(CellDirectory(directory, name).shard_path(*span), target)
                moved.append(target)
        except BaseException as error:
            for target in moved:
                target.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise disk_error(runs, error) from error
            raise
        return self.failures


def find_shares(sources: Sequence[Path]) -> dict[Path, Manifest]:
    """Return the directories of shares in runs directories, or that are such directories, with what they say.

    Raises StoreError for one that cannot be read.
    """
    found: dict[Path, Manifest] = {}
    for source in sources:
        for path in share_files(source):
            if path.is_symlink() or path.parent.is_symlink():
                raise StoreError(f"{shown(path)}: a link; only files inside the runs directory are merged")
            found[path.parent.resolve()] = read_share(path.parent)
    return found


def gathered(found: Mapping[Path, Manifest], sources: Sequence[Path], *, allow_mixed: bool = False) -> list[Gathered]:
    """Return the plans that shares belong to, each whole.

    A cell that is finished in one of `sources`, runs directories, needs no shards. Raises BenchError, naming the first
    share or shard that is missing or, unless `allow_mixed`, that other code or libraries made.
    """
    if not allow_mixed:
        for directory, manifest in found.items():
            if other := differences(manifest.made_by, made_by()):
                raise BenchError(
                    f"{shown(directory)}: share {manifest.place} was made by {other}; merge with the same versions, or "
                    "take it with --allow-mixed"
                )
    plans: dict[str, Gathered] = {}
    for directory, manifest in found.items():
        if manifest.key not in plans:
            plans[manifest.key] = Gathered(manifest, {}, request_of(manifest.request))
        plans[manifest.key].directories[directory] = manifest
    for plan in plans.values():
        _check_whole(plan, len(plans))
        _find_shards(plan, sources)
    return list(plans.values())


def finish(
    plan: Gathered,
    runs: Path,
    *,
    progress: Progress,
    workers: int = 0,
    allow_mixed: bool = False,
    arguments: Sequence[str] = (),
) -> Summary:
    """Put the shards of a plan together in `runs`, measure and time its cells; remove the shares that lay in there."""
    summary = run(
        plan.request,
        runs,
        progress=progress,
        gather=plan,
        workers=workers,
        allow_mixed=allow_mixed,
        arguments=arguments,
    )
    own = (runs / "shares").resolve()
    for directory in plan.directories:
        if directory.is_relative_to(own):
            remove(directory)
            with suppress(OSError):  # others are left in there
                directory.parent.rmdir()
                own.rmdir()
    return summary


def _check_whole(plan: Gathered, plans: int) -> None:
    count = plan.manifest.of
    there = {manifest.share for manifest in plan.directories.values()}
    absent = [str(Share(number, count)) for number in range(1, count + 1) if number not in there]
    if not absent:
        return
    place, manifest = next(iter(plan.directories.items()))
    listed = ", ".join(absent[:6]) + (" ..." if len(absent) > 6 else "")
    other = f"; the other shares here are of {plans - 1} other plan{'s' if plans > 2 else ''}" if plans > 1 else ""
    raise BenchError(
        f"share{'s' if len(absent) > 1 else ''} {listed} missing beside {manifest.place} ({shown(place)}){other}; name "
        f"the runs directory that has {'them' if len(absent) > 1 else 'it'}, or run the same command with "
        f"--shards {absent[0]}"
    )


def _find_shards(plan: Gathered, sources: Sequence[Path]) -> None:
    """Note which directory has each shard of a cell that is neither finished nor failed."""
    by_number = sorted(plan.directories.items(), key=lambda entry: entry[1].share)
    if not plan.manifest.fresh:
        for cell in plan.manifest.cells:
            records = (CellDirectory(source, cell.cell).read_result() for source in sources)
            if any(has_metrics(record, plan.request.protocol) for record in records):
                plan.finished.add(cell.cell)
    for cell in plan.manifest.cells:
        failures = (failure_of(CellDirectory(directory, cell.cell)) for directory, _ in by_number)
        if cell.cell not in plan.finished and (failure := next(filter(None, failures), None)) is not None:
            plan.failures[cell.cell] = failure
    done = plan.finished | set(plan.failures)
    labels = {cell.cell: one_line(cell.label, 80) for cell in plan.manifest.cells}
    for number in range(1, plan.manifest.of + 1):
        share = Share(number, plan.manifest.of)
        mine = [directory for directory, manifest in by_number if manifest.share == number]
        for name, spans in assigned(plan.manifest.cells, plan.manifest.batch_size, share).items():
            for span in spans if name not in done else ():
                place = next((directory for directory in mine if _there(directory, name, span)), None)
                if place is None:
                    raise BenchError(
                        f"{shown(mine[0])}: samples {span[0]}..{span[1] - 1} of {labels[name]} are missing, share "
                        f"{share} was interrupted; {AGAIN}, it continues there"
                    )
                plan.shards[name, span] = place


def _there(directory: Path, cell: str, span: Span) -> bool:
    path = CellDirectory(directory, cell).shard_path(*span)
    if path.is_symlink() or path.parent.is_symlink():
        raise StoreError(f"{shown(path)}: a link; only files inside the runs directory are merged")
    return CellDirectory(directory, cell).shard_facts(*span) is not None


def _bring(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, on another disk a copy."""
    with writing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _fault(earlier: Earlier) -> str:
    other = next(iter(earlier.others), "")
    return f"was made by {other}" if other else "is damaged, or not what the judges here say"


def _odd(planned: Mapping[str, Cell], manifest: Manifest) -> str:
    cell = next((cell for cell in manifest.cells if cell.cell not in planned), None)
    return f"{one_line(cell.label, 80)} is another cell here" if cell is not None else "it has fewer cells"
