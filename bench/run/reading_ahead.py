"""The next model's files on their way from the disk while this one samples: the system reads them, nothing waits."""

from __future__ import annotations

import os
from contextlib import suppress

from bench.models.files import model_files
from bench.run.plan import Cell
from bench.weights.cache import FileCache, cache_directory
from results.errors import BenchError


def read_ahead(cell: Cell) -> None:
    """Ask the system to bring the files of a cell's model into its cache; a system that cannot, or a missing file, is
    left to the loading itself."""
    if cell.random_weights or not hasattr(os, "posix_fadvise"):
        return
    with suppress(BenchError, OSError):
        cache = FileCache(cache_directory())
        found = [cell.weights] if cell.weights is not None else [file.find(cache) for file in model_files(cell.card)]
        for path in found:
            if path is not None and path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
