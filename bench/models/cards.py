"""Cards: read from TOML, checked, and found by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.contracts.card import ModelCard
from bench.contracts.plugins import Group, report
from bench.models.card_file import CardTable
from results.documents import json_schema, read_toml, shown, validated
from results.errors import BenchError, unknown


def load_card(path: Path) -> ModelCard:
    """Read one card. Raises BenchError naming the file, the key, what was found there and what may be."""
    table = read_toml(path, "card")
    return validated(CardTable, table, f"card {shown(path)}").card(path)


CARDS: Group[ModuleType] = Group(
    "bench.cards",
    "package of cards",
    "a package",
    lambda found: isinstance(found, ModuleType) and hasattr(found, "__path__"),
    unique=False,
)


def card_schema() -> dict[str, Any]:
    """Return the JSON Schema of card files."""
    return json_schema(CardTable, "A model card of fewstep-bench")


@cache
def cards() -> Mapping[str, ModelCard]:
    """Return every installed card by name: the packages of the entry point group `bench.cards`.

    A package or card that cannot be read, or whose name is taken, is reported and left out; the others stay.
    """
    found: dict[str, ModelCard] = {}
    for plugin, package in CARDS.load_all():
        try:
            paths = [Path(str(item)) for item in files(package).iterdir() if item.name.endswith(".toml")]
        except Exception as error:
            report(plugin, f"its cards cannot be listed ({type(error).__name__}: {error})")
            continue
        if not paths:
            report(plugin, f"{plugin.value} has no cards (*.toml)")
        for path in sorted(paths, key=lambda path: path.name):
            try:
                card = load_card(path)
            except Exception as error:  # whatever is wrong with one card, the others are shown
                report(plugin, str(error) if isinstance(error, BenchError) else f"card {path}: {error}")
                continue
            if card.name in found:
                report(plugin, f"card {path}: name '{card.name}' is taken by {found[card.name].path}; rename it")
            else:
                found[card.name] = card
    return found


def find_card(name: str) -> ModelCard:
    """Return the card called `name`, or the one in the file `name` when it ends in `.toml`."""
    if name.endswith(".toml"):
        return load_card(Path(name))
    if name not in cards():
        raise unknown("model", name, cards())
    return cards()[name]
