"""What one sample costs in floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.contracts.adapter import Adapter
from bench.contracts.evaluations import Evaluations, batch_rows
from bench.contracts.noise import PhiloxNoise
from bench.models.counting import Counter, NoMemory
from bench.run.plan import Cell

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

ENOUGH_STEPS = 100
"""Of a sampler that is run on the meta device to see what one evaluation costs."""


class Operations(NamedTuple):
    """Floating-point operations for one sample, a multiply-add counting two: products, convolutions and attention.

    Attributes:
        network: of one evaluation of the network, of a mean one where they differ.
        guide: of one evaluation of the guide; 0 where there is none.
        decoder: of one decoding; 0 for a model of pixels.
    """

    network: float
    guide: float
    decoder: float

    def per_sample(self, nfe: float, guide_nfe: float | None) -> float:
        """Return the operations of a whole sample from its measured numbers of evaluations."""
        return self.network * nfe + self.guide * (guide_nfe or 0.0) + self.decoder


_operations: dict[tuple[str, str], Operations] = {}


def sample_operations(cell: Cell, adapter: Adapter, labels: np.ndarray) -> Operations | None:
    """Return the operations of the cell's samples, counted once for a checkpoint and dtype in a process.

    None where the network is in another process.
    """
    label = adapter.own_labels(torch.from_numpy(labels[:1]))

    def sample() -> Tensor:
        noise = PhiloxNoise(cell.seed, [0], adapter.device)
        return adapter.sample(label, cell.steps, cell.cfg, noise=noise, **cell.settings)

    if adapter.out_of_process:
        return None
    key = (cell.card.name, cell.dtype)
    known = _operations.get(key)
    if known is not None and (adapter.guide is None or known.guide):
        return known
    with first_calls(adapter) as calls:
        sample()
    # A setting may leave a part out (a guidance interval, say), so what is known may lack it.
    if known is None or "guide" in calls:
        counted = count_operations(adapter, calls)
        _operations[key] = counted._replace(network=_mean(adapter, sample)) if adapter.evaluations_differ else counted
    return _operations[key]


def operations_ahead(counter: Counter, steps: int, cfg: float, settings: Any) -> Operations | None:
    """Return the operations of a card's samples before anything is sampled, from its networks without memory.

    `settings` is a record of the family's `Settings`. None where they are not to be had: a network in another process,
    a loop of another library, or a sampler that needs values.
    """
    adapter = counter.adapter
    if adapter.out_of_process or adapter.host:
        return None
    steps = min(steps, ENOUGH_STEPS)  # the others cost what these do
    labels = torch.zeros(1, dtype=torch.int64, device="meta")
    try:
        if adapter.evaluations_differ:
            with torch.inference_mode(), Evaluations(adapter.network) as evaluations, operation_counter() as counted:
                latents = adapter.generate(labels, steps, cfg, NoMemory(), settings)
            with torch.inference_mode(), operation_counter() as decoding:
                adapter.decode(latents)
            return Operations(counted.get_total_flops() / evaluations.rows, 0.0, float(decoding.get_total_flops()))
        with torch.inference_mode(), first_calls(adapter) as calls:
            adapter.decode(adapter.generate(labels, steps, cfg, NoMemory(), settings))
        with counter.whole():
            return count_operations(adapter, calls)
    except Exception:  # whatever needs values, it is not a fault of a plan that it has none
        return None


def _mean(adapter: Adapter, sample: Callable[[], object]) -> float:
    """Return the operations of a mean evaluation of the network in `sample`, for a decoder whose own are left out."""
    vars(adapter)["decode"] = lambda latents: latents
    try:
        with Evaluations(adapter.network) as evaluations, operation_counter() as counter:
            sample()
    finally:
        del vars(adapter)["decode"]
    return float(counter.get_total_flops() / evaluations.rows)


class Call(NamedTuple):
    """The inputs of one call."""

    inputs: tuple[Any, ...]
    named: Mapping[str, Any]


@contextmanager
def first_calls(adapter: Adapter) -> Iterator[dict[str, Call]]:
    """Keep the inputs of the first evaluation of `network` and `guide` and of the first `decode` inside the block."""
    calls: dict[str, Call] = {}

    def keep(part: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            calls.setdefault(part, Call(inputs, named))

        return hook

    decode = adapter.decode

    def kept_decode(latents: Tensor) -> Tensor:
        calls.setdefault("decoder", Call((latents,), {}))
        return decode(latents)

    parts = {"network": adapter.network, "guide": adapter.guide}
    handles = [
        module.register_forward_pre_hook(keep(part), with_kwargs=True)
        for part, module in parts.items()
        if module is not None
    ]
    vars(adapter)["decode"] = kept_decode  # hides the method for as long as the block lasts
    try:
        yield calls
    finally:
        del vars(adapter)["decode"]
        for handle in handles:
            handle.remove()


ATTENTION = (
    "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
"""Operators as which torch's versions and devices run attention; each version has some of them."""


def attention_operations(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *rest: Any, **named: Any
) -> int:
    """Return the operations of attention from the shapes of query [..., S, D], key [..., T, D] and value [..., T, E].

    Two products, S x D by D x T and S x T by T x E, for every leading index of the query; a mask saves nothing.
    """
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def operation_counter() -> FlopCounterMode:
    """Return torch's counter with a rule for attention under every name that this version of torch knows.

    The counter asks its rules only for an operator that it could not take apart, so none is counted twice.
    """
    from torch.utils.flop_counter import FlopCounterMode

    known = (getattr(torch.ops.aten, name, None) for name in ATTENTION)
    rules = {operator: attention_operations for operator in known if operator is not None}
    return FlopCounterMode(display=False, custom_mapping=rules)


def count_operations(adapter: Adapter, calls: Mapping[str, Call]) -> Operations:
    """Count each recorded call by torch's counter, for one row of its batch; 0 for a part that was not called."""
    counts = {}
    parts = {"network": adapter.network, "guide": adapter.guide, "decoder": adapter.decode}
    # The counter sees neither into nn.MultiheadAttention's fused path nor into compiled code.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for part, call in calls.items():
            function = parts[part]
            assert function is not None
            with (
                torch.inference_mode(),
                torch.compiler.set_stance("force_eager"),
                operation_counter() as counter,
            ):
                output = function(*call.inputs, **call.named)
            counts[part] = counter.get_total_flops() / batch_rows(output)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return Operations(counts.get("network", 0.0), counts.get("guide", 0.0), counts.get("decoder", 0.0))
