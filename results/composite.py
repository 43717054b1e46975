"""One number from four metrics: MMHM, as the fair benchmark defines it, and two composites that forgive more.

"Fair Benchmarking of Emerging One-Step Generative Models" (arXiv 2603.14186). With utilities u in [0, 1], best 1,

    u_FID = (max FID - FID)/(max FID - min FID)     u_m = (m - min m)/(max m - min m) for IS, CLIP, Pick; 1 if max = min
    MMHM  = 4 / sum_k 1/(eps + u_k)

Bounds taken from the rows make the order depend on which rows are present (`leave_one_row_out` shows how much):
freeze them.
"""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from results.catalog import CATALOG, MMHM_METRICS
from results.documents import read_json
from results.errors import BenchError
from results.files import write_atomically

_PARTS = [CATALOG[name] for name in MMHM_METRICS]
COLUMNS = tuple(fact.mmhm for fact in _PARTS)
"""The columns of the paper's tables, in the order of `catalog.MMHM_METRICS`."""
_SIGNS = np.array([fact.sign for fact in _PARTS])

Bounds = dict[str, dict[str, float]]
PartialBounds = Mapping[str, Mapping[str, float | None] | None]


class Composite(NamedTuple):
    """Scores of the rows of a table and how they came about.

    Attributes:
        scores: one per row, [R]; NaN where a row lacks a metric.
        utilities: [R, 4] in the order of COLUMNS.
        bounds: {column: {"min", "max"}} used.
        outside: bool [R, 4], True where a value lies outside its bounds.
    """

    scores: np.ndarray
    utilities: np.ndarray
    bounds: Bounds
    outside: np.ndarray


def column_of(name: str) -> str | None:
    """Return the column of COLUMNS that `name` stands for in the paper's files; None where it is no metric's."""
    spelled = str(name).strip().lower().replace(" ", "_")
    for fact in _PARTS:
        if spelled in (fact.name, fact.mmhm.lower().replace(" ", "_"), *fact.aliases):
            return fact.mmhm
    return None


def table_array(table: Mapping[str, Sequence[float | None]]) -> np.ndarray:
    """Return the columns of `table` as float64 [R, 4] in the order of COLUMNS; None becomes NaN, others are ignored.

    Raises:
        BenchError: a column is missing, given twice, or of another length.
    """
    found: dict[str, Sequence[float | None]] = {}
    for name, values in table.items():
        column = column_of(name)
        if column is None:
            continue
        if column in found:
            raise BenchError(f"column '{column}' appears twice, the second time as '{name}': keep one of them")
        found[column] = values
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        raise BenchError(f"the table has no {', '.join(missing)}: it has {', '.join(map(str, table)) or 'no columns'}")
    if len({len(values) for values in found.values()}) > 1:
        lengths = ", ".join(f"{column} {len(found[column])}" for column in COLUMNS)
        raise BenchError(f"the table's columns differ in length ({lengths}): every row needs all four values")
    return np.array([[np.nan if v is None else float(v) for v in found[c]] for c in COLUMNS], dtype=np.float64).T


def resolve_bounds(values: np.ndarray, bounds: PartialBounds | None) -> np.ndarray:
    """Return lower and upper bounds [2, 4]: the given ones, else (missing or null) the extremes of `values` [R, 4]."""
    given: dict[str, Mapping[str, float | None]] = {}
    for name, pair in (bounds or {}).items():
        column = column_of(name)
        if column is None:
            raise BenchError(f"bounds name '{name}', which is not a column: use {', '.join(COLUMNS)}")
        given[column] = pair or {}
    resolved = np.empty((2, len(COLUMNS)))
    for index, column in enumerate(COLUMNS):
        present = values[:, index][~np.isnan(values[:, index])]
        for row, (key, own) in enumerate((("min", np.min), ("max", np.max))):
            bound = given.get(column, {}).get(key)
            if bound is None:
                bound = float(own(present)) if present.size else np.nan
            resolved[row, index] = bound
    return resolved


def utilities_of(values: np.ndarray, bounds: np.ndarray | None = None, clip: bool = False) -> np.ndarray:
    """Return utilities of tables `values` [..., R, 4] for `bounds` [2, 4]; with None, each table's own bounds."""
    low, high = (values.min(axis=-2, keepdims=True), values.max(axis=-2, keepdims=True)) if bounds is None else bounds
    span = high - low
    gain = np.where(_SIGNS < 0, high - values, values - low)
    utilities = np.where(span == 0, np.where(np.isnan(values), np.nan, 1.0), gain / np.where(span == 0, 1.0, span))
    return np.clip(utilities, 0.0, 1.0) if clip else utilities


def harmonic_scores(utilities: np.ndarray, eps: float = 1e-3) -> np.ndarray:
    """Return MMHM of utilities [..., 4]; not clipped, a utility of exactly -eps gives 0."""
    with np.errstate(divide="ignore"):
        return utilities.shape[-1] / (1.0 / (eps + utilities)).sum(axis=-1)


def minmax_harmonic_mean(
    table: Mapping[str, Sequence[float | None]],
    eps: float = 1e-3,
    bounds: PartialBounds | None = None,
    clip: bool = False,
) -> Composite:
    """Return the MMHM of every row.

    Args:
        table: column name -> values; FID, IS, CLIP Score, Pick Score or their aliases, in any case.
        eps: softening; a row worst in one column gets about 4 eps whatever its other columns.
        bounds: frozen bounds by column, {"min": ..., "max": ...}; missing or null ones come from the rows.
        clip: clip utilities to [0, 1] (right with frozen bounds; the paper does not clip).

    Raises:
        BenchError: columns are missing or uneven, or bounds name no column.
    """
    values = table_array(table)
    if len(values) == 0:
        raise BenchError("the table has no rows: add at least one")
    used = resolve_bounds(values, bounds)
    utilities = utilities_of(values, used, clip)
    outside = (values < used[0]) | (values > used[1])
    named = {c: {"min": float(used[0, i]), "max": float(used[1, i])} for i, c in enumerate(COLUMNS)}
    return Composite(harmonic_scores(utilities, eps), utilities, named, outside)


def five_significant(scores: np.ndarray) -> list[float]:
    """Return scores rounded to five significant digits, as the paper's tables print them."""
    return [float(f"{score:.5g}") for score in scores]


def minmax_geometric_mean(utilities: np.ndarray, eps: float = 1e-3) -> np.ndarray:
    """Return (prod (eps + u))^(1/4) of utilities [..., 4] clipped to [0, 1]: a last place costs a factor, not all."""
    return np.exp(np.log(eps + np.clip(utilities, 0.0, 1.0)).mean(axis=-1))


def rank_composite(values: np.ndarray) -> np.ndarray:
    """Return 1 - (mean rank - 1)/(R - 1) of a table [R, 4], in [0, 1], best 1; only orders matter, ties share ranks."""
    from scipy.stats import rankdata

    rows = len(values)
    if rows == 1:
        return np.ones(1)
    ranks = rankdata(-_SIGNS * values, axis=0)
    return 1.0 - (ranks.mean(axis=1) - 1.0) / (rows - 1.0)


def metric_correlation(values: np.ndarray) -> np.ndarray:
    """Return the rank correlation of the columns of a table [R, M=4], [4, 4], FID negated so that + means agreement.

    Rows that lack a metric are left out; a constant column correlates with nothing (NaN).
    """
    from scipy.stats import rankdata

    oriented = _SIGNS * values
    oriented = oriented[~np.isnan(oriented).any(axis=1)]
    if len(oriented) < 2:
        return np.full((len(_PARTS), len(_PARTS)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant columns, whose correlation is NaN as promised
        return np.corrcoef(rankdata(oriented, axis=0), rowvar=False)


class RowSensitivity(NamedTuple):
    """What dropping one row does to the others.

    Attributes:
        dropped: index of the row left out.
        scores: scores of all rows, [R], NaN at the dropped one.
        reordered: pairs (i, j): i stood above j with all rows present and stands below without the dropped one.
    """

    dropped: int
    scores: np.ndarray
    reordered: list[tuple[int, int]]


def leave_one_row_out(
    table: Mapping[str, Sequence[float | None]],
    eps: float = 1e-3,
    bounds: PartialBounds | None = None,
    clip: bool = False,
) -> Iterator[RowSensitivity]:
    """Yield the effect of dropping each row on the MMHM order of the rest; with complete bounds there is none."""
    values = table_array(table)
    full, whole = minmax_harmonic_mean(table, eps, bounds, clip).scores, resolve_bounds(values, bounds)
    for dropped in range(len(values) if len(values) > 1 else 0):
        rest = np.delete(np.arange(len(values)), dropped)
        scores = np.where(np.arange(len(values)) == dropped, np.nan, full)
        used = resolve_bounds(values[rest], bounds)
        if np.array_equal(used, whole):  # most rows set no bound
            yield RowSensitivity(dropped, scores, [])
            continue
        scores[rest] = harmonic_scores(utilities_of(values[rest], used, clip), eps)
        swapped = (full[:, None] > full) & (scores[:, None] < scores)
        yield RowSensitivity(dropped, scores, [(int(i), int(j)) for i, j in np.argwhere(swapped)])


def read_bounds(path: Path) -> PartialBounds:
    """Read the paper's bounds file, {"FID": {"min", "max"}, ...}; bounds may be null or missing.

    Raises:
        BenchError: the file cannot be read or has another form.
    """
    bounds = read_json(path, "bounds file")
    if not isinstance(bounds, dict):
        raise BenchError(
            f'bounds file {path} does not contain an object: expected {{"FID": {{"min": ..., "max": ...}}, ...}}'
        )
    for name, pair in bounds.items():
        known = column_of(name) is not None
        numbers = isinstance(pair, dict) and all(
            key in ("min", "max")
            and (bound is None or (isinstance(bound, int | float) and not isinstance(bound, bool) and isfinite(bound)))
            for key, bound in pair.items()
        )
        if not known or not (pair is None or numbers):
            raise BenchError(f"bounds file {path}: entry '{name}' is not a column with a numeric min and max: fix it")
    return bounds


def write_bounds(path: Path, bounds: PartialBounds) -> None:
    """Write `bounds` as the paper's bounds file."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path.parent))
    write_atomically(path, (json.dumps(bounds, indent=2) + "\n").encode(), "--write-bounds")
