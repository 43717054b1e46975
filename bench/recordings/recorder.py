"""Writing a parity case: calls of the authors' code, with their inputs, as `bench parity` replays them."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from bench.contracts.evaluations import Evaluations, first_tensor
from results.errors import BenchError, one_line
from results.files import real_path, write_atomically

DRAWS = ("randn", "randn_like", "rand", "rand_like")
"""torch's functions whose results `Recorder.draws` keeps."""
ATOL = 1e-5


class Recorder:
    """Collects calls of upstream code and writes them as one case.

    Args:
        name: of the case.
        adapter: the entry point of `bench.parity` that replays it.
    """

    def __init__(self, name: str, adapter: str) -> None:
        self.spec: dict[str, Any] = {
            "format": 1, "name": name, "adapter": adapter, "upstream": {}, "architecture": {}, "calls": [],
        }  # fmt: skip
        self.weights: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}

    def network_of(
        self, network: nn.Module | Mapping[str, Tensor], architecture: Mapping[str, Any], **upstream: str
    ) -> None:
        """Keep the recorded network: its weights under upstream's names, and what it was built from.

        `upstream` names the code: `repository`, `commit`, `license`.
        """
        state = network.state_dict() if isinstance(network, nn.Module) else network
        self.weights = {name: _plain(tensor) for name, tensor in state.items()}
        self.spec |= {"architecture": dict(architecture), "upstream": upstream}

    def call(
        self, id: str, function: Callable[..., Any], *, atol: float = ATOL, rtol: float = 0.0, **inputs: Any
    ) -> Any:
        """Call `function(**inputs)` and record it as a `network` call; return what it returned.

        Tensors among the inputs are stored by their roles; the output is the first tensor of what is returned.
        """
        with torch.inference_mode():
            output = function(**inputs)
        self._add(
            id, "network", atol, rtol, _tensor(output, id),
            inputs={role: None if value is None else self._keep(id, role, value) for role, value in inputs.items()},
        )  # fmt: skip
        return output

    def sample(
        self,
        id: str,
        function: Callable[[], Any],
        *,
        network: nn.Module,
        noise: Tensor,
        steps: int,
        guidance: float = 1.0,
        labels: Tensor | None = None,
        injected: Tensor | Sequence[Tensor] | None = None,
        options: Mapping[str, Any] | None = None,
        atol: float = ATOL,
        rtol: float = 0.0,
    ) -> Any:
        """Call `function()`, which samples from `noise` [B, ...], and record it as a `sample` call.

        Args:
            id: of the call.
            function: the authors' sampler; its result before decoding is compared.
            network: the module whose evaluations count as NFE.
            noise: the initial noise that it starts from.
            steps: as the adapter will be asked.
            guidance: likewise; 1 is none.
            labels: int64 [B].
            injected: later draws [draws, B, ...], as `draws` collects them.
            options: sampler settings, as the adapter's.
            atol: largest absolute difference.
            rtol: largest difference as a share of the recorded value.
        """
        with torch.inference_mode(), Evaluations(network) as evaluations:
            output = function()
        found = _tensor(output, id)
        later = torch.stack(list(injected)) if isinstance(injected, (list, tuple)) and injected else injected
        self._add(
            id, "sample", atol, rtol, found, steps=steps, guidance=guidance, options=dict(options or {}),
            noise=self._keep(id, "noise", noise),
            labels=None if labels is None else self._keep(id, "labels", labels),
            injected=self._keep(id, "injected", later) if isinstance(later, Tensor) else None,
            nfe_per_image=evaluations.rows / len(found),
        )  # fmt: skip
        return output

    @contextmanager
    def draws(self) -> Iterator[list[Tensor]]:
        """Collect what torch's random functions return inside the block, in order: the noise that a sampler injects."""
        kept: list[Tensor] = []
        originals = {name: getattr(torch, name) for name in DRAWS}

        def keeping(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def draw(*arguments: Any, **named: Any) -> Tensor:
                value = original(*arguments, **named)
                kept.append(value.detach().clone())
                return value

            return draw

        try:
            for name, original in originals.items():
                setattr(torch, name, keeping(original))
            yield kept
        finally:
            for name, original in originals.items():
                setattr(torch, name, original)

    def write(self, directory: Path) -> None:
        """Write `case.json`, `weights.safetensors` and `tensors.safetensors`. Raises BenchError without any call."""
        if not self.spec["calls"]:
            raise BenchError(f"{directory}: nothing was recorded; call recorder.call(...) or recorder.sample(...)")
        if directory.exists() and any(directory.iterdir()):
            raise BenchError(f"{directory} exists and is not an empty folder; choose another place for the case")
        directory.mkdir(parents=True, exist_ok=True)
        for name, tensors in (("weights", self.weights), ("tensors", self.tensors)):
            write_atomically(directory / f"{name}.safetensors", save(tensors))
        write_atomically(directory / "case.json", (json.dumps(self.spec, indent=1) + "\n").encode())

    def _add(self, id: str, kind: str, atol: float, rtol: float, output: Tensor, **more: Any) -> None:
        if any(call["id"] == id for call in self.spec["calls"]):
            raise BenchError(f"call '{id}' is recorded twice; give each call an id of its own")
        tolerance = {"atol": atol} | ({"rtol": rtol} if rtol else {})
        self.spec["calls"].append(
            {"id": id, "kind": kind, **more, "output": self._keep(id, "output", output)} | tolerance
        )

    def _keep(self, id: str, role: str, value: Any) -> str:
        if not isinstance(value, Tensor):
            raise BenchError(f"call '{id}': {role} is {type(value).__name__}, not a tensor; bind other arguments first")
        name = f"{id}.{role}"
        self.tensors[name] = _plain(value)
        return name


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _tensor(output: Any, id: str) -> Tensor:
    found = first_tensor(output)
    if found is None:
        raise BenchError(f"call '{id}' returned {type(output).__name__}, with no tensor in it")
    return found


def record_script(script: Path, directory: Path, adapter: str) -> Recorder:
    """Run `record(recorder)` of a Python file and write the case. Raises BenchError for a file without it.

    The file is the user's own and runs as it would under `python`: its folder is searched for modules.
    """
    if not script.is_file():
        raise BenchError(f"{script}: no such file; name a Python file with a function record(recorder)")
    spec = importlib.util.spec_from_file_location(script.stem, script)
    if spec is None or spec.loader is None:
        raise BenchError(f"{script}: not a Python file; name one with a function record(recorder)")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(real_path(script).parent))
    try:
        spec.loader.exec_module(module)
        function = getattr(module, "record", None)
        if not callable(function) or len(inspect.signature(function).parameters) != 1:
            raise BenchError(f"{script}: has no function record(recorder)")
        recorder = Recorder(directory.name, adapter)
        function(recorder)
    except BenchError:
        raise
    except Exception as error:
        raise BenchError(f"{script}: {one_line(f'{type(error).__name__}: {error}')}; --debug shows where") from error
    finally:
        sys.path.remove(str(real_path(script).parent))
    recorder.write(directory)
    return recorder
