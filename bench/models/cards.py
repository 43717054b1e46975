"""Cards: read from TOML, checked, and found by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

from bench.contracts.card import ModelCard
from bench.models.card_file import CardTable
from results.documents import read_toml, shown, validated
from results.errors import BenchError, unknown


def load_card(path: Path) -> ModelCard:
    """Read one card. Raises BenchError naming the file, the key, what was found there and what may be."""
    table = read_toml(path, "card")
    return validated(CardTable, table, f"card {shown(path)}").card(path)


@cache
def cards() -> Mapping[str, ModelCard]:
    """Return every installed card by name: the packages of the entry point group `bench.cards`."""
    found: dict[str, ModelCard] = {}
    for point in sorted(entry_points(group="bench.cards"), key=lambda point: point.name):
        for resource in sorted(files(point.value).iterdir(), key=lambda item: item.name):
            if resource.name.endswith(".toml"):
                card = load_card(Path(str(resource)))
                if card.name in found:
                    raise BenchError(
                        f"card {card.path}: name '{card.name}' is taken by {found[card.name].path}; rename one"
                    )
                found[card.name] = card
    return found


def find_card(name: str) -> ModelCard:
    """Return the card called `name`, or the one in the file `name` when it ends in `.toml`."""
    if name.endswith(".toml"):
        return load_card(Path(name))
    if name not in cards():
        raise unknown("model", name, cards())
    return cards()[name]
