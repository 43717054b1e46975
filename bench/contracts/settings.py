"""Sampler settings: a typed, validated record for each family, checked before the first sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from results.errors import BenchError, nearest

Number = int | float
"""A finite number, kept as it was written: 1 and 1.0 are recorded as they were given."""


class SamplerSettings(BaseModel):
    """What a family's sampler takes besides labels, steps, cfg and noise; this base takes nothing.

    A family subclasses it with one pydantic field for each setting. The name is what `--option` takes, the default is
    the `plain` sampler, `description` the meaning; constraints (`ge`, `le`, `min_length`, `Literal` ...) bound the
    value. Settings that exclude each other are refused in a `model_validator(mode="after")` that raises ValueError.
    Values are checked, never converted, because they are recorded and part of a cell's identity. `dict(settings)` is
    what is recorded.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    @classmethod
    def checked(cls, values: Mapping[str, Any], model: str) -> Self:
        """Return the record with `values` over the defaults.

        Raises BenchError, one line naming the model, the setting, what was found and what is allowed.
        """
        for name in values:
            if name not in cls.model_fields:
                near = nearest(name, cls.model_fields, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                known = ", ".join(cls.model_fields) or "none"
                raise BenchError(f"{model}: unknown sampler setting '{name}'; {hint}it takes: {known}")
        try:
            return cls(**values)
        except ValidationError as error:
            found = error.errors()[0]
            if not found["loc"]:  # a validator over several settings
                raise BenchError(f"{model}: {found['msg'].removeprefix('Value error, ')}") from None
            name = str(found["loc"][0])
            value = values.get(name, cls.model_fields[name].default)
            reason = found["msg"].removeprefix("Value error, ") if found["type"] == "value_error" else ""
            raise BenchError(f"{model}: {cls._refusal(name, value, reason)}") from None

    @classmethod
    def _refusal(cls, name: str, value: Any, reason: str) -> str:
        setting = next(setting for setting in cls.facts() if setting.name == name)
        shown = list(value) if isinstance(value, tuple) else value
        near = nearest(str(value), map(str, setting.choices), 1)
        lower = [choice for choice in setting.choices if str(choice).lower() == str(value).lower()]
        hint = f"; did you mean {(lower or near)[0]}?" if lower or near else ""
        alone = (
            "; write a list with one element as 'value,'"
            if "list" in setting.allowed and isinstance(value, Number)
            else ""
        )
        return f"sampler setting {name} must be {reason or setting.allowed}, found {shown!r}{hint}{alone}"

    @classmethod
    def facts(cls) -> list[SettingFacts]:
        """Return every setting with its type, allowed values, default and meaning, in the family's order."""
        schemas = cls.model_json_schema()["properties"] if cls.model_fields else {}
        return [
            SettingFacts(
                name=name,
                type=_type(schemas[name]),
                allowed=_allowed(schemas[name]),
                choices=_choices(schemas[name]),
                default=field.default,
                meaning=field.description or "",
            )
            for name, field in cls.model_fields.items()
        ]


class SettingFacts(NamedTuple):
    """One sampler setting, for people."""

    name: str
    type: str
    """`number`, `integer`, `text`, `boolean`, `list of numbers` ..., joined by `or`."""
    allowed: str
    """The phrase that ends "must be ...": type, range and choices."""
    choices: tuple[Any, ...]
    """The values of a setting that has a fixed set of them."""
    default: Any
    meaning: str


_WORDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "boolean", "null": "null"}


def _variants(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the alternatives of a JSON schema, an integer left out where any number is taken."""
    if "anyOf" not in schema:
        return [schema]
    bounds = {key: value for key, value in schema.items() if key in _BOUNDS}
    found = [inner for variant in schema["anyOf"] for inner in _variants({**bounds, **variant})]
    if any(variant.get("type") == "number" for variant in found):
        found = [variant for variant in found if variant.get("type") != "integer" or "enum" in variant]
    return found


def _choices(schema: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(
        choice
        for variant in _variants(schema)
        for choice in variant.get("enum", [variant["const"]] if "const" in variant else [])
    )


def _type(schema: Mapping[str, Any]) -> str:
    words = []
    for variant in _variants(schema):
        if variant.get("type") == "array":
            words.append(f"list of {_type(variant['items'])}s")
        else:
            words.append(_WORDS.get(variant.get("type", ""), "value"))
    return " or ".join(dict.fromkeys(words))


def _allowed(schema: Mapping[str, Any]) -> str:
    phrases: list[str] = []
    choices = _choices(schema)
    for variant in _variants(schema):
        if "enum" in variant or "const" in variant:
            phrases.append(f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(choices[0]))
        elif variant.get("type") == "array":
            count = variant.get("minItems") if variant.get("minItems") == variant.get("maxItems") else None
            inner = _allowed(variant["items"]).removeprefix("an ").removeprefix("a ")
            noun, _, rest = inner.partition(" ")
            phrases.append(f"a list of {f'{count} ' if count else ''}{noun}s{' each' if rest else ''} {rest}".strip())
        else:
            word = {"boolean": "true or false", "null": "null", "string": "text", "integer": "an integer"}
            phrases.append(f"{word.get(variant.get('type', ''), 'a number')} {_range(variant)}".strip())
    return " or ".join(dict.fromkeys(phrases))


_BOUNDS = {
    "minimum": ("[", "of at least"), "ge": ("[", "of at least"), "exclusiveMinimum": ("(", "above"),
    "gt": ("(", "above"), "maximum": ("]", "up to"), "le": ("]", "up to"), "exclusiveMaximum": (")", "below"),
    "lt": (")", "below"),
}  # fmt: skip
"""Bounds in a JSON schema (pydantic gives those of a union their Python names): bracket, and the word when alone."""


def _range(schema: Mapping[str, Any]) -> str:
    found = {_BOUNDS[key]: schema[key] for key in _BOUNDS if key in schema}
    if len(found) == 2:
        ((opening, _), low), ((closing, _), high) = found.items()
        return f"in {opening}{low:g}, {high:g}{closing}"
    return "".join(f"{word} {value:g}" for (_, word), value in found.items())
