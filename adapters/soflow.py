"""SoFlow, solution flow models (arXiv 2512.15657): the network learns where the flow from t ends at any earlier s.

Noise lies at t = 1 and data at t = 0. Guidance is trained in: there is none at sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import cos, pi, sin
from typing import Any

import torch
from torch import Tensor, nn

from adapters.latent import LatentAdapter
from adapters.networks.dit import DiT
from adapters.networks.songunet import SongUNet
from adapters.times import filled, per_sample
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, recorded_adapter, recorded_replay
from bench.contracts.settings import SamplerSettings
from results.errors import unknown

NOISING = {
    "Linear": lambda t: (1 - t, t),
    "Trig": lambda t: (cos(pi * t / 2), sin(pi * t / 2)),
}
"""(alpha, beta) of x_t = alpha data + beta noise, by the authors' names."""


def soflow_sample(
    solution: Callable[[Tensor, Tensor, Tensor], Tensor],
    noise: NoiseSource,
    shape: Sequence[int],
    steps: int,
    *,
    noising_type: str = "Linear",
) -> Tensor:
    """Jump to the data `steps` times, float32 [B, *shape], adding fresh noise again between the jumps.

    `solution(x, t, s)` solves the flow from t to s, both float32 [B]. One evaluation a step, from t = 1 down to
    1/steps; `steps` - 1 noise draws after the initial one. Raises BenchError for an unknown noising type.
    """
    if noising_type not in NOISING:
        raise unknown("SoFlow noising type", noising_type, NOISING)
    x = noise.normal(shape)
    for i in range(steps):
        if i > 0:
            alpha, beta = NOISING[noising_type](1 - i / steps)
            x = alpha * x + beta * noise.normal(shape, i)
        x = solution(x, filled(1 - i / steps, x), filled(0.0, x))
    return x


def solve(prediction: Tensor, x: Tensor, t: Tensor, s: Tensor, coefficient_type: str = "Euler") -> Tensor:
    """Return f(x, t, s) = a(t, s) x + b(t, s) F for the network's prediction F; t and s float32 [B].

    Euler: a = 1, b = s - t. Any other type is the authors' Trig: a and b are cosine and sine of pi (s - t) / 2.
    """
    difference = per_sample(s - t, x)
    if coefficient_type == "Euler":
        return x + difference * prediction
    return torch.cos(pi / 2 * difference) * x + torch.sin(pi / 2 * difference) * prediction


class SoFlow(LatentAdapter):
    """SoFlow's latent DiT (`network` dit) and pixel U-Net (`network` unet, unconditional)."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.network = build_network(card.architecture)

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load the wrapper's state dict; all its keys start with `network.`."""
        state = {key.removeprefix("network."): value for key, value in state.items()}
        load_strict(self.network, state, self.card.name)

    def unsupported(self, steps: int, cfg: float, settings: SamplerSettings | None = None) -> str | None:
        """Refuse guidance: it is trained in, and the authors' samplers never apply a scale."""
        if cfg != 1.0:
            return f"{self.card.name} has its guidance trained in and takes none at sampling (cfg must be 1)"
        return super().unsupported(steps, cfg, settings)

    def predict(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """Return the raw network output F(x, t, s), float32 like x; the second embedder takes t - s."""
        if isinstance(self.network, SongUNet):
            return self.network(x, t, t - s)
        if labels is None:
            labels = torch.full_like(t, self.card.architecture["num_classes"], dtype=torch.int64)
        return self.network(x, t, t - s, labels)

    def solution(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """Return f(x, t, s), float32 like x."""
        return solve(self.predict(x, t, s, labels), x, t, s, self.card.architecture["coefficient_type"])

    def generate(
        self, labels: Tensor | None, steps: int, cfg: float, noise: NoiseSource, settings: SamplerSettings
    ) -> Tensor:
        """Return latents or pixels, float32 [B, *latent_shape]; an unconditional model ignores `labels`."""
        return soflow_sample(
            lambda x, t, s: self.solution(x, t, s, labels), noise, self.latent_shape, steps,
            noising_type=self.card.architecture["noising_type"],
        )  # fmt: skip


def build_network(architecture: Mapping[str, Any]) -> nn.Module:
    """Return the DiT or U-Net of `architecture` (the DiT has a null label row only if labels were dropped)."""
    if architecture["network"] == "unet":
        return SongUNet(
            img_resolution=architecture["latent_size"],
            in_channels=architecture["in_channels"],
            out_channels=architecture["in_channels"],
            model_channels=architecture["model_channels"],
            channel_mult=architecture["channel_mult"],
            num_blocks=architecture["num_blocks"],
            attn_resolutions=architecture["attn_resolutions"],
            interleaved_qkv=True,
        )
    if architecture["network"] != "dit":
        raise unknown("SoFlow network", architecture["network"], ("dit", "unet"))
    return DiT(
        input_size=architecture["latent_size"],
        patch_size=architecture["patch_size"],
        in_channels=architecture["in_channels"],
        hidden_size=architecture["hidden_size"],
        depth=architecture["depth"],
        num_heads=architecture["num_heads"],
        mlp_ratio=architecture.get("mlp_ratio", 4.0),
        label_rows=architecture["num_classes"] + (architecture["cfg_drop_rate"] > 0),
        scalars=("t_embedder", "s_embedder"),
    )


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a SoFlow case."""
    adapter = recorded_adapter(case, SoFlow)

    def network(call: Call) -> Tensor:
        solves = "solution" in f"{call['id']} {call.get('options', {}).get('what', '')}"
        compute = adapter.solution if solves else adapter.predict
        return compute(*case.arguments(call, "x", "t", "s", "labels"))

    # Upstream's scale is a label of the run and nothing more, so a recorded one changes nothing.
    null = case.architecture["num_classes"]
    return recorded_replay(case, adapter, network, options=lambda call: {}, cfg=lambda call: 1.0, null_label=null)
