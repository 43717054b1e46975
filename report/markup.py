"""HTML that is escaped by construction, and JSON that may stand inside a script element."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

NAME = re.compile(r"((?=\S*[^\W\d_])\S*\w[-#@/_]\w\S*)")
"""A word with a sign inside; the script has the same."""
VOID = {"img", "input", "br", "meta", "col"}


class Markup(str):
    """Text that is HTML already; every other string is escaped where it is placed."""

    __slots__ = ()


def escape(content: object) -> Markup:
    """Return `content` as HTML: `Markup` as it is, None as nothing, an iterable joined, the rest escaped."""
    if content is None:
        return Markup("")
    if isinstance(content, Markup):
        return content
    if isinstance(content, Iterable) and not isinstance(content, str | bytes | Mapping):
        return Markup("".join(escape(part) for part in content))
    return Markup(html.escape(str(content)))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return one HTML element with escaped children and attributes.

    A trailing underscore of an attribute is dropped (`class_`), inner ones become hyphens (`data_cell`); True gives a
    bare attribute, None and False none at all.
    """
    opening = name
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        opening += f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'
    if name in VOID:
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{escape(children)}</{name}>")


def kept(text: object) -> Markup:
    """Return text in which no line ends within a name: words with a sign inside, such as a hyphen, stay whole."""
    if isinstance(text, Markup):
        return text
    parts = NAME.split("" if text is None else str(text))
    return escape([element("span", part, class_="kept") if k % 2 else part for k, part in enumerate(parts)])


def command(line: object) -> Markup:
    """Return a command as it is typed: on one line, which scrolls."""
    return element("pre", element("code", line), tabindex=0)


def script_json(data: object) -> Markup:
    """Return `data` as JSON that cannot end the script element it stands in; NaN and infinities become null."""
    text = json.dumps(_finite(data), separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
