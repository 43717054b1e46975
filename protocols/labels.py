"""Label plans: which class each sample index is asked for. Part of the protocol, because they move FID."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protocols.tables import LABEL_PLANS
from results.errors import ProtocolError, unknown


def plan_labels(
    plan: str, count: int, classes: int, *, seed: int, reference: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """Return int64 [count] labels.

    `balanced`: 0 .. classes-1 in turn. `reference`: the labels of the reference set, in its order; of fewer than it has
    every so many-th, so that a set sorted by class still gives all classes, and of more the whole set in turn.
    `uniform`: independent draws from PCG64 under `seed`.
    """
    if plan not in LABEL_PLANS:
        raise unknown("label plan", plan, LABEL_PLANS)
    if plan == "balanced":
        return np.arange(count, dtype=np.int64) % max(classes, 1)
    if plan == "uniform":
        return np.random.Generator(np.random.PCG64(seed)).integers(0, classes, size=count, dtype=np.int64)
    if reference is None or len(reference) == 0:
        raise ProtocolError("label plan 'reference' needs a reference with labels; use 'balanced' or another reference")
    labels = np.asarray(reference, dtype=np.int64)
    if count < len(labels):
        return labels[np.arange(count) * len(labels) // count]
    return np.resize(labels, count)
