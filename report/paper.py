"""Figures and a table for papers: SVG and PDF by Matplotlib, and LaTeX with intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import figures, findings
from report.data import Measurements, read_measurements
from report.text import known
from results import numbers
from results.errors import BenchError, ReportError
from results.facts import MetricFact
from results.files import write_atomically

WIDTH = 5.5
"""Inches: the text of a one-column page."""
STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "fewstep-bench",  # the same data give the same file
}
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}


def write_figures(
    database: Path, directory: Path, protocol: str | None = None, without_trained_on: Sequence[str] = ()
) -> list[Path]:
    """Write figures and table of the ranking shown first; see `report.write_figures`."""
    data = read_measurements(database, protocol, without_trained_on)
    if not data.headline:
        raise ReportError("no quality was measured: there is nothing to draw; run without --random-weights")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ReportError("figures need Matplotlib: pip install 'fewstep-bench[figures]'") from error
    styles = figures.palette(data.models, sorted(set(data.cells["model"])))
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"{directory} cannot be written: {error.strerror or error}") from error
    with mpl.rc_context(STYLE):
        drawn = {"quality-against-cost": _curve(Figure, data, styles), "ranks": _ranks(Figure, data, styles)}
        for name, figure in drawn.items():
            if figure is not None:
                written += [_save(figure, directory / f"{name}.{kind}") for kind in ("svg", "pdf")]
    table = directory / "leaderboard.tex"
    _write(table, latex(data).encode())
    return [*written, table]


def _save(figure: Any, path: Path) -> Path:
    import io

    file = io.BytesIO()
    stamp: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None}
    figure.savefig(file, format=path.suffix[1:], bbox_inches="tight", metadata=stamp)
    _write(path, file.getvalue())
    return path


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content, "--figures")
    except BenchError as error:
        raise ReportError(str(error)) from error


def _curve(figure_type: Any, data: Measurements, styles: dict[str, dict[str, str]]) -> Any:
    """Draw the distance of each model's best setting at each step count against network evaluations."""
    metric = data.metrics[data.distance]
    rows = data.with_metric(metric.name).dropna(subset=["nfe"])
    rows = rows.loc[data.best(metric.name, ("model", "steps"), rows.index)]
    if rows.empty:
        return None
    figure = figure_type(figsize=(WIDTH, 3.2))
    axes = figure.subplots()
    for model, line in rows.groupby("model", sort=True):
        line = line.sort_values("nfe")
        below, above = line["value"] - line["low"].astype(float), line["high"].astype(float) - line["value"]
        axes.errorbar(
            line["nfe"],
            line["value"],
            yerr=[below.clip(lower=0), above.clip(lower=0)],
            label=str(model),
            color=styles[str(model)]["colour"],
            linestyle="-" if styles[str(model)]["dash"] == "solid" else ":",
            marker="o" if styles[str(model)]["symbol"] == "circle" else "s",
            markersize=3,
            linewidth=1,
            elinewidth=0.6,
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if figures.spans(rows["value"], metric):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(figures.AXES["nfe"])
    axes.set_ylabel(figures.axis_title(metric))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _ranks(figure_type: Any, data: Measurements, styles: dict[str, dict[str, str]]) -> Any:
    """Draw the 95% rank set of each model's best setting."""
    rows = data.with_metric(data.headline).loc[data.best(data.headline)].dropna(subset=["rank_low"])
    if rows.empty:
        return None
    figure = figure_type(figsize=(WIDTH, 0.6 + 0.2 * len(rows)))
    axes = figure.subplots()
    places = data.places(data.headline)
    for height, (cell, row) in enumerate(rows[::-1].iterrows()):
        colour = styles[row["model"]]["colour"]
        axes.plot([row["rank_low"], row["rank_high"]], [height, height], color=colour, linewidth=1.4)
        axes.plot([places[str(cell)]], [height], "o", color=colour, markersize=4)
    axes.set_yticks(range(len(rows)), list(rows["label"])[::-1])
    axes.set_xlabel(f"rank by {data.metrics[data.headline].short} (95% rank sets)")
    axes.grid(axis="x", linewidth=0.3)
    return figure


def latex(data: Measurements) -> str:
    """Return each model's best setting as a LaTeX table (booktabs), best first, intervals in every field."""
    shown = list(data.metrics.values())
    leaders = {fact.name: set(data.leaders(fact.name)) for fact in shown}
    arrows = [f"{_tex(fact.short)} $\\{'uparrow' if fact.higher_is_better else 'downarrow'}$" for fact in shown]
    lines = []
    for cell in data.best(data.headline):
        row = data.cells.loc[cell]
        settings = [f"{row[column]:g}" if known(row[column]) else "--" for column in ("steps", "nfe", "cfg")]
        fields = [_field(data, cell, fact, cell in leaders[fact.name]) for fact in shown]
        lines.append(" & ".join([_tex(str(row["model"])), *settings, *fields]) + r" \\")
    answer, sureness = findings.leader(data, data.headline)
    short = data.metrics[data.headline].short
    marked = any(r"\,\#" in line for line in lines)
    caption = _tex(
        f"{answer}. {sureness} Each model's best setting by {short} on {data.title}; 95% intervals; bold: may be the "
        "best setting of the column." + " #: trained on the features that the metric reads." * marked
    )
    return "\n".join(
        [
            "% needs \\usepackage{booktabs,graphicx}",
            r"\begin{table}",
            f"\\caption{{{caption}}}",
            "\\resizebox{\\textwidth}{!}{%",
            f"\\begin{{tabular}}{{l{'r' * (3 + len(shown))}}}",
            r"\toprule",
            " & ".join(["model", "steps", "NFE", "cfg", *arrows]) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _field(data: Measurements, cell: str, fact: MetricFact, may_be_best: bool) -> str:
    value = data.rows[cell].measured(fact.name)
    if value is None or not known(value.value):
        return "--"
    shown = numbers.number(value.value, value.low, value.high)
    interval = numbers.spread(value.value, value.low, value.high)
    if interval.startswith("±"):
        interval = f"\\pm {interval[2:]}"
    elif interval:
        low, high = interval.split(" to ")
        interval = f"\\;[{low}, {high}]"
    number = f"\\mathbf{{{shown}}}" if may_be_best else shown
    thousands = re.sub(r"(?<=\d),(?=\d)", "{,}", f"${number} {interval}$")  # TeX sets a space after a bare comma
    return thousands.replace(" $", "$") + r"\,\#" * value.trained_on


def _tex(text: str) -> str:
    shown = "".join(SPECIAL.get(character, character) for character in text)
    return shown.replace("±", r"$\pm$").replace("\N{NO-BREAK SPACE}", "~")
