"""Published figures that belong to a measured row: from its card, and collected ones of the very checkpoint."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from report.data import Measurements, decoded
from results.published import figures_of


class Claim(NamedTuple):
    """One published figure beside the measured value of the same metric."""

    cell: str
    metric: str
    published: float
    value: float
    low: float
    high: float
    source: str


def claims(data: Measurements) -> list[Claim]:
    """Match every measured value to the figures published for its model, step count (or NFE) and resolution."""
    found = []
    for cell, row in data.ranked.iterrows():
        for metric, value, source in _of_row(data, row):
            measured = data.value(str(cell), metric)
            if measured is not None and pd.notna(measured["value"]):
                found.append(
                    Claim(str(cell), metric, value, measured["value"], measured["low"], measured["high"], source)
                )
    return found


def _of_row(data: Measurements, row: pd.Series) -> list[tuple[str, float, str]]:
    """Return (metric, value, source): the cards' own figures, then collected ones of metrics that the cards lack."""
    names, claimed = {row["model"], row["checkpoint"]}, []
    for name in sorted(names & set(data.models.index)):
        for figure in decoded(data.models.loc[name]["card"]).get("published") or []:
            same_cfg = figure.get("cfg") is None or figure["cfg"] == row["cfg"]
            if figure.get("steps") == row["steps"] and same_cfg:
                claimed.append(
                    (str(figure["metric"]).lower(), float(figure["value"]), str(figure.get("source", "card")))
                )
    stated = {metric for metric, _, _ in claimed}
    for collected in figures_of(names):
        same_size = collected.resolution in (None, data.protocol.get("resolution"))
        same_budget = collected.steps == row["steps"] if collected.steps is not None else collected.nfe == row["nfe"]
        if same_size and same_budget:
            source = " · ".join(part for part in (collected.source, collected.note) if part)
            claimed += [(name, value, source) for name, value in collected.metrics.items() if name not in stated]
    return claimed
