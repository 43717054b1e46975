"""Plotly figures. Each function takes frames and returns a figure; colours of the page's theme are set by page.js.

Names come from the database and Plotly reads a little HTML in every string, so each name passes through `label`.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from report.data import record
from report.text import in_lines, number, rank, seconds, shortened, with_interval
from results.convergence import FEWEST, MOST, Convergence
from results.facts import MetricFact
from results.rows import Value
from results.statistics import share_difference
from results.teachers import setting_of

# Okabe and Ito's colours (black left out, yellow darkened: both vanish on one of the two backgrounds), then five more.
COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#A89A00"),
    *("#7B5CC4", "#8C8C8C", "#A0522D", "#00A6A0", "#C2185B"),
)
FEW_STEPS = 8
AXES = {"nfe": "network evaluations per image (NFE)", "steps": "sampler steps", "seconds": "seconds per image"}
PALE = 0.35
SPAN = 5
"""Ratio of the largest to the smallest value from which on an axis is logarithmic."""
NEUTRAL = "#808080"
FAINT = "rgba(128,128,128,0.5)"


def label(name: object, most: int = 60) -> str:
    """Return a name as Plotly shows it literally."""
    return html.escape(shortened(str(name), most), quote=False)


def row_label(name: object) -> str:
    """Return a row's name beside an axis, in two lines if it is long: its setting is not cut off."""
    return "<br>".join(label(line, 34) for line in in_lines(str(name), 34))


def palette(models: pd.DataFrame, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Give each model a colour, a symbol (circle: made for few steps, square: for many) and a dash beyond 12 models."""
    styles = {}
    for position, name in enumerate(sorted(names)):
        few = name in models.index and record(models.loc[name])["natural_steps"] <= FEW_STEPS
        styles[name] = {
            "colour": COLOURS[position % len(COLOURS)],
            "symbol": "circle" if few else "square",
            "dash": "solid" if position < len(COLOURS) else "dot",
        }
    return styles


def steps_curve(
    rows: pd.DataFrame, metric: MetricFact, styles: Mapping[str, dict[str, str]], axis: str = "nfe"
) -> go.Figure:
    """Draw the metric against cost, a line for each model and variant; hollow = outside the trained step counts.

    `rows`: one per cell, with model, variant, label, steps, nfe, seconds, off_regime, value, low, high. Each trace
    lists its cells in `meta`, so that the page can redraw it with another metric or axis.
    """
    figure = go.Figure()
    order = rows.sort_values("value", ascending=not metric.higher_is_better).drop_duplicates("model")
    leading = dict(zip(order["model"], order["variant"], strict=True))
    for (model, variant), line in rows.dropna(subset=["steps"]).groupby(["model", "variant"], sort=True):
        line = line.sort_values(["steps", axis])
        style = styles[str(model)]
        main = variant == leading[str(model)]
        figure.add_scatter(
            x=numbers(line[axis]),
            y=numbers(line["value"]),
            error_y=_error_bars(line),
            mode="lines+markers",
            name=label(f"{model} {variant}".strip()),
            meta={"model": model, "cells": list(line.index)},
            opacity=1 if main else 0.5,
            line={"color": style["colour"], "dash": style["dash"] if main else "dot", "width": 2 if main else 1},
            marker={
                "size": 9 if main else 7,
                "color": style["colour"],
                "line": {"width": 1.5, "color": style["colour"]},
                "symbol": [style["symbol"] + ("-open" if off else "") for off in line["off_regime"]],
            },
            hovertext=[_hover(row, metric) for _, row in line.iterrows()],
            hoverinfo="text",
        )
    drawn = rows.dropna(subset=["steps", axis])["value"]
    axes(figure, AXES[axis], axis_title(metric), log_x=True, log_y=spans(drawn, metric))
    return figure


def pareto(
    rows: pd.DataFrame,
    metric: MetricFact,
    styles: Mapping[str, dict[str, str]],
    front: Sequence[str],
    cost: str = "latency_seconds",
) -> go.Figure:
    """Draw the metric against time: the stepped `front` of rows that nothing beats, the dominated ones pale."""
    rows = rows.dropna(subset=[cost])
    figure = go.Figure()
    edge = rows.loc[list(front)]
    places = {cell: ("top center", "bottom center")[position % 2] for position, cell in enumerate(front)}
    figure.add_scatter(
        x=numbers(edge[cost]),
        y=numbers(edge["value"]),
        mode="lines",
        name="front",
        line={"shape": "hv", "color": NEUTRAL, "width": 1.5},
        hoverinfo="skip",
    )
    for model, group in rows.groupby("model", sort=True):
        style = styles[str(model)]
        on_front = group.index.isin(front)
        figure.add_scatter(
            x=numbers(group[cost]),
            y=numbers(group["value"]),
            mode="markers+text",
            name=label(model),
            meta={"model": model, "cells": list(group.index)},
            text=[_steps(row) if on else "" for on, (_, row) in zip(on_front, group.iterrows(), strict=True)],
            textposition=[places.get(cell, "top center") for cell in group.index],
            marker={
                "size": [12 if on else 8 for on in on_front],
                "line": {"width": 0},
                "color": style["colour"],
                "symbol": style["symbol"],
                "opacity": [1 if on else PALE for on in on_front],
            },
            hovertext=[
                _hover(row, metric) + ("" if cost == "evaluations" else f"<br>{seconds(row[cost])}")
                for _, row in group.iterrows()
            ],
            hoverinfo="text",
        )
    titles = {"latency_seconds": "seconds for one image, batch 1", "evaluations": AXES["nfe"]}
    title = titles.get(cost, AXES["seconds"])
    axes(figure, title, axis_title(metric), log_x=True, log_y=spans(rows["value"], metric))
    return figure


def guidance_path(
    rows: pd.DataFrame, across: MetricFact, up: MetricFact, styles: Mapping[str, dict[str, str]], chosen: Sequence[str]
) -> go.Figure:
    """Draw the path of each swept model through two metrics as guidance grows; a star marks the chosen setting.

    `rows` has the columns of the cells and `x`, `x_low`, `x_high`, `value`, `low`, `high`.
    """
    figure = go.Figure()
    for (model, steps), path in rows.groupby(["model", "steps"], sort=True):
        path = path.sort_values("cfg")
        style = styles[str(model)]
        figure.add_scatter(
            x=numbers(path["x"]),
            y=numbers(path["value"]),
            error_x=_error_bars(path, "x", "x_low", "x_high"),
            error_y=_error_bars(path),
            mode="lines+markers+text",
            name=label(f"{model}, {steps:g} steps"),
            meta={"model": model, "cells": list(path.index)},
            text=[f"{path['cfg'].iloc[0]:g} ({steps:g} steps)", *(f"{value:g}" for value in path["cfg"][1:])],
            textposition="top right",
            line={"color": style["colour"], "width": 1.5},
            marker={
                "size": [16 if cell in chosen else 8 for cell in path.index],
                "line": {"width": 0},
                "symbol": ["star" if cell in chosen else style["symbol"] for cell in path.index],
                "color": style["colour"],
            },
            hovertext=[
                f"{_hover(row, up)}<br>{across.short} {with_interval(row['x'], row['x_low'], row['x_high'])}"
                for _, row in path.iterrows()
            ],
            hoverinfo="text",
        )
    axes(figure, axis_title(across), axis_title(up), log_y=spans(rows["value"], up))
    return figure


def composite_heatmap(rows: pd.DataFrame, down: str, letters: Mapping[str, str]) -> go.Figure:
    """Draw the composite over steps (across) and `down` ("model" or "cfg"), with the letter of the weakest metric.

    `rows`: one per field, with steps, `down`, value, low, high and `utilities` (metric -> [0, 1]).
    """
    rows = rows.dropna(subset=["steps"])
    across = sorted(rows["steps"].unique())
    lines = sorted(rows[down].unique(), reverse=True)
    fields = {(row[down], row["steps"]): row for _, row in rows.iterrows()}
    shade, text, hover = [], [], []
    for line in lines:
        present = [fields.get((line, steps)) for steps in across]
        shade.append([None if row is None else float(row["value"]) for row in present])
        text.append(
            ["" if row is None else f"{row['value']:.2f} {weakest(row['utilities'], letters)}" for row in present]
        )
        hover.append(["" if row is None else _utilities(row) for row in present])
    names = [label(line, 22) if down == "model" else f"{line:g}" for line in lines]
    figure = go.Figure(
        go.Heatmap(
            z=shade,
            x=[f"{steps:g}" for steps in across],
            y=list(range(len(lines))),
            text=text,
            texttemplate="%{text}",
            hovertext=hover,
            hoverinfo="text",
            colorscale="Cividis",
            zmin=0,
            zmax=1,
            xgap=2,
            ygap=2,
            showscale=False,
        )
    )
    axes(figure, AXES["steps"], "guidance scale" if down == "cfg" else "")
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(tickvals=list(range(len(lines))), ticktext=names, showgrid=False)
    figure.update_layout(height=150 + 34 * len(lines), meta={"fixed": True})
    return figure


def correlation_matrix(correlation: Mapping[str, Mapping[str, float]], metrics: Mapping[str, MetricFact]) -> go.Figure:
    """Draw how the metrics move together over the ranked rows."""
    keys = [key for key in correlation if correlation[key]]
    names = [metrics[key].short if key in metrics else key for key in keys]
    grid = [[correlation[one].get(other) for other in keys] for one in keys]
    figure = go.Figure(
        go.Heatmap(
            z=grid,
            x=[label(name) for name in names],
            y=[label(name) for name in names],
            text=[["" if value is None else f"{value:.2f}" for value in line] for line in grid],
            texttemplate="%{text}",
            hovertemplate="%{y} and %{x}: %{z:.3f}<extra></extra>",
            colorscale="RdBu",
            zmin=-1,
            zmax=1,
            xgap=2,
            ygap=2,
            showscale=False,
        )
    )
    axes(figure, "", "")
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, autorange="reversed")
    figure.update_layout(height=150 + 42 * len(keys), meta={"fixed": True})
    return figure


def per_class_difference(one: pd.DataFrame, other: pd.DataFrame, metric: MetricFact) -> go.Figure:
    """Draw, class by class and sorted, how far a metric of one row is above that of another.

    Frames have label, class_name, value and n. Proportions (accuracy) get a 95% interval (Agresti and Caffo, 2000: one
    success and one failure added to each, so that 50 of 50 is not certainty); other metrics carry none per class.
    """
    both = one.merge(other, on=["label", "class_name"], suffixes=("", "_other")).dropna(subset=["value", "value_other"])
    both = both.assign(difference=both["value"] - both["value_other"]).sort_values(
        ["difference", "label"], ignore_index=True
    )
    proportion = metric.is_share
    error: Any = share_difference(both["value"], both["n"], both["value_other"], both["n_other"]) if proportion else []
    apart = both["difference"].abs() > (error if proportion else 0.0)
    figure = go.Figure(
        go.Scatter(
            x=numbers(both["difference"]),
            y=list(range(len(both))),
            mode="markers",
            marker={
                "size": 8,
                "color": NEUTRAL,
                "line": {"width": 1.5},
                "symbol": ["circle" if sure else "circle-open" for sure in apart],
            },
            error_x={"type": "data", "array": list(map(float, error)), "width": 0, "thickness": 1, "color": FAINT}
            if proportion
            else None,
            hovertext=[
                f"{label(row['class_name'])}<br>{number(row['value'])} against {number(row['value_other'])}"
                for _, row in both.iterrows()
            ],
            hoverinfo="text",
        )
    )
    side = "right" if metric.higher_is_better else "left"
    axes(figure, f"{metric.short}, first minus second<br>({side} of zero: the first is better)", "")
    few = len(both) <= 60
    figure.update_yaxes(
        tickvals=list(range(len(both))) if few else [],
        ticktext=[label(name, 22) for name in both["class_name"]] if few else [],
    )
    figure.update_xaxes(zeroline=True)
    figure.update_layout(height=max(300, 110 + (22 * len(both) if few else 500)), meta={"fixed": True})
    return figure


def rank_intervals(rows: pd.DataFrame, styles: Mapping[str, dict[str, str]]) -> go.Figure:
    """Draw each row's 95% rank set, its place by the value as it is, and its model's chance of being the best.

    `rows` has model, label, rank_low, rank_high, place, p_first, first-ranked row first.
    """
    rows = rows[::-1]
    middle = rows["place"].astype(float)
    chances = ["" if pd.isna(chance) or chance < 0.005 else f"  {chance:.0%}" for chance in rows["p_first"]]
    figure = go.Figure(
        go.Scatter(
            x=numbers(middle),
            y=list(range(len(rows))),
            mode="markers",
            marker={"size": 9, "color": [styles[model]["colour"] for model in rows["model"]]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": numbers(rows["rank_high"] - middle),
                "arrayminus": numbers(middle - rows["rank_low"]),
                "thickness": 2,
                "color": NEUTRAL,
            },
            hovertext=[
                f"{label(row['label'])}<br>rank {rank(row['rank_low'], row['rank_high'])}" for _, row in rows.iterrows()
            ],
            hoverinfo="text",
        )
    )
    figure.add_scatter(
        x=numbers(rows["rank_high"]),
        y=list(range(len(rows))),
        mode="text",
        text=chances,
        textposition="middle right",
        hoverinfo="skip",
        cliponaxis=False,
    )
    axes(figure, "rank", "")
    figure.update_xaxes(range=[0, 1.25 * float(rows["rank_high"].max()) + 1])
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=[row_label(name) for name in rows["label"]])
    figure.update_layout(height=110 + 30 * len(rows), meta={"fixed": True})
    return figure


def convergence(found: Sequence[Convergence], metric: MetricFact, styles: Mapping[str, dict[str, str]]) -> go.Figure:
    """Draw a metric against the number of images: dots as measured, dashed what the bias of order 1/N predicts."""
    figure = go.Figure()
    for line in found:
        model = str(line.row.cell["model"])
        style = styles[model]
        n = line.row.cell["num_samples"]
        grid = [n * FEWEST * (MOST / FEWEST) ** (step / 24) for step in range(25)]
        if line.limit is not None:
            figure.add_scatter(
                x=grid,
                y=[line.predicted(count) for count in grid],
                mode="lines",
                meta={"model": model},
                line={"color": style["colour"], "dash": "dash", "width": 1.2},
                hoverinfo="skip",
            )
        values = [value for _, value in line.points]
        figure.add_scatter(
            x=[count for count, _ in line.points],
            y=[value.value for value in values],
            error_y=error_bars(values),
            mode="markers",
            name=label(model),
            meta={"model": model},
            marker={"size": 9, "symbol": style["symbol"], "color": style["colour"], "line": {"width": 0}},
            hovertext=[
                f"{label(setting_of(line.row))}<br>{count:,} images<br>"
                + with_interval(value.value, value.low, value.high)
                for count, value in line.points
            ],
            hoverinfo="text",
        )
    shown = pd.Series([value.value for line in found for _, value in line.points], dtype=float)
    axes(figure, "images", axis_title(metric), log_x=True, log_y=spans(shown, metric))
    return figure


def sensitivity(changes: Mapping[str, int], most: int = 12) -> go.Figure:
    """Draw how many other rows change rank when one row is left out; the rows that matter most first."""
    changes = {name: count for name, count in changes.items() if count}
    rows = sorted(changes.items(), key=lambda item: (item[1], item[0]), reverse=True)[:most][::-1]
    figure = go.Figure(
        go.Bar(
            x=[count for _, count in rows],
            y=list(range(len(rows))),
            orientation="h",
            marker={"color": NEUTRAL},
            hovertemplate="%{x} ranks change<extra></extra>",
        )
    )
    axes(figure, "ranks that change without it", "")
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=[row_label(name) for name, _ in rows])
    figure.update_layout(height=110 + 24 * len(rows), meta={"fixed": True})
    return figure


def cost(rows: pd.DataFrame) -> go.Figure:
    """Draw where the time of 1,000 images goes. `rows` has label, num_samples and the three seconds columns."""
    rows = rows[::-1]
    figure = go.Figure()
    for column, name, colour in (  # shades of grey: colours are the models'
        ("network_seconds", "network", "#6b7680"),
        ("decode_seconds", "decoder", "#98a2ab"),
        ("judge_seconds", "judges", "#c3cad1"),
    ):
        figure.add_bar(
            x=numbers(1000 * rows[column].astype(float) / rows["num_samples"]),
            y=list(range(len(rows))),
            orientation="h",
            name=name,
            marker={"color": colour},
            hovertemplate=f"{name}: %{{x:.3g}} s<extra></extra>",
        )
    axes(figure, "seconds for 1,000 images", "")
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=[row_label(name) for name in rows["label"]])
    legend = {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0}
    legend["traceorder"] = "normal"
    figure.update_layout(
        barmode="stack", showlegend=True, legend=legend, height=130 + 30 * len(rows), meta={"fixed": True}
    )
    return figure


def spans(values: pd.Series, metric: MetricFact) -> bool:
    """Tell whether values are positive and spread so far that a log axis shows them better.

    A metric with a largest value stays linear: one bad row would squeeze the others into a line.
    """
    wide = len(values) and values.min() > 0 and values.max() / values.min() > SPAN
    return bool(wide and not metric.bounded)


def weakest(utilities: Mapping[str, float], letters: Mapping[str, str]) -> str:
    """Return the letter of the metric that holds the composite down."""
    return letters.get(min(utilities, key=lambda key: utilities[key]), "") if utilities else ""


def numbers(values: pd.Series) -> list[float | None]:
    """Return a column as plain numbers, None where unknown (Plotly leaves a gap)."""
    return [None if pd.isna(value) else float(value) for value in values]


def axes(figure: go.Figure, x: str, y: str, *, log_x: bool = False, log_y: bool = False) -> None:
    """Give a figure the page's layout and the titles and scales of its axes."""
    figure.update_layout(
        template="none",
        showlegend=False,
        height=440,
        margin={"l": 8, "r": 12, "t": 16, "b": 8},
        xaxis={"title": {"text": x}, "automargin": True, "zeroline": False},
        yaxis={"title": {"text": y}, "automargin": True, "zeroline": False},
    )
    for axis, logarithmic in ((figure.layout.xaxis, log_x), (figure.layout.yaxis, log_y)):
        if logarithmic:
            axis.type = "log"


def axis_title(metric: MetricFact) -> str:
    """Return the title of a metric's axis."""
    return f"{metric.short} ({'higher' if metric.higher_is_better else 'lower'} is better)"


def error_bars(values: Sequence[Value | None]) -> dict[str, Any]:
    """Return the bars from the ends of the intervals of values, drawn at the values; none where an end is not known."""
    ends = [(None,) * 3 if value is None else (value.value, value.low, value.high) for value in values]
    return _error_bars(pd.DataFrame(ends, columns=["value", "low", "high"], dtype=float))


def _error_bars(rows: pd.DataFrame, value: str = "value", low: str = "low", high: str = "high") -> dict[str, Any]:
    above, below = rows[high].astype(float) - rows[value], rows[value] - rows[low].astype(float)
    return {
        "type": "data",
        "symmetric": False,
        "array": numbers(above),
        "arrayminus": numbers(below),
        "thickness": 1,
        "width": 3,
    }


def _steps(row: pd.Series) -> str:
    return "" if pd.isna(row["steps"]) else f"{row['steps']:g}"


def _hover(row: pd.Series, metric: MetricFact) -> str:
    off = "<br>outside the step counts it was trained for" if row["off_regime"] else ""
    nfe = "" if pd.isna(row["nfe"]) else f"<br>{row['nfe']:g} NFE"
    return f"{label(row['label'])}{nfe}<br>{metric.short} {with_interval(row['value'], row['low'], row['high'])}{off}"


def _utilities(row: pd.Series) -> str:
    parts = [f"{label(key)}: {value:.2f}" for key, value in row["utilities"].items()]
    return "<br>".join([label(row["label"]), f"MMHM {with_interval(row['value'], row['low'], row['high'])}", *parts])
