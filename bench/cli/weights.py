"""Commands about weights: list, fetch, verify, convert, and add what only a person can download."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.fetching import TO_GET, bytes_of, download_bars, print_lacking, state_row, tell
from bench.cli.help import App
from bench.cli.licences import ACCEPT, agree
from bench.cli.output import JSON, console, page, plain_table, print_json, print_table
from results.errors import BenchError, unknown

if TYPE_CHECKING:
    from bench.contracts.card import WeightsSource
    from bench.weights.file import NeededFile

JUDGES = "judges"
Names = Annotated[list[str], typer.Argument(help="Models, or 'judges'.")]
ProtocolName = Annotated[
    str | None, typer.Option("--protocol", help="Only this protocol's judges (default: all protocols').")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    weights = App(help="List, fetch, verify, add and convert weights.", no_args_is_help=True)
    weights.command("list")(list_weights)
    for command in (fetch, verify, add, convert):
        weights.command()(command)
    app.add_typer(weights, name="weights")


def list_weights(as_json: Annotated[bool, JSON] = False) -> None:
    """List every model's file, its source and its state."""
    from bench.models.cards import cards
    from bench.weights.cache import FileCache, cache_directory
    from bench.weights.file import NETWORK, model_file, size_text

    cache = FileCache(cache_directory())
    rows: list[dict[str, Any]] = []
    for card in sorted(cards().values(), key=lambda card: (card.family, card.name)):
        if card.weights is None:
            continue
        file = model_file(card.name, NETWORK, card.weights)
        path = file.find(cache)
        source = card.weights
        origin = f"{source.repo}/{source.file}" if source.repo else source.url or "the package"
        state = "missing" if path is None else "shipped" if source.path is not None else "here"
        rows.append({"model": card.name, "state": state, "bytes": bytes_of(path), "source": origin, "path": path})
    if as_json:
        print_json(rows)
        return
    cells = [[row["model"], row["state"], size_text(row["bytes"]), row["source"]] for row in rows]
    print_table(
        page(), plain_table(["model", "state", "size", "source"], cells, right=["size"], fixed=["model", "source"])
    )


def fetch(
    names: Names,
    protocol: ProtocolName = None,
    dry_run: Annotated[bool, TO_GET] = False,
    accept_licence: Annotated[bool, ACCEPT] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Download what models or judges need. Resumed, verified and pinned; autoencoders and statistics included."""
    from bench.run.needs import Needs
    from bench.weights.file import fetch_files

    out = console()
    files = _files(names, protocol)
    if dry_run:
        print_lacking(Needs(", ".join(names), tuple(files), (), "").lacking(), as_json)
        return
    agree(files, accept_licence)
    with download_bars(out) as bar:
        states = fetch_files(files, lambda state: tell(out, state), bar)
    if as_json:
        print_json([state_row(state) for state in states])


def verify(names: Names, protocol: ProtocolName = None, as_json: Annotated[bool, JSON] = False) -> None:
    """Hash the files of models or judges again.

    Exit code 1 if a file is missing or altered.
    """
    from bench.weights.file import size_text, verify_file

    found = [state_row(verify_file(file)) for file in _files(names, protocol)]
    if as_json:
        print_json(found)
    else:
        cells = [[row["file"], row["state"], size_text(row["bytes"]), row["detail"]] for row in found]
        print_table(page(), plain_table(["file", "state", "size", "detail"], cells, right=["size"]))
    if any(row["state"] in ("missing", "altered") for row in found):
        raise typer.Exit(1)


def _files(names: list[str], protocol: str | None) -> list[NeededFile]:
    """Return the files of the models and, where they are asked for, of the judges of `protocol` or of all protocols."""
    from bench.cli.parsing import parse_protocol
    from bench.models.cards import find_card
    from bench.models.files import model_files
    from bench.run.needs import files_of_judges
    from protocols import load_protocol, protocol_files

    files = []
    for name in names:
        if name == JUDGES:
            paths = protocol_files().values()
            chosen = [load_protocol(path) for path in paths] if protocol is None else [parse_protocol(protocol)]
            files += [file for found in chosen for file in files_of_judges(found)]
        elif own := model_files(find_card(name)):
            files += own
        else:
            console().print(f"{name}: has no weights, nothing to fetch", markup=False)
    return list({(file.title, str(file)): file for file in files}.values())


def add(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    path: Annotated[Path, typer.Argument(help="The file or folder that you downloaded.")],
    role: Annotated[
        str, typer.Option(help="Which of the model's files it is: weights, autoencoder, statistics ...")
    ] = ("weights"),
    replace: Annotated[bool, typer.Option("--replace", help="Replace a file that was added before.")] = False,
) -> None:
    """Add a file that has to be downloaded by hand.

    It is copied into the cache and its digest is pinned.
    """
    from bench.models.adding import add_file
    from bench.models.cards import find_card

    state = add_file(find_card(model), path, role, another=replace)
    console().print(f"{state.file.title}: {state.path}, {state.detail}", markup=False, soft_wrap=True)


def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint (file or folder), or a model whose file is here.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The safetensors file (default: NAME.safetensors).", show_default=False),
    ] = None,
    tree: Annotated[
        str | None, typer.Option(help="Which tree of the file (default: the model's, else the averaged one).")
    ] = None,
    role: Annotated[str, typer.Option(help="Which of the model's files.")] = "weights",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is in the file, then stop.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Convert a checkpoint to safetensors.

    Says what was left out. Nothing in the checkpoint is executed.
    """
    from bench.weights.conversion import convert as convert_file
    from bench.weights.file import reading, size_text
    from results.files import output_file, real_path

    path, found, name = _checkpoint(source, role)
    found = replace(found, tree=tree) if tree is not None else found
    target = None if dry_run else output or Path(f"{name}.safetensors")
    if target is not None and real_path(target) == real_path(path):
        raise BenchError(f"{target}: is the checkpoint itself; name another file with -o")
    if target is not None and target.is_dir():
        raise BenchError(f"{target}: is a folder; name a file with -o")
    if target is not None:
        target = output_file(target, "-o")
    with reading("", path, found.format):
        done = convert_file(path, target, found)
    if as_json:
        print_json({"source": path, "output": target, **done._asdict()})
        return
    out = page() if dry_run else console()
    trees = ", ".join(f"{tree or 'the whole file'} ({count} arrays)" for tree, count in done.trees.items())
    out.print(f"{path}: {trees}", markup=False, soft_wrap=True)
    for line in done.left_out:
        out.print(f"left out: {line}", markup=False, soft_wrap=True)
    what = f"tree {done.tree}" if done.tree else "the whole file"
    network = f" of {done.class_name}" if done.class_name else ""
    where = f"would be converted, {size_text(done.bytes)}" if target is None else str(target)
    out.print(f"{what}{network}: {done.tensors} tensors, {where}", markup=False, soft_wrap=True)


def _checkpoint(source: str, role: str) -> tuple[Path, WeightsSource, str]:
    """Return the checkpoint that `source` names, what is known of it, and what to call its conversion."""
    from bench.contracts.card import WeightsSource
    from bench.models.cards import cards, find_card
    from bench.models.files import model_files
    from bench.weights.cache import FileCache, cache_directory
    from bench.weights.conversion import format_of
    from bench.weights.file import here

    path = Path(source)
    if source not in cards() and not (source.endswith(".toml") and path.is_file()):
        if not path.exists():
            raise BenchError(f"{source}: neither a file nor a model; correct the path, or see 'bench models'")
        return path, WeightsSource(format_of(path)), path.name.partition(".")[0] or "weights"
    card = find_card(source)
    files = {file.role: file for file in model_files(card)}
    if role not in files:
        raise unknown(f"file of {card.name}", role, files)
    file = files[role]
    assert file.source is not None
    return here(file, FileCache(cache_directory())), file.source, card.name
