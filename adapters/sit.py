"""SiT, scalable interpolant transformers (arXiv 2401.08740): a DiT sampled by an ODE or by a reverse SDE.

Noise lies at t = 0 and data at t = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adapters.autoencoders import build_autoencoder
from adapters.integrators import ADAPTIVE, Flow, ode_sample, sde_sample
from adapters.interpolants import Interpolant
from adapters.networks.dit import DiT
from bench.contracts.adapter import Adapter, load_strict
from bench.contracts.card import ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay
from results.errors import BenchError, unknown


def guide(
    network: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    t: Tensor,
    labels: Tensor,
    cfg: float,
    *,
    null_label: int,
    guided_channels: int = 3,
) -> tuple[Tensor, Tensor]:
    """Return (guided, unconditional) predictions for x [B, C, ...] by one evaluation of the doubled batch.

    Channels 0 .. `guided_channels` - 1 are u + cfg (c - u); the published figures guide 3 of the 4 latent channels and
    leave the others conditional.
    """
    null = torch.full_like(labels, null_label)
    c, u = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, null])).chunk(2)
    n = guided_channels
    guided = u[:, :n] + cfg * (c[:, :n] - u[:, :n])
    return torch.cat([guided, c[:, n:]], dim=1), u


class SiTNetwork(DiT):
    """A DiT of the SiT repository: with `learn_sigma` it emits twice the channels and the second half is unused."""

    def __init__(self, architecture: Mapping[str, Any], learn_sigma: bool) -> None:
        channels = architecture["in_channels"]
        super().__init__(
            input_size=architecture["latent_size"],
            patch_size=architecture["patch_size"],
            in_channels=channels,
            hidden_size=architecture["hidden_size"],
            depth=architecture["depth"],
            num_heads=architecture["num_heads"],
            mlp_ratio=architecture.get("mlp_ratio", 4.0),
            label_rows=architecture["num_classes"] + 1,
            out_channels=2 * channels if learn_sigma else channels,
        )
        self.channels = channels

    def forward(self, x: Tensor, *conditions: Tensor) -> Tensor:
        """x float32 [B, C, H, W], t float32 [B], labels int64 [B] (null label: num_classes) -> float32 [B, C, H, W]."""
        return super().forward(x, *conditions)[:, : self.channels]


class SiT(Adapter):
    """SiT and any model of its repository's architecture and transport."""

    network: SiTNetwork

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.network = SiTNetwork(card.architecture, card.architecture.get("learn_sigma", True))
        self.autoencoder = build_autoencoder(card.autoencoder)

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load a state dict; whether it has sigma channels is decided from the file, not from the card."""
        self.network = load_network(self.card.architecture, state, self.card.name).to(self.device, self.dtype).eval()

    def unsupported(self, steps: int, cfg: float) -> str | None:
        """Refuse one-step SDE sampling: the last update alone would start from noise."""
        if self.resolve_settings(steps)["mode"] == "SDE" and steps < 2:
            return f"{self.card.name} takes 2 or more steps in SDE mode (the last one is the last update)"
        return super().unsupported(steps, cfg)

    def generate(
        self,
        labels: Tensor,
        steps: int,
        cfg: float,
        noise: NoiseSource,
        *,
        mode: str = "ODE",
        solver: str = "euler",
        guidance_channels: int = 3,
        path_type: str = "Linear",
        prediction: str = "velocity",
        atol: float = 1e-6,
        rtol: float = 1e-3,
        diffusion_form: str = "sigma",
        diffusion_norm: float = 1.0,
        last_step: str = "Mean",
        last_step_size: float = 0.04,
    ) -> Tensor:
        """Return latents, float32 [B, *latent_shape].

        `mode` ODE: `steps` intervals of `solver` (see `ode_sample`; adaptive solvers ignore `steps` and their samples
        depend slightly on the batch). `mode` SDE: `steps` counts network evaluations of `solver` euler, of which the
        last serves `last_step` (`Mean`, `Euler`, `Tweedie`, `none`), an update of the fixed size `last_step_size`
        however many steps there are. `guidance_channels`: how many channels are guided (see `guide`). Raises
        BenchError for settings that do not exist or that have no finite sample.
        """
        interpolant = Interpolant(path_type, prediction)
        null_label = int(self.card.architecture["num_classes"])
        guided = partial(
            guide, self.network, labels=labels, cfg=cfg, null_label=null_label, guided_channels=guidance_channels
        )

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return self.network(x, t, labels) if cfg == 1.0 else guided(x, t)[0]

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return interpolant.velocity(predict(x, t), x, _per_sample(t, x))

        x = noise.normal(self.latent_shape)
        if mode == "ODE":
            times = torch.linspace(*interpolant.interval(), steps + 1).tolist()
            if solver not in ADAPTIVE or cfg == 1.0:
                return ode_sample(velocity, x, times, solver, atol=atol, rtol=rtol)

            def doubled_velocity(x: Tensor, t: Tensor) -> Tensor:
                # The authors integrate the doubled batch. Its second half is discarded, but counts in the error norm
                # that chooses the steps: guided like the first, and unconditional in the channels left unguided.
                half, n = len(labels), guidance_channels
                first, u = guided(x[:half], t[:half])
                second = torch.cat([first[:, :n], u[:, n:]], dim=1)
                return interpolant.velocity(torch.cat([first, second]), x, _per_sample(t, x))

            doubled = torch.cat([x, x])
            return ode_sample(doubled_velocity, doubled, times, solver, atol=atol, rtol=rtol)[: len(labels)]
        if mode != "SDE":
            raise unknown("SiT sampling mode", mode, ("ODE", "SDE"))
        if steps < 2:
            raise BenchError(f"{self.card.name}: SDE mode needs 2 or more steps; ask for more or use mode=ODE")
        if diffusion_form == "SBDM" and path_type != "VP" and prediction == "velocity":
            raise BenchError(
                f"{self.card.name}: diffusion_form SBDM is infinite at t = 0 on the {path_type} path; use sigma"
            )
        path, h = interpolant.path, last_step_size
        w = interpolant.diffusion(diffusion_form, diffusion_norm)

        def flow(x: Tensor, t: Tensor) -> Flow:
            time, output = _per_sample(t, x), predict(x, t)
            return Flow(interpolant.velocity(output, x, time), interpolant.score(output, x, time))

        last_steps: dict[str, Callable[[Tensor, Flow, Tensor], Tensor] | None] = {
            "Mean": lambda x, f, t: x + h * (f.velocity + w(t) * f.score),
            "Euler": lambda x, f, t: x + h * f.velocity,
            "Tweedie": lambda x, f, t: x / path.alpha(t) + path.sigma(t) ** 2 / path.alpha(t) * f.score,
            "none": None,
        }
        if last_step not in last_steps:
            raise unknown("SiT last step", last_step, last_steps)
        start, end = interpolant.interval(0.0 if last_step == "none" else h)
        times = torch.linspace(start, end, steps).tolist()
        if solver.lower() == "heun" and path.sigma(torch.tensor(times[-2] + times[1] - times[0])) == 0.0:
            raise BenchError(
                f"{self.card.name}: solver heun without a last step needs the score at t = 1, where it is infinite on "
                f"the {path_type} path; use solver=euler or another last_step"
            )
        return sde_sample(
            flow, x, lambda k: noise.normal(self.latent_shape, k), times, w,
            solver=solver.lower(), last_step=last_steps[last_step],
        )  # fmt: skip

    def decode(self, latents: Tensor) -> Tensor:
        """Return images, float32 [B, 3, H, W] in [-1, 1]."""
        images: Tensor = self.autoencoder.decode(latents)
        return images


def _per_sample(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (x.ndim - 1))


def load_network(architecture: Mapping[str, Any], state: Mapping[str, Any], name: str) -> SiTNetwork:
    """Return the network of a state dict, with sigma channels if its last layer has rows for them.

    Files that the repository's training script saved hold the weights under `ema`; the published one holds them bare.
    """
    if isinstance(state.get("ema"), Mapping):
        state = state["ema"]
    last = state.get("final_layer.linear.weight")
    outputs = architecture["patch_size"] ** 2 * architecture["in_channels"]
    learn_sigma = architecture.get("learn_sigma", True) if last is None else len(last) == 2 * outputs
    network = SiTNetwork(architecture, learn_sigma)
    load_strict(network, state, name)
    return network


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a SiT case."""
    name, architecture = case.spec["name"], case.architecture
    side = architecture["latent_size"]
    card = ModelCard(
        name, "sit", name, side, architecture["num_classes"], (architecture["in_channels"], side, side), architecture
    )
    adapter = SiT(card)
    adapter.load(case.weights, {})
    adapter.to("cpu")

    def run(call: Call) -> dict[str, Any]:
        options = dict(call.get("options", {}))
        cfg = call.get("guidance", 1.0)
        if call["kind"] == "network":
            x, t, labels = (case.tensors[call["inputs"][role]] for role in ("x", "t", "labels"))
            if cfg == 1.0:
                return {"output": adapter.network(x, t, labels)}
            null_label, n = architecture["num_classes"], options.get("guidance_channels", 3)
            return {"output": guide(adapter.network, x, t, labels, cfg, null_label=null_label, guided_channels=n)[0]}
        options.pop("upstream_num_steps", None)
        if "last_step" in options:
            options["last_step"] = options["last_step"] or "none"
        labels = case.labels(call, architecture["num_classes"])
        return {"output": adapter.generate(labels, call["steps"], cfg, case.noise(call), **options)}

    return run
