"""Images that were made elsewhere, judged under a protocol as one more row."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.judges.judge import Judge
from bench.judges.pixels.sanity import Pixels
from bench.judges.threads import accelerator, fixed_threads
from bench.metrics.cell import UNLABELLED
from bench.metrics.inception import order_of_content
from bench.metrics.measure import CellMetrics, SkippedMetric
from bench.metrics.registry import fact_of
from bench.references.source import Batch, ImageSource, open_images
from bench.references.stored import conditions, prepare_reference
from bench.run.halves import PROOF, halves, prove, settled, strict_beside, warn_of_float32
from bench.run.needs import needs_of_judging, require
from bench.run.plan import Request, judged_under
from bench.run.provenance import run_record, typed_command
from bench.run.readiness import check_surroundings
from bench.run.reading_ahead import one_ahead
from bench.run.record import (
    Context,
    cell_record,
    measure_arrays,
    metric_rows,
    per_class_rows,
    ranking_of,
    reduce_arrays,
    thumbnail_rows,
)
from bench.run.shard import Host, judged_tensors, shard_ranges, shrink
from bench.run.worker import load_judges, reducing_ahead
from protocols import Protocol, protocol_files
from protocols.schema import digest_of
from results.cells import CellDirectory, sweep_if_idle
from results.database import now
from results.errors import BenchError, StoreError
from results.evidence import write_evidence
from results.files import mark, real_path
from results.index import index_cells, rank_all
from results.store import connect, finish_runs

BATCH = 64
"""Images judged at once: as many as the protocols of 256 pixels take, so that memory stays theirs."""


def score_images(
    source: Path,
    protocol: Protocol,
    runs: Path,
    *,
    name: str,
    nfe: float | None = None,
    device: str = "cpu",
    first_label: int | None = None,
) -> str:
    """Judge a folder or archive of images, or an ADM-style `.npz`, store one row and return its cell id.

    Labels come from class folders or the archive; without labels the metrics that need a prompt are skipped with their
    reason. `first_label` is the number of the first class where classes are numbered, 0 or 1; None: 0, and refused
    where that looks wrong. Raises BenchError, before anything is stored, when an image cannot be read.
    """
    if nfe is not None and not (math.isfinite(nfe) and nfe > 0):
        raise BenchError(f"--nfe: {nfe:g} is not a number of evaluations; use a number above 0")
    if not name.strip() or not name.isprintable():
        raise BenchError(f"--name: {name!r} is empty or contains control characters; choose a printable name")
    images = images_to_score(source, protocol, first_label)
    with fixed_threads(device):
        return _score(source, images, protocol, runs, name, nfe, device, first_label)


def images_to_score(source: Path, protocol: Protocol, first_label: int | None) -> ImageSource:
    """Return the images that `score_images` judges, listed but not decoded. Raises BenchError as it does."""
    size = f"{protocol.resolution}x{protocol.resolution}"
    advice = f"protocol '{protocol.name}' judges {size}: resize them first or choose another with --protocol"
    return open_images(source, protocol.resolution, protocol.class_names, first_label, advice)


def _score(
    source: Path,
    images: ImageSource,
    protocol: Protocol,
    runs: Path,
    name: str,
    nfe: float | None,
    device: str,
    first_label: int | None,
) -> str:
    database = runs / "bench.duckdb"
    check_surroundings(Request(protocol, device=device), runs, database)
    sweep_if_idle(runs)
    require(needs_of_judging(protocol))
    judges = load_judges(protocol, device)
    reference = prepare_reference(protocol, judges, runs)
    used = {key: judge for key, judge in judges.items() if images.labels is not None or not judge.needs_labels}
    context = Context(
        protocol=protocol,
        reference=reference,
        judge_digests={key: judge.digest for key, judge in judges.items()},
        run=run_record(typed_command(), device, torch.get_num_threads()),
        device=device,
    )
    ranges = shard_ranges(len(images), BATCH)
    directory = CellDirectory(runs, f"scoring-{mark()}")  # named when the images are known
    pixels = Pixels()
    try:
        with reducing_ahead(context):
            content, proof = _Judging(images, context, used, directory, ranges).run(pixels)
        arrays = directory.assemble(ranges)
        directory.remove_shards()
        thumbnails = arrays.pop("thumbnails", None)
        order = order_of_content(np.concatenate(pixels.hashes), images.labels)
        measured, evidence = reduce_arrays(context, arrays, images.labels, order)
        write_evidence(directory.path, evidence)
        identity = ["images", content, name, context.judge_digests, protocol.measurement_digest]
        cell_id = digest_of(identity)[:20]
        directory = directory.rename(cell_id)
    except BaseException:
        directory.clear()
        raise
    row = _row(context, cell_id, name, len(images), content, nfe, conditions(judges, reference))
    row["command"] = _command(source, protocol, name, nfe, device, first_label)
    row["pixels"] = {**pixels.facts(), "described": images.describe()}
    needing = set(judges) - set(used)
    rows = {
        "metrics": metric_rows(context, measured, proof),
        "skipped_metrics": [
            {"metric": skipped.name, "reason": _why(skipped, images, needing)} for skipped in measured.skipped
        ],
        "per_class": per_class_rows(protocol, measured),
        "thumbnails": [] if thumbnails is None else thumbnail_rows(protocol, thumbnails, images.labels),
    }
    directory.write_result(cell_record(context, row, rows))
    for fault in index_cells(database, [directory]):
        raise StoreError(f"{directory.result_path}: {fault.reason}")
    rank_all(database)
    with connect(database, write=True, retry=True) as connection:
        finish_runs(connection, now().isoformat(), context.run["run_id"])
    return cell_id


def name_of(source: Path) -> str:
    """Return the name of a row that is given none: the folder's or the file's, with what cannot be shown replaced."""
    name = real_path(source).stem.removesuffix(".tar")
    shown = "".join(mark if mark.isprintable() else "?" for mark in name)
    return shown.strip() or "images"


def _why(skipped: SkippedMetric, images: ImageSource, needing: Collection[str]) -> str:
    """Return the true reason of a missing metric: no labels, where it needs them."""
    read = set(fact_of(skipped.name).judges)
    if images.labels is None and (not read.isdisjoint(needing) or skipped.reason == UNLABELLED):
        return images.unlabelled
    return skipped.reason


class _Judging:
    """Images judged in order, a shard written for each range; half-precision judges prove themselves on the first."""

    def __init__(
        self,
        images: ImageSource,
        context: Context,
        judges: Mapping[str, Judge],
        directory: CellDirectory,
        ranges: list[tuple[int, int]],
    ) -> None:
        self.images, self.context, self.judges, self.directory = images, context, judges, directory
        self.doubted, self.proof = halves(judges), dict[str, Any]()
        self.asked: Mapping[str, Judge] = {**judges, **strict_beside(judges)}
        self.ends = {stop: start for start, stop in ranges}
        self.parts: dict[str, list[np.ndarray]] = {}

    def run(self, seen: Pixels) -> tuple[str, dict[str, Any]]:
        """Judge all; return the SHA-256 of all pixels, and the proof.

        While an accelerator judges a batch, the host looks at its pixels and takes in what the batch before was found
        to be.
        """
        images, device = self.images, self.context.device
        content = hashlib.sha256()
        batches = images.batches(0, BATCH)
        under_way: list[tuple[Batch, Host]] = []
        for batch in one_ahead(batches) if accelerator(device) else batches:
            for fault in batch.faults:
                raise BenchError(f"{images.root / fault.name}: {fault.reason}; replace or remove it")
            pixels = batch.images
            labels = torch.zeros(len(pixels), dtype=torch.int64)
            if images.labels is not None:
                labels = torch.from_numpy(images.labels[batch.start : batch.stop])
            under_way.append((batch, Host(judged_tensors(self.asked, _sent(pixels, device), labels))))
            seen.add(pixels.numpy(), batch.notes)
            content.update(pixels.numpy().data)
            while len(under_way) > (0 if self.doubted else 1):
                self._take(*under_way.pop(0))
        for last in under_way:
            self._take(*last)
        return content.hexdigest(), self.proof

    def _take(self, batch: Batch, said: Host) -> None:
        """Wait for what the judges say of a batch and keep it."""
        first, last, thumbnails = batch.start, batch.stop, self.context.protocol.thumbnails
        for name, values in said.arrays().items():
            self.parts.setdefault(name, []).append(values)
        if first < thumbnails:
            self.parts.setdefault("thumbnails", []).append(shrink(batch.images[: thumbnails - first]).numpy())
        if self.doubted and (last >= PROOF or last in self.ends):
            self._prove(last)
        if last in self.ends:
            arrays = {name: np.concatenate(values) for name, values in self.parts.items()}
            start = self.ends[last]
            self.directory.write_shard(start, last, arrays, {"start": start, "stop": last})
            self.parts = {}

    def _prove(self, count: int) -> None:
        both = {name: np.concatenate(values) for name, values in self.parts.items()}
        labels = None if self.images.labels is None else self.images.labels[:count]
        stand, self.proof = prove(both, partial(_measured, self.context, self.doubted, labels), len(self.images))
        assert stand is not None  # both precisions have judged all that was judged
        self.parts = {name: [values] for name, values in stand.items()}
        warn_of_float32("these images", self.proof)
        self.asked, self.doubted = settled(self.judges, self.proof), []


def _sent(pixels: torch.Tensor, device: str) -> torch.Tensor:
    """Return the images on the device; those on their way to an accelerator queue behind the batch it judges."""
    return pixels if accelerator(device) is None else pixels.pin_memory().to(device, non_blocking=True)


def _measured(
    context: Context, judges: Collection[str], labels: np.ndarray | None, said: Mapping[str, np.ndarray]
) -> CellMetrics:
    return measure_arrays(context, said, labels, judges=judges)


def _command(
    source: Path, protocol: Protocol, name: str, nfe: float | None, device: str, first_label: int | None
) -> str:
    """Return the command line that repeats the row from anywhere, as a shell takes it."""
    shipped = protocol_files().get(protocol.name) == protocol.path
    words = [
        "bench",
        "score",
        "--protocol",
        protocol.name if shipped else str(real_path(protocol.path)),
        "--name",
        name,
    ]
    words += [] if nfe is None else ["--nfe", f"{nfe:g}" if float(f"{nfe:g}") == nfe else repr(nfe)]
    words += [] if first_label is None else ["--first-label", str(first_label)]
    words += ["--device", device, "--", str(real_path(source))]
    return shlex.join(words).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _row(
    context: Context,
    cell_id: str,
    name: str,
    count: int,
    content: str,
    nfe: float | None,
    measured_under: str,
) -> dict[str, Any]:
    protocol = context.protocol
    return {
        "cell_id": cell_id,
        "run_id": context.run["run_id"],
        "model": name,
        "checkpoint": name,
        "family": "images",
        "protocol": protocol.name,
        "protocol_digest": protocol.digest,
        "ranking": ranking_of(context, judged_under(protocol, measured_under), count, protocol.seed),
        "measurement": protocol.measurement_digest,
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
        "started": now().isoformat(),
        "finished": now().isoformat(),
    }
