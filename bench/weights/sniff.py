"""What a file is by its first bytes, whatever it is called: a failed download is named before a library reads it."""

from __future__ import annotations

import json
import re
import stat
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""torch's magic number, pickled: how its files began before they were zips."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
SIGNATURES = (
    (b"\x1f\x8b", "gzip", "a gzip archive; unpack it"),
    (b"\xfd7zXZ\x00", "xz", "an xz archive; unpack it"),
    (b"BZh", "bzip2", "a bzip2 archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstd", "a zstd archive; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "a 7z archive; unpack it"),
    (b"Rar!", "rar", "a rar archive; unpack it"),
    (b"\x89HDF\r\n\x1a\n", "hdf5", "an HDF5 file (Keras, h5py), which is not supported; convert it to safetensors"),
    (b"GGUF", "gguf", "a GGUF file (llama.cpp), which is not supported; use the original weights"),
    (b"\x89PNG\r\n\x1a\n", "png", "a PNG image, not weights; use the checkpoint"),
    (b"\xff\xd8\xff", "jpeg", "a JPEG image, not weights; use the checkpoint"),
    (b"GIF8", "gif", "a GIF image, not weights; use the checkpoint"),
    (b"RIFF", "riff", "a RIFF file (WebP, WAV), not weights; use the checkpoint"),
    (b"%PDF", "pdf", "a PDF document, not weights; use the checkpoint"),
    (b"\x7fELF", "elf", "a program, not weights; use the checkpoint"),
    (b"\x93NUMPY", "npy", "a single numpy array (.npy), not a state dict; use the checkpoint"),
    (b"SQLite format 3\x00", "sqlite", "an SQLite database, not weights; use the checkpoint"),
    (b"PAR1", "parquet", "a Parquet table, not weights; use the checkpoint"),
)
HEAD = 4096


class Kind(NamedTuple):
    """What a file is: a short name, and what to say where weights were wanted (None: a checkpoint of some kind)."""

    name: str
    fault: str | None = None


def kind_of(path: Path) -> Kind:
    """Return what the file at `path` is by its first bytes; `unknown` where they tell nothing."""
    facts = path.stat()
    size = facts.st_size
    if not stat.S_ISREG(facts.st_mode):
        return Kind("device", "is a folder or a device, not a file; use the checkpoint itself")
    if size == 0:
        return Kind("empty", "is empty (0 bytes); fetch the file again")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(LFS_POINTER):
        stated = re.search(rb"^size (\d{1,15})\s*$", head, re.MULTILINE)
        weight = f" to {human(int(stated.group(1)))}" if stated else ""
        return Kind("lfs", f"is a Git LFS pointer{weight}, not the file itself; run git lfs pull")
    for signature, name, fault in SIGNATURES:
        if head.startswith(signature):
            return Kind(name, f"is {fault}")
    if head[257:262] == b"ustar":
        return Kind("tar", "is a tar archive; unpack it")
    if not head.strip(b"\x00"):
        return Kind("zeros", "starts with nothing but zero bytes: the download failed; fetch the file again")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(path, size)
    if head.startswith(LEGACY_TORCH):
        return Kind("torch")
    tensors = _safetensors(head, size)
    if tensors is not None:
        return tensors
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:
        return Kind("pickle")
    return _text(path, head, size)


def _zip(path: Path, size: int) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        # Its directory stands at the end, so that a whole zip always has one.
        return Kind("truncated", f"is truncated: a zip of {size:,} bytes whose end is missing; fetch the file again")
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return Kind("torch")
    if names and all(name.endswith(".npy") for name in names):
        return Kind("npz", "is a numpy archive (.npz), not a checkpoint; use the checkpoint")
    return Kind("zip")


def _safetensors(head: bytes, size: int) -> Kind | None:
    if len(head) < 9:
        return None
    length = struct.unpack("<Q", head[:8])[0]
    if not head[8:].lstrip().startswith(b'{"') and head[8:10] != b"{}":
        return None
    if length > 10**8:
        return Kind("damaged", f"is damaged: its safetensors header would be {length:,} bytes; fetch the file again")
    if 8 + length > size:
        return Kind(
            "truncated", f"is truncated ({size:,} of at least {8 + length:,} bytes, as its header says); fetch it again"
        )
    return Kind("safetensors")


def safetensors_size(path: Path) -> int | None:
    """Return the bytes that a safetensors file has by its header, None where the header cannot be read."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > 10**8:
            return None
        try:
            header = json.loads(file.read(length))
            return 8 + int(length) + max((int(entry["data_offsets"][1]) for entry in _entries(header)), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return None


def _entries(header: dict[str, dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    return [entry for name, entry in header.items() if name != "__metadata__"]


def _text(path: Path, head: bytes, size: int) -> Kind:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<script", b"<body")):
        return Kind("html", "is an HTML page, not the file: the download failed; fetch it again (a browser shows why)")
    if text.startswith((b"<?xml", b"<error", b"<svg")):
        return Kind("xml", "is an XML page, not the file: the download failed; fetch it again")
    if text.startswith((b"{", b"[")) and b"\x00" not in head:
        if b'"weight_map"' in head or path.name.endswith(".index.json"):
            return Kind("index")
        return Kind("json", "is a JSON document, not weights; use the checkpoint itself")
    if head.startswith(b"\x08") and (b"pytorch" in head[:64] or b"onnx" in head[:256] or b"tf2onnx" in head[:256]):
        return Kind("onnx", "is an ONNX graph, which is not supported; use the original weights")
    if _printable(head):
        first = " ".join(head.decode("utf-8", "replace").split())[:60]
        if re.match(rb"[(c\]}IFSVNl]", head) and _last_byte(path) == b".":
            return Kind("pickle")  # protocol 0, in plain letters
        return Kind("text", f"is a text ('{first}'), not weights: the download failed?; fetch the file again")
    return Kind("unknown")


def _printable(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter in "\n\r\t" for letter in text)


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1)


def human(size: int) -> str:
    """Return a number of bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}" if unit in ("MB", "GB") and size < 100 else f"{size:.0f} {unit}"
        size = size / 1000  # type: ignore[assignment]
    return f"{size:.1f} TB"
