"""Two rows side by side: paired differences over the blocks that both were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import numpy as np

from results.catalog import MetricFact
from results.cells import CellDirectory
from results.database import dictionaries
from results.errors import BenchError
from results.leaderboard import measured_facts, rows
from results.names import FEWEST_LETTERS, NAMES, UNDER_ONE_NAME
from results.numbers import counted
from results.rows import Row, Value
from results.statistics import (
    FEWEST_BLOCKS,
    Interval,
    PairedDifference,
    difference_of_shares,
    paired_difference,
    win_rate,
)
from results.store import connect

TIED = "tied"
WAYS = "use one cell id, MODEL@STEPS@CFG, MODEL#VERSION, or --seed"
ROUNDING = 1e-12
"""Standard error of a share below which no block moves it."""
MOST_NAMED = 12
"""Settings of a model that a refusal lists."""
UNBOUNDED = 1000.0
"""A ratio that may be so many times the one measured has no upper end: the divisor may be zero."""


Members = Sequence[tuple[str, tuple[int, int]]]
"""The models that one name stands for, each with the first and last step count that it answers for."""


class Difference(NamedTuple):
    """The difference a - b of one metric with its 95% interval, in the metric's unit."""

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    verdict: str
    """`a is better`, `b is better`, or `tied` when the interval holds zero."""
    win_rate: float | None = None
    """How often a's image of a prompt scores above b's, ties counting half; only for scores of single images."""
    win_low: float | None = None
    """Lower end of its Wilson interval."""
    win_high: float | None = None
    """Upper end of its Wilson interval."""
    trained_on: str = ""
    """Which of the two (`a`, `b` or `a, b`) was trained on the features that the metric reads."""


class Comparison(NamedTuple):
    """All paired differences of two rows."""

    title_a: str
    title_b: str
    differences: list[Difference]
    rows: tuple[Row, Row]
    without_win_rate: list[str]
    """Why there is no win rate for metrics that have one: a line for each row that lacks its images' scores."""


def paired(a: Row, b: Row, metric: str, scale: float = 1.0) -> PairedDifference | None:
    """Return a - `scale` b in `metric` or the composite; None where rows share no blocks (read them with `blocks`).

    None, too, of fewer than `statistics.FEWEST_BLOCKS`. Of shares that no block moves, as 1 and 1, the interval is made
    of the shares' own.
    """
    one, other = a.measured(metric), b.measured(metric)
    if one is None or other is None or not one.jackknife or not other.jackknife:
        return None
    if a.cell["ranking"] != b.cell["ranking"] or len(one.jackknife) != len(other.jackknife):
        return None
    if len(one.jackknife) < FEWEST_BLOCKS:
        return None
    values, left, reference = (
        None if part is None else scale * np.asarray(part, dtype=np.float64)
        for part in (other.value, other.jackknife, other.jackknife_reference)
    )
    difference = paired_difference(one.value, one.jackknife, values, left, one.jackknife_reference, reference)
    return unmoved_shares(difference, one, other, a.fact(metric), scale)


def unmoved_shares(
    difference: PairedDifference, one: Value, other: Value, fact: MetricFact, scale: float = 1.0
) -> PairedDifference:
    """Return the difference of two values of a metric, with the interval of two shares where no block moves it."""
    if (fact.lowest, fact.highest) != (0.0, 1.0) or difference.standard_error > ROUNDING:
        return difference
    ends = [one.value, one.low, one.high, other.value, other.low, other.high]
    known = [end for end in ends if end is not None]
    if len(known) < len(ends):
        return difference
    low, high = difference_of_shares(known[:3], [scale * end for end in known[3:]])
    low, high = min(low, difference.low), max(high, difference.high)
    return difference._replace(low=low, high=high, sign=int(low > 0) - int(high < 0))


class Ratio(NamedTuple):
    """The ratio of two rows' values of a metric with its 95% interval; `high` None: no upper end is known."""

    value: float
    low: float
    high: float | None


def ratio(a: Row, b: Row, metric: str) -> Ratio | None:
    """Return a / b in `metric` with Fieller's interval: the factors r at which a and r b are tied.

    So it holds 1 exactly where the rows are `tied` (Fieller, Journal of the Royal Statistical Society B 16, 1954). None
    where the rows share no blocks, or a value is not positive: such a metric has no ratio.
    """
    from scipy.optimize import brentq

    one, other = a.value(metric), b.value(metric)
    if one is None or other is None or one <= 0 or other <= 0 or paired(a, b, metric) is None:
        return None
    value = one / other

    def end(scale: float, side: Literal["low", "high"]) -> float:
        difference = paired(a, b, metric, scale)
        assert difference is not None
        return float(getattr(difference, side))

    low = brentq(end, 0.0, value, args=("low",)) if end(0.0, "low") > 0 else 0.0
    largest = UNBOUNDED * value
    high = brentq(end, value, largest, args=("high",)) if end(largest, "high") < 0 else None
    return Ratio(value, float(low), None if high is None else float(high))


def tied(a: Row, b: Row, metric: str) -> bool:
    """Tell whether the data cannot order two rows by `metric`: their paired difference holds zero, or is not known."""
    difference = paired(a, b, metric)
    return difference is None or difference.sign == 0


def reversed_by_bias(found: Sequence[Row], metric: str = "fid") -> list[tuple[Row, Row]]:
    """Return the pairs whose order by `metric` turns round when each value is less its bias of order 1/n.

    The bias depends on the model (Chong and Forsyth, arXiv 1911.07023): one of less variety has less of it.
    """
    known = [
        (row, value.value, value.corrected)
        for row in found
        if (value := row.measured(metric)) is not None and value.value is not None and value.corrected is not None
    ]
    return [
        (one, other)
        for (one, raw, less), (other, raw_other, less_other) in combinations(known, 2)
        if one.cell["ranking"] == other.cell["ranking"] and (raw - raw_other) * (less - less_other) < 0
    ]


def trained_among(named: Mapping[str, Row], metric: str) -> str:
    """Return the names of the rows that were trained on the features that `metric` reads, separated by commas."""
    return ", ".join(
        name for name, row in named.items() if (value := row.measured(metric)) is not None and value.trained_on
    )


def shared_blocks(row: Row, metric: str) -> tuple[int, int, str]:
    """Return the blocks of samples and of the reference whose values are known, and the ranking they belong to."""
    value = row.measured(metric)
    own, reference = (None, None) if value is None else (value.jackknife, value.jackknife_reference)
    return len(own or ()), len(reference or ()), row.cell["ranking"]


def verdict(a: Row, b: Row, metric: str) -> str:
    """Return `a is better`, `b is better` or `tied`."""
    difference = paired(a, b, metric)
    return TIED if difference is None else verdict_of(difference, a.fact(metric))


def verdict_of(difference: PairedDifference, fact: MetricFact) -> str:
    """Return what a difference a - b of a metric says: `a is better`, `b is better` or `tied`."""
    better = difference.sign * fact.sign
    return TIED if better == 0 else "a is better" if better > 0 else "b is better"


def compare_rows(a: Row, b: Row, runs: Path | None = None) -> list[Difference]:
    """Return the paired differences of two rows of one ranking, read with their blocks, in the order of tables.

    `runs`: the runs directory, whose cells give the scores of single images for win rates.
    """
    directories = [] if runs is None else [CellDirectory(runs, row.cell["cell_id"]) for row in (a, b)]
    differences = []
    for fact in measured_facts([a]):
        difference = paired(a, b, fact.name)
        if difference is None:
            continue
        one, other = a.value(fact.name), b.value(fact.name)
        assert one is not None and other is not None
        wins = _win_rate(fact.array, directories)
        differences.append(
            Difference(
                fact.name,
                one,
                other,
                difference.value,
                difference.low,
                difference.high,
                verdict_of(difference, fact),
                None if wins is None else wins.value,
                None if wins is None else wins.low,
                None if wins is None else wins.high,
                trained_among({"a": a, "b": b}, fact.name),
            )
        )
    return differences


def compare_cells(database: Path, a: str, b: str, seed: int | None = None) -> Comparison:
    """Return the paired differences of two rows, each a cell id, MODEL or MODEL@STEPS[@CFG]; `seed` narrows them.

    Raises BenchError when a row is not found or not unique, they are one row, or the two were not measured alike.
    """
    with connect(database, retry=True) as connection:
        pair = _pair(find_cells(connection, a, seed), find_cells(connection, b, seed), a, b)
        return _comparison(connection, pair, database.parent)


def compare_settings(
    database: Path, a: str, b: str, seed: int | None = None, members: Mapping[str, Members] | None = None
) -> list[Comparison]:
    """Return the comparisons of two models at every step count that both were measured at; of two rows, the one.

    `members` says which models answer for a name that stands for several. Raises BenchError as `compare_cells` does,
    also where no step count is common and where one leaves a choice of guidance.
    """
    with connect(database, retry=True) as connection:
        found = [_found(connection, name, seed, (members or {}).get(name)) for name in (a, b)]
        return [_comparison(connection, pair, database.parent) for pair in _common(found[0], found[1], a, b)]


def _comparison(
    connection: duckdb.DuckDBPyConnection, cells: tuple[dict[str, Any], dict[str, Any]], runs: Path
) -> Comparison:
    ids = [cell["cell_id"] for cell in cells]
    read = {row.cell["cell_id"]: row for row in rows(connection, cells=ids, blocks=True)}
    pair = read[ids[0]], read[ids[1]]
    differences = compare_rows(*pair, runs)
    lacking = [] if any(d.win_rate is not None for d in differences) else _scoreless(pair, differences, runs)
    return Comparison(title_of(cells[0]), title_of(cells[1]), differences, pair, lacking)


def _scoreless(pair: Sequence[Row], differences: Sequence[Difference], runs: Path) -> list[str]:
    """Return a line for each row whose images' scores are not here, as those of a merged database."""
    arrays = [array for d in differences if (array := pair[0].facts[d.metric].array).endswith(".score")]
    lines = []
    for row in pair:
        directory = CellDirectory(runs, row.cell["cell_id"])
        if arrays and not any((directory.path / f"{array}.npy").is_file() for array in arrays):
            lines.append(
                f"no win rates: the per-image scores of {row.cell['cell_id']} are missing (a merged database has "
                "none); get them with 'bench merge' of its runs directory or 'bench run --fresh'"
            )
    return lines


def _win_rate(array: str, directories: list[CellDirectory]) -> Interval | None:
    """Return the win rate over sample indices, whose prompts both rows share; None without scores of single images."""
    if not array.endswith(".score") or not directories:
        return None
    a, b = (directory.scores(array) for directory in directories)
    if a is None or b is None:
        return None
    return win_rate(a, b) if a.shape == b.shape else None


def title_of(cell: Mapping[str, Any]) -> str:
    """Return what people read of a cell: model, setting and id."""
    return f"{cell['model']}, {_setting(cell)} ({cell['cell_id']})"


def _setting(cell: Mapping[str, Any]) -> str:
    count = cell["steps"]
    steps = "images" if count is None else f"{counted(count, 'step')}, cfg {cell['cfg']:g}"
    nfe = "" if cell["nfe"] is None else f", NFE {cell['nfe']:g}"
    return f"{steps}{nfe}, {cell['num_samples']:,} samples, seed {cell['seed']}"


def _choices(cells: Sequence[dict[str, Any]]) -> str:
    """Return cells that one name stands for, the first few, with what tells them apart."""
    apart = [key for key in ("model", "sampler", "dtype", "options") if len({str(cell[key]) for cell in cells}) > 1]
    shown = [
        f"{cell['cell_id']} ({', '.join([_setting(cell), *(str(cell[key]) for key in apart)])})" for cell in cells[:4]
    ]
    return "; ".join(shown) + (f"; and {len(cells) - 4} more" if len(cells) > 4 else "")


def _pair(
    found_a: list[dict[str, Any]], found_b: list[dict[str, Any]], a: str, b: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the one pair of rows that were measured alike."""
    pairs = [(one, other) for one in found_a for other in found_b if one["ranking"] == other["ranking"]]
    if not pairs:
        raise BenchError(
            f"{a} and {b} were not measured alike (protocol, reference, judges, samples or seed differ): measure both "
            "with the same 'bench run'"
        )
    if len(pairs) > 1:
        name, cells = (a, [one for one, _ in pairs]) if len({one["cell_id"] for one, _ in pairs}) > 1 else (b, found_b)
        unique = {cell["cell_id"]: cell for cell in cells}
        choices = _choices(list(unique.values()))
        raise BenchError(f"'{name}' matches {len(unique)} rows: {choices}; {WAYS}")
    if pairs[0][0]["cell_id"] == pairs[0][1]["cell_id"]:
        raise BenchError(f"'{a}' and '{b}' are the same row, {pairs[0][0]['cell_id']}: there is nothing to compare")
    return pairs[0]


def _common(
    found_a: list[dict[str, Any]], found_b: list[dict[str, Any]], a: str, b: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return one pair for each step count of each ranking that both were measured at, else the only pair there is."""
    pairs = [(one, other) for one in found_a for other in found_b if one["ranking"] == other["ranking"]]
    if len(pairs) > 1 and a == b:
        raise BenchError(f"'{a}' and '{b}' are the same rows: there is nothing to compare")
    alike = [pair for pair in pairs if all(pair[0][key] == pair[1][key] for key in ("steps", "cfg"))]
    alike = [pair for pair in alike if pair[0]["cell_id"] != pair[1]["cell_id"]]
    single = len({(pair[0]["ranking"], pair[0]["steps"]) for pair in alike}) == len(alike)
    if len(pairs) > 1 and alike and single and "@" not in a + b:
        return sorted(alike, key=lambda pair: (-pair[0]["num_samples"], pair[0]["ranking"], pair[0]["steps"] or 0))
    if len(pairs) > 1 and not any(pair[0]["steps"] == pair[1]["steps"] for pair in pairs) and "@" not in a + b:
        counts = [", ".join(dict.fromkeys(str(pair[side]["steps"]) for pair in pairs)) for side in (0, 1)]
        raise BenchError(
            f"{a} (steps {counts[0]}) and {b} (steps {counts[1]}) were measured at no common step count: name the "
            "settings, MODEL@STEPS, or measure one at the other's"
        )
    return [_pair(found_a, found_b, a, b)]


def one_ranking(names: Sequence[str], found: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the one cell of each name that was measured as the others' were.

    Raises BenchError when there is none, or a name leaves a choice.
    """
    common = set.intersection(*({cell["ranking"] for cell in cells} for cells in found))
    if not common:
        raise BenchError(
            f"{', '.join(names)} were not measured alike (protocol, reference, judges, samples or seed differ): "
            "measure all with the same 'bench run'"
        )
    chosen = []
    for name, cells in zip(names, found, strict=True):
        here = [cell for cell in cells if cell["ranking"] in common]
        if len(here) > 1:
            raise BenchError(f"'{name}' matches {len(here)} rows: {_choices(here)}; {WAYS}")
        chosen += here
    return chosen


def _found(
    connection: duckdb.DuckDBPyConnection, name: str, seed: int | None, members: Members | None
) -> list[dict[str, Any]]:
    if not members:
        return find_cells(connection, name, seed)
    cells = []
    for model, (first, last) in members:
        with suppress(BenchError):  # one of them may not be measured
            cells += [cell for cell in find_cells(connection, model, seed) if first <= (cell["steps"] or 0) <= last]
    if not cells:
        models = ", ".join(model for model, _ in members)
        raise BenchError(f"no finished row of {models}, which '{name}' stands for; 'bench leaderboard --all'")
    return cells


def find_cells(connection: duckdb.DuckDBPyConnection, name: str, seed: int | None = None) -> list[dict[str, Any]]:
    """Return the finished cells that `name` stands for: the beginning of a cell id, MODEL, MODEL@STEPS[@CFG].

    MODEL may tell a version (`results.names`). Raises BenchError when there is none, or `name` has another form.
    """
    model, *rest = name.split("@")
    try:
        steps, scale = int(rest[0]) if rest else None, float(rest[1]) if len(rest) > 1 else None
    except ValueError:
        raise BenchError(f"'{name}' is not of the form MODEL@STEPS or MODEL@STEPS@CFG") from None
    found = dictionaries(
        connection,
        f"SELECT c.* REPLACE (named.name AS model) FROM cells c JOIN {NAMES} named USING (cell_id) "
        "WHERE status = 'done' AND (((c.model = $1 OR named.name = $1 OR c.checkpoint = $1) AND "
        f"{UNDER_ONE_NAME}) OR ($2 IS NULL AND starts_with(c.cell_id, $1) AND "
        f"(c.cell_id = $1 OR length($1) >= {FEWEST_LETTERS}))) "
        "AND ($2 IS NULL OR steps = $2) AND ($3 IS NULL OR cfg = $3) AND ($4 IS NULL OR seed = $4) "
        "ORDER BY steps, cfg, seed, finished, cell_id",
        [model, steps, scale, seed],
    )
    if not found:
        where = "" if seed is None else f" of seed {seed}"
        there = dictionaries(
            connection,
            f"SELECT DISTINCT steps, cfg FROM cells c JOIN {NAMES} named USING (cell_id) WHERE status = 'done' "
            "AND (c.model = $1 OR named.name = $1) AND steps IS NOT NULL ORDER BY steps, cfg",
            [model],
        )
        settings = ", ".join(f"@{cell['steps']}@{cell['cfg']:g}" for cell in there[:MOST_NAMED])
        more = f" and {len(there) - MOST_NAMED} more" if len(there) > MOST_NAMED else ""
        measured = f": {model} was measured at {settings}{more}" if rest and there else ""
        raise BenchError(f"no finished row '{name}'{where}{measured}; 'bench leaderboard --all' lists them")
    return found
