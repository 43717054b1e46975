"""The tables of the page, complete without JavaScript: leaderboard, budgets, published figures, provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from report import students, text
from report.data import Measurements, cell_of, decoded, record
from report.markup import Markup, command, element, escape, kept
from results import numbers, timing
from results.budgets import Budget, Cost
from results.catalog import FACTS
from results.claims import Claim
from results.marks import CLIPPED, OFF_REGIME, REMARKED, ROUGH, TRAINED
from results.names import SEPARATOR
from results.spaces import Agreement


class Column(NamedTuple):
    """A column of the leaderboard that is not a metric."""

    key: str
    heading: str
    show: Callable[[Any], str]
    title: str


BEFORE = (
    Column("steps", FACTS["steps"].short, text.plain, "sampler steps asked for"),
    Column(
        "nfe",
        FACTS["nfe"].short,
        text.plain,
        "measured network evaluations per image, counting both passes of guidance",
    ),
    Column("cfg", "cfg", text.plain, "guidance scale, 1 = none"),
)
AFTER = (
    Column(
        "images_per_second",
        FACTS["images_per_second"].short,
        text.number,
        "sampling and decoding in batches, median of repetitions",
    ),
    Column(
        "latency_seconds", FACTS["latency_seconds"].short, text.seconds, "one image at batch 1, median of repetitions"
    ),
    Column("peak_memory", "memory", text.memory, "the model's own at most: weights and what sampling keeps"),
    Column("parameters", "param.", text.parameters, "parameters of the sampled network"),
)


TIMED: Mapping[str, Cost] = {"images_per_second": "seconds", "latency_seconds": "latency_seconds"}
"""Columns that were timed, and the cost of an image whose interval theirs is."""
MOST_LINES = 400
"""Lines of the leaderboard that the file carries as HTML, the best setting of each model among them."""
TRAINED_TIP = "the model was trained on the features that this metric reads"


def badges(data: Measurements, cell: str) -> str:
    """Return what stands in small letters under a row's model: what it is, and its marks in words."""
    row, facts = data.rows[cell], record(data.cells.loc[cell])
    said: list[str] = [facts["checkpoint"]] if facts["checkpoint"] != facts["model"].partition(SEPARATOR)[0] else []
    said += [f"student of {student.teacher}"] if (student := data.student(cell)) else []
    said += [facts["variant"]] if facts["variant"] and not facts["variant"].startswith("cfg") else []
    said += [f"{OFF_REGIME} off-regime"] * bool(facts["off_regime"])
    said += ["random weights"] * bool(facts["random_weights"])
    said += [f"{facts['failures']:g} not finite"] if facts["failures"] else []
    said += [f"{CLIPPED} {', '.join(outside)} outside the bounds"] if (outside := row.rank.get("outside")) else []
    said += [f"{TRAINED} trained on {', '.join(row.trained_on)}"] if row.trained_on else []
    return " · ".join([*said, *(f"{REMARKED} {remark}" for remark in row.remarks)])


def marks_of_value(value: Mapping[str, Any]) -> tuple[str, str]:
    """Return the marks of a value of `Measurements.values`, each after a blank, and what they mean."""
    corrected = value.get("corrected")
    tips = [f"bias-corrected {text.number(corrected, value['low'], value['high'])}"] * text.known(corrected)
    tips += [TRAINED_TIP] * bool(value["trained_on"])
    tips += ["so few images per dimension that the bias is removed only roughly"] * bool(value["rough"])
    tips += ["heavy tails: the interval may be narrow"] * bool(value["heavy_tails"])
    return f" {TRAINED}" * bool(value["trained_on"]) + f" {ROUGH}" * bool(value["rough"]), "; ".join(tips)


def time_spread(data: Measurements, cell: str, key: str) -> str:
    """Return the interval of a cell's images per second or latency; empty for other columns and where none is known."""
    if key not in TIMED:
        return ""
    (low, high), value = data.price(cell, TIMED[key]), data.fact(cell, key)
    if not low or not high or not text.known(value) or low == high:
        return ""
    if key == "latency_seconds":
        return text.seconds_spread(value, low, high)
    return text.spread(value, 1 / high, 1 / low)


def leaderboard(data: Measurements, best: Sequence[str], claims: Sequence[Claim], colours: dict[str, str]) -> Markup:
    """Return the leaderboard: a `tbody` for each cell with its line and its details, best first.

    `best` holds the best setting of each model; the page hides the other lines until it is asked for them.
    """
    values = {(row["cell_id"], row["metric"]): row for _, row in data.values.iterrows()}
    order = data.order(data.headline)
    count = len(data.contenders(data.headline)) if data.headline else 0
    columns = 3 + len(BEFORE) + len(data.metrics) + len(AFTER)
    head = [
        element("th", element("span", "settings", class_="unseen")),
        _heading("rank", "rank", "rank interval", "ascending"),
    ]
    head.append(_heading("model", "model", "model and checkpoint"))
    head += [_heading(column.key, column.heading, column.title) for column in BEFORE]
    head += [_heading(key, metric.short, metric.definition) for key, metric in data.metrics.items()]
    head += [_heading(column.key, column.heading, column.title) for column in AFTER]
    bodies = []
    written = lines_written(data, best)
    for cell in (cell for cell in order if cell in written):
        row: Any = data.cells.loc[cell]
        mine = [claim for claim in claims if claim.cell_id == cell]
        line = element("tr", _line(data, cell, row, values, count, colours), class_="line")
        details = element("tr", element("td", _details(data, cell, row, values, mine), colspan=columns), class_="more")
        kind = "best" if cell in best or (row["random_weights"] and not count) else None
        bodies.append(element("tbody", line, details, data_cell=cell, class_=kind))
    return element("table", element("thead", element("tr", head)), bodies, class_="leaderboard", id="leaderboard")


def lines_written(data: Measurements, best: Sequence[str]) -> set[str]:
    """Return the cells whose lines the file carries; the script makes the others' as they are scrolled to."""
    return set(list(dict.fromkeys([*best, *data.order(data.headline)]))[:MOST_LINES])


def _heading(key: str, heading: str, title: str, sort: str | None = None) -> Markup:
    button = element("button", heading, type="button", title=title, class_=None if " " in heading else "word")
    return element("th", button, data_key=key, aria_sort=sort, scope="col")


def _line(
    data: Measurements, cell: str, row: pd.Series, values: dict[Any, pd.Series], count: int, colours: dict[str, str]
) -> list[Markup]:
    headline = values.get((cell, data.headline))
    low, high = (headline["rank_low"], headline["rank_high"]) if headline is not None else (None, None)
    second = badges(data, cell)
    toggle = element("input", type="checkbox", class_="open", aria_label=f"show the settings of {row['label']}")
    line = [
        element("td", toggle),
        element(
            "td", element("span", text.rank(low, high), class_="place"), _rank_bar(low, high, count), class_="rank"
        ),
        element(
            "th",
            element("span", class_="dot", style=f"background:{colours[row['model']]}"),
            row["model"],
            element("small", second) if second else None,
            scope="row",
        ),
    ]
    line += [element("td", column.show(row[column.key])) for column in BEFORE]
    for key in data.metrics:
        value = values.get((cell, key))
        if value is None or row["random_weights"]:
            line.append(element("td", text.NOTHING))
            continue
        marks, tips = marks_of_value(record(value))
        error = text.spread(value["value"], value["low"], value["high"])
        shown = text.number(value["value"], value["low"], value["high"]) + marks
        line.append(element("td", shown, element("small", error), title=tips or None))
    for column in AFTER:
        error = time_spread(data, cell, column.key)
        line.append(element("td", column.show(row[column.key]), element("small", error) if error else None))
    return line


def _rank_bar(low: float | None, high: float | None, count: int) -> Markup | None:
    """A strip from first (left) to last place (right) of the places that the data leave to a row."""
    if not (text.known(low) and text.known(high)) or low is None or high is None:
        return element("span", element("i"), class_="bar", hidden=True)
    left, width = 100 * (low - 1) / count, 100 * (high - low + 1) / count
    return element("span", element("i", style=f"left:{left:.1f}%;width:{width:.1f}%"), class_="bar")


def _details(
    data: Measurements, cell: str, row: pd.Series, values: dict[Any, pd.Series], claims: Sequence[Claim]
) -> list[Markup]:
    facts = {
        "checkpoint": f"{row['checkpoint']} ({row['family']}), weights sha256 {_or_dash(row['weights_sha256'])}",
        "licence": row["licence"],
        "sampler": f"{row['sampler']} {_compact(row['settings'])}",
        "options": _compact(row["options"]),
        "samples": f"{row['num_samples']:,}, seed {row['seed']}, batch {row['batch_size']}, {row['dtype']}",
        "not finite": row["failures"] or None,
        "noise shape": row["latent_shape"],
        "device": row["device"],
        "waived of the adapter contract": "; ".join(f"{k}: {why}" for k, why in (row["waived"] or {}).items()) or None,
        "timed": timing.described(data.rows[cell].cell) or None,
        "FLOPs per image": text.size(row["flops"], ("", "k", "M", "G", "T", "P"), 1000),
        "guide NFE": text.number(row["guide_nfe"]) if text.known(row["guide_nfe"]) and row["guide_nfe"] else None,
        "substeps without the network": text.number(row["substeps"]) if text.known(row["substeps"]) else None,
        "signed by": None if pd.isna(row["signed_by"]) else row["signed_by"],
        "cell": cell,
        "ranking": row["ranking"],
    }
    ranks = data.rows[cell].rank
    if ranks:
        parts = [f"{key} {value:.3f}" for key, value in ranks["utilities"].items()]
        facts["normalised"] = ", ".join(parts)
        facts["other composites"] = (
            f"geometric {text.number(ranks['geometric'])}, mean rank {text.number(ranks['mean_rank'])}"
        )
        facts["outside the bounds"] = ", ".join(ranks["outside"]) or None
    student = data.student(cell)
    if student is not None:
        facts["beside its teacher"] = students.sentence(student, cell, data.metrics[student.metric].short)
    for claim in claims:
        reasons = f"; not comparable: {'; '.join(claim.not_comparable)}" if claim.not_comparable else ""
        facts[f"published {claim.metric}"] = f"{claim.published:g} ({claim.source}){reasons}"
    listing = [[element("dt", key), element("dd", value)] for key, value in facts.items() if value]
    lines = [
        [
            data.metrics[key].title,
            text.with_interval(value["value"], value["low"], value["high"]),
            text.number(value.get("corrected")),
            value["n"],
            value["method"],
            f"{value['judge']} {_short(value.get('judge_digest'))}",
        ]
        for key in data.metrics
        if (value := values.get((cell, key))) is not None and not row["random_weights"]
    ]
    measured = plain_table(("metric", "value", "corrected", "n", "interval", "judge"), lines)
    return [
        element("p", "To repeat this row:"),
        command(row["command"]),
        element("div", element("dl", listing), measured, class_="pair"),
    ]


def budget_strip(data: Measurements, found: Sequence[Budget]) -> Markup:
    """Return the winner at each budget of evaluations, as the page shows it before any script runs."""
    cards = []
    for budget in found:
        value = data.value(cell_of(budget.winner), data.headline)
        assert value is not None
        tied = [str(row.cell["model"]) for row in budget.tied]
        cards.append(
            element(
                "li",
                element("span", f"≤ {text.budget(budget.level, 'nfe')}", class_="level"),
                element("b", kept(budget.winner.cell["model"])),
                element(
                    "span",
                    f"{data.metrics[data.headline].short} ",
                    text.with_interval(value["value"], value["low"], value["high"]),
                ),
                element("small", kept(f"tied: {text.listed(tied, 2)}" if tied else "no tie")),
            )
        )
    return element("ol", cards, class_="budgets", id="budgets")


def spaces_table(found: Sequence[Agreement]) -> Markup:
    """Return how alike every two feature spaces order the rows, and which model each has first."""
    lines = [
        [
            f"{pair.one.short}, {pair.other.short}",
            text.NOTHING if pair.tau is None else f"{pair.tau:+.2f}",
            pair.n,
            pair.first.cell["model"],
            pair.second.cell["model"],
            "agree" if not pair.disagree else "disagree" if pair.sure else "disagree, which may be luck",
        ]
        for pair in found
    ]
    headings = ("distances", "Kendall's tau-b", "settings", "first by the one", "first by the other", "leader")
    return plain_table(headings, lines)


def ranks_table(places: pd.DataFrame, first: set[tuple[str, str]]) -> Markup:
    """Return a heat table of places, models down and metrics across; bold where `first` holds (model, metric)."""
    last = max(1.0, float(places.max().max()) - 1)
    head = [element("td"), *(element("th", name, scope="col") for name in places.columns)]
    body = []
    for model, line in places.iterrows():
        fields = []
        for name, place in line.items():
            if pd.isna(place):
                fields.append(element("td", text.NOTHING))
                continue
            heat = f"--heat:{round(40 * (1 - (place - 1) / last))}%"
            shown = f"{place:g}"
            fields.append(element("td", element("b", shown) if (model, name) in first else shown, style=heat))
        body.append(element("tr", element("th", model, scope="row"), fields))
    table = element("table", element("thead", element("tr", head)), element("tbody", body), class_="heat", id="places")
    return element("div", table, class_="scroll", tabindex=0)


def claims_table(data: Measurements, claims: Sequence[Claim]) -> Markup:
    """Return published figures beside the measured ones, and what keeps them from being compared."""
    lines = [
        [
            data.fact(claim.cell_id, "marked"),
            data.rows[claim.cell_id].fact(claim.metric).short + f" {TRAINED} trained on" * claim.trained_on,
            f"{claim.published:g}",
            text.with_interval(claim.measured, claim.low, claim.high),
            numbers.difference(claim.difference, *_around(claim)),
            claim.source,
            "; ".join(claim.not_comparable) or "comparable",
        ]
        for claim in claims
    ]
    headings = ("setting", "metric", "published", "measured", "difference", "source", "not comparable because")
    return plain_table(headings, lines)


def published_only(data: Measurements) -> Markup:
    """Return the figures of systems with nothing to run, each greyed and named a claim."""
    found = data.published_only
    names = list(dict.fromkeys(name for figure in found for name in figure.metrics))
    headings = ("", "system", "steps", "NFE", "guidance", *(FACTS[name].short for name in names), "date", "source")
    lines = [
        [
            "claim",
            figure.title,
            text.plain(figure.steps),
            text.plain(figure.nfe),
            figure.guidance or text.NOTHING,
            *(f"{figure.metrics[name]:g}" if name in figure.metrics else text.NOTHING for name in names),
            figure.date or text.NOTHING,
            "; ".join(part for part in (figure.source, figure.note) if part),
        ]
        for figure in found
    ]
    return element("div", plain_table(headings, lines), class_="claims")


def _around(claim: Claim) -> tuple[float | None, float | None]:
    """Return the interval of a claim's difference: the measured row's, the published figure taken as exact."""
    half = claim.half_width
    return (None, None) if half is None else (claim.difference - half, claim.difference + half)


def grouped_reasons(rows: pd.DataFrame, first: str) -> Markup:
    """Return a table of reasons with the rows that share them: `rows` has `first`, reason and label."""
    groups = rows.assign(reason=rows["reason"].fillna("no reason recorded")).groupby([first, "reason"], sort=True)
    lines = [[key[0], key[1], text.listed(list(group["label"]), 8)] for key, group in groups]
    return plain_table((first, "reason", "settings"), lines)


def plain_table(headings: Sequence[str], lines: Sequence[Sequence[object]]) -> Markup:
    """Return a table inside its own scrolling box."""
    head = element("tr", [element("th", heading, scope="col") for heading in headings])
    body = [element("tr", [element("td", kept(place)) for place in line]) for line in lines]
    table = element("table", element("thead", head), element("tbody", body))
    return element("div", table, class_="scroll", tabindex=0)


def definitions(facts: dict[str, Any]) -> Markup:
    """Return a list of names and what they stand for; entries without a value are left out."""
    return element("dl", [[element("dt", key), element("dd", value)] for key, value in facts.items() if value])


def _compact(column: object) -> Markup:
    return escape(", ".join(f"{key}={value}" for key, value in decoded(column).items()))


def _or_dash(value: Any) -> str:
    return text.NOTHING if value is None or pd.isna(value) else str(value)


def _short(digest: object) -> str:
    return "" if not isinstance(digest, str) else digest[:12]
