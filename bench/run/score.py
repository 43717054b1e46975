"""Images that were made elsewhere, judged under a protocol as one more row."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.judges.base import Judge
from bench.judges.pixels.images import ImageSource, open_images
from bench.judges.threads import fixed_threads
from bench.references.stored import conditions, prepare_reference
from bench.run.plan import Request
from bench.run.provenance import run_record, typed_command
from bench.run.readiness import preflight
from bench.run.record import (
    Context,
    cell_record,
    measure_arrays,
    metric_rows,
    per_class_rows,
    thumbnail_rows,
)
from bench.run.runner import shard_ranges
from bench.run.shard import judge_batch, shrink
from bench.run.worker import load_judges
from protocols import Protocol
from protocols.schema import digest_of
from results.cells import CellDirectory
from results.errors import BenchError, unknown
from results.index import index_cells
from results.ranking import rank_all
from results.store import now

BATCH = 64
"""Images judged at once: as many as the protocols of 256 pixels take, so that memory stays theirs."""


def score_images(
    source: Path, protocol: Protocol, runs: Path, *, name: str, nfe: float | None = None, device: str = "cpu"
) -> str:
    """Judge a folder of images or an ADM-style `.npz`, store one row and return its cell id.

    Labels come from class folders or the file's second array; without labels the metrics that need a prompt are
    skipped with their reason. Raises BenchError, before anything is stored, when an image cannot be read.
    """
    with fixed_threads(device):
        return _score(source, protocol, runs, name, nfe, device)


def _score(source: Path, protocol: Protocol, runs: Path, name: str, nfe: float | None, device: str) -> str:
    database = runs / "bench.duckdb"
    preflight(Request(protocol, device=device), runs, database)
    judges = load_judges(protocol, device)
    reference = prepare_reference(protocol, judges, runs)
    images = open_images(source)
    all_labels = _labels(images, protocol)
    used = {key: judge for key, judge in judges.items() if all_labels is not None or not judge.needs_labels}
    context = Context(
        protocol=protocol,
        reference=reference,
        judge_digests={key: judge.digest for key, judge in judges.items()},
        run=run_record(typed_command(), device, torch.get_num_threads()),
        device=device,
    )
    ranges = shard_ranges(len(images), BATCH)
    directory = CellDirectory(runs, f"scoring-{uuid.uuid4().hex[:12]}")  # named when the images are known
    try:
        content = _judge_images(images, protocol, used, all_labels, device, directory, ranges)
        arrays = directory.assemble(ranges)
        directory.remove_shards()
        thumbnails = arrays.pop("thumbnails", None)
        measured = measure_arrays(context, arrays, all_labels)
        identity = ["images", content, name, context.judge_digests, protocol.measurement_digest]
        cell_id = digest_of(identity)[:20]
        directory = directory.rename(cell_id)
    except BaseException:
        directory.clear()
        raise
    row = _row(context, cell_id, name, len(images), content, nfe, conditions(judges, reference), source)
    rows = {
        "metrics": metric_rows(context, measured),
        "skipped_metrics": [{"metric": skipped.name, "reason": skipped.reason} for skipped in measured.skipped],
        "per_class": per_class_rows(protocol, measured),
        "thumbnails": [] if thumbnails is None else thumbnail_rows(protocol, thumbnails, all_labels),
    }
    directory.write_result(cell_record(context, row, rows))
    index_cells(database, [directory])
    rank_all(database)
    return cell_id


def _judge_images(
    images: ImageSource,
    protocol: Protocol,
    judges: Mapping[str, Judge],
    all_labels: np.ndarray | None,
    device: str,
    directory: CellDirectory,
    ranges: list[tuple[int, int]],
) -> str:
    """Judge the images in order, write a shard for each range and return the SHA-256 of all pixels."""
    content = hashlib.sha256()
    ends = {stop: start for start, stop in ranges}
    parts: dict[str, list[np.ndarray]] = {}
    last = 0
    for pixels, _ in images.batches(BATCH):
        if pixels.shape[2:] != (protocol.resolution, protocol.resolution):
            raise BenchError(
                f"{images.path}: images of {pixels.shape[3]}x{pixels.shape[2]} pixels, protocol '{protocol.name}' "
                f"judges {protocol.resolution}x{protocol.resolution}; resize them first or choose another with "
                "--protocol"
            )
        content.update(pixels.numpy().data)
        first, last = last, last + len(pixels)
        labels = torch.zeros(len(pixels), dtype=torch.int64)
        if all_labels is not None:
            labels = torch.from_numpy(all_labels[first:last])
        for name, values in judge_batch(judges, pixels.to(device), labels.to(device)).items():
            parts.setdefault(name, []).append(values)
        if first < protocol.thumbnails:
            parts.setdefault("thumbnails", []).append(shrink(pixels[: protocol.thumbnails - first]).numpy())
        if last in ends:
            arrays = {name: np.concatenate(values) for name, values in parts.items()}
            directory.write_shard(ends[last], last, arrays, {"start": ends[last], "stop": last})
            parts = {}
    return content.hexdigest()


def _labels(images: ImageSource, protocol: Protocol) -> np.ndarray | None:
    """Return int64 [N] labels of the protocol: folders named by class or number, or the archive's own numbers."""
    if images.labels is None:
        return None
    labels = images.labels.numpy()
    if images.class_names is not None:
        known = {_spelling(name): index for index, name in enumerate(protocol.class_names)}
        known |= {str(index): index for index in range(len(protocol.class_names))}
        for name in images.class_names:
            if _spelling(name) not in known:
                raise unknown(f"class folder in {images.path}", name, protocol.class_names)
        labels = np.array([known[_spelling(name)] for name in images.class_names], dtype=np.int64)[labels]
    if labels.max(initial=0) >= len(protocol.class_names):
        raise BenchError(
            f"{images.path}: label {labels.max()} is beyond protocol '{protocol.name}' "
            f"(0..{len(protocol.class_names) - 1}); choose another with --protocol"
        )
    return labels


def _spelling(name: str) -> str:
    return name.lower().replace("_", " ").replace("-", " ")


def _row(
    context: Context,
    cell_id: str,
    name: str,
    count: int,
    content: str,
    nfe: float | None,
    measured_under: str,
    source: Path,
) -> dict[str, Any]:
    protocol = context.protocol
    measurement = digest_of([protocol.measurement_digest, measured_under])
    comparable = [measurement, context.reference.digest, count, protocol.seed, dict(protocol.composite)]
    return {
        "cell_id": cell_id,
        "run_id": context.run["run_id"],
        "model": name,
        "checkpoint": name,
        "family": "images",
        "protocol": protocol.name,
        "protocol_digest": protocol.digest,
        "ranking": digest_of(comparable)[:20],
        "status": "done",
        "reason": None,
        "steps": None,
        "cfg": None,
        "sampler": "images",
        "settings": {"content": content},
        "options": {},
        "dtype": "uint8",
        "seed": protocol.seed,
        "num_samples": count,
        "batch_size": BATCH,
        "off_regime": False,
        "random_weights": False,
        "weights_sha256": None,
        "nfe": nfe,
        "failures": 0,
        "device": context.run["device"],
        "latent_shape": "",
        "command": f"bench score {source} --protocol {protocol.name} --name {name}",
        "started": now().isoformat(),
        "finished": now().isoformat(),
    }
