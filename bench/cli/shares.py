"""Shares of a run on the command line: sampled by `bench run --shards`, put together by `bench merge`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bench.cli.output import console
from bench.cli.summary import print_summary
from results.errors import BenchError
from results.numbers import counted

if TYPE_CHECKING:
    from bench.run.gathering import Gathered
    from bench.run.plan import Request
    from bench.run.shares import Share

SHARDS = typer.Option(
    metavar="I/N", help="Sample only share I of N, to be put together with 'bench merge'. See docs/many-machines.md."
)
ALLOW_MIXED = typer.Option(
    "--allow-mixed", help="Accept shards and workers with other versions of fewstep-bench or its libraries."
)


def parse_share(text: str | None) -> Share | None:
    """Return the share that `--shards` names."""
    from bench.run.shares import Share

    return None if text is None else Share.parse(text)


def sample_share(requests: Sequence[Request], runs: Path, share: Share, sync: str | None, **way: Any) -> None:
    """Sample one share of each request, with a copy at URL `sync`, and say how it is put together with the others."""
    from bench.cli.progress import RunProgress
    from bench.run.mirroring import Mirror
    from bench.run.provenance import typed_command
    from bench.run.shares import run_share

    out = console()
    failed = False
    mirror = None if sync is None else Mirror(sync, runs)
    if mirror is not None:
        mirror.check()
    for request in requests:
        with RunProgress(out) as shown:
            progress = shown if mirror is None else mirror.around(shown)
            done = run_share(request, runs, share, progress=progress, mirror=mirror, arguments=typed_command(), **way)
        if mirror is not None:
            mirror.finish()
        kept = f", {done.kept} there before" if done.kept else ""
        counts = f"{counted(done.shards, 'shard')} sampled{kept}"
        out.print(f"\nShare {share}: {counts}; {done.directory}", markup=False, soft_wrap=True)
        failed = failed or bool(done.failed)
    where = "RUNS_DIRS" if sync is None else sync
    out.print(f"Next, once all {share.count} shares are there: bench merge {where}", markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def whole_plans(runs: Path, sources: Sequence[Path], allow_mixed: bool) -> list[Gathered]:
    """Return the plans whose shares lie in `sources`, each whole."""
    from bench.run.gathering import find_shares, gathered

    found = find_shares(sources)
    return gathered(found, [runs, *(source for source in sources if source.is_dir())], allow_mixed=allow_mixed)


def measure_plan(plan: Gathered, runs: Path, given: Path | None, workers: int, allow_mixed: bool) -> bool:
    """Measure a plan whose shards are all there, print its table, and tell whether a cell failed."""
    from bench.cli.progress import RunProgress
    from bench.run.gathering import finish
    from bench.run.provenance import typed_command

    with RunProgress(console()) as progress:
        summary = finish(
            plan, runs, progress=progress, workers=workers, allow_mixed=allow_mixed, arguments=typed_command()
        )
    if summary.behind is not None:
        raise BenchError(f"{summary.behind}; everything measured is kept: run 'bench reindex' when it is free")
    print_summary(summary, plan.request.protocol.name, runs, given, plan.request.select_on)
    return bool(summary.failed)
