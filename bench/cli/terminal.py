"""The one place where text leaves for people: nothing from outside reaches a terminal as a command to it."""

from __future__ import annotations

import codecs
import sys
from typing import Any, TextIO

from results.printable import in_ascii, printable

WIDTH = 150
"""Columns of an output that is no terminal."""


def prepare_streams() -> None:
    """Make stdout and stderr write every text: letters that their encoding lacks are spelled in ASCII."""
    codecs.register_error("bench", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="bench")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


def spelled(text: str) -> str:
    """Return a cell of a table as the output will show it, so that columns keep their width."""
    known = all(
        (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf") for stream in (sys.stdout, sys.stderr)
    )
    return printable(text) if known else in_ascii(printable(text))


def write_line(text: str, stream: TextIO | None = None) -> None:
    """Write one line to stderr (or `stream`): whatever breaks it is escaped."""
    stream = stream or sys.stderr
    if stream is not None:
        stream.write(printable(text) + "\n")
        stream.flush()


def people(*, stderr: bool, width: int | None = None) -> Any:
    """Return a rich console whose texts are printed as they are: no markup, no escape sequence from outside."""
    from rich.console import Console

    class People(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            shown = [printable(item, keep="\n") if isinstance(item, str) else item for item in objects]
            super().print(*shown, **options)

    return People(stderr=stderr, highlight=False, markup=False, width=width)
