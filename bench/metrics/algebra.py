"""Dense float64 algebra on the host or, inside `on(device)`, on an accelerator: numpy in, numpy out.

Nothing is set for a processor, where every function is numpy's own: the same bits as without this module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from results.errors import BenchWarning

if TYPE_CHECKING:
    import torch

AT_ONCE = 2**27
"""Numbers of the matrices whose eigenvalues an accelerator finds at once: 1 GiB."""
PARTLY = 512
"""Dimension from which a few eigenvectors are sooner found than all."""
SQUARED = 1e-12
"""Smallest eigenvalue of a Gram matrix, as a share of its largest, whose root has ten digits of the largest's."""
AT_A_TIME = 8
"""Threads beside an accelerator."""
_streams: dict[str, list[Any]] = {}
Item = TypeVar("Item")
Found = TypeVar("Found")
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


class Smallest:
    """The k smallest of each row of a matrix that comes in parts, some columns [n, m] at a time, in any order."""

    def __init__(self, k: int) -> None:
        self.k = k
        self._values: Any = None
        self._columns: Any = None

    def take(self, part: Any, start: int) -> None:
        """Take in an `array` [n, m], columns `start` and following of the whole."""
        values, columns = self._least(part, None)
        columns = columns + start
        if self._values is not None:
            values, columns = joined([self._values, values], 1), joined([self._columns, columns], 1)
            values, columns = self._least(values, columns)
        self._values, self._columns = values, columns

    @property
    def columns(self) -> np.ndarray:
        """The columns of the smallest, int64 [n, k]; fewer where there are no more."""
        return host(self._columns)

    def _least(self, values: Any, columns: Any) -> tuple[Any, Any]:
        """Return the k smallest of each row, and what `columns` says of them (None: in which column they are)."""
        if isinstance(values, np.ndarray):
            if columns is None:
                columns = np.broadcast_to(np.arange(values.shape[1]), values.shape)
            if values.shape[1] <= self.k:
                return values, columns
            place = np.argpartition(values, self.k - 1, axis=1)[:, : self.k]
            return np.take_along_axis(values, place, axis=1), np.take_along_axis(columns, place, axis=1)
        least, place = values.topk(min(self.k, values.shape[1]), dim=1, largest=False)
        return least, place if columns is None else columns.gather(1, place)


def joined(parts: Sequence[Any], axis: int = 0) -> Any:
    """Return `array`s one after the other along an axis."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis=axis)
    import torch

    return torch.cat(list(parts), dim=axis)


def larger(a: Any, b: Any) -> Any:
    """Return the larger of two `array`s, element by element, broadcast."""
    if isinstance(a, np.ndarray):
        return np.maximum(a, b)
    import torch

    return torch.maximum(a, b)


def at(matrix: Any, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return the elements of an `array` at the places (int [p] each), float64 [p]."""
    if isinstance(matrix, np.ndarray):
        return np.asarray(matrix[row, column])
    return host(matrix[_index(matrix, row), _index(matrix, column)])


def _index(matrix: Any, places: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(places)).to(matrix.device)


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
    mask[_index(mask, row), _index(mask, column)] = _index(mask, values)


def spread(function: Callable[[Item], Found], items: Iterable[Item]) -> list[Found]:
    """Return what `function` makes of each item; where the algebra runs on an accelerator several are made at once.

    Each in a thread of its own, with a stream of its own: the accelerator is seldom filled by one of them, and the
    host's part of one runs beside that of another. Without an accelerator they are made one after the other.
    """
    place = _device.get()
    if place is None:
        return [function(item) for item in items]

    def aside(item: Item) -> Found:
        with own_stream(place):
            return function(item)

    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="metrics") as threads:
        return [made.result() for made in [threads.submit(copy_context().run, aside, item) for item in items]]


def both(one: Callable[[], Found], other: Callable[[], Item]) -> tuple[Found, Item]:
    """Return what two functions return, computed at once as `spread` has it."""
    calls: list[Callable[[], Any]] = [one, other]
    first, second = spread(lambda call: call(), calls)
    return first, second


@contextmanager
def own_stream(place: torch.device) -> Iterator[None]:
    """Have what this thread gives an accelerator inside the block done beside what others give it.

    Streams are used again, one by one at a time: each keeps the memory that it was given.
    """
    if place.type != "cuda":
        yield
        return
    import torch

    idle = _streams.setdefault(str(place), [])
    try:
        stream = idle.pop()
    except IndexError:
        stream = torch.cuda.Stream(place)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        idle.append(stream)


def triangle(size: int) -> tuple[Any, Any]:
    """Return rows and columns of the upper triangle of a matrix [size, size], by which an `array` is indexed."""
    row, column = np.triu_indices(size)
    place = _device.get()
    if place is None:
        return row, column
    import torch

    return torch.from_numpy(row).to(place), torch.from_numpy(column).to(place)


def squares(x: Any) -> float:
    """Return the sum of the squares of an `array`."""
    return float(np.vdot(x, x)) if isinstance(x, np.ndarray) else float((x * x).sum())


def sandwich(root: np.ndarray, middle: Any) -> Any:
    """Return root^T middle root made symmetric, [r, r] of root [d, r] and middle [d, d], where the algebra runs."""
    side = array(root)
    found = side.T @ array(middle) @ side
    return (found + found.T) / 2


def inverse(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse of a matrix [d, d]. Raises numpy.linalg.LinAlgError if singular."""
    return _either(lambda: np.linalg.inv(matrix), lambda torch: torch.linalg.inv(array(matrix)))


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


def largest(matrix: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest eigenvalues of a symmetric matrix [d, d], ascending, and their eigenvectors as columns."""
    d = len(matrix)
    if _device.get() is None and k < d and d >= PARTLY:
        from scipy.linalg import eigh as part

        values, vectors = part(matrix, subset_by_index=[d - k, d - 1], driver="evr", check_finite=False)
        return values, vectors
    values, vectors = eigh(matrix)
    return values[d - k :], vectors[:, d - k :]


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
