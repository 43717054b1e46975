"""The command line `bench`. Commands import what they need when they run, so that help answers at once."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn

import typer

from bench.cli import (
    browse,
    contribute,
    data,
    fetching,
    measure,
    mmhm,
    planning,
    power,
    reference,
    speed,
    verify,
    weights,
    workers,
)
from bench.cli.help import App
from bench.cli.parsing import check_words, completed
from bench.cli.terminal import data_alone, prepare_streams, write_line
from results.errors import DEBUG, BenchError, BenchWarning, MissingError, one_line
from results.files import FULL, is_full

UsageFault: type[Exception] = typer.BadParameter.__mro__[2]
"""ClickException: typer carries click inside, at a place that changes between its versions."""

_PYTHON_SHOWS = warnings.showwarning
DATA_OPTIONS = {"--json", "--schema"}
"""With one of them stdout holds the data and nothing else, whatever is imported or run."""
LONGEST_LINE = 2000
"""Letters of a line of an error: what a file holds and the line quotes may be of any length."""
INTERRUPTED = 130
_interrupts: list[int] = []
"""Signals taken by the command: DuckDB, stopped by one in a query, raises an error that does not say so by its type."""
INTERRUPTED_MESSAGE = "Interrupted. Nothing is lost: the same command continues where it stopped.\n"

app = App(
    name="bench",
    help="Fair benchmarks of few-step and multi-step image generators.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (
    measure, planning, speed, fetching, mmhm, power, browse, data, verify, reference, weights, contribute, workers,
):  # fmt: skip
    module.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from bench import __version__

        typer.echo(f"fewstep-bench {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
    ),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks (allowed anywhere on the line)."),
) -> None:
    """Fair benchmarks of few-step and multi-step image generators."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: exit code 0 done, 1 a check failed, 2 usage or input error."""
    prepare_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if debug:
        os.environ[DEBUG] = "1"
    else:
        os.environ.pop(DEBUG, None)
    warnings.showwarning = _show_warning
    _interrupts.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _on_interrupt)
    try:
        _check_place()
        _check_words(words)
        check_words(words)
        with data_alone() if DATA_OPTIONS.intersection(words) and "--help" not in words else nullcontext():
            result = _called(words)
    except (typer.Abort, KeyboardInterrupt):
        _interrupted()
    except UsageFault as error:
        if debug:
            raise
        with suppress(OSError):
            error.show()  # type: ignore[attr-defined]
        sys.exit(2)
    except BrokenPipeError:
        _leave_output()
        sys.exit(1)  # quietly: whoever read the output has what they wanted
    except MemoryError as error:
        if debug:
            raise
        write_line(f"Error: not enough memory ({one_line(str(error), 160) or 'nothing left'}); ask for less at once")
        sys.exit(2)
    except BenchError as error:
        if debug:
            raise
        first, *more = error.lines if isinstance(error, MissingError) else [str(error)]
        for line in (f"Error: {first}", *more):
            write_line(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ...")
        sys.exit(2)
    except Exception as error:
        if _interrupts:
            _interrupted()
        from bench.contracts.plugins import faults

        faults()  # names a distribution with unreadable entry points: torch, triton and pydantic fail on one
        if debug:
            raise
        if isinstance(error, OSError) and is_full(error):
            _leave_output()
            write_line(f"Error: {FULL}")
            sys.exit(2)
        if isinstance(error, OSError) and error.filename is not None:
            write_line(f"Error: {one_line(str(error.filename))}: {error.strerror}; check the path")
            sys.exit(2)
        write_line(
            (f"Error: {type(error).__name__}: {error}".splitlines() or [""])[0] + "; add --debug for the traceback"
        )
        sys.exit(2)
    if result == INTERRUPTED:  # typer turns Ctrl-C into an exit code of its own
        _interrupted()
    sys.exit(result if isinstance(result, int) else 0)


def _called(words: Sequence[str]) -> Any:
    try:
        result = app(args=completed(words), standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # now, where a closed pipe or a full disk can be met
        return result
    finally:
        if DEBUG in os.environ:
            sys.excepthook = _traceback  # typer has put one of its own in the place


def _traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> NoReturn:
    """Show where an error arose; the exit code is that of the command without --debug."""
    sys.__excepthook__(kind, error, trace)
    sys.exit(2)


def _check_place() -> None:
    """Refuse a working directory that was removed: libraries end the process over it."""
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd() is the same call
    except OSError as error:
        raise BenchError("the working directory was removed, or may not be read; change to another") from error


def _check_words(words: Sequence[str]) -> None:
    """Refuse bytes that are not UTF-8, except in the path of a file that is there."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            if not any(os.path.lexists(part) for part in (word, word.partition("=")[2])):
                raise BenchError(f"'{word}' is not UTF-8 text, and no file has this name") from error


def _leave_output() -> None:
    """Drop what stdout still holds: Python writes it once more at its end, and fails once more."""
    with suppress(OSError, AttributeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Show our own warnings as one line, and those of libraries as Python does."""
    if issubclass(category, BenchWarning):
        write_line(f"Warning: {message}")
    else:
        _PYTHON_SHOWS(message, category, *where, **more)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but end at once while a library is imported: compiled modules abort on an exception."""
    _interrupts.append(number)
    while frame is not None and frame.f_globals.get("__name__") != "importlib._bootstrap":
        frame = frame.f_back
    if frame is None:
        raise KeyboardInterrupt
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for worker in multiprocessing.active_children():
        worker.kill()
    atexit._run_exitfuncs()
    sys.stderr.write(INTERRUPTED_MESSAGE)
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def _interrupted() -> NoReturn:
    sys.stderr.write(INTERRUPTED_MESSAGE)
    sys.exit(INTERRUPTED)
