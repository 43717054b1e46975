"""UCGM (arXiv 2505.07447): the UNI sampler over six transports and five published networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.autoencoders import build_autoencoder
from adapters.networks.ddt import DDT
from adapters.networks.dit import DiT
from adapters.networks.edm2 import EDM2UNet
from adapters.networks.lightningdit import LightningDiT
from adapters.networks.tit import TiT
from adapters.transports import Transport, edm_noise_label, find_transport, single, spread, time_grid
from bench.contracts.adapter import Adapter, load_strict
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay
from results.errors import BenchError, unknown

Predict = Callable[[Tensor, Tensor], Tensor]
PredictAt = Callable[[Tensor, float], Tensor]


def uni_sample(
    predict: Predict,
    noise: NoiseSource,
    shape: Sequence[int],
    steps: int,
    *,
    transport: str = "Linear",
    stochast_ratio: float | str = 0.0,
    extrapol_ratio: float = 0.0,
    sampling_order: int = 1,
    time_dist_ctrl: Sequence[float] = (1.0, 1.0, 1.0),
    rfba_gap_steps: Sequence[float] = (0.001, 0.001),
) -> Tensor:
    """Sample with UNI and return the raw data prediction of its last step, float32 [B, *shape].

    `predict(x, t)` takes float32 [B, *shape] and t float32 [B] and returns the network's F. `noise` draw 0 is the
    initial state, draw i + 1 the noise injected in step i (counted from 0). `stochast_ratio` r in [0, 1] (or "Auto")
    is the share of fresh noise in the noise estimate, `extrapol_ratio` the extrapolation of the estimates from the
    third step on, `sampling_order` 1 or 2, `time_dist_ctrl` the Kumaraswamy warp of the times, `rfba_gap_steps` the
    gaps at the ends of the time grid. Raises BenchError for a setting outside its range.
    """

    def predict_at(x: Tensor, t: float) -> Tensor:
        return predict(x, _times(t, x))

    estimates = trajectory(
        predict_at, noise, shape, steps, transport=transport, stochast_ratio=stochast_ratio,
        extrapol_ratio=extrapol_ratio, sampling_order=sampling_order, time_dist_ctrl=time_dist_ctrl,
        rfba_gap_steps=rfba_gap_steps,
    )  # fmt: skip
    return _last(estimates)


def trajectory(
    predict_at: PredictAt,
    noise: NoiseSource,
    shape: Sequence[int],
    steps: int,
    *,
    sampler: str = "uni",
    transport: str = "Linear",
    stochast_ratio: float | str = 0.0,
    extrapol_ratio: float = 0.0,
    sampling_order: int = 1,
    time_dist_ctrl: Sequence[float] = (1.0, 1.0, 1.0),
    rfba_gap_steps: Sequence[float] = (0.001, 0.001),
    sampling_method: str = "Euler",
    eta: float = 0.001,
) -> Iterator[Tensor]:
    """Yield the raw data prediction of each step, float32; `predict_at(x, t)` takes the time as a number.

    `sampler` is `uni` (see `uni_sample`) or `uniode`, the plain ODE sampler: uniform times from `eta` to 1 - `eta`,
    `sampling_method` Euler or Heun, none of UNI's settings.
    """
    chosen = find_transport(transport)
    if sampler == "uniode":
        order = {"Euler": 1, "Heun": 2}.get(sampling_method)
        if order is None:
            raise unknown("sampling_method", sampling_method, ("Euler", "Heun"))
        u = spread(iterations(steps, order), eta, 1 - eta)
        times = (u if chosen.noise_at_zero else 1 - u).tolist()
        return integrate(predict_at, noise, shape, chosen, times, order=order)
    if sampler != "uni":
        raise unknown("sampler", sampler, ("uni", "uniode"))
    times = time_grid(chosen, iterations(steps, sampling_order), rfba_gap_steps, time_dist_ctrl)
    # With an end gap of 0 the published second order corrects after its last step too: one evaluation at t = 0 that
    # nothing depends on, kept because it is part of the published cost.
    idle_correction = sampling_order == 2 and rfba_gap_steps[1] == 0
    return integrate(
        predict_at, noise, shape, chosen, times, stochast_ratio, extrapol_ratio, sampling_order, idle_correction
    )


def iterations(steps: int, order: int) -> int:
    """Return how many grid points `steps` evaluations buy: the second order spends two on each but the last."""
    if steps < 1:
        raise BenchError(f"steps must be at least 1, found {steps}")
    if order not in (1, 2):
        raise BenchError(f"sampling_order must be 1 or 2, found {order}")
    return steps if order == 1 else (steps + 1) // 2


def integrate(
    predict_at: PredictAt,
    noise: NoiseSource,
    shape: Sequence[int],
    transport: Transport,
    times: Sequence[float],
    stochast_ratio: float | str = 0.0,
    extrapol_ratio: float = 0.0,
    order: int = 1,
    idle_correction: bool = False,
) -> Iterator[Tensor]:
    """Walk `times` from noise to data and yield each step's raw data prediction, float32.

    The state is float64; times, coefficients, network and estimates are float32: the published sampler's precisions.
    """
    marks = [transport.at(t) for t in times]
    r = _stochastic_ratio(stochast_ratio, times, transport)
    if order == 2 and len(marks) > 1 and marks[0].gamma == 0:
        raise BenchError("sampling_order 2 divides by gamma at the first time; give rfba_gap_steps a start above 0")
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
            x_hat = x_raw + extrapol_ratio * (x_raw - x_before)
            z_hat = z_raw + extrapol_ratio * (z_raw - z_before)
        x_before, z_before = x_raw, z_raw

        then = marks[i + 1]
        z_mixed = (1 - r) ** 0.5 * z_hat
        if r > 0 and then.alpha != 0:
            z_mixed = z_mixed + r**0.5 * noise.normal(shape, i + 1).double()
        x_next = then.gamma * x_hat + then.alpha * z_mixed

        if order == 2:
            _, z_second = then.estimates(x_next.float(), predict_at(x_next.float(), times[i + 1]))
            noise_share = single(then.alpha - single(single(now.alpha * then.gamma) / now.gamma))
            x_next = x * then.gamma / now.gamma + noise_share * (z_hat + z_second) / 2
        x = x_next

    if idle_correction:
        predict_at(x.float(), 0.0)


def _stochastic_ratio(ratio: float | str, times: Sequence[float], transport: Transport) -> float:
    """Return r in [0, 1]; "Auto" takes it from the first step: 2 |t1 - t0| alpha(t0) / alpha(t1)^2."""
    if ratio == "Auto":
        first, second = (*times, 0.0)[:2]
        alpha = transport.at(second).alpha
        if alpha == 0:
            return 1.0
        return min(max(2 * abs(second - first) * transport.at(first).alpha / alpha**2, 0.0), 1.0)
    if isinstance(ratio, str) or not 0 <= ratio <= 1:
        raise BenchError(f'stochast_ratio must be a number in [0, 1] or "Auto", found {ratio!r}')
    return float(ratio)


def _times(t: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.float32, device=x.device)


def _last(estimates: Iterator[Tensor]) -> Tensor:
    for estimate in estimates:  # noqa: B007
        pass
    return estimate


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "TiT": TiT,
    "SiT": lambda num_classes, **facts: DiT(label_rows=num_classes + 1 if num_classes > 1 else 0, **facts),
    "LightningDiT": LightningDiT,
    "DDT": DDT,
    "EDM2": lambda input_size, in_channels, num_classes, **facts: EDM2UNet(
        img_resolution=input_size, img_channels=in_channels, label_dim=num_classes, **facts
    ),
}
GUIDED_CHANNELS = {"LightningDiT": 3}
"""Networks whose guidance acts on their first channels only; the others take the conditional output."""


class UCGM(Adapter):
    """A network of UCGM's five, sampled with UNI; guidance is classifier-free, F_null + cfg (F - F_null)."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        facts = dict(card.architecture)
        self.kind = facts.pop("network", "")
        if self.kind not in NETWORKS:
            raise unknown("UCGM network", self.kind, NETWORKS)
        facts.setdefault("num_classes", card.num_classes)
        self.null_label = facts.pop("null_label", facts["num_classes"])
        try:
            self.network = NETWORKS[self.kind](**facts)
        except TypeError as error:
            raise BenchError(f"card {card.name}: architecture of {self.kind}: {error}") from error
        self.autoencoder = build_autoencoder(card.autoencoder)

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load UCGM's own checkpoints, or for EDM2 the official ones (prefix `unet.`, with a training-only head)."""
        if self.kind == "EDM2":
            state = {key.removeprefix("unet."): value for key, value in state.items() if not key.startswith("logvar_")}
        load_strict(self.network, state, self.card.name)

    def generate(
        self,
        labels: Tensor,
        steps: int,
        cfg: float,
        noise: NoiseSource,
        *,
        sampler: str = "uni",
        transport: str = "Linear",
        stochast_ratio: float | str = 0.0,
        extrapol_ratio: float = 0.0,
        sampling_order: int = 1,
        time_dist_ctrl: Sequence[float] = (1.0, 1.0, 1.0),
        rfba_gap_steps: Sequence[float] = (0.001, 0.001),
        sampling_method: str = "Euler",
        eta: float = 0.001,
        guidance_interval: Sequence[float] | None = None,
        guided_channels: int | None = None,
    ) -> Tensor:
        """Return normalised latents, float32 [B, C, H, W]: the raw data prediction of the last step.

        The settings are those of `trajectory`; `guidance_interval` = (first, last) limits guidance to transport
        times in between, both included (None: every evaluation), `guided_channels` to the first channels (None:
        what the network was published with).
        """
        predict_at = self.predictor(labels, None if cfg == 1.0 else cfg, guidance_interval, guided_channels)
        estimates = trajectory(
            predict_at, noise, self.latent_shape, steps, sampler=sampler, transport=transport,
            stochast_ratio=stochast_ratio, extrapol_ratio=extrapol_ratio, sampling_order=sampling_order,
            time_dist_ctrl=time_dist_ctrl, rfba_gap_steps=rfba_gap_steps, sampling_method=sampling_method, eta=eta,
        )  # fmt: skip
        return _last(estimates)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images, float32 [B, 3, H, W] in [-1, 1]."""
        return self.autoencoder.decode(latents)

    def predictor(
        self, labels: Tensor, scale: float | None, interval: Sequence[float] | None, channels: int | None
    ) -> PredictAt:
        """Return the network's output as a function of (x, t), guided at `scale` (None: not guided)."""
        # The interval is compared in the precision of the times, so that its ends belong to it.
        lower, upper = (0.0, 1.0) if interval is None else map(single, interval)
        channels = GUIDED_CHANNELS.get(self.kind) if channels is None else channels

        def predict_at(x: Tensor, t: float) -> Tensor:
            if scale is None or not lower <= t <= upper:
                return self.evaluate(x, t, labels)
            F, F_null = self.evaluate_both(x, t, labels)
            F_guided = F_null + scale * (F - F_null)
            return F_guided if channels is None else torch.cat([F_guided[:, :channels], F[:, channels:]], dim=1)

        return predict_at

    def evaluate(self, x: Tensor, t: float | Tensor, labels: Tensor | None) -> Tensor:
        """Return the network's output at time `t`; labels None (EDM2 only) skips the label branch."""
        time = t if isinstance(t, Tensor) else _times(t, x)
        output: Tensor = self.network(x, edm_noise_label(time) if self.kind == "EDM2" else time, labels)
        return output

    def evaluate_both(self, x: Tensor, t: float, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the conditional and the unconditional output, from one doubled batch where the network allows it."""
        if self.kind == "EDM2":
            return self.evaluate(x, t, labels), self.evaluate(x, t, None)
        null = torch.full_like(labels, self.null_label)
        F, F_null = self.evaluate(torch.cat([x, x]), t, torch.cat([labels, null])).chunk(2)
        return F, F_null


def replay(case: Case) -> Replay:
    """Return the replay of recorded `network` and `sample` calls (parity adapter `ucgm`)."""
    facts = case.architecture
    card = ModelCard(
        name=case.spec["name"],
        family="ucgm",
        title="recorded case",
        resolution=facts["input_size"],
        num_classes=facts["num_classes"],
        latent_shape=(facts["in_channels"], facts["input_size"], facts["input_size"]),
        architecture=facts,
        guidance=Guidance("classifier-free"),
    )
    adapter = UCGM(card)
    adapter.load(case.weights, {})
    adapter.network.eval()

    def run(call: Call) -> dict[str, Any]:
        if call["kind"] == "network":
            inputs = case.inputs(call)
            x, t = inputs["x"], inputs["t"]
            assert x is not None and t is not None
            return {"output": adapter.evaluate(x, t, inputs["labels"])}
        labels = case.labels(call, adapter.null_label or 0)
        options = dict(call.get("options", {}))
        # Upstream's guidance is off at 0 and on, at double cost, at 1.
        scale = call["guidance"] if call.get("guidance", 0.0) > 0 else None
        predict_at = adapter.predictor(labels, scale, options.pop("guidance_interval", None), None)
        times: list[float] = []

        def recorded(x: Tensor, t: float) -> Tensor:
            times.append(t)
            return predict_at(x, t)

        rows = 0

        def count(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            nonlocal rows
            rows += len(arguments[0])

        handle = adapter.network.register_forward_pre_hook(count)
        try:
            estimates = list(trajectory(recorded, case.noise(call), card.latent_shape, call["steps"], **options))
        finally:
            handle.remove()
        return {
            "output": estimates[-1],
            "trajectory": torch.stack(estimates),
            "times": times,
            "nfe_per_image": rows / len(labels),
        }

    return run
