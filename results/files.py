"""Files that are whole or absent: the one way in which anything is written that another process may read."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import socket
import stat
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from results.errors import BenchError


def runs_directory(given: str | Path | None = None) -> Path:
    """Return where results lie: the place given, else BENCH_RUNS_DIR, else `runs` in the working directory."""
    return Path(given) if given is not None else Path(os.environ.get("BENCH_RUNS_DIR") or "runs")


def read_regular(path: Path, limit: int) -> bytes:
    """Return the bytes of a file. Raises OSError, its `strerror` saying why, for what cannot be read.

    Neither a device nor a pipe is read, which may never end, nor more than `limit` bytes.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "a folder or a device, not a file", str(path))
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit >> 20} MiB", str(path))
    return content


def real_path(path: Path) -> Path:
    """Return where a path leads, absolute and through all links; `Path.resolve` raises RuntimeError for a circle."""
    return Path(os.path.realpath(path))


def nearest_folder(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that is there."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place


def free_bytes(path: Path) -> int:
    """Return how many bytes are free where `path` lies, or will once its folders are made."""
    return shutil.disk_usage(nearest_folder(path)).free


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that becomes `target` when the block succeeds, and else vanishes.

    The block makes a file or a directory there. A file is flushed to the disk before it is renamed; a directory takes
    the place of the one that was there, a file that of a link. What killed commands left of the same `target` goes.
    Raises BenchError when a device, a pipe or a socket is there.
    """
    with suppress(OSError):
        _check_kind(target, target.stat().st_mode, directory=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, f"{glob.escape(target.name)}.*.tmp")
    temporary = target.with_name(f"{target.name}.{mark()}.tmp")
    try:
        yield temporary
        if temporary.is_dir():
            remove(target)
        else:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        with suppress(OSError):
            remove(temporary)


def write_atomically(path: Path, payload: bytes, option: str = "--runs-dir") -> None:
    """Write `payload` to `path` so that a reader sees all of it or none.

    Raises BenchError when it cannot be written; it names the `option` that chooses another place.
    """
    try:
        with writing(path) as temporary:
            _fill(temporary, payload)
    except OSError as error:
        raise disk_error(path, error, option) from error


def output_file(path: Path, option: str, source: Path | None = None) -> Path:
    """Return the file that a path given with `option` stands for: where a link leads, so that the link stays one.

    Raises BenchError, before any work, unless that is a regular file or nothing yet, and not the `source` itself.
    """
    try:
        _check_kind(path, path.stat().st_mode, option)
    except FileNotFoundError:
        _check_folder(path, option)
    except OSError as error:
        raise disk_error(path, error, option) from error
    real = real_path(path)
    if source is not None and real == real_path(source):
        raise BenchError(f"{path}: is what is read; choose another place with {option}")
    return real


def _check_folder(path: Path, option: str) -> None:
    """Raise BenchError unless a file can be made at `path`, in a folder that is there or can be made too."""
    folder = next(folder for folder in real_path(path).parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "may not be written to" if folder.is_dir() else "is not a folder"
        raise BenchError(f"{path}: cannot be written ({folder} {reason}); choose another place with {option}")


KINDS: dict[Callable[[int], bool], str] = {
    stat.S_ISDIR: "a directory",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
}


def _check_kind(path: Path, mode: int, option: str = "--output", directory: bool = False) -> None:
    if stat.S_ISREG(mode) or (directory and stat.S_ISDIR(mode)):
        return
    kind = next((name for test, name in KINDS.items() if test(mode)), "a device")
    raise BenchError(f"{path}: is {kind}, which a file would replace; choose another place with {option}")


DAY = 24 * 3600
"""Seconds after which the leftovers of another machine, or of older versions, are taken for abandoned."""
_made: set[str] = set()


def mark() -> str:
    """Return a name for something temporary that tells whose it is: machine, process, and a random part."""
    made = f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    _made.add(made)
    return made


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def abandoned(path: Path) -> bool:
    """Tell whether the process that made a temporary file or directory, named by its `mark`, has ended."""
    found = re.search(r"([0-9a-f]{8})-([0-9]{1,10})-[0-9a-f]{8}(?=\.|$)", path.name)
    if found is None or found[1] != _machine():
        try:
            return time.time() - path.lstat().st_mtime > DAY
        except OSError:
            return False
    process = int(found[2])
    if process == os.getpid():
        return found[0] not in _made
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def sweep(directory: Path, *patterns: str) -> None:
    """Remove what killed commands left in a directory under names of these patterns; what lives stays."""
    for pattern in patterns:
        for path in directory.glob(pattern):
            if abandoned(path):
                with suppress(OSError):
                    remove(path)


def _fill(path: Path, payload: bytes) -> None:
    path.write_bytes(payload)


def remove(path: Path) -> None:
    """Remove a file or a directory if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


FULL = "no space left on the device; free some and run the same command to continue"


def is_full(error: OSError) -> bool:
    """Tell whether a file could not be written for want of space."""
    short = error.errno is None and str(error).endswith(" written")  # numpy, when the device is full
    return short or error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_error(path: Path, error: OSError, option: str = "--runs-dir") -> BenchError:
    """Return the one-line error for a file that could not be written; `option` chooses another place for it."""
    if is_full(error):
        return BenchError(f"{path}: {FULL}")
    return BenchError(f"{path}: cannot be written ({error.strerror or error}); choose another place with {option}")
