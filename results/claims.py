"""Published claims beside measured rows: what was claimed, whether it is the same setting, and what stands between."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from results.comparing import find_cells
from results.database import dictionaries
from results.leaderboard import rows, setting_of
from results.numbers import counted
from results.published import figures_of
from results.rows import Row
from results.store import connect

PUBLISHED_SAMPLES = 50_000
"""Images behind a published FID or Inception Score unless its source says otherwise."""
PUBLISHED_REFERENCE = "adm-"
"""How the name of a reference begins when it is ADM's batch, which published ImageNet FIDs are taken against."""


class Figure(NamedTuple):
    """One published value of one metric of a checkpoint."""

    metric: str
    value: float
    steps: int | None
    nfe: float | None
    """Network evaluations per image, where the source gives no step count."""
    cfg: float | None
    """None: not stated."""
    source: str
    best_of: int = 1
    """The number of runs of which it is the best."""

    def is_of(self, row: Row) -> bool:
        """Tell whether it was published for the row's step count (else NFE) and guidance scale, as far as stated."""
        if self.steps is None and self.nfe is None:
            return False
        same_cost = self.steps == row.cell["steps"] if self.steps is not None else self.nfe == row.cell["nfe"]
        return same_cost and self.cfg in (None, row.cell["cfg"])

    @property
    def setting(self) -> str:
        """The setting it was published for."""
        if self.steps is not None:
            count = counted(self.steps, "step")
        else:
            count = "steps not stated" if self.nfe is None else f"{self.nfe:g} NFE"
        return count + ("" if self.cfg is None else f", cfg {self.cfg:g}")


class Claim(NamedTuple):
    """One measured metric and one published figure of it."""

    cell_id: str
    model: str
    steps: int
    cfg: float
    metric: str
    measured: float
    low: float | None
    high: float | None
    half_width: float | None
    """Half the width of the measured 95% interval."""
    published: float
    difference: float
    """measured - published."""
    half_widths: float | None
    """The difference in half widths; beyond 1 in size, sampling noise of this row does not explain it."""
    source: str
    not_comparable: tuple[str, ...]
    """What differs between the two measurements; empty where nothing known differs."""
    best_of: int = 1
    """Above 1: the best of so many seeds is published, and `measured` is the best of as many (fewer, where
    `not_comparable` says so)."""
    trained_on: bool = False
    """Whether the model was trained on the features that the metric reads."""


class Claims(NamedTuple):
    """What was found for some rows: claims, and what was published for settings that are not measured."""

    claims: list[Claim]
    elsewhere: tuple[str, ...]


def published_claims(database: Path, name: str, seed: int | None = None) -> Claims:
    """Compare the finished rows `name` stands for (a cell id, MODEL, MODEL@STEPS or MODEL@STEPS@CFG) with the claims.

    Raises BenchError when no finished row is found.
    """
    with connect(database, retry=True) as connection:
        cells = [cell["cell_id"] for cell in find_cells(connection, name, seed)]
        found = {row.cell["cell_id"]: row for row in rows(connection, cells=cells)}
        return claims_of(connection, [found[cell] for cell in cells])


def claims_of(connection: duckdb.DuckDBPyConnection, found: Sequence[Row]) -> Claims:
    """Match rows to the figures published for their checkpoints: the one rule, wherever figures are compared.

    The card's own figures come first; the collected ones are asked for the metrics that the card lacks at that step
    count.
    """
    claims: list[Claim] = []
    elsewhere: dict[str, None] = {}
    cards = {
        row["model"]: json.loads(row["card"]) for row in dictionaries(connection, "SELECT model, card FROM models")
    }
    query = "SELECT digest, resolution, definition FROM protocols"
    protocols = {row["digest"]: row for row in dictionaries(connection, query)}
    best: set[tuple[object, ...]] = set()
    for row in found:
        protocol = protocols.get(row.cell["protocol_digest"], {})
        reference = json.loads(protocol.get("definition") or "{}").get("reference", {})
        checkpoint = row.cell["checkpoint"]
        for figure in _figures(checkpoint, cards.get(checkpoint, {}), protocol.get("resolution")):
            measured = row.measured(figure.metric)
            if not figure.is_of(row):
                elsewhere[f"{figure.metric} {figure.value:g} at {figure.setting}"] = None
            elif figure.best_of > 1:
                key = (setting_of(row), figure)
                if key not in best and (claim := _best_claim(row, found, figure, reference)) is not None:
                    claims.append(claim)
                best.add(key)
            elif measured is not None and measured.value is not None:
                claims.append(_claim(row, figure, reference))
    return Claims(claims, tuple(elsewhere))


def _figures(checkpoint: str, card: Mapping[str, Any], resolution: int | None) -> Iterator[Figure]:
    stated = set()
    for figure in card.get("published") or ():
        metric = str(figure["metric"]).lower()
        stated.add((metric, figure.get("steps")))
        yield Figure(
            metric, float(figure["value"]), figure.get("steps"), None, figure.get("cfg"),
            figure.get("source") or "card", int(figure.get("best_of") or 1),
        )  # fmt: skip
    for collected in figures_of({checkpoint}):
        if collected.resolution not in (None, resolution):
            continue
        source = "; ".join(part for part in (collected.source, collected.note) if part)
        for metric, value in collected.metrics.items():
            if (metric, collected.steps) not in stated:
                yield Figure(metric, value, collected.steps, collected.nfe, None, source)


def _best_claim(row: Row, found: Sequence[Row], figure: Figure, reference: Mapping[str, Any]) -> Claim | None:
    """Return the claim of the best of the first `figure.best_of` seeds of the row's setting: like beside like."""
    alike = [
        other for other in found if setting_of(other) == setting_of(row) and other.value(figure.metric) is not None
    ]
    seeds = sorted({other.cell["seed"]: other for other in alike}.items())[: figure.best_of]
    if not seeds:
        return None
    sign = row.fact(figure.metric).sign
    best = max((other for _, other in seeds), key=lambda other: sign * (other.value(figure.metric) or 0.0))
    claim = _claim(best, figure, reference)._replace(best_of=figure.best_of)
    if len(seeds) == figure.best_of:
        return claim
    lacking = (
        f"published is the best of {figure.best_of} runs, measured {'is' if len(seeds) == 1 else 'are'} {len(seeds)} "
        f"(bench run --seeds measures more)"
    )
    return claim._replace(not_comparable=(*claim.not_comparable, lacking))


def _claim(row: Row, figure: Figure, reference: Mapping[str, Any]) -> Claim:
    measured = row.measured(figure.metric)
    assert measured is not None and measured.value is not None
    known = measured.low is not None and measured.high is not None
    half = (measured.high - measured.low) / 2 if known else None  # type: ignore[operator]
    difference = measured.value - figure.value
    return Claim(
        cell_id=row.cell["cell_id"],
        model=row.cell["model"],
        steps=row.cell["steps"],
        cfg=row.cell["cfg"],
        metric=figure.metric,
        measured=measured.value,
        low=measured.low,
        high=measured.high,
        half_width=half,
        published=figure.value,
        difference=difference,
        half_widths=difference / half if half else None,
        source=figure.source,
        not_comparable=tuple(_obstacles(row, figure.metric, reference)),
        trained_on=measured.trained_on,
    )


def _obstacles(row: Row, metric: str, reference: Mapping[str, Any]) -> Iterator[str]:
    """Yield what keeps a measured value from being compared with a published one."""
    cell = row.cell
    if cell["random_weights"]:
        yield "random weights"
    if cell["num_samples"] != PUBLISHED_SAMPLES:
        yield f"N is {cell['num_samples']:,}, published figures use {PUBLISHED_SAMPLES:,}"
    name = str(reference.get("name", "unknown"))
    if row.fact(metric).reference != "none" and not name.startswith(PUBLISHED_REFERENCE):
        yield f"the reference is '{name}', published figures use ADM's or the authors' own"
    if cell["sampler"] != "native":
        yield f"the sampler is '{cell['sampler']}', published figures use the authors'"
    if cell["options"]:
        yield "sampler settings were changed by --option"
