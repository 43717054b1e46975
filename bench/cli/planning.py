"""What a run would cost: `bench plan`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from bench.cli.measure import asked, run
from bench.cli.output import JSON, RUNS_DIR, page, plain_table, print_json, print_lines, print_table, runs_directory
from bench.cli.preview import totals
from bench.cli.workers import use_worker

if TYPE_CHECKING:
    from bench.run.forecast import Forecast

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
        typer.Option(metavar="NAME", help="Use rates measured on devices of this name (default: this machine's)."),
    ] = None,
    peak_tflops: Annotated[
        float | None, typer.Option(min=1e-6, max=1e9, help="Peak of one accelerator where no rate was measured.")
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=1.0,
            help="Share of the peak that is reached (default: 0.25 of an accelerator, 0.8 of a core).",
        ),
    ] = None,
    read_gbps: Annotated[float, typer.Option(min=1e-6, max=1e6, help="Gigabytes of weights read per second.")] = 1.0,
    stragglers: Annotated[int, typer.Option(min=0, help="Seed of the simulated stragglers.")] = 0,
    as_json: Annotated[bool, JSON] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
    **options: Any,
) -> None:
    """Estimate what a run would cost and how long it would take.

    Takes the options of 'bench run' and measures nothing. Times come from measured rates in the database, or from
    counted operations and a peak; the schedule is simulated, with weight loads and stragglers.
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
    if found.cells:
        _print_cells(found)
    print_lines(page(), [*([""] if found.cells else []), *totals(found, seen, simulated)])


def parse_gpus(text: str) -> tuple[int, ...]:
    """Return counts of accelerators of a comma-separated list. Raises BenchError unless they are from 1 on."""
    from bench.cli.parsing import parse_whole

    return tuple(dict.fromkeys(parse_whole(text, "gpus", 1, MOST_GPUS)))


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
