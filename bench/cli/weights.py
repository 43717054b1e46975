"""Commands about weights: list, fetch, verify, and add what only a person can download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.output import JSON, console, page, plain_table, print_json, print_table

if TYPE_CHECKING:
    from bench.weights.file import FileState

JUDGES = "judges"
Names = Annotated[list[str], typer.Argument(help="Models, or 'judges'.")]
ProtocolName = Annotated[str | None, typer.Option("--protocol", help="Only this protocol's judges [all protocols'].")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    weights = typer.Typer(help="Weights of models and judges: list, fetch, verify, add.", no_args_is_help=True)
    weights.command("list")(list_weights)
    for command in (fetch, verify, add):
        weights.command()(command)
    app.add_typer(weights, name="weights")


def list_weights(as_json: Annotated[bool, JSON] = False) -> None:
    """List every model's own file: where it comes from and whether it is here."""
    from bench.models.cards import cards
    from bench.weights.cache import FileCache, cache_directory
    from bench.weights.file import ModelFile

    cache = FileCache(cache_directory())
    rows: list[dict[str, Any]] = []
    for card in sorted(cards().values(), key=lambda card: (card.family, card.name)):
        if card.weights is None:
            continue
        file = ModelFile(card.name, "weights", card.weights)
        path = file.find(cache)
        source = card.weights
        origin = f"{source.repo}/{source.file}" if source.repo else source.url or "the package"
        state = "missing" if path is None else "shipped" if source.path is not None else "here"
        rows.append({"model": card.name, "state": state, "bytes": _bytes(path), "source": origin, "path": path})
    if as_json:
        print_json(rows)
        return
    cells = [[row["model"], row["state"], _size(row["bytes"]), row["source"]] for row in rows]
    print_table(page(), plain_table(["model", "state", "size", "source"], cells, right=["size"]))


def fetch(names: Names, protocol: ProtocolName = None, as_json: Annotated[bool, JSON] = False) -> None:
    """Download what models or judges need: resumed, verified, pinned; autoencoders and statistics included."""
    from bench.models.cards import find_card
    from bench.models.files import fetch_model

    found: list[dict[str, Any]] = []

    def told(state: FileState) -> None:
        found.append(_row(state))
        console().print(f"{state.file.title}: {_what(state)}", markup=False, soft_wrap=True)

    models = [find_card(name) for name in names if name != JUDGES]
    for card in models:
        if not fetch_model(card, told):
            console().print(f"{card.name}: has no weights; nothing to fetch", markup=False)
    if JUDGES in names:
        _fetch_judges(protocol, found)
    if as_json:
        print_json(found)


def verify(names: Names, protocol: ProtocolName = None, as_json: Annotated[bool, JSON] = False) -> None:
    """Hash the files of models or judges anew; exit 1 when one is missing or altered."""
    from bench.models.cards import find_card
    from bench.models.files import verify_model

    states = [state for name in names if name != JUDGES for state in verify_model(find_card(name))]
    found = [_row(state) for state in states]
    if JUDGES in names:
        found += _verify_judges(protocol)
    if as_json:
        print_json(found)
    else:
        cells = [[row["file"], row["state"], _size(row["bytes"]), row["detail"]] for row in found]
        print_table(page(), plain_table(["file", "state", "size", "detail"], cells, right=["size"]))
    if any(row["state"] in ("missing", "altered") for row in found):
        raise typer.Exit(1)


def add(
    model: Annotated[str, typer.Argument(help="The model.")],
    path: Annotated[Path, typer.Argument(help="The file or folder that you downloaded.")],
    role: Annotated[str, typer.Option(help="Which of the model's files: weights, autoencoder, statistics ...")] = (
        "weights"
    ),
    replace: Annotated[bool, typer.Option(help="Take another file than the one added before.")] = False,
) -> None:
    """Copy a file that only a person can download into the cache, with its digest pinned."""
    from bench.models.cards import find_card
    from bench.models.files import add_file

    state = add_file(find_card(model), path, role, another=replace)
    console().print(f"{state.file.title}: {state.path}, {state.detail}", markup=False, soft_wrap=True)


def _what(state: FileState) -> str:
    if state.state == "shipped":
        return "shipped with the package, nothing to fetch"
    verb = "fetched" if state.state == "fetched" else "already here"
    return f"{verb}, {_size(_bytes(state.path))}, {state.path}"


def _row(state: FileState) -> dict[str, Any]:
    size = _bytes(state.path)
    return {"file": state.file.title, "state": state.state, "bytes": size, "path": state.path, "detail": state.detail}


def _bytes(path: Path | None) -> int | None:
    if path is None or not path.exists():
        return None
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


def _judge_specs(protocol: str | None) -> list[tuple[str, Any, Path]]:
    """Return (protocol, judge specification, root) of every judge of `protocol`, or of all protocols; each once."""
    from bench.judges.base import judge_specs
    from protocols import find_protocol, load_protocol, protocol_files

    paths = protocol_files().values()
    chosen = [load_protocol(path) for path in paths] if protocol is None else [find_protocol(protocol)]
    specs: dict[str, tuple[str, Any, Path]] = {}
    for found in chosen:
        for spec in judge_specs(found):
            specs.setdefault(f"{spec} {found.path.parent}", (found.name, spec, found.path.parent))
    return list(specs.values())


def _fetch_judges(protocol: str | None, found: list[dict[str, Any]]) -> None:
    from bench.judges.base import fetch_judge
    from bench.weights.cache import cache_directory

    for name, spec, root in _judge_specs(protocol):
        for path in fetch_judge(spec, cache_directory() / "judges", root=root):
            title = f"judge {spec.name} of {name}: {path.name}"
            found.append({"file": title, "state": "here", "bytes": _bytes(path), "path": path, "detail": ""})
        console().print(f"judge {spec.name} of {name}: ready", markup=False)


def _verify_judges(protocol: str | None) -> list[dict[str, Any]]:
    from bench.judges.base import judge_kind
    from bench.weights.cache import cache_directory
    from results.errors import BenchError

    rows = []
    for name, spec, root in _judge_specs(protocol):
        for file in judge_kind(spec).required_files(spec, root):
            title = f"judge {spec.name} of {name}: {file.title}"
            row: dict[str, Any] = {"file": title, "state": "here", "bytes": None, "path": None, "detail": str(file)}
            try:
                path = file.verify(cache_directory() / "judges")
                row |= {"path": path, "bytes": _bytes(path)}
                if path is None:
                    row |= {"state": "missing", "detail": f"{file}: fetch with 'bench weights fetch judges'"}
            except BenchError as error:
                row |= {"state": "altered", "detail": str(error)}
            rows.append(row)
    return rows
