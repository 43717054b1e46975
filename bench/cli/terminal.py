"""The one place where text leaves for people: nothing from outside reaches a terminal as a command to it."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from results.printable import in_ascii, printable

WIDTH = 150
"""Columns of an output that is not a terminal."""


def prepare_streams() -> None:
    """Make stdout and stderr write every text: letters that their encoding lacks are spelled in ASCII.

    A stream that was closed (`>&-`) writes nowhere; else the next file opened, a database, would take its number.
    """
    if os.name == "posix":
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the whole process
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    codecs.register_error("bench", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="bench")


_data: TextIO | None = None


@contextmanager
def data_alone() -> Iterator[None]:
    """Keep stdout for `write_data`: what libraries and plug-ins print in the block goes to stderr, from C as well."""
    global _data
    kept, _data = sys.stdout, sys.stdout
    real = kept is not None and kept is sys.__stdout__ and sys.stderr is not None
    if real:
        kept.flush()
        _data = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout, data, _data = kept, _data, None
        if real and data is not None:
            kept.flush()
            os.dup2(data.fileno(), 1)
            data.close()


def write_data(text: str) -> None:
    """Write one line of data to stdout."""
    stream = sys.stdout if _data is None else _data
    if stream is not None:
        stream.write(text + "\n")
        stream.flush()


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
        with suppress(OSError):  # a full disk, or nobody reads: there is nowhere else to say it
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
