"""`bench leaderboard --claims`: published figures of systems with nothing to run, greyed and never ranked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.cli.output import page, plain_table, print_table

if TYPE_CHECKING:
    from results.published import PublishedFigure

CLAIM = "claim"


def print_claims(claims: Mapping[str, Sequence[PublishedFigure]]) -> None:
    """Print the claims that stand beside each protocol."""
    for protocol, figures in claims.items():
        title = "published by the authors of systems with nothing to run here; not measured, never ranked"
        if not figures:
            title = "no claims: what was published of systems with nothing to run is of other data"
        page().print(f"{protocol}: {title}", markup=False, soft_wrap=True)
        if figures:
            _print(figures)
        page().print("")


def claims_json(claims: Mapping[str, Sequence[PublishedFigure]]) -> list[dict[str, Any]]:
    """Return the claims as JSON: entries that say so."""
    return [
        {"claim": True, "protocol": protocol, **dataclasses.asdict(figure)}
        for protocol, figures in claims.items()
        for figure in figures
    ]


def _print(figures: Sequence[PublishedFigure]) -> None:
    from results.catalog import FACTS

    metrics = list(dict.fromkeys(name for figure in figures for name in figure.metrics))
    headings = [FACTS[name].short for name in metrics]
    columns = ["", "system", "steps", "NFE", "guidance", *headings, "date", "source"]
    lines = [
        [
            CLAIM,
            figure.title,
            *("-" if count is None else f"{count:g}" for count in (figure.steps, figure.nfe)),
            figure.guidance or "-",
            *(f"{figure.metrics[name]:g}" if name in figure.metrics else "-" for name in metrics),
            figure.date or "-",
            figure.source,
        ]
        for figure in figures
    ]
    numbers = ["steps", "NFE", *headings]
    table = plain_table(columns, lines, right=numbers, fixed=["", "system", "date"])
    table.row_styles = ["dim"]
    print_table(page(), table)
