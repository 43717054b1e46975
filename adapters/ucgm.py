"""UCGM (arXiv 2505.07447): the UNI sampler over six transports and five published networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from adapters.guidance import Guided
from adapters.latent import LatentAdapter
from adapters.networks.ddt import DDT
from adapters.networks.dit import DiT
from adapters.networks.edm2 import EDM2UNet
from adapters.networks.lightningdit import LightningDiT
from adapters.times import filled, rounded
from adapters.transports import TRANSPORTS, Transport, TransportName, edm_noise_label, spread, time_grid
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.evaluations import Evaluations
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter
from bench.contracts.settings import Number, SamplerSettings
from results.errors import BenchError, unknown

Predict = Callable[[Tensor, Tensor], Tensor]
PredictAt = Callable[[Tensor, float], Tensor]


class UNI(SamplerSettings):
    """The settings of the UNI sampler, by the authors' names."""

    stochast_ratio: Annotated[Number, Field(ge=0, le=1)] | Literal["Auto"] = Field(
        0.0, description="share r of fresh noise in the noise estimate; Auto takes it from the first step"
    )
    extrapol_ratio: Number = Field(0.0, description="extrapolation of the estimates from the third step on")
    sampling_order: int = Field(1, ge=1, le=2, description="order of the solver; 2 spends two evaluations per step")
    time_dist_ctrl: Sequence[Annotated[Number, Field(gt=0)]] = Field(
        (1.0, 1.0, 1.0), min_length=3, max_length=3, description="Kumaraswamy warp (a, b, c) of the times"
    )
    rfba_gap_steps: Sequence[Annotated[Number, Field(ge=0, lt=1)]] = Field(
        (0.001, 0.001), min_length=2, max_length=2, description="gaps at the two ends of the time grid"
    )

    @property
    def path(self) -> Transport:
        """The transport that is sampled."""
        return TRANSPORTS["Linear"]

    def times(self, steps: int) -> list[float]:
        """Return the times of `steps` evaluations from noise to data; order 2 spends two on each but the last."""
        return time_grid(self.path, iterations(steps, self.sampling_order), self.rfba_gap_steps, self.time_dist_ctrl)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.sampling_order == 2 and self.path.at(self.times(1)[0]).gamma == 0:
            raise ValueError("sampling_order 2 divides by gamma at the first time; give rfba_gap_steps a start above 0")
        return self


class UCGMSettings(UNI):
    """What UCGM's models take: a transport, one of two samplers, and where guidance acts."""

    sampler: Literal["uni", "uniode"] = Field(
        "uni", description="uni, or the plain ODE sampler uniode, which takes sampling_method and eta instead"
    )
    transport: TransportName = Field("Linear", description="how data and noise mix, as the checkpoint was trained")
    sampling_method: Literal["Euler", "Heun"] = Field("Euler", description="solver of sampler uniode")
    eta: Number = Field(0.001, ge=0, lt=0.5, description="uniode: distance of the uniform times from both ends")
    guidance_interval: Sequence[Number] | None = Field(
        None, min_length=2, max_length=2, description="first and last time guided, both included; null: all times"
    )
    guided_channels: int | None = Field(
        None, ge=0, description="how many of the first channels are guided; null: as the network was published"
    )

    @property
    def path(self) -> Transport:
        """The transport that is sampled."""
        return TRANSPORTS[self.transport]


def iterations(steps: int, order: int) -> int:
    """Return how many grid points `steps` evaluations buy: the second order spends two on each but the last."""
    return steps if order == 1 else (steps + 1) // 2


def uni_sample(
    predict: Predict, noise: NoiseSource, shape: Sequence[int], steps: int, settings: UNI | None = None
) -> Tensor:
    """Sample with UNI and return the raw data prediction of its last step, float32 [B, *shape].

    `predict(x, t)` takes float32 [B, *shape] and t float32 [B] and returns the network's F. `noise` draw 0 is the
    initial state, draw i + 1 the noise injected in step i (counted from 0).
    """
    settings = settings or UNI()
    return last(
        integrate(lambda x, t: predict(x, filled(t, x)), noise, shape, settings.path, settings.times(steps), settings)
    )


def trajectory(
    predict_at: PredictAt, noise: NoiseSource, shape: Sequence[int], steps: int, settings: UCGMSettings
) -> Iterator[Tensor]:
    """Yield the raw data prediction of each step, float32; `predict_at(x, t)` takes the time as a number."""
    uni: UNI = settings
    path, times = settings.path, settings.times(steps)
    if settings.sampler == "uniode":  # UNI without its settings, at uniform times
        uni = UNI(sampling_order={"Euler": 1, "Heun": 2}[settings.sampling_method])
        u = spread(iterations(steps, uni.sampling_order), settings.eta, 1 - settings.eta)
        times = (u if path.noise_at_zero else 1 - u).tolist()
    return integrate(predict_at, noise, shape, path, times, uni)


def integrate(
    predict_at: PredictAt,
    noise: NoiseSource,
    shape: Sequence[int],
    path: Transport,
    times: Sequence[float],
    settings: UNI,
) -> Iterator[Tensor]:
    """Walk `times` from noise to data and yield each step's raw data prediction, float32.

    The state is float64; times, coefficients, network and estimates are float32: the published sampler's precisions.
    """
    marks = [path.at(t) for t in times]
    r = _stochastic_ratio(settings.stochast_ratio, times, path)
    x = noise.normal(shape, 0).double()
    x_before = z_before = x

    for i, (t, now) in enumerate(zip(times, marks, strict=True)):
        x_raw, z_raw = now.estimates(x.float(), predict_at(x.float(), t))
        yield x_raw
        if i == len(times) - 1:
            break

        x_raw, z_raw = x_raw.double(), z_raw.double()
        x_hat, z_hat = x_raw, z_raw
        if i >= 2:
            x_hat = x_raw + settings.extrapol_ratio * (x_raw - x_before)
            z_hat = z_raw + settings.extrapol_ratio * (z_raw - z_before)
        x_before, z_before = x_raw, z_raw

        then = marks[i + 1]
        z_mixed = (1 - r) ** 0.5 * z_hat
        if r > 0 and then.alpha != 0:
            z_mixed = z_mixed + r**0.5 * noise.normal(shape, i + 1).double()
        x_next = then.gamma * x_hat + then.alpha * z_mixed

        if settings.sampling_order == 2:
            _, z_second = then.estimates(x_next.float(), predict_at(x_next.float(), times[i + 1]))
            noise_share = rounded(then.alpha - rounded(rounded(now.alpha * then.gamma) / now.gamma))
            x_next = x * then.gamma / now.gamma + noise_share * (z_hat + z_second) / 2
        x = x_next

    # With an end gap of 0 the published second order corrects after its last step too: one evaluation at t = 0 that
    # nothing depends on, kept because it is part of the published cost.
    if settings.sampling_order == 2 and settings.rfba_gap_steps[1] == 0:
        predict_at(x.float(), 0.0)


def _stochastic_ratio(ratio: float | str, times: Sequence[float], path: Transport) -> float:
    """Return r in [0, 1]; "Auto" takes it from the first step: 2 |t1 - t0| alpha(t0) / alpha(t1)^2."""
    if ratio != "Auto":
        return float(ratio)
    first, second = (*times, 0.0)[:2]
    alpha = path.at(second).alpha
    if alpha == 0:
        return 1.0
    return min(max(2 * abs(second - first) * path.at(first).alpha / alpha**2, 0.0), 1.0)


def last(estimates: Iterator[Tensor]) -> Tensor:
    """Return the last of one or more estimates."""
    for estimate in estimates:  # noqa: B007
        pass
    return estimate


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "TiT": lambda **facts: LightningDiT(use_qknorm=True, norm_weights=False, **facts),
    "SiT": lambda num_classes, **facts: DiT(label_rows=num_classes + 1 if num_classes > 1 else 0, **facts),
    "LightningDiT": LightningDiT,
    "DDT": DDT,
    "EDM2": lambda input_size, in_channels, num_classes, **facts: EDM2UNet(
        img_resolution=input_size, img_channels=in_channels, label_dim=num_classes, **facts
    ),
}
GUIDED_CHANNELS = {"LightningDiT": 3}
"""Networks whose guidance acts on their first channels only; the others take the conditional output."""


class UCGM(LatentAdapter):
    """A network of UCGM's five, sampled with UNI; guidance is classifier-free, F_null + cfg (F - F_null)."""

    Settings = UCGMSettings

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        facts = dict(card.architecture)
        self.kind = facts.pop("network", "")
        if self.kind not in NETWORKS:
            raise unknown("UCGM network", self.kind, NETWORKS)
        facts.setdefault("num_classes", card.num_classes)
        null_label = facts.pop("null_label", facts["num_classes"])
        self.null_label = None if self.kind == "EDM2" else null_label  # which skips its label branch instead
        try:
            self.network = NETWORKS[self.kind](**facts)
        except TypeError as error:
            raise BenchError(f"card {card.name}: architecture of {self.kind}: {error}") from error

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load UCGM's own checkpoints, or for EDM2 the official ones (prefix `unet.`, with a training-only head)."""
        if self.kind == "EDM2":
            state = {key.removeprefix("unet."): value for key, value in state.items() if not key.startswith("logvar_")}
        load_strict(self.network, state, self.card.name)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: UCGMSettings) -> Tensor:
        """Return normalised latents, float32 [B, C, H, W]: the raw data prediction of the last step."""
        return last(trajectory(self.guided(labels, cfg, settings), noise, self.latent_shape, steps, settings))

    def guided(self, labels: Tensor, cfg: float, settings: UCGMSettings) -> Guided:
        """Return the network's output as a function of (x, t), guided; EDM2 is asked twice, once without its label."""
        interval, channels = settings.guidance_interval, settings.guided_channels
        return Guided(
            self.evaluate,
            labels,
            null=None if self.null_label is None else torch.full_like(labels, self.null_label),
            cfg=cfg,
            channels=GUIDED_CHANNELS.get(self.kind) if channels is None else channels,
            interval=None if interval is None else (interval[0], interval[1]),
        )

    def evaluate(self, x: Tensor, t: float | Tensor, labels: Tensor | None) -> Tensor:
        """Return the network's output at time `t`; labels None (EDM2 only) skips the label branch."""
        time = t if isinstance(t, Tensor) else filled(t, x)
        output: Tensor = self.network(x, edm_noise_label(time) if self.kind == "EDM2" else time, labels)
        return output


def replay(case: Case) -> Replay:
    """Return the replay of recorded `network` and `sample` calls (parity adapter `ucgm`)."""
    adapter = recorded_adapter(case, UCGM, "classifier-free")

    def run(call: Call) -> dict[str, Any]:
        if call["kind"] == "network":
            inputs = case.arguments(call, "x", "t", "labels", null_label=adapter.null_label)
            return {"output": adapter.evaluate(*inputs)}
        settings, noise, times = UCGMSettings.checked(case.options(call), case.name), case.noise(call), []
        asked = call.get("guidance")
        predict: PredictAt = partial(adapter.evaluate, labels=None)
        if call.get("labels") or adapter.null_label is not None:
            # Upstream: 0 is off, and 1 is guidance at twice the cost.
            guided = adapter.guided(case.labels(call, adapter.null_label or 0), asked or 1.0, settings)
            predict = replace(guided, always=asked == 1)

        def predict_at(x: Tensor, t: float) -> Tensor:
            times.append(t)
            return predict(x, t)

        with Evaluations(adapter.network) as evaluations:
            estimates = list(trajectory(predict_at, noise, adapter.latent_shape, call["steps"], settings))
        return {
            "output": estimates[-1],
            "trajectory": torch.stack(estimates),
            "times": times,
            "nfe_per_image": evaluations.rows / len(noise),
        }

    return run
