"""A copy of a runs directory in remote storage: each cell a kept folder, brought up to date while it is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from results.cells import RESULT, CellDirectory
from results.errors import BenchError
from results.evidence import NAME as EVIDENCE
from results.files import disk_error, write_atomically
from results.records import is_cell_id
from results.remote import MANIFEST, Entry, Storage, entry_of, is_file_name, local_path, pull, push, read_manifest

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


@contextmanager
def local_copies(places: Sequence[str], limit: int) -> Iterator[list[Path]]:
    """Yield a path for each place while the block lasts: itself where it is one, else a copy of the file or runs there.

    `limit` is the size of a file that is fetched. An error that names a copy names its URL instead.
    """
    with tempfile.TemporaryDirectory(prefix="bench-remote-") as scratch:
        paths: list[Path] = []
        copies: dict[str, str] = {}
        for index, place in enumerate(places):
            path = local_path(place)
            if path is not None and any(path.glob(f"*/*/{MANIFEST}")):  # a copy, though it lies here
                place, path = path.absolute().as_uri(), None
            if path is None:
                path = _fetched(Storage(place), Path(scratch) / str(index), limit)
                copies[str(path)] = place
            paths.append(path)
        try:
            yield paths
        except BenchError as error:
            said = str(error)
            for copy, place in copies.items():
                said = said.replace(copy, place)
            if said == str(error):
                raise
            raise type(error)(said) from error


def _fetched(storage: Storage, folder: Path, limit: int) -> Path:
    if storage.exists():
        name = storage.path.rpartition("/")[2]
        path = folder / (name if is_file_name(name) else "file")
        write_atomically(path, storage.read(limit))
        return path
    if pull_cells(storage, folder, arrays=True) == 0:
        raise BenchError(f"{storage.url}: neither a file nor a copy of a runs directory is there; check the name")
    return folder
