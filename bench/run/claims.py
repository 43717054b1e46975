"""Measured rows beside the figures published for the same checkpoint, metric and step count."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.models.cards import cards
from results.catalog import CATALOG
from results.comparing import find_cells
from results.leaderboard import dictionaries
from results.published import figures_of
from results.store import connect

PUBLISHED_SAMPLES = 50_000
"""Images behind a published FID or Inception Score unless its source says otherwise."""
PUBLISHED_REFERENCE = "adm-"
"""How the name of a reference begins when it is ADM's batch, which published ImageNet FIDs are taken against."""


class Claim(NamedTuple):
    """One measured metric and one published figure of it."""

    cell_id: str
    model: str
    steps: int
    cfg: float
    metric: str
    measured: float
    half_width: float | None
    """Half the width of the measured 95 % interval."""
    published: float
    difference: float
    """measured - published."""
    half_widths: float | None
    """The difference in half widths; beyond 1 in size, sampling noise of this row does not explain it."""
    source: str
    not_comparable: tuple[str, ...]
    """What differs between the two measurements; empty where nothing known differs."""


class Claims(NamedTuple):
    """What was found for a model: claims, and what was published for settings that are not measured."""

    claims: list[Claim]
    elsewhere: tuple[str, ...]


def published_claims(database: Path, name: str, seed: int | None = None) -> Claims:
    """Hold the finished rows `name` stands for (a cell id, MODEL, MODEL@STEPS or MODEL@STEPS@CFG) against the claims.

    The card's own figures come first; the collected ones are asked for the metrics that the card lacks at that step
    count. Raises BenchError when no finished row is found.
    """
    found: list[Claim] = []
    elsewhere: dict[str, None] = {}
    with connect(database, retry=True) as connection:
        for cell in find_cells(connection, name, seed):
            query = "SELECT metric, value, low, high, reference FROM metrics WHERE cell_id = ? AND value IS NOT NULL"
            metrics = {row["metric"]: row for row in dictionaries(connection, query, [cell["cell_id"]])}
            query = "SELECT definition FROM protocols WHERE digest = ?"
            protocols = dictionaries(connection, query, [cell["protocol_digest"]])
            reference = json.loads(protocols[0]["definition"]).get("reference", {}) if protocols else {}
            for figure in _figures(cell):
                if figure["steps"] != cell["steps"] or figure["cfg"] not in (None, cell["cfg"]):
                    scale = "" if figure["cfg"] is None else f", cfg {figure['cfg']:g}"
                    elsewhere[f"{figure['metric']} {figure['value']:g} at {figure['steps']} steps{scale}"] = None
                elif figure["metric"] in metrics:
                    found.append(_claim(cell, metrics[figure["metric"]], figure, reference))
    return Claims(found, tuple(elsewhere))


def _figures(cell: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the figures of a cell's checkpoint: metric, value, steps, cfg (None: not stated) and source."""
    card = cards().get(cell["checkpoint"])
    stated = set()
    for figure in card.published if card else ():
        stated.add((figure.metric, figure.steps))
        yield {
            "metric": figure.metric,
            "value": figure.value,
            "steps": figure.steps,
            "cfg": figure.cfg,
            "source": figure.source,
        }
    for collected in figures_of({cell["checkpoint"]}):
        for metric, value in collected.metrics.items():
            if collected.steps is not None and (metric, collected.steps) not in stated:
                source = "; ".join(part for part in (collected.source, collected.note) if part)
                yield {"metric": metric, "value": value, "steps": collected.steps, "cfg": None, "source": source}


def _claim(
    cell: Mapping[str, Any], measured: Mapping[str, Any], figure: Mapping[str, Any], reference: Mapping[str, Any]
) -> Claim:
    half = None if measured["low"] is None or measured["high"] is None else (measured["high"] - measured["low"]) / 2
    difference = measured["value"] - figure["value"]
    return Claim(
        cell_id=cell["cell_id"],
        model=cell["model"],
        steps=cell["steps"],
        cfg=cell["cfg"],
        metric=figure["metric"],
        measured=measured["value"],
        half_width=half,
        published=figure["value"],
        difference=difference,
        half_widths=difference / half if half else None,
        source=figure["source"],
        not_comparable=tuple(_obstacles(cell, figure["metric"], reference)),
    )


def _obstacles(cell: Mapping[str, Any], metric: str, reference: Mapping[str, Any]) -> Iterator[str]:
    """Yield what keeps a measured value from being compared with a published one."""
    if cell["random_weights"]:
        yield "random weights"
    if cell["num_samples"] != PUBLISHED_SAMPLES:
        yield f"N is {cell['num_samples']:,}, published figures take {PUBLISHED_SAMPLES:,}"
    name = str(reference.get("name", "unknown"))
    if CATALOG[metric].reference != "none" and not name.startswith(PUBLISHED_REFERENCE):
        yield f"the reference is '{name}', published figures take ADM's or the authors' own"
    if cell["sampler"] != "native":
        yield f"the sampler is '{cell['sampler']}', published figures take the authors'"
    if json.loads(cell["options"]):
        yield "sampler settings were changed by --option"
