"""The blocks in which a reader chooses: the picker, the win matrix, two rows head to head, and other rankings."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from report import findings, tables, text
from report.data import Measurements
from report.markup import Markup, element
from report.samples import RealImages
from report.sections import Page, scroll, section, select
from results import matrix, numbers
from results.cells import CellDirectory
from results.comparing import compare_rows, reversed_by_bias
from results.marks import TRAINED

MOST_WINS = 20
"""Rows of the win matrix."""
MOST_HEADS = 40
"""Rows that can be put head to head."""
BUDGETS = (
    ("nfe", "NFE per image"),
    ("milliseconds", "ms per image in batches"),
    ("latency", "ms for one image alone"),
    ("device", "device-seconds for 1,000 images"),
    ("money", "money for 1,000 images"),
)


def picker(page: Page) -> Markup | None:
    """Which setting should I use under my budget and conditions?"""
    data = page.data
    if not page.headline:
        return None
    metrics = [(key, metric.short) for key, metric in {**data.metrics, **data.composites}.items()]
    limits: list[Markup] = []
    for place in (1, 2):
        limit = select(f"pick-limit-{place}", [("", "(no condition)"), *metrics])
        label = element("label", "and ", limit, " ", element("span", "≥", id=f"pick-sign-{place}"))
        bound = _number(f"pick-bound-{place}", f"bound {place}")
        limits.append(element("span", label, bound, class_="condition"))
    controls = [
        element("label", "best by ", select("pick-metric", metrics, page.headline)),
        element("label", "for at most ", _number("pick-most", "budget")),
        element(
            "label", element("span", "unit of the budget", class_="unseen"), select("pick-cost", list(BUDGETS), "nfe")
        ),
        element("label", "at a price per device-hour of ", _number("pick-price", "", "2"), hidden=True),
        *limits,
        element(
            "label", "licence ", select("pick-licence", [("", "any"), ("commercial", "not against commercial use")])
        ),
    ]
    unseen = element("span", "place", class_="unseen")
    headings = (unseen, "model", "setting", "value", "NFE", "time per image", "spent", "licence")
    head = element("tr", [element("th", heading, scope="col") for heading in headings])
    table = element("table", element("thead", head), element("tbody"), id="pick-table")
    note = (
        "Tied: no setting that meets the conditions is significantly better, with critical values that allow for every "
        "row of the ranking; the cheapest first."
    )
    if len(data.compared) < len(data.ranked):
        note += f" Ties are known among {len(data.compared)} rows, the best of each setting."
    return section(
        "picker",
        "Find a setting",
        "The picker needs JavaScript",
        element("div", controls, class_="controls", data_scripted=True, hidden=True),
        element("div", scroll(table, "ties"), role="status", data_scripted=True, hidden=True),
        element("p", element("span", id="pick-note"), f" {note}", class_="note"),
    )


def wins(page: Page) -> Markup | None:
    """Who beats whom?"""
    data = page.data
    found: dict[str, Any] = {}
    for key, metric in data.metrics.items():
        cells = data.best(key)[:MOST_WINS]
        if len(cells) < 2:
            continue
        signs = _signs(data, cells, key)
        titles = [str(data.fact(cell, "marked")) for cell in cells]
        found[key] = {"cells": cells, "signs": signs, "text": findings.wins(titles, signs, metric.short)}
    if not page.headline or page.headline not in found:
        return None
    page.script_data["wins"] = found
    shown = found[page.headline]
    lines = [
        [element("b", data.fact(cell, "marked")), *row]
        for cell, row in zip(shown["cells"], shown["signs"], strict=True)
    ]
    options = [(key, data.metrics[key].short) for key in found]
    table = element(
        "table",
        element("thead"),
        element("tbody", [element("tr", [element("td", place) for place in line]) for line in lines]),
        id="wins-table",
        class_="wins",
    )
    note = (
        "Each model's best setting, best first. ▲ the row is significantly better than the column, ▽ worse, = tied; "
        "the 95% intervals of all pairs hold at once."
    )
    return section(
        "wins",
        "Who beats whom",
        shown["text"],
        element("div", element("label", "by ", select("wins-metric", options, page.headline)), class_="controls"),
        scroll(table),
        element("p", note, class_="note"),
    )


def _signs(data: Measurements, cells: Sequence[str], metric: str) -> list[str]:
    """Return a string for each row: `+` where it is better than the column's, `-` worse, `=` tied, `?` not known."""
    known = {
        frozenset((pair.a, pair.b)): pair.winner or ""
        for pair in matrix.pairs_of([data.rows[cell] for cell in cells], metric)
    }

    def sign(one: str, other: str) -> str:
        winner = known.get(frozenset((one, other)))
        return "?" if winner is None else "=" if not winner else "+" if winner == one else "-"

    return ["".join(sign(one, other) for other in cells) for one in cells]


def heads(page: Page, real: RealImages | None) -> Markup | None:
    """How do two rows differ, by every metric and image by image?"""
    data = page.data
    if not page.headline:
        return None
    order = [*page.best, *data.best(page.headline, ("model", "steps")), *data.leaders(page.headline)]
    pictured = set(data.thumbnails["cell_id"])
    cells = [cell for cell in dict.fromkeys(order) if cell in pictured][:MOST_HEADS]
    if len(cells) < 2:
        return None
    scores = {cell: _scores(data, cell) for cell in cells}
    page.script_data["heads"] = {
        "cells": cells,
        "pairs": {f"{i} {j}": _differences(data, cells[i], cells[j]) for i, j in combinations(range(len(cells)), 2)},
        "scores": {cell: found for cell, found in scores.items() if found},
    }
    shown = sorted(set(map(int, data.thumbnails["label"])))
    page.script_data["real"] = {
        str(label): [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in pictures]
        for label, pictures in (real(str(data.protocol["name"]), shown) if real else {}).items()
    }
    judges = {key: data.metrics[key].short for found in scores.values() for key in found}
    orders = [("", "sample order")]
    for key, short in judges.items():
        for which in ("best", "worst"):
            orders += [
                (f"{key}:{which}:{whose}", f"{which} by {short} of the {name} row")
                for whose, name in (("one", "first"), ("other", "second"))
            ]
    options = [(cell, str(data.fact(cell, "marked"))) for cell in cells]
    controls = [
        element("label", "first ", select("head-one", options, cells[0])),
        element("label", "second ", select("head-other", options, cells[1])),
        element("label", "images ", select("head-order", orders)),
    ]
    names = ("metric", "first", "second", "difference", "verdict", "win rate")
    table = element(
        "table",
        element("thead", element("tr", [element("th", name, scope="col") for name in names])),
        element("tbody"),
        id="head-table",
    )
    images = element("table", element("thead"), element("tbody"), id="head-images", class_="samples")
    note = (
        "The 95% interval of each difference is that of 'bench compare': one pair, chosen beforehand. Win rate: how "
        "often the first row's image of a prompt scores higher. Rows of one noise shape start each column from the "
        "same noise; best and worst are among the images kept."
    )
    return section(
        "heads",
        "Head to head",
        "Choose two rows (needs JavaScript)",
        element("div", controls, class_="controls"),
        element("div", scroll(table), data_scripted=True, hidden=True),
        element("div", scroll(images), data_scripted=True, hidden=True),
        element("p", note, class_="note"),
    )


def _differences(data: Measurements, one: str, other: str) -> list[list[Any]]:
    """Return for each metric: its name, both values, the difference either way round, who is better, the win rate."""
    lines: list[list[Any]] = []
    names = {"a": str(data.fact(one, "model")), "b": str(data.fact(other, "model"))}
    turned = bool(reversed_by_bias([data.rows[one], data.rows[other]]))
    for found in compare_rows(data.rows[one], data.rows[other], data.runs_directory):
        values = [data.rows[cell].measured(found.metric) for cell in (one, other)]
        shown = [numbers.with_interval(value.value, value.low, value.high) if value else "" for value in values]
        ends = (found.difference, found.low, found.high), (-found.difference, -found.high, -found.low)
        ways = [f"{numbers.difference(value, low, high)} [{numbers.limits(low, high)}]" for value, low, high in ends]
        verdict = 0 if found.verdict == "tied" else 1 if found.verdict[0] == "a" else -1
        rate = None if found.win_rate is None else round(float(found.win_rate), 4)
        remarks = ["order reverses without its bias"] * (turned and found.metric == "fid")
        trained = [names[letter] for letter in found.trained_on.split(", ") if letter]
        remarks += [f"{TRAINED} {text.listed(trained)} trained on it"] * bool(trained)
        lines.append([found.metric, *shown, *ways, verdict, rate, "; ".join(remarks)])
    return lines


def _scores(data: Measurements, cell: str) -> dict[str, list[float]]:
    """Return each judge's scores of the images that are shown of a cell, by metric and in their order."""
    shown = data.thumbnails[data.thumbnails["cell_id"] == cell]["sample_index"]
    directory = CellDirectory(data.runs_directory, cell)
    found = {}
    for key, fact in data.metrics.items():
        scores = directory.scores(fact.array) if fact.array.endswith(".score") else None
        if scores is not None and len(shown) and int(shown.max()) < len(scores):
            found[key] = [float(f"{float(score):.5g}") for score in scores[: int(shown.max()) + 1]]
    return found


def rankings(views: Sequence[Measurements]) -> Markup | None:
    """Who leads in each ranking of the database?"""
    if len(views) < 2:
        return None
    lines, firsts = [], set()
    for view in views:
        rows = f"{len(view.ranked)}"
        if not view.headline:
            lines.append([view.title, rows, text.NOTHING, "speed only", text.NOTHING])
            continue
        best = view.best(view.headline)
        leaders = [cell for cell in best if cell in set(view.leaders(view.headline))]
        value = view.value(best[0], view.headline) or {}
        shown = text.with_interval(value.get("value"), value.get("low"), value.get("high"))
        tied = text.listed([str(view.fact(cell, "model")) for cell in leaders if cell != best[0]]) or "none"
        metric = view.metrics[view.headline].short
        firsts.add(view.fact(best[0], "model"))
        lines.append([view.title, rows, view.fact(best[0], "marked"), f"{metric} {shown}", tied])
    title = "One model leads every ranking" if len(firsts) == 1 else f"{len(firsts)} models lead one ranking or another"
    table = tables.plain_table(("ranking", "rows", "leader", "value", "tied models"), lines)
    note = "Rows of different protocols, sample counts or seeds are never ranked together; choose one at the top."
    return section("rankings", "Other rankings", title, table, element("p", note, class_="note"))


def _number(name: str, hint: str, value: str = "") -> Markup:
    return element(
        "input",
        type="number",
        id=name,
        min="0",
        step="any",
        value=value,
        placeholder=hint,
        aria_label=hint or name.replace("-", " "),
        data_state=True,
    )


def switch(views: Sequence[Measurements], chosen: str) -> Markup | None:
    """Return the selector between rankings; nothing where there is one."""
    if len(views) < 2:
        return None
    options = [element("option", view.title, value=view.number[:12], selected=view.number == chosen) for view in views]
    return element("label", "ranking ", element("select", options, id="ranking"), class_="switch")
