"""A copy of a runs directory in remote storage: each cell a kept folder, brought up to date while it is measured."""

from __future__ import annotations

from pathlib import Path

from results.cells import CellDirectory
from results.evidence import NAME as EVIDENCE
from results.records import is_cell_id
from results.remote import Storage, pull, push, read_manifest

CELLS, RESULT = "cells", "result.json"


def push_cell(runs: Path, cell_id: str, storage: Storage) -> int:
    """Bring the copy of a cell up to its directory; return how many files were uploaded.

    Of a finished cell the copy keeps arrays that this machine never had, and drops shards.
    """
    path = CellDirectory(runs, cell_id).path
    if not path.is_dir():
        return 0
    finished = (path / RESULT).is_file()
    return push(path, storage / CELLS / cell_id, keep=lambda name: not finished or not name.startswith("shard-"))


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
        path = runs / CELLS / name
        if (path / RESULT).is_file():
            continue
        done = RESULT in manifest
        pull(
            cells / name,
            path,
            wanted=lambda file, done=done: (  # type: ignore[misc]
                file in (RESULT, EVIDENCE)
                or (done and arrays and file.endswith(".npy"))
                or (not done and file.startswith("shard-"))
            ),
        )
    return count
