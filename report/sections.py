"""The blocks of the page, each answering one question under a heading that states the finding."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from report import figures, findings, samples, speed, students, tables, text
from report.data import MOST_DRAWN, Measurements, cell_of
from report.markup import Markup, element, escape, kept
from results.budgets import Budget
from results.catalog import FACTS
from results.leaderboard import best_of_each
from results.marks import caveats
from results.rank_sets import method_of
from results.ranking import places_of
from results.rows import COMPOSITE

GUIDED_AGAINST = ("accuracy", "clip", "is", "recall")
"""What guidance is traded against, in the order of preference."""
MOST_SWEPT = 12
"""Models whose guidance paths are drawn where there are very many rows."""
MOST_NOTES = 12
"""Lines about marks, caveats and missing metrics under the leaderboard."""


class Page:
    """Collects the blocks of one page, its figures and the data its script works on."""

    def __init__(self, data: Measurements, share: int = 1) -> None:
        self.data = data
        self.share = share
        self.styles = figures.palette(data.models, sorted(set(data.cells["model"])))
        self.figures: dict[str, go.Figure] = {}
        self.script_data: dict[str, Any] = {}
        self.headline = data.headline
        self.best = data.best(data.headline) if data.headline else []

    def figure(self, name: str, drawn: go.Figure, caption: str) -> Markup:
        """Register a figure and return the place where the script draws it."""
        self.figures[name] = drawn
        height = f"height:{drawn.layout.height}px"
        plot = element("div", class_="plot", role="group", aria_label=caption, style=height)
        return element("figure", plot, element("figcaption", caption), data_figure=name)

    def leaderboard(self) -> Markup:
        """Which model, at which budget, and how sure are we?"""
        data = self.data
        colours = {model: style["colour"] for model, style in self.styles.items()}
        table = tables.leaderboard(data, self.best, data.claims, colours)
        controls = element(
            "div",
            element(
                "label",
                element("input", type="radio", name="view", id="view-best", checked=True, data_state=True),
                " best setting of each model",
            ),
            element(
                "label", element("input", type="radio", name="view", id="view-all", data_state=True), " all settings"
            ),
            element(
                "label",
                "at most ",
                select("budget", [("", "any"), *((f"{b:g}", f"{b:g}") for b in self.levels())]),
                " NFE",
            ),
            element(
                "label",
                element("span", "filter", class_="unseen"),
                element("input", type="search", id="filter", placeholder="filter models", data_state=True),
            ),
            class_="controls",
        )
        more = element(
            "p",
            element("span", id="rows-shown", role="status"),
            element("span", id="columns-hidden", class_="note", role="status"),
            element("button", id="rows-more", type="button", hidden=True),
        )
        if not self.headline:
            title = "Speed only: no quality was measured"
            return section("answer", "Leaderboard", title, controls, scroll(table, "board"), more)
        answer, sureness = findings.leader(data, self.headline)
        strip = data.budgets(self.headline)
        short = data.metrics[self.headline].short
        ranked = len(data.contenders(self.headline))
        note = element(
            "p",
            element("span", f"95% rank sets by {short} among {text.counted(ranked, 'row')}", id="rank-note"),
            "; shaded ranks are tied with the first. Small figures are 95% intervals. Click a heading to rank by it. "
            "The best setting of each model is picked on the samples it is scored on, which favours models with many "
            "settings.",
            class_="note",
        )
        return section(
            "answer",
            "Which model at which budget?",
            answer,
            element("p", kept(sureness), class_="lead", id="sureness"),
            self._budget_head(strip) if strip else None,
            tables.budget_strip(data, strip) if strip else None,
            controls,
            scroll(table, "board"),
            more,
            note,
            self._notes(),
        )

    def _notes(self) -> Markup | None:
        """What the marks of the rows mean, what else to know of them, and which metrics are missing and why."""
        data = self.data
        shown = [data.rows[cell] for cell in self.best]
        clip = data.ranking["clip"] if data.ranking else None
        lines = [*caveats(shown, clip), *data.missing]
        items = [element("li", kept(line)) for line in lines[:MOST_NOTES]]
        if len(lines) > MOST_NOTES:
            items.append(element("li", f"and {len(lines) - MOST_NOTES} more, in the details of the rows"))
        return element("ul", items, class_="note notes") if items else None

    def curve(self) -> Markup | None:
        """How does quality grow with cost?"""
        data = self.data
        metric = data.distance
        rows = data.drawn(data.with_metric(metric), metric) if metric else pd.DataFrame()
        if rows.empty or rows["nfe"].isna().all():
            return None
        drawn = figures.steps_curve(rows, data.metrics[metric], self.styles)
        controls = element(
            "div",
            element("label", "metric ", select("curve-metric", self._metric_options(), metric)),
            element("label", "against ", select("curve-axis", list(figures.AXES.items()), "nfe")),
            class_="controls",
        )
        caption = (
            "A line for each model; bars are 95% intervals. Circles: made for few steps; squares: for many; hollow: "
            "outside the step counts it was trained for; dotted: other guidance or sampler settings of the same model."
        )
        return section(
            "curve",
            "Quality against cost",
            findings.curve(data, metric),
            controls,
            self.figure("curve", drawn, caption),
        )

    def students(self) -> Markup | None:
        """How much of its teacher's quality does a student keep, and when does the teacher overtake it?"""
        data = self.data
        if not data.students:
            return None
        metric = data.metrics[data.students[0].metric]
        table = tables.plain_table(students.headings(metric.short), students.lines(data.students))
        parts = [table, element("p", students.NOTE, class_="note")]
        if any(student.teacher_line for student in data.students):
            drawn = students.figure(data.students, metric, self.styles)
            parts.insert(0, self.figure("students", drawn, students.CAPTION))
        return section("students", "Student and teacher", students.finding(data.students, metric.short), *parts)

    def pareto(self) -> Markup | None:
        """Which settings are on the Pareto front?"""
        data = self.data
        if not self.headline:
            return None
        metric = data.distance
        rows = data.drawn(data.with_metric(metric).dropna(subset=["evaluations"]), metric)
        if len(rows) < 2:
            return None
        device = str(data.ranked["device"].mode().iloc[0])
        self.script_data["device"] = device
        front = data.front(metric, "nfe", rows.index)
        drawn = figures.pareto(rows, data.metrics[metric], self.styles, front, "evaluations")
        costs = [
            ("nfe", "network evaluations"),
            ("latency_seconds", "latency of one image"),
            ("seconds", "seconds per image in batches"),
        ]
        controls = element(
            "div",
            element("label", "metric ", select("pareto-metric", self._metric_options(), metric)),
            element("label", "against ", select("pareto-axis", costs, "nfe")),
            class_="controls",
        )
        caption = (
            "No row that is shown beats those on the line; the others are pale. Labels: steps. Times are medians, of "
            f"rows measured on {device} only."
        )
        title = findings.front(rows, front, "evaluations", data.metrics[metric].short)
        return section("pareto", "The Pareto front", title, controls, self.figure("pareto", drawn, caption))

    def convergence(self) -> Markup | None:
        """How does the distance go with the number of images?"""
        data = self.data
        name = "fid" if "fid" in data.metrics else data.distance
        found = data.converging(name) if name else []
        several = any(len(line.points) > 1 for line in found)
        if not several and all(line.limit is None for line in found):
            return None
        metric = data.metrics[name]
        drawn = figures.convergence(found, metric, self.styles)
        caption = (
            "Each model's best setting: dots as measured, at every number of images in the database; dashed: what the "
            "bias of order 1/N, estimated from the blocks, predicts at other N. Where lines cross, N decides the order."
        )
        title = findings.converging(found, metric.short)
        return section("images", f"{metric.short} against N", title, self.figure("convergence", drawn, caption))

    def speed(self) -> Markup | None:
        """How fast are the architectures by themselves?"""
        found = self.data.speed
        if not found:
            return None
        table = tables.plain_table(speed.HEADINGS, speed.lines(found))
        note = element("p", speed.NOTE, class_="note")
        return section("speed", "Speed on random weights", speed.finding(found), table, note)

    def guidance(self) -> Markup | None:
        """What does guidance buy, and what does it cost?"""
        data = self.data
        up = data.distance
        across = [key for key in GUIDED_AGAINST if key in data.metrics and key != up]
        if not up or not across:
            return None
        rows = data.with_metric(up).dropna(subset=["cfg", "steps"])
        swept = rows.groupby(["model", "steps"])["cfg"].transform("nunique") > 2
        rows = rows[swept]
        if len(rows) > MOST_DRAWN:
            models = list(dict.fromkeys(rows.loc[data.best(up, ("model",), rows.index), "model"]))[:MOST_SWEPT]
            rows = rows[rows["model"].isin(models)].groupby(["model", "steps"]).filter(lambda path: len(path) > 2)
            first = rows.groupby("model")["steps"].transform("min")
            rows = rows[rows["steps"] == first]
        if rows.empty:
            return None
        chosen = data.best(up, ("model", "steps"), rows.index)
        paired = rows.join(_columns(data, across[0]), how="inner")
        drawn = figures.guidance_path(paired, data.metrics[across[0]], data.metrics[up], self.styles, chosen)
        options = [(key, data.metrics[key].short) for key in across]
        controls = element(
            "div", element("label", "against ", select("guidance-axis", options, across[0])), class_="controls"
        )
        short = data.metrics[up].short
        caption = f"Numbers along each path are guidance scales; the star is the setting with the best {short}."
        title = findings.guidance(data, rows, up, chosen)
        return section("guidance", "The price of guidance", title, controls, self.figure("guidance", drawn, caption))

    def composite(self) -> Markup | None:
        """Which metric holds each setting down, and do the metrics say different things?"""
        data = self.data
        if data.ranking is None or COMPOSITE not in data.metrics:
            return None
        rows = data.with_metric(COMPOSITE)
        rows["utilities"] = [data.rows[cell].rank["utilities"] for cell in rows.index]
        keys = [key for key in data.metrics if key in rows["utilities"].iloc[0]]
        names = {key: metric.short for key, metric in data.metrics.items()}
        letters = _letters({key: names.get(key, key) for key in keys})
        best = rows.loc[data.best(COMPOSITE, ("model", "steps"), rows.index)]
        bounds = ", ".join(
            f"{names.get(key, key)} {low:.4g} to {high:.4g}"
            for key in keys
            for low, high in [data.ranking["bounds"][key]]
        )
        key_text = ", ".join(f"{letter} = {names.get(key, key)}" for key, letter in letters.items())
        outside = sum(bool(row.rank["outside"]) for row in data.rows.values() if row.rank)
        source = data.ranking["bounds_source"]
        bounds_text = f"Bounds, {'taken from the rows themselves' if source == 'rows' else source}: {bounds}."
        if outside:
            how = "clipped" if data.ranking["clip"] else "not clipped"
            bounds_text += f" {text.counted(outside, 'row')} outside the bounds, {how}."
        caption = (
            f"MMHM of the best setting per model and step count; the letter is the weakest metric ({key_text}). "
            f"{bounds_text}"
        )
        maps = [self.figure("composite", figures.composite_heatmap(best, "model", letters), caption)]
        swept = rows[rows.groupby("model")["cfg"].transform("nunique") > 2]
        for position, (model, sweep) in enumerate(swept.groupby("model")):
            caption = f"MMHM of {model} over steps and guidance."
            best_fields = sweep.loc[data.best(COMPOSITE, ("cfg", "steps"), sweep.index)]
            maps.append(
                self.figure(
                    f"composite-guidance-{position}", figures.composite_heatmap(best_fields, "cfg", letters), caption
                )
            )
        matrix = {key: data.ranking["correlation"][key] for key in data.metrics if key in data.ranking["correlation"]}
        if any(text.known(matrix[one].get(other)) for one in matrix for other in matrix if one != other):
            finding = findings.correlation(matrix, names)
            caption = f"{finding}. Over the ranked rows; FID counts as lower is better, so + means agreement."
            maps.append(self.figure("correlation", figures.correlation_matrix(matrix, data.metrics), caption))
        title = findings.bottleneck(list(rows["utilities"]), names)
        return section("composite", "One number and its parts", title, element("div", maps, class_="figures"))

    def samples(self) -> Markup | None:
        """What do the images look like, from the same noise?"""
        data = self.data
        if data.thumbnails.empty:
            return None
        cells = data.cells[data.cells.index.isin(data.thumbnails["cell_id"])]
        rows = data.best(self.headline, ("model", "steps"), cells.index) if self.headline else []
        shown = cells.loc[rows] if rows else cells.drop_duplicates(["model", "steps"])
        grid = samples.grids(shown.sort_values("model"), data.thumbnails, self.share * (3 if data.many else 1))
        note = element(
            "p",
            "The first sample indices of the protocol, not selected; each model at its best setting for the step "
            "count.",
            class_="note",
        )
        return section(
            "samples",
            "The same noise, the same label",
            "What each model makes of the same starting point",
            grid,
            note,
        )

    def stability(self) -> Markup | None:
        """How much of the order is luck, and how much depends on the metric?"""
        data = self.data
        if len(self.best) < 2:
            return None
        leaders = data.leaders(self.headline)
        chosen = {*self.best[:24], *leaders[:12]}
        shown = data.with_metric(self.headline).loc[[cell for cell in data.order(self.headline) if cell in chosen]]
        ranks: list[Any] = [data.rows[str(cell)].rank if self.headline == COMPOSITE else {} for cell in shown.index]
        places_by_value = data.places(self.headline)
        rows = shown[["model", "marked", "rank_low", "rank_high"]].rename(columns={"marked": "label"})
        rows = rows.assign(
            place=[places_by_value[str(cell)] for cell in shown.index],
            p_first=[rank.get("p_first_model") for rank in ranks],
        )
        rows.loc[rows.duplicated("model"), "p_first"] = None  # the chance is the model's: said once
        parts = []
        if rows["rank_low"].notna().any():
            caption = (
                f"95% rank sets of each model's best setting and of those tied with the first, among "
                f"{text.counted(len(places_by_value), 'row')}{method_of(len(places_by_value))}: all bars contain "
                "the true ranks simultaneously with 95% confidence. Dots: places by the measured value."
            )
            if any(text.known(chance) for chance in rows["p_first"]):
                caption += " Percentages: probability that the model, with one of its settings, is truly the best."
            known = rows[rows["rank_low"].notna()]
            parts.append(self.figure("ranks", figures.rank_intervals(known, self.styles), caption))
        for said in (findings.reversed_by_bias(data), findings.heavy_tails(data)):
            if said:
                parts.append(element("p", said, class_="note"))
        if data.spaces:
            caption = "Do independent feature spaces order the settings alike (1: the same), and agree on the first?"
            parts.append(element("div", element("p", caption, class_="note"), tables.spaces_table(data.spaces)))
        changes = (data.ranking["sensitivity"] or {}) if data.ranking else {}
        changes = {data.fact(cell, "label"): int(count) for cell, count in changes.items() if cell in data.cells.index}
        if any(changes.values()):
            parts.append(self.figure("sensitivity", figures.sensitivity(changes), f"{findings.sensitive(changes)}."))
        elif changes:
            parts.append(element("p", f"{findings.sensitive(changes)}.", class_="note"))
        places, first = self._places()
        if places.shape[1] > 1:
            caption = (
                f"{findings.agreement(places)}. Place of each model's best setting by each metric, among models; the "
                "stronger the colour the better, bold: may be the best setting (95%)."
            )
            parts.append(element("div", element("p", caption, class_="note"), tables.ranks_table(places, first)))
        return section(
            "stability", "How stable is the order?", findings.stability(data), element("div", parts, class_="figures")
        )

    def cost(self) -> Markup | None:
        """Where does the time go?"""
        rows = self.data.cells.loc[self.best] if self.best else self.data.cells
        rows = rows[rows[["network_seconds", "decode_seconds", "judge_seconds"]].notna().any(axis=1)][:30]
        if rows.empty:
            return None
        drawn = figures.cost(rows)
        caption = "Seconds for 1,000 images in the network, the decoder and the judges, at each model's best setting."
        return section("cost", "Where the time goes", findings.time_spent(rows), self.figure("cost", drawn, caption))

    def published(self) -> Markup | None:
        """Do measured rows agree with what was published?"""
        found, parts = self.data.claims, []
        if found:
            note = "Published with each paper's own reference, sample count and code; equal only where those are equal."
            parts += [tables.claims_table(self.data, found), element("p", note, class_="note")]
        if self.data.published_only:
            note = "Claims of systems with nothing to run here: not measured, never ranked, the best of nothing."
            parts += [element("h3", "Claims"), element("p", note, class_="note"), tables.published_only(self.data)]
        if not parts:
            return None
        title = findings.claims(found) if found else "Nothing measured here was published for the same setting"
        return section("published", "Compared with the papers", title, *parts)

    def _budget_head(self, strip: list[Budget]) -> Markup:
        unit = element(
            "label", "budget of ", select("strip-cost", [("nfe", "evaluations"), ("seconds", "time")], "nfe")
        )
        title = element("h3", kept(findings.by_budget(self.data, self.headline, "nfe", strip)), id="budget-title")
        return element("div", title, element("div", unit, class_="controls"), class_="budget-head")

    def levels(self) -> list[float]:
        """Return the budgets of network evaluations that rows can be narrowed to."""
        if not self.headline:
            return []
        return [budget.level for budget in self.data.budgets(self.headline)]

    def _metric_options(self) -> list[tuple[str, str]]:
        return [(key, metric.short) for key, metric in self.data.metrics.items()]

    def _places(self) -> tuple[pd.DataFrame, set[tuple[str, str]]]:
        """The place of each model's best setting by every metric and composite, and where it may be the best one."""
        data = self.data
        composites = [fact for fact in FACTS.values() if fact.kind == "composite" and fact.name not in data.metrics]
        best: dict[str, pd.Series] = {}
        first: set[tuple[str, str]] = set()
        for fact in (*data.metrics.values(), *(fact for fact in composites if fact.name != "rank")):
            found = best_of_each(data.contenders(COMPOSITE if fact.kind == "composite" else fact.name), fact.name)
            if found:
                ranked = places_of([row.value(fact.name) for row in found], fact.sign)
                best[fact.short] = pd.Series(ranked, [row.cell["model"] for row in found])
            leaders = set(data.leaders(fact.name)) if fact.name in data.metrics else set()
            first |= {(row.cell["model"], fact.short) for row in found if cell_of(row) in leaders}
        places = pd.DataFrame(best)
        order = places.mean(axis=1).sort_values(kind="stable").index
        return places.loc[order], first


def _letters(names: dict[str, str]) -> dict[str, str]:
    """Give each metric its first letter, or its first two where another one has the same."""
    initials = [name[:1].upper() for name in names.values()]
    return {key: name[:1].upper() if initials.count(name[:1].upper()) == 1 else name[:2] for key, name in names.items()}


def _columns(data: Measurements, metric: str) -> pd.DataFrame:
    return data.with_metric(metric)[["value", "low", "high"]].rename(
        columns={"value": "x", "low": "x_low", "high": "x_high"}
    )


def scroll(content: Markup, kind: str = "") -> Markup:
    """Return content that is scrolled sideways by pointer or keyboard where the screen is narrow."""
    return element("div", content, class_=f"scroll {kind}".strip(), tabindex=0)


def select(name: str, options: list[tuple[str, str]], chosen: str = "") -> Markup:
    """Return a selector whose choice is part of the page's address."""
    parts = [element("option", title, value=value, selected=value == chosen) for value, title in options]
    return element("select", parts, id=name, data_state=True)


def section(name: str, question: str, finding: str, *content: object) -> Markup:
    """Return a block of the page: its question, small, and the heading that states the finding."""
    head = element("p", question, class_="question"), element("h2", kept(finding))
    return element("section", head, escape(content), id=name, tabindex=-1)
