"""Bundles: one file that hands rows to others. No code and no pickle: JSON, and evidence in safetensors.

    bundle.json                            format, version, and the SHA-256 and size of every file of every cell
    signature.json                         where somebody signed bundle.json; see `results.signatures`
    cells/<cell_id>/result.json            the whole record: results, model card, protocol, run, references
    cells/<cell_id>/evidence.safetensors   where the cell has evidence

A zip archive is read into memory, member by member and never past its stated size; nothing is unpacked by its name.
The digest of a bundle is the SHA-256 of its bundle.json, and so of everything in it. The same rows make the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from results.cells import LARGEST_RECORD, RESULT
from results.errors import BenchError, StoreError, one_line
from results.evidence import LARGEST as LARGEST_EVIDENCE
from results.evidence import NAME as EVIDENCE
from results.evidence import Evidence, parse_evidence
from results.names import title
from results.records import checked, is_cell_id, parsed
from results.remote import Entry
from results.signatures import sign, verify

FORMAT, VERSION = "fewstep-bench bundle", 1
MANIFEST, SIGNATURE = "bundle.json", "signature.json"
MOST_CELLS = 10_000
LARGEST: Mapping[str, int] = {
    MANIFEST: 16 << 20,
    SIGNATURE: 1 << 16,
    RESULT: LARGEST_RECORD,
    EVIDENCE: LARGEST_EVIDENCE,
}
"""Bytes that a member may have once it is unpacked."""
LARGEST_BUNDLE = 4 << 30
"""Bytes of all members together."""
MOMENT = (1980, 1, 1, 0, 0, 0)
"""The date of every member: the archive depends on the rows alone."""


class Packed(NamedTuple):
    """A row in a bundle: its checked record as JSON has it, and the bytes of its evidence."""

    record: dict[str, Any]
    payload: bytes | None

    @property
    def evidence(self) -> Evidence | None:
        """The row's evidence, None where it has none."""
        return None if self.payload is None else parse_evidence(self.payload)


class Bundle(NamedTuple):
    """What a bundle holds: rows by cell id, its digest, and who signed it (None: nobody, or nobody here can tell)."""

    cells: Mapping[str, Packed]
    digest: str
    signed_by: str | None
    signed: bool


def pack(cells: Mapping[str, Packed], key: Path | None = None) -> tuple[bytes, Bundle]:
    """Return the bytes of a bundle of these rows, by id, and what is in it; `key` is a private key to sign it with.

    Raises BenchError for more rows than a bundle may have, and for a key that cannot sign.
    """
    if len(cells) > MOST_CELLS:
        raise BenchError(f"{len(cells):,} rows are more than the {MOST_CELLS:,} of a bundle; name fewer")
    members: dict[str, bytes] = {}
    listed: dict[str, Any] = {}
    for cell, row in cells.items():
        files = {RESULT: json.dumps(row.record, indent=1, sort_keys=True, allow_nan=False).encode()}
        if row.payload is not None:
            files[EVIDENCE] = row.payload
        listed[cell] = {
            "title": title(row.record["cell"]),
            "licence": (row.record.get("model") or {}).get("licence"),
            "files": {name: _entry(data)._asdict() for name, data in files.items()},
        }
        members |= {f"cells/{cell}/{name}": data for name, data in files.items()}
    manifest = json.dumps({"format": FORMAT, "version": VERSION, "cells": listed}, indent=1, sort_keys=True).encode()
    first = {MANIFEST: manifest}
    signed_by = None
    if key is not None:
        signature = sign(manifest, key)
        signed_by = verify(manifest, signature)
        first[SIGNATURE] = json.dumps(signature, indent=1).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (first | members).items():
            entry = zipfile.ZipInfo(name, MOMENT)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED, 6)
    return buffer.getvalue(), Bundle(cells, _sha256(manifest), signed_by, key is not None)


def read_bundle(path: Path, allowed: Path | None = None) -> Bundle:
    """Return the rows of a bundle, every byte checked against its digests, and the signature where it has one.

    `allowed` is a file of the signers whose bundles are taken (see `results.signatures.verify`). Raises StoreError, one
    line, for anything that is no whole bundle of this version.
    """
    try:
        return _read(path, allowed)
    except StoreError as error:
        raise StoreError(f"{path}: {error}; ask for the bundle again, nothing of it was taken") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise StoreError(f"{path}: not a readable bundle ({one_line(str(error), 100)}); ask for it again") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def is_bundle(path: Path) -> bool:
    """Tell whether a file begins as a bundle does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def _read(path: Path, allowed: Path | None) -> Bundle:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(names) > 2 * MOST_CELLS + 2:
            raise StoreError(f"{len(names):,} files, a bundle has at most {2 * MOST_CELLS + 2:,}")
        if len(set(names)) < len(names):
            raise StoreError("a file is in it twice")
        if MANIFEST not in names:
            raise StoreError(f"no {MANIFEST} in it: not a bundle of 'bench bundle'")
        sizes = {entry.filename: _stated_size(entry) for entry in entries}
        if sum(sizes.values()) > LARGEST_BUNDLE:
            raise StoreError(f"larger than {LARGEST_BUNDLE >> 30} GiB once unpacked")
        manifest = _member(archive, MANIFEST, sizes)
        cells = _listed(parsed(manifest))
        wanted = {f"cells/{cell}/{name}" for cell, files in cells.items() for name in files}
        for name in names:
            if name not in wanted and name not in (MANIFEST, SIGNATURE):
                raise StoreError(f"'{one_line(name, 80)}' is in it and {MANIFEST} does not list it")
        if missing := sorted(wanted - set(names)):
            raise StoreError(f"{missing[0]} is listed and not in it")
        signed_by = None
        if SIGNATURE in names:
            signature = parsed(_member(archive, SIGNATURE, sizes))
            if not isinstance(signature, Mapping):
                raise StoreError("its signature is none that ssh-keygen or minisign makes")
            signed_by = verify(manifest, signature, allowed)
        elif allowed is not None:
            raise StoreError("nobody signed it, and --allowed-signers asks for a signature")
        found = {}
        for cell, files in cells.items():
            data = {}
            for name, entry in files.items():
                data[name] = _member(archive, f"cells/{cell}/{name}", sizes)
                if entry != _entry(data[name]):
                    raise StoreError(f"cells/{cell}/{name} does not have the digest that {MANIFEST} states")
            found[cell] = _row(cell, data, signed_by)
    return Bundle(found, _sha256(manifest), signed_by, SIGNATURE in names)


def _row(cell: str, data: Mapping[str, bytes], signed_by: str | None) -> Packed:
    record = parsed(data[RESULT])
    try:
        checked(record, cell)
        if EVIDENCE in data:
            parse_evidence(data[EVIDENCE])
    except StoreError as error:
        raise StoreError(f"cells/{cell}: {error}") from None
    if record["cell"]["status"] != "done":
        raise StoreError(f"cells/{cell}: {record['cell']['status']}; a bundle holds finished rows alone")
    record["cell"]["signed_by"] = signed_by  # whatever the file says of itself
    return Packed(record, data.get(EVIDENCE))


def _listed(manifest: Any) -> dict[str, dict[str, Entry]]:
    """Return the files of each cell, by name, of a manifest. Raises StoreError for a foreign one."""
    if not isinstance(manifest, Mapping) or manifest.get("format") != FORMAT:
        raise StoreError(f"its {MANIFEST} is of another format than '{FORMAT}'")
    if manifest.get("version") != VERSION:
        version = one_line(str(manifest.get("version")), 20)
        raise StoreError(f"of version {version}, this program knows {VERSION}; upgrade fewstep-bench")
    cells = manifest.get("cells")
    if not isinstance(cells, Mapping) or not 1 <= len(cells) <= MOST_CELLS:
        raise StoreError(f"its {MANIFEST} lists no rows")
    found: dict[str, dict[str, Entry]] = {}
    for cell, entry in cells.items():
        files = entry.get("files") if isinstance(entry, Mapping) else None
        if not is_cell_id(cell) or not isinstance(files, Mapping) or RESULT not in files:
            raise StoreError(f"its {MANIFEST} lists '{one_line(str(cell), 60)}', which is no row")
        found[cell] = {}
        for name, facts in files.items():
            stated = Entry.of(facts)
            if name not in (RESULT, EVIDENCE) or stated is None:
                raise StoreError(f"its {MANIFEST} lists '{one_line(str(name), 60)}' of {cell}, which no row has")
            found[cell][name] = stated
    return found


def _stated_size(entry: zipfile.ZipInfo) -> int:
    """Return how large a member says it is. Raises StoreError for one that no bundle has."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise StoreError(f"'{one_line(entry.filename, 80)}' is packed in a way that no bundle is")
    limit = LARGEST.get(entry.filename.rpartition("/")[2])
    if limit is None:
        raise StoreError(f"'{one_line(entry.filename, 80)}' is not a file of a bundle")
    if entry.file_size > limit:
        raise StoreError(f"'{one_line(entry.filename, 80)}' is larger than {limit >> 20} MiB once unpacked")
    return entry.file_size


def _member(archive: zipfile.ZipFile, name: str, sizes: Mapping[str, int]) -> bytes:
    with archive.open(name) as member:
        data = member.read(sizes[name] + 1)  # a member that goes on beyond what it states is never read on
    if len(data) != sizes[name]:
        raise StoreError(f"'{one_line(name, 80)}' is not of the size that it states")
    return data


def _entry(data: bytes) -> Entry:
    return Entry(_sha256(data), len(data))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
