"""`--compile`: network, guide and decoder through torch.compile, block by block where a network repeats one.

The blocks of a transformer are one function of different weights: compiled once, it serves all of them, in seconds
where the whole takes a minute. On an accelerator small batches, which wait for the host more than for the device, are
replayed as CUDA graphs.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils._pytree import tree_map_only

from bench.contracts.adapter import Adapter
from bench.weights.cache import cache_directory
from results.errors import BenchError

COMPILERS = ("c++", "g++", "clang++")
FEWEST_BLOCKS, MOST_SHAPES, LEAST_SHARE = 6, 3, 0.7
"""A list of at least so many modules of one class, of at most so many shapes, is compiled module by module if such
lists hold this share of a network's parameters."""
FILLED = 4
"""A batch of at least 1/FILLED of the largest is filled up to that: sooner done than another shape compiled."""
GRAPHED_ROWS, MOST_GRAPHS = 16, 8
"""Largest batch that is replayed as a CUDA graph, and for how many shapes: each keeps its intermediate results."""
MOST_COMPILED = 64
"""Shapes of one function that are compiled before it runs as it is (batches, halves and ends of them, widths)."""


def check_compiler(device: str) -> None:
    """Raise BenchError when torch.compile would find no compiler for `device`; both back ends need one for C++."""
    found = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), *COMPILERS))
    if not found:
        raise BenchError("--compile needs a C++ compiler (g++ or clang++); install one, or leave out --compile")
    if device.startswith("cuda") and importlib.util.find_spec("triton") is None:
        raise BenchError("--compile on CUDA needs the package triton; install it, or leave out --compile")


def compile_networks(adapter: Adapter) -> Adapter:
    """Compile the network, the guide and the decoder of `adapter` for each shape they meet, and return it.

    No products are tuned by search, which takes minutes a shape. What was compiled is kept in the cache directory for
    the next run (`TORCHINDUCTOR_CACHE_DIR` chooses another place), and of an earlier adapter's nothing stays in memory.
    Only `forward` is replaced, by an attribute of the instance: hooks run outside what is compiled, so evaluations are
    counted as ever. Raises BenchError when there is no compiler.
    """
    check_compiler(adapter.device.type)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_directory() / "inductor"))
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_COMPILED)
    decoder = getattr(adapter.autoencoder, "decoder", None)
    for network in (adapter.network, adapter.guide, decoder):
        if isinstance(network, nn.Module):
            compile_forward(network, graphs=adapter.device.type == "cuda")
    return adapter


def compile_forward(network: nn.Module, *, graphs: bool) -> None:
    """Compile one network: its repeated blocks or, where it has none, its `forward`, which is replaced either way."""
    blocks = repeated_blocks(network)
    for block in blocks:
        block.compile(dynamic=False)
    network.forward = Batches(network.forward if blocks else torch.compile(network.forward, dynamic=False), graphs)


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the modules that make up most of `network` and are the same function of different weights, else none."""
    found: list[nn.Module] = []
    for stack in network.modules():
        if isinstance(stack, nn.ModuleList) and len(stack) >= FEWEST_BLOCKS:
            shapes = {tuple(parameter.shape for parameter in block.parameters()) for block in stack}
            if len({type(block) for block in stack}) == 1 and len(shapes) <= MOST_SHAPES:
                found += stack
    share = sum(parameter.numel() for block in found for parameter in block.parameters())
    whole = sum(parameter.numel() for parameter in network.parameters())
    return found if share >= LEAST_SHARE * whole else []


class Batches:
    """A compiled function of batches that meets few shapes: ends of runs are filled up, small batches replayed.

    Rows do not depend on each other, so that filling a batch with copies of its last row changes none of the others.
    """

    def __init__(self, function: Callable[..., Any], graphs: bool) -> None:
        """Take a function of tensors [B, ...] and numbers, and whether CUDA graphs can be had."""
        self.function, self.graphs = function, graphs
        self.most = 0
        self.seen: set[Any] = set()
        self.replays: dict[Any, Replay | None] = {}

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Return the function's output for the batch."""
        rows = batch_of([*inputs, *named.values()])
        if rows is None or _get_current_dispatch_mode() is not None:  # somebody counts the operators of this call
            return self.function(*inputs, **named)
        if rows < self.most <= FILLED * rows and rows > GRAPHED_ROWS:
            more = self.most - rows
            filled = tree_map_only(Tensor, lambda x: torch.cat([x, x[-1:].expand(more, *x.shape[1:])]), (inputs, named))
            return tree_map_only(Tensor, lambda x: x[:rows], self.function(*filled[0], **filled[1]))
        self.most = max(self.most, rows)
        if not self.graphs or rows > GRAPHED_ROWS:
            return self.function(*inputs, **named)
        return self._replayed(inputs, named)

    def _replayed(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Return the output of a small batch: compiled at its first call, captured at the second, replayed since."""
        values = [*inputs, *named.values()]
        key = (*named, *((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in values))
        if key not in self.replays and key in self.seen and len(self.replays) < MOST_GRAPHS:
            self.replays[key] = Replay.captured(self.function, inputs, named)
        self.seen.add(key)
        replay = self.replays.get(key)
        return self.function(*inputs, **named) if replay is None else replay(values)


class Replay:
    """A captured call: its inputs are copied in, its output out."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: list[Tensor], output: Tensor) -> None:
        self.graph, self.inputs, self.output = graph, inputs, output

    @classmethod
    def captured(cls, function: Callable[..., Any], inputs: Sequence[Any], named: Mapping[str, Any]) -> Replay | None:
        """Return the capture of one call that was made before; None for a function that cannot be captured."""
        held = tree_map_only(Tensor, torch.clone, (tuple(inputs), dict(named)))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = function(*held[0], **held[1])
        except RuntimeError:  # it waits for the device, say
            return None
        tensors = [x for x in (*held[0], *held[1].values()) if isinstance(x, Tensor)]
        return cls(graph, tensors, output) if isinstance(output, Tensor) else None

    def __call__(self, values: Sequence[Any]) -> Tensor:
        """Return the output for `values`, of the captured shapes."""
        for held, given in zip(self.inputs, (x for x in values if isinstance(x, Tensor)), strict=True):
            held.copy_(given)
        self.graph.replay()
        return self.output.clone()  # the next replay writes over it, and samplers hold on to earlier outputs


def batch_of(values: Sequence[Any]) -> int | None:
    """Return the number of rows that all tensors of a call have; None where they differ or other objects are given."""
    plain = all(isinstance(value, (Tensor, int, float, bool, str, type(None))) for value in values)
    rows = {value.shape[0] if value.ndim else 0 for value in values if isinstance(value, Tensor)}
    return rows.pop() if plain and len(rows) == 1 and 0 not in rows else None
