"""Cards: read from TOML, checked, and found by name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench.contracts.card import GUIDANCE_KINDS, Guidance, Member, ModelCard, Preset, Published, WeightsSource
from results.errors import BenchError, unknown

KINDS = {int: "an integer", str: "text", dict: "a table", list: "a list"}
"""What TOML calls the kinds of values."""


def load_card(path: Path) -> ModelCard:
    """Read one card. Raises BenchError naming the file, the key and the reason when it is malformed."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"card {path}: cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"card {path}: not valid TOML ({error}); mend the file") from error
    return _Reader(path, table).card()


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


ANY_STEPS = 1_000_000


class _Reader:
    """Checks a card's table key by key."""

    def __init__(self, path: Path, table: dict[str, Any]) -> None:
        self.path = path
        self.table = table

    def card(self) -> ModelCard:
        table = self.table
        known = {
            "name", "family", "title", "resolution", "num_classes", "latent_shape", "architecture", "weights",
            "extra_weights", "autoencoder", "guidance", "natural_steps", "sampler", "presets", "supported_steps",
            "trained_steps", "members", "parameters", "paper", "licence", "published", "verified", "notes", "home",
        }  # fmt: skip
        self.only(table, known, "")
        guidance = self.get("guidance", dict, {"kind": "none"})
        self.only(guidance, {"kind", "natural", "range"}, "guidance.")
        if guidance.get("kind") not in GUIDANCE_KINDS:
            raise self.error("guidance.kind", f"must be one of {', '.join(GUIDANCE_KINDS)}")
        weights = self.get("weights", dict, None)
        return ModelCard(
            name=self.get("name", str),
            family=self.get("family", str),
            title=self.get("title", str),
            resolution=self.get("resolution", int),
            num_classes=self.get("num_classes", int),
            latent_shape=tuple(self.get("latent_shape", list)),
            architecture=self.get("architecture", dict, {}),
            weights=None if weights is None else self.weights(weights, "weights"),
            extra_weights={
                role: self.weights(source, f"extra_weights.{role}")
                for role, source in self.get("extra_weights", dict, {}).items()
            },
            autoencoder=self.get("autoencoder", dict, None),
            guidance=Guidance(
                guidance["kind"],
                float(guidance.get("natural", 1.0)),
                self.pair(guidance.get("range", [1.0, 1.0]), "guidance.range", float),
            ),
            natural_steps=self.get("natural_steps", int, 1),
            sampler=self.get("sampler", dict, {}),
            presets=tuple(self.preset(preset) for preset in self.get("presets", list, [])),
            supported_steps=self.optional_tuple("supported_steps"),
            trained_steps=self.steps(table["trained_steps"], "trained_steps") if "trained_steps" in table else None,
            members=tuple(self.member(member) for member in self.get("members", list, [])),
            parameters=self.get("parameters", int, None),
            paper=self.get("paper", str, ""),
            licence=self.get("licence", str, "unknown"),
            published=tuple(self.published(figure) for figure in self.get("published", list, [])),
            verified=self.get("verified", str, ""),
            notes=self.get("notes", str, ""),
            home=self.get("home", str, None),
            path=self.path,
        )

    def error(self, key: str, reason: str) -> BenchError:
        return BenchError(f"card {self.path}: key '{key}' {reason}")

    def only(self, table: Mapping[str, Any], known: set[str], prefix: str) -> None:
        for key in table:
            if key not in known:
                raise self.error(prefix + key, f"is not known; the keys here are {', '.join(sorted(known))}")

    def get(self, key: str, kind: type, *default: Any) -> Any:
        if key not in self.table:
            if default:
                return default[0]
            raise self.error(key, "is missing; add it")
        value = self.table[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(key, f"must be {KINDS[kind]}, found {value!r}")
        return value

    def pair(self, value: Any, key: str, kind: type) -> tuple[Any, Any]:
        if not isinstance(value, list) or len(value) != 2:
            raise self.error(key, f"must be a list of two numbers, found {value!r}")
        return kind(value[0]), kind(value[1])

    def steps(self, value: Any, key: str) -> tuple[int, int]:
        if isinstance(value, int):
            return value, value
        if isinstance(value, list) and len(value) == 1:
            return int(value[0]), ANY_STEPS
        return self.pair(value, key, int)

    def optional_tuple(self, key: str) -> tuple[int, ...] | None:
        return tuple(int(item) for item in self.get(key, list)) if key in self.table else None

    def weights(self, source: Mapping[str, Any], key: str) -> WeightsSource:
        self.only(source, set(WeightsSource.__dataclass_fields__), f"{key}.")
        if "format" not in source:
            raise self.error(f"{key}.format", "is missing; add it")
        values = dict(source)
        if "path" in values:
            values["path"] = (self.path.parent / values["path"]).resolve()
        return WeightsSource(**values)

    def preset(self, value: Mapping[str, Any]) -> Preset:
        self.only(value, {"steps", "settings", "source"}, "presets.")
        if "steps" not in value:
            raise self.error("presets.steps", "is missing; add it")
        return Preset(self.steps(value["steps"], "presets.steps"), value.get("settings", {}), value.get("source", ""))

    def member(self, value: Mapping[str, Any]) -> Member:
        self.only(value, {"model", "steps"}, "members.")
        if set(value) != {"model", "steps"}:
            raise self.error("members", "needs the keys model and steps")
        return Member(value["model"], self.steps(value["steps"], "members.steps"))

    def published(self, value: Mapping[str, Any]) -> Published:
        self.only(value, set(Published.__dataclass_fields__), "published.")
        try:
            return Published(**{"cfg": None, **value})
        except TypeError as error:
            raise self.error("published", f"lacks a key ({error})") from error
