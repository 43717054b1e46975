"""Cells as work: the shards of each, which of them are there from earlier runs, and the row as far as it is known."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bench.run.plan import Cell
from bench.run.provenance import differences
from bench.run.record import Context, ranking_of
from bench.run.schedule import Span
from bench.run.shard import COST_FACTS, SHARD_FACTS, Layout, shard_ranges
from protocols import Protocol
from protocols.labels import plan_labels
from results.cells import CellDirectory
from results.database import now
from results.errors import BenchWarning


@dataclass(eq=False)
class Work:
    """A cell in progress."""

    cell: Cell
    labels: np.ndarray
    ranges: list[Span]
    """Every shard of the cell."""
    missing: list[Span]
    """Those to be sampled here."""
    row: dict[str, Any]

    @classmethod
    def of(cls, cell: Cell, context: Context) -> Work:
        """Return the whole cell as work, all of it missing."""
        ranges = shard_ranges(cell.num_samples, cell.batch_size)
        return cls(cell, cell_labels(cell, context), ranges, list(ranges), first_row(cell, context))

    @property
    def total(self) -> int:
        """How many shards the cell has."""
        return len(self.ranges)


class Ahead(NamedTuple):
    """What is to be drawn."""

    samples: int
    cost: float
    """Samples x steps, which the time goes by."""

    @classmethod
    def of(cls, work: Sequence[Work]) -> Ahead:
        """Return what the missing shards of `work` hold."""
        parts = [(item.cell.steps, stop - start) for item in work for start, stop in item.missing]
        return cls(sum(count for _, count in parts), float(sum(steps * count for steps, count in parts)))


class Earlier:
    """Tells which shards from earlier runs can stay: whole, of the same batch size, with all that the judges say, and
    made by the code and libraries of this process (of any, with `allow_mixed`)."""

    def __init__(self, context: Context, judged: Callable[[], Layout]) -> None:
        """`judged` tells what the judges say of one image; it is asked once, and only where there are shards."""
        self.context = context
        self.judged = judged
        self.layout: Layout | None = None
        self.others: Counter[str] = Counter()

    def lacking(self, directory: CellDirectory, spans: Sequence[Span], batch_size: int) -> list[Span]:
        """Return those of `spans` whose shards are not there or cannot stay."""
        if next(directory.path.glob("shard-*"), None) is None:
            return list(spans)
        if self.layout is None:
            self.layout = self.judged()
        return [span for span in spans if not self._stays(directory, span, batch_size, self.layout)]

    def tell(self) -> None:
        """Warn of shards that are sampled again because others made them."""
        for what, count in self.others.items():
            shards = "1 shard" if count == 1 else f"{count} shards"
            line = f"{shards} of an earlier run sampled again: made by {what} (--allow-mixed keeps such shards)"
            warnings.warn(line, BenchWarning, stacklevel=3)

    def _stays(self, directory: CellDirectory, span: Span, batch_size: int, judged: Layout) -> bool:
        facts = directory.shard_facts(*span)
        if facts is None or facts.get("batch_size") != batch_size:
            return False
        numbers = [facts.get(name) for name in SHARD_FACTS]
        if not all(isinstance(number, (int, float)) and number >= 0 for number in numbers):
            return False
        if span[0] == 0 and not (isinstance(costs := facts.get("costs"), dict) and set(costs) == set(COST_FACTS)):
            return False
        found = directory.shard_layout(*span) or {}
        pictures, _ = found.pop("thumbnails", ("U8", ()))
        expected = {name: (dtype, (span[1] - span[0], *rest)) for name, (dtype, (_, *rest)) in judged.items()}
        if pictures != "U8" or found != expected:
            return False
        other = others(facts, self.context)
        if other:
            self.others[other] += 1
        return not other


def others(facts: Mapping[str, Any], context: Context) -> str:
    """Return how the maker of a shard differs from this process; empty where it does not, or any is allowed."""
    if context.allow_mixed:
        return ""
    made = facts.get("made_by")
    if not isinstance(made, dict) or not all(isinstance(value, str) for value in made.values()):
        return "a version that did not say what it was"
    return differences(made, context.made_by)


def has_metrics(record: Mapping[str, Any] | None, protocol: Protocol) -> bool:
    """Tell whether a cell is finished, with all that the protocol asks for by now or the reason why it has not."""
    if record is None or record["cell"]["status"] != "done":
        return False
    found = {row["metric"] for table in ("metrics", "skipped_metrics") for row in record.get(table, [])}
    return found >= set(protocol.metrics)


def cell_labels(cell: Cell, context: Context) -> np.ndarray:
    """Return the labels of all samples of a cell, int64 [N]."""
    return plan_labels(
        context.protocol.label_plan,
        cell.num_samples,
        len(context.protocol.class_names),
        seed=cell.seed,
        reference=context.reference.labels,
    )


def first_row(cell: Cell, context: Context) -> dict[str, Any]:
    """Return the row of table `cells` as far as it is known before sampling."""
    protocol = context.protocol
    return {
        "cell_id": cell.cell_id,
        "run_id": context.run["run_id"],
        "model": cell.model,
        "checkpoint": cell.card.name,
        "family": cell.card.family,
        "protocol": protocol.name,
        "protocol_digest": protocol.digest,
        "ranking": ranking_of(context, cell.judged_under, cell.num_samples, cell.seed),
        "measurement": protocol.measurement_digest,
        "status": "running",
        "reason": None,
        "steps": cell.steps,
        "cfg": cell.cfg,
        "sampler": cell.sampler,
        "settings": dict(cell.settings),
        "options": {**cell.options, **({"compile": True} if cell.compile else {})},
        "dtype": cell.dtype,
        "seed": cell.seed,
        "num_samples": cell.num_samples,
        "batch_size": cell.batch_size,
        "off_regime": cell.card.off_regime(cell.steps),
        "random_weights": cell.random_weights,
        "weights_sha256": cell.weights_sha256,
        "failures": 0,
        "device": context.run["device"],
        "latent_shape": "x".join(map(str, cell.card.latent_shape)),
        "command": cell.command(protocol.argument),
        "started": now().isoformat(),
        "finished": now().isoformat(),
    }
