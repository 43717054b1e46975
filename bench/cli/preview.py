"""What `--dry-run` prints of a run and of judging images: what would be done, and in short what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.output import page, plain_table, print_json, print_lines, print_table
from bench.cli.progress import duration
from results.numbers import counted

if TYPE_CHECKING:
    from bench.run.forecast import Forecast
    from bench.run.judging import Judging
    from bench.run.plan import Request
    from bench.run.preview import Preview
    from bench.run.simulate import Simulated


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
    print_lines(page(), ["", *totals(found, seen, [])])
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


def totals(found: Forecast, seen: Preview, simulated: Sequence[Simulated]) -> list[str]:
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
            f"{counted(one.loads, 'weight load')} (at least {one.least:,}), {one.loading:.1%} of the time; workers "
            f"{one.busy:.0%} busy, {duration(one.timing)} of it timing"
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
        names = ", ".join(found.uncounted)
        lines.append(f"Not counted: judges {names} and their metrics, until a row of this protocol is measured here")
    return lines
