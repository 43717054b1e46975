"""Counter-based noise: every value is a pure function of (seed, sample index, draw, element).

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) gives the bits and the
inverse normal distribution (Wichura, Algorithm AS 241, PPND16, 1988) turns them into normal deviates. Only
integer arithmetic and the correctly rounded operations + - * / sqrt are used (the logarithm included), so the
same numbers come out on every device, at every batch size and under every library version.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10


class NoiseSource(ABC):
    """The only source of randomness that an adapter sees, bound to the samples of one batch."""

    @abstractmethod
    def normal(self, shape: Sequence[int], draw: int = 0) -> Tensor:
        """Return unit normal noise, float32 [B, *shape], the same whenever it is asked for again.

        `draw` 0 is the initial noise; a stochastic sampler takes 1, 2, ... for its later draws.
        """

    def uniform(self, shape: Sequence[int], draw: int = 0) -> Tensor:
        """Return the same draw as uniform numbers in [0, 1), float64 [B, *shape], for those who draw from a list."""
        return torch.special.ndtr(self.normal(shape, draw).double())

    def __len__(self) -> int:
        """Return the number of samples in the batch."""
        raise TypeError("this noise source does not know its batch size")


class PhiloxNoise(NoiseSource):
    """Noise of the samples `indices` under `seed`; models with the same latent shape share it."""

    def __init__(self, seed: int, indices: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        if isinstance(indices, range):  # made on the device: a copy to it would wait for what it has to do
            self.indices = torch.arange(indices.start, indices.stop, indices.step, dtype=torch.int64, device=device)
        else:
            self.indices = torch.as_tensor(indices, dtype=torch.int64, device=device)

    def __len__(self) -> int:
        return len(self.indices)

    def normal(self, shape: Sequence[int], draw: int = 0) -> Tensor:
        """Return float32 [B, *shape]: element e of sample i is normal(seed, i, draw, e)."""
        return inverse_normal(self.uniform(shape, draw)).float()

    def uniform(self, shape: Sequence[int], draw: int = 0) -> Tensor:
        """Return float64 [B, *shape], of which `normal` is the quantile."""
        size = prod(shape)
        block = torch.arange((size + 3) // 4, dtype=torch.int64, device=self.indices.device)
        sample = self.indices[:, None]
        counter = (block[None, :], torch.full_like(sample, draw), sample & MASK32, (sample >> 32) & MASK32)
        words = philox4x32(counter, (self.seed & MASK32, (self.seed >> 32) & MASK32))
        bits = torch.stack(words, dim=-1).reshape(len(self.indices), -1)[:, :size]
        return ((bits.double() + 0.5) * 2.0**-32).reshape(len(self.indices), *shape)


class RecordedNoise(NoiseSource):
    """Noise replayed from a recording: `initial` [B, ...] and `injected` [draws, B, ...]."""

    def __init__(self, initial: Tensor, injected: Tensor | None = None) -> None:
        self.initial = initial
        self.injected = injected

    def __len__(self) -> int:
        return len(self.initial)

    def normal(self, shape: Sequence[int], draw: int = 0) -> Tensor:
        """Return the recorded tensor of `draw`; draws beyond the recording raise IndexError."""
        return self._recorded(shape, draw)

    def uniform(self, shape: Sequence[int], draw: int = 0) -> Tensor:
        """Return the recorded tensor of `draw`: the recording of one who draws uniform numbers holds those."""
        return self._recorded(shape, draw).double()

    def _recorded(self, shape: Sequence[int], draw: int) -> Tensor:
        if draw == 0:
            value = self.initial
        elif self.injected is not None and draw <= len(self.injected):
            value = self.injected[draw - 1]
        else:
            raise IndexError(f"the recording has no draw {draw}")
        if tuple(value.shape[1:]) != tuple(shape):
            raise ValueError(f"recorded noise has shape {tuple(value.shape[1:])}, asked for {tuple(shape)}")
        return value


def philox4x32(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four 32-bit words (int64 tensors in [0, 2^32)) of Philox 4x32-10, counters broadcast."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        # int64 products wrap modulo 2^64, which keeps both 32-bit halves right.
        p0, p1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (
            (p1 >> 32 & MASK32) ^ c1 ^ k0,
            p1 & MASK32,
            (p0 >> 32 & MASK32) ^ c3 ^ k1,
            p0 & MASK32,
        )
        k0, k1 = (k0 + WEYL_0) & MASK32, (k1 + WEYL_1) & MASK32
    return c0, c1, c2, c3


def inverse_normal(p: Tensor) -> Tensor:
    """Return the normal quantile of `p` in (0, 1), float64, relative accuracy about 1e-16 (AS 241)."""
    q = p - 0.5
    r = 0.180625 - q * q
    centre = q * _ratio(r, _A, _B)
    tail = torch.where(q < 0, p, 1.0 - p)
    r = torch.sqrt(-_log(tail))
    near = _ratio(r - 1.6, _C, _D)
    far = _ratio(r - 5.0, _E, _F)
    outside = torch.where(r <= 5.0, near, far)
    outside = torch.where(q < 0, -outside, outside)
    return torch.where(q.abs() <= 0.425, centre, outside)


def _ratio(r: Tensor, numerator: Sequence[float], denominator: Sequence[float]) -> Tensor:
    return _horner(r, numerator) / _horner(r, denominator)


def _horner(r: Tensor, coefficients: Sequence[float]) -> Tensor:
    value = torch.full_like(r, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * r
        value = value + coefficient
    return value


def _log(x: Tensor) -> Tensor:
    """Return ln x from frexp and the series of 2 atanh((m-1)/(m+1)): a library's log may differ in the last bit."""
    mantissa, exponent = torch.frexp(x)
    low = mantissa < 0.7071067811865476
    mantissa = torch.where(low, mantissa * 2.0, mantissa)
    exponent = (exponent - low.to(exponent.dtype)).double()
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = _horner(s * s, [1.0 / (2 * k + 1) for k in range(12)])
    return exponent * 0.6931471805599453 + 2.0 * s * series


# Coefficients of AS 241 (PPND16), lowest order first: |q| <= 0.425, r <= 5, r > 5.
# fmt: off
_A = (
    3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
    45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727,
)
_B = (
    1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
    21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610,
)
_C = (
    1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
    1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4,
)
_D = (
    1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550,
    0.148103976427480074590, 0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9,
)
_E = (
    6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 0.296560571828504891230,
    0.0265321895265761230930, 0.00124266094738807843860, 2.71155556874348757815e-5, 2.01033439929228813265e-7,
)
_F = (
    1.0, 0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525,
    7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15,
)
# fmt: on
