"""Commands for contributors: parity with recorded upstream behaviour, and your own adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.help import App
from bench.cli.output import JSON, console, page, plain_table, print_json, print_table
from bench.cli.parsing import LARGEST_SECONDS
from bench.cli.terminal import write_line
from bench.cli.workers import WORKER, WORKER_PYTHON, use_worker

adapter = App(help="Write and check your own adapter.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(parity)
    app.add_typer(adapter, name="adapter")


def parity(
    cases: Annotated[
        list[Path], typer.Argument(metavar="CASES", help="Directories of recorded cases, each with a case.json.")
    ],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Replay recorded upstream behaviour.

    Exit code 1 if any call is out of tolerance.
    """
    from bench.recordings.replay import run_case

    results = [result for directory in cases for result in run_case(directory)]
    if as_json:
        print_json([result._asdict() for result in results])
    else:
        rows = [
            [
                "ok" if result.ok else "optional" if result.optional else "FAIL",
                result.case,
                result.call,
                result.kind,
                f"{result.max_abs:.2e}",
                f"{result.max_rel:.2e}",
                result.error or "",
            ]
            for result in results
        ]
        columns = ["", "case", "call", "kind", "max abs", "max rel", ""]
        print_table(page(), plain_table(columns, rows, right=["max abs", "max rel"]))
    bad = [result for result in results if not result.ok and not result.optional]
    console().print(f"{len(results) - len(bad)} of {len(results)} calls within tolerance")
    if bad:
        raise typer.Exit(1)


@adapter.command("new")
def adapter_new(
    name: Annotated[str, typer.Argument(help="Name of the family: lower-case letters, digits and hyphens.")],
    directory: Annotated[Path | None, typer.Option(help="Where to write it (default: ./NAME).")] = None,
    out_of_process: Annotated[
        bool, typer.Option("--worker", help="Write one that samples in an environment of its own, by a script.")
    ] = False,
) -> None:
    """Write a working adapter with its card and test.

    It is a package of its own.
    """
    from bench.models.scaffold import write_adapter

    paths = write_adapter(name, directory or Path(name), out_of_process=out_of_process)
    for path in paths:
        console().print(f"wrote {path}", markup=False)
    root = directory or Path(name)
    made = f" && bench worker setup {name}" if out_of_process else ""
    console().print(f"\nNext: pip install -e {root}{made} && bench adapter check {name} && pytest {root}", markup=False)


@adapter.command("check")
def adapter_check(
    name: Annotated[str, typer.Argument(help="Name of the model's card.")],
    weights: Annotated[Path | None, typer.Option(help="A local weights file.")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Check with seeded noise as weights.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=LARGEST_SECONDS, help="Longest time for one clause, in seconds (default: no limit)."
        ),
    ] = None,
    worker: Annotated[Path | None, WORKER] = None,
    worker_python: Annotated[str | None, WORKER_PYTHON] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Check a model against the adapter contract.

    Names each clause that fails; exit code 1 if any does.
    """
    from bench.models.cards import find_card
    from bench.models.loading import parse_device
    from bench.run.checking import check_contained

    use_worker(worker, worker_python)
    findings = check_contained(
        find_card(name), timeout=timeout, weights=weights, random_weights=random_weights, device=parse_device(device)
    )
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        rows = [["waived" if f.waived else "ok" if f.ok else "FAIL", f.clause, f.detail] for f in findings]
        print_table(page(), plain_table(["", "clause", "detail"], rows))
    bad = [finding for finding in findings if not finding.ok]
    if bad:
        write_line(f"{name}: {len(bad)} of {len(findings)} clauses failed")
        raise typer.Exit(1)


@adapter.command("record")
def adapter_record(
    script: Annotated[Path, typer.Argument(help="Your Python file with a function record(recorder). It is run.")],
    case: Annotated[Path, typer.Argument(help="The folder to write: case.json, weights and tensors.")],
    family: Annotated[str, typer.Option("--adapter", help="The entry point of bench.parity that replays it.")],
) -> None:
    """Record calls of upstream code as a parity case.

    `bench parity CASE` then replays them through your adapter.
    """
    from bench.recordings.recorder import record_script

    recorder = record_script(script, case, family)
    calls = recorder.spec["calls"]
    rows = [[call["id"], call["kind"], f"{call['atol']:g}", f"{call.get('nfe_per_image', '-')}"] for call in calls]
    print_table(page(), plain_table(["call", "kind", "atol", "NFE"], rows, right=["atol", "NFE"]))
    console().print(f"\nNext: bench parity {case}", markup=False)


@adapter.command("grid")
def adapter_grid(
    name: Annotated[str, typer.Argument(help="A model (its card's name) that is sampled by Euler's method.")],
    steps: Annotated[str, typer.Option(help="Step counts, comma-separated.")],
    cfg: Annotated[float, typer.Option(help="Guidance scale.")] = 1.0,
    candidates: Annotated[int, typer.Option(min=2, max=1000, help="Uniform times to choose from.")] = 64,
    samples: Annotated[
        int, typer.Option(min=1, max=10_000, help="Noise samples that the error is averaged over.")
    ] = 64,
    weights: Annotated[Path | None, typer.Option(help="A local weights file.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Seeded noise as weights.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Find the step grids of least local error (BOSS).

    Prints each as --option times=..., as `bench run` takes it.
    """
    from bench.cli.parsing import parse_steps
    from bench.models.cards import find_card
    from bench.models.loading import build_adapter, parse_device
    from bench.models.step_grids import step_grids

    counts = parse_steps(steps)
    model = build_adapter(find_card(name), device=parse_device(device), weights=weights, random_weights=random_weights)
    grids = step_grids(model, counts, cfg, candidates=candidates, samples=samples)
    if as_json:
        print_json([{"steps": count, "times": times} for count, times in grids.items()])
    else:
        for count, times in grids.items():
            print(f"--steps {count} --option times={','.join(f'{t:g}' for t in times)}")
