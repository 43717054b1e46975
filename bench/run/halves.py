"""Half-precision judges prove themselves on the first samples of each cell, or the cell is judged in float32.

Both precisions judge the first PROOF samples of the first shard. What half precision moves a metric by is held against
the half width that the metric's interval will have at all N samples, that of the n samples times sqrt(n / N). Where any
metric of a judge moves by more than TOLERATED of that, or it cannot be told, it judges the whole cell in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.judges.judge import Judge
from bench.metrics.measure import CellMetrics
from bench.metrics.registry import fact_of
from results.errors import BenchWarning

TOLERATED = 0.1
PROOF = 64
"""Samples judged in both precisions. The two see the same images, so that few tell what moves between them: a score's
difference spreads by 5e-4 of the score's own spread (ViT-H/14, float16)."""
STRICT = "strict:"
"""Prefix of a judge's float32 outputs beside its half ones."""

Judged = Mapping[str, np.ndarray]


def halves(judges: Mapping[str, Judge]) -> list[str]:
    """Return the names of the judges that compute in half precision here."""
    return [name for name, judge in judges.items() if judge.half is not None]


def strict_beside(judges: Mapping[str, Judge]) -> dict[str, Judge]:
    """Return the float32 form of each judge that computes in half precision, as `strict:NAME`."""
    return {f"{STRICT}{name}": judges[name].strict() for name in halves(judges)}


def strict_judges(arrays: Judged) -> list[str]:
    """Return the names of the judges whose float32 outputs stand beside the half ones in `arrays`."""
    prefixed = {name.partition(".")[0] for name in arrays if name.startswith(STRICT)}
    return sorted(name.removeprefix(STRICT) for name in prefixed)


def settled(judges: Mapping[str, Judge], proof: Mapping[str, Any]) -> dict[str, Judge]:
    """Return the judges as a cell's `proof` leaves them: half where that was shown, else strict."""
    proven = {name for name, said in proof.items() if said["kept"] == "half"}
    return {name: judge if name in proven else judge.strict() for name, judge in judges.items()}


def prove(
    arrays: Judged, measured: Callable[[Judged], CellMetrics], samples: int
) -> tuple[dict[str, np.ndarray] | None, dict[str, Any]]:
    """Return the outputs that stand and what was found, from a first shard partly judged in both precisions.

    Args:
        arrays: outputs of the judges, and of `strict_beside` for the first n samples, [n, ...] each.
        measured: outputs of n samples to metrics.
        samples: N of the whole cell.

    Returns:
        Outputs by name (None: a judge falls back, and its float32 outputs of the other samples are not there), and for
        each half judge `kept` (`half` or `float32`) and `effects`: for each of its metrics the change `moved` and the
        `half_width` expected at N (None: not known).
    """
    exact = {name.removeprefix(STRICT): values for name, values in arrays.items() if name.startswith(STRICT)}
    whole = {name: values for name, values in arrays.items() if not name.startswith(STRICT)}
    n = len(next(iter(exact.values())))
    rounded = {name: values[:n] for name, values in whole.items()}
    before, after = ({value.name: value for value in measured(said).values} for said in (rounded | exact, rounded))
    proof: dict[str, Any] = {}
    for judge in sorted({name.partition(".")[0] for name in exact}):
        broken = any(
            not np.isfinite(rounded[name]).all() for name in exact if name.partition(".")[0] == judge
        )  # float16 ends at 65,504
        effects: dict[str, dict[str, float | None]] = {}
        for name, value in before.items():
            if fact_of(name).judge != judge:
                continue
            moved = abs(after[name].value - value.value) if name in after else None
            known = value.low is not None and value.high is not None
            width = (value.high - value.low) / 2 * (n / samples) ** 0.5 if known else None  # type: ignore[operator]
            effects[name] = {"moved": moved, "half_width": width}
        held = all(_tolerable(effect["moved"], effect["half_width"]) for effect in effects.values())
        proof[judge] = {"kept": "half" if held and not broken else "float32", "effects": effects, "n": n}
    fallen = {name for name in exact if proof[name.partition(".")[0]]["kept"] == "float32"}
    if any(len(whole[name]) > n for name in fallen):
        return None, proof
    return {name: exact[name] if name in fallen else values for name, values in whole.items()}, proof


def _tolerable(moved: float | None, half_width: float | None) -> bool:
    return moved is not None and (moved == 0.0 or (half_width is not None and moved <= TOLERATED * half_width))


def remark(proof: Mapping[str, Any], judge: str, metric: str) -> str | None:
    """Return what a row says of its judge's precision; None for a judge that was strict from the first."""
    said = proof.get(judge)
    if said is None:
        return None
    effect = said["effects"].get(metric)
    if effect is None:
        return f"judged in {said['kept']}"
    if effect["moved"] is None:
        found = "half precision gives no value"
    else:
        width = effect["half_width"]
        share = f", {effect['moved'] / width:.2g} of the half width" if width else ""
        found = f"half precision moves the first {said['n']} images by {effect['moved']:.2g}{share}"
    return f"judged in {said['kept']}: {found}"


def warn_of_float32(label: str, proof: Mapping[str, Any]) -> None:
    """Say which judges of a row fall back to float32, and what half precision would have moved most."""
    for judge, said in proof.items():
        if said["kept"] == "half":
            continue
        worst = [remark({judge: said}, judge, name) for name in said["effects"]]
        detail = f" ({worst[0]})" if worst else ""
        warnings.warn(
            f"{label}: half precision is not accurate enough for judge '{judge}'{detail}", BenchWarning, stacklevel=2
        )
