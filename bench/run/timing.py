"""How fast a measured cell is: timed after all sampling, with nothing else at work here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.contracts.adapter import Adapter
from bench.contracts.noise import PhiloxNoise
from bench.contracts.precision import full_precision
from bench.judges.threads import fix_threads
from bench.models.timing import TensorMemory, repeated, surroundings
from bench.run.containment import no_exit, time_limit
from bench.run.plan import Cell
from bench.run.record import Context
from bench.run.shard import fitting
from bench.run.worker import load_cell_adapter
from results.errors import one_line

LEAST_SECONDS, SHARE = 0.5, 0.02
"""What timing a batch may take: so many seconds, or this share of the time that sampling the cell took, if that is
more. One image alone may take half of it."""


def time_task(context: Context, cell: Cell, labels: np.ndarray, seconds: float) -> dict[str, Any] | str:
    """Return the columns of a cell that say how fast it is, see `timed_facts`, or why it could not be timed.

    `seconds` is how long sampling the cell took.
    """
    fix_threads(context.device)
    try:
        with no_exit(), time_limit(context.timeout and 100 * context.timeout), full_precision():
            adapter = load_cell_adapter(cell, context.protocol, context.device)
            return timed_facts(cell, adapter, labels, max(LEAST_SECONDS, SHARE * seconds))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return one_line(f"{type(error).__name__}: {error}")


def timed_facts(cell: Cell, adapter: Adapter, labels: np.ndarray, seconds: float) -> dict[str, Any]:
    """Return the columns of a cell that say how fast it is and how much memory it takes.

    Args:
        cell: what is sampled.
        adapter: its model, loaded.
        labels: int64 [N] of the cell's samples.
        seconds: how long repetitions of a batch may go on; half of it for one image.
    """
    size = fitting(adapter, min(cell.batch_size, cell.num_samples))
    batch, one = (sampling(cell, adapter, labels[:count]) for count in (size, 1))
    memory = {} if adapter.device.type == "cuda" else {"peak_memory": tensor_memory(adapter, batch)}
    batch()
    whole = repeated(batch, adapter.device, seconds)
    one()
    alone = repeated(one, adapter.device, seconds / 2)
    timing = {
        "batch_size": size,
        "batch": whole._asdict(),
        "latency": alone._asdict(),
        **surroundings(adapter.device),
    }
    return {"images_per_second": size / whole.median, "latency_seconds": alone.median, "timing": timing, **memory}


def sampling(cell: Cell, adapter: Adapter, labels: np.ndarray) -> Callable[[], Tensor]:
    """Return a call that samples the cell's first images, one for each label [n], noise included."""
    own = adapter.own_labels(torch.from_numpy(np.ascontiguousarray(labels)))

    def sample() -> Tensor:
        noise = PhiloxNoise(cell.seed, range(len(labels)), adapter.device)
        return adapter.sample(own, cell.steps, cell.cfg, noise=noise, **cell.settings)

    return sample


def tensor_memory(adapter: Adapter, call: Callable[[], Any]) -> int:
    """Return the bytes of the model's weights and of what `call` keeps beside them at most, in plain operators."""
    weights = [t for module in adapter.modules() for t in (*module.parameters(), *module.buffers())]
    with torch.compiler.set_stance("force_eager"), TensorMemory(weights) as memory:
        call()
    return memory.peak
