"""MeanFlow (Geng et al., "Mean Flows for One-step Generative Modeling", arXiv 2505.13447) and alpha-Flow's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from adapters.autoencoders import build_autoencoder
from adapters.flax_trees import Rule, convert, image_kernel, is_flax, matrix, same, without_prefix
from adapters.networks.dit import DiT
from adapters.networks.songunet import SongUNet
from bench.contracts.adapter import Adapter, load_strict
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay
from results.errors import BenchError, unknown

AverageVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u(z_t, t, h): the average velocity over [t - h, t]; t and h float32 [B] in [0, 1], t = 1 is noise."""


def uniform_times(steps: int) -> tuple[float, ...]:
    """Return steps + 1 equidistant times from 1 (noise) to 0 (data), both included."""
    return tuple(1.0 - i / steps for i in range(steps + 1))


def meanflow_sample(average_velocity: AverageVelocity, z: Tensor, times: Sequence[float]) -> Tensor:
    """Return z at the last of `times`, started from `z` float32 [B, ...] at the first (arXiv 2505.13447, eq. 12).

    `times` decrease from 1 (noise) to 0 (data), steps + 1 values; nothing is drawn on the way. This is no Euler
    solver: the network is asked for the average over the whole step and sees its length h.
    """
    for t, r in pairwise(times):
        h = t - r
        z = z - h * average_velocity(z, filled(t, z), filled(h, z))
    return z


def consistency_sample(
    average_velocity: AverageVelocity, z: Tensor, times: Sequence[float], noise: NoiseSource
) -> Tensor:
    """Return the data estimate of alpha-Flow's stochastic sampler (arXiv 2510.20771): jump to 0, noise again.

    `z` float32 [B, ...] at the first of `times`; draw k of `noise` is the noise after step k.
    """
    for k, (t, t_next) in enumerate(pairwise(times), start=1):
        x = z - t * average_velocity(z, filled(t, z), filled(t, z))
        z = x if t_next == 0.0 else (1 - t_next) * x + t_next * noise.normal(z.shape[1:], draw=k).to(z)
    return z


def filled(value: float, z: Tensor) -> Tensor:
    """Return `value` for every sample of z: float32 [B]."""
    return torch.full((z.shape[0],), value, dtype=torch.float32, device=z.device)


def guided(network: nn.Module, labels: Tensor, null: int, cfg: float) -> AverageVelocity:
    """Return u_null + cfg (u_y - u_null), both halves in one doubled batch; the plain network at cfg 1.

    The published models had guidance trained in: cfg 1 is the model as its authors use it, more guides it twice.
    """
    if cfg == 1.0:
        return lambda z, t, h: network(z, t, h, labels)
    both = torch.cat([labels, torch.full_like(labels, null)])

    def average_velocity(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        u_y, u_null = network(torch.cat([z, z]), torch.cat([t, t]), torch.cat([h, h]), both).chunk(2)
        return u_null + cfg * (u_y - u_null)

    return average_velocity


def time_grid(times: Sequence[float] | None, steps: int) -> tuple[float, ...]:
    """Return `times` if given, else the uniform grid. Raises BenchError unless they fall from 1 to 0 in `steps`."""
    if times is None:
        return uniform_times(steps)
    grid = tuple(float(time) for time in times)
    if len(grid) != steps + 1 or grid[0] != 1.0 or grid[-1] != 0.0 or any(t <= r for t, r in pairwise(grid)):
        raise BenchError(f"times {list(grid)} do not fit: {steps} steps need {steps + 1} values falling from 1 to 0")
    return grid


DIT_RULES = (
    Rule(r"x_embedder/proj/kernel", "x_embedder.proj.weight", image_kernel),
    Rule(r"x_embedder/proj/bias", "x_embedder.proj.bias", same),
    Rule(r"t_embedder/mlp/layers_(\d)/_flax_linear/kernel", r"t_embedder.mlp.\1.weight", matrix),
    Rule(r"t_embedder/mlp/layers_(\d)/_flax_linear/bias", r"t_embedder.mlp.\1.bias", same),
    Rule(r"h_embedder/mlp/layers_(\d)/_flax_linear/kernel", r"r_embedder.mlp.\1.weight", matrix),
    Rule(r"h_embedder/mlp/layers_(\d)/_flax_linear/bias", r"r_embedder.mlp.\1.bias", same),
    Rule(r"y_embedder/embedding_table/_flax_embedding/embedding", "y_embedder.embedding_table.weight", same),
    Rule(r"blocks/layers_(\d+)/(attn|mlp)/(\w+)/_flax_linear/kernel", r"blocks.\1.\2.\3.weight", matrix),
    Rule(r"blocks/layers_(\d+)/(attn|mlp)/(\w+)/_flax_linear/bias", r"blocks.\1.\2.\3.bias", same),
    Rule(
        r"blocks/layers_(\d+)/adaLN_modulation/layers_1/_flax_linear/kernel",
        r"blocks.\1.adaLN_modulation.1.weight",
        matrix,
    ),
    Rule(
        r"blocks/layers_(\d+)/adaLN_modulation/layers_1/_flax_linear/bias", r"blocks.\1.adaLN_modulation.1.bias", same
    ),
    Rule(r"final_layer/adaLN_modulation/layers_1/_flax_linear/kernel", "final_layer.adaLN_modulation.1.weight", matrix),
    Rule(r"final_layer/adaLN_modulation/layers_1/_flax_linear/bias", "final_layer.adaLN_modulation.1.bias", same),
    Rule(r"final_layer/linear/_flax_linear/kernel", "final_layer.linear.weight", matrix),
    Rule(r"final_layer/linear/_flax_linear/bias", "final_layer.linear.bias", same),
)
"""The official flax tree below `net/`; qkv outputs are already blocks of q, k, v. The fixed table is not stored."""

ALPHAFLOW_NAMES = (("noise_labels_embedder.", "t_embedder."), ("noise_labels_next_embedder.", "r_embedder."))
"""What alpha-Flow calls the embedders of t and of the interval."""

BEST_COPY = "net_ema1."
"""The CIFAR-10 checkpoint holds four copies of the network (raw and three averages); the authors evaluate this one."""


def renamed(key: str, names: Sequence[tuple[str, str]]) -> str:
    """Return `key` with the first matching (theirs, ours) prefix exchanged."""
    for theirs, ours in names:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


def input_size(architecture: Mapping[str, Any]) -> int:
    """Return the spatial size of x, whatever the upstream constructor calls it."""
    return next(architecture[key] for key in ("latent_size", "input_size", "img_resolution") if key in architecture)


class MeanFlow(Adapter):
    """Average-velocity models: u over [t - h, t] in one network pass a step (two with inference-time guidance)."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.network = self.build_network(card.architecture)
        self.autoencoder = build_autoencoder(card.autoencoder)

    @staticmethod
    def build_network(architecture: Mapping[str, Any]) -> nn.Module:
        """Return the network of `architecture`: `dit` and `sit` (one function, two key layouts) or `songunet`.

        Raises BenchError for an unknown network, or a SongUNet variant that this family never published.
        """
        facts = dict(architecture)
        name = facts.pop("network")
        if name in ("dit", "sit"):
            return DiT(
                input_size=input_size(facts),
                patch_size=facts["patch_size"],
                in_channels=facts["in_channels"],
                hidden_size=facts["hidden_size"],
                depth=facts["depth"],
                num_heads=facts["num_heads"],
                mlp_ratio=facts["mlp_ratio"],
                label_rows=facts["num_classes"] + 1,
                scalars=("t_embedder", "r_embedder"),
            )
        if name == "songunet":
            fixed = {
                "encoder_type": "standard",
                "decoder_type": "standard",
                "embedding_type": "positional",
                "label_dim": 0,
            }
            for key, value in fixed.items():
                if facts.pop(key, value) != value:
                    raise BenchError(f"songunet of MeanFlow: {key} must be {value!r}, found {architecture[key]!r}")
            facts = {key: value for key, value in facts.items() if key not in ("dropout", "label_dropout")}
            return SongUNet(**facts)
        raise unknown("MeanFlow network", name, ("dit", "sit", "songunet"))

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network from a flax tree ('/'-joined paths), a PyTorch state dict, or the CIFAR-10 wrapper's."""
        if is_flax(state):
            state = convert(without_prefix(state, "net/"), DIT_RULES)
            if isinstance(self.network, DiT):
                state = {"pos_embed": self.network.get_buffer("pos_embed")} | state
        elif any(key.startswith(BEST_COPY) for key in state):
            state = {key.removeprefix(BEST_COPY): value for key, value in state.items() if key.startswith(BEST_COPY)}
        else:
            state = {renamed(key, ALPHAFLOW_NAMES): value for key, value in without_prefix(state, "net.").items()}
        load_strict(self.network, state, self.card.name)

    def generate(
        self,
        labels: Tensor,
        steps: int,
        cfg: float,
        noise: NoiseSource,
        *,
        times: Sequence[float] | None = None,
        mode: str = "ode",
    ) -> Tensor:
        """Return samples float32 [B, *latent_shape].

        `times`: steps + 1 values falling from 1 to 0 (default: uniform). `mode`: `ode`, the rule of the paper, or
        `consistency`, alpha-Flow's stochastic sampler. `cfg` other than 1 takes a second, unconditional pass.
        """
        grid = time_grid(times, steps)
        z = noise.normal(self.latent_shape).to(self.device)
        average_velocity = guided(self.network, labels, self.num_classes, cfg) if self.num_classes else self.network
        if mode == "ode":
            return meanflow_sample(average_velocity, z, grid)
        if mode == "consistency":
            return consistency_sample(average_velocity, z, grid, noise)
        raise unknown("MeanFlow sampler mode", mode, ("ode", "consistency"))

    def decode(self, latents: Tensor) -> Tensor:
        """Return images float32 [B, 3, H, W] in [-1, 1]."""
        images: Tensor = self.autoencoder.decode(latents)
        return images


def recorded_card(case: Case, guidance: str) -> ModelCard:
    """Return the card of a recorded network: its architecture, no weights, no autoencoder."""
    facts = case.architecture
    size = input_size(facts)
    return ModelCard(
        name=case.spec["name"],
        family=case.spec["adapter"],
        title=case.spec["name"],
        resolution=size,
        num_classes=facts.get("num_classes", 0),
        latent_shape=(facts["in_channels"], size, size),
        architecture=facts,
        guidance=Guidance(guidance),
    )


def replay(case: Case) -> Replay:
    """Return the replay of a MeanFlow recording: calls of kind `network` and `sample`."""
    adapter = MeanFlow(recorded_card(case, "classifier-free"))
    adapter.load(case.weights, {})
    adapter.to("cpu")

    def run(call: Call) -> dict[str, Tensor]:
        if call["kind"] == "network":
            inputs = case.inputs(call)
            roles = [role for role in ("x", "t", "h", "labels") if inputs.get(role) is not None]
            return {"output": adapter.network(*(inputs[role] for role in roles))}
        if call["kind"] == "sample":
            options, noise = case.options(call), case.noise(call)
            labels = case.labels(call, adapter.num_classes)
            cfg = float(call.get("guidance", 1.0)) if options.get("guidance_mode") == "inference_cfg" else 1.0
            if case.architecture["network"] == "sit":
                cfg = max(cfg, 1.0)  # the port takes its second pass only above 1
            return {"output": adapter.generate(labels, call["steps"], cfg, noise, times=options.get("timesteps"))}
        raise unknown("kind of call", call["kind"], ("network", "sample"))

    return run
