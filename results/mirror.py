"""A copy of a runs directory in remote storage: each cell a kept folder, brought up to date while it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from results.cells import RESULT, CellDirectory
from results.evidence import NAME as EVIDENCE
from results.files import disk_error
from results.records import is_cell_id
from results.remote import Entry, Storage, entry_of, pull, push, read_manifest

CELLS = "cells"


def push_cell(runs: Path, cell_id: str, storage: Storage) -> int:
    """Bring the copy of a cell up to its directory; return how many files were uploaded.

    Of a finished cell the copy keeps arrays that this machine never had, and drops shards.
    """
    directory = CellDirectory(runs, cell_id)
    if not directory.path.is_dir():
        return 0
    finished = directory.result_path.is_file()
    return push(
        directory.path, storage / CELLS / cell_id, keep=lambda name: not finished or not name.startswith("shard-")
    )


def has_result(runs: Path, cell_id: str, storage: Storage) -> bool:
    """Tell whether the copy has the result of a finished cell as it is here; it then has all that belongs to it."""
    entry = (read_manifest(storage / CELLS / cell_id) or {}).get(RESULT)
    return entry is not None and entry == entry_of(CellDirectory(runs, cell_id).result_path)


def pull_cells(storage: Storage, runs: Path, *, arrays: bool) -> int:
    """Fetch what `runs` lacks of every cell of a copy, and return how many cells the copy has.

    Of a finished cell its result and evidence, and its arrays if `arrays`; of an unfinished one its shards. Nothing of
    a cell that is finished here is fetched.
    """
    count = 0
    cells = storage / CELLS
    for name in cells.folders():
        if not is_cell_id(name):
            continue
        manifest = read_manifest(cells / name)
        if manifest is None:  # its first upload was cut off
            continue
        count += 1
        directory = CellDirectory(runs, name)
        if directory.result_path.is_file():
            continue
        try:
            pull(cells / name, directory.path, wanted=partial(_wanted, arrays=arrays), manifest=manifest)
        except OSError as error:
            raise disk_error(directory.path, error) from error
    return count


def _wanted(name: str, manifest: Mapping[str, Entry], arrays: bool) -> bool:
    if name in (RESULT, EVIDENCE):
        return True
    return arrays and name.endswith(".npy") if RESULT in manifest else name.startswith("shard-")
