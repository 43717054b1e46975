"""Recorded calls of judges (features, scores, tokens, preprocessing, resizes), replayed through the real code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.contracts.precision import full_precision
from bench.contracts.recording import Call, Case
from bench.judges.open_clip import OpenClipTowers, build_model
from bench.judges.pixels.preprocess import Preprocess
from bench.judges.pixels.resize import resize
from bench.judges.towers import Towers, cosine_scores
from bench.judges.transformers_clip import TransformersTowers
from results.errors import BenchError, unknown

FIRST_ROW = " (first row only)"
RESIZE_METHODS = {
    "clean-fid": "clean-fid",
    "torch-fidelity": "tf1-bilinear",
    "torchmetrics": "torchmetrics",
    "benchmark references": "squash",
    "benchmark text-to-image outputs": "lanczos",
    "ADM centre crop": "adm-center-crop",
}


def replay_judges(case: Case, call: Call) -> dict[str, Any]:
    """Return what judges compute for a recorded call: `output` (tensor, or tensors by role) and `expected` (numbers).

    Raises BenchError for a kind, a method or a library this tool does not know.
    """
    if call["kind"] not in REPLAYS:
        raise unknown("kind of judge call", call["kind"], REPLAYS)
    with torch.inference_mode(), full_precision():
        return REPLAYS[call["kind"]](case, call)


def _features(case: Case, call: Call) -> dict[str, Any]:
    towers, inputs = _towers(case), _inputs(case, call)
    text = towers.text_features(inputs["input_ids"], inputs.get("attention_mask"))
    return {"output": {"image": towers.image_features(inputs["pixel_values"]), "text": text}}


def _scores(case: Case, call: Call) -> dict[str, Any]:
    inputs = _inputs(case, call)
    if "scores" in inputs:
        return {"expected": {"per_class": _class_means(inputs["scores"], inputs["labels"])}}
    towers = _towers(case)
    recorded_scale = call.get("options", {}).get("scale", "exp(logit_scale)")
    scale = towers.temperature() if recorded_scale == "exp(logit_scale)" else float(recorded_scale)
    text = towers.text_features(inputs["input_ids"], inputs.get("attention_mask"))
    scores = cosine_scores(towers.image_features(inputs["pixel_values"]), text, scale)
    if isinstance(call.get("output"), Mapping):
        return {"output": {"scores": scores, "probabilities": scores.softmax(dim=0)}}
    return {"output": scores, "expected": {"mean": float(scores.double().mean())}}


def _tokens(case: Case, call: Call) -> dict[str, Any]:
    import open_clip

    options = call["options"]
    tokenizer = open_clip.SimpleTokenizer(context_length=options["context_length"])
    tokens = OpenClipTowers(nn.Identity(), tokenizer).tokenize(call["inputs"]["prompts"])["input_ids"]
    ended = (tokens == tokenizer.eot_token_id).cumsum(dim=1) - (tokens == tokenizer.eot_token_id).long()
    return {"output": tokens.masked_fill(ended > 0, options.get("padding_id", 0))}


def _preprocess(case: Case, call: Call) -> dict[str, Any]:
    options = call["options"]
    backend = str(options["backend"]).split()[0].lower()
    return {"output": Preprocess(size=options["size"], backend=backend)(_image(case, call))[0]}


def _resize(case: Case, call: Call) -> dict[str, Any]:
    options = call["options"]
    method = next((ours for theirs, ours in RESIZE_METHODS.items() if options["method"].startswith(theirs)), None)
    if method is None:
        raise unknown("recorded resize method", options["method"], RESIZE_METHODS)
    return {"output": resize(_image(case, call), options["size"], method)[0].permute(1, 2, 0)}


REPLAYS: dict[str, Callable[[Case, Call], dict[str, Any]]] = {
    "clip-features": _features,
    "pick-features": _features,
    "clip": _scores,
    "pick": _scores,
    "clip-tokens": _tokens,
    "clip-preprocess": _preprocess,
    "resize": _resize,
}


def _image(case: Case, call: Call) -> Tensor:
    """Return the recorded uint8 image [H, W, 3] as a batch of one, [1, 3, H, W]."""
    return _inputs(case, call)["image"].permute(2, 0, 1)[None].contiguous()


def _inputs(case: Case, call: Call) -> dict[str, Tensor]:
    """Return the recorded tensors of a call by role."""
    return {
        role: case.tensors[name.removesuffix(FIRST_ROW)][:1] if name.endswith(FIRST_ROW) else case.tensors[name]
        for role, name in call["inputs"].items()
        if isinstance(name, str)
    }


def _class_means(scores: Tensor, labels: Tensor) -> dict[str, float]:
    return {str(label): float(scores[labels == label].double().mean()) for label in labels.unique().tolist()}


def _towers(case: Case) -> Towers:
    """Build the recorded network from its `architecture` and load its weights."""
    architecture = case.spec["architecture"]
    library = architecture["library"]
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        if library.startswith("open_clip"):
            model = build_model(_open_clip_config(architecture))
        elif library.startswith("transformers"):
            import transformers

            model = transformers.CLIPModel(transformers.CLIPConfig(**_transformers_config(architecture)))
        else:
            raise BenchError(f"recorded judge of library '{library}': only open_clip and transformers can be replayed")
        model.load_state_dict(dict(case.weights), strict=True)
    model = model.to(torch.float32).eval().requires_grad_(False)
    return OpenClipTowers(model, None) if library.startswith("open_clip") else TransformersTowers(model)


def _open_clip_config(architecture: Mapping[str, Any]) -> dict[str, Any]:
    vision, text = architecture["vision"], architecture["text"]
    return {
        "embed_dim": architecture["embed_dim"],
        "quick_gelu": architecture.get("quick_gelu", False),
        "vision_cfg": {
            "layers": vision["layers"],
            "width": vision["width"],
            "head_width": vision["head_width"],
            "patch_size": vision["patch"],
            "image_size": vision["image"],
            "mlp_ratio": vision.get("mlp_ratio", 4.0),
        },
        "text_cfg": {
            "context_length": text["context"],
            "vocab_size": text["vocab"],
            "width": text["width"],
            "heads": text["heads"],
            "layers": text["layers"],
            "mlp_ratio": text.get("mlp_ratio", 4.0),
        },
    }


def _transformers_config(architecture: Mapping[str, Any]) -> dict[str, Any]:
    def tower(facts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "hidden_size": facts["width"],
            "num_hidden_layers": facts["layers"],
            "num_attention_heads": facts["heads"],
            "intermediate_size": facts["mlp"],
            "hidden_act": facts["activation"],
            "layer_norm_eps": architecture["layer_norm_eps"],
            "projection_dim": architecture["projection"],
        }

    text, vision = architecture["text"], architecture["vision"]
    return {
        "projection_dim": architecture["projection"],
        "text_config": tower(text)
        | {
            "vocab_size": text["vocab"],
            "max_position_embeddings": text["positions"],
            "bos_token_id": None,
            "eos_token_id": text["eos_token_id_in_config"],
        },
        "vision_config": tower(vision) | {"image_size": vision["image"], "patch_size": vision["patch"]},
    }
