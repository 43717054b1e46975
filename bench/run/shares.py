"""One share of a run's shards, sampled by itself: what `bench run --shards i/n` does on each of n machines.

    RUNS/shares/<plan>/<i>-of-<n>/share.json          what was asked for, of which plan, by which code
                                  cells/<cell_id>/    shards as in a runs directory, failed.json of a broken cell

A share never touches the cells of the runs directory, which n processes may so have in common. `bench.run.gathering`
puts the shares together.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.models.loading import parse_device
from bench.run.dispatch import Dispatch
from bench.run.executors import check_not_starting
from bench.run.interface import How, Progress
from bench.run.needs import needs_of_run, require
from bench.run.plan import Cell, Request
from bench.run.readiness import check_surroundings
from bench.run.record import Context
from bench.run.runner import Prepared, alone, prepared
from bench.run.schedule import Span
from bench.run.shard import CellFailure, shard_ranges
from bench.run.work import Ahead, Earlier, Work, has_metrics
from protocols import find_protocol
from results.cells import CellDirectory
from results.digests import digest_of
from results.documents import Table, read_object, shown, validated
from results.errors import BenchError, StoreError, one_line
from results.files import remove, write_atomically
from results.mirror import FAILED
from results.records import is_cell_id

if TYPE_CHECKING:
    from bench.run.mirroring import Mirror

MOST = 100_000
"""Shares of one run."""
MOST_SAMPLES = 10**9
"""Samples of all settings of a plan: what a file that says more would have others count through."""


@dataclass(frozen=True)
class Share:
    """Share `number` (from 1) of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Share:
        """Return the share that `i/n` names. Raises BenchError unless 1 <= i <= n."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]) <= MOST:
            raise BenchError(
                f"--shards: '{one_line(text, 40)}' is not one share of several; write for example 1/3, 2/3 and 3/3"
            )
        return cls(int(found[1]), int(found[2]))


class PlannedCell(Table):
    """A cell of the plan that a share belongs to."""

    cell: str
    label: str
    samples: int
    steps: int


class RequestTable(Table):
    """What the command line asked for; see `bench.run.plan.Request`."""

    protocol: str
    models: list[str] | None
    steps: list[int] | None
    cfg: list[float] | None
    num_samples: int | None
    seed: int | None
    seeds: list[int]
    batch_size: int | None
    sampler: str | None
    select_on: int | None
    device: str
    dtype: str
    compile: bool
    options: dict[str, Any]
    weights: str | None
    random_weights: bool


class Manifest(Table):
    """The file `share.json`."""

    version: Literal[1]
    share: int
    of: int
    batch_size: int
    fresh: bool
    started: str | None
    machine: str
    made_by: dict[str, str]
    request: RequestTable
    cells: list[PlannedCell]

    @property
    def place(self) -> Share:
        """Which share this is."""
        return Share(self.share, self.of)

    @property
    def key(self) -> str:
        """The plan that this is a share of: the same for all shares that belong together, in any version."""
        return digest_of([self.of, self.batch_size, [cell.cell for cell in self.cells]])[:12]

    def spans(self) -> dict[str, list[Span]]:
        """Return the shards of this share, by cell."""
        return assigned(self.cells, self.batch_size, self.place)


def table_of(request: Request) -> dict[str, Any]:
    """Return a request as JSON holds it."""
    table = {field.name: getattr(request, field.name) for field in fields(request)}
    path = None if request.protocol.shipped else str(request.protocol.path.resolve())
    table |= {
        "protocol": path or request.protocol.argument,
        "weights": None if request.weights is None else str(request.weights.resolve()),
        "options": dict(request.options),
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in table.items()}


def request_of(table: RequestTable) -> Request:
    """Return the request that JSON held. Raises BenchError for a protocol or device that is not there."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name in type(table).model_fields
        if (value := getattr(table, name)) is not None
    }
    weights = values.pop("weights", None)
    values |= {"protocol": find_protocol(table.protocol), "device": parse_device(table.device)}
    return Request(**values, weights=None if weights is None else Path(weights))


def assigned(cells: Sequence[PlannedCell], batch_size: int, share: Share) -> dict[str, list[Span]]:
    """Return the shards [start, stop) of one share, by cell.

    The plan's shards in their order are cut into `share.count` parts of about the same samples x steps, so that a share
    meets few checkpoints. Every shard is in one share alone.
    """
    shards = [(cell, span) for cell in cells for span in shard_ranges(cell.samples, batch_size)]
    costs = [cell.steps * (stop - start) for cell, (start, stop) in shards]
    total = sum(costs)
    found: dict[str, list[Span]] = {}
    for (cell, span), cost, end in zip(shards, costs, accumulate(costs), strict=True):
        if (2 * end - cost) * share.count // (2 * total) == share.number - 1:
            found.setdefault(cell.cell, []).append(span)
    return found


@dataclass
class Sampled:
    """What a share's process did."""

    directory: Path
    share: Share
    shards: int = 0
    """Sampled now."""
    kept: int = 0
    """There from before."""
    failed: tuple[tuple[Cell, str], ...] = ()


def run_share(
    request: Request,
    runs: Path,
    share: Share,
    *,
    progress: Progress,
    started: str | None = None,
    mirror: Mirror | None = None,
    **way: Any,
) -> Sampled:
    """Sample one share of a request's shards under `runs`/shares; nothing is measured. `way` is what `How` names.

    `started` marks a run that goes on after an interruption: what a share has sampled since stays also with `fresh`.
    An interrupted share continues at its next shard, also from the copy that `mirror` keeps. Raises BenchError as
    `bench.run.runner.run` does.
    """
    check_not_starting()
    how = How(**way)
    check_surroundings(request, runs, None)
    require(needs_of_run([request]))
    judging = runs / "shares" / f"judging-{share.number}-of-{share.count}"  # others write their references meanwhile
    try:
        with prepared(request, judging, how) as ready:
            return _sample(request, ready, runs, share, progress, how.fresh, started, mirror)
    finally:
        remove(judging)


def _sample(
    request: Request,
    ready: Prepared,
    runs: Path,
    share: Share,
    progress: Progress,
    fresh: bool,
    started: str | None,
    mirror: Mirror | None,
) -> Sampled:
    manifest = _manifest(request, ready, share, fresh, started)
    directory = share_directory(runs, manifest)
    with alone(directory, progress):
        if fresh and (started is None or _started(directory) != started):
            remove(directory / "cells")
        write_atomically(directory / "share.json", manifest.model_dump_json(indent=1).encode())
        if mirror is not None:
            mirror.begin(directory, fresh)
        spans = manifest.spans()
        finished = [] if fresh else _finished(ready, runs)
        mine = [cell for cell in ready.cells if cell.cell_id in spans and cell not in finished]
        earlier = Earlier(ready.context, ready.judged)
        work = [_work(cell, ready.context, directory, spans[cell.cell_id], earlier) for cell in mine]
        earlier.tell()
        reused = [item for item in work if not item.missing]
        progress.plan(len(work), len(reused), *Ahead.of(work))
        outcomes = _Shares(directory, progress, Sampled(directory, share))
        outcomes.done.kept = sum(item.total - len(item.missing) for item in work)
        Dispatch(ready.pool, ready.context, directory, outcomes).run(work)
    return outcomes.done


def share_directory(runs: Path, manifest: Manifest) -> Path:
    """Return where a share lies in a runs directory."""
    return runs / "shares" / manifest.key / f"{manifest.share}-of-{manifest.of}"


def read_share(directory: Path) -> Manifest:
    """Return what a share says of itself. Raises StoreError, one line, for a file that is not one of ours."""
    path = directory / "share.json"
    manifest = validated(Manifest, read_object(path, "share", StoreError), f"share {shown(path)}", StoreError)
    if not 1 <= manifest.share <= manifest.of <= MOST or manifest.batch_size < 1:
        raise StoreError(f"share {shown(path)}: {manifest.place} in batches of {manifest.batch_size} cannot be")
    for cell in manifest.cells:
        if not is_cell_id(cell.cell) or min(cell.samples, cell.steps) < 1 or max(cell.samples, cell.steps) >= 2**31:
            raise StoreError(f"share {shown(path)}: key 'cells' has a row that cannot be; sample the share again")
    if sum(cell.samples for cell in manifest.cells) > MOST_SAMPLES:
        raise StoreError(f"share {shown(path)}: has more than {MOST_SAMPLES:,} samples; ask for fewer settings at once")
    return manifest


def failure_of(directory: CellDirectory) -> CellFailure | None:
    """Return why a cell failed in a share, None where it did not."""
    path = directory.path / FAILED
    if not path.exists():
        return None
    table = read_object(path, "share", StoreError)
    reason, count = table.get("reason"), table.get("failures")
    if not isinstance(reason, str) or type(count) is not int:
        raise StoreError(f"share {shown(path)}: is damaged; sample the share again")
    return CellFailure(one_line(reason), count)


def _started(directory: Path) -> str | None:
    try:
        return read_share(directory).started
    except StoreError:
        return None


def _manifest(request: Request, ready: Prepared, share: Share, fresh: bool, started: str | None) -> Manifest:
    cells = [
        PlannedCell(cell=cell.cell_id, label=cell.label, samples=cell.num_samples, steps=cell.steps)
        for cell in ready.cells
        if cell.unsupported is None
    ]
    return Manifest(
        version=1,
        share=share.number,
        of=share.count,
        batch_size=ready.cells[0].batch_size,
        fresh=fresh,
        started=started,
        machine=platform.node(),
        made_by=dict(ready.context.made_by),
        request=RequestTable.model_validate(table_of(request)),
        cells=cells,
    )


def _finished(ready: Prepared, runs: Path) -> list[Cell]:
    protocol = ready.context.protocol
    return [cell for cell in ready.cells if has_metrics(CellDirectory(runs, cell.cell_id).read_result(), protocol)]


def _work(cell: Cell, context: Context, directory: Path, spans: list[Span], earlier: Earlier) -> Work:
    """Return this share of a cell; half-precision judges are judged as the cell's first shard says, so it is drawn."""
    item = Work.of(cell, context)
    first = item.ranges[0]
    item.ranges = [first, *spans] if context.halves and first not in spans else spans
    place = CellDirectory(directory, cell.cell_id)
    (place.path / FAILED).unlink(missing_ok=True)
    item.missing = earlier.lacking(place, item.ranges, cell.batch_size)
    return item


@dataclass
class _Shares:
    """Shards stay, cells are not measured."""

    directory: Path
    progress: Progress
    done: Sampled
    measures: bool = False

    def sampled(self, item: Work, done: int, span: Span) -> None:
        self.done.shards += 1
        self.progress.shard(item.cell, done, item.total, span[1] - span[0])
        if done == item.total:
            self.progress.cell(item.cell, "sampled", None)

    def measured(self, item: Work) -> None:
        raise AssertionError("a share measures nothing")

    def failed(self, item: Work, failure: CellFailure) -> None:
        facts: Mapping[str, Any] = {"reason": failure.reason, "failures": failure.failures}
        path = CellDirectory(self.directory, item.cell.cell_id).path / FAILED
        write_atomically(path, json.dumps(facts).encode())
        self.done.failed += ((item.cell, failure.reason),)
        self.progress.cell(item.cell, "failed", failure.reason)
