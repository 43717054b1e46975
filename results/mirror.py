"""A copy of a runs directory in remote storage: each cell a kept folder, brought up to date while it is measured.

A share of a run is a kept folder too (`shares/PLAN/I-of-N`), with its cells under it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from results.cells import RESULT, CellDirectory
from results.errors import BenchError
from results.evidence import NAME as EVIDENCE
from results.files import disk_error, write_atomically
from results.records import is_cell_id
from results.remote import MANIFEST, Entry, Storage, entry_of, is_file_name, local_path, pull, push, read_manifest

CELLS, SHARES = "cells", "shares"
FAILED = "failed.json"
"""Why a cell failed in a share."""


def push_cell(runs: Path, cell_id: str, storage: Storage) -> int:
    """Bring the copy of a cell up to its directory; return how many files were uploaded.

    Of a finished cell the copy keeps arrays that this machine never had, and drops shards; of another it keeps all but
    the reason of an earlier failure.
    """
    directory = CellDirectory(runs, cell_id)
    if not directory.path.is_dir():
        return 0
    finished = directory.result_path.is_file()
    return push(
        directory.path,
        storage / CELLS / cell_id,
        keep=lambda name: not name.startswith("shard-") if finished else name != FAILED,
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
    return _pull_all(storage, runs, partial(_wanted, arrays=arrays))


def share_folder(directory: Path, storage: Storage) -> Storage:
    """Return where the copy of a share's directory (`shares/PLAN/I-of-N`) lies."""
    return storage / SHARES / directory.parent.name / directory.name


def pull_share(folder: Storage, directory: Path) -> None:
    """Fetch the shards that a share's directory lacks of its copy, and the reasons of cells that failed in it."""
    _pull_all(folder, directory, lambda name, manifest: name == FAILED or name.startswith("shard-"))


def pull_shares(storage: Storage, runs: Path) -> int:
    """Fetch what `runs` lacks of every share of a copy, and return how many there are."""
    count = 0
    for plan in (storage / SHARES).folders():
        for place in (storage / SHARES / plan).folders() if re.fullmatch(r"[0-9a-f]+", plan) else ():
            folder, directory = storage / SHARES / plan / place, runs / SHARES / plan / place
            manifest = read_manifest(folder) if re.fullmatch(r"[0-9]+-of-[0-9]+", place) else None
            if manifest is None:
                continue
            count += 1
            try:
                pull(folder, directory, manifest=manifest)
            except OSError as error:
                raise disk_error(directory, error) from error
            pull_share(folder, directory)
    return count


def _pull_all(storage: Storage, runs: Path, wanted: Callable[[str, Mapping[str, Entry]], bool]) -> int:
    """Fetch what `runs` lacks and is wanted of every cell that is not finished here; return how many there are."""
    count = 0
    for name in (storage / CELLS).folders():
        manifest = read_manifest(storage / CELLS / name) if is_cell_id(name) else None
        if manifest is None:  # its first upload was cut off
            continue
        count += 1
        directory = CellDirectory(runs, name)
        if directory.result_path.is_file():
            continue
        try:
            pull(storage / CELLS / name, directory.path, wanted=wanted, manifest=manifest)
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
            copied = (f"*/*/{MANIFEST}", f"{SHARES}/*/*/{MANIFEST}")
            if path is not None and any(any(path.glob(pattern)) for pattern in copied):  # a copy, though it lies here
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
    if pull_cells(storage, folder, arrays=True) + pull_shares(storage, folder) == 0:
        raise BenchError(f"{storage.url}: neither a file nor a copy of a runs directory is there; check the name")
    return folder
