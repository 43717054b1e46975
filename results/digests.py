"""Digests of JSON values, and the one of what makes a measurement."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def measurement_digest(definition: Mapping[str, Any]) -> str:
    """Return the sha256 of what turns a model's samples into numbers: labels, quantiser, reference, judges, metrics.

    `definition` is a protocol's canonical form. What only chooses its cells (sweeps, seed, sample count, names of
    metrics) does not count, nor what is computed from the numbers afterwards (the composite).
    """
    sampling, metrics = definition.get("sampling", {}), definition.get("metrics", {})
    measurement = {
        "resolution": definition.get("resolution"),
        "labels": definition.get("labels"),
        "sampling": {key: sampling.get(key) for key in ("quantise", "levels")},
        "reference": definition.get("reference"),
        "judges": definition.get("judges"),
        "metrics": {key: metrics.get(key) for key in ("blocks", "options")},
    }
    return digest_of(measurement | {"smoke": True} if definition.get("smoke") else measurement)
