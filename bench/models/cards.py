"""Cards: read from TOML, checked, and found by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.contracts.card import ModelCard
from bench.contracts.plugins import Group, Plugin, report
from bench.models.card_file import CardTable
from results.documents import json_schema, read_toml, shown, validated
from results.errors import BenchError, did_you_mean, unknown


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

    A package or card that cannot be read, or whose name is taken, is reported and left out, and so is a student whose
    teacher is not installed; the others stay.
    """
    found: dict[str, ModelCard] = {}
    origins: dict[str, Plugin] = {}
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
                origins[card.name] = plugin
    while orphans := [card for card in found.values() if card.teacher is not None and card.teacher not in found]:
        for card in orphans:
            report(origins[card.name], str(_without_teacher(card, found)))
            del found[card.name]
    return found


def _without_teacher(card: ModelCard, known: Iterable[str]) -> BenchError:
    assert card.teacher is not None and card.path is not None
    reason = did_you_mean(card.teacher, set(known) - {card.name})
    where = f"card {shown(card.path)}"
    return BenchError(f"{where}: key 'teacher' must name an installed card, found '{card.teacher}'; {reason}")


def answering(row: str) -> str:
    """Return `row`, MODEL@STEPS[@CFG], under the name of the model that answers: of a card with members, one of them.

    Anything else, such as a cell id, stays as it is. Raises BenchError for a card with members and no step count.
    """
    name, *rest = row.split("@")
    card = cards().get(name)
    if card is None or not card.members:
        return row
    if rest and rest[0].isdigit():
        return "@".join([card.member(int(rest[0])), *rest])
    members = ", ".join(member.model for member in card.members)
    raise BenchError(f"'{name}' stands for {members}: name one of them, or {name}@STEPS")


def sampled_card(card: ModelCard, steps: int) -> ModelCard:
    """Return the card that answers for `steps`: one of its members', or itself where it has none."""
    return find_card(card.member(steps)) if card.members else card


def find_card(name: str) -> ModelCard:
    """Return the card called `name`, or the one in the file `name` when it ends in `.toml`.

    Raises BenchError for an unknown name, a file that is not a card, and one whose teacher is not installed.
    """
    if name.endswith(".toml"):
        card = load_card(Path(name))
        if card.teacher is not None and card.teacher not in cards():
            raise _without_teacher(card, cards())
        return card
    if name not in cards():
        raise unknown("model", name, cards(), "'bench models' lists those that are installed")
    return cards()[name]
