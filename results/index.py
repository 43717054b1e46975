"""The database as an index of the cells' directories: written, and rebuilt from them at will."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from results.cells import CellDirectory, cell_directories
from results.database import fault_of, now, write_ahead_log
from results.errors import (
    BenchError,
    BenchWarning,
    DamagedDatabaseError,
    DatabaseInUseError,
    NotFinishedError,
    StoreError,
    one_line,
)
from results.files import remove, sweep, writing
from results.ranking import rank
from results.records import checked, is_cell_id
from results.store import connect, finish_runs, records_of, write_cell


class Fault(NamedTuple):
    """A cell that the database could not take, and why."""

    cell: str
    reason: str


class Rebuilt(NamedTuple):
    """What a rebuilt database holds, and what it does not."""

    indexed: int
    faults: list[Fault]
    """Finished cells that could not be read."""
    kept: list[str]
    """Rows of the old database without a (readable) directory, which has been written from them."""
    dropped: list[str]
    """Such rows that were asked to be dropped."""
    aside: list[Path]
    """Where an unreadable old database went."""


def rank_all(database: Path) -> None:
    """Rank every group of comparable rows anew; see `results.ranking.rank`."""
    with connect(database, write=True, retry=True) as connection:
        rank(connection)


def index_cells(
    database: Path, directories: Sequence[CellDirectory], *, only_new: bool = False, retry: bool = True
) -> list[Fault]:
    """Put finished cells into the database, each in one transaction; return those that it could not take."""
    if not directories:
        return []
    with connect(database, write=True, retry=retry) as connection:
        known: set[str] = set()
        if only_new:
            found = connection.execute(
                "SELECT cell_id FROM cells WHERE status = 'done' AND (latency_seconds IS NOT NULL OR steps IS NULL)"
            ).fetchall()
            known = {cell_id for (cell_id,) in found}
        return index_records(connection, _results(directories, known))


def _results(directories: Sequence[CellDirectory], known: set[str]) -> Iterable[Mapping[str, Any]]:
    for directory in directories:
        record = directory.read_result() if directory.path.name not in known else None
        if record is not None:
            yield record


def index_records(connection: duckdb.DuckDBPyConnection, records: Iterable[Mapping[str, Any]]) -> list[Fault]:
    """Write records into an open database, each in one transaction; return those that it could not take."""
    faults = []
    for record in records:
        try:
            write_cell(connection, record)
        except (StoreError, duckdb.DataError, duckdb.IntegrityError) as error:
            faults.append(Fault(str(record["cell"]["cell_id"]), one_line(str(error).splitlines()[0], 160)))
    return faults


def reindex(runs: Path, *, drop: bool = False, without: Sequence[str] = ()) -> Rebuilt:
    """Rebuild the database from the cells' directories, but for the cells `without`.

    Rows of the old database that have no readable directory get one, or are dropped where `drop` asks for it. The old
    database stays until the new one is whole, and aside when it cannot be read. A cell that cannot be taken is named
    in the outcome, and the others are. Raises StoreError when nothing is there to index, or the database is in use.
    """
    database = runs / "bench.duckdb"
    sweep(runs, "bench.duckdb.*.tmp", "bench.duckdb.*.tmp.wal")
    remove(runs / "bench.duckdb.rebuilt")
    with ExitStack() as stack:
        stored, damaged = _stored(stack, database)
        records: list[dict[str, Any]] = []
        faults: list[Fault] = []
        kept: list[str] = []
        dropped: list[str] = []
        names = {directory.path.name for directory in cell_directories(runs)} | set(stored)
        for name in sorted(names - set(without)):
            directory = CellDirectory(runs, name)
            try:
                records.append(directory.load_result())
                continue
            except StoreError as error:
                reason, unfinished = str(error), isinstance(error, NotFinishedError)
            if name in stored and drop and unfinished:
                dropped.append(name)
            elif name in stored:
                try:
                    checked(stored[name], name)
                    directory.write_result(stored[name])
                except BenchError as error:
                    faults.append(Fault(name, str(error)))
                    continue
                kept.append(name)
                records.append(stored[name])
            elif not unfinished:
                faults.append(Fault(name, f"{directory.result_path}: {reason}"))
        if not (records or without or dropped or damaged):
            if faults:
                raise StoreError(f"{runs}: no cell can be indexed: {faults[0].cell}: {faults[0].reason}")
            raise StoreError(f"{runs}: no finished cells to index; 'bench run' creates them")
        records.sort(key=lambda record: (str(record["cell"]["finished"]), record["cell"]["cell_id"]))
        aside: list[Path] = []
        try:
            with writing(database) as temporary:
                try:
                    with connect(temporary, write=True) as connection:
                        refused = index_records(connection, records)
                        rank(connection)
                        finish_runs(connection, now().isoformat())
                        connection.execute("CHECKPOINT")
                finally:
                    remove(write_ahead_log(temporary))
                if damaged:
                    aside = _put_aside(database)
                # What the log holds is in the directories; beside the new file it would make that unreadable.
                remove(write_ahead_log(database))
        except OSError as error:
            raise StoreError(
                f"{runs}: the rebuilt database cannot be written ({error.strerror or error}); free space or fix "
                "permissions, then run 'bench reindex' again"
            ) from error
    return Rebuilt(len(records) - len(refused), faults + refused, kept, dropped, aside)


def _stored(stack: ExitStack, database: Path) -> tuple[dict[str, dict[str, Any]], bool]:
    """Return the records of the old database, held so that nobody writes to it, and whether it is damaged."""
    if not database.exists():
        return {}, False
    try:
        with ExitStack() as opened:
            connection = opened.enter_context(connect(database, write=True, retry=True))
            try:
                connection.execute("CHECKPOINT")
                records = records_of(connection)
            except duckdb.Error as error:
                raise fault_of(database, error) or error from error
            stack.push(opened.pop_all())
    except DamagedDatabaseError:
        return {}, True
    return {name: record for name, record in records.items() if is_cell_id(name)}, False


def _put_aside(database: Path) -> list[Path]:
    """Move a damaged database and its log to the first name that is free; return where they went."""
    target = next(
        place
        for number in count(1)
        if not (place := database.with_name(f"bench.damaged-{number}.duckdb")).exists()
        and not write_ahead_log(place).exists()
    )
    moved = []
    for old, new in ((database, target), (write_ahead_log(database), write_ahead_log(target))):
        if old.exists():
            old.replace(new)
            moved.append(new)
    return moved


class Indexer:
    """Keeps the database up with cells as they are finished; while another process holds it, they wait."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.waiting: list[CellDirectory] = []
        self.warned = False

    def add(self, directory: CellDirectory) -> None:
        """Put one more finished cell into the database, now or with a later one."""
        self.waiting.append(directory)
        try:
            self.catch_up(retry=not self.warned)
        except DatabaseInUseError as error:
            if not self.warned:
                warnings.warn(f"{error}; the run continues, and its rows are added later", BenchWarning, stacklevel=2)
            self.warned = True

    def catch_up(self, *, retry: bool = True) -> None:
        """Put the waiting cells into the database. Raises DatabaseInUseError when another process holds it."""
        faults = index_cells(self.database, self.waiting, retry=retry)
        self.waiting = []
        for fault in faults:
            warnings.warn(f"cell {fault.cell} is not in the database: {fault.reason}", BenchWarning, stacklevel=2)
