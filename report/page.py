"""Assembly of the one HTML file: head, blocks, figures and data as JSON, one script, plotly.js inline."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from plotly.offline import get_plotlyjs

from report import findings, tables, text
from report.data import Measurements, cell_of, decoded, read_measurements
from report.markup import Markup, element, escape, script_json
from report.sections import Page
from results.errors import BenchError, ReportError
from results.files import write_atomically
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
INTERVALS = ("value", "low", "high", "rank_low", "rank_high")


def write(database: Path, output: Path, protocol: str | None, without_trained_on: Sequence[str] = ()) -> Path:
    """Read `database`, build the page and put it at `output` in one step. See `report.write_report`."""
    content = build(read_measurements(database, protocol, without_trained_on))
    try:
        write_atomically(output, content.encode(), "--output")
    except BenchError as error:
        raise ReportError(str(error)) from error
    return output


def build(data: Measurements) -> str:
    """Return the whole page."""
    page = Page(data)
    blocks = [
        *(page.leaderboard(), _chips(page), page.curve(), page.students(), page.pareto(), page.guidance()),
        *(
            page.composite(),
            page.samples(),
            page.per_class(),
            page.stability(),
            page.cost(),
            page.published(),
            _provenance(data),
        ),
    ]
    title = f"{data.protocol['title']}: few-step and multi-step generators compared"
    content = {**page.script_data, **_script_data(page)}
    assets = files("report") / "assets"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            element("title", title),
            f"<style>{(assets / 'page.css').read_text('utf-8')}</style>",
            "<noscript><style>[data-grid][hidden]{display:block}.chips,.plot{display:none}</style></noscript>",
            f"<script>{get_plotlyjs()}</script>",
            "</head>",
            "<body>",
            _head(data),
            element("main", blocks),
            f'<script type="application/json" id="page-data">{script_json(content)}</script>',
            f"<script>{(assets / 'page.js').read_text('utf-8')}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _head(data: Measurements) -> Markup:
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
    table = _exported(data)
    downloads = [
        _download("CSV", "leaderboard.csv", "text/csv", table.to_csv(index=False)),
        _download("JSON", "leaderboard.json", "application/json", table.to_json(orient="records")),
    ]
    warnings = [element("li", warning) for warning in alerts(data)]
    others = (
        f"Also in this database: {', '.join(data.other_protocols)} (choose with --protocol)."
        if data.other_protocols
        else None
    )
    return element(
        "header",
        element(
            "div",
            element("h1", protocol["title"]),
            element("p", "Download ", downloads, class_="downloads"),
            class_="title",
        ),
        element("dl", definitions, class_="facts"),
        element("ul", warnings, class_="alerts", role="alert") if warnings else None,
        element("p", others, class_="note") if others else None,
    )


def _counts(data: Measurements) -> str:
    parts = [f"{len(data.cells)} done"]
    parts += [f"{count} {status}" for status, count in data.unfinished["status"].value_counts().items()]
    return ", ".join(parts)


def alerts(data: Measurements) -> list[str]:
    """Return what a reader must know before believing the page: failures, unfinished runs, dirty code, mixed rows."""
    found = []
    failed = data.unfinished[data.unfinished["status"] == "failed"]
    if len(failed):
        found.append(
            f"{text.plural(len(failed), 'row')} failed: {text.listed(list(failed['label']))} (reasons at the end)."
        )
    broken = data.cells[data.cells["failures"] > 0]
    if len(broken):
        found.append(f"{int(broken['failures'].sum()):,} images in {text.plural(len(broken), 'row')} were not finite.")
    runs = data.runs
    open_runs = runs[runs["finished"].isna()]
    if len(open_runs):
        found.append(f"{text.plural(len(open_runs), 'run')} did not finish: rows may be missing.")
    if runs["code_dirty"].fillna(False).astype(bool).any():
        found.append("Measured with uncommitted changes in the code.")
    for column, noun in (("code_version", "versions of the code"), ("code_commit", "commits"), ("device", "devices")):
        different = runs[column].dropna().nunique()
        if different > 1:
            found.append(f"Mixed: measured by {different} {noun}.")
    note = data.ranking["note"] if data.ranking else None
    if note and note != INCOMPLETE:
        found.append(f"No MMHM: {note}.")
    if len(data.elsewhere):
        found.append(
            f"{text.plural(len(data.elsewhere), 'row')} with another sample count, seed or reference left out: they "
            "are never ranked with these."
        )
    if data.left_out:
        found.append(data.left_out)
    speed = int(data.cells["random_weights"].sum())
    if speed:
        found.append(f"{text.plural(speed, 'row')} with random weights: for speed only, not ranked.")
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
    for cell, row in data.cells.iterrows():
        own: dict[str, Any] = {key: row[key] for key in ("model", "label", "family", "checkpoint")}
        own |= {key: None if pd.isna(row[key]) else float(row[key]) for key in SORTABLE}
        own |= {"random_weights": bool(row["random_weights"]), "off_regime": bool(row["off_regime"]), "metrics": {}}
        cells[str(cell)] = own
    for _, value in data.values.iterrows():
        numbers = [None if pd.isna(value[key]) else float(value[key]) for key in INTERVALS]
        amount, low, high, rank_low, rank_high = numbers
        shown = [text.number(amount, low, high), text.spread(amount, low, high), text.rank(rank_low, rank_high)]
        if not cells[value["cell_id"]]["random_weights"]:
            cells[value["cell_id"]]["metrics"][value["metric"]] = [*numbers, *shown]
    strips = {key: {"nfe": _strip(data, key, "nfe"), "seconds": _strip(data, key, "seconds")} for key in data.metrics}
    return {
        "headline": page.headline,
        "metrics": {
            key: {
                "short": metric.short,
                "higher": metric.higher_is_better,
                "leaders": data.leaders(key),
                "order": data.order(key),
                "count": len(data.contenders(key)),
            }
            for key, metric in data.metrics.items()
        },
        "unranked": data.order(""),
        "affordable": {f"{level:g}": data.affordable(level) for level in page.levels()},
        "cells": cells,
        "budgets": strips,
        "figures": {name: json.loads(figure.to_json()) for name, figure in page.figures.items()},
    }


def _strip(data: Measurements, metric: str, cost: Literal["nfe", "seconds"]) -> dict[str, Any]:
    """Return the budgets as the script takes them: a title, and level, winner and the models tied with it of each."""
    found = data.budgets(metric, cost)
    return {
        "title": findings.by_budget(data, metric, cost, found),
        "levels": [
            [
                text.budget(budget.level, cost),
                cell_of(budget.winner),
                text.listed([str(row.cell["model"]) for row in budget.tied], 2),
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
        element("details", element("summary", "definition"), element("pre", definition)),
    ]
    return element(
        "section",
        element("p", "Provenance", class_="question"),
        element("h2", "How these numbers were made"),
        escape(parts),
        id="provenance",
    )


def _run(row: pd.Series) -> list[object]:
    commit = "" if pd.isna(row["code_commit"]) else str(row["code_commit"])[:12]
    return [
        row["run_id"],
        text.moment(row["started"]),
        text.moment(row["finished"]),
        element("code", row["command"]),
        row["code_version"],
        f"{commit} (dirty)" if pd.notna(row["code_dirty"]) and row["code_dirty"] else commit,
        f"{row['device']}, {text.plural(int(row['threads']), 'thread')}",
        f"Python {row['python']}, {row['platform']}",
        ", ".join(f"{key} {value}" for key, value in decoded(row["packages"]).items()),
    ]
