"""Published figures that belong to a measured row: from the card, and from the collected table by name."""

from __future__ import annotations

import re
from typing import NamedTuple

import pandas as pd

from report.data import Measurements, decoded

COLLECTED = ("fid", "is", "precision", "recall", "clip", "pick", "mmhm")


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
    names, claimed = {row["model"], row["checkpoint"]}, []
    for name in sorted(names & set(data.models.index)):
        card = data.models.loc[name]
        names = names | {card["title"]}
        for figure in decoded(card["card"]).get("published") or []:
            same_cfg = figure.get("cfg") is None or figure["cfg"] == row["cfg"]
            if figure.get("steps") == row["steps"] and same_cfg:
                claimed.append(
                    (str(figure["metric"]).lower(), float(figure["value"]), str(figure.get("source", "card")))
                )
    wanted = {_plain(name) for name in names}
    for _, line in data.published.iterrows():
        system, variant = str(line["system"]), "" if pd.isna(line["variant"]) else str(line["variant"])
        if not wanted & {_plain(system), _plain(system + variant), _plain(variant)} - {""}:
            continue
        same_size = pd.isna(line["resolution"]) or line["resolution"] == data.protocol.get("resolution")
        same_budget = line["steps"] == row["steps"] if pd.notna(line["steps"]) else line["nfe"] == row["nfe"]
        if same_size and same_budget:
            source = " · ".join(str(line[key]) for key in ("source", "note") if pd.notna(line[key]))
            claimed += [(key, float(line[key]), source) for key in COLLECTED if pd.notna(line[key])]
    return claimed


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
