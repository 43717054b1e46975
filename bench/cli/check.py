"""The command `check`: the regression gate, for people and for CI."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.output import JSON, console, print_json
from bench.cli.parsing import LARGEST_COUNT, LARGEST_SEED, NUMBER
from bench.cli.terminal import write_line
from results.errors import BenchError, did_you_mean

if TYPE_CHECKING:
    from results.baseline import Baseline

WORKERS = typer.Option(min=0, max=1024, help="Worker processes; 0: one per core, or one for a GPU.")
STEPS, NUM_SAMPLES, PROTOCOL = "1,4", 500, "digits"


def check(
    baseline: Annotated[Path | None, typer.Option(help="Compare with this baseline.")] = None,
    write: Annotated[Path | None, typer.Option(help="Measure now and write the result as the baseline.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Models, comma-separated (default: the protocol's, or all of the baseline)."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", help="With --write: a protocol's name, or a .toml file (default: digits)."),
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Step counts (default: 1,4, or all of the baseline).")] = None,
    cfg: Annotated[
        str | None, typer.Option(help="Guidance scales (default: the models' own, or all of the baseline).")
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(min=20, max=LARGEST_COUNT, help="With --write: samples per setting (default: 500).")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=LARGEST_SEED, help="With --write: seed of the noise (default: the protocol's)."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="With --write: sampler setting; repeatable.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A local weights file instead of the card's.")] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=SIZE", help="Ignore differences up to SIZE, in the metric's unit; repeatable."),
    ] = None,
    allow_better: Annotated[bool, typer.Option("--allow-better", help="Do not fail metrics that improved.")] = False,
    accept: Annotated[
        str | None,
        typer.Option(help="What may differ from the baseline: protocol, reference, judge, weights or harness."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    workers: Annotated[int, WORKERS] = 0,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit XML file with a test case for each metric.")] = None,
    github: Annotated[
        bool | None,
        typer.Option(
            help="Print GitHub annotations and write $GITHUB_STEP_SUMMARY (default: if $GITHUB_ACTIONS is true)."
        ),
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Fail if a small subset has moved from its baseline.

    Names each metric and cost that moved, and by how much. Metrics are compared in pairs, with the baseline's noise
    and labels: this detects changes a tenth the size of what their own intervals would show, and 99 of 100 checks
    raise no false alarm. NFE, FLOPs and parameters must be equal.
    """
    from bench.cli.check_output import github_annotations, junit_xml, summary
    from bench.cli.parsing import parse_models, parse_options, parse_scales, parse_steps
    from bench.cli.progress import RunProgress
    from bench.models.loading import parse_device
    from bench.run.gate import Leniency, Machine, Narrowing, check_baseline, write_baseline
    from results.files import output_file, write_atomically

    if (baseline is None) == (write is None):
        raise BenchError("check: use either --baseline FILE to compare, or --write FILE to make the baseline")
    models = parse_models(model) if model is not None else None
    counts = parse_steps(steps) if steps is not None else None
    scales = parse_scales(cfg) if cfg is not None else None
    target = None if write is None else output_file(write, "--write")
    if target is not None:
        compares = {"tolerance": tolerance, "allow-better": allow_better, "accept": accept}
        given = compares | {"junit": junit, "json": as_json}
        _refuse(given, "compares; leave it out with --write")
        asked = _asked(protocol or PROTOCOL, models, counts or parse_steps(STEPS), num_samples or NUM_SAMPLES)
        asked = asked._replace(cfg=scales, seed=seed, options=parse_options(option or []))
        with RunProgress(console()) as progress:
            written = write_baseline(target, asked, Machine(parse_device(device), workers, progress, weights))
        count = sum(map(len, written.cells.values()))
        console().print(f"Baseline of {count} metrics: {write}", markup=False)
        return
    assert baseline is not None
    report = None if junit is None else output_file(junit, "--junit", baseline)
    own = {"protocol": protocol, "num-samples": num_samples, "seed": seed, "option": option}
    _refuse(own, "is fixed by the baseline; leave it out, or create another baseline with --write")
    leniency = Leniency(_tolerances(tolerance or []), _kinds(accept), allow_better)
    with RunProgress(console()) as progress:
        machine = Machine(parse_device(device), workers, progress, weights)
        outcome = check_baseline(baseline, machine, Narrowing(models, counts, scales), leniency)
    if as_json:
        print_json([found._asdict() for found in outcome.checks])
    for remark in outcome.remarks:
        write_line(f"Note: {remark}")
    for found in outcome.checks:
        if found.verdict not in ("same", "not compared"):
            write_line(str(found))
    line = _line(outcome.counted("metric"), outcome.counted("cost"))
    if report is not None:
        write_atomically(report, junit_xml(outcome).encode(), "--junit")
    if github if github is not None else os.environ.get("GITHUB_ACTIONS") == "true":
        for text in github_annotations(outcome, baseline):
            write_line(text)
        if page := os.environ.get("GITHUB_STEP_SUMMARY"):
            _append(Path(page), summary(outcome, line))
    write_line(line)
    if outcome.failed:
        raise typer.Exit(1)


def _refuse(given: Mapping[str, object], why: str) -> None:
    for name, value in given.items():
        if value not in (None, False, []):
            raise BenchError(f"--{name}: {why}")


def _asked(protocol: str, models: tuple[str, ...] | None, steps: tuple[int, ...], num_samples: int) -> Baseline:
    from bench.cli.parsing import parse_protocol
    from results.baseline import Baseline

    sweeps = parse_protocol(protocol).sweeps
    models = models or tuple(dict.fromkeys(name for sweep in sweeps for name in sweep.models))
    return Baseline(protocol, models, steps, num_samples, {})


def _tolerances(pairs: Sequence[str]) -> dict[str, float]:
    found = {}
    for pair in pairs:
        name, sign, size = pair.partition("=")
        if not sign or not name.strip() or not NUMBER.fullmatch(size.strip()):
            raise BenchError(f"--tolerance: '{pair}' is not of the form METRIC=SIZE, as fid=0.02")
        found[name.strip()] = float(size)
    return found


def _kinds(text: str | None) -> list[str]:
    from results.baseline import KINDS

    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    if text is not None and not words:
        raise BenchError(f"--accept: the list is empty; write one or more of {', '.join(KINDS)}")
    for word in words:
        if word not in KINDS:
            raise BenchError(f"--accept: '{word}' is unknown; {did_you_mean(word, KINDS)}")
    return words


def _line(metrics: Sequence[object], costs: Sequence[object]) -> str:
    moved, changed = ([check for check in checks if not check.passed] for checks in (metrics, costs))  # type: ignore[attr-defined]
    if not moved and not changed:
        return f"check passed: {len(metrics)} metrics and {len(costs)} costs are those of the baseline"
    return f"check failed: {len(moved)} of {len(metrics)} metrics moved, {len(changed)} of {len(costs)} costs changed"


def _append(path: Path, text: str) -> None:
    from results.files import disk_error

    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise disk_error(path, error) from error
