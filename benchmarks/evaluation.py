"""Speed and memory of a whole evaluation, ours and others', on the same images and the same random weights.

    python benchmarks/evaluation.py --num 1000,4000 --models small
    python benchmarks/evaluation.py --num 128 --models full --resolution 256
    python benchmarks/evaluation.py --algebra          (the trace and per-class FID against scipy's sqrtm)
    python benchmarks/evaluation.py --fid --references 4000 --num 4000     (FID with its interval, part by part)

Every variant runs in a process of its own and is timed without its start (imports, loading of networks, the
reference, which all of them keep; on an accelerator also its first batch, with which libraries load their kernels):

floor        one forward pass of each judge's network over each image, nothing else
ours         `bench score`: FID, IS, CLIP score, PickScore, KID, precision and recall, each with its interval; stored
fidelity     torch-fidelity's calculate_metrics: FID, IS, KID, precision and recall from one pass of the classifier
ours-fidelity  ours restricted to the metrics of `fidelity`
loop         the fair benchmark's loop: torchmetrics' FID and IS, transformers' CLIP and PickScore with the prompt
             and the processor of each image

Needs torchmetrics besides the project.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from judge_files import SETS, Layer, SmallClassifier, stored_images, write_classifier, write_clip, write_images
from reductions import algebra, fid, reductions

from bench.contracts.bench_worker import peak_memory

BATCH = 64
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATE = "a photo of a {name}"
VARIANTS = ("floor", "ours", "loop", "ours-fidelity", "fidelity", "floor again")


class Setting(NamedTuple):
    """Where the files of one comparison lie."""

    root: Path
    models: str
    num: int
    resolution: int
    device: str

    @property
    def precision(self) -> str:
        """What the ViT judges compute in: as in the harness's own protocols."""
        return "half" if self.accelerated else "float32"

    @property
    def images(self) -> Path:
        """The images to evaluate."""
        return self.root / f"images-{self.num}.npz"

    @property
    def few(self) -> Path:
        """One batch of other images."""
        return self.root / f"images-{BATCH}-first.npz"

    @property
    def reference(self) -> Path:
        """The reference images."""
        return self.root / "reference.npz"

    @property
    def site(self) -> Path:
        """A folder of installed plug-ins: protocols name entry points, never modules."""
        return self.root / "site"

    @property
    def classifier(self) -> Path:
        """The classifier's weights."""
        return self.root / "classifier.pth"

    def clip(self, name: str) -> Path:
        """The directory of the CLIP-like model `alignment` or `preference`."""
        return self.root / name

    @property
    def accelerated(self) -> bool:
        """Whether the device is an accelerator."""
        return self.device.startswith("cuda")

    def synchronise(self) -> None:
        """Wait until the device has finished what it was given."""
        if self.accelerated:
            torch.cuda.synchronize()

    def environment(self) -> dict[str, str]:
        """Return the environment of a process that finds the plug-ins and keeps what it caches here."""
        here = Path(__file__).resolve().parent
        folders = [str(self.site), str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(filter(None, folders))
        return os.environ | {"PYTHONPATH": path, "BENCH_CACHE_DIR": str(self.root / "cache")}


ENTRY_POINTS = """[bench.extractors]
small-classifier = judge_files:SmallClassifier

[bench.references]
stored-images = judge_files:stored_images
"""


def prepare(setting: Setting, references: int, images: bool = True) -> None:
    """Write images (unless told not to), weights, protocols and the plug-in that they name, unless they are there."""
    chosen = SETS[setting.models]
    plugin = setting.site / "bench_benchmarks-1.0.dist-info"
    plugin.mkdir(parents=True, exist_ok=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-benchmarks\nVersion: 1.0\n")
    (plugin / "entry_points.txt").write_text(ENTRY_POINTS)
    if images and not setting.images.exists():
        write_images(setting.images, setting.num, setting.resolution, len(NAMES), seed=setting.num)
    if not setting.few.exists():
        write_images(setting.few, BATCH, setting.resolution, len(NAMES), seed=1)
    if setting.reference.exists():
        return
    write_images(setting.reference, references, setting.resolution, len(NAMES), seed=0)
    write_classifier(chosen.classifier, setting.classifier)
    for name, tower in (("alignment", chosen.alignment), ("preference", chosen.preference)):
        write_clip(tower, setting.clip(name))
    small = chosen.classifier == "small"
    extractor = "small-classifier" if small else chosen.classifier
    towers = "".join(
        f'[judges.{judge}]\nkind = "transformers-clip"\npath = "{setting.clip(name)}"\n{scale}\n'
        f'precision = "{setting.precision}"\n'
        for judge, name, scale in (("clip", "alignment", "scale = 100.0"), ("pick", "preference", ""))
    )
    for name, metrics, judges in (
        ("ours", ["fid", "is", "clip", "pick", "kid", "precision", "recall"], towers),
        ("ours-fidelity", ["fid", "is", "kid", "precision", "recall"], ""),
    ):
        (setting.root / f"{name}.toml").write_text(f"""
name = "{name}"
title = "{name}"
resolution = {setting.resolution}

[labels]
names = {json.dumps(NAMES)}
template = "{TEMPLATE}"
plan = "balanced"

[sampling]
num_samples = {setting.num}
seed = 0
thumbnails = 20

[reference]
name = "stored"
source = "stored-images"
part = "{setting.reference}"

[judges.inception]
kind = "torch-fidelity"
extractor = "{extractor}"
weights = "{setting.classifier}"

{judges}
[metrics]
names = {json.dumps(metrics)}
blocks = 20
""")


Work = Callable[[Path], dict[str, float]]
"""Evaluates the images of a file."""


def floor(setting: Setting) -> Work:
    """One forward pass of each network of `ours`, in its judge's precision, on inputs that are already of its size."""
    from bench.contracts.precision import full_precision
    from bench.run.worker import load_judges
    from protocols import load_protocol

    judges = load_judges(load_protocol(setting.root / "ours.toml"), setting.device)
    side = setting.resolution if SETS[setting.models].classifier == "small" else 299
    images = torch.randint(0, 256, (BATCH, 3, side, side), dtype=torch.uint8, device=setting.device)
    pixels = torch.randn(BATCH, 3, 224, 224, device=setting.device)
    networks: dict[str, tuple[Any, torch.Tensor]] = {
        "inception": (judges["inception"].extractor, images),
        "clip": (judges["clip"].towers.image_features, pixels),
        "pick": (judges["pick"].towers.image_features, pixels),
    }

    def work(path: Path) -> dict[str, float]:
        seconds, count = {}, BATCH if path == setting.few else setting.num
        with torch.inference_mode(), full_precision():
            for name, (network, batch) in networks.items():
                half = judges[name].half
                precision = torch.autocast(batch.device.type, dtype=half or torch.float16, enabled=half is not None)
                began = time.perf_counter()
                for start in range(0, count, BATCH):
                    with precision:
                        network(batch[: min(BATCH, count - start)])
                setting.synchronise()
                seconds[name] = time.perf_counter() - began
        return seconds

    return work


def ours(setting: Setting, name: str = "ours") -> Work:
    """`bench score` with the judges loaded and the reference judged before."""
    from bench.references.stored import prepare_reference
    from bench.run.score import score_images
    from bench.run.worker import load_judges
    from protocols import load_protocol
    from results.store import connect

    protocol = load_protocol(setting.root / f"{name}.toml")
    runs = setting.root / "runs"
    judges = load_judges(protocol, setting.device)
    prepare_reference(protocol, judges, runs)

    def work(path: Path) -> dict[str, float]:
        cell_id = score_images(path, protocol, runs, name=f"{name}-{path.stem}", device=setting.device)
        with connect(runs / "bench.duckdb") as connection:
            query = "SELECT metric, value FROM metrics WHERE cell_id = ?"
            return dict(connection.execute(query, [cell_id]).fetchall())

    return work


class Stored(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The images of an archive, one by one."""

    def __init__(self, path: Path) -> None:
        self.images = stored_images(str(path)).images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def fidelity(setting: Setting) -> Work:
    """torch-fidelity, the reference's features in its cache; one network for all metrics is its fastest way."""
    import torch_fidelity

    extractor = SETS[setting.models].classifier
    if extractor == "small":
        torch_fidelity.register_feature_extractor("small", SmallClassifier)
    images = {path: Stored(path) for path in (setting.few, setting.images)}
    reference = Stored(setting.reference)
    options = {
        "cuda": setting.accelerated, "batch_size": BATCH, "feature_extractor": extractor,
        "feature_extractor_weights_path": str(setting.classifier), "fid": True, "isc": True, "kid": True, "prc": True,
        "feature_layer_prc": "pool" if extractor == "small" else "2048",
        "cache_root": str(setting.root / "fidelity"), "input2": reference,
        "input2_cache_name": "reference", "verbose": False,
    }  # fmt: skip

    def work(path: Path) -> dict[str, float]:
        size = min(1000, len(images[path]), len(reference))
        return torch_fidelity.calculate_metrics(input1=images[path], kid_subset_size=size, **options)

    work(setting.few)  # the reference's features come into the cache
    return work


def loop(setting: Setting) -> Work:
    """The fair benchmark's evaluation: each metric by its own library, prompts and processors for each image."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from transformers import CLIPModel, CLIPProcessor

    device, path = torch.device(setting.device), str(setting.classifier)
    if SETS[setting.models].classifier == "small":
        options = {"feature_extractor_weights_path": path}
        fid = FrechetInceptionDistance(Layer(SmallClassifier("small", ["pool"], **options), 256), False)
        score = InceptionScore(Layer(SmallClassifier("small", ["logits"], **options), 100))
    else:
        from torchmetrics.image.fid import NoTrainInceptionV3

        fid = FrechetInceptionDistance(reset_real_features=False, feature_extractor_weights_path=path)
        score = InceptionScore(NoTrainInceptionV3("inception-v3-compat", ["logits_unbiased"], path))
    fid, score = fid.to(device), score.to(device)
    names = ("alignment", "preference")
    models = [CLIPModel.from_pretrained(setting.clip(name)).to(device).eval() for name in names]
    processors = [CLIPProcessor.from_pretrained(setting.clip(name)) for name in names]
    loaded = {path: stored_images(str(path)) for path in (setting.few, setting.images)}
    with torch.inference_mode():
        for batch in stored_images(str(setting.reference)).images.split(BATCH):
            fid.update(batch.to(device), real=True)

    @torch.inference_mode()
    def work(path: Path) -> dict[str, float]:
        fid.reset(), score.reset()
        images, labels = loaded[path]
        scores: list[list[torch.Tensor]] = [[], []]
        for batch, label in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            fid.update(batch.to(device), real=False)
            score.update(batch.to(device))
            prompts = [TEMPLATE.format(name=NAMES[index]) for index in label]
            arrays = [image.permute(1, 2, 0).numpy() for image in batch]
            for model, processor, values in zip(models, processors, scores, strict=True):
                inputs = processor(text=prompts, images=arrays, return_tensors="pt", padding=True).to(device)
                image = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
                text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
                image, text = image / image.norm(dim=-1, keepdim=True), text / text.norm(dim=-1, keepdim=True)
                values.append((image * text).sum(dim=-1).cpu())
        means = [float(torch.cat(values).mean()) for values in scores]
        return {
            "fid": float(fid.compute()), "is": float(score.compute()[0]),
            "clip": 100.0 * means[0], "pick": float(models[1].logit_scale.exp()) * means[1],
        }  # fmt: skip

    return work


MAKERS: dict[str, Callable[[Setting], Work]] = {
    "floor": floor,
    "floor again": floor,
    "ours": ours,
    "ours-fidelity": lambda setting: ours(setting, "ours-fidelity"),
    "fidelity": fidelity,
    "loop": loop,
}


def measure(variant: str, setting: Setting) -> dict[str, Any]:
    """Run one variant in this process: seconds of its work, and the peak memory of process or device."""
    work = MAKERS[variant](setting)
    if setting.accelerated:
        work(setting.few)
        setting.synchronise()
    began, cpu = time.perf_counter(), time.process_time()
    values = work(setting.images)
    setting.synchronise()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "peak": peak_memory(), "values": values}


def in_a_process(variant: str, setting: Setting, threads: int) -> dict[str, Any] | None:
    """Run one variant in a new process and return what it measured; None where it fails."""
    environment = setting.environment() | {"OMP_NUM_THREADS": str(threads)}
    arguments = [sys.executable, __file__, "--worker", variant, json.dumps([str(setting.root), *setting[1:]])]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"{variant} failed:\n{done.stderr}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, dict[str, Any]], setting: Setting) -> str:
    """Return the comparison as a table in Markdown."""
    floors = [results[name] for name in ("floor", "floor again") if name in results]
    if not floors:
        return "the floor was not measured"
    # On an accelerator the wall clock counts; on a busy processor the seconds that it worked.
    key = "seconds" if setting.accelerated else "cpu_seconds"
    whole = float(np.median([result[key] for result in floors]))
    classifier = float(np.median([result["values"]["inception"] for result in floors]))
    classifier *= whole / float(np.median([result["seconds"] for result in floors]))
    lines = ["| variant | images/s | seconds | processor seconds | x floor | peak MiB |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        base = classifier if "fidelity" in name else whole
        rate = setting.num / result["seconds"]
        lines.append(
            f"| {name} | {rate:.1f} | {result['seconds']:.1f} | {result['cpu_seconds']:.1f} | "
            f"{result[key] / base:.2f} | {result['peak'] / 2**20:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", default="1000,4000", help="numbers of images, comma-separated")
    parser.add_argument("--references", type=int, default=1000, help="reference images")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--models", choices=list(SETS), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--budget", type=float, default=None, help="seconds after which no further variant is begun")
    parser.add_argument("--files", type=Path, default=None, help="where images and weights are kept for other runs")
    parser.add_argument("--algebra", action="store_true", help="only the trace and per-class FID")
    parser.add_argument("--reductions", action="store_true", help="only the metrics, on synthetic features of d = 2048")
    parser.add_argument("--fid", action="store_true", help="only the parts of FID with its interval, likewise")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        root, *rest = json.loads(given.worker[1])
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        print(json.dumps(measure(given.worker[0], Setting(Path(root), *rest))))
        return
    began = time.monotonic()
    numbers = [int(number) for number in given.num.split(",")]
    print(f"{platform.processor() or platform.machine()}, {given.threads} thread(s), torch {torch.__version__}")
    if given.algebra:
        algebra()
        return
    if given.reductions:
        for number in numbers:
            reductions(number, given.references)
        return
    if given.fid:
        for number in numbers:
            fid(number, given.references)
        return
    print(f"models {given.models}: {SETS[given.models].facts}; {given.resolution} pixels, batch {BATCH}")
    with tempfile.TemporaryDirectory() as temporary:
        root = given.files or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            setting = Setting(root, given.models, number, given.resolution, given.device)
            prepare(setting, given.references)
            results = {}
            for variant in given.variants.split(","):
                if given.budget is not None and time.monotonic() - began > given.budget:
                    print(f"{number} {variant}: left out, the time is spent", flush=True)
                    continue
                measured = in_a_process(variant, setting, given.threads)
                if measured is None:  # a library that is not here, say: the other variants stay
                    print(f"{number} {variant}: failed, see above", flush=True)
                    continue
                results[variant] = measured
                print(f"{number} {variant}: {json.dumps(results[variant])}", file=sys.stderr, flush=True)
            print(f"\nN = {number}, {given.references} reference images\n\n{table(results, setting)}", flush=True)


if __name__ == "__main__":
    main()
