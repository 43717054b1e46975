"""Recorded calls of diffusers' pipelines, of DMD2's loops and of TwinFlow's, replayed through the adapter."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.hosted.adapter import PLAIN_SCHEDULER, Hosted, Size
from adapters.hosted.prompts import Conditioning
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.recording import Call, Case, Replay, sampled
from results.errors import BenchError, unknown

BINNING = {"use_resolution_binning"}
"""Switched off for runs but on by default, with which pipelines take sizes that are no multiple of theirs."""


def replay(case: Case) -> Replay:
    """Return the function that replays one recorded call of a pipeline."""
    facts = case.architecture
    pipeline = str(facts.get("pipeline_class"))
    adapter = opened(case, pipeline, facts["network"], facts.get("scheduler_class"), facts.get("scheduler") or {})
    adapter.pipeline().vae_scale_factor = facts.get("vae_scale_factor", 1)
    if "vae" in facts:
        adapter.pipeline().vae = _normalisation(case, facts["vae"])

    def run(call: Call) -> Mapping[str, Any]:
        options = case.options(call)
        arguments = dict(call.get("options", {}).get("arguments") or {})
        check_arguments(adapter, arguments)
        if call.get("guidance") is not None:
            arguments[adapter.hosting.argument] = float(call["guidance"])
        for argument in BINNING & adapter.hosting.fixed.keys():
            arguments.setdefault(argument, True)
        size = Size(options["height"], options["width"])
        given = conditioning(case, call.get("conditioning") or {})
        return replayed(adapter, case, call, size, given, arguments)

    return run


def replay_dmd2_sd15(case: Case) -> Replay:
    """Return the function that replays one recorded call of DMD2's loop on Stable Diffusion 1.5."""
    return _dmd2(case, "StableDiffusionPipeline")


def replay_dmd2_sdxl(case: Case) -> Replay:
    """Return the function that replays one recorded call of DMD2's loop on SDXL."""
    return _dmd2(case, "StableDiffusionXLPipeline")


def _dmd2(case: Case, pipeline: str) -> Replay:
    adapter = opened(case, pipeline, case.architecture["unet"], "X0Scheduler", {})
    adapter.pipeline().vae_scale_factor = 1

    def network(call: Call) -> Tensor:
        x, time, embeds, pooled, sizes = case.arguments(call, "x", "time", "prompt_embeds", "text_embeds", "time_ids")
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes}
        output: Tensor = adapter.network(x, time, embeds, added_cond_kwargs=added, return_dict=False)[0]
        return output

    def run(call: Call) -> Mapping[str, Any]:
        if call["kind"] == "network":
            return {"output": network(call)}
        options = case.options(call)
        names = dict(options.get("conditioning", {}))
        sizes = case.tensor(names.pop("time_ids", None))
        given = conditioning(case, {"pooled_prompt_embeds" if k == "text_embeds" else k: v for k, v in names.items()})
        scale = call.get("guidance", 0.0)
        arguments: dict[str, Any] = {"timesteps": list(options["timesteps"]), "guidance_scale": scale}
        if sizes is not None:
            if not bool((sizes == sizes[0]).all()):
                raise BenchError(f"{case.name}: time_ids differ between samples, a pipeline takes one size a call")
            original, crop, target = (tuple(map(int, pair)) for pair in sizes[0].reshape(3, 2).tolist())
            arguments |= {"original_size": original, "crops_coords_top_left": crop, "target_size": target}
        height, width = case.tensors[call["noise"]].shape[-2:]
        config = {"alpha_bar_at_timestep": options.get("alpha_bar_at_timestep")}
        adapter.reconfigure(config)
        return replayed(adapter, case, call, Size(height, width), given, arguments)

    return run


def replay_twinflow(case: Case) -> Replay:
    """Return the function that replays one recorded call of TwinFlow."""
    facts = case.architecture
    name = facts["network_class"]
    pipelines = {"QwenImageTransformer2DModel": "QwenImagePipeline", "ZImageTransformer2DModel": "ZImagePipeline"}
    if name not in pipelines:
        raise unknown("network of TwinFlow", name, pipelines)
    adapter = opened(case, pipelines[name], facts["network"], "TwinFlowScheduler", {}, second_time=True)
    adapter.pipeline().vae_scale_factor = facts.get("vae_scale_factor", 1)
    lists = adapter.hosting.listed

    def embeddings(call: Call) -> dict[str, Any]:
        found = conditioning(case, call.get("conditioning") or {})
        if not lists:
            return {key: value.long() if key.endswith("mask") else value for key, value in found.items()}
        masks: Any = found["prompt_embeds_mask"]
        pairs = zip(found["prompt_embeds"], masks, strict=True)
        return {"prompt_embeds": [text[mask.bool()] for text, mask in pairs]}

    def network(call: Call) -> Tensor:
        x, t, target = case.arguments(call, "x", "t", "tt")
        given = embeddings(call)
        if lists:
            times: Any = adapter.network.t_embedder
            times.target = target.double()
            own = t.double().sign() * (1 - t.double().abs())
            output = adapter.network(list(x[:, :, None].unbind()), own, given["prompt_embeds"], return_dict=False)[0]
            return -torch.stack(output)[:, :, 0]
        times = adapter.network.time_text_embed
        times.target = target
        grid = [[(1, x.shape[-2] // 2, x.shape[-1] // 2)]] * len(x)
        tokens = adapter.hosting.layout.pack(x)
        output = adapter.network(
            hidden_states=tokens, timestep=t, encoder_hidden_states=given["prompt_embeds"],
            encoder_hidden_states_mask=given["prompt_embeds_mask"], img_shapes=grid, return_dict=False,
        )[0]  # fmt: skip
        return adapter.hosting.layout.unpack(output, tuple(x.shape[1:]))

    def run(call: Call) -> Mapping[str, Any]:
        if call["kind"] == "network":
            return {"output": network(call)}
        options = case.options(call)
        if call.get("guidance"):
            raise BenchError(f"{case.name}: TwinFlow takes no guidance, found {call['guidance']:g}")
        part: Any = adapter.network.t_embedder if lists else adapter.network.time_text_embed
        part.target = 0.0
        adapter.reconfigure({key: value for key, value in options.items() if key != "times"})
        shape = tuple(case.tensors[call["noise"]].shape[1:])
        size = Size(*shape[1:])
        off = {adapter.hosting.argument: 1.0 - adapter.hosting.offset}
        produced = replayed(adapter, case, call, size, embeddings(call), off)
        return {**produced, "output": adapter.hosting.layout.unpack(produced["output"], shape)}

    return run


def opened(
    case: Case,
    pipeline: str,
    network: Mapping[str, Any],
    scheduler_class: str | None,
    scheduler: Mapping[str, Any],
    second_time: bool = False,
) -> Hosted:
    """Return the adapter of a recorded network, without autoencoder and text encoders."""
    architecture = {
        "pipeline": pipeline, "network": network, "scheduler": scheduler,
        "scheduler_class": scheduler_class or PLAIN_SCHEDULER,
        "options": case.architecture.get("pipeline") or {}, "second_time": second_time,
    }  # fmt: skip
    card = ModelCard(case.name, "diffusers", case.name, 8, 0, (4, 8, 8), architecture, guidance=Guidance("embedded"))
    adapter = Hosted(card)
    adapter.load({key: value.float() for key, value in case.weights.items()}, {})
    adapter.to("cpu")
    return adapter


def replayed(
    adapter: Hosted, case: Case, call: Call, size: Size, given: Conditioning, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the latent output of a recorded sample call and what it cost."""
    noise = case.noise(call)
    shape = noise.initial.shape[1:]
    run = lambda: adapter.run(noise, shape, call["steps"], size, given, arguments)  # noqa: E731
    return sampled(adapter, run)


def conditioning(case: Case, names: Mapping[str, str | Sequence[str]]) -> dict[str, Any]:
    """Return recorded embeddings by argument: a tensor, or a list of one tensor a sample."""
    return {
        argument: case.tensors[name] if isinstance(name, str) else [case.tensors[one] for one in name]
        for argument, name in names.items()
    }


def check_arguments(adapter: Hosted, arguments: Mapping[str, Any]) -> None:
    """Raise BenchError for an argument that the pipeline does not take."""
    known = inspect.signature(type(adapter.pipeline()).__call__).parameters
    for argument in arguments:
        if argument not in known:
            raise unknown(f"argument of {type(adapter.pipeline()).__name__}", argument, known)


class _Normalised(nn.Module):
    """The batch normalisation of FLUX.2's autoencoder, which its pipelines read."""

    def __init__(self, mean: Tensor, var: Tensor, eps: float) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(len(mean), eps=eps, affine=False)
        self.bn.running_mean, self.bn.running_var = mean, var
        self.config = type("Config", (), {"batch_norm_eps": eps})()
        self.device, self.dtype = mean.device, mean.dtype


def _normalisation(case: Case, facts: Mapping[str, Any]) -> nn.Module:
    mean, var = (case.tensors[facts[key]] for key in ("bn_mean", "bn_var"))
    return _Normalised(mean, var, facts["batch_norm_eps"]).eval()
