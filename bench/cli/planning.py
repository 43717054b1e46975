"""What work would cost: `bench plan`, and what `--dry-run` prints of a run and of judging images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from bench.cli.measure import asked, run
from bench.cli.output import JSON, RUNS_DIR, page, plain_table, print_json, print_lines, print_table, runs_directory
from bench.cli.progress import duration
from bench.cli.workers import use_worker
from results.numbers import counted

if TYPE_CHECKING:
    from bench.run.forecast import Forecast
    from bench.run.judging import Judging
    from bench.run.plan import Request
    from bench.run.preview import Preview
    from bench.run.simulate import Simulated

OPTIONS_OF_RUN = (
    *(name for name, each in inspect.signature(asked).parameters.items() if each.kind is not each.KEYWORD_ONLY),
    *("worker", "worker_python", "fresh"),
)
"""What `bench plan` takes as `bench run` does: all that decides what is measured."""
MOST_GPUS = 100_000


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(_with_options_of_run(plan))


def _with_options_of_run(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command`, in place of its `**options`, the parameters of `bench run` that OPTIONS_OF_RUN names."""
    theirs, hints = inspect.signature(run).parameters, get_type_hints(run, include_extras=True)
    parameters = [theirs[name].replace(annotation=hints[name]) for name in OPTIONS_OF_RUN]
    own = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            parameters.append(parameter.replace(annotation=own[name]))
    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def plan(
    gpus: Annotated[str, typer.Option(help="Counts of accelerators (of workers on a CPU), e.g. 1,8,64.")] = "1,8,64",
    hardware: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Take rates measured on devices of this name [this machine's device]."),
    ] = None,
    peak_tflops: Annotated[
        float | None, typer.Option(min=1e-6, max=1e9, help="Peak of one accelerator where no rate was measured.")
    ] = None,
    utilisation: Annotated[float, typer.Option(min=1e-6, max=1.0, help="Share of the peak that is reached.")] = 0.25,
    read_gbps: Annotated[float, typer.Option(min=1e-6, max=1e6, help="Gigabytes of weights read a second.")] = 1.0,
    stragglers: Annotated[int, typer.Option(min=0, help="Seed of the simulated stragglers.")] = 0,
    as_json: Annotated[bool, JSON] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
    **options: Any,
) -> None:
    """Say what a run would cost, and how long it would take.

    Takes the options of 'bench run' and measures nothing. Times come from rates that rows in the database measured, or
    from counted operations and a peak; the schedule is simulated, with weight loads and stragglers.
    """
    from bench.run.forecast import Hardware, as_json_table, forecast
    from bench.run.preview import preview

    use_worker(options.pop("worker"), options.pop("worker_python"))
    fresh = options.pop("fresh")
    counts = parse_gpus(gpus)
    requests = asked(**options, elsewhere=options["device"] != "auto")  # a plan asks for no accelerator of this machine
    runs = runs_directory(runs_dir)
    peak = None if peak_tflops is None else peak_tflops * 1e12
    machine = Hardware(hardware, peak, utilisation, read_gbps * 1e9)
    seen = preview(requests, runs)
    found = forecast(requests, seen, runs, machine, fresh=fresh)
    simulated = [found.on(count, stragglers) for count in counts]
    if as_json:
        print_json(as_json_table(found, simulated))
        return
    _print_cells(found)
    print_lines(page(), ["", *_summary(found, seen, simulated)])


def parse_gpus(text: str) -> tuple[int, ...]:
    """Return counts of accelerators of a comma-separated list. Raises BenchError unless they are from 1 on."""
    from bench.cli.parsing import parse_whole

    return tuple(dict.fromkeys(parse_whole(text, "gpus", 1, MOST_GPUS)))


def print_preview(requests: Sequence[Request], runs: Path, fresh: bool) -> None:
    """Print what a run would do: its cells, what is missing, and in short what it costs."""
    from bench.run.forecast import forecast
    from bench.run.preview import preview

    seen = preview(requests, runs)
    rows = [
        [
            entry.cell_id or "-",
            entry.cell.model,
            str(entry.cell.steps),
            f"{entry.cell.cfg:g}",
            "-" if entry.evaluations is None else str(entry.evaluations),
            str(entry.cell.num_samples),
            str(entry.cell.seed),
            entry.state,
        ]
        for entry in seen.cells
    ]
    columns = ["cell", "model", "steps", "cfg", "NFE", "samples", "seed", "state"]
    print_table(page(), plain_table(columns, rows, right=columns[2:7], fixed=["cell", "model"]))
    found = forecast(requests, seen, runs, fresh=fresh)
    print_lines(page(), ["", *_summary(found, seen, [])])
    if seen.lacking:
        page().print(f"\n{seen.lacking.block()}", markup=False, soft_wrap=True)


def print_judging(described: str, found: Judging, built: Sequence[str], as_json: bool) -> None:
    """Print what judging a set of images would take, without judging one.

    `described` says what the images are; `built` what of a reference is there already.
    """
    from bench.weights.file import size_text

    if as_json:
        missing = [str(file) for file in found.lacking.files] + [part.name for part in found.lacking.references]
        print_json(found._asdict() | {"described": described, "built": list(built), "lacking": missing})
        return
    lines = [f"Images: {described}", f"Judges: {', '.join(found.judges)}"]
    if set(found.judges) - set(found.uncounted):
        short = "; not enough" if found.bytes > found.free else ""
        lines += [
            f"Time:   about {duration(found.seconds)} ({found.device}), without reading the images",
            f"Disk:   about {size_text(found.bytes)} for the judges' outputs; {size_text(found.free)} free{short}",
            f"Assumed: {found.assumed}",
        ]
    if found.uncounted:
        lines.append(f"Not counted: time and disk of judges {', '.join(found.uncounted)}, whose networks are not known")
    lines += [f"Built already: {line}" for line in built]
    print_lines(page(), [*lines, *([found.lacking.block()] if found.lacking else [])])


def _print_cells(found: Forecast) -> None:
    rows = [
        [
            cost.planned.cell.model,
            str(cost.planned.cell.steps),
            f"{cost.planned.cell.cfg:g}",
            "-" if cost.planned.evaluations is None else str(cost.planned.evaluations),
            f"{cost.planned.cell.num_samples:,}",
            "-" if cost.flops is None else f"{cost.flops / 1e9:,.4g}",
            "-" if cost.image is None else f"{1e3 * cost.image:,.4g}",
            f"{1e3 * cost.judging:,.4g}",
            "-" if cost.seconds is None else f"{cost.seconds / 3600:,.4g}",
            cost.how,
        ]
        for cost in found.cells
    ]
    columns = ["model", "steps", "cfg", "NFE", "samples", "GFLOPs", "ms/image", "judging", "hours", "from"]
    print_table(page(), plain_table(columns, rows, right=columns[1:9], fixed=["model"]))


def _summary(found: Forecast, seen: Preview, simulated: Sequence[Simulated]) -> list[str]:
    """Return the totals, one line each: time, schedules, downloads, disk, and what was assumed."""
    from bench.weights.file import size_text

    if not found.cells:
        refused = sum(entry.cell.unsupported is not None for entry in seen.cells)
        return [f"no row left to run: {len(seen.cells) - refused} done, {refused} that cannot be sampled"]
    rows = f"{counted(len(found.cells), 'row')}, {found.samples:,} samples"
    known = len(found.cells) - found.unknown
    time = f"about {duration(found.seconds)} of one accelerator or worker" if known else "not known"
    left_out = f"; {counted(found.unknown, 'row')} of unknown cost left out" if found.unknown and known else ""
    lines = [f"Time:     {time} for {rows}{left_out} ({found.device})"]
    for one in simulated if known else ():
        lines.append(
            f"  on {one.workers:>5,}: {duration(one.seconds)}, {one.ratio:.3f} of the lower bound; "
            f"{counted(one.loads, 'weight load')}, workers {one.busy:.0%} busy, {duration(one.timing)} of it timing"
        )
    bytes = found.bytes
    unsized = f", {counted(bytes.unsized, 'file')} of unknown size" if bytes.unsized else ""
    by_hand = f", {counted(bytes.by_hand, 'file')} by hand" if bytes.by_hand else ""
    lines.append(
        f"Download: {size_text(bytes.download) if bytes.download or bytes.unsized else 'nothing'}{unsized}{by_hand}"
    )
    short = "; not enough" if bytes.kept > bytes.free else ""
    lines.append(
        f"Disk:     about {size_text(bytes.kept)} kept: judges' outputs {size_text(bytes.arrays)}, evidence "
        f"{size_text(bytes.evidence)}, records {size_text(bytes.results)}; images are not kept; "
        f"{size_text(bytes.free)} free{short}"
    )
    lines.append(f"Assumed:  {'; '.join(found.assumed)}")
    if found.uncounted:
        lines.append(f"Not counted: judges {', '.join(found.uncounted)}, until a row of this protocol is measured here")
    return lines
