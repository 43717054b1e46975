"""Text from outside (names, messages, files) made safe to print: on any terminal, in one line."""

from __future__ import annotations

import unicodedata

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks that change the order in which a terminal shows letters."""
UNSEEN = {*BIDI, "\u200b", "\u2028", "\u2029", "\ufeff"}
ASCII = {
    "±": "+-", "×": "x", "–": "-", "—": "-", "−": "-", "…": "...", "→": "->", "≤": "<=", "≥": ">=", "≈": "~", "·": "-",
    "“": '"', "”": '"', "‘": "'", "’": "'", "•": "*", "✓": "+", "✗": "x", "\u00a0": " ", "\u2009": " ", "µ": "u",
    "║": "|", "┃": "|", "│": "|", "┆": "|", "━": "-", "─": "-", "═": "-", "╸": "-", "╺": "-", "█": "#",
}  # fmt: skip
"""What stands for a letter where the output has none but ASCII."""


def printable(text: str, keep: str = "") -> str:
    """Return `text` with control characters, escape sequences, direction marks and broken bytes shown as `\\x1b`.

    Of the control characters those of `keep` (line breaks, for a text of several lines) stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if letter in keep or not _unseen(letter) else _escaped(letter) for letter in text)


def _unseen(letter: str) -> bool:
    return letter in UNSEEN or unicodedata.category(letter) in ("Cc", "Cs")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def in_ascii(text: str) -> str:
    """Return `text` in ASCII: signs by their usual spelling, boxes by lines, other letters escaped."""
    return "".join(letter if letter.isascii() else ASCII.get(letter) or _in_ascii(letter) for letter in text)


def _in_ascii(letter: str) -> str:
    if "\u2500" <= letter <= "\u259f":  # boxes and blocks
        return "+"
    if "\u2800" <= letter <= "\u28ff":  # rich's spinners
        return "*"
    return _escaped(letter)
