"""Commands that measure: run, score, check; and the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.check import check
from bench.cli.compare import compare
from bench.cli.fetching import get
from bench.cli.leaderboard import leaderboard
from bench.cli.licences import ACCEPT, tell
from bench.cli.output import (
    DRY_RUN,
    RUNS_DIR,
    console,
    print_leaderboard,
    print_lines,
    runs_directory,
)
from bench.cli.parsing import LARGEST_COUNT, LARGEST_SECONDS, LARGEST_SEED
from bench.cli.preview import print_preview
from bench.cli.reporting import report
from bench.cli.shares import ALLOW_MIXED, SHARDS, parse_share, sample_share
from bench.cli.summary import print_summary
from bench.cli.workers import WORKER, WORKER_PYTHON, use_worker
from results.errors import BenchError
from results.marks import legend
from results.numbers import counted

if TYPE_CHECKING:
    from rich.console import Console

    from bench.run.mirroring import Mirror
    from bench.run.plan import Request
    from protocols import Protocol

COUNT_OF_SAMPLES = typer.Option(min=2, max=LARGEST_COUNT, help="Samples per setting (default: the protocol's).")
BATCH_OF_IMAGES = typer.Option(min=1, max=LARGEST_COUNT, help="Images per batch (default: the protocol's).")
COMPILE = typer.Option(
    metavar="[yes|no|auto]",
    help="Use torch.compile, on CUDA with CUDA graphs; auto: where the plan is long enough to pay.",
)
SEED = typer.Option(min=0, max=LARGEST_SEED, help="Seed of the noise (default: the protocol's).")
SELECT_ON = typer.Option(
    min=0, max=LARGEST_SEED, help="Also measure on this seed, and choose each model's setting on it alone."
)
TIMEOUT = typer.Option(
    min=0.001, max=LARGEST_SECONDS, help="Longest time for one batch, in seconds (default: no limit)."
)
RANDOM_WEIGHTS = typer.Option("--random-weights", help="Seeded noise as weights: speed only, never ranked.")
ADDRESS = typer.Option(
    metavar="HOST:PORT", help="The cluster of executor ray (default: RAY_ADDRESS, else one of this machine's own)."
)
OPTION = typer.Option(metavar="KEY=VALUE", help="Setting of the sampler, or of the executor; repeatable.")
SYNC = typer.Option(metavar="URL", help="Keep a copy of every shard and cell in s3://, gs:// ..., and resume from it.")
WORKERS = typer.Option(min=0, max=1024, help="Worker processes; 0: one per core, or one for a GPU.")
Names = Annotated[str | None, typer.Option("--model", help="Models, comma-separated (default: the protocol's).")]
ProtocolName = Annotated[str, typer.Option("--protocol", help="A protocol's name, or a .toml file.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(run)
    app.command()(report)
    app.command()(leaderboard)
    app.command()(score)
    app.command()(check)
    app.command()(compare)


def run(
    model: Names = None,
    protocol: Annotated[
        str | None, typer.Option(help="A protocol's name, or a .toml file (default: the models' home, else digits).")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Step counts, e.g. 1,2,4 (default: the protocol's).")] = None,
    cfg: Annotated[str | None, typer.Option(help="Guidance scales, 1.0 = none (default: the protocol's).")] = None,
    num_samples: Annotated[int | None, COUNT_OF_SAMPLES] = None,
    batch_size: Annotated[int | None, BATCH_OF_IMAGES] = None,
    seed: Annotated[int | None, SEED] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, e.g. 0,1,2: measure each and show the spread.")] = None,
    select_on: Annotated[int | None, SELECT_ON] = None,
    sampler: Annotated[
        str | None, typer.Option(help="native (the card's presets) or plain (default: the protocol's).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    compile: Annotated[str | None, COMPILE] = None,
    option: Annotated[list[str] | None, OPTION] = None,
    weights: Annotated[Path | None, typer.Option(help="A local weights file instead of the card's.")] = None,
    random_weights: Annotated[bool, RANDOM_WEIGHTS] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again even if already measured.")] = False,
    executor: Annotated[str, typer.Option(help="Where workers run: local, ray, slurm or an installed one.")] = "local",
    workers: Annotated[int, WORKERS] = 0,
    address: Annotated[str | None, ADDRESS] = None,
    shards: Annotated[str | None, SHARDS] = None,
    allow_mixed: Annotated[bool, ALLOW_MIXED] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch what is missing first, as 'bench fetch' does.")] = False,
    accept_licence: Annotated[bool, ACCEPT] = False,
    timeout: Annotated[float | None, TIMEOUT] = None,
    worker: Annotated[Path | None, WORKER] = None,
    worker_python: Annotated[str | None, WORKER_PYTHON] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print rows, NFE and what is missing, then stop.")] = False,
    sync: Annotated[str | None, SYNC] = None,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Measure models under a protocol.

    Without arguments: the embedded default, which takes minutes on a CPU.
    """
    from bench import api
    from bench.cli.progress import RunProgress
    from bench.run.executors import batch_of
    from bench.run.needs import cards_of, needs_of_run, require
    from bench.run.readiness import check_surroundings

    share = parse_share(shards)
    use_worker(worker, worker_python)
    out = console()
    own, settings = _executor_options(executor, option or [], address)
    requests = asked(
        model, protocol, steps, cfg, num_samples, batch_size, seed, seeds, select_on, sampler, device, dtype, compile,
        settings, weights, random_weights, elsewhere=batch_of(executor) is not None,
    )  # fmt: skip
    runs = runs_directory(runs_dir)
    if dry_run:
        print_preview(requests, runs, fresh)
        return
    for request in requests:
        check_surroundings(request, runs, None if share else runs / "bench.duckdb")
    needs = needs_of_run(requests)
    if fetch and (fetchable := needs.lacking().fetchable()):
        get(replace(needs, files=fetchable), accept_licence)
    require(needs)
    tell(out, cards_of(requests))
    way: dict[str, Any] = {"executor": executor, "workers": workers, "fresh": fresh, "timeout": timeout}
    way["allow_mixed"] = allow_mixed
    if share is not None:
        sample_share(requests, runs, share, sync, options=own, **way)
        return
    mirror = None if sync is None else _mirror(sync, runs, out)
    failed, behind = False, None
    for request in requests:
        with RunProgress(out) as shown:
            progress = shown if mirror is None else mirror.around(shown)
            ((_, summary),) = api.measure([request], runs, progress=progress, executor_options=own, **way)
        if mirror is not None:
            mirror.finish(summary.reused)
        if summary.behind is None:
            print_summary(summary, request.protocol.name, runs, runs_dir, select_on)
        else:
            behind = summary
        failed = failed or bool(summary.failed) or not (summary.measured or summary.reused)
    if behind is not None:
        raise BenchError(f"{behind.behind}; everything measured is kept, and the same command adds it to the database")
    if failed:
        raise typer.Exit(1)  # a run that could not measure anything is not a success


def _executor_options(executor: str, option: list[str], address: str | None) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that are the executor's own, and the words of the others, which are the sampler's."""
    from bench.cli.parsing import parse_options
    from bench.run.executors import settings_of, split_options

    own, rest = split_options(executor, parse_options(option))
    if address is not None:
        if "address" not in settings_of(executor):
            raise BenchError(f"--address: executor '{executor}' has no cluster; leave it out, or use --executor ray")
        own["address"] = address
    return own, [word for word in option if word.partition("=")[0].strip() in rest]


def _mirror(url: str, runs: Path, out: Console) -> Mirror:
    """Return the copy at `url`, once what it has is here too."""
    from bench.run.mirroring import Mirror

    mirror = Mirror(url, runs)
    count = mirror.fetch()
    out.print(f"{counted(count, 'row')} in {url}", markup=False, soft_wrap=True)
    return mirror


def _compiled_or_not(request: Request, out: Console) -> Request:
    """Return the request as `--compile auto` decides it, and say what was decided and why."""
    from bench.run.compiling import decide

    decision = decide(request)
    out.print(f"Protocol {request.protocol.name}: {decision.why}", markup=False, soft_wrap=True)
    return replace(request, compile=decision.compile)


def asked(
    model: str | None,
    protocol: str | None,
    steps: str | None,
    cfg: str | None,
    num_samples: int | None,
    batch_size: int | None,
    seed: int | None,
    seeds: str | None,
    select_on: int | None,
    sampler: str | None,
    device: str,
    dtype: str,
    compile: str | None,
    option: list[str] | None,
    weights: Path | None,
    random_weights: bool,
    *,
    elsewhere: bool = False,
) -> list[Request]:
    """Return what these options of `bench run` ask for, and say which protocol was chosen and whether to compile."""
    from bench import api
    from bench.cli.parsing import parse_models, parse_options, parse_protocol, parse_scales, parse_seeds, parse_steps
    from bench.run.plan import DEFAULT_PROTOCOL

    if compile not in (None, "yes", "no", "auto"):
        raise BenchError(f"--compile: '{compile}' is unknown; choose yes (or no value), no or auto")
    out = console()
    requests = api.requests(
        parse_models(model) if model is not None else None,
        protocol=None if protocol is None else parse_protocol(protocol),
        steps=parse_steps(steps) if steps is not None else None,
        cfg=parse_scales(cfg) if cfg is not None else None,
        num_samples=num_samples,
        seed=seed,
        seeds=parse_seeds(seeds) if seeds is not None else (),
        batch_size=batch_size,
        sampler=sampler,
        select_on=select_on,
        device=device,
        dtype=dtype,
        compile=compile == "yes",
        options=parse_options(option or []),
        weights=weights,
        random_weights=random_weights,
        elsewhere=elsewhere,
    )
    if protocol is None and model is not None:
        for request in requests:
            if request.protocol.name != DEFAULT_PROTOCOL:
                home = f"Protocol {request.protocol.argument}, home of {', '.join(request.models or ())}"
                out.print(f"{home} (--protocol chooses another)", markup=False, soft_wrap=True)
    return [_compiled_or_not(request, out) for request in requests] if compile == "auto" else requests


def _preview_score(images: Path, protocol: Protocol, first_label: int | None, device: str, runs: Path) -> None:
    from bench.cli.preview import print_judging
    from bench.models.loading import parse_device
    from bench.run.judging import judging
    from bench.run.score import images_to_score

    source = images_to_score(images, protocol, first_label)
    print_judging(source.describe(), judging([protocol], len(source), parse_device(device), runs), (), as_json=False)


def score(
    images: Annotated[str, typer.Argument(help="A folder of images, a .zip, .tar or .parquet, or an ADM-style .npz.")],
    protocol: ProtocolName = "digits",
    name: Annotated[str | None, typer.Option(help="Name of the row (default: the folder's or file's name).")] = None,
    nfe: Annotated[float | None, typer.Option(help="Network evaluations per image, if you know them.")] = None,
    first_label: Annotated[
        int | None, typer.Option(help="Number of the first class where classes are numbered: 0 or 1 (default: 0).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    dry_run: Annotated[bool, DRY_RUN] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Judge images made elsewhere, as one more row."""
    from bench import api
    from bench.cli.parsing import parse_protocol
    from results.leaderboard import missing_metrics, rows
    from results.store import connect

    if not images:
        raise BenchError(
            "score: the path of the images is empty; name a folder or a file (`.` is the working directory)"
        )
    runs = runs_directory(runs_dir)
    if dry_run:
        _preview_score(Path(images), parse_protocol(protocol), first_label, device, runs)
        return
    row = api.score(
        images,
        protocol=parse_protocol(protocol),
        name=name,
        nfe=nfe,
        first_label=first_label,
        device=device,
        runs=runs,
    )
    cell_id = row.cell["cell_id"]
    with connect(runs / "bench.duckdb", retry=True) as connection:
        missing = missing_metrics(connection, [row])
        others = {
            other.cell["num_samples"]
            for other in rows(connection, protocol=row.cell["protocol"])
            if other.cell["measurement"] == row.cell["measurement"]
        } - {row.cell["num_samples"]}
    print_leaderboard(console(), [row])
    images = f"Images: {(row.pixels or {}).get('described', '')}"
    print_lines(console(), [*legend([row]), *missing, images])
    if others:
        counts = " and ".join(f"{count:,}" for count in sorted(others))
        print_lines(
            console(),
            [f"Ranked apart from rows of {counts} images: FID and others that depend on N compare at equal N only"],
        )
    console().print(f"\nCell {cell_id}; bench show {cell_id} shows all of it", markup=False)
