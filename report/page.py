"""Assembly of the one HTML file: head, blocks, figures and data as JSON, one script, plotly.js inline."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from plotly.offline import get_plotlyjs

from report import choices, classes, findings, tables, text
from report.data import Measurements, cell_of, decoded, read_rankings, record
from report.markup import Markup, element, escape, kept, script_json
from report.samples import RealImages
from report.sections import Page, section
from results.budgets import Cost
from results.errors import BenchError, ReportError
from results.files import write_atomically
from results.leaderboard import ROUNDING
from results.licences import forbids_commercial_use
from results.names import versions
from results.ranking import INCOMPLETE

EXPORTED = (
    *(
        "cell_id",
        "model",
        "checkpoint",
        "family",
        "licence",
        "steps",
        "cfg",
        "sampler",
        "dtype",
        "nfe",
        "num_samples",
        "seed",
        "off_regime",
    ),
    *("images_per_second", "latency_seconds", "peak_memory", "parameters", "device", "command"),
)

SECTION = re.compile(r'<section id="([\w-]+)"[^>]*><p class="question">(.*?)</p>')
SORTABLE = (
    "steps",
    "cfg",
    "nfe",
    "evaluations",
    "seconds",
    "images_per_second",
    "latency_seconds",
    "peak_memory",
    "parameters",
)
TIMES: tuple[Cost, ...] = ("seconds", "latency_seconds")
INTERVALS = ("value", "low", "high", "rank_low", "rank_high")
SCRIPTS = ("load", "core", "charts", "board", "choose", "heads", "start")
"""The parts of the page's script, in order; they share one scope."""
TOOLBAR = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    "plotlyServerURL": "",
    "showSendToCloud": False,
    "showEditInChartStudio": False,
}
"""Plotly's configuration. Buttons are listed, so that a new version of Plotly adds none, such as one that uploads."""
PLAIN = 2_000_000
"""Characters of JSON from which on it is packed."""


def write(
    database: Path,
    output: Path,
    protocol: str | None,
    without_trained_on: Sequence[str] = (),
    real: RealImages | None = None,
) -> Path:
    """Read `database`, build the page and put it at `output` in one step. See `report.write_report`."""
    views = read_rankings(database, protocol, without_trained_on)
    try:
        write_atomically(output, build(*views, real=real).encode(), "--output")
    except BenchError as error:
        raise ReportError(str(error)) from error
    return output


def build(*views: Measurements, real: RealImages | None = None) -> str:
    """Return the whole page: the first of the rankings in full, the others ready to be shown in its place."""
    first, *others = [_view(data, views, real) for data in views]
    templates = [
        element("template", other, class_="view", data_ranking=data.number[:12])
        for data, other in zip(views[1:], others, strict=True)
    ]
    title = f"{views[0].protocol['title']}: few-step and multi-step generators compared"
    assets = files("report") / "assets"
    own = "\n".join((assets / f"{name}.js").read_text("utf-8") for name in SCRIPTS)
    scripts = [get_plotlyjs(), f'"use strict";\n(async () => {{\n{own}}})();']
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            element("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            element("title", title),
            f"<style>{(assets / 'page.css').read_text('utf-8')}</style>",
            "<noscript><style>[data-grid][hidden]{display:block}.chips,.plot{display:none}</style></noscript>",
            "</head>",
            "<body>",
            first,
            *templates,
            *(f"<script>{script}</script>" for script in scripts),  # last: the page is painted before they are read
            "</body>",
            "</html>",
            "",
        ]
    )


def _policy(scripts: Sequence[str]) -> str:
    """Return a policy under which the page runs these scripts alone and connects to nothing."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
        "connect-src 'none'; form-action 'none'; base-uri 'none'"
    )


def _view(data: Measurements, views: Sequence[Measurements], real: RealImages | None) -> Markup:
    """Return header, blocks and data of one ranking."""
    page = Page(data, len(views))
    blocks = [
        page.leaderboard(),
        choices.picker(page),
        _chips(page),
        *(
            page.curve(),
            page.students(),
            page.pareto(),
            page.speed(),
            page.guidance(),
            page.composite(),
            page.samples(),
        ),
        *(choices.heads(page, real), choices.wins(page), classes.per_class(page), page.stability(), page.convergence()),
        *(page.cost(), choices.rankings(views), page.published(), _provenance(data)),
    ]
    content = {**page.script_data, **_script_data(page), "first": views[0].number[:12], "ranking": data.number[:12]}
    return escape(
        [
            _head(data, views, [block for block in blocks if block]),
            element("main", blocks),
            _packed(content),
        ]
    )


def _packed(content: Mapping[str, Any]) -> Markup:
    written = script_json(content)
    if len(written) <= PLAIN:
        return Markup(f'<script type="application/json" class="view" id="page-data">{written}</script>')
    text_ = base64.b64encode(gzip.compress(written.encode(), mtime=0)).decode()
    return Markup(f'<script type="application/json" class="view" data-encoding="gzip">{text_}</script>')


def _head(data: Measurements, views: Sequence[Measurements], blocks: Sequence[Markup]) -> Markup:
    cells, protocol = data.cells, data.protocol
    last = data.runs.iloc[-1] if len(data.runs) else None
    reference = data.ranking["reference"] if data.ranking else None
    commits = sorted({str(commit)[:10] for commit in data.runs["code_commit"].dropna()})
    version = None if last is None else f"{last['code_version']} · {text.listed(commits)}".removesuffix(" · ")
    facts = {
        "protocol": f"{protocol['name']} · {protocol['digest'][:12]}",
        "images per setting": f"{int(cells['num_samples'].iloc[0]):,}",
        "seed": str(cells["seed"].iloc[0]),
        "reference": reference,
        "device": text.listed(sorted(set(cells["device"]))),
        "measured": text.moment(cells["finished"].max()),
        "version": version,
        "settings": _counts(data),
    }
    definitions = [element("div", element("dt", key), element("dd", value)) for key, value in facts.items() if value]
    downloads: Any = "with 'bench export metrics'"  # of very many rows the page would be half copies of them
    if not data.many:
        table = _exported(data)
        downloads = [
            _download("CSV", "leaderboard.csv", "text/csv", table.to_csv(index=False)),
            _download("JSON", "leaderboard.json", "application/json", table.to_json(orient="records")),
        ]
    warnings = [element("li", kept(warning)) for warning in alerts(data, views)]
    others = [name for name in data.other_protocols if name not in {view.protocol["name"] for view in views}]
    return element(
        "header",
        element(
            "div",
            element("h1", protocol["title"]),
            choices.switch(views, data.number),
            element("p", "Download ", downloads, class_="downloads"),
            class_="title",
        ),
        element("dl", definitions, class_="facts"),
        element("div", element("ul", warnings, class_="alerts"), role="alert") if warnings else None,
        element("p", f"Also in this database: {', '.join(others)} (choose with --protocol).", class_="note")
        if others
        else None,
        _sections(blocks),
    )


def _sections(blocks: Sequence[Markup]) -> Markup:
    """Return the links to the blocks of the page."""
    found = [match for block in blocks if (match := SECTION.match(block))]
    links = [element("a", Markup(match[2]), href=f"#{match[1]}", data_section=match[1]) for match in found]
    return element("nav", links, class_="sections", aria_label="sections of the page")


def _counts(data: Measurements) -> str:
    parts = [f"{len(data.cells)} done"]
    parts += [f"{count} {status}" for status, count in data.unfinished["status"].value_counts().items()]
    return ", ".join(parts)


def alerts(data: Measurements, views: Sequence[Measurements] = ()) -> list[str]:
    """Return what a reader must know before believing the page: failures, unfinished runs, dirty code, mixed rows."""
    found = []
    failed = data.unfinished[data.unfinished["status"] == "failed"]
    if len(failed):
        found.append(
            f"{text.counted(len(failed), 'row')} failed: {text.listed(list(failed['label']))} (reasons at the end)."
        )
    broken = data.cells[data.cells["failures"] > 0]
    if len(broken):
        found.append(f"{int(broken['failures'].sum()):,} images in {text.counted(len(broken), 'row')} were not finite.")
    runs = data.runs
    open_runs = runs[runs["finished"].isna()]
    if len(open_runs):
        found.append(f"{text.counted(len(open_runs), 'run')} did not finish: rows may be missing.")
    if runs["code_dirty"].fillna(False).astype(bool).any():
        found.append("Measured with uncommitted changes in the code.")
    for column, noun in (("code_version", "versions of the code"), ("code_commit", "commits"), ("device", "devices")):
        different = runs[column].dropna().nunique()
        if different > 1:
            found.append(f"Mixed: measured by {different} {noun}.")
    note = data.ranking["note"] if data.ranking else None
    if note and note != INCOMPLETE:
        found.append(f"No MMHM: {note}.")
    shown = {view.number for view in views}
    left = int((~data.elsewhere["ranking"].isin(shown)).sum())
    if left:
        found.append(
            f"{text.counted(left, 'row')} with another sample count, seed or reference left out: they are never ranked "
            "with these."
        )
    if data.left_out:
        found.append(data.left_out)
    found += [f"{line}." for line in versions(list(data.rows.values()))]
    speed = int(data.cells["random_weights"].sum())
    if speed:
        found.append(f"{text.counted(speed, 'row')} with random weights: for speed only, not ranked.")
    return found


def _exported(data: Measurements) -> pd.DataFrame:
    table = data.cells.reset_index()[list(EXPORTED)]
    table["trained_on"] = [", ".join(data.rows[cell].trained_on) for cell in table["cell_id"]]
    for key in data.metrics:
        values = data.values[data.values["metric"] == key].set_index("cell_id")
        for column, suffix in (
            ("value", ""),
            ("low", "_low"),
            ("high", "_high"),
            ("rank_low", "_rank_low"),
            ("rank_high", "_rank_high"),
        ):
            table[key + suffix] = table["cell_id"].map(pd.to_numeric(values[column]))
    return table


def _download(title: str, name: str, kind: str, content: str) -> Markup:
    encoded = base64.b64encode(content.encode()).decode()
    return element("a", title, href=f"data:{kind};base64,{encoded}", download=name)


def _chips(page: Page) -> Markup:
    chips = [
        element(
            "button",
            element("span", class_=f"dot {style['symbol']}", style=f"background:{style['colour']}"),
            model,
            type="button",
            data_model=model,
            aria_pressed="true",
        )
        for model, style in page.styles.items()
    ]
    return element("div", chips, class_="chips", role="group", aria_label="models shown in the figures")


def _script_data(page: Page) -> dict[str, Any]:
    data = page.data
    cells: dict[str, Any] = {}
    written = tables.lines_written(data, page.best)
    for own in data.cells.reset_index().to_dict("records"):
        row: dict[str, Any] = {key: own[key] for key in ("model", "label", "marks", "family", "checkpoint", "device")}
        row |= dict(zip(SORTABLE, _cut(data, [own[key] for key in SORTABLE]), strict=True))
        row |= {"random_weights": bool(own["random_weights"]), "off_regime": bool(own["off_regime"]), "metrics": {}}
        row |= {"licence": own["licence"] if isinstance(own["licence"], str) else "unknown", "command": own["command"]}
        if own["cell_id"] not in written:
            row["badges"] = tables.badges(data, str(own["cell_id"]))
            spreads = {key: tables.time_spread(data, str(own["cell_id"]), key) for key in tables.TIMED}
            row |= {"spreads": spreads} if any(spreads.values()) else {}
        row["commercial"] = not forbids_commercial_use(row["licence"])
        row["prices"] = {cost: _cut(data, data.price(str(own["cell_id"]), cost)) for cost in TIMES}
        cells[str(own["cell_id"])] = row
    for value in data.values.to_dict("records"):
        amount, low, high, rank_low, rank_high = (None if pd.isna(value[key]) else value[key] for key in INTERVALS)
        width = None if low is None or high is None else high - low
        numbers = _cut(data, (amount, low, high), width) + _cut(data, (rank_low, rank_high))
        shown = [text.number(amount, low, high), text.spread(amount, low, high), text.rank(rank_low, rank_high)]
        marks = tables.marks_of_value(record(value))
        shown += marks if value["cell_id"] not in written and any(marks) else ()
        if not cells[value["cell_id"]]["random_weights"]:
            cells[value["cell_id"]]["metrics"][value["metric"]] = [*numbers, *shown]
    for key in data.composites:
        for ranked in data.by_composite(key):
            (amount,) = _cut(data, [ranked.value(key)])
            cells[cell_of(ranked)]["metrics"][key] = [amount, *[None] * 4, text.number(amount), "", text.NOTHING]
    strips = {key: {"nfe": _strip(data, key, "nfe"), "seconds": _strip(data, key, "seconds")} for key in data.metrics}
    return {
        "config": TOOLBAR,
        "headline": page.headline,
        "rounding": ROUNDING,
        "distance": data.distance,
        "metrics": {
            **{key: _metric(data, key) for key in data.metrics},
            **{key: _composite(data, key) for key in data.composites},
        },
        "unranked": _places(data, data.order("")),
        "affordable": {f"{level:g}": _places(data, data.affordable(level)) for level in page.levels()},
        "compared": data.compared,
        "beaten": {key: _bits(data.compared, data.beaten(key)) for key in data.metrics},
        "columns": [
            *((column.key, "plain") for column in tables.BEFORE),
            *((key, "metric") for key in data.metrics),
            *((column.key, "seconds" if column.key == "latency_seconds" else "number") for column in tables.AFTER),
        ],
        "cells": cells,
        "budgets": strips,
        "figures": {name: json.loads(figure.to_json()) for name, figure in page.figures.items()},
        **{key: {} for key in ("heads", "wins", "real") if key not in page.script_data},
    }


def _metric(data: Measurements, key: str) -> dict[str, Any]:
    metric = data.metrics[key]
    answer, sureness = findings.leader(data, key)
    return {
        "short": metric.short,
        "higher": metric.higher_is_better,
        "bounded": metric.bounded,
        "leaders": data.leaders(key),
        "order": _places(data, data.order(key)),
        "count": len(data.contenders(key)),
        "answer": answer,
        "sureness": sureness,
    }


def _composite(data: Measurements, key: str) -> dict[str, Any]:
    fact, order = data.composites[key], [cell_of(row) for row in data.by_composite(key)]
    said = {"short": fact.short, "higher": fact.higher_is_better, "bounded": fact.bounded}
    return {**said, "order": _places(data, order), "count": len(order)}


def _places(data: Measurements, cells: Sequence[str]) -> list[int]:
    """Return the places of cells among those of the page."""
    at = {str(cell): place for place, cell in enumerate(data.cells.index)}
    return [at[cell] for cell in cells]


def _cut(data: Measurements, amounts: Sequence[float | None], width: float | None = None) -> list[float | None]:
    """Return numbers with the digits that the page works with: of very many rows to a hundredth of the interval."""
    digits = 9 if not data.many else 6
    if data.many and width:
        place = 2 - math.floor(math.log10(width))
        return [None if amount is None else round(amount, place) for amount in amounts]
    return [None if amount is None or pd.isna(amount) else float(f"{amount:.{digits}g}") for amount in amounts]


def _bits(cells: Sequence[str], beaten: Mapping[str, frozenset[str]]) -> list[str]:
    """Return who beats each of `cells` as hexadecimal digits: bit k % 4 of digit k // 4 is set where cell k does."""
    places = {cell: place for place, cell in enumerate(cells)}
    lines = []
    for cell in cells:
        digits = [0] * (-(-len(cells) // 4))
        for better in beaten.get(cell, frozenset()):
            digits[places[better] // 4] |= 1 << places[better] % 4
        lines.append("".join(f"{digit:x}" for digit in digits))
    return lines


def _strip(data: Measurements, metric: str, cost: Literal["nfe", "seconds"]) -> dict[str, Any]:
    """Return the budgets as the script takes them: a title, and level, winner, the models tied with it and
    the level as a number of each."""
    found = data.budgets(metric, cost)
    return {
        "title": findings.by_budget(data, metric, cost, found),
        "levels": [
            [
                text.budget(budget.level, cost),
                cell_of(budget.winner),
                text.listed([str(row.cell["model"]) for row in budget.tied], 2),
                budget.level,
            ]
            for budget in found
        ],
    }


def _provenance(data: Measurements) -> Markup:
    runs = [_run(row) for _, row in data.runs.iterrows()]
    judges: dict[tuple[str, str], set[str]] = {}
    for _, value in data.values[data.values["judge"] != ""].iterrows():
        judges.setdefault((value["judge"], value["judge_digest"]), set()).add(value["metric"])
    judged = [[judge, digest, ", ".join(sorted(names))] for (judge, digest), names in sorted(judges.items())]
    references = [
        [row["name"], f"{row['n']:,}", row["resize"], row["digest"], row["judge_digest"]]
        for _, row in data.references.iterrows()
    ]
    metrics = {metric.title: metric.definition for metric in data.metrics.values()}
    definition = json.dumps(decoded(data.protocol["definition"]), indent=1, ensure_ascii=False)
    parts = [element("h3", "Metrics"), tables.definitions(metrics)]
    if len(data.unfinished):
        parts += [element("h3", "Failed and unsupported rows"), tables.grouped_reasons(data.unfinished, "status")]
    if len(data.skipped):
        skipped = data.skipped.assign(label=data.skipped["cell_id"].map(data.cells["label"]))
        parts += [element("h3", "Metrics that could not be computed"), tables.grouped_reasons(skipped, "metric")]
    headings = ("run", "started", "finished", "command", "version", "commit", "device", "system", "packages")
    parts += [element("h3", "Runs"), tables.plain_table(headings, runs)]
    if judged:
        parts += [element("h3", "Judges"), tables.plain_table(("judge", "digest", "metrics"), judged)]
    if references:
        parts += [
            element("h3", "References"),
            tables.plain_table(("name", "images", "resize", "digest", "judge digest"), references),
        ]
    parts += [
        element("h3", "Protocol"),
        tables.definitions({"name": data.protocol["name"], "digest": data.protocol["digest"]}),
        element("details", element("summary", "definition"), element("pre", definition, tabindex=0)),
    ]
    return section("provenance", "Provenance", "How these numbers were made", escape(parts))


def _run(row: pd.Series) -> list[object]:
    commit = "" if pd.isna(row["code_commit"]) else str(row["code_commit"])[:12]
    return [
        row["run_id"],
        element("span", text.moment(row["started"]), class_="kept"),
        element("span", text.moment(row["finished"]), class_="kept"),
        element("code", row["command"]),
        row["code_version"],
        f"{commit} (dirty)" if pd.notna(row["code_dirty"]) and row["code_dirty"] else commit,
        f"{row['device']}, {text.counted(int(row['threads']), 'thread')}",
        f"Python {row['python']}, {row['platform']}",
        element("div", ", ".join(f"{key} {value}" for key, value in decoded(row["packages"]).items()), class_="broad"),
    ]
