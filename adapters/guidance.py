"""Classifier-free guidance, v = v_null + cfg (v_cond - v_null), once for every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.times import rounded


def combine(cond: Tensor, null: Tensor, cfg: float, channels: int | None = None) -> Tensor:
    """Return null + cfg (cond - null) of predictions [B, C, ...].

    `channels` limits guidance to the first so many; the others stay conditional.
    """
    if channels is None:
        return null + cfg * (cond - null)
    n = channels
    return torch.cat([null[:, :n] + cfg * (cond[:, :n] - null[:, :n]), cond[:, n:]], dim=1)


@dataclass(frozen=True)
class Guided:
    """A network under guidance, called as (x, *times); at `cfg` 1 there is one evaluation per call and no guidance.

    `network(x, *times, labels)` takes x float32 [B, ...], times as tensors [B] or as plain numbers, and labels int64
    [B], and returns its prediction, [B, C, ...].
    """

    network: Callable[..., Tensor]
    labels: Tensor
    null: Tensor | None
    """Labels of the unconditional prediction; None where the network has no null label and takes None instead."""
    cfg: float
    channels: int | None = None
    """How many of the first channels are guided (None: all)."""
    interval: tuple[float, float] | None = None
    """First and last time that are guided, for networks that are given times as numbers."""
    closed: bool = True
    """Whether the two ends of the interval are guided themselves."""
    doubled: bool = True
    """Whether both predictions come from one evaluation of the doubled batch rather than from two."""
    always: bool = False
    """Whether both predictions are asked for at `cfg` 1 too, as some authors' code does."""
    weak: Callable[..., Tensor] | None = None
    """Autoguidance: the weaker network, given the same labels, whose prediction takes the place of the null one."""

    def __call__(self, x: Tensor, *times: Tensor | float) -> Tensor:
        """Return the guided prediction, [B, C, ...]."""
        if (self.cfg == 1.0 and not self.always) or not self._inside(times[0]):
            return self.network(x, *times, self.labels)
        return combine(*self.both(x, *times), self.cfg, self.channels)

    def both(self, x: Tensor, *times: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the conditional and the unconditional (or the weaker network's) prediction, each [B, C, ...]."""
        if self.weak is not None:
            return self.network(x, *times, self.labels), self.weak(x, *times, self.labels)
        if self.null is None or not self.doubled:
            return self.network(x, *times, self.labels), self.network(x, *times, self.null)
        twice = [torch.cat([value, value]) if isinstance(value, Tensor) else value for value in (x, *times)]
        cond, null = self.network(*twice, torch.cat([self.labels, self.null])).chunk(2)
        return cond, null

    def pair(self, x: Tensor, *times: Tensor) -> Tensor:
        """Return predictions [2B, C, ...] for a doubled state, as the authors of SiT integrate it.

        Both halves of x are the same samples. The second half is discarded in the end, but counts in an adaptive
        solver's error norm: it is guided like the first, and unconditional in the channels left unguided.
        """
        half = len(self.labels)
        cond, null = self.both(x[:half], *(t[:half] for t in times))
        first = combine(cond, null, self.cfg, self.channels)
        n = first.shape[1] if self.channels is None else self.channels
        return torch.cat([first, torch.cat([first[:, :n], null[:, n:]], dim=1)])

    def _inside(self, t: Tensor | float) -> bool:
        if self.interval is None or isinstance(t, Tensor):
            return True
        # In the precision of the times that the network is given, so that the interval's ends belong to it.
        low, now, high = rounded(self.interval[0]), rounded(t), rounded(self.interval[1])
        return low <= now <= high if self.closed else low < now < high
