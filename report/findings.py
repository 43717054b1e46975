"""Headings that state what the data say, one function for each block of the page. Plain text; escaped when placed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import pandas as pd

from report.data import Measurements, cell_of, record
from report.text import budget, counted, known, listed, number, seconds, with_interval
from results import comparing, spaces
from results.budgets import Budget
from results.claims import Claim
from results.convergence import Convergence
from results.facts import MetricFact
from results.rows import COMPOSITE, Row
from results.statistics import share_difference


def leader(data: Measurements, by: str) -> tuple[str, str]:
    """Return the answer of the first screen by the metric `by`, and how sure it is."""
    metric = data.metrics[by]
    best = data.best(metric.name)
    leaders = set(data.leaders(metric.name))
    first, tied = best[0], [cell for cell in best[1:] if cell in leaders]
    value = data.value(first, metric.name)
    assert value is not None
    shown = f"{metric.short} {with_interval(value['value'], value['low'], value['high'])}"
    verb, alone = ("has", ", alone in its ranking") if len(data.ranked) == 1 else ("leads on", "")
    answer = f"{data.fact(first, 'label')} {verb} {shown}{alone}"
    if tied:
        models = [data.fact(cell, "model") for cell in tied]
        answer += f"; {listed(models)} {'is' if len(models) == 1 else 'are'} statistically tied"
    apart = spaces.disputed(data.spaces)
    if apart is not None:
        answer += f". {apart.one.short} and {apart.other.short} disagree about the leader"
    return answer, " ".join(_sureness(data, first, metric.name))


def _sureness(data: Measurements, first: str, metric: str) -> list[str]:
    sentences = []
    rank = data.rows[first].rank if metric == COMPOSITE else {}
    chance, model = rank.get("p_first"), rank.get("p_first_model")
    if known(chance):
        said = f"Probability that it is truly the best setting: {chance:.0%}"
        if known(model):
            said += f"; that {data.fact(first, 'model')} is the best model, with any of its settings: {model:.0%}"
        sentences.append(f"{said}.")
    if rank.get("withheld"):
        sentences.append(f"The order has no intervals: {rank['withheld']}.")
    row = data.rows[first]
    if row.trained_on:
        trained = row.measured(metric)
        what = f", which {data.metrics[metric].short} reads" if trained is not None and trained.trained_on else ""
        sentences.append(f"It was trained on features of {listed(list(row.trained_on))}{what}.")
    apart = spaces.disputed(data.spaces)
    if apart is not None:
        sentences.append(f"{spaces.leaders(apart)}.")
    leaders = set(data.leaders(metric))
    costs = data.ranked["evaluations"].astype(float)
    cheaper = [
        cell
        for cell in map(cell_of, data.contenders(metric))
        if cell != first and costs[cell] < costs[first] and cell in leaders
    ]
    if cheaper:
        cheapest = min(cheaper, key=lambda cell: costs[cell])  # the first of those that cost the same is the best
        sentences.append(
            f"The cheapest setting tied with it is {data.fact(cheapest, 'label')}: {costs[cheapest]:g} instead of "
            f"{costs[first]:g} network evaluations per image."
        )
    elif known(costs[first]):
        takes = f"it takes {costs[first]:g} network evaluation{'s' if costs[first] != 1 else ''} per image."
        sentences.append(f"I{takes[1:]}" if len(data.ranked) == 1 else f"No cheaper setting is tied with it; {takes}")
    return sentences


def by_budget(data: Measurements, metric: str, cost: Literal["nfe", "seconds"], found: Sequence[Budget]) -> str:
    """Say which model wins by `metric` at which budget of `cost`."""
    spells: list[tuple[str, float, float]] = []
    for level, winner, _ in found:
        model = winner.cell["model"]
        if spells and spells[-1][0] == model:
            spells[-1] = (model, spells[-1][1], level)
        else:
            spells.append((model, level, level))
    parts = []
    for model, low, high in spells:
        first = f"{low:g}" if cost == "nfe" and low != high else budget(low, cost)
        parts.append(f"{model} at {first}" if low == high else f"{model} from {first} to {budget(high, cost)}")
    return f"Best within budget by {data.metrics[metric].short}: {listed(parts, 4)}"


def curve(data: Measurements, metric: str) -> str:
    """Compare the cheapest and the dearest budgets of one metric."""
    rows = data.with_metric(metric).dropna(subset=["nfe"])
    short = data.metrics[metric].short
    ends = [data.contenders(metric, rows.index[rows["nfe"] == end]) for end in (rows["nfe"].min(), rows["nfe"].max())]
    first, last = (cell_of(end[0]) if end else None for end in ends)
    if first is None or last is None or first == last:
        return f"{short} against cost"
    one, many = record(rows.loc[first]), record(rows.loc[last])
    return (
        f"At {one['nfe']:g} NFE the best {short} is {number(one['value'], one['low'], one['high'])} ({one['model']}), "
        f"at {many['nfe']:g} NFE {number(many['value'], many['low'], many['high'])} ({many['model']})"
    )


def front(rows: pd.DataFrame, on_front: Sequence[str], cost: str, short: str) -> str:
    """Describe the ends of the Pareto front of the metric with this short name, by a cost that is exact."""
    edge = rows.loc[list(on_front)]

    def said(at: int) -> str:
        spent = edge[cost].iloc[at]
        return f"{edge['label'].iloc[at]} ({budget(spent, 'nfe') if cost == 'evaluations' else seconds(spent)})"

    count = f"{len(edge)} of {counted(len(rows), 'row')}"
    if len(edge) == 1:
        return f"One row is both the cheapest and the best by {short}: {said(0)}"
    return f"{count} are on the Pareto front of {short}, from {said(0)} to {said(-1)}"


def guidance(data: Measurements, sweep: pd.DataFrame, metric: str, chosen: Sequence[str]) -> str:
    """Say where the optimum of the first swept model lies."""
    short = data.metrics[metric].short
    best = sweep.loc[[row for row in chosen if row in sweep.index]]
    row = best.iloc[0]
    same = sweep[(sweep["model"] == row["model"]) & (sweep["steps"] == row["steps"])]
    if row["cfg"] == same["cfg"].min() == 1:
        return f"Guidance does not improve the {short} of {row['model']}"
    inside = same["cfg"].min() < row["cfg"] < same["cfg"].max()
    where = "an optimum inside the swept range" if inside else "the end of the swept range: sweep further"
    return f"{row['model']} has its best {short} at guidance {row['cfg']:g}, {where}"


def bottleneck(utilities: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> str:
    """Say which metric holds most composites down."""
    weakest = Counter(min(row, key=lambda key: row[key]) for row in utilities if row)
    key, count = weakest.most_common(1)[0]
    share = f" of {count} of {len(utilities):,} rows" if len(utilities) > 1 else ""
    return f"{names.get(key, key)} is the bottleneck{share}"


def correlation(matrix: Mapping[str, Mapping[str, float]], names: Mapping[str, str]) -> str:
    """Name the most related pair of metrics, whether they agree or contradict each other."""
    keys = list(matrix)
    pairs = [(one, two, matrix[one].get(two)) for i, one in enumerate(keys) for two in keys[i + 1 :]]
    pairs = [pair for pair in pairs if known(pair[2])]
    if not pairs:
        return "How the metrics correlate"
    one, two, value = max(((one, two, value or 0.0) for one, two, value in pairs), key=lambda pair: abs(pair[2]))
    verb = "agree" if value > 0 else "contradict each other"
    return f"{names.get(one, one)} and {names.get(two, two)} {verb} most (rank correlation {value:+.2f})"


def stability(data: Measurements) -> str:
    """Say how many rows may be first."""
    values = [row.measured(data.headline) for row in data.contenders(data.headline)]
    may = [value.may_be_best for value in values if value is not None and value.may_be_best is not None]
    short = data.metrics[data.headline].short
    if not may:
        return f"There are no intervals for the order by {short}"
    if sum(may) == 1:
        return f"Only one row can be first by {short}"
    return f"{sum(may)} of {counted(len(values), 'row')} can be first by {short} (95% confidence)"


def reversed_by_bias(data: Measurements) -> str | None:
    """Say between how many models' best rows FID's bias decides the order; None where nowhere."""
    if "fid" not in data.metrics:
        return None
    best = [data.rows[cell] for cell in data.best(data.headline)]
    pairs = comparing.reversed_by_bias(best)
    if not pairs:
        return None
    names = listed([f"{one.cell['model']} and {other.cell['model']}" for one, other in pairs])
    return f"Without FID's bias, which depends on the model, the order reverses for {names}."


def heavy_tails(data: Measurements) -> str | None:
    """Name the settings, and their metrics, whose intervals may be narrow; None where there are none."""
    heavy = {
        str(data.fact(cell, "label")): [data.metrics[name].short for name in data.metrics if _heavy(row, name)]
        for cell, row in data.rows.items()
    }
    names = [f"{label} ({', '.join(metrics)})" for label, metrics in heavy.items() if metrics]
    return f"Heavy tails, so that intervals may be too narrow: {listed(names, 6)}." if names else None


def _heavy(row: Row, metric: str) -> bool:
    value = row.measured(metric)
    return value is not None and value.heavy_tails


def sensitive(changes: Mapping[str, int]) -> str:
    """Say how much the order depends on which rows are present."""
    most = max(changes.values(), default=0)
    if most == 0:
        return "Leaving out any one row changes no other rank"
    name = max(changes, key=lambda key: changes[key])
    return f"Leaving out {name} changes {counted(most, 'other rank')}"


def agreement(ranks: pd.DataFrame) -> str:
    """Say whether the metrics agree on the first place."""
    firsts = [ranks.index[ranks[column] == 1] for column in ranks.columns]
    winners = Counter(str(names[0]) for names in firsts if len(names) == 1)
    shared = sum(len(names) > 1 for names in firsts)
    if len(winners) == 1 and not shared:
        return f"Every metric ranks {next(iter(winners))} first"
    parts = [f"{name} by {counted(count, 'metric')}" for name, count in winners.most_common()]
    parts += [f"shared by {counted(shared, 'metric')}"] if shared else []
    return f"The winner depends on the metric: {listed(parts)}"


def time_spent(rows: pd.DataFrame) -> str:
    """Say where the measured time went."""
    parts = {
        name: float(rows[f"{name}_seconds"].fillna(0).astype(float).sum()) for name in ("network", "decode", "judge")
    }
    total = sum(parts.values())
    if total == 0:
        return "No time was measured"
    verbs = {"network": "the network takes", "decode": "the decoder takes", "judge": "the judges take"}
    shares = [f"{verbs[name]} {share / total:.0%}" for name, share in parts.items() if share >= 0.005 * total]
    return f"{listed(shares)} of the time".capitalize()


def classes(one: pd.DataFrame, other: pd.DataFrame, names: tuple[str, str], metric: MetricFact) -> str:
    """Count the classes in which one row is ahead of the other; of shares, significantly so."""
    both = one.merge(other, on=["label", "class_name"], suffixes=("", "_other")).dropna(subset=["value", "value_other"])
    difference = metric.sign * (both["value"] - both["value_other"])
    half = share_difference(both["value"], both["n"], both["value_other"], both["n_other"]) if metric.is_share else 0.0
    ahead, behind = int((difference > half).sum()), int((difference < -half).sum())
    sure = "significantly " if metric.is_share else ""
    if not ahead and not behind:
        return f"By {metric.short}, no class {sure}sets {names[0]} and {names[1]} apart"
    total = f"{len(both):,} class" + "es" * (len(both) != 1)
    return (
        f"By {metric.short}, {names[0]} is {sure}ahead of {names[1]} in {ahead} of {total} and {sure}behind in {behind}"
    )


def claims(found: Sequence[Claim]) -> str:
    """Say how many measured rows agree with what was published, or why none of them can be compared."""
    comparable = [claim for claim in found if not claim.not_comparable and claim.low is not None]
    if not comparable:
        reasons = [reason for claim in found for reason in claim.not_comparable]
        why = f" because {Counter(reasons).most_common(1)[0][0]}" if reasons else ""
        return f"Not comparable with what was published{why}"
    within = sum((claim.low or 0.0) <= claim.published <= (claim.high or 0.0) for claim in comparable)
    verb = "lies" if within == 1 else "lie"
    count = counted(len(comparable), "comparable published figure")
    return f"{within} of {count} {verb} inside the measured interval"


def wins(titles: Sequence[str], signs: Sequence[str], short: str) -> str:
    """Say how many pairs of the win matrix the data put in order, and which row wins most."""
    pairs = [(i, j) for i in range(len(titles)) for j in range(i) if signs[i][j] != "?"]
    decided = sum(signs[i][j] in "+-" for i, j in pairs)
    won = [row.count("+") for row in signs]
    if not decided:
        return f"No pair is significantly different by {short}"
    most = max(won)
    first = [title for title, count in zip(titles, won, strict=True) if count == most]
    verb = "win" if len(first) > 1 else "wins"
    return f"{decided} of {counted(len(pairs), 'pair')} differ significantly by {short}; {listed(first)} {verb} {most}"


def converging(found: Sequence[Convergence], short: str) -> str:
    """Say how much of the metric is its bias at this number of images."""
    biases = [
        (abs(line.slope) / line.row.cell["num_samples"], line.row.cell) for line in found if line.slope is not None
    ]
    if not biases:
        return f"How {short} changes with the number of images"
    most, cell = max(biases, key=lambda pair: pair[0])
    return f"At {cell['num_samples']:,} images, up to {number(most)} of {short} is bias ({cell['model']})"
