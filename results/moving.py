"""Cells that come from another runs directory, database or bundle, and cells that go: whole, with their directories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from results.bundles import Bundle, Packed, is_bundle, pack, read_bundle
from results.cells import CellDirectory, alone, cell_directories, is_array_name
from results.database import check_foreign, dictionaries, now, transaction
from results.errors import BenchError, NotFinishedError, StoreError, one_line
from results.evidence import NAME as EVIDENCE
from results.evidence import evidence_bytes
from results.files import disk_error, mark, remove, write_atomically
from results.index import Fault, reindex
from results.names import fits, title
from results.ranking import rank
from results.records import checked, is_cell_id
from results.remote import write_to
from results.store import connect, finish_runs, records_of, write_record


class Incoming(NamedTuple):
    """A cell of another place: its record, and its arrays and evidence where there are some."""

    record: Mapping[str, Any]
    arrays: Sequence[Path] = ()
    evidence: Path | bytes | None = None


class Merged(NamedTuple):
    """What a merge added, and which cells it could not take."""

    added: list[str]
    faults: list[Fault]


def read_source(source: Path, allowed: Path | None = None) -> tuple[dict[str, Incoming], list[Fault]]:
    """Return the finished cells of a database, a bundle or a runs directory, by id, and those that cannot be read.

    Raises StoreError when `source` is none of them, and for a bundle that is not whole.
    """
    if not source.exists():
        raise StoreError(f"{source}: no such file; name a bundle, a runs directory or its bench.duckdb")
    if source.is_file() and is_bundle(source):
        cells = read_bundle(source, allowed).cells
        return {name: Incoming(row.record, evidence=row.payload) for name, row in cells.items()}, []
    if allowed is not None:
        raise StoreError(f"{source}: no bundle, so nobody signed it; leave out --allowed-signers")
    return _of_directory(source) if source.is_dir() else _of_database(source)


def _of_directory(runs: Path) -> tuple[dict[str, Incoming], list[Fault]]:
    found: dict[str, Incoming] = {}
    faults = []
    for directory in cell_directories(runs):
        try:
            evidence = directory.path / EVIDENCE
            record = _unsigned(directory.load_result())
            found[directory.path.name] = Incoming(record, _arrays(directory), evidence if evidence.exists() else None)
        except NotFinishedError:
            continue
        except StoreError as error:
            faults.append(Fault(directory.path.name, f"{directory.result_path}: {error}"))
    database = runs / "bench.duckdb"
    if database.exists():
        try:
            rows, more = _of_database(database)
        except StoreError:
            if not found:
                raise
        else:
            found = rows | found
            faults += [fault for fault in more if fault.cell not in found]
    elif not found and not faults:
        raise StoreError(f"{runs}: no finished cells here; name a runs directory or its bench.duckdb")
    return found, [fault for fault in faults if fault.cell not in found]


def _arrays(directory: CellDirectory) -> list[Path]:
    return [path for path in sorted(directory.path.glob("*.npy")) if is_array_name(path.stem)]


def _of_database(database: Path) -> tuple[dict[str, Incoming], list[Fault]]:
    found: dict[str, Incoming] = {}
    faults = []
    with connect(database, retry=True) as connection:
        check_foreign(connection, database)
        for name, record in records_of(connection).items():
            try:
                checked(record)
            except StoreError as error:
                faults.append(Fault(one_line(name, 60), f"{database}: {error}"))
                continue
            found[name] = Incoming(_unsigned(record))
    return found, faults


def _unsigned(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record without the signer that it names: only a bundle can prove one."""
    return record | {"cell": {key: value for key, value in record["cell"].items() if key != "signed_by"}}


def merge(runs: Path, sources: Sequence[Path], allowed: Path | None = None) -> Merged:
    """Add the cells of other databases, bundles and runs directories that `runs` lacks: directories, then the rows.

    `allowed` is a file of the signers whose bundles are taken. Nothing is added when one of the sources cannot be read,
    or the disk is full. Cells that cannot be taken are named in the outcome, and so are those of other numbers than the
    row of the same id that is here or came first, which stays as it is (see `differs`).
    """
    incoming: dict[str, Incoming] = {}
    faults: list[Fault] = []
    for source in sources:
        found, bad = read_source(source, allowed)
        faults += bad
        for name, cell in found.items():
            there = incoming.get(name)
            if there is not None and (how := differs(there.record, cell.record)) is not None:
                faults.append(Fault(name, f"{source}: {how} than in the source before it, which was taken"))
            elif there is None or (not there.arrays and cell.arrays):
                incoming[name] = cell
    with alone(runs), connect(runs / "bench.duckdb", write=True, retry=True) as connection:
        mine = records_of(connection)
        for name, cell in incoming.items():
            if name in mine and (how := differs(mine[name], cell.record)) is not None:
                faults.append(
                    Fault(name, f"{how} than the row here, which was kept; 'bench audit' tells which is true")
                )
        moved: list[CellDirectory] = []
        try:
            _move_in(runs, incoming, mine, moved)
            added = [name for name in incoming if name not in mine]
            with transaction(connection):
                for name in added:
                    write_record(connection, CellDirectory(runs, name).load_result(), shared=False)
                finish_runs(connection, now().isoformat())
        except BaseException as error:
            for target in moved:
                target.clear()
            if isinstance(error, OSError):
                raise disk_error(runs, error) from error
            raise
        rank(connection)
    return Merged(added, faults)


NOTABLE = 0.01
"""Share of a value's 95% half width by which rows of one id may differ: another device or batch size moves less."""
NOTABLE_BARE = 1e-4
"""The same of the value itself, where it has no interval."""


def differs(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return which metrics of two records of one cell have other values, in words; None where none has.

    What rounding on another machine may do is let through. Only finished rows are compared.
    """
    if any(record["cell"]["status"] != "done" for record in (one, other)):
        return None
    mine, found = ({row["metric"]: row for row in record.get("metrics") or []} for record in (one, other))
    said = []
    for name in mine.keys() & found.keys():
        a, b = mine[name].get("value"), found[name].get("value")
        if a is None or b is None:
            alike = a is b
        else:
            low, high = mine[name].get("low"), mine[name].get("high")
            half = 0.0 if low is None or high is None else NOTABLE * (high - low) / 2
            alike = abs(a - b) <= max(half, NOTABLE_BARE * abs(a))
        if not alike:
            shown = ["not measured" if value is None else f"{value:.6g}" for value in (b, a)]
            said.append(f"{one_line(name, 40)} {' instead of '.join(shown)}")
    if not said:
        return None
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    return f"other numbers ({', '.join(sorted(said)[:3])}{more})"


def _move_in(
    runs: Path, incoming: Mapping[str, Incoming], mine: Mapping[str, Mapping[str, Any]], moved: list[CellDirectory]
) -> None:
    """Write the directories that are lacking, all of them beside the cells first; note in `moved` what was put there.

    A row that this database has without a directory gets its own record; the arrays of others only where they gave it.
    """
    staged = runs / f"merging-{mark()}"
    try:
        for name, cell in incoming.items():
            if CellDirectory(runs, name).read_result() is None:
                own = mine.get(name)
                same = own is None or own.get("metrics") == checked_metrics(cell.record)
                _stage(staged, name, cell if own is None else Incoming(own, *cell[1:] if same else ()))
        for path in sorted((staged / "cells").glob("*")):
            target = CellDirectory(runs, path.name)
            target.clear()
            target.path.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target.path)
            moved.append(target)
    finally:
        remove(staged)


def checked_metrics(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a record's metrics as a database gives them back."""
    return list(checked(record).get("metrics", []))


def _stage(staged: Path, name: str, cell: Incoming) -> None:
    directory = CellDirectory(staged, name)
    for path in cell.arrays:
        if path.is_symlink():
            raise BenchError(f"{path}: a link; only files inside the runs directory are merged")
        try:
            np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise BenchError(f"{path}: not an array of numbers ({one_line(str(error), 80)})") from error
        directory.path.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, directory.path / path.name)
    if cell.evidence is not None:
        payload = cell.evidence if isinstance(cell.evidence, bytes) else evidence_bytes(cell.evidence.parent)
        if payload is not None:
            write_atomically(directory.path / EVIDENCE, payload)
    directory.write_result(json.loads(json.dumps(cell.record)))


def write_bundle(runs: Path, names: Sequence[str], output: str | Path, key: Path | None = None) -> Bundle:
    """Write the finished rows of `runs` that `names` stand for (see `results.names.fits`) and return what was written.

    Args:
        runs: a runs directory.
        names: beginnings of ids, MODEL, MODEL@STEPS, MODEL@STEPS@CFG.
        output: the file, or its URL in some storage (see `results.remote`).
        key: a private SSH or minisign key to sign it with.

    Raises:
        BenchError: a name that fits no finished row, a key that cannot sign, or a file that cannot be written.
    """
    found, faults = read_source(runs)
    chosen: dict[str, Incoming] = {}
    for name in names:
        fitting = {cell: row for cell, row in found.items() if fits(row.record["cell"], name)}
        done = {cell: row for cell, row in fitting.items() if row.record["cell"]["status"] == "done"}
        if not done:
            broken = next((fault for fault in faults if fault.cell.startswith(name)), None)
            if broken is not None:
                raise StoreError(broken.reason)
            what = "is not finished" if fitting else "is not here"
            raise BenchError(f"row '{one_line(name, 80)}' {what} in {runs}; 'bench leaderboard --all' lists the rows")
        chosen |= done
    packed: dict[str, Packed] = {}
    for cell, row in sorted(chosen.items()):
        record = json.loads(json.dumps(row.record, default=str))
        record["cell"].pop("signed_by", None)
        checked(record, cell)
        packed[cell] = Packed(record, evidence_bytes(CellDirectory(runs, cell).path))
    payload, bundle = pack(packed, key)
    write_to(str(output), payload, "--output")
    return bundle


class Found(NamedTuple):
    """A cell that is to go."""

    cell: str
    title: str


def find_rows(runs: Path, names: Sequence[str]) -> list[Found]:
    """Return the cells, of any status, that names stand for: the beginning of an id, MODEL[@STEPS[@CFG]].

    Raises BenchError for a name that fits none.
    """
    database = runs / "bench.duckdb"
    cells: dict[str, Mapping[str, Any]] = {}
    for directory in cell_directories(runs):
        record = directory.read_result()
        if record is not None:
            cells[directory.path.name] = record["cell"]
    if database.exists():
        with connect(database, retry=True) as connection:
            for row in dictionaries(connection, "SELECT * FROM cells"):
                cells.setdefault(str(row["cell_id"]), row)
    found: dict[str, Found] = {}
    for name in names:
        fitting = [cell for cell in cells.values() if fits(cell, name)]
        if not fitting:
            raise BenchError(f"no row '{one_line(name, 80)}' in {runs}; 'bench leaderboard --all' lists them")
        for cell in sorted(fitting, key=lambda cell: (cell["model"], cell["steps"] or 0, cell["cfg"] or 0)):
            found[cell["cell_id"]] = Found(cell["cell_id"], title(cell))
    return list(found.values())


def forget(runs: Path, cells: Sequence[str]) -> None:
    """Remove cells with their directories and rows. Raises BenchError, with nothing removed, when that cannot be."""
    chosen = [name for name in cells if is_cell_id(name)]
    with alone(runs):
        aside = runs / f"removing-{mark()}"
        moved: list[tuple[Path, Path]] = []
        try:
            for name in chosen:
                directory = CellDirectory(runs, name)
                if directory.path.exists():
                    aside.mkdir(exist_ok=True)
                    directory.path.rename(aside / name)
                    moved.append((directory.path, aside / name))
            reindex(runs, without=cells)
        except BaseException as error:
            for path, place in moved:
                place.rename(path)
            if aside.exists():
                aside.rmdir()
            if isinstance(error, OSError):
                raise disk_error(runs, error) from error
            raise
        remove(aside)
