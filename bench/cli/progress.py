"""The progress display of `bench run`: bars on a terminal, one line per cell elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from results.numbers import counted
from results.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from bench.run.plan import Cell


ROOM_FOR_ELAPSED = 100
"""Columns of a terminal that hold the time gone by beside the rate and the time left."""


class RunProgress:
    """Shows the cell, its shards, the rate in images per second and the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
            *([TimeElapsedColumn()] if console.width >= ROOM_FOR_ELAPSED else []),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.samples = self.done_samples = 0
        self.cost = self.done_cost = 0.0
        self.cells = self.finished = self.ended = 0
        self.began = time.monotonic()
        self.overall: TaskID | None = None
        self.current: TaskID | None = None

    def __enter__(self) -> RunProgress:
        self.preparing = self.bars.add_task("judges and reference", total=None, note="")
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def wait(self, runs: Path) -> None:
        """Tell that another run has to end first."""
        self.console.print(f"another 'bench run' is working in {runs}; waiting for it to finish", markup=False)

    def plan(self, cells: int, reused: int, samples: int, cost: float) -> None:
        """Tell what is ahead: `cost` is in samples x steps, which the time left goes by."""
        self.samples, self.cost = samples, cost
        self.cells, self.finished = cells, reused
        kept = f", {reused} already measured" if reused else ""
        self.console.print(f"{counted(cells, 'row')}{kept}, {samples:,} samples to draw")
        self.began = time.monotonic()
        self.bars.update(self.preparing, visible=False)
        self.overall = self.bars.add_task("rows", total=cells, completed=reused, note="")
        self.current = self.bars.add_task("", total=1, note="", visible=False)

    def shard(self, cell: Cell, done: int, total: int, samples: int) -> None:
        """A shard of `samples` samples was finished, `done` of the cell's `total`."""
        self.done_samples += samples
        self.done_cost += samples * cell.steps
        elapsed = max(time.monotonic() - self.began, 1e-6)
        left = elapsed * (self.cost - self.done_cost) / max(self.done_cost, 1e-6)
        note = f"{self.done_samples / elapsed:,.0f} images/s, about {duration(left)} left"
        if self.overall is not None and self.current is not None:
            self.bars.update(self.overall, note=note)
            self.bars.update(
                self.current,
                description=f"  {printable(cell.label)}",
                completed=done,
                total=total,
                note="shards",
                visible=True,
            )

    def shares(self, ended: int, jobs: int, done: int, total: int) -> None:
        """Jobs on other machines sample: `ended` of `jobs` are through, and `done` of all `total` shards are there."""
        rate = done / max(time.monotonic() - self.began, 1e-6)
        left = f", about {duration((total - done) / rate)} left" if 0 < done < total else ""
        self.bars.update(
            self.preparing, description="shards", completed=done, total=total, note=f"{ended} of {jobs} jobs{left}"
        )
        if ended != self.ended and not self.console.is_terminal:
            self.console.print(f"{ended} of {jobs} jobs through, {done} of {total} shards sampled")
        self.ended = ended

    def timing(self, done: int, total: int) -> None:
        """All samples are drawn; `done` of `total` rows have been timed."""
        if done == 0 and total and not self.console.is_terminal:
            self.console.print(f"timing {counted(total, 'row')}, one at a time")
        if self.overall is not None and self.current is not None:
            self.bars.update(self.overall, note="")
            self.bars.update(
                self.current, description="  timing, alone", completed=done, total=total, note="rows", visible=True
            )

    def cell(self, cell: Cell, status: str, reason: str | None) -> None:
        """A cell was finished, failed or is unsupported."""
        self.finished += 1
        if self.overall is not None:
            self.bars.update(self.overall, completed=self.finished)
        if reason is not None:
            self.console.print(f"[{self.finished}/{self.cells}] {cell.label}: {status}: {reason}", markup=False)
        elif not self.console.is_terminal:
            elapsed = time.monotonic() - self.began
            told = duration(elapsed)
            if 0 < self.done_cost < self.cost:
                told += f", about {duration(elapsed * (self.cost - self.done_cost) / self.done_cost)} left"
            self.console.print(f"[{self.finished}/{self.cells}] {cell.label}: {status} ({told})", markup=False)


def duration(seconds: float) -> str:
    """Return a time for people: hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
