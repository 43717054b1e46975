"""Dense float64 algebra on the host or, inside `on(device)`, on an accelerator: numpy in, numpy out.

Nothing is set for a processor, where every function is numpy's own: the same bits as without this module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from results.errors import BenchWarning

if TYPE_CHECKING:
    import torch

AT_ONCE = 2**27
"""Numbers of the matrices whose eigenvalues an accelerator finds at once: 1 GiB."""
SQUARED = 1e-12
"""Smallest eigenvalue of a Gram matrix, as a share of its largest, whose root has ten digits of the largest's."""
_device: ContextVar[torch.device | None] = ContextVar("algebra_device", default=None)


@contextmanager
def on(device: torch.device | None) -> Iterator[None]:
    """Compute on `device` inside the block, in float64; None: by numpy."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def device() -> torch.device | None:
    """Return where the algebra runs; None: numpy."""
    return _device.get()


def array(values: Any) -> Any:
    """Return `values` as float64 where the algebra runs: numpy's array, or torch's with the same operators."""
    place = _device.get()
    if place is None:
        return np.asarray(host(values), dtype=np.float64)
    import torch

    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values if values.flags.writeable else values.copy())
    return values.to(place).to(torch.float64)  # widened there: half as much to copy


def host(values: Any) -> np.ndarray:
    """Return an `array`, or what operators made of it, as numpy's."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


def smallest(matrix: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k smallest of each row of an `array` [n, m], in any order, and their columns, [n, k] each."""
    if not isinstance(matrix, np.ndarray):
        values, column = matrix.topk(k, dim=1, largest=False)
        return host(values), host(column)
    column = np.argpartition(matrix, k - 1, axis=1)[:, :k]
    return np.take_along_axis(matrix, column, axis=1), column


def least(matrix: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the least of what a mask marks in each column of an `array` [n, m] (infinity: none), and its row, [m]."""
    if not isinstance(matrix, np.ndarray):
        values, row = matrix.masked_fill(~mask, np.inf).min(dim=0)
        return host(values), host(row)
    marked = np.where(mask, matrix, np.inf)
    row = marked.argmin(axis=0)
    return marked[row, np.arange(len(row))], row


def places(mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of what is true in a mask [n, m] of `array`s, row by row."""
    row, column = np.nonzero(mask) if isinstance(mask, np.ndarray) else map(host, mask.nonzero(as_tuple=True))
    return row, column


def put(mask: Any, row: np.ndarray, column: np.ndarray, values: np.ndarray) -> None:
    """Set places of a mask to `values`."""
    if isinstance(mask, np.ndarray):
        mask[row, column] = values
        return
    import torch

    there = [torch.from_numpy(part).to(mask.device) for part in (row, column, np.ascontiguousarray(values))]
    mask[there[0], there[1]] = there[2]


def squares(x: Any) -> float:
    """Return the sum of the squares of an `array`."""
    return float(np.vdot(x, x)) if isinstance(x, np.ndarray) else float((x * x).sum())


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a @ b, [n, k] of [n, d] and [d, k]."""
    return _either(lambda: a @ b, lambda torch: torch.matmul(array(a), array(b)))


def sandwich(root: np.ndarray, middle: Any) -> Any:
    """Return root^T middle root made symmetric, [r, r] of root [d, r] and middle [d, d], where the algebra runs."""
    side = array(root)
    found = side.T @ array(middle) @ side
    return (found + found.T) / 2


def cholesky(matrix: Any) -> np.ndarray:
    """Return the lower Cholesky factor of a symmetric matrix [d, d]. Raises numpy.linalg.LinAlgError if singular."""
    return _either(lambda: np.linalg.cholesky(host(matrix)), lambda torch: torch.linalg.cholesky(array(matrix)))


def eigh(matrix: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues of a symmetric matrix [d, d], ascending, and its eigenvectors as columns."""
    if _device.get() is None:
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors
    import torch

    values, vectors = torch.linalg.eigh(array(matrix))
    return host(values), host(vectors)


def eigvalsh(matrix: Any) -> np.ndarray:
    """Return the eigenvalues of a symmetric matrix [d, d], ascending."""
    return next(eigenvalues([matrix]))


def eigenvalues(matrices: Iterable[Any]) -> Iterator[np.ndarray]:
    """Return the eigenvalues of each symmetric matrix [d, d], ascending; an accelerator takes several at once.

    Those of one size that come one after the other, up to AT_ONCE numbers: matrices are made as they are asked for.
    """
    if _device.get() is None:
        yield from (np.linalg.eigvalsh(matrix) for matrix in matrices)
        return
    waiting: list[Any] = []
    for matrix in matrices:
        if waiting and (matrix.shape != waiting[0].shape or (len(waiting) + 1) * waiting[0].shape[0] ** 2 > AT_ONCE):
            yield from _eigenvalues(waiting)
            waiting = []
        waiting.append(matrix)
    if waiting:
        yield from _eigenvalues(waiting)


def _eigenvalues(matrices: list[Any]) -> np.ndarray:
    """Return the eigenvalues of matrices of one size, [K, d]."""
    return _either(
        lambda: np.stack([np.linalg.eigvalsh(host(matrix)) for matrix in matrices]),
        lambda torch: torch.linalg.eigvalsh(torch.stack([array(matrix) for matrix in matrices])),
    )


def nuclear_norms(matrices: Iterable[Any]) -> Iterator[float]:
    """Return the sum of the singular values of each matrix [n, m], one of which at least is zero.

    By numpy from the singular values. On an accelerator, which is slow to find those, from the eigenvalues of the
    smaller Gram matrix, without the one that is zero; where the next is below SQUARED of the largest, squaring has
    cost too many digits, and they are those of [[0, A], [A^T, 0]] in pairs.
    """
    if _device.get() is None:
        yield from (float(np.linalg.svd(matrix, compute_uv=False).sum()) for matrix in matrices)
        return
    import torch

    kept: list[Any] = []

    def grams() -> Iterator[Any]:
        for matrix in matrices:
            kept.append(array(matrix))
            tall = kept[-1] if kept[-1].shape[0] >= kept[-1].shape[1] else kept[-1].T
            yield tall.T @ tall

    for values in eigenvalues(grams()):
        matrix = kept.pop(0)
        if len(values) > 1 and values[1] <= SQUARED * values[-1]:
            n, m = matrix.shape
            whole = matrix.new_zeros(n + m, n + m)
            whole[:n, n:], whole[n:, :n] = matrix, matrix.T
            yield float(np.abs(host(torch.linalg.eigvalsh(whole))).sum() / 2)
        else:
            yield float(np.sqrt(np.clip(values[1:], 0.0, None)).sum())


def _either(numpy: Callable[[], np.ndarray], other: Callable[[Any], Any]) -> np.ndarray:
    """Compute where the algebra runs; an accelerator whose memory is full leaves it to the host."""
    if _device.get() is None:
        return numpy()
    import torch

    try:
        return host(other(torch))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        line = f"metrics: {_device.get()} has too little free memory for them; computed on the processor"
        warnings.warn(line, BenchWarning, stacklevel=3)
    except torch.linalg.LinAlgError as error:
        raise np.linalg.LinAlgError(str(error)) from error
    return numpy()
