"""A synthetic database with the shapes of real results: few-step and multi-step models, a sweep, faults, pictures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from results.catalog import read_facts
from results.database import SCHEMA_VERSION, insert_many
from results.ranking import contenders, rank_by_metrics

SCHEMA = Path(__file__).parents[2] / "results" / "schema.sql"
BLOCKS = 20
START = datetime(2026, 11, 20, 9, 0, 0)
# model: natural steps, FID floor, FID at one step, power of its fall, largest trained step count
MODELS = {
    "digits-flow": (32, 0.50, 13.0, 1.5, 1000),
    "digits-ucgm-multi": (32, 0.78, 9.9, 1.2, 1000),
    "digits-ucgm-few": (4, 0.50, 0.70, 1.0, 8),
    "digits-consistency": (4, 0.50, 0.88, 0.8, 8),
    "digits-meanflow": (2, 0.51, 0.76, 1.2, 1000),
    "digits-shortcut": (4, 0.50, 1.28, 1.3, 1000),
    "digits-dmd": (1, 0.69, 0.69, 1.0, 1),
}
STUDENTS = ("digits-ucgm-few", "digits-dmd")
"""Those that name digits-flow as their teacher."""
STEPS = (1, 2, 4, 8, 16, 32)
FACTS = (
    ("fid", "Frechet inception distance", False, "Frechet distance between Gaussians fitted to judge features."),
    ("is", "Inception score", True, "Exponential of the mean divergence of predicted labels from their marginal."),
    ("clip", "CLIP score", True, "100 x cosine between image and prompt, mean over images."),
    ("pick", "PickScore", True, "Scaled cosine of the preference model, mean over images."),
    ("kid", "Kernel inception distance", False, "Squared maximum mean discrepancy with a cubic kernel."),
    ("precision", "Precision", True, "Share of samples inside the manifold of the reference."),
    ("recall", "Recall", True, "Share of the reference inside the manifold of the samples."),
    ("accuracy", "Label accuracy", True, "Share of samples that the judge gives the label asked for."),
    ("mmhm", "Min-max harmonic mean", True, "Harmonic mean of the min-max normalised FID, IS, CLIP and Pick."),
)


def truth(fid: float, cfg: float) -> dict[str, float]:
    """Values of the other metrics that go with a FID and a guidance scale."""
    fall = math.exp(-fid / 6)
    return {
        "fid": fid,
        "is": 4 + 5.4 * fall + 0.2 * (cfg - 1),
        "clip": 24 + 4 * fall + 0.4 * (cfg - 1),
        "pick": 19.5 + 1.2 * fall,
        "kid": 0.002 * fid,
        "precision": min(0.99, 0.55 + 0.35 * fall + 0.03 * (cfg - 1)),
        "recall": max(0.0, 0.15 + 0.6 * fall - 0.12 * (cfg - 1)),
        "accuracy": min(0.999, 0.95 + 0.035 * fall + 0.012 * (cfg - 1)),
    }


class Builder:
    """Fills a database of the real schema with invented but consistent results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.insert("schema_version", version=SCHEMA_VERSION)
        self.random = np.random.RandomState(0)
        self.shared = self.random.randn(BLOCKS) / 60  # the paired part of every jackknife
        self.cells: list[tuple[str, dict[str, float]]] = []

    def insert(self, table: str, **row: Any) -> None:
        encoded = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in row.items()}
        self.rows.setdefault(table, []).append(encoded)

    def run(self, **changes: Any) -> None:
        row: dict[str, Any] = {
            "run_id": "run-1",
            "started": START,
            "finished": START + timedelta(minutes=3),
            "command": "bench run",
            "code_version": "0.1.0",
            "code_commit": "4f0c2d1a9be7",
            "code_dirty": False,
            "packages": {"torch": "2.15.0", "torch-fidelity": "0.4.0", "open_clip_torch": "3.2.0"},
            "python": "3.11.2",
            "platform": "Linux x86_64",
            "device": "cpu (2 cores)",
            "threads": 2,
        }
        self.insert("runs", **(row | changes))

    def model(self, name: str, natural_steps: int = 4, **card: Any) -> None:
        self.insert(
            "models",
            model=name,
            family=name.split("-")[1] if "-" in name else name,
            title=name.replace("-", " "),
            resolution=8,
            num_classes=10,
            parameters=177_000,
            guidance="classifier-free",
            natural_steps=natural_steps,
            natural_cfg=1.0,
            paper="arXiv 2505.07447",
            licence="Apache-2.0",
            card=card,
        )

    def cell(self, model: str, steps: int | None, fid: float, cfg: float | None = 1.0, **changes: Any) -> str:
        """Add a finished cell with metrics, per-class values and pictures; `changes` override columns of `cells`."""
        cell = f"{len(self.cells):04d}{abs(hash((steps, cfg))) % 16**8:08x}"
        nfe = None if steps is None else steps * (1 if cfg == 1 else 2)
        seconds = 0.0008 + 0.00006 * (nfe or 0)
        row: dict[str, Any] = {
            "cell_id": cell,
            "run_id": "run-1",
            "model": model,
            "checkpoint": model,
            "family": "flow",
            "protocol": "digits",
            "protocol_digest": "9c1e" * 16,
            "ranking": "ab12" * 16,
            "status": "done",
            "reason": None,
            "steps": steps,
            "cfg": cfg,
            "sampler": "native",
            "settings": {"order": 1, "gap": 0.3},
            "options": {},
            "dtype": "float32",
            "seed": 0,
            "num_samples": 2000,
            "batch_size": 250,
            "off_regime": False,
            "random_weights": False,
            "weights_sha256": "77aa" * 16,
            "nfe": nfe,
            "guide_nfe": 0,
            "failures": 0,
            "parameters": 177_000,
            "flops": 4.1e6 * (nfe or 0),
            "network_seconds": 0.12 * (nfe or 0),
            "decode_seconds": 0.05,
            "judge_seconds": 0.9,
            "images_per_second": 1 / seconds,
            "latency_seconds": seconds * 1.6 * (1 + 0.1 * self.random.rand()),
            "peak_memory": 410 * 2**20,
            "device": "cpu (2 cores)",
            "latent_shape": "(1, 8, 8)",
            "command": f"bench run --model {model} --steps {steps} --cfg {cfg}",
            "started": START,
            "finished": START + timedelta(seconds=len(self.cells)),
        }
        row |= changes
        self.insert("cells", **row)
        self.cells.append((cell, {}))
        if row["status"] == "done":
            values = truth(fid, 1.0 if cfg is None else cfg)
            self.cells[-1] = (cell, values)
            self._metrics(cell, values)
            self._classes(cell, values)
            self._pictures(cell, fid)
        return cell

    def _metrics(self, cell: str, values: dict[str, float]) -> None:
        for metric, value in values.items():
            error = {
                "fid": 0.02 + 0.01 * value,
                "kid": 0.00006,
                "precision": 0.006,
                "recall": 0.009,
                "accuracy": 0.002,
            }.get(metric, 0.012)
            jackknife = value + error * (self.shared * 5 + self.random.randn(BLOCKS) / 30)
            self.insert(
                "metrics",
                cell_id=cell,
                metric=metric,
                value=value,
                low=value - 1.96 * error,
                high=value + 1.96 * error,
                standard_error=error,
                corrected=value - 0.03 if metric == "fid" else None,
                n=2000,
                method="delete-block jackknife, 20 blocks",
                judge="digits-clip" if metric == "clip" else "digits-classifier",
                judge_digest="31d0" * 16,
                reference="digits-held-out" if metric in ("fid", "kid", "precision", "recall") else None,
                reference_digest="5e5e" * 16 if metric in ("fid", "kid", "precision", "recall") else None,
                jackknife=jackknife.tolist(),
            )

    def _classes(self, cell: str, values: dict[str, float]) -> None:
        for label in range(10):
            for metric, noise in (("accuracy", 0.008), ("clip", 0.3), ("pick", 0.1)):
                value = values[metric] + noise * self.random.randn()
                value = min(1.0, value) if metric == "accuracy" else value
                self.insert(
                    "per_class",
                    cell_id=cell,
                    label=label,
                    class_name=f"digit {label}",
                    metric=metric,
                    value=value,
                    n=200,
                )

    def _pictures(self, cell: str, fid: float) -> None:
        grid = np.linspace(-1, 1, 8)
        for index in range(16):
            angle = index % 10 * 0.6
            stroke = np.exp(-6 * (grid[None, :] * math.cos(angle) + grid[:, None] * math.sin(angle)) ** 2)
            noisy = stroke + 0.04 * fid * self.random.randn(8, 8)
            file = io.BytesIO()
            Image.fromarray(np.uint8(np.clip(noisy, 0, 1) * 255)).save(file, "PNG")
            self.insert(
                "thumbnails",
                cell_id=cell,
                sample_index=index,
                label=index % 10,
                class_name=f"digit {index % 10}",
                width=8,
                height=8,
                png=file.getvalue(),
            )

    def rank(self, ranking: str = "ab12" * 16) -> None:
        """Write the composite and its ranks over all cells that have metrics."""
        rows = [(cell, values) for cell, values in self.cells if values]
        keys = ("fid", "is", "clip", "pick")
        bounds = {key: [min(v[key] for _, v in rows) - 0.05, max(v[key] for _, v in rows) + 0.05] for key in keys}
        scores = {}
        for cell, values in rows:
            unit = {key: (values[key] - bounds[key][0]) / (bounds[key][1] - bounds[key][0]) for key in keys}
            unit["fid"] = 1 - unit["fid"]
            scores[cell] = (4 / sum(1 / (0.001 + value) for value in unit.values()), unit)
        order = sorted(scores, key=lambda cell: -scores[cell][0])
        for place, cell in enumerate(order, 1):
            mmhm, unit = scores[cell]
            self.insert(
                "ranks",
                ranking=ranking,
                cell_id=cell,
                mmhm=mmhm,
                low=mmhm - 0.012,
                high=mmhm + 0.012,
                utilities=unit,
                outside="[]",
                rank=place,
                may_be_best=place <= 3,
                rank_low=max(1, place - 2),
                rank_high=min(len(order), place + 3),
                p_first=0.6 / place**1.5,
                geometric=math.prod(unit.values()) ** 0.25,
                mean_rank=place + 0.5,
            )
        matrix = (
            np.corrcoef([[values[key] for _, values in rows] for key in keys]) if len(rows) > 2 else np.eye(len(keys))
        )
        correlation = {a: {b: float(matrix[i, j]) for j, b in enumerate(keys)} for i, a in enumerate(keys)}
        self.insert(
            "rankings",
            ranking=ranking,
            protocol="digits",
            reference="digits-held-out",
            num_samples=2000,
            seed=0,
            eps=0.001,
            clip=True,
            bounds=bounds,
            bounds_source="frozen (digits/1)",
            correlation=correlation,
            sensitivity={cell: max(0, 5 - place) for place, cell in enumerate(order)},
        )

    def frame(self) -> None:
        """Write what does not hang on a cell: the protocol, the facts about metrics and the reference."""
        self.insert(
            "protocols",
            digest="9c1e" * 16,
            name="digits",
            title="Handwritten digits, 8x8",
            resolution=8,
            definition={"name": "digits", "num_samples": 2000, "labels": "balanced", "prompt": "a handwritten {}"},
        )
        for metric, title, higher, definition in FACTS:
            self.insert("metric_facts", metric=metric, title=title, higher_is_better=higher, definition=definition)
        self.insert(
            "references",
            name="digits-held-out",
            digest="5e5e" * 16,
            n=599,
            resize="none",
            judge_digest="31d0" * 16,
            facts={"split": "test"},
        )

    def close(self) -> Path:
        """Write all rows at once (a frame a table: row by row takes DuckDB many seconds) and return the path."""
        with duckdb.connect(str(self.path)) as connection:
            connection.execute(SCHEMA.read_text("utf-8"))
            for table, rows in self.rows.items():
                connection.register("new_rows", pd.DataFrame(rows))
                connection.execute(f'INSERT INTO "{table}" BY NAME SELECT * FROM new_rows')
            for ranking in {row["ranking"] for row in self.rows.get("cells", [])}:
                rows = contenders(connection, ranking)
                insert_many(connection, "metric_ranks", rank_by_metrics(ranking, rows, read_facts(connection)))
        return self.path


def fill(builder: Builder) -> Path:
    """The usual database: seven models x six steps, a guidance sweep, one failed, one unsupported, one folder."""
    builder.frame()
    builder.run()
    for model, (natural, floor, first, power, trained) in MODELS.items():
        published = [
            {"metric": "fid", "value": floor + 0.02, "steps": 4, "cfg": None, "source": "arXiv 2505.07447, table 2"}
        ]
        card = {"published": published} if model == "digits-ucgm-few" else {}
        builder.model(model, natural, **card | ({"teacher": "digits-flow"} if model in STUDENTS else {}))
        for steps in STEPS:
            if model == "digits-dmd" and steps > 1:
                reason = "the generator was distilled to one step"
                builder.cell(model, steps, 0, status="unsupported", reason=reason, images_per_second=None)
                continue
            fid = floor + (first - floor) / steps**power
            fid += 0.0045 * steps if model == "digits-ucgm-few" else 0.03 * builder.random.rand()
            builder.cell(model, steps, fid, off_regime=steps > trained)
    builder.model("digits-flow-small", 16)
    for steps in (4, 16):
        for cfg in (1.0, 1.25, 1.5, 2.0, 3.0):
            builder.cell(
                "digits-flow-small",
                steps,
                4.5 / steps + 1.1 + 1.6 * (cfg - 1.5) ** 2,
                cfg,
                checkpoint="digits-flow-small-ema",
            )
    builder.cell(
        "digits-edm", 8, 0, status="failed", reason="sample 12 of shard 3 is not finite", images_per_second=None
    )
    builder.insert(
        "skipped_metrics", cell_id=builder.cells[0][0], metric="sfid", reason="the judge has no spatial features"
    )
    builder.rank()
    return builder.close()


@pytest.fixture
def new_database(tmp_path: Path) -> Callable[..., Builder]:
    """Return a function that starts a database of the real schema, empty but for its version."""
    return lambda name="bench.duckdb": Builder(tmp_path / name)


@pytest.fixture(scope="session")
def start_database() -> Callable[[Path], Builder]:
    """Return what starts a database at a path."""
    return Builder


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual database, built once."""
    return fill(Builder(tmp_path_factory.mktemp("results") / "bench.duckdb"))
