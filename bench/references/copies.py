"""Copies of built references in remote storage: what judges said of real images, which others need not judge again.

URL/NAME/DIGEST/manifest.json, ...    see `results.remote`
"""

from __future__ import annotations

import re
from pathlib import Path

from bench.references.stored import BUILT_FACTS, built_references, read_facts, references_directory
from results.errors import BenchError, one_line
from results.files import disk_error
from results.remote import Storage, is_file_name, pull, push

FACTS = "facts.json"


def push_reference(name: str, url: str) -> list[tuple[Path, int]]:
    """Copy every built reference called `name` to `url`; return their directories and how many files were uploaded.

    Raises BenchError where none is built, or the storage does not take it.
    """
    built = [found for found in built_references() if found.directory.parent.name == name]
    if not built:
        raise BenchError(
            f"reference '{one_line(name, 60)}' is not built here; 'bench reference build' does it, 'bench doctor' "
            "lists those that are"
        )
    storage = Storage(url)
    return [(found.directory, push(found.directory, storage / name / found.directory.name)) for found in built]


def pull_reference(name: str, url: str) -> list[tuple[Path, int]]:
    """Fetch every copy of the reference `name` from `url`; return their directories and how many files were fetched.

    A directory counts as built only once all of it is here. Raises BenchError where there is none, for a file with
    another digest, and for facts that are not those of a reference.
    """
    if not is_file_name(name):
        raise BenchError(f"'{one_line(name, 60)}' is no name of a reference")
    storage = Storage(url) / name
    digests = [digest for digest in storage.folders() if re.fullmatch(r"[0-9a-f]{8,64}", digest)]
    if not digests:
        raise BenchError(f"{storage.url}: no copy of this reference is there; 'bench reference push' makes one")
    found = []
    for digest in digests:
        directory = references_directory() / name / digest
        try:
            fetched = 0 if (directory / FACTS).exists() else pull(storage / digest, directory)
        except OSError as error:
            raise disk_error(directory, error, "BENCH_CACHE_DIR") from error
        try:
            read_facts(directory / FACTS, BUILT_FACTS)
        except BenchError:
            (directory / FACTS).unlink(missing_ok=True)
            raise
        found.append((directory, fetched))
    return found
