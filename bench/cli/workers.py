"""Models that are sampled out of process: the options of their commands, and `bench worker setup`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.help import App
from bench.cli.output import console
from results.errors import BenchError

worker = App(help="Environments of models that are sampled out of process.", no_args_is_help=True)
WORKER = typer.Option("--worker", help="The script that samples a card of family worker; it is run as it is.")
WORKER_PYTHON = typer.Option(help="The interpreter of a worker's environment, instead of the one set up.")


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(worker, name="worker")


def use_worker(script: Path | None, python: str | None) -> None:
    """Let this process and those that it starts take the script and the interpreter that were typed."""
    from bench.contracts.out_of_process import SCRIPT
    from bench.models.environments import PYTHON

    if script is not None:
        if not script.is_file():
            raise BenchError(f"--worker: {script} is not a file; name the script of a worker")
        os.environ[SCRIPT] = str(script.absolute())
    if python is not None:
        os.environ[PYTHON] = python


@worker.command("setup")
def worker_setup(
    name: Annotated[str, typer.Argument(help="A model (its card's name, or a .toml file).")],
    python: Annotated[
        str | None, typer.Option(help="Interpreter to create it with (default: the card's version).")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before packages are installed.")] = False,
) -> None:
    """Create a model's environment in the cache.

    It gets the packages that the card requires. A package that is installed or run has the same rights as you.
    """
    from bench.models.cards import find_card
    from bench.models.environments import check_worker, environment_folder, make_environment

    card, out = find_card(name), console()
    check_worker(card)
    folder = environment_folder(card)
    out.print(f"Environment {folder}, made with:", markup=False, soft_wrap=True)
    for requirement in card.worker.requirements or ("nothing but Python",):
        out.print(f"  {requirement}", markup=False, soft_wrap=True)
    if not yes and not typer.confirm("Install them?", default=False, err=True):
        raise BenchError("nothing was installed; repeat the command with --yes")
    make_environment(card, python=python, tell=lambda line: out.print(f"$ {line}", markup=False, soft_wrap=True))
    out.print(f"ready: {folder}", markup=False, soft_wrap=True)
