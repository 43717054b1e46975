"""Commands that look: models, protocols, references, show, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.output import (
    JSON,
    RUNS_DIR,
    console,
    page,
    plain_table,
    print_json,
    print_lines,
    print_table,
    runs_directory,
)
from results.errors import BenchError, unknown

SCHEMA = typer.Option("--schema", help="Print the JSON Schema of these files, for editors.")
LISTS = "'bench models', 'bench protocols' and 'bench leaderboard --all' list them"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (models, protocols, references, show, doctor):
        app.command()(command)


def models(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    home: Annotated[str | None, typer.Option(help="Only those at home in this protocol.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Only students of this model.")] = None,
    licence: Annotated[str | None, typer.Option(help="Only licences that contain this text.")] = None,
    as_json: Annotated[bool, JSON] = False,
    schema: Annotated[bool, SCHEMA] = False,
) -> None:
    """List the installed model cards."""
    from bench.models.cards import card_schema, cards

    if schema:
        print_json(card_schema())
        return
    found = list(cards().values())
    for kind, wanted in (("family", family), ("home", home), ("teacher", teacher)):
        kept = [card for card in found if wanted in (None, getattr(card, kind))]
        if not kept:
            raise unknown(kind, str(wanted), {str(getattr(card, kind)) for card in found} - {"None"})
        found = kept
    if licence is not None:
        kept = [card for card in found if licence.lower() in card.licence.lower()]
        if not kept:
            raise unknown("licence", licence, {card.licence for card in found})
        found = kept
    if as_json:
        print_json([_card_json(card) for card in found])
        return
    rows = [
        [
            card.name,
            card.family,
            str(card.resolution),
            str(card.natural_steps),
            f"{card.guidance.kind}{f' {card.guidance.natural:g}' if card.guidance.kind != 'none' else ''}",
            _weights(card),
            card.title + (f"; trained on {', '.join(card.trained_on)}" if card.trained_on else ""),
        ]
        for card in sorted(found, key=lambda card: (card.family, card.name))
    ]
    columns = ["model", "family", "px", "steps", "guidance", "weights", "title"]
    print_table(page(), plain_table(columns, rows, right=["px", "steps"], fixed=["model", "family"]))


def _weights(card: Any) -> str:
    if card.members:
        return "pair"
    if card.weights is None:
        return "none"
    return "shipped" if card.weights.path is not None else "hub" if card.weights.repo else "by hand"


def _card_json(card: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(card)


def protocols(as_json: Annotated[bool, JSON] = False, schema: Annotated[bool, SCHEMA] = False) -> None:
    """List the protocols."""
    from bench.cli.parsing import parse_protocol
    from protocols import protocol_files, protocol_schema

    if schema:
        print_json(protocol_schema())
        return
    found = [parse_protocol(name) for name in protocol_files()]
    if as_json:
        print_json([{"title": p.title, "digest": p.digest, **p.canonical()} for p in found])
        return
    rows = [
        [p.name, str(p.resolution), f"{p.num_samples:,}", p.reference.get("name", "-"), " ".join(p.metrics), p.title]
        for p in found
    ]
    columns = ["protocol", "px", "samples", "reference", "metrics", "title"]
    print_table(page(), plain_table(columns, rows, right=["px", "samples"]))


def references(as_json: Annotated[bool, JSON] = False, runs_dir: Annotated[Path | None, RUNS_DIR] = None) -> None:
    """List the reference sets that are built and those to build."""
    from bench.references.stored import SOURCE_FACTS, build_command, built_references, read_facts
    from protocols import load_protocol, protocol_files

    found = [{"path": str(built.directory), **built.facts} for built in built_references()]
    for path in sorted((runs_directory(runs_dir) / "references").glob("*/facts.json")):
        try:
            facts = read_facts(path, SOURCE_FACTS)
        except BenchError as error:
            raise BenchError(f"{error}; remove {path.parent}, which the next run creates again") from error
        found.append({"path": str(path.parent), "digest": path.parent.name, "judge": "all", **facts})
    if as_json:
        print_json(found)
        return
    rows = [
        [
            str(entry["name"]),
            str(entry["judge"]),
            f"{entry['n']:,}" if entry["n"] else "-",
            f"{entry.get('resize', 'none')}{' ' + str(entry['resolution']) if 'resolution' in entry else ''}",
            str(len(entry.get("skipped", []))),
            str(entry["digest"])[:12],
        ]
        for entry in found
    ]
    columns = ["reference", "judge", "images", "cut", "skipped", "digest"]
    if rows:
        print_table(page(), plain_table(columns, rows, right=["images", "skipped"]))
    else:
        console().print("no reference is built yet; 'bench run' builds the embedded one")
    lacking: dict[str, str] = {}
    for protocol in map(load_protocol, protocol_files().values()):
        name = str(protocol.reference["name"])
        data_set = not protocol.smoke and protocol.reference.get("kind", "none") != "none"
        if data_set and all(entry["name"] != name for entry in found):
            lacking.setdefault(name, build_command(protocol))
    for name, command in lacking.items():
        console().print(f"not built: {name}: {command}", markup=False, soft_wrap=True)


def show(
    name: Annotated[
        str, typer.Argument(help="A model, a protocol (or its .toml file), or a row's cell id (4 letters are enough).")
    ],
    as_json: Annotated[bool, JSON] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Show one model, protocol or row in full."""
    import dataclasses

    from bench.cli.parsing import parse_protocol
    from bench.contracts.card import WorkerNeeds
    from bench.models.card_file import ANY_STEPS
    from bench.models.cards import cards
    from protocols import protocol_files

    if name in cards():
        card = cards()[name]
        value = {**_card_json(card), "settings": _settings(card)}
    elif name in protocol_files() or name.endswith(".toml"):
        protocol = parse_protocol(name)
        value = {"title": protocol.title, "notes": protocol.notes, "digest": protocol.digest, **protocol.canonical()}
    else:
        value = _cell(name, runs_directory(runs_dir), [*cards(), *protocol_files()])
    if as_json:
        print_json(value)
        return
    if name in cards():
        if value["worker"] == dataclasses.asdict(WorkerNeeds()):
            del value["worker"]
        for member in value["members"]:
            first, last = member["steps"]
            member["steps"] = f"{first} and more" if last >= ANY_STEPS else f"{first} to {last}"
        value["settings"] = {
            setting["name"]: f"{setting['allowed']} [default: {_words(setting['default'])}]: {setting['meaning']}"
            for setting in value["settings"]
        }
    _print_tree(value)


def _settings(card: Any) -> list[dict[str, Any]]:
    """Return the sampler settings of the card's model: what `--option` takes, with the card's own values."""
    from bench.models.cards import sampled_card
    from bench.models.registry import family_class

    card = sampled_card(card, card.natural_steps)
    try:
        facts = family_class(card.family).Settings.facts()
    except BenchError as error:  # the card is still worth showing
        console().print(f"sampler settings: {error}", markup=False, soft_wrap=True)
        return []
    chosen = card.settings(card.natural_steps)
    return [{**setting._asdict(), "card": chosen.get(setting.name)} for setting in facts]


def _cell(name: str, runs: Path, known: list[str]) -> dict[str, Any]:
    from results.database import dictionaries
    from results.names import fits, title
    from results.store import connect
    from results.training import mark_tables

    database = runs / "bench.duckdb"
    if not database.exists():
        raise unknown("model, protocol or row", name, known, LISTS)
    with connect(database, retry=True) as connection:
        mark_tables(connection)
        cells = [cell for cell in dictionaries(connection, "SELECT * FROM cells ORDER BY finished") if fits(cell, name)]
        if len(cells) != 1:
            if len(cells) > 1:
                fitting = "; ".join(f"{cell['cell_id']} ({title(cell)})" for cell in cells[:4])
                raise BenchError(f"'{name}' matches {len(cells)} rows: {fitting}; use the cell id of one")
            raise unknown("model, protocol or row", name, known, LISTS)
        cell = cells[0]
        by_id = [cell["cell_id"]]
        query = "SELECT * EXCLUDE (cell_id, jackknife, jackknife_reference) FROM metrics WHERE cell_id = ?"
        cell["metrics"] = {row.pop("metric"): row for row in dictionaries(connection, query, by_id)}
        query = "SELECT * EXCLUDE (cell_id) FROM skipped_metrics WHERE cell_id = ?"
        cell["skipped_metrics"] = {row["metric"]: row["reason"] for row in dictionaries(connection, query, by_id)}
        query = "SELECT * EXCLUDE (cell_id, jackknife, jackknife_reference) FROM ranks WHERE cell_id = ?"
        ranks = dictionaries(connection, query, by_id)
        cell["rank"] = ranks[0] if ranks else None
        runs_rows = dictionaries(connection, "SELECT * FROM runs WHERE run_id = ?", [cell["run_id"]])
        cell["run"] = runs_rows[0] if runs_rows else None
    return cell


def _print_tree(value: dict[str, Any], indent: int = 0) -> None:
    for key, item in value.items():
        lead = "  " * indent
        if isinstance(item, dict) and item:
            page().print(f"{lead}{key}:", markup=False)
            _print_tree(item, indent + 1)
        elif isinstance(item, (list, tuple)) and item and isinstance(item[0], dict):
            page().print(f"{lead}{key}:", markup=False)
            for entry in item:
                _print_tree(entry, indent + 1)
                page().print("")
        elif item not in (None, "", {}, (), []):
            page().print(f"{lead}{key}: {_words(item)}", markup=False, soft_wrap=True)


def _words(item: Any) -> str:
    """Return a value as TOML writes it: cards and protocols are read in it, not in Python."""
    if isinstance(item, (list, tuple)):
        return f"[{', '.join(_words(part) for part in item)}]"
    return str(item).lower() if isinstance(item, bool) else str(item)


def doctor(
    protocol: Annotated[
        str | None, typer.Option(help="Only this protocol (a name, or a .toml file), with the commands that it takes.")
    ] = None,
    as_json: Annotated[bool, JSON] = False,
    runs_dir: Annotated[Path | None, RUNS_DIR] = None,
) -> None:
    """Show what is ready, what is missing and how to get it."""
    from bench.cli.parsing import parse_protocol
    from bench.run.readiness import diagnose, diagnose_protocol

    runs = runs_directory(runs_dir)
    findings = diagnose(runs) if protocol is None else [diagnose_protocol(parse_protocol(protocol))]
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        width = max(len(finding.subject) for finding in findings)
        lines = [f"{one.state:7}  {one.subject:{width}}  {one.lacks or one.detail}" for one in findings]
        lines += [f"  {command}" for one in findings if protocol is not None for command in one.commands]
        if protocol is None and any(one.commands for one in findings):
            lines.append("'bench doctor --protocol NAME' shows what a protocol lacks, and the commands that get it")
        print_lines(page(), lines)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)
