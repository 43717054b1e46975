"""Label plans: which class each sample index is asked for. Part of the protocol, because they move FID."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protocols.schema import ProtocolError


def plan_labels(
    plan: str, count: int, classes: int, *, seed: int, reference: Sequence[int] | None = None
) -> np.ndarray:
    """Return int64 [count] labels.

    `balanced`: 0 .. classes-1 in turn. `reference`: the labels of the reference set, in its order, as many as asked
    for (repeated in turn). `uniform`: independent draws from PCG64 under `seed`.
    """
    if plan == "balanced":
        return np.arange(count, dtype=np.int64) % max(classes, 1)
    if plan == "uniform":
        return np.random.Generator(np.random.PCG64(seed)).integers(0, classes, size=count, dtype=np.int64)
    if reference is None or len(reference) == 0:
        raise ProtocolError("label plan 'reference' needs a reference with labels; use 'balanced' or another reference")
    return np.resize(np.asarray(reference, dtype=np.int64), count)
