"""Commands for rows that strangers can check: audit, bundle and site."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.output import ALLOWED, JSON, RUNS_DIR, console, page, print_json, print_lines, runs_directory
from bench.cli.parsing import LARGEST_COUNT, LARGEST_SEED
from results.errors import BenchError, one_line
from results.numbers import counted

if TYPE_CHECKING:
    from bench.run.audit import Audit
    from results.evidence import Evidence

ROWS = "Cell ids (4 letters are enough), MODEL, MODEL@STEPS, MODEL@STEPS@CFG"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (audit, bundle, site):
        app.command()(command)


def audit(
    names: Annotated[list[str], typer.Argument(metavar="ROWS", help=f"{ROWS}; or bundles.")],
    samples: Annotated[int, typer.Option(min=1, max=LARGEST_COUNT, help="Samples of each row to draw again.")] = 64,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=LARGEST_SEED, help="Seed that chooses the samples (default: random, and printed)."),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="The rows' protocol, as a .toml file (default: the shipped one).")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A local weights file instead of the card's.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_COUNT, help="Images per batch (default: the row's).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    as_json: Annotated[bool, JSON] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Check rows against a few samples drawn again.

    Samples and metrics are compared with the evidence that every finished row keeps. Exit code 0: every row is
    consistent; 1: a row is contradicted, or cannot be checked here.
    """
    from bench.cli.parsing import parse_protocol
    from bench.models.loading import parse_device
    from bench.run.audit import Settings
    from bench.run.audit import audit as audit_row
    from results.bundles import LARGEST_BUNDLE
    from results.mirror import local_copies
    from results.remote import is_remote

    settings = Settings(
        samples=samples,
        seed=seed,
        device=parse_device(device),
        protocol=None if protocol is None else parse_protocol(protocol),
        weights=weights,
        batch_size=batch_size,
    )
    runs = runs_directory(runs_dir)
    with local_copies([name for name in names if is_remote(name)], LARGEST_BUNDLE) as copies:
        paths = [str(path) for path in copies]
        rows = _rows(runs, [*(name for name in names if not is_remote(name)), *paths])
    found = [audit_row(record, evidence, runs, settings) for record, evidence in rows]
    if as_json:
        print_json([_as_json(one) for one in found])
    else:
        for one in found:
            _print(one)
    if any(one.outcome != "consistent" for one in found):
        raise typer.Exit(1)


def _rows(runs: Path, names: Sequence[str]) -> list[tuple[Mapping[str, Any], Evidence | None]]:
    """Return record and evidence of each finished row that is meant, those of one checkpoint together."""
    from results.bundles import is_bundle, read_bundle
    from results.cells import CellDirectory
    from results.digests import digest_of
    from results.evidence import read_evidence
    from results.moving import read_source
    from results.names import fits

    # A row that several bundles have with other numbers or evidence is audited as each of them has it.
    found: dict[tuple[str, ...], tuple[Mapping[str, Any], Evidence | None]] = {}
    there = None
    for name in names:
        path = Path(name)
        if path.is_file() or path.suffix == ".zip":
            if not is_bundle(path):
                raise BenchError(f"{path}: not a bundle; 'bench bundle ROWS -o FILE' makes one")
            for cell, row in read_bundle(path).cells.items():
                stated = digest_of({table: row.record.get(table) for table in ("cell", "metrics")})
                held = hashlib.sha256(row.payload or b"").hexdigest()
                found.setdefault((cell, stated, held), (row.record, row.evidence))
            continue
        if there is None:
            there, _ = read_source(runs)
        chosen = [cell for cell, row in there.items() if fits(row.record["cell"], name)]
        done = [cell for cell in chosen if there[cell].record["cell"]["status"] == "done"] or chosen
        if not done:
            raise BenchError(f"no row '{one_line(name, 80)}' in {runs}; 'bench leaderboard --all' lists them")
        found |= {(cell,): (there[cell].record, read_evidence(CellDirectory(runs, cell).path)) for cell in done}
    return sorted(found.values(), key=lambda row: (str(row[0]["cell"]["checkpoint"]), row[0]["cell"]["steps"] or 0))


def _as_json(found: Audit) -> dict[str, Any]:
    return dataclasses.asdict(found) | {"findings": [finding._asdict() for finding in found.findings]}


def _print(found: Audit) -> None:
    signer = f", signed by {found.signed_by}" if found.signed_by else ""
    lines = [f"{found.outcome}: {found.title} ({found.cell_id[:12]}{signer})"]
    lines += [f"  {reason}" for reason in found.reasons]
    untold = [finding.metric for finding in found.findings if finding.verdict == "cannot tell"]
    if untold:
        lines.append(f"  cannot tell: {', '.join(untold)} (only their intervals could be checked)")
    if found.compared:
        lines.append(f"  the same samples again: --seed {found.seed}")
    print_lines(page(), lines)


def bundle(
    names: Annotated[list[str], typer.Argument(metavar="ROWS", help=f"{ROWS}.")],
    output: Annotated[str, typer.Option("--output", "-o", help="The file to write, here or s3://, gs:// ...")],
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="A private SSH or minisign key to sign it with.")
    ] = None,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Write rows to one file for others.

    It contains results, evidence, provenance, cards and digests, and no code.
    """
    from results.files import output_file
    from results.moving import write_bundle
    from results.remote import local_path

    runs = runs_directory(runs_dir)
    path = local_path(output)
    target = output if path is None else output_file(path, "--output", runs / "bench.duckdb")
    made = write_bundle(runs, names, target, sign)
    count = len(made.cells)
    lines = [f"{counted(count, 'row')}: {output}", f"digest {made.digest}"]
    if bare := [cell for cell, row in made.cells.items() if row.payload is None]:
        lines.append(f"{len(bare)} without evidence, which nobody can audit: 'bench run --fresh' measures them again")
    if made.signed:
        lines.append(f"signed by {made.signed_by}")
    print_lines(console(), lines)


def site(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the pages go.")],
    bundles: Annotated[
        list[str], typer.Argument(metavar="BUNDLES", help="Bundles, here or s3://, gs:// ..., or directories of them.")
    ],
    audits: Annotated[
        list[Path] | None, typer.Option("--audits", help="What 'bench audit --json' wrote; may be repeated.")
    ] = None,
    title: Annotated[str, typer.Option(help="The name of the site.")] = "Few-step generators compared",
    allowed: Annotated[Path | None, ALLOWED] = None,
) -> None:
    """Write static pages from bundles.

    A report for each protocol, a page for each model, an index, the bundles, and everything as JSON.
    """
    from report import write_site
    from results.bundles import LARGEST_BUNDLE
    from results.mirror import local_copies

    with local_copies(bundles, LARGEST_BUNDLE) as paths:
        written = write_site(directory, paths, audits=audits or [], title=title, allowed=allowed)
    counts = {"row": written.rows, "model": written.models, "protocol": written.protocols}
    said = ", ".join(counted(count, noun) for noun, count in counts.items())
    print_lines(console(), [f"{said}: {directory / 'index.html'}"])
