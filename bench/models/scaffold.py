"""`bench adapter new`: a working adapter as a package of its own, with its card, weights and test."""

from __future__ import annotations

import json
import keyword
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from string import Template

from bench.contracts import bench_worker
from bench.models.cards import card_schema
from results.errors import BenchError
from results.files import disk_error

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$name-adapter"
version = "0.1.0"
description = "An adapter of fewstep-bench for $name"
requires-python = ">=3.11"
dependencies = []  # fewstep-bench is on no package index: install it first, or use the extra below

[project.optional-dependencies]
bench = [$reference]

[project.entry-points."bench.adapters"]
$name = "$package.adapter:$klass"

[project.entry-points."bench.cards"]
$name = "$package.cards"
$parity
[tool.setuptools]
packages = ["$package", "$package.cards"]

[tool.setuptools.package-data]
"*" = ["*.toml"]
"""

PARITY = """
[project.entry-points."bench.parity"]
$name = "$package.adapter:replay"
"""

ADAPTER = '''\
"""$name: the flow from noise to Gaussians around the classes' mean images, to be replaced by your model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from bench.contracts.adapter import Adapter, load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import Number, SamplerSettings
from pydantic import Field
from torch import Tensor, nn


class Velocity(nn.Module):
    """Your network. This one knows the velocity of the flow from noise to N(mean of the class, width^2)."""

    def __init__(self, classes: int, shape: tuple[int, ...], width: float) -> None:
        super().__init__()
        means = torch.linspace(-0.8, 0.8, classes + 1).reshape(-1, *[1] * len(shape))
        self.means = nn.Parameter(means.expand(classes + 1, *shape).clone())
        self.width = width

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x [B, C, H, W] at time t [B] (noise at 0, data at 1), labels int64 [B] (last row: null) -> velocity."""
        mean, t = self.means[labels], t[:, None, None, None]
        slope = (t * self.width**2 - (1 - t)) / (t**2 * self.width**2 + (1 - t) ** 2)
        return (mean + slope * (x.to(mean.dtype) - t * mean)).float()


class ${klass}Settings(SamplerSettings):
    """The sampler's settings (`--option shift=2`), shown by `bench show $name` and checked before the first sample."""

    shift: Number = Field(1.0, gt=0, description="the times are (i/steps)^shift")


class $klass(Adapter):
    """Euler steps along the velocity, with classifier-free guidance."""

    Settings = ${klass}Settings

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.network = Velocity(card.num_classes, card.latent_shape, **card.architecture)

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from the published state dict."""
        load_strict(self.network, state, self.card.name)

    def generate(
        self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: ${klass}Settings
    ) -> Tensor:
        """Return samples, float32 [B, *latent_shape]."""
        x = noise.normal(self.latent_shape)
        times = [(i / steps) ** settings.shift for i in range(steps + 1)]
        null = torch.full_like(labels, self.num_classes)
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            t_batch = torch.full((len(x),), t, device=x.device)
            v = self.network(x, t_batch, labels)
            if cfg != 1.0:
                v_null = self.network(x, t_batch, null)
                v = v_null + cfg * (v - v_null)
            x = x + (t_next - t) * v
        return x

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels already; grey becomes RGB."""
        return latents.expand(-1, 3, -1, -1)


def replay(case: Case) -> Replay:
    """Return what replays calls of the authors' code, as `bench adapter record` keeps them, for `bench parity`."""
    adapter = recorded_adapter(case, $klass, "classifier-free", num_classes=10)
    return recorded_replay(case, adapter, ("x", "t", "labels"))
'''

CARD = """\
#:schema card.schema.json

name = "$name"
family = "$name"
title = "$name (an example to be replaced)"
resolution = 8
num_classes = 10
latent_shape = [1, 8, 8]
natural_steps = 4
licence = "Apache-2.0"
notes = "No weights: the network is complete as it is built. Add a [weights] table for a checkpoint."

[architecture]
width = 0.1

[guidance]
kind = "classifier-free"
natural = 1.0
range = [1.0, 3.0]
"""

TEST = """\
from bench.models.cards import find_card
from bench.models.conformance import check_adapter


def test_the_adapter_keeps_its_contract():
    broken = [finding for finding in check_adapter(find_card("$name")) if not finding.ok]
    assert not broken, broken
"""


HOME = "git+https://github.com/OWNER/fewstep-bench@TAG"
"""Where nobody knows where the harness came from, as from a wheel: the reader fills in OWNER and TAG."""


def origin() -> str:
    """Return where this harness was installed from, as a requirement's URL: a folder, a repository with its commit."""
    try:
        told = json.loads(distribution("fewstep-bench").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return HOME
    url, vcs = told.get("url", ""), told.get("vcs_info")
    if not url:
        return HOME
    return f"{vcs['vcs']}+{url}@{vcs['commit_id']}" if vcs else str(url)


WORKER_ADAPTER = '''\
"""$name: sampled by worker.py, in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from bench.contracts.out_of_process import WorkerAdapter
from bench.contracts.settings import Number, SamplerSettings
from pydantic import Field


class ${klass}Settings(SamplerSettings):
    """The sampler's settings (`--option shift=2`), checked before the worker is asked."""

    shift: Number = Field(1.0, gt=0, description="the times are (i/steps)^shift")


class $klass(WorkerAdapter):
    """Euler steps along the velocity, with classifier-free guidance, elsewhere."""

    Settings = ${klass}Settings
    script = Path(__file__).with_name("worker.py")
'''

WORKER = '''\
"""$name: the flow from noise to Gaussians around the classes' mean images, to be replaced by your model.

This file runs in the model's own environment, whatever its versions; bench_worker.py beside it needs numpy alone.
"""

import numpy as np

from bench_worker import serve


class Model:
    guidance = "classifier-free"
    counted = "by hand: a call of velocity() is one evaluation of each of its rows"

    def __init__(self, job):
        card = job.card
        self.latent_shape, self.resolution = tuple(card["latent_shape"]), card["resolution"]
        self.num_classes, self.width = card["num_classes"], card["architecture"]["width"]
        self.means = np.linspace(-0.8, 0.8, self.num_classes + 1, dtype=np.float32)
        if job.random_seed is not None:
            self.means = np.random.RandomState(job.random_seed).uniform(-0.8, 0.8, len(self.means)).astype(np.float32)

    def velocity(self, batch, x, t, labels):
        """x [B, C, H, W] at time t (noise at 0, data at 1), labels [B] (the last: null) -> velocity."""
        batch.evaluated(len(x))
        mean = self.means[labels].reshape(-1, 1, 1, 1)
        slope = (t * self.width**2 - (1 - t)) / (t**2 * self.width**2 + (1 - t) ** 2)
        return mean + np.float32(slope) * (x - np.float32(t) * mean)

    def sample(self, batch):
        """Return images, float32 [B, 3, resolution, resolution] in [-1, 1]."""
        x = batch.normal(self.latent_shape)
        times = [(i / batch.steps) ** batch.settings["shift"] for i in range(batch.steps + 1)]
        null = np.full_like(batch.labels, self.num_classes)
        for t, t_next in zip(times[:-1], times[1:]):
            v = self.velocity(batch, x, t, batch.labels)
            if batch.cfg != 1.0:  # 1.0 is no guidance, and costs no second evaluation
                v_null = self.velocity(batch, x, t, null)
                v = v_null + np.float32(batch.cfg) * (v - v_null)
            x = x + np.float32(t_next - t) * v
        return np.repeat(x, 3, axis=1)


if __name__ == "__main__":
    serve(Model)
'''

WORKER_TABLE = """
[worker]
requirements = ["numpy"]
"""


def write_adapter(name: str, directory: Path, *, out_of_process: bool = False) -> list[Path]:
    """Write the package into `directory` and return its files.

    `out_of_process`: its family names a script that samples in an environment of its own. Raises BenchError for a bad
    name or a used directory.
    """
    package = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or keyword.iskeyword(package):
        raise BenchError(f"adapter name '{name}' must be lower-case letters, digits and hyphens, for example my-model")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BenchError(f"{directory} exists and is not an empty folder; choose another place with --directory")
    words = {"name": name, "package": package, "klass": "".join(word.capitalize() for word in name.split("-"))}
    contents = {
        "pyproject.toml": PYPROJECT,
        f"{package}/__init__.py": '"""An adapter of fewstep-bench."""\n',
        f"{package}/adapter.py": WORKER_ADAPTER if out_of_process else ADAPTER,
        f"{package}/cards/__init__.py": '"""Model cards."""\n',
        f"{package}/cards/{name}.toml": CARD + WORKER_TABLE if out_of_process else CARD,
        f"{package}/cards/card.schema.json": json.dumps(card_schema(), indent=2).replace("$", "$$") + "\n",
        f"tests/test_{package}.py": TEST,
    }
    words["parity"] = "" if out_of_process else PARITY.replace("$name", name).replace("$package", package)
    words["reference"] = json.dumps(f"fewstep-bench @ {origin()}")
    if out_of_process:
        ours = Path(bench_worker.__file__).read_text(encoding="utf-8")
        contents |= {f"{package}/worker.py": WORKER, f"{package}/bench_worker.py": ours.replace("$", "$$")}
    paths = []
    for relative, text in contents.items():
        path = directory / relative
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(text).substitute(words), encoding="utf-8")
        except OSError as error:
            raise disk_error(path, error, "--directory") from error
        paths.append(path)
    return paths
