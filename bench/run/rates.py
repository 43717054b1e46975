"""Rates that finished rows measured: seconds of an image by checkpoint and setting, and of judging one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.run.plan import Cell
from results.database import dictionaries
from results.errors import StoreError
from results.store import connect
from results.timing import timed

QUERY = """
SELECT checkpoint, steps, cfg, dtype, options, settings, batch_size, nfe, flops, images_per_second, latency_seconds,
       timing, judge_seconds, num_samples, measurement, device
FROM cells WHERE status = 'done' AND images_per_second > 0 AND steps IS NOT NULL
"""


@dataclass(frozen=True)
class Rates:
    """What the rows of one device measured.

    Attributes:
        device: the name asked for.
        rows: how many rows there are.
        judging: seconds of judging one image, by the protocol's measurement digest: the median over its rows.
    """

    device: str
    rows: int = 0
    judging: Mapping[str, float] = field(default_factory=dict)
    found: Mapping[tuple[str, str, bool], list[Mapping[str, Any]]] = field(default_factory=dict)
    """Rows by checkpoint, dtype and whether it was compiled."""

    def image(self, cell: Cell, flops: float | None) -> tuple[float | None, str]:
        """Return the seconds of sampling one image of a cell, and how they are known.

        `measured` at this setting, else `scaled` from the checkpoint's nearest other one by operations (by steps where
        those are not known), else (None, `unknown`).
        """
        rows = self.found.get((cell.card.name, cell.dtype, cell.compile), [])
        same = [row for row in rows if (row["steps"], row["cfg"]) == (cell.steps, cell.cfg)]
        if same:
            alike = [row for row in same if row["settings"] == dict(cell.settings)] or same
            nearest = min(alike, key=lambda row: abs(row["batch_size"] - cell.batch_size))
            return _seconds(nearest), "measured"
        if not rows:
            return None, "unknown"
        nearest = min(rows, key=lambda row: (abs(row["steps"] - cell.steps), abs(row["batch_size"] - cell.batch_size)))
        share = flops / nearest["flops"] if flops and nearest["flops"] else cell.steps / nearest["steps"]
        return _seconds(nearest) * share, "scaled"


def read_rates(database: Path, device: str) -> Rates:
    """Return the rates of rows whose device's name contains `device`; none where there is no readable database."""
    if not database.exists():
        return Rates(device)
    try:
        with connect(database, retry=True) as connection:
            rows = [_read(row) for row in dictionaries(connection, QUERY) if device.lower() in row["device"].lower()]
    except StoreError:
        return Rates(device)
    found: dict[tuple[str, str, bool], list[Mapping[str, Any]]] = {}
    judging: dict[str, list[float]] = {}
    for row in rows:
        compiled = bool(row["options"].get("compile"))
        found.setdefault((row["checkpoint"], row["dtype"], compiled), []).append(row)
        if row["judge_seconds"] and row["num_samples"]:
            judging.setdefault(str(row["measurement"]), []).append(row["judge_seconds"] / row["num_samples"])
    return Rates(device, len(rows), {name: median(values) for name, values in judging.items()}, found)


def _read(row: Mapping[str, Any]) -> Mapping[str, Any]:
    documents = {name: json.loads(row[name]) if row[name] else {} for name in ("options", "settings", "timing")}
    return {**row, **documents}


def _seconds(row: Mapping[str, Any]) -> float:
    time = timed(row, "seconds")
    assert time is not None
    return time.value
