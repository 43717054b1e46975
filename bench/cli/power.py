"""`bench power`: what more samples of two rows would resolve."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.output import JSON, RUNS_DIR, page, plain_table, print_json, print_lines, print_table, runs_directory


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(power)


def power(
    a: Annotated[str, typer.Argument(help="The pilot: a cell id, MODEL, MODEL@STEPS or MODEL@STEPS@CFG.")],
    b: Annotated[str, typer.Argument(help="A second row, measured with the same noise.")],
    samples: Annotated[
        int | None, typer.Option("--n", help="Number of samples to plan for (default: the pilot's).")
    ] = None,
    difference: Annotated[float | None, typer.Option(help="Difference to detect (default: the pilot's).")] = None,
    metric: Annotated[str | None, typer.Option(help="Only this metric.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Only rows of this seed.")] = None,
    as_json: Annotated[bool, JSON] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Estimate what difference more samples would detect.

    The two rows are a pilot of a few hundred samples each. Power is 80% at a significance level of 5%. The
    difference to detect is the pilot's own unless --difference sets another.
    """
    from bench.models.cards import answering
    from results.comparing import compare_cells
    from results.power import power_of

    outcome = compare_cells(runs_directory(runs_dir) / "bench.duckdb", answering(a), answering(b), seed)
    found = power_of(*outcome.rows, samples=samples, difference=difference, metric=metric)
    if as_json:
        print_json([{**p._asdict(), "gain": p.gain if math.isfinite(p.gain) else None} for p in found])
        return
    print_lines(page(), [f"a = {outcome.title_a}", f"b = {outcome.title_b}"])
    columns = ["metric", "a - b", f"detected with {found[0].samples:,}", "to detect", "samples needed", "paired gain"]
    cells = [
        [
            p.metric,
            f"{p.difference:+.3g}",
            f"{p.resolves:.3g}",
            f"{p.sought:.3g}",
            "none" if p.needed is None else f"{p.needed:,}",
            f"{p.gain:.3g}x" if math.isfinite(p.gain) else "-",
        ]
        for p in found
    ]
    print_table(page(), plain_table(columns, cells, right=columns[1:]))
    for p in found:
        if p.reason is not None:
            page().print(f"{p.metric}: {p.reason}", markup=False, soft_wrap=True)
