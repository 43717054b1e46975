"""`--compile`: network, guide and decoder through torch.compile, with CUDA graphs on an accelerator."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.contracts.adapter import Adapter
from bench.weights.cache import cache_directory
from results.errors import BenchError

COMPILERS = ("c++", "g++", "clang++")


def check_compiler(device: str) -> None:
    """Raise BenchError when torch.compile would find no compiler for `device`; both back ends need one for C++."""
    found = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), *COMPILERS))
    if not found:
        raise BenchError("--compile needs a C++ compiler (g++ or clang++); install one, or leave out --compile")
    if device.startswith("cuda") and importlib.util.find_spec("triton") is None:
        raise BenchError("--compile on CUDA needs the package triton; install it, or leave out --compile")


def compile_networks(adapter: Adapter) -> Adapter:
    """Compile the network, the guide and the decoder of `adapter` for each shape they meet, and return it.

    On CUDA kernels are replayed as CUDA graphs; no products are tuned by search, which takes minutes a shape. What was
    compiled is kept in the cache directory for the next run (`TORCHINDUCTOR_CACHE_DIR` chooses another place). Only
    `forward` is replaced, by an attribute of the instance: hooks run outside what is compiled, so evaluations are
    counted as ever. Raises BenchError when there is no compiler.
    """
    check_compiler(adapter.device.type)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_directory() / "inductor"))
    decoder = getattr(adapter.autoencoder, "decoder", None)
    for network in (adapter.network, adapter.guide, decoder):
        if isinstance(network, nn.Module):
            compile_forward(network, graphs=adapter.device.type == "cuda")
    return adapter


def compile_forward(network: nn.Module, *, graphs: bool) -> None:
    """Replace the `forward` of one network by its compiled form."""
    eager = network.forward
    # One graph a shape: a run meets few shapes (full and last batch, batch 1, each of them doubled when guided).
    compiled: Callable[..., Tensor] = torch.compile(
        eager, mode="reduce-overhead" if graphs else "default", dynamic=False
    )

    def forward(*inputs: Any, **named: Any) -> Tensor:
        output = compiled(*inputs, **named)
        # A replayed graph writes into the same memory each time; samplers hold on to earlier outputs.
        return output.clone() if graphs else output

    network.forward = forward
