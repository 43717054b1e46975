"""The protocol file: its keys, their checks and its digest."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocols.tables import LabelsTable, ProtocolTable
from results.digests import digest_of, measurement_digest
from results.documents import found, json_schema, read_text, read_toml, shown, validated
from results.errors import ProtocolError, did_you_mean, nearest


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
    folders: Mapping[str, Path] = field(default_factory=dict, compare=False)
    """By option of a judge, `clip.weights`, the folder of the file that states it: its relative paths begin there."""

    @property
    def shipped(self) -> bool:
        """Whether the protocol came with the package, and so is found by its name."""
        return protocol_files().get(self.name) == self.path

    def judge_options(self, judge: str) -> dict[str, Any]:
        """Return the options of a judge as stated, without its `kind`."""
        return {key: value for key, value in self.judges[judge].items() if key != "kind"}

    @property
    def prompts(self) -> list[str | list[str]]:
        """The prompt of each class in label order: one text, or one for every template."""
        if len(self.prompt_templates) == 1:
            return [self.prompt_templates[0].replace("{name}", name) for name in self.class_names]
        return [[form.replace("{name}", name) for form in self.prompt_templates] for name in self.class_names]

    @property
    def single_prompts(self) -> list[str]:
        """The prompt of each class in label order that a text model is given: by the first template."""
        return [self.prompt_templates[0].replace("{name}", name) for name in self.class_names]

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
    def argument(self) -> str:
        """What `--protocol` takes to find it again: the name of a shipped protocol, the path of any other."""
        return self.name if self.shipped else str(self.path)

    @property
    def digest(self) -> str:
        """sha256 of the canonical form."""
        return digest_of(self.canonical())

    @property
    def measurement_digest(self) -> str:
        """sha256 of what turns a model's samples into numbers: labels, quantiser, reference, judges, metrics."""
        return measurement_digest(self.canonical())


def protocol_files() -> dict[str, Path]:
    """Return the protocols shipped with the package, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"), key=lambda path: path.stem)}


def find_protocol(name: str) -> Protocol:
    """Return the shipped protocol called `name`, or the one in the file `name` when it ends in `.toml`."""
    if name.endswith(".toml"):
        return load_protocol(Path(name))
    known = protocol_files()
    if name not in known:
        raise ProtocolError(f"unknown protocol '{name}': {did_you_mean(name, known)}")
    return load_protocol(known[name])


def load_protocol(path: Path) -> Protocol:
    """Read one protocol. Raises ProtocolError naming the file, the key, what was found there and what may be."""
    subject = f"protocol {shown(path)}"
    table, folders = _resolved(path, ())
    checked = validated(ProtocolTable, table, subject, ProtocolError)
    labels, sampling = checked.labels, checked.sampling
    return Protocol(
        name=checked.name,
        title=checked.title,
        resolution=checked.resolution,
        notes=checked.notes,
        class_names=tuple(labels.names or _names_file(labels, subject)),
        prompt_templates=tuple(labels.template),
        label_plan=labels.plan,
        num_samples=sampling.num_samples,
        seed=sampling.seed,
        sweeps=tuple(
            Sweep(tuple(sweep.models), tuple(sweep.steps), tuple(map(float, sweep.cfg)), sweep.options)
            for sweep in sampling.sweeps
        ),
        sampler=sampling.sampler,
        quantise=sampling.quantise,
        levels=sampling.levels,
        batch_size=sampling.batch_size,
        thumbnails=sampling.thumbnails,
        # Digests are taken of what the file says, so these stay as they are written: without defaults, 1 as 1.
        reference=table["reference"],
        judges=table["judges"],
        metrics=tuple(checked.metrics.names),
        blocks=checked.metrics.blocks,
        metric_options=table["metrics"].get("options", {}),
        composite=table.get("composite", {}),
        path=path,
        folders=folders,
        smoke=checked.smoke,
    )


def protocol_schema() -> dict[str, Any]:
    """Return the JSON Schema of protocol files: with `extends` a file may leave out every key but those it changes."""
    tables = ("LabelsTable", "SamplingTable", "ReferenceTable", "MetricsTable", "JudgeTable", "BoundsTable")
    schema = json_schema(ProtocolTable, "A protocol of fewstep-bench", tables)
    required = schema.pop("required")
    extends = {"type": "string", "description": "The protocol that this one changes: a name, or a path.toml."}
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return {**schema, "anyOf": [{"required": ["extends"]}, {"required": required}]}


REPLACED = {
    ("labels", "names"): ("names_file", "names_column"),
    ("labels", "names_file"): ("names", "names_column"),
    ("reference", "kind"): ("source", "part"),
    ("reference", "source"): ("kind", "variant", "images", "classes"),
}
"""What of the extended protocol is dropped where a file states a key: the two exclude, or say more of, each other."""
DEEPEST = 20
"""Protocols that extend each other in a chain."""


def _resolved(path: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return the file's table on top of that of the protocol it extends, and the folder of each option of a judge.

    Tables are merged, all else is replaced.
    """
    table = read_toml(path, "protocol", ProtocolError)
    here = Path(os.path.realpath(path))
    if here in above or len(above) > DEEPEST:
        raise ProtocolError(f"protocol {shown(above[0])}: key 'extends' leads in a circle; name another protocol")
    if isinstance(labels := table.get("labels"), dict) and isinstance(names := labels.get("names_file"), str):
        labels["names_file"] = str(path.parent / names)
    judges = table.get("judges")
    folders = {
        f"{name}.{option}": path.parent
        for name, options in (judges.items() if isinstance(judges, dict) else ())
        for option in (options if isinstance(options, dict) else ())
    }
    if "extends" not in table:
        return table, folders
    base, base_folders = _resolved(_extended(path, table.pop("extends")), (*above, here))
    for (name, stated), others in REPLACED.items():
        own, inherited = table.get(name), base.get(name)
        if isinstance(own, dict) and isinstance(inherited, dict) and stated in own:
            for other in others:
                inherited.pop(other, None)
    return _merged(base, table), {**base_folders, **folders}


def _extended(path: Path, name: Any) -> Path:
    """Return the file that `extends = name` in `path` means: beside it, then shipped; or a path that ends in .toml."""
    subject = f"protocol {shown(path)}: key 'extends'"
    if not isinstance(name, str) or not name.isprintable() or not name.strip():
        raise ProtocolError(f"{subject} must be the name of a protocol, found {found(name)}")
    if name.endswith(".toml"):
        return path.parent / name
    beside, shipped = path.parent / f"{name}.toml", protocol_files()
    if len(name.encode()) < 200 and beside.exists() and not (name in shipped and beside.samefile(path)):
        return beside
    if name in shipped:
        return shipped[name]
    near = nearest(name, shipped, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ProtocolError(f"{subject} names {found(name)}, which is neither beside it nor shipped{hint}")


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in over.items()
    }
    return {**base, **both}


def _names_file(labels: LabelsTable, subject: str) -> list[str]:
    file = Path(str(labels.names_file))
    lines = read_text(file, f"{subject}: key 'labels.names_file':", ProtocolError).splitlines()
    if file.suffix == ".csv":
        try:
            rows = list(csv.DictReader(lines))
            names = [row[labels.names_column] for row in rows]
        except csv.Error as error:
            raise ProtocolError(f"{subject}: key 'labels.names_file': {shown(file)}: {error}; fix the file") from error
        except KeyError as error:
            reason = f"is not a column of {shown(file)}: {found(labels.names_column)}"
            raise ProtocolError(f"{subject}: key 'labels.names_column' {reason}") from error
        for number, name in enumerate(names):
            if not name:
                raise ProtocolError(
                    f"{subject}: key 'labels.names_file': {shown(file)}: class {number} has no "
                    f"{labels.names_column}; fix the file"
                )
    else:
        names = [line for line in lines if line]
    if not names:
        raise ProtocolError(f"{subject}: key 'labels.names_file': {shown(file)}: lists no class names; fix the file")
    return names
