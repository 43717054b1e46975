"""The evidence of a cell: what a stranger needs to hold its numbers against a few samples drawn anew.

    cells/<cell_id>/evidence.safetensors

Arrays are named `<judge>.<array>/<part>`. Of every sample: a score as it is (`score`, float16 [N]); of a classifier's
logits the class that they name (`named`, int16 [N]) and the negative entropy of the soft-max (`certainty`, float16 [N],
nats); of features a projection to 16 dimensions (`sketch`, int8 [N, 16]; see `Grid`). Of the whole cell: the mean class
probabilities of every split of the Inception Score (`marginals`, float32 [S, C]), and of features `grid` float32
[2, 16], `mean` float32 [d], `factor` float32 [d, r] and `trace` float64 [1], so that the covariance is factor factor^T
and a rest whose trace is what is missing from `trace`.

Since version 2 also what metrics against a reference of M images are counted from, named `<metric>/<part>`: of a kernel
distance each sample's mean kernel with the other samples (`own`, float32 [N]) and with the reference (`cross`, float32
[N]); of precision whether a sample lies in some ball of the reference (`inside`, uint8 [N]); of density in how many
(`around`, int32 [N]); of recall and coverage a sample that proves each reference image to be covered, -1 where there is
none (`holder`, int32 [M]), and for recall the squared radius of each sample's ball (`radius`, float32 [N]).

A cell of an older version has no evidence, and nothing but an audit asks for it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from results.errors import StoreError, one_line
from results.files import read_regular, write_atomically

NAME = "evidence.safetensors"
VERSION = 2
VERSIONS = (1, VERSION)
"""Those that are read: 1 lacks what metrics are counted from."""
SKETCH = 16
"""Dimensions of a sketch."""
RANK = 48
"""Columns of a covariance's factor: all of it for features of up to as many dimensions."""
LEVELS = 127
DEVIATIONS = 6.0
"""Standard deviations that the 127 levels on either side of the centre reach."""
LARGEST = 512 * 2**20
"""Bytes of a file that is read: that of some 15 million samples."""
PARTS: Mapping[str, tuple[type[np.generic], int]] = {
    "score": (np.float16, 1),
    "named": (np.int16, 1),
    "certainty": (np.float16, 1),
    "sketch": (np.int8, 2),
    "marginals": (np.float32, 2),
    "grid": (np.float32, 2),
    "mean": (np.float32, 1),
    "factor": (np.float32, 2),
    "trace": (np.float64, 1),
    "own": (np.float32, 1),
    "cross": (np.float32, 1),
    "inside": (np.uint8, 1),
    "around": (np.int32, 1),
    "radius": (np.float32, 1),
    "holder": (np.int32, 1),
}
"""Type and dimensions of each part."""
OF_SAMPLES = ("score", "named", "certainty", "sketch", "own", "cross", "inside", "around", "radius")
"""Parts with a row for every sample."""


class Grid(NamedTuple):
    """Where the levels of a sketch lie, per dimension: level q stands for `centre` + q `step`; both float64 [16]."""

    centre: np.ndarray
    step: np.ndarray

    @classmethod
    def of(cls, projected: np.ndarray) -> Grid:
        """Return the grid of a cell's projections [N, 16]: its centre the mean, six deviations either side."""
        centre, spread = projected.mean(axis=0), projected.std(axis=0)
        step = np.maximum(spread * DEVIATIONS / LEVELS, 1e-6 * np.maximum(np.abs(centre), 1e-6))
        grid = np.stack([centre, step]).astype(np.float32).astype(np.float64)
        return cls(grid[0], grid[1])

    def positions(self, projected: np.ndarray) -> np.ndarray:
        """Return where projections [n, 16] lie in units of levels, float64, cut off at the last level."""
        return np.clip((projected - self.centre) / self.step, -LEVELS, LEVELS)

    def levels(self, projected: np.ndarray) -> np.ndarray:
        """Return the nearest levels, int8 [n, 16]."""
        return np.rint(self.positions(projected)).astype(np.int8)


class Evidence(NamedTuple):
    """A cell's evidence: arrays by `<judge>.<array>/<part>` or `<metric>/<part>`, and how many samples they are of."""

    arrays: Mapping[str, np.ndarray]
    samples: int

    def parts(self, array: str) -> dict[str, np.ndarray]:
        """Return what is kept of a judge's output, or of a metric, by part."""
        found = {}
        for name, values in self.arrays.items():
            owner, _, part = name.rpartition("/")
            if owner == array:
                found[part] = values
        return found

    @property
    def outputs(self) -> list[str]:
        """The judges' outputs and metrics that something is kept of."""
        return list(dict.fromkeys(name.rpartition("/")[0] for name in self.arrays))


def projection(array: str, dimension: int) -> np.ndarray:
    """Return the matrix that sketches the features of output `array`, float64 [d, 16]: fixed normal deviates.

    numpy's RandomState never changes its stream, so that everybody has the same matrix.
    """
    random = np.random.RandomState(zlib.crc32(f"sketch {array} {dimension}".encode()))
    return random.standard_normal((dimension, SKETCH)) / np.sqrt(dimension)


def write_evidence(directory: Path, evidence: Evidence) -> None:
    """Put the evidence into a cell's directory, whole or not at all."""
    arrays = {name: np.ascontiguousarray(values) for name, values in evidence.arrays.items()}
    facts = {"version": VERSION, "samples": evidence.samples}
    write_atomically(directory / NAME, save(arrays, metadata={"facts": json.dumps(facts)}))


def read_evidence(directory: Path) -> Evidence | None:
    """Return the evidence of a cell's directory, None where there is none. Raises StoreError for what is none."""
    found = _read(directory / NAME)
    return None if found is None else found[1]


def evidence_bytes(directory: Path) -> bytes | None:
    """Return the bytes of a cell's evidence, checked, to hand on. None and errors as of `read_evidence`."""
    found = _read(directory / NAME)
    return None if found is None else found[0]


def _read(path: Path) -> tuple[bytes, Evidence] | None:
    try:
        if path.is_symlink():
            raise StoreError(f"{path}: is a link; evidence is a file")
        payload = read_regular(path, LARGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read ({error.strerror or error}); ask its owner, or copy it again"
        ) from error
    try:
        return payload, parse_evidence(payload)
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from None


def parse_evidence(payload: bytes) -> Evidence:
    """Return the evidence in the bytes of a file. Raises StoreError, saying why, for anything else."""
    try:
        arrays = load(payload)
        header: dict[str, Any] = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
        facts = json.loads(header["__metadata__"]["facts"])
        version, samples = facts["version"], facts["samples"]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise StoreError(f"not the evidence of a cell ({one_line(str(error), 80)})") from error
    if version not in VERSIONS:
        raise StoreError(f"evidence of version {one_line(str(version), 20)}, this program knows {VERSION}; upgrade it")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise StoreError("evidence of no count of samples")
    for name, values in arrays.items():
        part = name.rpartition("/")[2]
        kind, dimensions = PARTS.get(part, (None, 0))
        if kind is None:
            raise StoreError(f"array '{one_line(name, 60)}' is none that evidence has")
        if values.dtype != kind or values.ndim != dimensions or (part in OF_SAMPLES and len(values) != samples):
            raise StoreError(f"array '{one_line(name, 60)}' is {values.dtype} {values.shape} of {samples} samples")
        if not np.isfinite(values).all():
            raise StoreError(f"array '{one_line(name, 60)}' is not finite")
        if part == "holder" and values.size and not -1 <= int(values.min()) <= int(values.max()) < samples:
            raise StoreError(f"array '{one_line(name, 60)}' names samples that there are not")
    evidence = Evidence(arrays, samples)
    for output in evidence.outputs:
        _check_sketch(output, evidence.parts(output))
    return evidence


def _check_sketch(output: str, parts: Mapping[str, np.ndarray]) -> None:
    """Raise StoreError unless the parts of a feature's sketch are all there and fit each other."""
    together = {"sketch", "grid", "mean", "factor", "trace"}
    there = together & set(parts)
    if not there:
        return
    width = parts["mean"].size if there == together else 0
    fits = (
        there == together
        and parts["sketch"].shape[1] == SKETCH
        and parts["grid"].shape == (2, SKETCH)
        and bool((parts["grid"][1] > 0).all())
        and width > 0
        and parts["factor"].shape == (width, min(width, RANK))
        and parts["trace"].shape == (1,)
    )
    if not fits:
        raise StoreError(f"the sketch of '{one_line(output, 60)}' is not whole")
