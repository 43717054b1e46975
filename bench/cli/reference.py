"""Commands for reference sets: `bench reference build`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.help import App
from bench.cli.output import DRY_RUN, JSON, console, print_json
from results.errors import BenchError, unknown
from results.numbers import counted

if TYPE_CHECKING:
    from rich.console import Console

    from bench.references.build import BuildRequest
    from protocols import Protocol


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = App(no_args_is_help=True, help="Reference sets, judged once and kept in the cache.")

    @group.callback()
    def reference() -> None:
        """Reference sets, judged once and kept in the cache."""

    group.command()(build)
    group.command()(push)
    group.command()(pull)
    app.add_typer(group, name="reference")


def build(
    name: Annotated[str, typer.Argument(help="Name of the reference in protocols.")],
    data: Annotated[Path, typer.Option(help="The data set: a folder, a .zip, .tar or .parquet, or an .npz.")],
    protocol: Annotated[
        str | None,
        typer.Option(help="Whose judges, crop and size to use (default: every shipped protocol with this reference)."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Layout of the data: imagenet-val, folder, npz ...; see docs/references.md (default: the protocol's)."
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(help="adm-center-crop, bicubic-crop, squash, lanczos or none (default: the protocol's)."),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Variant of imagenetv2: matched-frequency, threshold-0.7 or top-images.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Label file for a flat imagenet-val folder.")] = None,
    ambiguous: Annotated[
        str, typer.Option(help="What to do with folders that match no class or several: refuse or skip.")
    ] = "refuse",
    first_label: Annotated[
        int | None,
        typer.Option(help="Number of the first class in numbered folders or a label file: 0 or 1 (default: 0)."),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out and record unreadable images instead of stopping.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Decoding threads; 0: one per core.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Rebuild even if it exists.")] = False,
    dry_run: Annotated[bool, DRY_RUN] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Judge a data set once, as a reference.

    If interrupted, run it again; it resumes.
    """
    from bench.judges.threads import fixed_threads
    from bench.models.loading import parse_device
    from bench.references.build import BuildRequest, build_reference

    out = console()
    asked = _protocols(name, protocol)
    device = parse_device(device)
    request = BuildRequest(
        name, data, asked[0], kind, resize, variant, labels, ambiguous, first_label, skip_unreadable, workers, fresh
    )
    if dry_run:
        _preview(request, asked, device, as_json)
        return
    with fixed_threads(device), BuildProgress(out) as progress:
        result = build_reference(request, _judges(asked, device), progress)
    if as_json:
        print_json([{"path": str(built.directory), **built.facts} for built in result.references])
        return
    for built in result.references:
        facts = built.facts
        images = f"{facts['n']:,} images" if facts["kind"] != "statistics" else "statistics alone"
        classes = f", {len(facts['labels'])} classes" if facts["labels"] else ""
        cut = f", {facts['resize']} at {facts['resolution']} pixels" if facts["kind"] != "statistics" else ""
        out.print(f"{name} by {facts['judge']}: {images}{classes}{cut}, digest {facts['digest'][:12]}", markup=False)
    _print_left_out(out, result.references[0].facts)
    if result.reused:
        out.print(f"{result.reused} of {len(result.references)} judges were done before (--fresh judges again)")
    out.print(f"Facts: {result.references[0].directory / 'facts.json'}", markup=False, soft_wrap=True)


def _preview(request: BuildRequest, asked: list[Protocol], device: str, as_json: bool) -> None:
    """Print what the build would judge, by whom, and what is missing; no judge is loaded and no image decoded."""
    from bench.cli.preview import print_judging
    from bench.references.build import open_source
    from bench.references.stored import built_references, references_directory
    from bench.run.judging import judging

    source = open_source(request)
    found = judging(asked, len(source) if source else 0, device, references_directory(), of_reference=True)
    described = f"statistics alone, {request.data}"
    if source is not None:
        described = f"{source.describe()}; {request.chosen_resize} at {request.protocol.resolution} pixels"
    built = [
        f"by {entry.facts['judge']} of {entry.facts['n']:,} images, {entry.cut}"
        for entry in built_references(request.name)
    ]
    print_judging(described, found, built, as_json)


def _protocols(name: str, protocol: str | None) -> list[Protocol]:
    """Return the protocols whose judges are to see the reference: the one named, or all shipped ones that use it."""
    from bench.cli.parsing import parse_protocol
    from protocols import load_protocol, protocol_files

    if protocol is not None:
        found = parse_protocol(protocol)
        if found.reference["name"] != name:
            raise BenchError(
                f"protocol '{found.name}' uses reference '{found.reference['name']}', not '{name}'; build it under "
                "that name"
            )
        if "kind" not in found.reference:
            raise BenchError(
                f"reference '{name}' of protocol '{found.name}' is made by code; there is nothing to build"
            )
        return [found]
    shipped = [found for found in map(load_protocol, protocol_files().values()) if "kind" in found.reference]
    users = [found for found in shipped if found.reference["name"] == name]
    if not users:
        raise unknown("reference", name, {str(found.reference["name"]) for found in shipped})
    return users


def _judges(asked: list[Protocol], device: str) -> list[Any]:
    """Return the judges of the protocols on `device`, those that read prompts left out; each loaded once."""
    from bench.judges.base import judge_kind, judge_specs, load_judge

    loaded: dict[str, Any] = {}
    for protocol in asked:
        for spec in judge_specs(protocol):
            key = f"{spec.kind} {sorted(spec.options.items())}"
            if key not in loaded and not judge_kind(spec).judge.needs_labels:
                loaded[key] = load_judge(spec, device=device, root=protocol.path.parent)
    return list(loaded.values())


def _print_left_out(out: Console, facts: Mapping[str, Any]) -> None:
    if facts["skipped"]:
        out.print(f"{len(facts['skipped'])} unreadable images left out, listed in facts.json")
    if "described" in facts:
        out.print(f"Images: {facts['described']}; all of it in facts.json", markup=False, soft_wrap=True)
    for remark in facts.get("pixels", {}).get("remarks", []):
        out.print(f"Look at them: {remark}", markup=False, soft_wrap=True)


class BuildProgress:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, out: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.out = out
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=out,
            disable=not out.is_terminal,
            transient=True,
        )
        self.total = self.done = self.told = 0

    def __enter__(self) -> BuildProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def begin(self, total: int, done: int) -> None:
        """Show how many images there are and how many an earlier build has judged."""
        self.total, self.done, self.told = total, done, done
        self.task = self.bars.add_task("images", total=total, completed=done)

    def advance(self, count: int) -> None:
        """Show that so many more are done."""
        self.done += count
        self.bars.advance(self.task, count)
        if not self.out.is_terminal and (self.done == self.total or self.done - self.told >= self.total / 10):
            self.told = self.done
            self.out.print(f"{self.done:,} of {self.total:,} images")

    def say(self, text: str) -> None:
        """Print one line."""
        self.out.print(text, markup=False)


def push(
    name: Annotated[str, typer.Argument(help="Name of the reference in protocols.")],
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Where copies are kept: s3://, gs://, hf:// ... or file://.")
    ],
) -> None:
    """Copy a built reference to storage, for others to pull.

    Copies the judges' outputs and statistics of the real images, never the images.
    """
    from bench.references.copies import push_reference

    for directory, uploaded in push_reference(name, url):
        what = f"{counted(uploaded, 'file')} uploaded" if uploaded else "already there"
        console().print(f"{name}/{directory.name}: {what}", markup=False, soft_wrap=True)


def pull(
    name: Annotated[str, typer.Argument(help="Name of the reference in protocols.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="Where 'bench reference push' put it.")],
) -> None:
    """Fetch a built reference from storage.

    Every file is checked against its digest; files that are already here are kept.
    """
    from bench.references.copies import pull_reference

    for directory, fetched in pull_reference(name, url):
        what = f"{counted(fetched, 'file')} fetched" if fetched else "already here"
        console().print(f"{name}/{directory.name}: {what}", markup=False, soft_wrap=True)
