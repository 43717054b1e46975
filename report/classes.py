"""The block that compares two rows class by class."""

from __future__ import annotations

from typing import Any

import pandas as pd

from report import figures, findings, text
from report.data import Measurements
from report.markup import Markup, element
from report.sections import Page, section, select
from results.facts import MetricFact
from results.statistics import share_half_width

MOST_CLASS_VALUES = 120_000


def per_class(page: Page) -> Markup | None:
    """In which classes is one row ahead of another?"""
    data = page.data
    if data.per_class.empty:
        return None
    order = page.best + [cell for cell in data.ranked.index if cell not in page.best]
    have = set(data.per_class["cell_id"])
    per_cell = max(1, len(data.per_class) // max(1, len(have)))
    cells = [cell for cell in order if cell in have][: max(2, MOST_CLASS_VALUES // per_cell)]
    present = set(data.per_class["metric"])
    # A Frechet distance within a class goes by the variety of the class: its bias is all there is to see.
    measured = [key for key, fact in data.metrics.items() if key in present and fact.reference != "statistics"]
    keys = sorted(measured, key=lambda key: not data.metrics[key].is_share)  # shares first: they have intervals
    if len(cells) < 2 or not keys:
        return None
    metric = data.metrics[keys[0]]
    pair = cells[0], _furthest(data, cells, metric)
    one, other = (_classes(data, cell, keys[0]) for cell in pair)
    names = (data.fact(pair[0], "label"), data.fact(pair[1], "label"))
    drawn = figures.per_class_difference(one, other, metric)
    page.script_data["classes"] = _class_values(data, cells, keys)
    options = [(cell, data.fact(cell, "marked")) for cell in cells]
    controls = element(
        "div",
        element("label", "metric ", select("class-metric", [(key, data.metrics[key].short) for key in keys], keys[0])),
        element("label", "first ", select("class-one", options, cells[0])),
        element("label", "second ", select("class-other", options, pair[1])),
        class_="controls",
    )
    counts = f"{int(one['n'].min()):,} images per class" if len(one) else ""
    caption = (
        f"First minus second in each class, sorted, {counts}. Bars: 95% interval of a difference of proportions "
        "(shares only); hollow: within it."
    )
    title = findings.classes(one, other, names, metric)
    return section("classes", "Class by class", title, controls, page.figure("classes", drawn, caption))


def _classes(data: Measurements, cell: str, metric: str) -> pd.DataFrame:
    rows = data.per_class
    rows = rows[(rows["cell_id"] == cell) & (rows["metric"] == metric)]
    return rows[["label", "class_name", "value", "n"]].astype({"value": float})


def _furthest(data: Measurements, cells: list[str], metric: MetricFact) -> str:
    """Return the cell that differs most from the first one of `cells`, class by class."""
    values = {cell: _classes(data, cell, metric.name).set_index("label")["value"] for cell in cells[:12]}
    apart = {cell: float((own - values[cells[0]]).abs().sum()) for cell, own in values.items() if cell != cells[0]}
    return max(apart, key=lambda cell: apart[cell])


def _class_values(data: Measurements, cells: list[str], keys: list[str]) -> dict[str, Any]:
    rows = data.per_class[data.per_class["cell_id"].isin(cells)]
    names = rows.drop_duplicates("label").set_index("label")["class_name"].sort_index()
    values: dict[str, Any] = {}
    for (metric, cell), group in rows.groupby(["metric", "cell_id"]):
        if metric in keys:
            column = group.set_index("label").reindex(names.index)
            share = data.metrics[metric].is_share
            halves: Any = share_half_width(column["value"], column["n"]) if share else []
            values.setdefault(metric, {})[cell] = [
                [_cut(value) for value in column["value"]],
                [_cut(half) for half in halves],
            ]
    return {"names": [text.shortened(str(name), 40) for name in names], "values": values}


def _cut(value: float) -> float | None:
    return None if pd.isna(value) else float(f"{value:.5g}")
