"""The directory of a cell: shards while it is sampled, arrays and a record when it is done. It is the truth.

    cells/<cell_id>/shard-00000000-00000500.safetensors   judged samples [start, stop)
    cells/<cell_id>/<judge>.<array>.npy                    all samples, once every shard is there
    cells/<cell_id>/result.json                            rows for the database; written last

Every file is written under a temporary name, flushed to the disk and renamed, so that whatever exists is whole.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from results.errors import NotFinishedError, StoreError
from results.files import disk_error, read_regular, remove, sweep, write_atomically, writing
from results.records import checked, is_cell_id, parsed

RESULT = "result.json"
"""The file of a cell's record."""
LARGEST_RECORD = 64 << 20
"""Bytes of it."""


def is_array_name(name: str) -> bool:
    """Tell whether an array may become a file: `<judge>.<array>` or `thumbnails`, nothing of a path."""
    return re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name) is not None and len(name) < 100


class CellDirectory:
    """One cell's files under the runs directory."""

    def __init__(self, runs: Path, cell_id: str) -> None:
        self.path = runs / "cells" / cell_id
        self.result_path = self.path / RESULT

    def shard_path(self, start: int, stop: int) -> Path:
        """Return the file of samples [start, stop)."""
        return self.path / f"shard-{start:08d}-{stop:08d}.safetensors"

    def write_shard(self, start: int, stop: int, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Write one shard whole or not at all."""
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        payload = save(contiguous, metadata={"facts": json.dumps(facts)})
        write_atomically(self.shard_path(start, stop), payload)

    def shard_facts(self, start: int, stop: int) -> dict[str, Any] | None:
        """Return the facts of a finished shard, None when it is absent or unreadable."""
        path = self.shard_path(start, stop)
        try:
            with safe_open(path, framework="numpy") as shard:
                facts: dict[str, Any] = json.loads((shard.metadata() or {})["facts"])
                return facts if isinstance(facts, dict) else None
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError):
            return None

    def first_facts(self) -> dict[str, Any] | None:
        """Return the facts of the shard that begins the cell, None when it is absent or unreadable."""
        found = next(self.path.glob(f"shard-{0:08d}-*.safetensors"), None)
        return None if found is None else self.shard_facts(0, int(found.stem.rpartition("-")[2]))

    def shard_layout(self, start: int, stop: int) -> dict[str, tuple[str, tuple[int, ...]]] | None:
        """Return (dtype as safetensors writes it, shape) of each array of a shard, None when it is unreadable."""
        try:
            with safe_open(self.shard_path(start, stop), framework="numpy") as shard:
                slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118
                return {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in slices.items()}
        except (OSError, SafetensorError, ValueError, TypeError):
            return None

    def assemble(self, ranges: list[tuple[int, int]]) -> dict[str, np.ndarray]:
        """Join the shards into one memory-mapped array per name (`thumbnails` only from where they are).

        One shard is in memory at a time. Raises BenchError when it cannot be written.
        """
        total = ranges[-1][1]
        thumbnails: list[np.ndarray] = []
        paths: dict[str, Path] = {}
        try:
            with ExitStack() as stack:
                files: dict[str, BinaryIO] = {}
                for start, stop in ranges:
                    with safe_open(self.shard_path(start, stop), framework="numpy") as shard:
                        for name in shard.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                            if not is_array_name(name):
                                continue  # nothing of ours wrote it; a name must not choose a place on the disk
                            part = shard.get_tensor(name)
                            if name == "thumbnails":
                                thumbnails.append(part)
                                continue
                            if name not in files:
                                paths[name] = self.path / f"{name}.npy"
                                files[name] = stack.enter_context(stack.enter_context(writing(paths[name])).open("wb"))
                                shape = (total, *part.shape[1:])
                                header = {"descr": part.dtype.str, "fortran_order": False, "shape": shape}
                                np.lib.format.write_array_header_2_0(files[name], header)
                            files[name].write(part.tobytes())  # tofile would not say why a write failed
        except OSError as error:
            raise disk_error(self.path, error) from error
        arrays = {name: np.load(path, mmap_mode="r", allow_pickle=False) for name, path in paths.items()}
        if thumbnails:
            arrays["thumbnails"] = np.concatenate(thumbnails)
        return arrays

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the finished cell's arrays, memory-mapped."""
        return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(self.path.glob("*.npy"))}

    def scores(self, name: str) -> np.ndarray | None:
        """Return a judge's score of each image, without reading all of it; None where there is none to read."""
        path = self.path / f"{name}.npy"
        try:
            if not path.is_file():  # a merged database has no scores of images
                return None
            found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return found

    def remove_shards(self) -> None:
        """Remove the shards and leftovers of an interrupted write."""
        for path in [*self.path.glob("shard-*.safetensors"), *self.path.glob("*.tmp")]:
            path.unlink(missing_ok=True)

    def write_result(self, record: Mapping[str, Any]) -> None:
        """Write the cell's record: from now on the cell is finished."""
        write_atomically(self.result_path, json.dumps(record, indent=1, allow_nan=False).encode())

    def load_result(self) -> dict[str, Any]:
        """Return the record.

        Raises NotFinishedError when there is none, and StoreError, saying why, when it is unreadable or another cell's.
        """
        try:
            text = read_regular(self.result_path, LARGEST_RECORD)
        except FileNotFoundError as error:
            raise NotFinishedError("not finished") from error
        except OSError as error:
            raise StoreError(f"cannot be read ({error.strerror or error})") from error
        record = parsed(text)
        checked(record, self.path.name)
        return cast("dict[str, Any]", record)

    def read_result(self) -> dict[str, Any] | None:
        """Return the record, None when the cell is not finished (or its record is unreadable)."""
        try:
            return self.load_result()
        except StoreError:
            return None

    def rename(self, cell_id: str) -> CellDirectory:
        """Make this the directory of `cell_id`, in place of what was there, and return it."""
        target = CellDirectory(self.path.parent.parent, cell_id)
        target.clear()
        self.path.rename(target.path)
        return target

    def clear(self) -> None:
        """Remove everything measured of this cell."""
        shutil.rmtree(self.path, ignore_errors=True)


def cell_directories(runs: Path) -> list[CellDirectory]:
    """Return the directories of all cells, finished or not, by name."""
    found = sorted((runs / "cells").glob("*"))
    return [CellDirectory(runs, path.name) for path in found if is_cell_id(path.name) and path.is_dir()]


def share_files(place: Path) -> list[Path]:
    """Return the files that describe shares of runs, in a runs directory, its `shares`, or in the share `place`."""
    patterns = ("share.json", "*-of-*/share.json", "*/*-of-*/share.json", "shares/*/*-of-*/share.json")
    return sorted(path for pattern in patterns for path in place.glob(pattern))


def run_lock(runs: Path) -> FileLock:
    """Return the lock of who samples in a runs directory, or moves cells in and out of it."""
    return FileLock(runs / "run.lock")


@contextmanager
def alone(runs: Path) -> Iterator[None]:
    """Hold the directory's cells for a moment, and clean up first. Raises StoreError while a run is at work there."""
    lock = run_lock(runs)
    try:
        lock.acquire(timeout=10)
    except Timeout as error:
        raise StoreError(f"{runs}: 'bench run' is working here; wait for it to finish, then try again") from error
    except OSError as error:
        raise disk_error(runs, error) from error
    try:
        sweep_runs(runs)
        yield
    finally:
        lock.release()


def sweep_if_idle(runs: Path) -> None:
    """Clean up as `sweep_runs` does, unless a run is at work in the directory."""
    lock = run_lock(runs)
    with suppress(Timeout, OSError):
        lock.acquire(timeout=0)
        try:
            sweep_runs(runs)
        finally:
            lock.release()


def sweep_runs(runs: Path) -> None:
    """Remove what killed commands left: temporary files and directories, and shards beside a finished result.

    Call it while no run is at work here. What another process still uses stays.
    """
    sweep(runs, "*.tmp", ".write-*", "merging-*", "removing-*")
    sweep(runs / "references", "*.tmp")
    for path in (runs / "cells").glob("*"):
        if path.name.startswith("scoring-"):
            sweep(path.parent, path.name)
            continue
        sweep(path, "*.tmp")
        with suppress(OSError):  # another user's cell
            if (path / RESULT).is_file():
                for shard in path.glob("shard-*.safetensors"):
                    remove(shard)
