"""What 16 bits cost: errors of the images of every family in bfloat16 and float16, against float32.

python benchmarks/halves.py [--device cuda] [--budget SECONDS] [--json docs/data/half-precision.json]

One published model of each family, at its own size, with random weights, at its
natural guidance and at most four steps. The error is the root of the mean square difference between the images, in
standard deviations of the float32 ones; beside it is the mean absolute difference in steps of 8-bit images.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from generators import random_adapter
from torch import Tensor

from bench.contracts.adapter import Adapter
from bench.contracts.card import ModelCard
from bench.contracts.noise import PhiloxNoise
from bench.contracts.precision import full_precision
from bench.models.cards import cards, find_card
from bench.models.registry import family_class
from bench.run.provenance import device_name

IMAGES = 4
MOST_STEPS = 4
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def chosen() -> list[ModelCard]:
    """Return a card for each family that is sampled here without prompts, the smallest that is published."""
    found: dict[str, ModelCard] = {}
    for card in cards().values():
        family = family_class(card.family)
        published = card.weights is not None and card.weights.path is None
        if not published or card.members or family.takes_prompts or family.out_of_process:
            continue
        if card.family not in found or (card.parameters or 0) < (found[card.family].parameters or 0):
            found[card.family] = card
    return [found[name] for name in sorted(found)]


def images(adapter: Adapter, steps: int, cfg: float) -> Tensor:
    """Return the images of the first labels, float32 [IMAGES, 3, H, W]."""
    labels = torch.arange(IMAGES) % max(adapter.num_classes, 1)
    with full_precision():
        return adapter.sample(labels, steps, cfg, noise=PhiloxNoise(0, range(IMAGES), adapter.device))


def errors(card: ModelCard, device: torch.device) -> dict[str, Any]:
    """Return the row of one model."""
    adapter = random_adapter(card, device)
    counts = (min(card.natural_steps, MOST_STEPS), 1, 2, *(card.supported_steps or ()))
    cfg = card.guidance.natural
    steps = next(count for count in counts if adapter.unsupported(count, cfg) is None)
    exact = images(adapter, steps, cfg)
    row: dict[str, Any] = {"family": card.family, "model": card.name, "steps": steps, "cfg": cfg}
    if adapter.discrete:
        row["tokens"] = True  # a rounding turns one token into another
    for name, dtype in TYPES.items():
        if name != next(iter(TYPES)):
            adapter = random_adapter(card, device)
        rounded = images(adapter.to(device, dtype), steps, cfg)
        difference = rounded - exact
        row[name] = float(difference.square().mean().sqrt() / exact.std()) if rounded.isfinite().all() else None
        row[f"{name}_levels"] = float(127.5 * difference.abs().mean())
    return row


def main() -> None:
    """Measure, print a Markdown table and, with --json, write every figure with date and device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", default=None, help="[one of each family]")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds after which no further model is begun")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    device, began, rows = torch.device(given.device), time.monotonic(), []
    names = given.models.split(",") if given.models else []
    print("| family | model | steps | cfg | bfloat16 | float16 | levels: bfloat16, float16 |\n|" + " - |" * 7)
    for card in [find_card(name) for name in names] or chosen():
        if time.monotonic() - began > given.budget:
            print(f"{card.name}: left out, the time is spent", flush=True)
            continue
        try:
            row = errors(card, device)
        except (torch.OutOfMemoryError, RuntimeError, StopIteration) as error:
            print(f"{card.name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}", flush=True)
            continue
        rows.append(row)
        shown = " | ".join("not finite" if row[name] is None else f"{row[name]:.2e}" for name in TYPES)
        levels = ", ".join(f"{row[f'{name}_levels']:.2f}" for name in TYPES)
        print(
            f"| {row['family']} | {row['model']} | {row['steps']} | {row['cfg']:g} | {shown} | {levels} |", flush=True
        )
    if given.json is not None:
        facts = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "device": device_name(given.device),
            "torch": torch.__version__,
        }
        given.json.write_text(json.dumps({**facts, "images": IMAGES, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
