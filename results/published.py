"""Published figures, collected from papers and repositories with their sources (`published.csv`)."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from results.catalog import FACTS
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
    note: str | None
    model: str | None
    """The model card of this very checkpoint, where there is one."""

    def row(self) -> dict[str, Any]:
        """Return the row of table `published`."""
        kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        metrics = kept.pop("metrics")
        kept.pop("model")
        return kept | {name: metrics.get(name) for name in metric_columns()}


def metric_columns() -> list[str]:
    """Return the columns of `published.csv` that are metrics, as the catalogue names them."""
    with (files("results") / "published.csv").open(encoding="utf-8") as file:
        return _metrics_of(next(csv.reader(file)))


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
                    note=line["note"] or None,
                    model=line["model"] or None,
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"published.csv, line {number}: {error}; fix the line") from error
        if not found[-1].system or not found[-1].source:
            raise StoreError(f"published.csv, line {number}: a figure needs its system and its source; add them")
    return tuple(found)


def published_rows() -> list[dict[str, Any]]:
    """Return the rows of table `published`."""
    return [figure.row() for figure in published_figures()]


def figures_of(models: Collection[str]) -> list[PublishedFigure]:
    """Return the figures of the checkpoints with these card names. Similar names are not guessed at."""
    return [figure for figure in published_figures() if figure.model in models]
