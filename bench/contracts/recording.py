"""A recorded parity case: what upstream computed, with its inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.contracts.adapter import Adapter
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.evaluations import Evaluations
from bench.contracts.noise import RecordedNoise
from results.errors import BenchError, one_line
from results.files import read_regular

Call = Mapping[str, Any]
Replay = Callable[[Call], Mapping[str, Any]]
Family = TypeVar("Family", bound=Adapter)

LARGEST_CASE = 16 << 20
"""Bytes of a case.json."""


@dataclass(frozen=True)
class Case:
    """One recorded case: `case.json`, `weights.safetensors` (upstream names) and `tensors.safetensors`."""

    directory: Path
    spec: Mapping[str, Any]
    weights: Mapping[str, Tensor] = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def architecture(self) -> Mapping[str, Any]:
        """The constructor facts of the recorded network."""
        return self.spec["architecture"]

    @property
    def name(self) -> str:
        """The name of the case."""
        name: str = self.spec["name"]
        return name

    def extra_weights(self, role: str) -> dict[str, Tensor]:
        """Return a further weights file by its role, e.g. `guide`."""
        return self.file(self.spec["extra_weights"][role])

    def file(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a further safetensors file of the case."""
        if not isinstance(name, str) or Path(name).name != name:
            raise BenchError(f"{self.directory}: case.json names a file outside its directory ({one_line(str(name))})")
        return _load_tensors(self.directory / name)

    def inputs(self, call: Call) -> dict[str, Tensor | None]:
        """Return the tensors of a call's `inputs` by role (null stays None)."""
        return {role: self.tensor(name) for role, name in call["inputs"].items()}

    def arguments(self, call: Call, *roles: str, null_label: int | None = None) -> list[Any]:
        """Return a network call's inputs in the order of `roles`: a tensor each, None where it has none.

        With a `null_label`, a call without labels asks for that one everywhere.
        """
        found = [self.tensor(call["inputs"].get(role)) for role in roles]
        if null_label is not None and "labels" in roles and found[roles.index("labels")] is None:
            count = next(len(value) for value in found if value is not None)
            found[roles.index("labels")] = torch.full((count,), null_label)
        return found

    def tensor(self, name: str | None) -> Tensor | None:
        """Return a recorded tensor by name; None for null."""
        return None if name is None else self.tensors[name]

    def options(self, call: Call) -> dict[str, Any]:
        """Return the options of a call that are set: null, infinity (no bound) and absent say the same."""
        return {key: value for key, value in call.get("options", {}).items() if value not in (None, math.inf)}

    def labels(self, call: Call, null_label: int | Tensor = 0) -> Tensor:
        """Return the labels of a sample call, int64 [B]; a call without labels asks for `null_label` everywhere.

        A `null_label` that is a row, [N], is one for networks that are given rows: then the labels are [B, N].
        """
        labels = self.tensor(call.get("labels"))
        if labels is not None:
            return labels
        null, count = torch.as_tensor(null_label), len(self.noise(call))
        return null.expand(count, *null.shape)

    def noise(self, call: Call) -> RecordedNoise:
        """Return the recorded initial and injected noise of a sample call."""
        initial = self.tensors[call["noise"]]
        return RecordedNoise(initial, self.tensor(call.get("injected")))


def load_case(directory: Path) -> Case:
    """Read a case directory. Raises BenchError when it is not one."""
    try:
        spec = json.loads(read_regular(directory / "case.json", LARGEST_CASE).decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise BenchError(f"{directory}: no case.json here; name the directory of a parity case") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or one_line(str(error))
        raise BenchError(f"{directory}: case.json cannot be read ({reason})") from error
    fault = _fault(spec)
    if fault is not None:
        raise BenchError(f"{directory}: case.json is damaged ({fault}); record the case again")
    files = {name: directory / f"{name}.safetensors" for name in ("weights", "tensors")}
    loaded = {name: _load_tensors(path) if path.exists() else {} for name, path in files.items()}
    return Case(directory, spec, loaded["weights"], loaded["tensors"])


def _fault(spec: Any) -> str | None:
    """Return what is wrong with the frame of a case, which every replay reads; None where nothing is."""
    if not isinstance(spec, dict):
        return "does not contain an object"
    for key in ("name", "adapter"):
        if not isinstance(spec.get(key), str):
            return f"'{key}' is not text"
    calls = spec.get("calls")
    if not isinstance(calls, list) or not calls:
        return "'calls' is not a list of calls"
    for place, call in enumerate(calls):
        if not isinstance(call, dict) or not all(isinstance(call.get(key), str) for key in ("id", "kind")):
            return f"calls[{place}] is not an object with 'id' and 'kind'"
        for key in ("atol", "rtol"):
            bound = call.get(key) or 0.0
            if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not 0 <= bound < math.inf:
                return f"calls[{place}].{key} is not a number of at least 0"
    return None


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("a folder or a device, not a file")
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise BenchError(f"{path}: cannot be read as safetensors ({one_line(str(error))}); record it again") from error


def sampled(adapter: Adapter, sample: Callable[[], Tensor]) -> dict[str, Any]:
    """Return what `sample` samples and what it cost, under the names of a recorded sample call."""
    with Evaluations(adapter.network) as evaluations:
        output = sample()
    return {"output": output, "nfe_per_image": evaluations.rows / len(output)}


def recorded_replay(
    case: Case,
    adapter: Adapter,
    network: Callable[[Call], Tensor] | Sequence[str],
    *,
    options: Callable[[Call], Mapping[str, Any]] | None = None,
    cfg: Callable[[Call], float] | None = None,
    null_label: int | Tensor = 0,
    refused: Callable[[int, float, Any], str | None] | None = None,
) -> Replay:
    """Return the replay of an adapter whose recorded samples are those of its `generate`.

    Args:
        case: the case.
        adapter: its `recorded_adapter`.
        network: `(call)` to the output of a `network` call, or the names of the network's inputs in their order.
        options: `(call)` to the sampler settings of a `sample` call; by default those that are recorded.
        cfg: `(call)` to its guidance scale; by default the recorded one, 1 where there is none.
        null_label: the label, or the row of labels, of samples for which none is recorded.
        refused: `(steps, cfg, settings)` to the reason why there is no such sample, or None; by default what the
            adapter does not offer, which may be less than the authors' code computes.
    """
    refused = refused or adapter.unsupported

    def run(call: Call) -> dict[str, Any]:
        if call["kind"] == "network":
            if callable(network):
                return {"output": network(call)}
            null = null_label if isinstance(null_label, int) else None
            return {"output": adapter.network(*case.arguments(call, *network, null_label=null))}
        settings = adapter.Settings.checked(options(call) if options else case.options(call), case.name)
        steps, scale = call["steps"], cfg(call) if cfg else float(call.get("guidance", 1.0))
        reason = refused(steps, scale, settings)
        if reason is not None:
            raise BenchError(reason)
        labels, noise = case.labels(call, null_label), case.noise(call)
        return sampled(adapter, lambda: adapter.generate(labels, steps, scale, noise, settings))

    return run


def recorded_adapter(
    case: Case,
    family: type[Family],
    guidance: str = "none",
    *,
    channels: int | None = None,
    num_classes: int | None = None,
    roles: Sequence[str] = (),
) -> Family:
    """Return the adapter of a recorded network: its architecture and weights, no autoencoder, on the CPU.

    Args:
        case: the case. Side, channels and classes are read off its architecture where it names them as upstream code
            does (`input_size`, `in_channels`, `num_classes` ...), side and channels else off its recorded noise.
        family: the class of the adapter.
        guidance: its kind.
        channels: those of a sample, where its network is given more.
        num_classes: the classes, where the architecture does not name them.
        roles: the further files of weights that the family takes.

    Raises:
        BenchError: nothing in the case tells the shape of a sample.
    """
    facts, name = case.architecture, case.name
    noise = next((case.tensors[call["noise"]] for call in case.spec["calls"] if call.get("noise")), None)
    sizes = [facts[key] for key in ("latent_size", "input_size", "img_resolution", "image_size") if key in facts]
    depths = [facts[key] for key in ("in_channels", "img_channels") if key in facts]
    if noise is not None:
        sizes, depths = [*sizes, noise.shape[-1]], [*depths, noise.shape[1]]
    if not sizes or not (channels or depths):
        raise BenchError(f"{name}: no call records a sample, which would tell the shape; record one")
    size, channels = sizes[0], channels or depths[0]
    classes = num_classes if num_classes is not None else facts.get("num_classes", facts.get("label_dim", 0)) or 0
    adapter = family(
        ModelCard(
            name=name,
            family=case.spec["adapter"],
            title=name,
            resolution=size,
            num_classes=classes,
            latent_shape=(channels, size, size),
            architecture=facts,
            guidance=Guidance(guidance),
        )
    )
    adapter.load(case.weights, {role: case.extra_weights(role) for role in roles})
    adapter.to("cpu")
    return adapter
