"""A finished cell: its arrays reduced to metrics with their intervals, and the record that the store indexes."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from bench.contracts.card import ModelCard
from bench.judges.pixels.resize import NATIVE_RESIZE
from bench.judges.pixels.sanity import Pixels
from bench.judges.threads import accelerator
from bench.metrics import algebra
from bench.metrics.measure import CellMetrics, ReferenceFeatures, ahead, measure
from bench.metrics.registry import PER_CLASS, fact_of
from bench.references.stored import Reference
from bench.run.evidence import evidence_of_outputs, with_counts
from bench.run.halves import remark
from protocols import Protocol
from results.catalog import CATALOG
from results.cells import CellDirectory
from results.digests import digest_of
from results.evidence import Evidence, write_evidence
from results.numbers import counted

WIDE = 256
"""Features of fewer dimensions are reduced by the processor, which is done before an accelerator has begun."""


@dataclass(frozen=True)
class Context:
    """What every cell of a run shares."""

    protocol: Protocol
    reference: Reference
    judge_digests: Mapping[str, str]
    run: Mapping[str, Any]
    device: str
    timeout: float | None = None
    """Seconds that a batch may take."""
    halves: bool = False
    """Whether judges compute in half precision and prove it on each cell's first shard."""
    made_by: Mapping[str, str] = field(default_factory=dict)
    """The code and libraries of the process that leads the run; see `bench.run.provenance.made_by`."""
    allow_mixed: bool = False
    """Whether shards that other code or libraries made are taken."""

    def reference_features(self) -> dict[str, ReferenceFeatures]:
        """Return the reference's features and what was computed of them; see `reference_features`."""
        return reference_features(self.reference)


def reference_features(reference: Reference) -> dict[str, ReferenceFeatures]:
    """Return a reference's features and, once computed, its factor, balls and self terms, kept in this process.

    A context comes anew with every task of a worker, and a reference with every row of an audit; this stays.
    """
    key = (reference.digest, *map(str, reference.arrays.values()))
    with _one_at_a_time:
        if key not in _references:
            _references.clear()
            _references[key] = reference.features()
        return _references[key]


_references: dict[tuple[str, ...], dict[str, ReferenceFeatures]] = {}
_one_at_a_time = Lock()


def reduce_reference(context: Context) -> None:
    """Compute ahead, beside an accelerator, what the metrics need of the reference alone: while samples are drawn."""
    references = context.reference_features()
    sets = {name: known.features for name, known in references.items() if known.features is not None}
    with reducing(context, sets):
        ahead(
            references,
            context.protocol.metrics,
            blocks=context.protocol.blocks,
            options=metric_options(context.protocol),
        )


def metric_options(protocol: Protocol) -> dict[str, Any]:
    """Return the options of a protocol's metrics."""
    return {"num_classes": len(protocol.class_names), **protocol.metric_options}


def reducing(context: Context, outputs: Mapping[str, np.ndarray]) -> AbstractContextManager[None]:
    """Reduce `outputs` [N, ...] inside the block on the accelerator, where there is one and features are wide."""
    wide = any(array.ndim == 2 and array.shape[1] >= WIDE for array in outputs.values())
    return algebra.on(accelerator(context.device) if wide else None)


def measure_arrays(
    context: Context,
    arrays: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    order: np.ndarray | None = None,
    judges: Collection[str] | None = None,
) -> CellMetrics:
    """Return all metrics of the protocol for judge outputs `arrays` [N, ...] of samples asked for with `labels` [N].

    `order`: see `measure`. `judges`: those whose metrics are wanted, without values of classes; None for all.
    """
    protocol = context.protocol
    outputs = {name: array for name, array in arrays.items() if name != "thumbnails"}
    options = metric_options(protocol)
    metrics = protocol.metrics
    if judges is not None:
        metrics = tuple(name for name in metrics if fact_of(name).judge in judges)
        options[PER_CLASS.name] = False
    with reducing(context, outputs):
        return measure(
            outputs,
            context.reference_features(),
            metrics,
            labels=labels,
            blocks=protocol.blocks,
            options=options,
            order=order,
        )


def reduce_arrays(
    context: Context, arrays: Mapping[str, np.ndarray], labels: np.ndarray | None, order: np.ndarray | None = None
) -> tuple[CellMetrics, Evidence]:
    """Return all metrics of a whole cell, as `measure_arrays` does, and its evidence; at once beside an accelerator."""
    with reducing(context, arrays):
        measured, evidence = algebra.both(
            partial(measure_arrays, context, arrays, labels, order),
            partial(evidence_of_outputs, context.protocol, arrays, order),
        )
    return measured, with_counts(evidence, measured.kept)


def metric_rows(
    context: Context, measured: CellMetrics, proof: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return the rows of table `metrics`, without cell_id; `proof` is that of half-precision judges."""
    reference, rows = context.reference, []
    for value in measured.values:
        precision = remark(proof or {}, value.judge, value.name)
        uses_reference = fact_of(value.name).reference != "none"
        rows.append(
            {
                "metric": value.name,
                "value": value.value,
                "low": _finite(value.low),
                "high": _finite(value.high),
                "standard_error": _finite(value.standard_error),
                "corrected": _finite(value.corrected),
                "n": value.n,
                "method": value.method if precision is None else f"{value.method}; {precision}",
                "judge": value.judge,
                "judge_digest": _judge_digest(context, value.judge),
                "reference": reference.name if uses_reference else None,
                "reference_digest": reference.digest if uses_reference else None,
                "jackknife": _floats(value.jackknife),
                "jackknife_reference": _floats(value.jackknife_reference),
            }
        )
    return rows


def _judge_digest(context: Context, judge: str) -> str:
    """Return the digest of a judge; of several, the digest of theirs."""
    digests = [context.judge_digests.get(name, "") for name in judge.split(", ")]
    return digests[0] if len(digests) == 1 else digest_of(digests)


def per_class_rows(protocol: Protocol, measured: CellMetrics) -> list[dict[str, Any]]:
    """Return the rows of table `per_class`, without cell_id."""
    return [
        {
            "label": row.label,
            "class_name": protocol.class_names[row.label],
            "metric": row.metric,
            "value": _finite(row.value),
            "n": row.n,
            "n_reference": row.n_reference,
        }
        for row in measured.per_class
        if row.label < len(protocol.class_names)
    ]


def thumbnail_rows(protocol: Protocol, pixels: np.ndarray, labels: np.ndarray | None) -> list[dict[str, Any]]:
    """Return the rows of table `thumbnails` for uint8 [n, 3, h, w], pictures as base64 PNG."""
    rows = []
    for index, image in enumerate(pixels):
        label = int(labels[index]) if labels is not None else -1
        rows.append(
            {
                "sample_index": index,
                "label": label,
                "class_name": protocol.class_names[label] if label >= 0 else "",
                "width": int(image.shape[2]),
                "height": int(image.shape[1]),
                "png": base64.b64encode(_png(image)).decode(),
            }
        )
    return rows


def ranking_of(context: Context, judged_under: str, num_samples: int, seed: int) -> str:
    """Return the digest of everything that makes rows comparable; rows are ranked within it only."""
    composite = dict(context.protocol.composite)
    return digest_of([judged_under, context.reference.digest, num_samples, seed, composite])[:20]


def cell_record(
    context: Context, cell_row: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return the whole record of a cell: `cell`, rows by table, and the run and protocol they hang on."""
    protocol = context.protocol
    added = [fact_of(row["metric"]).row() for row in rows.get("metrics", ()) if row["metric"] not in CATALOG]
    return {
        "cell": dict(cell_row),
        "run": dict(context.run),
        "protocol": {
            "digest": protocol.digest,
            "name": protocol.name,
            "title": protocol.title,
            "resolution": protocol.resolution,
            "definition": protocol.canonical(),
        },
        "references": [context.reference.row()],
        **({"metric_facts": added} if added else {}),
        **{table: list(table_rows) for table, table_rows in rows.items()},
    }


def finish_rows(
    context: Context,
    directory: CellDirectory,
    ranges: list[tuple[int, int]],
    labels: np.ndarray,
    proof: Mapping[str, Any] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Join a cell's shards, measure them, keep their evidence and return the rows by table."""
    arrays = directory.assemble(ranges)
    measured, evidence = reduce_arrays(context, arrays, labels)
    write_evidence(directory.path, evidence)
    thumbnails = arrays.get("thumbnails")
    return {
        "metrics": metric_rows(context, measured, proof),
        "skipped_metrics": [{"metric": skipped.name, "reason": skipped.reason} for skipped in measured.skipped],
        "per_class": per_class_rows(context.protocol, measured),
        "thumbnails": [] if thumbnails is None else thumbnail_rows(context.protocol, thumbnails, labels),
    }


def cost_facts(facts: Sequence[Mapping[str, Any]], samples: int) -> dict[str, Any]:
    """Return NFE, times and memory of a cell from its shards' facts: sums over the shards, whoever sampled them."""
    total = {
        key: sum(shard[key] for shard in facts)
        for key in (
            "network_rows", "guide_rows", "network_seconds", "decode_seconds", "judge_seconds", "timed_seconds",
            "timed_samples",
        )
    }  # fmt: skip
    seconds = total["network_seconds"] + total["decode_seconds"]
    warm = total["timed_seconds"] > 0
    rate = total["timed_samples"] / total["timed_seconds"] if warm else samples / max(seconds, 1e-9)
    return {
        "nfe": total["network_rows"] / samples,
        "guide_nfe": total["guide_rows"] / samples or None,
        "network_seconds": total["network_seconds"],
        "decode_seconds": total["decode_seconds"],
        "judge_seconds": total["judge_seconds"],
        "images_per_second": rate,
        "peak_memory": max(shard["peak_memory"] for shard in facts) or None,
    }


def pixel_facts(facts: Sequence[Mapping[str, Any]], native: int, judged: int) -> dict[str, Any] | None:
    """Return what a cell's images look like, from its shards' facts; None where an older version wrote one of them.

    Of images that were sampled at side `native` and resized to `judged` pixels it says how, and of prompts that an
    encoder cut which words the images could not show.
    """
    whole = Pixels()
    cut: dict[str, Mapping[str, str]] = {}
    for shard in facts:
        if "pixels" not in shard:
            return None
        whole.join(Pixels.of(shard["pixels"]))
        cut |= shard.get("cut_prompts", {})
    found = whole.facts()
    if native != judged:
        found |= {"native": native, "resize": NATIVE_RESIZE}
    if cut:
        told = f"{counted(len(cut), 'prompt')} too long for {_tokenizers(cut)}, whose words are cut"
        found |= {"cut_prompts": cut, "remarks": [*found["remarks"], told]}
    return found


def _tokenizers(cut: Mapping[str, Mapping[str, str]]) -> str:
    return " and ".join(dict.fromkeys(part for lost in cut.values() for part in lost))


def model_row(card: ModelCard) -> dict[str, Any]:
    """Return the row of table `models`."""
    return {
        "model": card.name,
        "family": card.family,
        "title": card.title,
        "resolution": card.resolution,
        "num_classes": card.num_classes,
        "parameters": card.parameters,
        "guidance": card.guidance.kind,
        "natural_steps": card.natural_steps,
        "natural_cfg": card.guidance.natural,
        "paper": card.paper,
        "licence": card.licence,
        "card": _card_json(card),
    }


def _card_json(card: ModelCard) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(card), default=str))
    table.pop("path", None)
    return table


def _floats(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values]


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
