"""The protocol file: its keys, their checks and its digest."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results.errors import ProtocolError

LABEL_PLANS = ("balanced", "reference", "uniform")
QUANTISERS = ("round", "trunc128", "trunc255")
SAMPLERS = ("native", "plain")
DATASET_KINDS = ("imagenet-val", "imagenetv2", "relaionet", "folder", "npz", "statistics", "none")


@dataclass(frozen=True)
class Sweep:
    """Cells of the plan: every model x steps x guidance."""

    models: tuple[str, ...]
    steps: tuple[int, ...]
    cfg: tuple[float, ...] = (1.0,)
    """Guidance scales; models without inference-time guidance get one cell per step count."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Sampler settings of these cells, as `--option` gives them."""


@dataclass(frozen=True)
class Protocol:
    """A protocol as loaded from TOML; docs/protocols.md and docs/references.md tell every key."""

    name: str
    title: str
    resolution: int
    class_names: tuple[str, ...]
    prompt_templates: tuple[str, ...]
    """Each with `{name}` in it, where a class name is put; judges average over several."""
    label_plan: str
    num_samples: int
    seed: int
    sweeps: tuple[Sweep, ...]
    sampler: str
    quantise: str
    levels: int
    """Grey levels kept by the quantiser (256, or fewer for data that has fewer)."""
    batch_size: int
    reference: Mapping[str, Any]
    judges: Mapping[str, Mapping[str, Any]]
    metrics: tuple[str, ...]
    blocks: int
    """Blocks of the delete-block jackknife; each holds the label histogram."""
    metric_options: Mapping[str, Any]
    composite: Mapping[str, Any]
    notes: str = ""
    thumbnails: int = 20
    """How many of the first samples are kept as pictures."""
    smoke: bool = False
    """A small subset that shows that everything runs; its rows are never compared with those of the full protocol."""
    path: Path = field(default=Path(), compare=False)

    @property
    def prompts(self) -> list[str | list[str]]:
        """The prompt of each class in label order: one text, or one for every template."""
        if len(self.prompt_templates) == 1:
            return [self.prompt_templates[0].replace("{name}", name) for name in self.class_names]
        return [[form.replace("{name}", name) for form in self.prompt_templates] for name in self.class_names]

    def canonical(self) -> dict[str, Any]:
        """Return every key as plain JSON values: what the digest is taken of."""
        form = {
            "name": self.name,
            "resolution": self.resolution,
            "labels": {
                "names": list(self.class_names),
                "template": self.prompt_templates[0]
                if len(self.prompt_templates) == 1
                else list(self.prompt_templates),
                "plan": self.label_plan,
            },
            "sampling": {
                "num_samples": self.num_samples,
                "seed": self.seed,
                "sampler": self.sampler,
                "quantise": self.quantise,
                "levels": self.levels,
                "sweeps": [
                    {"models": list(sweep.models), "steps": list(sweep.steps), "cfg": list(sweep.cfg)}
                    | ({"options": dict(sweep.options)} if sweep.options else {})
                    for sweep in self.sweeps
                ],
            },
            "reference": dict(self.reference),
            "judges": {name: dict(options) for name, options in self.judges.items()},
            "metrics": {"names": list(self.metrics), "blocks": self.blocks, "options": dict(self.metric_options)},
            "composite": dict(self.composite),
        }
        return form | {"smoke": True} if self.smoke else form

    @property
    def digest(self) -> str:
        """sha256 of the canonical form."""
        return digest_of(self.canonical())

    @property
    def measurement_digest(self) -> str:
        """sha256 of what turns a model's samples into numbers: labels, quantiser, reference, judges, metrics."""
        form = self.canonical()
        sampling = {key: form["sampling"][key] for key in ("quantise", "levels")}
        metrics = {key: form["metrics"][key] for key in ("blocks", "options")}
        measurement = {
            "resolution": self.resolution,
            "labels": form["labels"],
            "sampling": sampling,
            "reference": form["reference"],
            "judges": form["judges"],
            "metrics": metrics,
        }
        return digest_of(measurement | {"smoke": True} if self.smoke else measurement)


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def protocol_files() -> dict[str, Path]:
    """Return the protocols shipped with the package, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"), key=lambda path: path.stem)}


def find_protocol(name: str) -> Protocol:
    """Return the shipped protocol called `name`, or the one in the file `name` when it ends in `.toml`."""
    if name.endswith(".toml"):
        return load_protocol(Path(name))
    known = protocol_files()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise ProtocolError(f"unknown protocol '{name}': {hint}")
    return load_protocol(known[name])


def load_protocol(path: Path) -> Protocol:
    """Read one protocol. Raises ProtocolError naming the file, the key and the reason when it is malformed."""
    return _read(_Table(path, _resolved(path, ()), ""), path)


def _resolved(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return the file's table on top of that of the protocol it extends: tables are merged, all else is replaced."""
    if path in above:
        raise ProtocolError(f"protocol {above[0]}: key 'extends' leads in a circle; name another protocol")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProtocolError(f"protocol {path}: cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"protocol {path}: not valid TOML ({error}); mend the file") from error
    if isinstance(labels := table.get("labels"), dict) and isinstance(names := labels.get("names_file"), str):
        labels["names_file"] = str(path.parent / names)
    if "extends" not in table:
        return table
    name = _Table(path, table, "").text("extends")
    beside = path.parent / f"{name}.toml"
    if not beside.exists() and name not in protocol_files():
        raise ProtocolError(f"protocol {path}: key 'extends' names '{name}', which is neither beside it nor shipped")
    del table["extends"]
    base = _resolved(beside if beside.exists() else protocol_files()[name], (*above, path))
    reference = table.get("reference")
    for stated, others in (("kind", ("source", "part")), ("source", ("kind", "variant", "images", "classes"))):
        if isinstance(reference, dict) and stated in reference:  # a set and a function exclude each other
            for other in others:
                base.get("reference", {}).pop(other, None)
    return _merged(base, table)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in over.items()
    }
    return {**base, **both}


def _read(root: _Table, path: Path) -> Protocol:
    labels, sampling = root.table_at("labels"), root.table_at("sampling")
    metrics, composite = root.table_at("metrics"), root.table_at("composite", optional=True)
    names = labels.text_list("names") if "names" in labels.values else _names_file(labels)
    templates = labels.text_list("template") if isinstance(labels.values.get("template"), list) else None
    templates = templates or [labels.text("template")]
    if not all("{name}" in template for template in templates):
        raise labels.error("template", "must hold {name}")
    sweeps = tuple(_sweep(sweep) for sweep in sampling.tables("sweeps"))
    protocol = Protocol(
        name=root.text("name"),
        title=root.text("title"),
        resolution=root.integer("resolution", low=1),
        notes=root.text("notes", ""),
        class_names=tuple(names),
        prompt_templates=tuple(templates),
        label_plan=labels.choice("plan", LABEL_PLANS),
        num_samples=sampling.integer("num_samples", low=2),
        seed=sampling.integer("seed", low=0),
        sweeps=sweeps,
        sampler=sampling.choice("sampler", SAMPLERS, "native"),
        quantise=sampling.choice("quantise", QUANTISERS, "round"),
        levels=sampling.integer("levels", 256, low=2),
        batch_size=sampling.integer("batch_size", 64, low=1),
        thumbnails=sampling.integer("thumbnails", 20, low=0),
        reference=_reference(root.table_at("reference")),
        judges=root.table_at("judges").values,
        metrics=tuple(metrics.text_list("names")),
        blocks=metrics.integer("blocks", 20, low=2),
        metric_options=metrics.values.get("options", {}),
        composite=composite.values,
        path=path,
        smoke=root.boolean("smoke", False),
    )
    for name, options in protocol.judges.items():
        if not isinstance(options, dict) or "kind" not in options:
            raise root.error(f"judges.{name}.kind", "is missing; add it")
    root.only(
        {
            "name", "title", "resolution", "notes", "smoke", "labels", "sampling", "reference", "judges", "metrics",
            "composite",
        }
    )  # fmt: skip
    labels.only({"names", "names_file", "names_column", "template", "plan"})
    sampling.only(
        {"num_samples", "seed", "sweeps", "sampler", "quantise", "levels", "batch_size", "thumbnails"},
    )
    metrics.only({"names", "blocks", "options"})
    composite.only({"metrics", "eps", "clip", "bounds", "version", "source"})
    return protocol


def _reference(table: _Table) -> Mapping[str, Any]:
    """Check the table of the reference: a data set by `kind`, or images that a function gives (`source`)."""
    table.text("name")
    if "source" in table.values:
        table.only({"name", "source", "part", "resize"})
        return table.values
    table.choice("kind", DATASET_KINDS)
    table.text("resize", "none")
    table.text("variant", "")
    table.integer("images", 2, low=2)
    table.integer("classes", 1, low=0)
    table.only({"name", "kind", "variant", "resize", "images", "classes"})
    return table.values


def _names_file(labels: _Table) -> list[str]:
    file = Path(labels.text("names_file"))
    try:
        if file.suffix != ".csv":
            return [line for line in file.read_text(encoding="utf-8").splitlines() if line]
        column = labels.text("names_column", "name")
        with file.open(encoding="utf-8", newline="") as stream:
            return [row[column] for row in csv.DictReader(stream)]
    except OSError as error:
        raise labels.error("names_file", f"cannot be read: {file} ({error.strerror})") from error
    except KeyError as error:
        raise labels.error("names_column", f"is no column of {file}: {error}") from error


def _sweep(table: _Table) -> Sweep:
    steps = table.values.get("steps")
    cfg = table.values.get("cfg", [1.0])
    if not isinstance(steps, list) or not all(type(n) is int and n > 0 for n in steps) or not steps:
        raise table.error("steps", f"must be a list of positive integers, found {steps!r}")
    if not isinstance(cfg, list) or not all(type(w) in (int, float) and math.isfinite(w) for w in cfg) or not cfg:
        raise table.error("cfg", f"must be a list of numbers, found {cfg!r}")
    table.only({"models", "steps", "cfg", "options"})
    options = table.table_at("options", optional=True).values
    return Sweep(tuple(table.text_list("models")), tuple(steps), tuple(float(w) for w in cfg), options)


class _Table:
    """A table of the file, read key by key with errors that name the key."""

    def __init__(self, path: Path, values: Any, prefix: str) -> None:
        self.path, self.prefix = path, prefix
        if not isinstance(values, dict):
            raise self.error("", "must be a table")
        self.values: dict[str, Any] = values

    def error(self, key: str, reason: str) -> ProtocolError:
        return ProtocolError(f"protocol {self.path}: key '{(self.prefix + key).rstrip('.')}' {reason}")

    def table_at(self, key: str, optional: bool = False) -> _Table:
        if key not in self.values and not optional:
            raise self.error(key, "is missing; add it")
        return _Table(self.path, self.values.get(key, {}), f"{self.prefix}{key}.")

    def tables(self, key: str) -> list[_Table]:
        values = self.values.get(key, [])
        if not isinstance(values, list):
            raise self.error(key, "must be a list of tables")
        return [_Table(self.path, value, f"{self.prefix}{key}.") for value in values]

    def only(self, known: set[str]) -> None:
        for key in self.values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(sorted(known))}"
                raise self.error(key, f"is not known; {hint}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if value is None:
            raise self.error(key, "is missing; add it")
        if not isinstance(value, str):
            raise self.error(key, f"must be text, found {value!r}")
        return value

    def text_list(self, key: str) -> list[str]:
        value = self.values.get(key)
        if value is None:
            raise self.error(key, "is missing; add it")
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise self.error(key, f"must be a list of text, found {value!r}")
        return value

    def integer(self, key: str, default: int | None = None, *, low: int) -> int:
        value = self.values.get(key, default)
        if value is None:
            raise self.error(key, "is missing; add it")
        if type(value) is not int or value < low:
            raise self.error(key, f"must be an integer of at least {low}, found {value!r}")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, found {value!r}")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> str:
        value = self.text(key, default)
        if value not in choices:
            raise self.error(key, f"must be one of {', '.join(choices)}, found {value!r}")
        return value
