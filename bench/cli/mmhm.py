"""`bench mmhm`: score a table of four metrics that was made elsewhere, as the fair benchmark's own script does."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from bench.cli.output import JSON, page, plain_table, print_json, print_table
from bench.cli.parsing import NUMBER
from results.errors import BenchError

if TYPE_CHECKING:
    from results.composite import Bounds, PartialBounds


LARGEST_TABLE = 16 * 2**20
"""Bytes of a table; a device would give more for ever."""


class ScoreTable(NamedTuple):
    """A CSV as read: the four metrics by their own header, and the other columns as text, row by row."""

    metrics: dict[str, list[float | None]]
    others: list[dict[str, str]]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(mmhm)


def mmhm(
    file: Annotated[
        Path, typer.Argument(help="A CSV with the columns FID, IS, CLIP Score and Pick Score (or is_mean ...).")
    ],
    bounds: Annotated[Path | None, typer.Option(help="Bounds as JSON (default: taken from the rows).")] = None,
    write_bounds: Annotated[Path | None, typer.Option(help="Write the bounds used to this file.")] = None,
    eps: Annotated[float, typer.Option(min=0, help="Softening term of the harmonic mean.")] = 1e-3,
    clip: Annotated[
        bool, typer.Option("--clip", help="Clip normalised values to [0, 1], which the paper does not.")
    ] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Score a CSV by MMHM.

    By default as published: bounds from the rows, nothing clipped.
    """
    from results.composite import COLUMNS, five_significant, minmax_harmonic_mean, read_bounds
    from results.files import output_file

    target = None if write_bounds is None else output_file(write_bounds, "--write-bounds", file)
    table = read_table(file)
    if not math.isfinite(eps):
        raise BenchError(f"--eps: {eps} is not a finite number; the paper uses 0.001")
    given = None if bounds is None else read_bounds(bounds)
    try:
        result = minmax_harmonic_mean({**dict.fromkeys(table.others[0], ()), **table.metrics}, eps, given, clip)
    except BenchError as error:
        raise BenchError(f"{file}: {error}") from error
    _check_bounds(result.bounds, bounds)
    if bounds is not None and given is not None:
        _check_complete(given, bounds)
    if target is not None:
        _write(target, result.bounds)
    scores = five_significant(result.scores)
    values = list(zip(*(_column(table, column) for column in COLUMNS), strict=True))
    if as_json:
        rows = [
            {
                **other,
                **dict(zip(COLUMNS, row, strict=True)),
                "MMHM": score,
                "utilities": dict(zip(COLUMNS, map(float, utilities), strict=True)),
                "outside": [column for column, out in zip(COLUMNS, outside, strict=True) if out],
            }
            for other, row, score, utilities, outside in zip(
                table.others, values, scores, result.utilities, result.outside, strict=True
            )
        ]
        print_json({"eps": eps, "clip": clip, "bounds": result.bounds, "rows": rows})
        return
    names = list(table.others[0])
    lines = [
        [
            *other.values(),
            *("-" if v is None else f"{v:g}{'*' if out else ''}" for v, out in zip(row, outside, strict=True)),
            "-" if math.isnan(score) else f"{score:g}",
        ]
        for other, row, score, outside in zip(table.others, values, scores, result.outside, strict=True)
    ]
    print_table(page(), plain_table([*names, *COLUMNS, "MMHM"], lines, right=[*COLUMNS, "MMHM"]))
    used = ", ".join(f"{column} {pair['min']:g} .. {pair['max']:g}" for column, pair in result.bounds.items())
    source = "taken from the rows: the order depends on which rows are present" if bounds is None else f"of {bounds}"
    page().print(f"bounds {source}: {used}", markup=False, soft_wrap=True)
    if result.outside.any():
        page().print(f"* outside the bounds, {'clipped' if clip else 'not clipped, as in the paper'}", markup=False)


def read_table(path: Path) -> ScoreTable:
    """Read a CSV with one row per model. Raises BenchError naming the file, line and column of the first fault.

    Columns of metrics go by any name that the paper's script accepts; an empty cell means that the metric is missing.
    """
    from results.composite import column_of
    from results.files import read_regular

    try:
        content = read_regular(path, LARGEST_TABLE)
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        lines = [(reader.line_num, line) for line in reader if any(cell.strip() for cell in line)]
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BenchError(f"{path}: not a CSV in UTF-8 ({error}); save it as one") from error
    if not lines:
        raise BenchError(f"{path}: the file is empty; it needs a header and one row per model")
    for sign, named in ((";", "';'"), ("\t", "tabs")):
        if len(lines[0][1]) < 3 and lines[0][1][0].count(sign) > 2:
            raise BenchError(f"{path}: its columns are separated by {named}; save it with ',' (and decimal points)")
    header = [name.strip() for name in lines[0][1]]
    if len(lines) == 1:
        raise BenchError(f"{path}: has a header but no rows; add one row per model")
    for name in header:
        if header.count(name) > 1:
            raise BenchError(f"{path}: column '{name}' appears twice; keep one of them")
    metrics: dict[str, list[float | None]] = {}
    others: list[dict[str, str]] = []
    for number, line in lines[1:]:
        if len(line) != len(header):
            raise BenchError(f"{path}, line {number}: {len(line)} cells under {len(header)} columns; fix the line")
        cells = dict(zip(header, (cell.strip() for cell in line), strict=True))
        for name, text in cells.items():
            if column_of(name) is not None:
                metrics.setdefault(name, []).append(_number(path, number, name, text))
        others.append({name: text for name, text in cells.items() if name not in metrics})
    _check_scale(path, metrics)
    return ScoreTable(metrics, others)


def _number(path: Path, line: int, column: str, text: str) -> float | None:
    from results.catalog import CATALOG
    from results.composite import column_of

    if not text:
        return None
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise BenchError(f"{path}, line {line}, column '{column}': '{text}' is not a number; fix it or leave it empty")
    metric = column_of(column) or column
    lowest = next((fact.lowest for fact in CATALOG.values() if fact.mmhm == metric), None)
    if lowest is not None and value < lowest:
        raise BenchError(
            f"{path}, line {line}, column '{column}': {text} is impossible: {metric} is never below "
            f"{lowest:g}; fix it or leave it empty"
        )
    return value + 0.0  # -0.0 is 0.0


def _check_scale(path: Path, metrics: dict[str, list[float | None]]) -> None:
    """Refuse a column of CLIP scores of which some are in 0..1 and others in 0..100."""
    from results.composite import column_of

    for column, values in metrics.items():
        if column_of(column) != "CLIP Score":
            continue
        small = [value for value in values if value is not None and 0 < value <= 1]
        large = [value for value in values if value is not None and value > 2]
        if small and large:
            raise BenchError(
                f"{path}, column '{column}': {small[0]:g} beside {large[0]:g}; CLIP scores are in 0..1 or in 0..100, "
                "not in both: multiply the small ones by 100"
            )


def _column(table: ScoreTable, column: str) -> list[float | None]:
    from results.composite import column_of

    (name,) = (name for name in table.metrics if column_of(name) == column)
    return table.metrics[name]


def _check_complete(given: PartialBounds, path: Path) -> None:
    """Refuse a file of bounds that leaves some to the rows: what is frozen in part is not frozen."""
    from results.composite import COLUMNS, column_of

    held = {column_of(name) for name in given}
    lacking = [column for column in COLUMNS if column not in held]
    if lacking:
        raise BenchError(
            f"{path}: no bounds for {', '.join(lacking)}; include all four columns (null: taken from the rows)"
        )


def _check_bounds(used: Bounds, path: Path | None) -> None:
    """Refuse bounds that cannot scale a column: the wrong way round, or of a column without a value."""
    for column, pair in used.items():
        if not (math.isfinite(pair["min"]) and math.isfinite(pair["max"])):
            raise BenchError(
                f"column '{column}' has no bounds, because no row has a value for it; pass --bounds with numbers for it"
            )
        if pair["min"] > pair["max"]:
            raise BenchError(
                f"bounds of '{column}': min {pair['min']:g} is above max {pair['max']:g}; fix {path or 'the rows'}"
            )


def _write(path: Path, bounds: Bounds) -> None:
    from results.composite import write_bounds

    try:
        write_bounds(path, bounds)
    except OSError as error:
        raise BenchError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
