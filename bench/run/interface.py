"""What a run is asked for, whom it tells, and what it gives back: shared by the runner, executors and commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

from bench.run.plan import Cell
from results.errors import DatabaseInUseError
from results.index import Indexer


@dataclass(frozen=True)
class How:
    """In which way cells are sampled, which moves no number.

    Attributes:
        executor: name in the entry point group `bench.executors`.
        workers: how many; 0: as many as fit.
        options: the executor's own.
        fresh: measure again what is already measured.
        timeout: limit of each batch in seconds, which needs a worker process that can be ended.
        allow_mixed: take shards that other code or libraries made, and workers that have others.
        arguments: the command line, for the record.
    """

    executor: str = "local"
    workers: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False
    timeout: float | None = None
    allow_mixed: bool = False
    arguments: Sequence[str] = ()


class Progress(Interface):
    """Told about every step; the command line draws it."""

    def wait(self, runs: Path) -> None:
        """Another run is at work in the directory; this one begins when that one ends."""

    def plan(self, cells: int, reused: int, samples: int, cost: float) -> None:
        """Tell what is ahead; `cost` is samples x steps."""

    def shard(self, cell: Cell, done: int, total: int, samples: int) -> None:
        """A shard of `samples` samples was finished (`done` of the cell's `total`)."""

    def cell(self, cell: Cell, status: str, reason: str | None) -> None:
        """A cell was finished."""

    def shares(self, ended: int, jobs: int, done: int, total: int) -> None:
        """Of `jobs` jobs that sample shares `ended` have; of the `total` shards of all, `done` are there."""

    def timing(self, done: int, total: int) -> None:
        """Of `total` cells that are timed after all sampling, `done` were."""


@dataclass
class Summary:
    """What a run did."""

    database: Path
    indexer: Indexer
    measured: list[Cell] = field(default_factory=list)
    reused: list[Cell] = field(default_factory=list)
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    unsupported: list[tuple[Cell, str]] = field(default_factory=list)
    behind: DatabaseInUseError | None = None
    """Why the database lacks what was measured."""
