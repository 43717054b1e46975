"""What rows are called: versions of one name are told apart, and a model with two names counts once.

A version is what a name stands for: the weights of a model, the pictures of a scored folder. Where a database has rows
of several, each row is called `NAME#` and the first letters of its version's digest, in every view.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from results.numbers import counted
from results.rows import Row

SEPARATOR = "#"
LETTERS = 7
"""Letters of a digest that tell versions apart."""
FEWEST_LETTERS = 4
"""Letters of a cell id from which on they stand for it: a slip of a key is no row."""
NAMES = (
    f"(SELECT cell_id, several, CASE WHEN several THEN model || '{SEPARATOR}' || left(version, {LETTERS}) ELSE model "
    "END AS name FROM (SELECT cell_id, model, version, coalesce(version IS NOT NULL AND min(version) OVER versions "
    "<> max(version) OVER versions, false) AS several FROM (SELECT cell_id, model, checkpoint, "
    "coalesce(weights_sha256, json_extract_string(settings, '$.content')) AS version FROM cells) "
    "WINDOW versions AS (PARTITION BY model, checkpoint)))"
)
"""SQL of a table of `cell_id`, `name`, what each row is called, and `several`, whether that tells versions apart."""
UNDER_ONE_NAME = (
    "NOT EXISTS (SELECT 1 FROM cells own WHERE c.model <> c.checkpoint AND own.model = c.checkpoint "
    "AND own.checkpoint = c.checkpoint AND own.ranking = c.ranking AND own.status = c.status AND own.steps = c.steps "
    "AND own.cfg = c.cfg AND own.sampler = c.sampler AND own.settings::VARCHAR = c.settings::VARCHAR "
    "AND own.dtype = c.dtype AND own.random_weights = c.random_weights "
    "AND own.weights_sha256 IS NOT DISTINCT FROM c.weights_sha256)"
)
"""SQL of whether a row `c` of table `cells` is not there a second time, under the name of its checkpoint.

A card that stands for others was once measured under its own name, beside its members.
"""


def called(cell: Mapping[str, Any]) -> set[str]:
    """Return what a row of `cells` may be called: by its name alone, and by its version too."""
    settings = cell["settings"] if isinstance(cell["settings"], Mapping) else json.loads(cell["settings"])
    version = cell["weights_sha256"] or settings.get("content")
    name = str(cell["model"])
    return {name} if version is None else {name, f"{name}{SEPARATOR}{str(version)[:LETTERS]}"}


def versions(shown: Sequence[Row]) -> list[str]:
    """Return a line for each name of which rows of several versions are shown: which they are, and since when."""
    dates: dict[str, dict[str, str]] = {}
    for row in sorted(shown, key=lambda row: row.cell["finished"]):
        if row.cell["several_versions"]:
            name, _, version = row.cell["model"].rpartition(SEPARATOR)
            dates.setdefault(name, {})[version] = f"{row.cell['finished']:%Y-%m-%d %H:%M}"
    lines = []
    for name, found in dates.items():
        listed = ", ".join(f"{SEPARATOR}{version} of {date}" for version, date in reversed(found.items()))
        lines.append(f"{name} has several versions, each a row of its own; here: {listed}")
    return lines


def fits(cell: Mapping[str, Any], name: str) -> bool:
    """Tell whether a row of `cells` is meant by the beginning of its id, or MODEL[#VERSION][@STEPS[@CFG]]."""
    if not name:
        return False
    names = called(cell)
    if name in (*names, cell["cell_id"]) or (len(name) >= FEWEST_LETTERS and cell["cell_id"].startswith(name)):
        return True
    for parts in (1, 2):
        model, *rest = name.rsplit("@", parts)
        if model not in names or len(rest) != parts:
            continue
        try:
            wanted = (int(rest[0]), *map(float, rest[1:]))
        except ValueError:
            continue
        if wanted == (cell["steps"], cell["cfg"])[:parts]:
            return True
    return False


def title(cell: Mapping[str, Any]) -> str:
    """Return a row's setting and status for people."""
    steps = "images" if cell["steps"] is None else f"{counted(cell['steps'], 'step')}, cfg {cell['cfg']:g}"
    status = "" if cell["status"] == "done" else f", {cell['status']}"
    samples = counted(cell["num_samples"], "sample")
    return f"{cell['model']}, {steps}, {cell['protocol']}, {samples}, seed {cell['seed']}{status}"
