"""`bench run --sync`: a copy of the runs directory in remote storage, brought up to date with every shard and cell."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from results.errors import BenchError, BenchWarning
from results.mirror import has_result, pull_cells, pull_share, push_cell, share_folder
from results.remote import Storage, push

if TYPE_CHECKING:
    from bench.run.interface import Progress
    from bench.run.plan import Cell


MARK = "fewstep-bench.json"
"""Written first: it shows that the storage takes files, and whose they are."""


class Mirror:
    """Progress that also keeps the copy; `inner` draws.

    An upload that fails is a warning, and is tried again when the run ends.
    """

    def __init__(self, url: str, runs: Path) -> None:
        self.root = self.storage = Storage(url)
        self.runs = runs
        self.inner: Progress | None = None
        self.touched: dict[str, None] = {}
        self.failed = False

    def fetch(self) -> int:
        """Fetch what other machines measured and sampled, and return how many cells the copy has.

        Raises BenchError where the storage cannot be read or written, before any work.
        """
        self.check()
        return pull_cells(self.storage, self.runs, arrays=False)

    def check(self) -> None:
        """Raise BenchError where the storage cannot be read or written."""
        self.runs.mkdir(parents=True, exist_ok=True)
        (self.storage / MARK).write(b"{}")

    def begin(self, directory: Path, fresh: bool) -> None:
        """Keep the copy of a share from now on: fetch its shards, unless `fresh`, and upload what it says of itself."""
        self.runs, self.storage = directory, share_folder(directory, self.root)
        self.touched.clear()
        if not fresh:
            pull_share(self.storage, directory)
        push(directory, self.storage)

    def around(self, inner: Progress) -> Progress:
        """Return this, drawing by `inner`."""
        self.inner = inner
        return self

    @property
    def _shown(self) -> Progress:
        assert self.inner is not None
        return self.inner

    def wait(self, runs: Path) -> None:
        """Draw it."""
        self._shown.wait(runs)

    def plan(self, cells: int, reused: int, samples: int, cost: float) -> None:
        """Draw it."""
        self._shown.plan(cells, reused, samples, cost)

    def shares(self, ended: int, jobs: int, done: int, total: int) -> None:
        """Draw it."""
        self._shown.shares(ended, jobs, done, total)

    def timing(self, done: int, total: int) -> None:
        """Draw it."""
        self._shown.timing(done, total)

    def shard(self, cell: Cell, done: int, total: int, samples: int) -> None:
        """Draw it and upload the shard."""
        self._shown.shard(cell, done, total, samples)
        if done < total:  # the last one is about to become part of the finished cell
            self._push(cell.cell_id)

    def cell(self, cell: Cell, status: str, reason: str | None) -> None:
        """Draw it and upload the cell."""
        self._shown.cell(cell, status, reason)
        self._push(cell.cell_id)

    def finish(self, reused: Iterable[Cell] = ()) -> None:
        """Upload what changed since, times among it, and what the copy lacks of cells that were measured before.

        Raises BenchError where that fails.
        """
        try:
            for cell in reused:
                if not has_result(self.runs, cell.cell_id, self.storage):
                    push_cell(self.runs, cell.cell_id, self.storage)
            for cell_id in self.touched:
                push_cell(self.runs, cell_id, self.storage)
            self.touched.clear()
        except BenchError as error:
            raise BenchError(
                f"{error}; everything measured is kept in {self.runs}, and the same command uploads it"
            ) from error

    def _push(self, cell_id: str) -> None:
        self.touched[cell_id] = None
        if self.failed:
            return
        try:
            push_cell(self.runs, cell_id, self.storage)
        except BenchError as error:
            self.failed = True
            warnings.warn(f"{error}; the run continues and uploads at its end", BenchWarning, stacklevel=2)
