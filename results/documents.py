"""Files that people write: read whatever editor saved them, checked by a typed model, refused in one line.

A model describes a file's tables; `Table` is the base of every one. `validated` turns the first thing that is wrong
into `card FILE: key 'a.b[2]' must be ..., found ...`.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from results.errors import BenchError, nearest, one_line
from results.files import read_regular

MAX_BYTES = 16 * 2**20
"""The largest text that is read: the class names of a protocol of a million prompts."""
DEEPEST = 32
"""Levels of tables and lists in a file."""
KEY = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
DEEP_KEY = re.compile(rf"(?<![\w-]){KEY}(?:[ \t]*+\.[ \t]*+{KEY}){{{DEEPEST}}}")
"""A dotted key of more levels than a file may have: tomllib's time and memory grow with their square."""
MAX_INT = 2**63 - 1
"""The largest integer that every table of the database can hold."""
LONG_NUMBER = "an integer of thousands of digits"
"""What a ValueError of a parser means that is none of its own: Python converts no longer one."""


def read_text(path: Path, what: str, error: type[BenchError] = BenchError, limit: int = MAX_BYTES) -> str:
    """Return a UTF-8 text, with or without a byte order mark. Raises `error`, one line that begins with `what path`."""
    try:
        content = read_regular(path, limit)
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        raise error(f"{what} {shown(path)}: cannot be read ({reason}); check the path") from fault
    if b"\0" in content:
        raise error(f"{what} {shown(path)}: is not UTF-8 text (it contains zero bytes); save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise error(f"{what} {shown(path)}: is not UTF-8 text (byte {fault.start}); save it as UTF-8") from fault


def read_toml(path: Path, what: str, error: type[BenchError] = BenchError) -> dict[str, Any]:
    """Return the table of a TOML file of at most 1 MiB. Raises `error`, one line that begins with `what path`."""
    text = read_text(path, what, error, 2**20)
    if not text.strip():
        raise error(f"{what} {shown(path)}: is empty; add its keys")
    try:
        if DEEP_KEY.search(text):
            raise RecursionError
        table = tomllib.loads(text)
        if _depth(table) > DEEPEST:
            raise RecursionError
        return table
    except RecursionError as fault:
        raise error(f"{what} {shown(path)}: is nested too deeply; flatten its tables") from fault
    except tomllib.TOMLDecodeError as fault:
        raise error(f"{what} {shown(path)}: not valid TOML ({one_line(str(fault))}); fix the file") from fault
    except ValueError as fault:
        raise error(f"{what} {shown(path)}: not valid TOML ({LONG_NUMBER}); fix the file") from fault


def read_json(path: Path, what: str, error: type[BenchError] = BenchError) -> Any:
    """Return what a JSON file holds. Raises `error`, one line that begins with `what path`."""
    text = read_text(path, what, error)
    try:
        return json.loads(text)
    except RecursionError as fault:
        raise error(f"{what} {shown(path)}: is nested too deeply; create it again") from fault
    except json.JSONDecodeError as fault:
        raise error(f"{what} {shown(path)}: not JSON ({one_line(str(fault))}); fix the file") from fault
    except ValueError as fault:
        raise error(f"{what} {shown(path)}: not JSON ({LONG_NUMBER}); fix the file") from fault


def read_object(path: Path, what: str, error: type[BenchError] = BenchError) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises as `read_json`, and for anything else than an object."""
    content = read_json(path, what, error)
    if not isinstance(content, dict):
        raise error(f"{what} {shown(path)}: must contain a JSON object, found {found(content)}; fix the file")
    return content


def _depth(table: dict[str, Any]) -> int:
    depth, level = 0, list[Any]([table])
    while level and depth <= DEEPEST:
        values = [value for item in level for value in (item.values() if isinstance(item, dict) else item)]
        depth, level = depth + 1, [value for value in values if isinstance(value, (dict, list))]
    return depth


class Table(BaseModel):
    """A table of a file: no unknown keys, no conversions (`"5"` is not a number), finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def refused(reason: str, at: tuple[str | int, ...] = ()) -> PydanticCustomError:
    """Return what a validator raises: the key (and `at` below it) followed by `reason`."""
    return PydanticCustomError("refused", "{reason}", {"reason": reason, "at": at})


def is_integer(value: Any, low: int, high: int) -> bool:
    """Tell whether a TOML value is an integer in low .. high."""
    return type(value) is int and low <= value <= high


def plain(value: Any, at: tuple[str | int, ...] = ()) -> Any:
    """Refuse what no setting can be: dates, infinities and integers beyond 64 bits, at any depth."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            plain(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            plain(item, (*at, index))
    elif isinstance(value, float) and not math.isfinite(value):
        raise refused(f"must be a finite number, found {found(value)}", at)
    elif isinstance(value, int) and abs(value) > MAX_INT:
        raise refused(f"must be an integer of at most 64 bits, found {found(value)}", at)
    elif not isinstance(value, (str, bool, int, float)):
        raise refused(f"must be text, a number, true or false, a list or a table, found {found(value)}", at)
    return value


def _name(value: str) -> str:
    if not value.isprintable() or value != value.strip() or set(value) & set(",/\\"):
        raise refused(f"must be a printable name without commas or slashes, found {found(value)}")
    if value.startswith("-") or not value.strip("."):
        raise refused(f"must be a name that is no option and no folder, found {found(value)}")
    return value


def _distinct(values: list[Any]) -> list[Any]:
    seen = set()
    for value in values:
        if value in seen:
            raise refused(f"contains {found(value)} twice; keep one of them")
        seen.add(value)
    return values


Settings = Annotated[dict[str, Any], AfterValidator(plain)]
"""A table of settings whose keys another part knows; values are plain."""
Name = Annotated[str, StringConstraints(max_length=200), AfterValidator(_name)]
"""A name that people type on a command line."""
Distinct = AfterValidator(_distinct)
"""A list that holds nothing twice."""
Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""A step count, a number of classes."""
Samples = Annotated[int, Field(ge=2, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=MAX_INT)]


@dataclass(frozen=True)
class Choice:
    """One of `known` names, for `Annotated[str, Choice(...)]`; a function is asked when a value is checked."""

    known: Callable[[], Iterable[str]] | tuple[str, ...]

    def names(self) -> list[str]:
        """Return the names that are known now."""
        return list(self.known() if callable(self.known) else self.known)

    def check(self, value: Any) -> Any:
        """Return `value` if it is one of the names."""
        names = self.names()
        if not isinstance(value, str) or value not in names:
            raise refused(f"must be one of {', '.join(names)}, found {found(value)}{_meant(value, names)}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": self.names()}


Model = TypeVar("Model", bound=BaseModel)


def validated(
    model: type[Model], table: Any, subject: str, error: type[BenchError] = BenchError, prefix: tuple[str, ...] = ()
) -> Model:
    """Return the `table` as a `model`.

    Raises `error` for the first thing that is wrong, one line: `subject: key 'prefix.key' ...`. Keys that are not known
    come first, as a typing error there explains a key that is missing.
    """
    try:
        return model.model_validate(table)
    except ValidationError as fault:
        errors = fault.errors(include_url=False)
    first = min(errors, key=lambda entry: entry["type"] != "extra_forbidden")
    loc = [part for part in first["loc"] if part != "[key]"]  # of a wrong key the key itself is told
    at = (*prefix, *loc, *first.get("ctx", {}).get("at", ()))
    raise error(f"{subject}: " + one_line(f"key '{dotted(at)}' {_reason(model, first, errors, prefix)}", 1000))


def json_schema(model: type[BaseModel], title: str, partial: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a file, for editors; tables named in `partial` need no key."""
    schema = model.model_json_schema(by_alias=True)
    for name, table in schema.get("$defs", {}).items():
        if name in partial:
            table.pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}


def dotted(at: Iterable[str | int]) -> str:
    """Return the place of a value, `presets[0].steps`."""
    text = ""
    for part in at:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def found(value: Any) -> str:
    """Return a value as a message shows it, cut to a readable length."""
    try:
        text = "a table" if isinstance(value, Mapping) else repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def shown(path: Path) -> str:
    """Return a path on one line, whatever its name holds."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(path))


WANTED = {
    "string_type": "text",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "finite_number": "a finite number",
}
"""What a value must be, by the kind of fault that pydantic reports."""


def _reason(
    model: type[BaseModel], fault: ErrorDetails, all_faults: list[ErrorDetails], prefix: tuple[str, ...]
) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "missing":
        return "is missing; add it"
    if kind == "extra_forbidden":
        return _unknown_key(model, fault, all_faults, prefix)
    if kind == "refused":
        return str(context["reason"])
    got = f"found {found(fault['input'])}"
    if kind in WANTED:
        return f"must be {WANTED[kind]}, {got}"
    for key, words in (("ge", "of at least"), ("le", "of at most"), ("gt", "above"), ("lt", "below")):
        if key in context:  # a bound of a number is a float, whatever was found
            what = "an integer" if isinstance(context[key], int) else "a number"
            return f"must be {what} {words} {context[key]}, {got}"
    if kind in ("too_short", "string_too_short"):
        return f"must not be empty, {got}"
    return f"{fault['msg'][:1].lower()}{fault['msg'][1:]}, {got}"


def _unknown_key(
    model: type[BaseModel], fault: ErrorDetails, all_faults: list[ErrorDetails], prefix: tuple[str, ...]
) -> str:
    *above, key = fault["loc"]
    known = sorted(_keys_at(model, above))
    near = nearest(str(key), known, 1)
    if not near:
        return f"is not known; the keys here are {', '.join(known)}"
    meant = (*above, near[0])
    if any(other["type"] == "missing" and other["loc"] == meant for other in all_faults):
        return f"is not known, and '{dotted((*prefix, *meant))}' is missing; did you mean {near[0]}?"
    return f"is not known; did you mean {near[0]}?"


def _keys_at(model: Any, at: Iterable[str | int]) -> set[str]:
    """Return the keys that the table at `at` may have: follow it through lists, optional and nested tables."""
    here: Any = model
    for part in at:
        table = _table_in(here)
        fields = {} if table is None else table.model_fields
        here = fields[str(part)].annotation if str(part) in fields else here
    table = _table_in(here)
    return set() if table is None else {field.alias or name for name, field in table.model_fields.items()}


def _table_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((table for part in get_args(annotation) if (table := _table_in(part)) is not None), None)


def _meant(value: Any, names: Iterable[str]) -> str:
    near = nearest(value, names, 1) if isinstance(value, str) else []
    return f"; did you mean {near[0]}?" if near else ""
