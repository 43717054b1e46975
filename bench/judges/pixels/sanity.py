"""What the pixels of a set look like, counted while they stream by: the commonest mistakes show here and nowhere else.

A set of floats in 0..1 cast to uint8, one image written a thousand times, transparent backgrounds: every metric of such
a set is right and none of them says what is wrong. The counts change no number; they stand beside it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.judges.pixels.images import Notes

FLAT = 4
"""An image is one colour, or nearly, if no channel spans more levels than this."""
FEW = 18
"""So many different values are told apart; a photograph has more in its first rows."""
SHARE = 0.01
"""Share of the images from which copies and single colours are worth a remark."""
SIZES = 9


@dataclass
class Pixels:
    """Counts over a set of images; `hashes` are 8 bytes an image, by which equal ones are found."""

    images: int = 0
    low: int = 255
    high: int = 0
    values: set[int] = field(default_factory=set)
    flat: int = 0
    grey: int = 0
    transparent: int = 0
    rotated: int = 0
    sizes: set[str] = field(default_factory=set)
    hashes: list[np.ndarray] = field(default_factory=list)

    def add(self, pixels: np.ndarray, notes: Sequence[Notes] = ()) -> np.ndarray:
        """Count uint8 [B, C, H, W] and return their hashes, uint64 [B]; `notes`: of their files, if any."""
        if not len(pixels):
            return np.empty(0, np.uint64)
        rows = np.ascontiguousarray(pixels).reshape(len(pixels), pixels.shape[1], -1)
        low, high = rows.min(axis=2), rows.max(axis=2)
        self.images += len(rows)
        self.low, self.high = min(self.low, int(low.min())), max(self.high, int(high.max()))
        self.flat += int(((high.astype(np.int16) - low).max(axis=1) <= FLAT).sum())
        for row in rows:
            if len(self.values) >= FEW:
                break
            self.values |= set(np.unique(row)[:FEW].tolist())
        if len(self.values) > FEW:
            self.values = set(sorted(self.values)[:FEW])
        for note in notes:
            self.grey += note.grey
            self.transparent += note.transparent
            self.rotated += note.rotated
            if len(self.sizes) < SIZES:
                self.sizes.add(note.size)
        hashes = np.array(
            [int.from_bytes(hashlib.blake2b(row.data, digest_size=8).digest(), "little") for row in rows], np.uint64
        )
        self.hashes.append(hashes)
        return hashes

    def join(self, other: Pixels) -> None:
        """Add what `other` counted."""
        for name in ("images", "flat", "grey", "transparent", "rotated"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.values = set(sorted(self.values | other.values)[:FEW])
        self.sizes |= other.sizes
        self.hashes += other.hashes

    def counts(self) -> dict[str, Any]:
        """Return all but the hashes, as JSON knows it; `Pixels.of` reads it."""
        return {
            "images": self.images, "low": self.low, "high": self.high, "values": sorted(self.values),
            "flat": self.flat, "grey": self.grey, "transparent": self.transparent, "rotated": self.rotated,
            "sizes": sorted(self.sizes),
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Return everything, as JSON knows it; `Pixels.of` reads it."""
        hashes = np.concatenate([*self.hashes, np.empty(0, np.uint64)]).astype("<u8")
        return {**self.counts(), "hashes": base64.b64encode(hashes.tobytes()).decode()}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Pixels:
        """Return what `state` or `counts` wrote."""
        known = {key: value for key, value in state.items() if key not in ("values", "sizes", "hashes")}
        hashes = np.frombuffer(base64.b64decode(state.get("hashes", "")), "<u8")
        return cls(**known, values=set(state["values"]), sizes=set(state["sizes"]), hashes=[hashes])

    def facts(self) -> dict[str, Any]:
        """Return what a row keeps: the counts, exact copies, and a remark for each thing that looks like a mistake."""
        hashes = np.concatenate([*self.hashes, np.empty(0, np.uint64)])
        _, repeats = np.unique(hashes, return_counts=True)
        facts = {key: value for key, value in self.counts().items() if key not in ("values", "sizes")}
        facts |= {
            "levels": len(self.values) if len(self.values) < FEW else None,
            "sizes": len(self.sizes) or None,
            "copies": int((repeats - 1).sum()),
            "equal": int(repeats.max(initial=0)),
        }
        return {**facts, "remarks": self._remarks(facts["copies"], facts["equal"])}

    def _remarks(self, copies: int, equal: int) -> list[str]:
        n = self.images
        if not n:
            return []
        remarks = []
        if self.high == 0:
            remarks.append("all images are black")
        elif self.high <= 1:
            remarks.append("all pixels are 0 or 1: scale to 0..255")
        elif self.values <= {0, 1, 255} and 1 in self.values:
            remarks.append("all pixels are 0, 1 or 255: floats of -1..1 cast to uint8; scale to 0..255")
        elif self.high <= 16:
            remarks.append(f"no pixel exceeds {self.high}: scale to 0..255")
        if equal == n > 1:
            remarks.append(f"all {n:,} images are equal")
        elif copies >= SHARE * n and 2 * equal >= copies and equal > 2:
            remarks.append(f"{equal:,} of {n:,} images are equal")
        elif copies >= SHARE * n:
            remarks.append(f"{copies:,} of {n:,} images are copies of others")
        if self.flat >= SHARE * n and self.high > 16:
            remarks.append(f"{self.flat:,} of {n:,} images are one colour, or nearly")
        if self.transparent:
            remarks.append(f"{self.transparent:,} of {n:,} images have transparent pixels; alpha is dropped")
        if self.rotated:
            remarks.append(f"{self.rotated:,} of {n:,} images ask to be turned (EXIF); the orientation is ignored")
        return remarks
