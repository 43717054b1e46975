"""Train the digits generators: `python -m adapters.digits.train [--only flow,meanflow] [--seed 7] [--output DIR]`.

One CPU core, about 25 minutes, seeded; only the training part of the digits is read. Writes one safetensors file a
model and, into the package's own folder, each card's digest of it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import zlib
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors.torch import load_file, save
from torch import Tensor

from adapters.digits.recipes import RECIPES, Data
from results.errors import BenchError, unknown

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"
CARDS = HERE / "cards"
PREFIX = "digits-"


def training_data() -> Data:
    """Return the training part of the digits, grey values in [-1, 1]."""
    from protocols.digits.data import load_split

    split = load_split("train")
    # uint8 holds round(v * 255 / 16); this returns to the 17 grey levels v / 8 - 1 exactly.
    levels = (split.images[:, :1].float() * 16 / 255).round()
    return Data(levels / 8 - 1, split.labels)


def train(names: list[str], data: Data, seed: int, output: Path, progress: Progress) -> None:
    """Train the models `names`, in the order in which they need each other, and write their weights to `output`.

    Raises BenchError if a model's start is neither among `names` nor in `output`.
    """
    output.mkdir(parents=True, exist_ok=True)
    for name, recipe in RECIPES.items():
        if name not in names:
            continue
        network = recipe.network(seed)
        if recipe.start is not None:
            path = output / f"{recipe.start}.safetensors"
            if not path.exists():
                raise BenchError(f"{name} starts from {path}, which does not exist; train {recipe.start} first")
            network.start_from(load_file(path))
        # Each model's draws depend on the seed and its name alone, not on what was trained before it.
        draws = torch.Generator().manual_seed(seed * 2**32 + zlib.crc32(name.encode()))
        task = progress.add_task(name, total=recipe.iterations, loss="")

        def report(loss: Tensor, task: TaskID = task) -> None:
            progress.update(task, advance=1, loss=f"{float(loss):.3f}")

        trained = recipe.train(data, network, draws, report, iterations=recipe.iterations)
        stored = {key: value.to(recipe.storage) for key, value in trained.state_dict().items()}
        (output / f"{name}.safetensors").write_bytes(save(stored))


def write_digest(name: str) -> None:
    """Put the sha256 of the model's weights file into its card."""
    digest = hashlib.sha256((WEIGHTS / f"{name}.safetensors").read_bytes()).hexdigest()
    card = CARDS / f"{name}.toml"
    text, count = re.subn(r'^(sha256 = )"[0-9a-f]*"', rf'\g<1>"{digest}"', card.read_text("utf-8"), flags=re.MULTILINE)
    if count != 1:
        raise BenchError(f"card {card}: needs one line 'sha256 = \"...\"' under [weights]; add it")
    card.write_text(text, encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m adapters.digits.train", description="Train the digits generators.")
    short = ", ".join(name.removeprefix(PREFIX) for name in RECIPES)
    parser.add_argument("--only", help=f"models to train, comma separated (default: all): {short}")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder of the weights (default: the package's)")
    arguments = parser.parse_args()
    names = [PREFIX + name.removeprefix(PREFIX) for name in arguments.only.split(",")] if arguments.only else [*RECIPES]
    console = Console(stderr=True)
    try:
        for name in names:
            if name not in RECIPES:
                raise unknown("digits model", name, RECIPES)
        torch.set_num_threads(1)
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("loss {task.fields[loss]}"),
        )  # fmt: skip
        with Progress(*columns, console=console) as progress:
            train(names, training_data(), arguments.seed, arguments.output, progress)
        if arguments.output == WEIGHTS:
            for name in names:
                write_digest(name)
    except BenchError as error:
        console.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
