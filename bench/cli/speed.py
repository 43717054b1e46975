"""Commands that sample and judge nothing: how fast a model is, and what its pictures look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.output import JSON, RUNS_DIR, console, page, plain_table, print_json, print_lines, print_table, rate_of
from bench.cli.output import runs_directory as directory_of
from bench.cli.parsing import LARGEST_SECONDS, LARGEST_SEED
from results.errors import BenchError
from results.numbers import counted

MODELS = typer.Argument(metavar="MODELS", help="Names of cards; comma-separated or one by one.")
MOST_IMAGES = 400


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(speed)
    app.command()(sample)


def speed(
    models: Annotated[list[str], MODELS],
    steps: Annotated[str | None, typer.Option(help="Step counts, e.g. 1,2,4 (default: each model's natural).")] = None,
    cfg: Annotated[str | None, typer.Option(help="Guidance scales, 1.0 = none (default: each model's).")] = None,
    batch_size: Annotated[str, typer.Option(help="Images per batch; each is measured.")] = "1,8",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile, on CUDA with CUDA graphs.")] = False,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Sampler setting; repeatable.")] = None,
    seconds: Annotated[
        float, typer.Option(min=0.01, max=LARGEST_SECONDS, help="Longest time to repeat one batch, in seconds.")
    ] = 5.0,
    as_json: Annotated[bool, JSON] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Measure how fast models sample, on random weights.

    Needs neither weights nor judges nor a reference. The rows are stored, shown in the report and never ranked.
    """
    from bench.cli.parsing import parse_batches, parse_models, parse_options, parse_scales, parse_steps
    from bench.models.loading import parse_device, parse_dtype
    from bench.run.provenance import typed_command
    from bench.run.speed import SpeedRequest, measure_speed
    from results.timing import conditions

    names = tuple(dict.fromkeys(name for word in models for name in parse_models(word)))
    request = SpeedRequest(
        models=names,
        steps=() if steps is None else parse_steps(steps),
        cfg=() if cfg is None else parse_scales(cfg),
        batches=parse_batches(batch_size),
        device=parse_device(device),
        dtype=parse_dtype(dtype),
        compile=compile,
        options=parse_options(option or []),
        seconds=seconds,
    )
    rows = []
    for row in measure_speed(request, directory_of(runs_dir), typed_command()):
        rows.append(row)
        label = f"{row['model']} {counted(row['steps'], 'step')}, cfg {row['cfg']:g}, batch {row['batch_size']}"
        said = row["reason"] if row["status"] != "done" else f"{rate_of(row)} images/s"
        console().print(f"{label}: {said}", soft_wrap=True)
    done = [row for row in rows if row["status"] == "done"]
    if as_json:
        print_json(rows)
    elif done:
        columns = ["model", "steps", "cfg", "NFE", "batch", "images/s", "one image", "memory", "GFLOPs", "of peak"]
        print_table(page(), plain_table(columns, [_line(row) for row in done], right=columns[1:], fixed=["model"]))
        peak = done[0]["timing"]["matrix_peak"] / 1e12
        print_lines(
            page(),
            [
                f"{conditions(max(done, key=_load), batch=False)}, {done[0]['dtype']}",
                "images/s and one image: median, ± 95% interval; of peak: operations against the fastest matrix "
                f"product here, {peak:.3g} TFLOP/s",
                *_short(done),
            ],
        )
    if not done:
        raise typer.Exit(1)


def _load(row: Mapping[str, Any]) -> float:
    return row["timing"]["load"] or 0.0


def _short(done: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say why rows have no interval: too few repetitions."""
    parts = [row["timing"][part] for row in done for part in ("batch", "latency")]
    if all(part["low"] is not None for part in parts):
        return []
    return ["no interval: too few repetitions in the time allowed; --seconds allows more"]


def _line(row: Mapping[str, Any]) -> list[str]:
    from results import numbers
    from results.timing import share_of_peak

    latency = row["timing"]["latency"]
    low, high = (None if latency[end] is None else 1e3 * latency[end] for end in ("low", "high"))
    share = share_of_peak(row)
    return [
        row["model"],
        str(row["steps"]),
        f"{row['cfg']:g}",
        f"{row['nfe']:g}" + (f" + {row['guide_nfe']:g}" if row["guide_nfe"] else ""),
        str(row["batch_size"]),
        rate_of(row),
        numbers.with_interval(1e3 * latency["median"], low, high) + " ms",
        "-" if not row.get("peak_memory") else f"{row['peak_memory'] / 2**20:,.1f} MiB",
        numbers.number(None if row["flops"] is None else row["flops"] / 1e9),
        "-" if share is None else f"{share:.1%}",
    ]


def sample(
    model: Annotated[str, typer.Argument(help="Name of the model's card.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Sampler steps (default: the model's natural).")] = None,
    cfg: Annotated[float | None, typer.Option(help="Guidance scale (default: the model's natural).")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path("grid.png"),
    images: Annotated[int, typer.Option(min=1, max=MOST_IMAGES, help="How many images.")] = 20,
    labels: Annotated[str | None, typer.Option(help="Classes, e.g. 207,360; repeated in turn (default: all).")] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the noise.")] = 0,
    weights: Annotated[Path | None, typer.Option(help="A local weights file instead of the card's.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Seeded noise as weights.")] = False,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Sampler setting; repeatable.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
) -> None:
    """Write a grid of a model's images.

    Nothing is judged or stored: a first look before a run.
    """
    from bench.cli.parsing import parse_labels, parse_options
    from bench.models.cards import find_card
    from bench.models.loading import parse_device
    from bench.run.grid import write_grid
    from results.files import output_file

    if output.suffix.lower() != ".png":
        raise BenchError(f"{output}: a grid is written as PNG; name a file that ends in .png with --output")
    written = write_grid(
        find_card(model),
        output_file(output, "--output"),
        steps=steps,
        cfg=cfg,
        images=images,
        labels=None if labels is None else parse_labels(labels),
        seed=seed,
        weights=weights,
        random_weights=random_weights,
        options=parse_options(option or []),
        device=parse_device(device),
    )
    console().print(f"{output}: {written}", soft_wrap=True)
