"""A published pipeline: its networks, its scheduler's settings and, for as long as they encode, its text encoders."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.hosted.prompts import Embedding, Encoder, Lost, cut_words
from adapters.hosted.table import Hosting, from_diffusers
from results.errors import BenchError, BenchWarning, one_line

INDEX = "model_index.json"
LIBRARIES = ([None], ["diffusers"], ["transformers"])
"""What a component of a folder may begin with: none, or a library's class; any other would be code of its own."""
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


def check_folder(folder: Path, pipeline: str, hosting: Hosting, model: str) -> None:
    """Raise BenchError unless a folder holds the pipeline, made of the libraries' own classes."""
    index = _json(folder / INDEX, model)
    found = str(index.get("_class_name"))
    if found != pipeline:
        raise BenchError(f"{model}: {folder} holds a {found}, the card needs a {pipeline}; choose another folder")
    for part, value in index.items():
        if isinstance(value, list) and value[:1] not in LIBRARIES and part not in hosting.constructor:
            raise BenchError(
                f"{model}: {folder}: component '{part}' is code of its own ({one_line(str(value))}), which is never run"
            )
    for part in (hosting.network[0], "vae"):
        if not (folder / part).is_dir():
            raise BenchError(f"{model}: {folder} lacks the component '{part}'; fetch it again")


def load_part(folder: Path, part: str, name: str, model: str) -> nn.Module:
    """Return one network of a folder, in the dtype of its file. Raises BenchError for what does not fit its class."""
    made = from_diffusers(name, "network")
    dtype = DTYPES.get(stored_dtype(folder / part), torch.float32)
    try:
        loaded: nn.Module = made.from_pretrained(
            folder, subfolder=part, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except Exception as error:  # the library meets what is missing or damaged in many ways
        reason = one_line(f"{type(error).__name__}: {error}")
        raise BenchError(f"{model}: {folder / part} cannot be read as {name} ({reason}); fetch it again") from error
    return loaded


def stored_dtype(folder: Path) -> str:
    """Return the dtype of a component's first weight, as safetensors writes it; empty where there is none."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                    return str(file.get_slice(key).get_dtype())
        except (OSError, SafetensorError):
            return ""
    return ""


def scheduler_settings(folder: Path, model: str) -> tuple[str, dict[str, Any]]:
    """Return the class and the settings of a folder's scheduler."""
    config = _json(folder / "scheduler" / "scheduler_config.json", model)
    return str(config.get("_class_name", "")), {key: value for key, value in config.items() if key[:1] != "_"}


@contextmanager
def encoders(
    folder: Path, pipeline: str, hosting: Hosting, device: torch.device, dtype: torch.dtype, small: bool, model: str
) -> Iterator[Encoder]:
    """Open a folder's text encoders; `small` keeps their weights in 8 bits. Words that they cut are told."""
    made = from_diffusers(pipeline, "pipeline")
    parts = {hosting.network[0]: None, "vae": None, "scheduler": None, **hosting.constructor}
    try:
        pipe = made.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, **parts)
        for part in hosting.text:
            encoder = getattr(pipe, part)
            if small and isinstance(encoder, nn.Module):
                _shrink(encoder, dtype)
        pipe.to(device)
    except torch.OutOfMemoryError as error:
        raise BenchError(
            f"{model}: the text encoders do not fit on {device}; try --option text_encoder=float8, or a larger device"
        ) from error
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise BenchError(f"{model}: the text encoders in {folder} cannot be read ({reason}); fetch it again") from error

    def encode(text: str, tokens: int | None) -> tuple[Embedding, Lost]:
        with torch.inference_mode():
            return _encoded(pipe, hosting, text, tokens, device, model)

    try:
        yield encode
    finally:
        pipe = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _encoded(
    pipe: Any, hosting: Hosting, text: str, tokens: int | None, device: torch.device, model: str
) -> tuple[Embedding, Lost]:
    lost = {}
    for part in hosting.text:
        tokenizer = getattr(pipe, part)
        if part.startswith("tokenizer") and tokenizer is not None:
            limit = min(tokens or hosting.tokens, int(tokenizer.model_max_length), hosting.tokens)
            cut = cut_words(tokenizer, text, limit)
            if cut:
                lost[part] = one_line(cut)
                line = f"{model}: {part} reads {limit} tokens, so that a prompt loses its end: '{lost[part]}'"
                warnings.warn(line, BenchWarning, stacklevel=2)
    given: dict[str, Any] = {"prompt": [text], "device": device, **hosting.encoding}
    if tokens is not None and hosting.sizes:
        given[hosting.sizes] = tokens
    found = pipe.encode_prompt(**given)
    if not isinstance(found, tuple):
        found = (found,)
    embedding: Embedding = {}
    for name, value in zip(hosting.encoded, found, strict=False):
        if name is not None and value is not None:
            embedding[name] = value[0].detach().cpu()
    for name, mask in hosting.masked.items():
        if mask not in embedding:  # every token is real
            embedding[mask] = torch.ones(len(embedding[name]), dtype=getattr(torch, hosting.mask))
    return embedding, lost


def _shrink(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of an encoder in 8 bits, and compute in `dtype`."""
    from diffusers.hooks import apply_layerwise_casting

    apply_layerwise_casting(encoder, storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)


def fuse_lora(pipeline: Any, state: Mapping[str, Tensor], scale: float, model: str) -> None:
    """Add a LoRA to the pipeline's network for good. Raises BenchError without the package peft."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise BenchError(f"{model}: a LoRA needs the package peft; pip install 'fewstep-bench[t2i]'") from error
    try:
        pipeline.load_lora_weights(dict(state))
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise BenchError(f"{model}: the LoRA does not fit its network ({reason}); is it another model's?") from error


def _json(path: Path, model: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"{model}: {path} cannot be read ({one_line(str(error))}); fetch it again") from error
    if not isinstance(found, dict):
        raise BenchError(f"{model}: {path} is not an object; fetch it again")
    return found
