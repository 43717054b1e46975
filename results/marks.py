"""The signs beside rows, and the lines that say what they mean and what else a reader must know of these rows.

One rule for every view: leaderboard, comparisons, report and site print these lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from results.rows import Row, Value

OFF_REGIME = "*"
"""Marks a row outside the step counts that its checkpoint was trained for."""
REMARKED = "!"
"""Marks a row whose images look like a mistake."""
CLIPPED = "^"
"""Marks a row with a metric outside the bounds of MMHM."""
TRAINED = "#"
"""Marks a row whose model was trained on features that metrics read."""
ROUGH = "~"
"""Marks a value whose bias is removed only roughly."""
INTERVALS = "±, or both ends in brackets if it is not symmetric: 95% interval"
RANKS = "rank: 95% rank set by {metric}, simultaneous over all rows"
FIRST = "first: probability that the {who} is truly the best by MMHM; =: one of the rows that may be the best, at 95%"
MOST_PAIRED = 200
"""Rows of which every pair is looked at; of more, each model's best."""
NAMED = 3
"""Rows that a line names."""


def marks_of(row: Row) -> str:
    """Return the marks of a row, each after a blank."""
    signs = {
        OFF_REGIME: row.cell["off_regime"],
        REMARKED: row.remarks,
        CLIPPED: row.rank.get("outside"),
        TRAINED: row.trained_on,
    }
    return "".join(f" {sign}" for sign, holds in signs.items() if holds)


def one_of_each(found: Sequence[Row]) -> bool:
    """Tell whether these are single rows of their models, so that a model's chances may stand beside them."""
    models = [row.cell["model"] for row in found]
    return len(models) == len(set(models))


def chance(row: Row, whole: bool) -> float | None:
    """Return the chance that a row, or its model as a `whole`, is truly the best by MMHM; None without rivals."""
    found: float | None = row.rank.get("p_first_model" if whole else "p_first")
    return found


def legend(shown: Sequence[Row], clip: bool | None = None, sort: str | None = None) -> list[str]:
    """Return what ranks, chances and marks of a leaderboard mean, and why any are withheld, one line each.

    `clip` tells whether values outside the bounds of MMHM were clipped to them, `sort` what the rows are sorted by.
    """
    from results.leaderboard import ranked_by
    from results.names import versions

    lines = []
    if any(value.low is not None for row in shown for value in row.metrics.values()):
        lines.append(INTERVALS)
    by = ranked_by(shown, sort)
    ranked = [row for row in shown if (value := row.measured(by)) is not None and value.rank_low is not None]
    if ranked:
        whole = one_of_each(shown)
        who = "model, with any of its settings," if whole else "row"
        first = any(chance(row, whole) is not None for row in shown)
        lines.append(RANKS.format(metric=ranked[0].fact(by).short) + f"; {FIRST.format(who=who)}" * first)
    lines += [*versions(shown), *signatures(shown)]
    lines += [
        f"no rank sets: {reason}"
        for reason in dict.fromkeys(row.rank["withheld"] for row in shown if row.rank.get("withheld"))
    ]
    return [*lines, *caveats(shown, clip)]


def signatures(shown: Sequence[Row]) -> list[str]:
    """Return a line for each key that signed bundles which rows came in: the rows."""
    signers: dict[str, list[str]] = {}
    for row in shown:
        if row.cell.get("signed_by"):
            signers.setdefault(row.cell["signed_by"], []).append(_setting_of(row, shown))
    return [f"signed by {signer}: {', '.join(dict.fromkeys(names))}" for signer, names in signers.items()]


def caveats(shown: Sequence[Row], clip: bool | None = None, *, times: bool = True) -> list[str]:
    """Return what keeps the numbers of these rows from being taken as they are, one line each: the marks, and more.

    That is: step counts not trained for, clipped to the bounds of MMHM (`clip`, where it is known), training on
    features that a metric reads, order by bias, bias removed roughly, heavy tails, `times` taken on a busy machine,
    and images that look like a mistake.
    """
    from results import timing, training

    regime = f"{OFF_REGIME} outside the step counts that the checkpoint was trained for"
    lines = [regime] if any(row.cell["off_regime"] for row in shown) else []
    outside = dict.fromkeys(name for row in shown for name in row.rank.get("outside") or ())
    how = {None: "", True: ", clipped to them: differences beyond are invisible", False: ", not clipped"}[clip]
    lines += [f"{CLIPPED} outside the bounds of MMHM ({', '.join(outside)}){how}"] if outside else []
    lines += [f"{TRAINED} {line}" for line in training.remarks(shown)]
    rough = f"{ROUGH} rough, too few images per dimension to remove all bias"
    lines += [*reversed_by_bias(shown), *marked(shown, rough, lambda value: value.rough)]
    lines += marked(shown, "heavy tails, intervals may be too narrow", lambda value: value.heavy_tails)
    lines += [*(timing.remarks(shown) if times else []), *waivers(shown)]
    return lines + [f"{REMARKED} {row.cell['model']}: {remark}" for row in shown for remark in row.remarks]


def waivers(shown: Sequence[Row]) -> list[str]:
    """Return a line about each clause of the adapter contract that a model's card waives, with the card's reason."""
    found = {
        f"{row.cell['model']} waives '{clause}' of the adapter contract: {reason}": None
        for row in shown
        for clause, reason in (row.cell.get("waived") or {}).items()
    }
    return list(found)


def marked(shown: Sequence[Row], what: str, holds: Callable[[Value], bool]) -> list[str]:
    """Return a line that says `what` of the rows and metrics of which it `holds`; none where there are no such."""
    found: dict[str, list[str]] = {}
    for row in shown:
        for name, value in row.metrics.items():
            if holds(value):
                found.setdefault(_setting_of(row, shown), []).append(name)
    if not found:
        return []
    names = [f"{setting} ({', '.join(metrics)})" for setting, metrics in found.items()]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"{what}: {', '.join(names[:NAMED])}{more}"]


def reversed_by_bias(shown: Sequence[Row]) -> list[str]:
    """Return a line about the pairs of rows whose order by FID is that of its bias; none where there are no such."""
    from results import comparing
    from results.leaderboard import best_of_each

    pairs = comparing.reversed_by_bias(shown if len(shown) <= MOST_PAIRED else best_of_each(shown))
    if not pairs:
        return []
    names = [" and ".join(_setting_of(row, shown) for row in pair) for pair in pairs]
    more = f" and {len(names) - NAMED} more pairs" if len(names) > NAMED else ""
    listed = ", for ".join(names[:NAMED]) + more
    return [f"Without FID's bias, which depends on the model, the order reverses for {listed}"]


def _setting_of(row: Row, shown: Sequence[Row]) -> str:
    """Return the model, with its steps where several rows are of it."""
    alone = sum(other.cell["model"] == row.cell["model"] for other in shown) == 1
    return row.cell["model"] if alone or row.cell["steps"] is None else f"{row.cell['model']}@{row.cell['steps']}"
