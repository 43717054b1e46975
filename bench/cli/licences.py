"""Licences that forbid commercial use: accepted once before a download, and said once by every run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from bench.cli.output import console
from results.errors import BenchError

if TYPE_CHECKING:
    from rich.console import Console

    from bench.contracts.card import ModelCard
    from bench.weights.file import NeededFile

ACCEPT = typer.Option(
    "--accept-licence", help="Accept the licences of what is fetched that forbid commercial use (asked once)."
)


def agree(files: Iterable[NeededFile], accept: bool) -> None:
    """Ask, once ever, for each licence that forbids commercial use and whose files are to be downloaded.

    Raises BenchError, before anything is downloaded, when one is not accepted, and where there is nobody to ask.
    """
    from bench.weights.cache import FileCache, cache_directory

    cache = FileCache(cache_directory())
    asked: dict[str, dict[str, None]] = {}
    for file in files:
        if file.licence and not file.by_hand and file.find(cache) is None and cache.accepted(file.licence) is None:
            asked.setdefault(file.licence, {})[file.owner] = None
    for licence, owners in asked.items():
        models = _models(list(owners))
        if not accept and not _asked(f"{models}: {licence}"):
            raise BenchError(
                f"{models}: the licence ({licence}) is not accepted, so nothing was downloaded; read it and repeat the "
                "command with --accept-licence"
            )
    for licence, owners in asked.items():
        cache.accept(licence, list(owners))


def _asked(question: str) -> bool:
    """Return whether the user accepts; where there is no terminal nobody does."""
    if not _somebody():
        return False
    try:
        return typer.confirm(f"{question}\nDo you accept this licence?", default=False, err=True)
    except typer.Abort:
        return False


def _somebody() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and console().is_terminal


def tell(out: Console, cards: Iterable[ModelCard]) -> None:
    """Print one line for each licence that forbids commercial use, with its models."""
    found: dict[str, dict[str, None]] = {}
    for card in cards:
        if card.non_commercial:
            found.setdefault(card.licence, {})[card.name] = None
    for licence, models in found.items():
        out.print(f"Not for commercial use: {_models(list(models))} ({licence})", markup=False, soft_wrap=True)


def _models(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
