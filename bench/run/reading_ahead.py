"""What is needed next on its way from the disk while an accelerator is at work: a model's files, a batch of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from bench.models.files import model_files
from bench.run.plan import Cell
from bench.weights.cache import FileCache, cache_directory
from results.errors import BenchError

Item = TypeVar("Item")


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Return the items in their order, each next one made by a thread while the caller is at work on this one.

    What making one raises is raised where it would have come.
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="reading") as thread:
        coming = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield item  # type: ignore[misc]


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
