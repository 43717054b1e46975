"""Published figures: what the cards' checkpoints and systems without weights were reported to reach.

They come from `published.csv`, collected from papers and repositories with their sources.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import duckdb

from results.catalog import FACTS
from results.database import dictionaries
from results.errors import StoreError


@dataclass(frozen=True)
class PublishedFigure:
    """One published row: a system, how it was sampled, its metrics, and where they are printed. None: not stated."""

    system: str
    variant: str | None
    dataset: str | None
    resolution: int | None
    """Pixels a side."""
    params_m: float | None
    """Parameters in millions."""
    steps: int | None
    nfe: float | None
    """Network evaluations per image, as the source counts them."""
    guidance: str | None
    """In the source's words."""
    metrics: dict[str, float]
    """Metric name -> value, where one is stated."""
    source: str
    date: str | None
    """The month, YYYY-MM, of the paper that the figure belongs to."""
    note: str | None
    model: str | None
    """The model card of this very checkpoint, where there is one."""

    @property
    def title(self) -> str:
        """The system, and which of its variants."""
        return self.system if self.variant is None else f"{self.system} ({self.variant})"

    def row(self) -> dict[str, Any]:
        """Return the row of table `published`."""
        kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        metrics = kept.pop("metrics")
        kept.pop("model")
        return kept | {name: metrics.get(name) for name in metric_columns()}


@cache
def metric_columns() -> tuple[str, ...]:
    """Return the columns of `published.csv` that are metrics, as the catalogue names them."""
    with (files("results") / "published.csv").open(encoding="utf-8") as file:
        return tuple(_metrics_of(next(csv.reader(file))))


def _metrics_of(columns: Iterable[str]) -> list[str]:
    return [column for column in columns if column in FACTS and FACTS[column].kind != "cost"]


@cache
def published_figures() -> tuple[PublishedFigure, ...]:
    """Return every published figure in the package, in the order of the file.

    Raises StoreError, naming the line, when the file is malformed.
    """
    text = (files("results") / "published.csv").read_text(encoding="utf-8")
    return parse_figures(text)


def parse_figures(text: str) -> tuple[PublishedFigure, ...]:
    """Return the figures of a CSV text with the columns of `published.csv`. Raises StoreError naming the line."""
    reader = csv.DictReader(text.splitlines())
    found = []
    for number, line in enumerate(reader, 2):
        try:
            metrics = {name: float(line[name]) for name in _metrics_of(line) if line[name]}
            found.append(
                PublishedFigure(
                    system=line["system"],
                    variant=line["variant"] or None,
                    dataset=line["dataset"] or None,
                    resolution=int(line["resolution"]) if line["resolution"] else None,
                    params_m=float(line["params_m"]) if line["params_m"] else None,
                    steps=int(line["steps"]) if line["steps"] else None,
                    nfe=float(line["nfe"]) if line["nfe"] else None,
                    guidance=line["guidance"] or None,
                    metrics=metrics,
                    source=line["source"],
                    date=line["date"] or None,
                    note=line["note"] or None,
                    model=line["model"] or None,
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"published.csv, line {number}: {error}; fix the line") from error
        if not found[-1].system or not found[-1].source:
            raise StoreError(f"published.csv, line {number}: a figure needs a system and a source; add them")
    return tuple(found)


def published_rows() -> list[dict[str, Any]]:
    """Return the rows of table `published`."""
    return [figure.row() for figure in published_figures()]


def nothing_to_run(protocol: str, reference: str, resolution: int) -> list[PublishedFigure]:
    """Return the figures of systems that no card runs at a protocol's data set and resolution, by name of the system.

    They are claims: nothing here measured them, so they are never ranked, never the best of anything. A system is left
    out where a card runs one of its checkpoints there, and so is a figure without a metric of ours. The data set is
    that of which the name of the protocol or of its reference speaks: `imagenet` in `fair-imagenet-256`.
    """
    words = {word for name in (protocol, reference) for word in name.lower().split("-")}
    runnable = {(figure.system, figure.dataset, figure.resolution) for figure in published_figures() if figure.model}
    found: dict[tuple[Any, ...], PublishedFigure] = {}
    for figure in published_figures():
        data_set = "".join(letter for letter in (figure.dataset or "").lower() if letter.isalnum())
        place = (figure.system, figure.dataset, figure.resolution)
        if figure.metrics and data_set in words and figure.resolution == resolution and place not in runnable:
            found.setdefault((*place, figure.variant, figure.steps, figure.nfe, *figure.metrics.items()), figure)
    return sorted(found.values(), key=lambda figure: (figure.system.lower(), figure.steps or 0, figure.title))


def claims_under(connection: duckdb.DuckDBPyConnection, protocol: str) -> list[PublishedFigure]:
    """Return `nothing_to_run` for a protocol of the database, by its latest definition; empty for an unknown one."""
    query = (
        "SELECT p.resolution, p.definition FROM protocols p LEFT JOIN cells c ON c.protocol_digest = p.digest "
        "WHERE p.name = ? ORDER BY c.finished DESC NULLS LAST LIMIT 1"
    )
    for row in dictionaries(connection, query, [protocol]):
        reference = json.loads(row["definition"] or "{}").get("reference", {})
        return nothing_to_run(protocol, str(reference.get("name", "")), row["resolution"])
    return []


def figures_of(models: Collection[str]) -> list[PublishedFigure]:
    """Return the figures of the checkpoints with these card names. Similar names are not guessed at."""
    return [figure for figure in published_figures() if figure.model in models]
