"""What a run would do (`--dry-run`): its cells with their evaluations, which are measured, and what is missing.

No judge and no weight is loaded, so the id of a cell that is not measured yet is not known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bench.models.counting import Count, Counter
from bench.run.costs import Operations, operations_ahead
from bench.run.needs import Needs, needs_of_run
from bench.run.plan import Cell, Request, make_plan
from bench.run.readiness import check_protocol
from results.cells import CellDirectory

RECORDED = (
    "model", "checkpoint", "family", "steps", "cfg", "sampler", "settings", "dtype", "seed", "num_samples",
    "random_weights", "weights_sha256", "measurement",
)  # fmt: skip
"""Columns of a recorded cell that tell which setting it measured."""


class Planned(NamedTuple):
    """One cell of the plan."""

    request: Request
    cell: Cell
    evaluations: Count | None
    """Per image; None where only a run tells, or the model does not take the setting."""
    cell_id: str | None
    """The id under which the setting is recorded; None where it is not, or something is missing that tells."""
    state: str
    """`to measure`, the status of the record, or why the model does not take the setting."""
    operations: Operations | None = None
    """Of one evaluation and one decoding; None where they cannot be counted on networks without memory."""

    @property
    def ahead(self) -> bool:
        """Whether a run would measure it."""
        return self.cell.unsupported is None and self.state != "done"


class Preview(NamedTuple):
    """What a run would do."""

    cells: list[Planned]
    lacking: Needs
    """What this machine lacks for it."""


def preview(requests: Sequence[Request], runs: Path) -> Preview:
    """Return the cells that `requests` would measure into `runs`, and what this machine lacks for them.

    Raises BenchError for a plan that cannot be made.
    """
    for request in requests:
        check_protocol(request.protocol)
    lacking = needs_of_run(requests).lacking()
    recorded = {} if lacking else _recorded(runs)
    counters: dict[str, Counter] = {}
    operations: dict[str, Operations | None] = {}
    planned = []
    for request in requests:
        asked = (
            replace(request, random_weights=True) if lacking else request
        )  # weights that are not here have no digest
        for cell in make_plan(asked, ""):
            name, kind = cell.card.name, _network(cell)
            if name not in counters:
                counters[name] = Counter(cell.card)
            count = None
            if cell.unsupported is None:
                settings = counters[name].adapter.resolve_settings(cell.steps, cell.sampler, cell.options)
                count = counters[name].count(cell.steps, cell.cfg, settings)
                known = operations.get(kind)
                # A setting may leave the guide out, so what is known of another may lack it.
                if kind not in operations or (known and not known.guide and count and count.guide_nfe):
                    operations[kind] = operations_ahead(counters[name], cell.steps, cell.cfg, settings)
            cell_id, status = recorded.get(_setting(request, cell), (None, "to measure"))
            state = cell.unsupported or status
            planned.append(Planned(request, cell, count, cell_id, state, operations.get(kind)))
    return Preview(planned, lacking)


def _network(cell: Cell) -> str:
    """Return what cards have in common whose evaluations cost the same."""
    card = cell.card
    return json.dumps(
        [card.family, card.architecture, card.latent_shape, card.autoencoder], sort_keys=True, default=str
    )


def _recorded(runs: Path) -> dict[str, tuple[str | None, str]]:
    """Return id and status of every recorded cell, by its setting."""
    found: dict[str, tuple[str | None, str]] = {}
    for directory in sorted((runs / "cells").glob("*")):
        record = CellDirectory(runs, directory.name).read_result()
        if record is not None:
            row = record["cell"]
            found[_key({name: row.get(name) for name in RECORDED})] = (directory.name, str(row["status"]))
    return found


def _setting(request: Request, cell: Cell) -> str:
    values = {name: getattr(cell, name, None) for name in RECORDED}
    values |= {"checkpoint": cell.card.name, "family": cell.card.family}
    return _key(values | {"measurement": request.protocol.measurement_digest, "settings": dict(cell.settings)})


def _key(values: dict[str, Any]) -> str:
    if values["random_weights"]:
        values["weights_sha256"] = None
    return json.dumps(values, sort_keys=True)
