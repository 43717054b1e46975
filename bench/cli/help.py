"""How `--help` looks: arguments in capitals as manual pages write them, types by one word, no technical limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from bench.cli.terminal import write_line
from results.errors import BenchError

_TYPES = {"str": "TEXT", "list[str]": "TEXT", "list[path]": "PATH", "path": "PATH", "int": "INTEGER", "float": "NUMBER"}
_LIMIT = 1_000_000
"""An upper bound from here on only keeps numbers inside what the database can store, and needs no mention."""
_LEAST = 1e-6
"""A lower bound up to here only keeps numbers positive."""


class Command(TyperCommand):
    """A command whose help does not depend on how a version of typer spells arguments and types."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words; of an option that is given twice, say that the last counts: the first is no part of a list.

        An empty path (`--runs-dir "$UNSET"`) is refused: it would be the working directory.
        """
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in dict.fromkeys(order):
            name, times = parameter.opts[0], order.count(parameter)
            repeatable = parameter.param_type_name != "option" or parameter.multiple
            if times > 1 and not repeatable and not getattr(parameter, "is_flag", False):
                write_line(f"Warning: {name} is given {times} times, and the last counts (a list has commas)")
        rest = super().parse_args(ctx, args)
        for parameter in order:
            if _empty_path(parameter, given.get(parameter.name), ctx.params.get(parameter.name)):
                what = _spelled(parameter) if parameter.param_type_name == "argument" else parameter.opts[0]
                raise BenchError(f"{what} is an empty path; give one (`.` is the working directory)")
        return rest

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words after the command in the usage line."""
        return ["[OPTIONS]", *(_spelled(argument) for argument in _arguments(self, ctx))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the lists of arguments and options."""
        arguments = [(_spelled(argument), argument.help or "") for argument in _arguments(self, ctx)]
        records = [
            option.get_help_record(ctx) for option in self.get_params(ctx) if option not in _arguments(self, ctx)
        ]
        options = [(_typed(names), _bounded(text)) for names, text in filter(None, records)]
        for title, rows in (("Arguments", arguments), ("Options", options)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class App(typer.Typer):
    """A Typer application whose commands are `Command`s."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Return the decorator that adds a command."""
        settings.setdefault("cls", Command)
        return super().command(name, **settings)


def _empty_path(parameter: Any, words: Any, values: Any) -> bool:
    """Tell whether a word that stands for a path is empty; both are lists where several may be given.

    Older versions of typer make paths of the values later, and say by the type of the parameter that they will.
    """
    later = type(getattr(parameter, "type", None)).__name__.endswith("Path")
    several = isinstance(words, (list, tuple)) and isinstance(values, (list, tuple))
    pairs = zip(words, values, strict=False) if several else [(words, values)]
    return any(word == "" and (later or isinstance(value, Path)) for word, value in pairs)


def _arguments(command: TyperCommand, ctx: Any) -> list[Any]:
    return [parameter for parameter in command.get_params(ctx) if parameter.param_type_name == "argument"]


def _spelled(argument: Any) -> str:
    return (argument.metavar or argument.name).upper() + ("..." if argument.nargs != 1 else "")


def _typed(names: str) -> str:
    """Return `--steps INTEGER` for `--steps <int range>` of one version and `--steps INTEGER RANGE` of another."""
    names = re.sub(r"<(.+?)(?: range)?>", lambda found: _TYPES.get(found[1].lower(), found[1].upper()), names)
    return re.sub(r"\b(INTEGER|FLOAT)( RANGE)?$", lambda found: _TYPES.get(found[1].lower(), found[1]), names)


def _bounded(text: str) -> str:
    """Return the help of an option without the bounds that are technical limits."""

    def plain(found: re.Match[str]) -> str:
        low, high = found[1], found[2]
        if 0 < float(low) <= _LEAST:
            return "x>0" if float(high) >= _LIMIT else f"0<x<={high}"
        return found[0] if float(high) < _LIMIT else f"x>={low}"

    return re.sub(r"(?<=[\[ ])([\d.e+-]+)<=x<=([\d.e+-]+)", plain, text)
