"""One image file turned into pixels, by one rule wherever it lies.

Decoding follows what published FID tools do, `Image.open(file).convert("RGB")`: grey and palette images are expanded,
CMYK is converted, an alpha channel is dropped (not composited), an EXIF orientation tag is ignored, and of several
frames the first counts. What was dropped or ignored is told with the pixels. More than 8 bits per channel are refused,
grey or colour: Pillow would clip the one and cut the other, and neither is what the file shows.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from results.errors import BenchError

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm",
)  # fmt: skip
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow's readers that a file may reach, whatever it is called: none that starts another program."""
MAX_PIXELS = 89_478_485
"""Pillow's own limit (a quarter of a gigabyte of RGB), from the header, before anything is decoded."""
MAX_FILE_BYTES = 2**28
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
DEEP_RAW = re.compile(r";(16|32|64)")
PNG_TEXT_BYTES = 100 * 2**20
"""Some reLAIONet files carry colour profiles larger than the megabyte that Pillow allows."""
ORIENTATION = 0x0112
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, OverflowError, MemoryError,
    struct.error, zlib.error,
)  # fmt: skip
KNOWN_STARTS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the image: run 'git lfs pull'"),
    (b"<!doctype html", "is an HTML page, not an image: the download failed"),
    (b"<html", "is an HTML page, not an image: the download failed"),
    (b"<?xml", "is an XML document (a drawing or an error page), not an image"),
    (b"<svg", "is an SVG drawing, which is not supported"),
    (b"pk\x03\x04", "is a zip archive, not an image"),
    (b"\x1f\x8b", "is a gzip archive, not an image"),
    (b"%pdf", "is a PDF document, not an image"),
    (b"%!ps", "is a PostScript document, which is not supported"),
    (b"\x93numpy", "is a numpy array, not an image"),
    (b"{", "is a JSON document, not an image"),
)
IMAGE_STARTS = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8", b"P5", b"P6")

PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, PNG_TEXT_BYTES)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused below, in one line


class Unreadable(Exception):
    """Why a file gives no image, as the end of a sentence that starts with its name."""


class WrongSize(Exception):
    """Which size an image has and which it must have: no damage, and so never left out."""


class Notes(NamedTuple):
    """What an image's file said that its pixels do not.

    `size`: as stored, WxH; `grey`: stored without colour; `transparent`: some pixels were not opaque; `rotated`: EXIF
    asked for another orientation.
    """

    size: str
    grey: bool
    transparent: bool
    rotated: bool


def decode(content: bytes, side: int | None = None) -> tuple[np.ndarray, Notes]:
    """Return uint8 [H, W, 3] by the module's rule; `side`: the width and height the image must have, by its header.

    Raises Unreadable for what is not an image, is damaged, has more than MAX_PIXELS pixels, or more than 8
    bits per channel, and WrongSize for another size than `side`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Unreadable(f"declares {width}x{height} pixels; at most {MAX_PIXELS:,} are decoded")
            if side is not None and (width, height) != (side, side):
                raise WrongSize(f"is {width}x{height} pixels and must be {side}x{side}")
            if image.mode in DEEP_MODES or _deep_colour(image):
                raise Unreadable(f"has more than 8 bits per channel (mode {image.mode}); convert it to 8 bits")
            image.load()
            grey = image.mode in ("1", "L", "LA")
            notes = Notes(f"{width}x{height}", grey, _transparent(image), _rotated(image))
            return np.array(image.convert("RGB")), notes
    except Image.DecompressionBombError as error:
        raise Unreadable(f"declares more than {MAX_PIXELS:,} pixels, the most that can be decoded") from error
    except DECODE_ERRORS as error:
        raise Unreadable(_what_it_is(content, error)) from error


def read_rgb(path: Path) -> np.ndarray:
    """Decode one file to uint8 [H, W, 3] by the module's rule. Raises BenchError naming the file."""
    try:
        return decode(read_file(path))[0]
    except Unreadable as error:
        raise BenchError(f"{path}: {error}; replace or remove it") from error


def read_file(path: Path) -> bytes:
    """Return the bytes of an image file. Raises Unreadable when it cannot be read or is too large for one."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Unreadable(f"is larger than {MAX_FILE_BYTES >> 20} MiB, too large for an image")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Unreadable("is a link to nothing" if path.is_symlink() else "is gone") from error
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror or error})") from error


def _deep_colour(image: Image.Image) -> bool:
    """Tell whether the file holds more than the 8 bits that Pillow's mode shows (a 16-bit BMP holds fewer)."""
    if image.format == "BMP":
        return False
    tile: Any
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(part, str) and DEEP_RAW.search(part) for part in arguments):
            return True
        if tile[0].startswith("ppm") and len(arguments) > 1 and int(arguments[1]) > 255:
            return True
    bits = getattr(image, "tag_v2", {}).get(258, 8)
    return max(bits if isinstance(bits, tuple) else (bits,), default=8) > 8


def _transparent(image: Image.Image) -> bool:
    if image.mode in ("RGBA", "LA", "PA"):
        return bool(np.asarray(image.getchannel("A")).min() < 255)
    if "transparency" not in image.info:
        return False
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)


def _rotated(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) not in (0, 1)
    except DECODE_ERRORS:  # a damaged tag turns nothing
        return False


def _what_it_is(content: bytes, error: Exception) -> str:
    """Return the reason that helps: what the first bytes say, where they are not those of an image."""
    if not content:
        return "is empty"
    if not content.strip(b"\0"):
        return "contains nothing but zero bytes"
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for known, reason in KNOWN_STARTS:
        if start.startswith(known):
            return reason
    if content[4:8] == b"ftyp":
        return f"is of a kind that is not supported ({content[8:12].decode('ascii', 'replace')}: AVIF, HEIC or a video)"
    if not content.startswith(IMAGE_STARTS):
        return f"cannot be decoded (it starts with {content[:12]!r}, which no supported image format does)"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "cannot identify" in reason:
        reason = "its header is damaged or cut short"
    return f"cannot be decoded ({reason})"
